"""Which split a file falls into, by its path alone: stable when other files come or go."""

import hashlib
import re

from zfdist.data.sources.places import SourceError


def split_key(name: str, split_by: str) -> str:
    """Return what decides the split of a file, from its path under the source (POSIX).

    Args:
        name: the path.
        split_by: "file" for the path, "folder" for that of the folder that it lies in, a number for so many leading
            folders of it (the whole path of a file that lies above), or a pattern for what its first part in
            parentheses finds in the path.

    Raises:
        SourceError: if the pattern finds nothing.
    """
    if split_by == "file":
        return name
    if split_by == "folder":
        return name.rpartition("/")[0]
    if split_by.isdecimal():
        folders = name.split("/")[:-1]
        return "/".join(folders[: int(split_by)]) if len(folders) >= int(split_by) else name
    found = re.search(split_by, name)
    if found is None or not found[1]:
        raise SourceError(f"--split-by {split_by!r} finds nothing in {name!r}: it must find a part of every path")
    return found[1]


def check_split_by(split_by: str) -> None:
    """Raise SourceError for a rule that `split_key` does not know."""
    if split_by in ("file", "folder") or (split_by.isdecimal() and int(split_by)):
        return
    try:
        is_pattern = re.compile(split_by).groups > 0
    except re.error:
        is_pattern = False
    if not is_pattern:
        raise SourceError(
            f"--split-by {split_by}: must be file, folder, a number of leading folders, or a regular expression with a "
            "part in parentheses, which finds what must stay together, e.g. '([0-9]+)-[^/]*$'"
        )


def split_of_key(key: str, valid_percent: float, test_percent: float) -> str:
    """Return the split of whatever a key names: stable when others come or go.

    u = the first 8 bytes of sha256 of the key, as a fraction of 1: test if 100 u < test_percent, valid if
    100 u < test_percent + valid_percent, else train.
    """
    percent = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64 * 100
    if percent < test_percent:
        return "test"
    return "valid" if percent < test_percent + valid_percent else "train"
