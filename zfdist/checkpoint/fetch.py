"""Reading a run or sweep that lives in an object store: its records at once, its weights when they are asked for."""

import shutil
from pathlib import Path

from zfdist import atomic_io
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint import remote_checkpointer, run_sync
from zfdist.checkpoint.folder import MANIFEST, WEIGHTS, WORDS, CheckpointError
from zfdist.checkpoint.run_sync import WorkingCopy
from zfdist.claim import held
from zfdist.object_store import CACHE, ObjectFolder, is_remote, join, without_options

_SOURCE = ".source"
"""In a copy for reading: the URI that it is a copy of."""


def local(where: str, cache: Path = CACHE) -> Path:
    """Return `where` if it is a folder, else a folder of this machine with the records of the run or sweep of that URI.

    Raises:
        CheckpointError: if the URI is neither that of a run nor of a sweep.
        StorageError: if the store cannot be used.
    """
    if not is_remote(where):
        return Path(where)
    copy = _copy_of(where, cache)
    trials = {name.split("/")[1] for name in copy.place.sizes("trials")}
    if not trials and not (copy.folder / "config.json").is_file():
        raise CheckpointError(f"{without_options(where)}: no such run or sweep")
    for trial in trials:
        _copy_of(join(where, f"trials/{trial}"), cache, copy.folder / "trials" / trial)
    return copy.folder


def with_weights(folder: Path) -> Path:
    """Return `folder`; if it is a copy for reading, with the weights of the run's best (else newest) checkpoint.

    Raises:
        CheckpointError: if there is no finished checkpoint, or it is damaged.
        StorageError: if the store cannot be used.
    """
    source = folder / _SOURCE
    if not source.is_file():
        return folder
    copy = WorkingCopy(ObjectFolder(source.read_text()), folder)
    with held(folder / ".lock"):
        names = remote_checkpointer.complete(copy.place)
        for step in set(checkpoint.steps(folder)) - names.keys():
            shutil.rmtree(checkpoint.folder_of(folder, step))
        for step, name in names.items():
            copy.place.download(f"{name}/{MANIFEST}", checkpoint.folder_of(folder, step) / MANIFEST)
        if not names:
            raise CheckpointError(f"{copy.shown}: holds no finished checkpoint")
        chosen = checkpoint.best(folder) or checkpoint.folder_of(folder, max(names))
        remote_checkpointer.fetch(copy, names[int(chosen.name[5:])], only=(WEIGHTS, WORDS))
    return folder


def _copy_of(uri: str, cache: Path, folder: Path | None = None) -> WorkingCopy:
    copy = WorkingCopy(ObjectFolder(uri), folder or run_sync.folder_of(uri, cache, "read"))
    copy.pull()
    atomic_io.write(copy.folder / _SOURCE, uri)
    return copy
