"""Binary MNIST from what it is handed round as: Larochelle's text files, MATLAB or NumPy files, or grey images.

The former hold the standard, fixed binarisation (Larochelle and Murray 2011), 50,000 / 10,000 / 10,000 rows of 784
pixels. Grey values are made binary once, each pixel 1 with probability grey / 255, by numbers that follow from a seed,
and the last 10,000 training images are validation.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from zfdist.data.kinds import BITS
from zfdist.data.manifest import SPLITS
from zfdist.data.output import Where
from zfdist.data.sources import binary, grey, idx, packed
from zfdist.data.sources.convert import (
    Outcome,
    PlannedShard,
    Progress,
    convert,
    existing,
    json_sha256,
    silent,
)
from zfdist.data.sources.grey import Grey
from zfdist.data.sources.idx import EMNIST, IMAGES_MAGIC, LABELS_MAGIC, PIXELS, Image
from zfdist.data.sources.inputs import SourceError, content_sha256, kind_of_name, remarks, walk
from zfdist.data.sources.packed import UNREADABLE
from zfdist.data.sources.places import Source, licence_beside, mirrored
from zfdist.data.sources.workers import Report, Workers, here
from zfdist.data.store_writer import Recording

VERSION = 1
ROLES = {"train": ("train",), "t10k": ("t10k", "test")}
"""What stands in the names of files of grey images."""


@dataclass(frozen=True)
class Mnist:
    """What to convert and how."""

    source: Source
    """Folder with a file for each split."""
    binarise_seed: int = 0
    """Fixes which pixels of grey images are 1."""
    idx_valid: int = 10_000
    """Last training images of the IDX files that are validation."""
    licence: str = ""

    def __post_init__(self) -> None:
        """Raises SourceError naming the option that is out of range."""
        if not 0 <= self.binarise_seed < 1 << 63:
            raise SourceError(f"--binarise-seed {self.binarise_seed}: must be 0 to 2^63 - 1")
        if self.idx_valid < 1:
            raise SourceError(f"--idx-valid {self.idx_valid}: must be at least 1")


class _Part(NamedTuple):
    """What a split is made of: a file of 0 and 1, or some of the images of a file of grey ones."""

    path: Path
    form: str
    grey: Grey | None = None
    first: int = 0
    stop: int = 0

    @property
    def files(self) -> list[Path]:
        return [self.path, *([self.grey.labels] if self.grey and self.grey.labels else [])]


def prepare(options: Mnist, out: Where, progress: Progress = silent, workers: Workers = here) -> Outcome:
    """Convert MNIST files to a store of images in folder or URI `out`.

    Raises SourceError naming file and line (or row) for anything that is no row of 784 pixels.
    """
    parts, said = find(options)
    files = {path.name: content_sha256(path) for part in parts.values() for path in part.files}
    is_grey = parts["train"].grey is not None
    is_turned = any(EMNIST.search(name.lower()) for name in files)
    source: dict[str, Any] = {
        "converter": "mnist",
        "version": VERSION,
        "form": parts["train"].form + (", rows and columns exchanged" if is_turned else ""),
        "files": files,
        "binarised": f"grey / 255 against seed {options.binarise_seed}" if is_grey else "in the files",
        "split": f"the last {options.idx_valid} of train are valid" if is_grey else "by file name",
    }
    outcome = existing(out, source)
    if outcome is not None:
        return replace(outcome, remarks=said)
    plan = []
    for split, part in parts.items():
        key = json_sha256([VERSION, files, part.form, part.first, part.stop, options.binarise_seed])
        plan.append(PlannedShard(split, f"{split}-00000", key, _rows(part), partial(_recordings, options, split)))
    outcome = convert(
        out,
        plan,
        source=source,
        licence=options.licence or licence_beside(options.source),
        progress=progress,
        kind=BITS,
        workers=workers,
    )
    return replace(outcome, remarks=said)


def _recordings(options: Mnist, split: str, notes: dict[str, str], report: Report) -> Iterator[Recording]:
    """Read the images of a split, on whatever machine this is."""
    part = find(options)[0][split]
    name = part.grey.name if part.grey else part.path.name
    for done, image in enumerate(images(part, options.binarise_seed)):
        yield Recording(f"{name}:{image.row}", image.pixels, image.label)
        if done % 1000 == 999:
            report(done + 1, part.path.name)


def find(options: Mnist) -> tuple[dict[str, _Part], tuple[str, ...]]:
    """Find the files of each split by their names, and say what else lies in the folder.

    Equal content counts once. Raises SourceError if a file is missing, or two could be meant.
    """
    root = mirrored(options.source)
    tree = walk(root)
    forms = {path: _form(path) for path in tree.files.values()}
    found = {path: form for path, form in forms.items() if form}
    parts = _fixed(root, found) or _grey(root, options.idx_valid, found)
    used = {path for part in parts.values() for path in part.files}
    left_out = tree.left_out.copy()
    for name, path in tree.files.items():
        if path not in used:
            left_out["other form or copy of the images" if forms[path] else kind_of_name(name)] += 1
    said = list(remarks(tree.links, left_out))
    if any(EMNIST.search(path.name.lower()) for path in used):
        said.append("EMNIST holds images with rows and columns exchanged; they are put right")
    bare = [split for split, part in parts.items() if part.grey and not grey.has_labels(part.grey)]
    if bare:
        said.append(f"images without labels: {', '.join(bare)}")
    return parts, tuple(said)


def _fixed(root: Path, forms: Mapping[Path, str]) -> dict[str, _Part]:
    """Return the parts that hold 0 and 1; none if there is no file of that kind."""
    named = {
        split: [path for path, form in forms.items() if split in path.name.lower() and form in binary.FORMS]
        for split in SPLITS
    }
    if not any(named.values()):
        return {}
    paths = {split: _only(root, split, named[split]) for split in SPLITS}
    return {split: _Part(path, forms[path]) for split, path in paths.items()}


def _grey(root: Path, idx_valid: int, forms: Mapping[Path, str]) -> dict[str, _Part]:
    """Return the parts of grey images."""
    form = next((form for form in grey.FORMS if form in forms.values()), None)
    if form is None:
        beside = sorted({kind_of_name(path.name).removeprefix("of ") for path in walk(root).files.values()})
        raise SourceError(
            f"{root}: no MNIST in it; there must be binarized_mnist_train, .._valid and .._test (.amat text, "
            "MATLAB or .npy), or train-images-idx3-ubyte and t10k-images-idx3-ubyte, or mnist.npz, or train.csv and "
            f"test.csv; there are files {', '.join(beside[:20]) or 'of no kind'}"
        )
    paths = [path for path, its_form in forms.items() if its_form == form]
    parts = {}
    for role, words in ROLES.items():
        named = paths if form == "npz" else [path for path in paths if any(word in path.name.lower() for word in words)]
        labels = [path for path in named if form == "idx" and idx.magic(path) == LABELS_MAGIC]
        path = _only(root, role, [path for path in named if path not in labels])
        its_labels = _only(root, f"{role} labels", labels) if labels else None
        parts[role] = Grey(path, form, "train" if role == "train" else "test", its_labels)
    train, test = parts["train"], parts["t10k"]
    if form != "npz" and train.path == test.path:
        raise SourceError(f"{train.path}: is named both train and test; rename it")
    count, tests = grey.count(train), grey.count(test)
    if count <= idx_valid:
        raise SourceError(f"{train.path}: {count} images leave none to train on after --idx-valid {idx_valid}")
    cut = count - idx_valid
    return {
        "train": _Part(train.path, form, train, 0, cut),
        "valid": _Part(train.path, form, train, cut, count),
        "test": _Part(test.path, form, test, 0, tests),
    }


def _only(root: Path, name: str, paths: list[Path]) -> Path:
    """Return the one file, or the first of several that hold the same, packed or not."""
    if not paths:
        raise SourceError(f"{root}: no file for {name!r}; there must be one with {name!r} in its name")
    if len(paths) > 1 and len({idx.unpacked_sha256(path) for path in paths}) > 1:
        listed = ", ".join(path.relative_to(root).as_posix() for path in paths)
        raise SourceError(
            f"{root}: {len(paths)} files ({listed}) for {name!r} do not hold the same; take out all but one"
        )
    return paths[0]


def _form(path: Path) -> str | None:
    """Tell by the first bytes what a file is: "idx", "npz", "csv", "text", "matlab", "npy"; None for all else.

    Raises SourceError if it cannot be read.
    """
    try:
        members = packed.members(path)
        member = next(members, None)
        is_one = next(members, None) is None
    except UNREADABLE as error:
        raise SourceError(f"{path}: not readable ({error})") from None
    name = path.name.lower()
    if member is None or member.problem:
        if member and any(word in name for word in (*SPLITS, "t10k")):
            raise SourceError(f"{path}: {member.problem}")
        return None
    head = member.head
    if head.startswith(b"\x93NUMPY"):
        return "npz" if member.name else "npy"
    if not is_one:
        return None
    if head.startswith((b"MATLAB 5.0", b"MATLAB 7.3", binary.HDF5)):
        return "matlab"
    if head[:4] in (IMAGES_MAGIC.to_bytes(4, "big"), LABELS_MAGIC.to_bytes(4, "big")):
        return "idx"
    is_amat = packed.stem(name).endswith(".amat")
    if not is_amat and grey.is_csv(head):
        return "csv"
    first = head.replace(b"\r", b"\n").split(b"\n", 1)[0]
    return "text" if is_amat or len(first.split()) >= PIXELS else None


def _rows(part: _Part) -> int:
    """Return about how many rows a part has."""
    return part.stop - part.first if part.grey else part.path.stat().st_size // (2 * PIXELS)


def images(part: _Part, seed: int) -> Iterator[Image]:
    """Yield the images of a part; raises SourceError naming file and line or row for a bad one."""
    if part.grey:
        return grey.images(part.grey, part.first, part.stop, seed)
    return binary.FORMS[part.form](part.path)
