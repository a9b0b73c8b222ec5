"""Where the checkpoints of a run are kept while it trains: a folder that all workers share, a disk or NFS.

`zfdist.checkpoint.remote_checkpointer` has the same verbs for a run in an object store, whose nodes share nothing.
"""

import contextlib
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint import retention
from zfdist.checkpoint.folder import CheckpointError, CheckpointManifest
from zfdist.checkpoint.room import NoRoomError, no_room
from zfdist.checkpoint.run_folder import newest_manifest
from zfdist.config import CheckpointConfig
from zfdist.errors import ZfdistError
from zfdist.world import World

T = TypeVar("T")

_SPARE_BYTES = 16 << 20
_SIGNS_OF_FULL = ("inline_container.cc", "PytorchStreamWriter", "iostream error", "File too large")


class Checkpointer:
    """The checkpoints of a run on one worker; all workers must call its verbs together."""

    def __init__(self, folder: Path, world: World, config: CheckpointConfig) -> None:
        """Use `folder`; raises CheckpointError on all workers if they do not share it."""
        self.folder = folder
        self._world = world
        self._config = config
        self._last_bytes = 0
        """What a checkpoint takes on this node's disk, as far as known."""
        self.leads = self._find_leader() == world.rank
        """Whether this worker writes what one worker must for all that see the same folder."""
        self._refuse_unshared()

    def manifest(self) -> CheckpointManifest | None:
        """Return that of the newest checkpoint, whether or not it is intact; None if the run has none.

        Raises:
            CheckpointError: if there are some and none can be read, or one is of another version of this program.
        """
        return agreed(self._world, lambda: newest_manifest(self.folder))

    def newest(self, say: Callable[[str], None]) -> Path | None:
        """Return the newest intact checkpoint, the same on all workers; None if the run has none at all.

        Raises:
            CheckpointError: if there are checkpoints and none is intact.
        """
        newest = agreed(self._world, lambda: checkpoint.newest_valid(self.folder, say))
        if newest is not None:
            self._last_bytes = _bytes_of(checkpoint.read_manifest(newest).files)
        return newest

    def is_among_best(self, step: int, elbo_nats: float) -> bool:
        """Return whether the config keeps a checkpoint of a step for its validation ELBO; the same on all workers."""
        return agreed(self._world, lambda: retention.is_among_best(step, elbo_nats, self.scores(), self._config))

    def begin(self, step: int) -> Path:
        """Return an empty folder to write the checkpoint of a step into; raises NoRoomError."""
        partial = checkpoint.folder_of(self.folder, step).with_suffix(".partial")
        lacking = None
        if self.leads:
            lacking = self._lacking()
            if lacking is None:
                checkpoint.begin(self.folder, step)
        # Also the barrier after which the folder is there.
        lacking = next(filter(None, self._world.gather(lacking)), None)
        if lacking is not None:
            raise NoRoomError(f"no checkpoint of step {step}: {lacking}; the one before is intact: free some space")
        return partial

    @contextlib.contextmanager
    def room_explained(self, step: int) -> Iterator[None]:
        """Raise NoRoomError, on this worker, for a disk that turns out to be full while the block writes."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            full = no_room(error, self.folder, _SIGNS_OF_FULL)
            if full is None:
                raise
            raise NoRoomError(
                f"no checkpoint of step {step}: {full}; the one before is intact: free some space and start again"
            ) from None

    def commit(self, partial: Path, manifest: CheckpointManifest) -> Path:
        """Give a written checkpoint its final name, and delete those that the config does not keep."""
        own = checkpoint.hashed(partial) if self.leads else {}
        files = {name: entry for part in self._world.gather(own) for name, entry in part.items()}
        manifest = checkpoint.complete(manifest, files)
        if self.leads:
            checkpoint.commit(partial, manifest)
            retention.prune(self.folder, self._config)
            self._last_bytes = _bytes_of(own)
        self._world.barrier()
        final = partial.with_suffix("")
        self._committed(final, manifest, list(own))
        return final

    def check(self) -> None:
        """Raise StorageError if what was committed cannot be stored; called at every step."""

    def finish(self) -> None:
        """Wait until what was committed is stored for good; raises StorageError."""

    def timings(self) -> dict[str, float]:
        """Return what storing took beside writing, by name of a metric."""
        return {}

    def close(self) -> None:
        """Let go, after a failure as well; on one worker alone."""

    def scores(self) -> dict[int, float | None]:
        """Return the validation ELBO of the run's checkpoints by step; on rank 0."""
        return checkpoint.scores(self.folder)

    def _committed(self, final: Path, manifest: CheckpointManifest, own: list[str]) -> None:
        """Store what this worker leads; nothing more to do on a shared disk."""

    def _refuse_unshared(self) -> None:
        hosts = self._world.gather(socket.gethostname() if self.leads else None)
        split = [host for host in hosts if host is not None]
        if len(split) > 1:
            raise CheckpointError(
                f"{self.folder} is not one folder but another one on each of {', '.join(split)}: give --runs a folder "
                "that all hosts share (NFS), or a store (s3://BUCKET/PREFIX)"
            )

    def _find_leader(self) -> int:
        """Return the lowest rank among those that see the same folder as this worker: seen by files that all make."""
        self.folder.mkdir(parents=True, exist_ok=True)
        token = self._world.gather(uuid.uuid4().hex)[0]
        marks = [self.folder / f".here-{token}-{rank}" for rank in range(self._world.size)]
        marks[self._world.rank].touch()
        self._world.barrier()
        leader = next(rank for rank, mark in enumerate(marks) if mark.exists())
        self._world.barrier()
        marks[self._world.rank].unlink()
        return leader

    def _lacking(self) -> str | None:
        """Return why this node's disk will not hold another checkpoint, as far as known."""
        free = shutil.disk_usage(self.folder).free
        if free >= self._last_bytes + min(_SPARE_BYTES, self._last_bytes):
            return None
        mib, free_mib = self._last_bytes / 2**20, free / 2**20
        return (
            f"it needs {mib:,.1f} MiB, and the disk of {self.folder} on {socket.gethostname()} has {free_mib:,.1f} left"
        )


def agreed(world: World, decide: Callable[[], T]) -> T:
    """Let rank 0 decide and every worker know; what it refuses is raised on all of them."""
    decision: tuple[Any, ZfdistError | None] = (None, None)
    if world.rank == 0:
        try:
            decision = (decide(), None)
        except ZfdistError as error:
            decision = (None, error)
    result, refusal = world.gather(decision)[0]
    if refusal is not None:
        raise refusal
    return result  # type: ignore[no-any-return]


def _bytes_of(files: Any) -> int:
    return sum(int(entry["bytes"]) for entry in files.values())
