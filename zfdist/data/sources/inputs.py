"""Which files of a folder are input, and which split each belongs to; the same for the same files, in any order."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from zfdist.data.manifest import SPLITS
from zfdist.data.sources import audio

EDGE_BYTES = 1 << 16


class SourceError(ValueError):
    """Input that cannot be made a data set; the message names the files or options."""


@dataclass(frozen=True)
class Input:
    """An audio file: its path under the source, and enough of its content to know it again."""

    name: str
    bytes: int
    edges: str
    """xxh3_128 of its first and last 64 KiB."""


def list_inputs(source: Path) -> list[Input]:
    """List the audio files under a folder in the order of their relative paths (bytewise).

    Hidden files and folders are left out, links to folders not followed. Raises SourceError if there are none.
    """
    if not source.is_dir():
        raise SourceError(f"{source}: no such folder")
    # A link that leads nowhere is kept: reading it fails and is reported, where leaving it out would be silent.
    files = {
        path.relative_to(source).as_posix(): path for path in source.rglob("*") if path.is_file() or path.is_symlink()
    }
    names = [
        name for name in files if not any(part[0] == "." for part in name.split("/")) and _claims_audio(files[name])
    ]
    for name in names:
        if not _is_text(name):
            raise SourceError(f"{source}: the file name {name!r} is not valid UTF-8; rename it")
    inputs = [_identified(name, files[name]) for name in sorted(names, key=str.encode)]
    if not inputs:
        raise SourceError(f"{source}: no WAV, FLAC, NIST SPHERE or MP3 file in it")
    return inputs


def _claims_audio(path: Path) -> bool:
    try:
        return audio.is_audio(path)
    except audio.AudioError:
        return False


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _identified(name: str, path: Path) -> Input:
    size = 0
    edges = xxhash.xxh3_128()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            edges.update(file.read(EDGE_BYTES))
            file.seek(max(0, size - EDGE_BYTES))
            edges.update(file.read(EDGE_BYTES))
    except OSError:
        pass  # reading it will fail as well, and say why
    return Input(name, size, edges.hexdigest())


def split_of(name: str, split_by: str, valid_percent: float, test_percent: float) -> str:
    """Return the split of a file by its path under the source (POSIX): stable when other files come or go.

    u = the first 8 bytes of sha256 of the path (or of the path of the folder the file lies in), as a fraction of 1:
    test if 100 u < test_percent, valid if 100 u < test_percent + valid_percent, else train.
    """
    return split_of_key(name if split_by == "file" else name.rpartition("/")[0], valid_percent, test_percent)


def split_of_key(key: str, valid_percent: float, test_percent: float) -> str:
    """Return the split of whatever a key names, by the same rule."""
    percent = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64 * 100
    if percent < test_percent:
        return "test"
    return "valid" if percent < test_percent + valid_percent else "train"


def splits_by_lists(lists: Mapping[str, Path], source: Path, inputs: list[Input]) -> dict[str, list[Input]]:
    """Read the list files: a path under the source on each line; empty lines and those with # are passed over."""
    known = {item.name: item for item in inputs}
    owner: dict[str, str] = {}
    for split, path in lists.items():
        names = listed_names(path, f"--list-{split}")
        missing = [name for name in names if name not in known]
        if missing:
            raise SourceError(
                f"--list-{split} {path}: {len(missing)} of {len(names)} files are not audio files under {source}, "
                f"the first is {missing[0]!r}"
            )
        for name in names:
            if name in owner:
                raise SourceError(f"--list-{split} {path}: {name!r} is already in the list of {owner[name]}")
            owner[name] = split
    splits: dict[str, list[Input]] = {name: [] for name in SPLITS}
    for item in inputs:
        if item.name in owner:
            splits[owner[item.name]].append(item)
    return splits


def listed_names(path: Path, flag: str) -> list[str]:
    """Return the lines of a list file, but for empty ones and those with #; raises SourceError naming the flag."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{flag} {path}: unreadable ({error})") from None
    return [line for line in lines if line and not line.startswith("#")]


def content_sha256(path: Path) -> str:
    """Return the hash of a file's content; raises SourceError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{path}: unreadable ({error.strerror})") from None
