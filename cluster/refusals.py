"""What the workers of a run would refuse, said by the command before it starts them or touches anything of the run."""

from pathlib import Path

from cluster.decide import Range
from cluster.nodes import Share
from cluster.worker import Store
from zfdist import continuation
from zfdist.config import Config
from zfdist.data.store import Store as DataSet
from zfdist.run_folder import newest_manifest
from zfdist.storage import Place, without_options


def refuse(
    config: Config,
    run_folder: Path,
    workers: Range,
    share: Share,
    *,
    start_from: str | None = None,
    store: Store | None = None,
) -> None:
    """Raise what `continuation.accepted` does for a run in a folder, or in a `store`, on any of so many workers."""
    if store is None:
        newest, shown = newest_manifest(run_folder), str(run_folder)
    else:
        from zfdist import remote  # which imports torch: not in a command that has nothing in a store

        newest, shown = remote.newest_manifest(Place(store.uri)), without_options(store.uri)
    continuation.accepted(
        config,
        DataSet.open(config.data.root, verify="size", cache=config.data.cache),
        newest,
        run=shown,
        device="cuda" if share.gpus else "cpu",
        workers=range(workers.low, workers.high + 1),
        start_from=start_from,
    )
