"""What the workers of a run would refuse, said by the command before it starts them or touches anything of the run."""

from pathlib import Path

from cluster.nodes import WorkerResources
from cluster.run.policy import Range
from cluster.run.worker import RunLocation
from zfdist import continuation
from zfdist.checkpoint.run_folder import newest_manifest
from zfdist.config import Config
from zfdist.data.store import Store as DataSet
from zfdist.object_store import ObjectFolder, without_options
from zfdist.run_protocol import Weights


def refuse(
    config: Config,
    run_folder: Path,
    workers: Range,
    resources: WorkerResources,
    *,
    start_from: Weights | None = None,
    store: RunLocation | None = None,
) -> None:
    """Raise what `continuation.accepted` does for a run in a folder, or in a `store`, on any of so many workers."""
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
        device="cuda" if resources.gpus else "cpu",
        workers=range(workers.low, workers.high + 1),
        start_from=start_from,
    )
