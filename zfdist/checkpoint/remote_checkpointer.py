"""A run in an object store: on each node a working copy, a plain run folder; in the store what outlives the nodes.

    s3://BUCKET/PREFIX/NAME/
        config.json metrics.jsonl log.txt ...       copied from rank 0's working copy every few seconds
        lock.json                                   who trains it: see `zfdist.lease`
        checkpoints/step-00001000.7f3a91c2/         a checkpoint, by the launch that wrote it
            model.safetensors deepspeed/state/...   written first, by each node what lies on it
            manifest.json                           written last, by rank 0: a checkpoint is there if this is

Files are written by a thread of one worker on each node while training goes on; the next checkpoint waits for the one
before. No two launches write to the same folder, so what a dead one left can never be mixed with what a later one
writes: it has no manifest, and is removed.
"""

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Container, Iterable
from pathlib import Path

from zfdist import atomic_io
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint import retention
from zfdist.checkpoint.checkpointer import Checkpointer, agreed
from zfdist.checkpoint.folder import MANIFEST, CheckpointError, CheckpointManifest, OtherVersionError
from zfdist.checkpoint.run_sync import WorkingCopy
from zfdist.config import CheckpointConfig
from zfdist.errors import ZfdistError
from zfdist.object_store import Missing, ObjectFolder, StorageError, without_options
from zfdist.world import World

CHECKPOINTS = "checkpoints"
_DAMAGED = "manifest.damaged.json"
_REMEDY = "restore one from a backup, or use another --name to start anew"
_LOOK_S = 0.5
_LAST_WAIT_S = 20.0


class RemoteCheckpointer(Checkpointer):
    """The checkpoints of a run in a store."""

    def __init__(self, copy: WorkingCopy, world: World, config: CheckpointConfig) -> None:
        """Keep the checkpoints of the run that `copy` is a working copy of."""
        super().__init__(copy.folder, world, config)
        self._copy = copy
        self._launch = world.gather(secrets.token_hex(4))[0]
        self._stored: dict[str, CheckpointManifest] = {}
        """On rank 0: what is complete in the store, by folder."""
        self._upload: threading.Thread | None = None
        self._failure: ZfdistError | None = None
        self._closing = threading.Event()
        self._waited_s = self._upload_s = 0.0

    def manifest(self) -> CheckpointManifest | None:
        """As `Checkpointer.manifest`; raises StorageError as well."""
        return agreed(self._world, lambda: newest_manifest(self._copy.place))

    def newest(self, say: Callable[[str], None]) -> Path | None:
        """Fetch the newest checkpoint that is intact, to every node; None if the run has none at all.

        Raises:
            CheckpointError: if there are checkpoints and none is intact.
            StorageError: if the store cannot be read.
        """
        names = agreed(self._world, lambda: self._take_stock(say))
        if not names and self.leads:
            shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)  # what never came to the store
        problems: list[str] = []
        for name in reversed(names):
            found = self._world.gather(self._fetched(name) if self.leads else None)
            for error in found:
                if error is not None and not isinstance(error, CheckpointError):
                    raise error
            damage = next(filter(None, found), None)
            if damage is None:
                final = checkpoint.folder_of(self.folder, _step_of(name))
                self._last_bytes = sum(p.stat().st_size for p in final.rglob("*") if p.is_file())
                return final
            problems.append(str(damage))
            agreed(self._world, lambda name=name, damage=damage: self._set_aside(name, damage, say))  # type: ignore[misc]
        if problems:
            raise CheckpointError(
                f"{self._copy.shown}: none of its {len(problems)} checkpoints is intact ({problems[0]}); {_REMEDY}"
            )
        return None

    def begin(self, step: int) -> Path:
        """As `Checkpointer.begin`, once the checkpoint before is stored; raises StorageError if it could not be."""
        self._wait()
        return super().begin(step)

    def check(self) -> None:
        """Raise StorageError if this node could not store its part, or another launch has taken the run over."""
        if self._failure is not None:
            raise self._failure
        self._copy.check_owner()

    def finish(self) -> None:
        """Wait until the last checkpoint is complete in the store; raises StorageError on all workers."""
        self._wait()

    def timings(self) -> dict[str, float]:
        """Seconds that training stood still for the upload before, and that this upload took beside training."""
        return {"checkpoint/upload_wait_s": round(self._waited_s, 3), "checkpoint/upload_s": round(self._upload_s, 3)}

    def close(self) -> None:
        """Give an upload that still runs a little time."""
        self._closing.set()
        if self._upload is not None:
            self._upload.join(_LAST_WAIT_S)

    def _wait(self) -> None:
        started = time.monotonic()
        if self._upload is not None:
            self._upload.join()
        failures = self._world.gather(self._failure)
        self._waited_s = time.monotonic() - started
        for failure in failures:
            if failure is not None:
                raise failure

    def _committed(self, final: Path, manifest: CheckpointManifest, own: list[str]) -> None:
        if self.leads:
            self._upload = threading.Thread(target=self._store, args=(final, manifest, own), daemon=True)
            self._upload.start()

    def scores(self) -> dict[int, float | None]:
        """Of those in the store, and of the one that is on its way there."""
        stored = {manifest.step: manifest.valid_elbo_nats for manifest in list(self._stored.values())}
        return stored | super().scores()

    def _store(self, final: Path, manifest: CheckpointManifest, own: Iterable[str]) -> None:
        """Write this node's files; on rank 0, once those of all nodes are there, the manifest. In a thread."""
        started = time.monotonic()
        name = f"{CHECKPOINTS}/{final.name}.{self._launch}"
        place = self._copy.place
        try:
            for file in own:
                place.upload(final / file, f"{name}/{file}")
            if self._world.rank == 0 and self._is_all_there(name, manifest):
                self._copy.push()  # metrics up to this step come no later than the checkpoint
                self._copy.check_owner(now=True)
                place.write(f"{name}/{MANIFEST}", checkpoint.to_json(manifest).encode())
                self._stored[name] = manifest
                self._prune()
        except ZfdistError as error:
            self._failure = error
        except OSError as error:
            self._failure = StorageError(f"{final}: {error}")
        self._upload_s = time.monotonic() - started

    def _refuse_unshared(self) -> None:
        """Nothing to refuse: nodes that share nothing are what this is for."""

    def _is_all_there(self, name: str, manifest: CheckpointManifest) -> bool:
        """Wait until all files of a manifest are in the store with their sizes."""
        expected = {f"{name}/{file}": entry["bytes"] for file, entry in manifest.files.items()}
        while expected.items() - self._copy.place.sizes(name).items():
            if self._closing.wait(_LOOK_S):
                return False
        return True

    def _prune(self) -> None:
        """Delete in the store what the config does not keep: manifests first, so that nothing half is left."""
        scores = {manifest.step: manifest.valid_elbo_nats for manifest in self._stored.values()}
        keep = retention.kept(scores, self._config)
        newest = {manifest.step: name for name, manifest in self._stored.items()}  # of those of one step
        for name in [n for n, m in self._stored.items() if m.step not in keep or newest[m.step] != n]:
            self._copy.place.delete([f"{name}/{MANIFEST}"])
            self._copy.place.delete_folder(name)
            del self._stored[name]

    def _take_stock(self, say: Callable[[str], None]) -> list[str]:
        """Remove what dead launches left in the store; return the complete checkpoints, oldest first. On rank 0."""
        folders: dict[str, set[str]] = {}
        for path in self._copy.place.sizes(CHECKPOINTS):
            _, name, *rest = path.split("/", 2)
            folders.setdefault(f"{CHECKPOINTS}/{name}", set()).update(rest)
        for name, files in folders.items():
            if MANIFEST in files:
                try:
                    content = self._copy.place.read(f"{name}/{MANIFEST}")
                    self._stored[name] = checkpoint.parse(content, f"{self._copy.shown}/{name}/{MANIFEST}")
                except OtherVersionError:
                    raise
                except CheckpointError as error:
                    self._set_aside(name, error, say)
            elif _DAMAGED not in files:
                say(f"removing {self._copy.shown}/{name}: left unfinished by an interruption")
                self._copy.place.delete_folder(name)
        if not self._stored and any(files & {MANIFEST, _DAMAGED} for files in folders.values()):
            raise CheckpointError(f"{self._copy.shown}: none of its checkpoints is intact; {_REMEDY}")
        self._stored = dict(sorted(self._stored.items(), key=lambda item: (item[1].step, item[0])))
        return list(self._stored)

    def _fetched(self, name: str) -> ZfdistError | None:
        """Bring a checkpoint to this node, and check all its hashes; return what is wrong with it."""
        try:
            _forget_others(self.folder, _step_of(name))
            fetch(self._copy, name)
        except ZfdistError as error:
            return error
        return None

    def _set_aside(self, name: str, damage: ZfdistError, say: Callable[[str], None]) -> None:
        """Take a damaged checkpoint out of the reckoning; its files stay, for inspection."""
        self._stored.pop(name, None)
        say(f"damaged checkpoint set aside as {self._copy.shown}/{name}/{_DAMAGED}: {damage}")
        self._copy.place.write(f"{name}/{_DAMAGED}", self._copy.place.read(f"{name}/{MANIFEST}"))
        self._copy.place.delete([f"{name}/{MANIFEST}"])


def steps(place: ObjectFolder) -> list[int]:
    """Return the steps that have a complete checkpoint in a run's place, ascending; raises StorageError."""
    return sorted(complete(place))


def complete(place: ObjectFolder) -> dict[int, str]:
    """Return the folders of the complete checkpoints in a run's place by step; raises StorageError."""
    names = [name.removesuffix(f"/{MANIFEST}") for name in place.sizes(CHECKPOINTS) if name.endswith(f"/{MANIFEST}")]
    return {_step_of(name): name for name in names}


def newest_manifest(place: ObjectFolder) -> CheckpointManifest | None:
    """Return the manifest of the newest checkpoint in a run's place, None if there is none.

    Raises:
        OtherVersionError: if it is of another version of this program.
        StorageError: if the store cannot be used.
    """
    for _, name in sorted(complete(place).items(), reverse=True):
        try:
            return checkpoint.parse(place.read(f"{name}/{MANIFEST}"), f"{without_options(place.uri)}/{name}/{MANIFEST}")
        except OtherVersionError:
            raise
        except CheckpointError:
            continue
    return None


def fetch(copy: WorkingCopy, name: str, only: Container[str] | None = None) -> Path:
    """Bring a checkpoint of the store, or those of its files that are in `only`, into the working copy; return where.

    What is there already and intact is not fetched again.

    Raises:
        CheckpointError: if a file is missing, of another size or of other content.
        StorageError: if the store cannot be read.
    """
    content = copy.place.read(f"{name}/{MANIFEST}")
    manifest = checkpoint.parse(content, f"{copy.shown}/{name}/{MANIFEST}")
    final = checkpoint.folder_of(copy.folder, manifest.step)
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    is_same = (final / MANIFEST).is_file() and (final / MANIFEST).read_bytes() == content
    if is_same and not checkpoint.unlisted(final, manifest):
        final.rename(partial)
    else:
        shutil.rmtree(final, ignore_errors=True)
        partial.mkdir(parents=True)
    for file in (file for file in manifest.files if only is None or file in only):
        try:
            checkpoint.check(partial / file, manifest.files[file])
        except CheckpointError:
            try:
                copy.place.download(f"{name}/{file}", partial / file)
            except Missing as error:
                raise CheckpointError(str(error)) from None
            checkpoint.check(partial / file, manifest.files[file])
    atomic_io.write(partial / MANIFEST, content)
    partial.rename(final)
    atomic_io.sync_folder(final.parent)
    return final


def _forget_others(folder: Path, step: int) -> None:
    """Remove from a working copy the checkpoints that this node has and the run will not go on from.

    Those after `step` may never have come to the store; what the store has can be fetched again.
    """
    for path in (folder / CHECKPOINTS).glob("step-*"):
        if path.name != checkpoint.folder_of(folder, step).name:
            shutil.rmtree(path)


def _step_of(name: str) -> int:
    return int(name.rpartition("/step-")[2].partition(".")[0])
