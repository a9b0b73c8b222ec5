"""The speech sample that ships, for the first run on a cluster whose storage has no data yet."""

import tempfile
from collections.abc import Callable
from pathlib import Path

RECIPE = "demo"
"""The recipe that trains on it."""


def bring(root: str, say: Callable[[str], None]) -> None:
    """Make the data set of the sample in a folder, or at the URI of a store, unless one is there.

    Raises:
        StorageError: if the store cannot be used.
        StoreError: if something else is in the folder.
        OSError: if it cannot be written.
    """
    from zfdist import object_store as remote
    from zfdist.data.manifest import NAME
    from zfdist.data.sources import speech

    options = speech.Options(source=speech.SAMPLE)
    if not remote.is_remote(root):
        if not (Path(root) / NAME).is_file():
            say(f"no data in {root} yet: preparing the speech sample that ships")
            speech.prepare(options, Path(root))
        return
    store = remote.ObjectFolder(root)
    if NAME in store.objects(recursive=False):
        return
    say(f"no data in {remote.without_options(root)} yet: preparing the speech sample that ships")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, RECIPE)
        speech.prepare(options, made)
        files = [path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()]
        for name in sorted(files, key=lambda name: name == NAME):  # the manifest last: with it, the data are there
            store.upload(made / name, name)
