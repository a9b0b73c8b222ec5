"""What the workers of a run would refuse, said before they start or anything of the run is touched."""

from collections.abc import Sequence

from zfdist import continuation
from zfdist.checkpoint.run_folder import newest_manifest
from zfdist.data.store import Store as DataSet
from zfdist.object_store import ObjectFolder, without_options
from zfdist.run_options import RunOptions


def refuse(run: RunOptions, *, device: str, workers: Sequence[int]) -> None:
    """Raise what `continuation.accepted` does for a run as it is asked for.

    Args:
        run: what is asked for.
        device: "cpu" or "cuda".
        workers: their possible numbers; one that can go on is enough.
    """
    config = run.config
    if run.store is None:
        newest, shown = newest_manifest(run.folder), str(run.folder)
    else:
        from zfdist.checkpoint import (
            remote_checkpointer as remote,  # which imports torch: not in a command that has nothing in a store
        )

        newest, shown = remote.newest_manifest(ObjectFolder(run.store.uri)), without_options(run.store.uri)
    continuation.accepted(
        config,
        DataSet.open(config.data.root, verify="size", cache=config.data.cache),
        newest,
        run=shown,
        device=device,
        workers=workers,
        start_from=run.start_from,
    )
