"""Which files of a folder are input, and which split each belongs to; the same for the same files, in any order."""

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from zfdist.data.sources import audio, containers
from zfdist.data.sources.places import Source, is_hidden, objects, shown
from zfdist.data.sources.places import SourceError as SourceError
from zfdist.data.sources.split_rule import check_split_by as check_split_by
from zfdist.data.sources.split_rule import split_key as split_key
from zfdist.data.sources.split_rule import split_of_key as split_of_key
from zfdist.object_store import Missing, ObjectFolder, is_remote

EDGE_BYTES = 1 << 16
AT_ONCE = 16
"""Requests to a store under way."""
LISTED = 20
"""Places and kinds that are named in a message; the others are counted."""
HINTS = {
    "not read; convert them, e.g. with ffmpeg -i FILE FILE.wav": (
        "m4a mp4 aac ogg oga opus aif aiff aifc au snd wma w64 caf amr ape wv webm 3gp mka mp2 mpc ra voc spx raw pcm"
    ),
    "packed; unpack them first": "zip tar gz tgz bz2 xz zst 7z rar lzma",
}
HINTS_OF = {ending: hint for hint, endings in HINTS.items() for ending in endings.split()}


@dataclass
class Tree:
    """The files below a folder, and what was met there that is none."""

    files: dict[str, Path] = field(default_factory=dict)
    """By the path below the folder (POSIX), in the order of its bytes. Names that are not UTF-8 hold surrogates."""
    broken: set[str] = field(default_factory=set)
    """Those of `files` that are links to nowhere: opening one says so."""
    links: int = 0
    """Links to folders that were followed."""
    left_out: Counter[str] = field(default_factory=Counter)
    """How many things of each kind are not among the files, e.g. {"hidden": 2}."""


def walk(source: Path) -> Tree:
    """List the files of a folder, at any depth; the same for the same tree, in whatever order the disk gives it.

    Links to files are files. Links to folders are followed once all is known that is reached without them, in the
    order of their paths; a folder that was reached before, or that holds `source`, is not entered. Left out, by count:
    what is hidden (.name, __MACOSX, name:Zone.Identifier), and sockets, pipes and devices.
    Raises SourceError if `source` is no folder, or naming the folders and links that cannot be read.
    """
    try:
        where = Path(os.path.realpath(source, strict=True))
        if not where.is_dir():
            packed = HINTS_OF.get(source.suffix.lower()[1:], "").startswith("packed")
            remedy = "unpack it and give that folder" if packed else "give the folder that it lies in"
            raise SourceError(f"{source}: is a file; {remedy}")
        entered = {_identity(folder) for folder in where.parents}
    except OSError as error:
        what = "no such folder" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise SourceError(f"{source}: {what}") from None
    tree, unreadable = Tree(), dict[str, str]()
    starts = [""]
    while starts:
        links: list[str] = []
        for start in starts:
            folders = [start]
            while folders:
                name = folders.pop()
                try:
                    if (identity := _identity(source / name)) in entered:
                        tree.left_out["link to a folder that is read already or holds the source"] += 1
                        continue
                    entered.add(identity)
                    tree.links += name == start != ""
                    _read_folder(source, name, tree, unreadable, folders, links)
                except OSError as error:
                    unreadable[name] = str(error.strerror)
        starts = sorted(links, key=os.fsencode)
    if unreadable:
        raise SourceError(
            f"{source}: cannot read what is in it: {_shown(unreadable)}; make it readable or take it out of the folder"
        )
    tree.files = {name: tree.files[name] for name in sorted(tree.files, key=os.fsencode)}
    return tree


def _read_folder(
    source: Path, folder: str, tree: Tree, unreadable: dict[str, str], folders: list[str], links: list[str]
) -> None:
    """Sort what lies in a folder into files, folders, links to folders and what is left out."""
    with os.scandir(source / folder) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if is_hidden(entry.name):
                    tree.left_out["hidden"] += 1
                elif entry.is_dir():
                    (links if entry.is_symlink() else folders).append(name)
                elif entry.is_file():
                    tree.files[name] = source / name
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    tree.files[name] = source / name
                    tree.broken.add(name)
                else:
                    tree.left_out["socket, pipe or device"] += 1
            except OSError as error:
                unreadable[name] = str(error.strerror)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _shown(reasons: Mapping[str, str]) -> str:
    """Name the first few places and what is wrong with each; very long paths by both ends."""
    names = sorted(reasons, key=os.fsencode)
    short = {name: name if len(name) < 200 else f"{name[:90]} ... {name[-90:]}" for name in names[:LISTED]}
    told = [f"{short[name] or '.'!r} ({reasons[name]})" for name in names[:LISTED]]
    return ", ".join(told) + (f" and {len(names) - LISTED:,} more" if len(names) > LISTED else "")


def kind_of_name(name: str) -> str:
    """Return what a file that is not read counts as: "of .txt", or with what can be done about it."""
    suffix = re.search(r"[^/.]\.([A-Za-z0-9_~-]{1,12})$", name)
    if suffix is None:
        return "of no known suffix"
    ending = suffix[1].lower()
    hint = HINTS_OF.get(ending, "")
    return f"of .{ending}" + (f" ({hint})" if hint else "")


def remarks(links: int, left_out: Mapping[str, int]) -> tuple[str, ...]:
    """Say how many links to folders were followed and what was left out, by kind; nothing where there is nothing."""
    said = [f"links to folders that were followed: {links:,}"] if links else []
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    if kinds:
        told = [f"{count:,} {kind}" for kind, count in kinds[:LISTED]]
        if len(kinds) > LISTED:
            told.append(f"{sum(count for _, count in kinds[LISTED:]):,} of {len(kinds) - LISTED:,} other kinds")
        said.append(f"left out: {', '.join(told)}")
    return tuple(said)


@dataclass(frozen=True)
class Input:
    """An audio file: its path under the source, and enough of its content to know it again."""

    name: str
    bytes: int
    edges: str
    """xxh3_128 of its first and last 64 KiB."""


@dataclass(frozen=True)
class Listing:
    """The audio files under a folder in the order of their relative paths (bytewise), and what else is there."""

    inputs: list[Input]
    broken: set[str]
    """Names of the inputs that are links to nowhere."""
    links: int
    left_out: Counter[str]

    def remarks(self, also: Mapping[str, int]) -> tuple[str, ...]:
        """Say what was found and left out; `also` counts, by kind, the files of `inputs` that were not used."""
        return remarks(self.links, self.left_out + Counter(also))


def list_inputs(source: Source) -> Listing:
    """List the audio files of a source; raises SourceError if there are none, or a folder cannot be read.

    Links that lead nowhere and files that cannot be read are listed: reading them fails and is reported, where leaving
    them out could hide what was meant to be there.
    """
    listing = _in_store(str(source)) if is_remote(str(source)) else _in_folder(Path(source))
    if not listing.inputs:
        none = f"{shown(source)}: no WAV, FLAC, NIST SPHERE or MP3 file in it"
        raise SourceError("; ".join([none, *remarks(0, listing.left_out)]))
    return listing


def _in_folder(source: Path) -> Listing:
    tree = walk(source)
    left_out = tree.left_out.copy()
    inputs = []
    for name, path in tree.files.items():
        if not _may_be_audio(path):
            left_out[kind_of_name(name)] += 1
        elif not _is_text(name):
            raise SourceError(f"{source}: the file name {name!r} is not valid UTF-8; rename it")
        else:
            inputs.append(_identified(name, path))
    return Listing(inputs, tree.broken, tree.links, left_out)


def _in_store(uri: str) -> Listing:
    """List the audio files of a store by the ends of each, several at a time."""
    place, found = ObjectFolder(uri), objects(uri)

    def identified(name: str) -> Input | None:
        size = found[name].bytes
        try:
            head = place.read(name, 0, EDGE_BYTES)
            if not (name.lower().endswith(audio.SUFFIXES) or containers.kind(containers.head_in(io.BytesIO(head)))):
                return None
            tail = place.read(name, max(0, size - EDGE_BYTES), EDGE_BYTES)
        except Missing:
            raise SourceError(f"{shown(uri)}/{name}: was removed while the source was listed; list it again") from None
        return Input(name, size, xxhash.xxh3_128_hexdigest(head + tail))

    left_out: Counter[str] = Counter()
    inputs = []
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for name, item in zip(found, threads.map(identified, found), strict=True):
            if item is None:
                left_out[kind_of_name(name)] += 1
            else:
                inputs.append(item)
    return Listing(inputs, set(), 0, left_out)


def _may_be_audio(path: Path) -> bool:
    try:
        return audio.is_audio(path)
    except audio.AudioError:
        return True


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


def content_sha256(path: Path) -> str:
    """Return the hash of a file's content; raises SourceError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{path}: unreadable ({error.strerror})") from None
