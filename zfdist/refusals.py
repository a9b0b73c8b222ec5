"""What the workers of a run would refuse, said before they start or anything of the run is touched."""

from collections.abc import Sequence
from pathlib import Path

from zfdist import continuation
from zfdist.checkpoint.run_folder import newest_manifest
from zfdist.config import Config
from zfdist.data.store import Store as DataSet
from zfdist.object_store import ObjectFolder, without_options
from zfdist.run_protocol import Weights
from zfdist.worker import RunLocation


def refuse(
    config: Config,
    run_folder: Path,
    *,
    device: str,
    workers: Sequence[int],
    start_from: Weights | None = None,
    store: RunLocation | None = None,
) -> None:
    """Raise what `continuation.accepted` does for a run in a folder, or in a `store`.

    Args:
        config: what is asked for.
        run_folder: of the run, where `store` is None.
        device: "cpu" or "cuda".
        workers: their possible numbers; one that can go on is enough.
        start_from: see `zfdist.train`.
        store: where the run lives if not in the folder.
    """
    if store is None:
        newest, shown = newest_manifest(run_folder), str(run_folder)
    else:
        from zfdist.checkpoint import (
            remote_checkpointer as remote,  # which imports torch: not in a command that has nothing in a store
        )

        newest, shown = remote.newest_manifest(ObjectFolder(store.uri)), without_options(store.uri)
    continuation.accepted(
        config,
        DataSet.open(config.data.root, verify="size", cache=config.data.cache),
        newest,
        run=shown,
        device=device,
        workers=workers,
        start_from=start_from,
    )
