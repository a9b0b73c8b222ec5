"""One trial of a sweep as Ray Tune runs it: a run folder of its own, whose validations are the trial's results.

A trial with one worker trains inside the trial's own process, which goes on to the next trial afterwards: no start-up
but the first. One with more workers is a `fit`. Either way the run folder tells all: a trial that was begun before
gives its recorded validations that the driver has not decided on yet, and goes on from its checkpoint, or ends there if
it had ended.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune

from cluster import nodes
from cluster.nodes import WorkerResources
from cluster.run.attempt import Background
from cluster.run.fit import fit
from cluster.run.process_group import use_ray_interface
from cluster.run.worker import worker_env
from cluster.session import ClusterError
from cluster.sweep.record import mark, state
from zfdist.checkpoint import room, run_sync
from zfdist.checkpoint.run_sync import WorkingCopy
from zfdist.config import Config
from zfdist.object_store import ObjectFolder, StorageError
from zfdist.run_options import Machines, RunLocation, RunOptions
from zfdist.run_protocol import METRICS, OVER, RESULT, STOP, VALID_ELBO, NonFiniteError, Outcome
from zfdist.tail import Records
from zfdist.worker import POLL_S, StopFileReporter, claim, logged, opened

NO_ROOM = "no_room"
"""In the last result of a trial that ended since a disk is full: the sentence that says which."""
_GRACE_S = 30.0  # a cloud may be late


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """Ray Tune's process for a trial, and for the trials after it."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the trial that `config["job"]` tells of: its folder, config, resources and number of workers."""
        self._job = config["job"]
        if Path(self._job["directory"]).is_dir():
            os.chdir(self._job["directory"])  # relative paths mean what they mean to the command
        self._store = RunLocation(*self._job["store"]) if self._job["store"] else None
        self._following = contextlib.ExitStack()
        self._folder = self._own_folder()
        self._sweep_stop = Path(self._job["sweep_stop"])
        self._next_look_s, self._is_stopping, self._is_ended = 0.0, False, False
        self._config = Config.from_json(self._job["config"])
        self._node_id = ray.get_runtime_context().get_node_id()
        self._run: Background | None = None
        self._no_room: str | None = None
        self._results = self._validations()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the trial before, if it still runs, and begin another in this process."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next validation and return its record; with `done` where the trial is over."""
        return next(self._results, {"done": True})

    def cleanup(self) -> None:
        """Make the run save and end, and wait for it."""
        if self._run is not None:
            while not self._run.ended(within_s=POLL_S):
                (self._folder / STOP).touch()  # again: a run that is just starting takes it away
            self._run = None
        self._following.close()

    def _own_folder(self) -> Path:
        """Return the trial's run folder; for a trial in a store, one of this process with all its records."""
        if self._store is None:
            return Path(self._job["folder"])
        uri, cache = self._store.uri, self._store.cache
        if self._job["workers"] > 1:
            return self._following.enter_context(run_sync.followed(uri, cache=cache)).folder
        copy = WorkingCopy(ObjectFolder(uri), run_sync.folder_of(uri, cache))
        copy.replace()
        return copy.folder

    def _is_to_stop(self) -> bool:
        """Return whether the sweep was asked to stop; looks into a store every few seconds only."""
        if self._store is not None and time.monotonic() > self._next_look_s:
            self._next_look_s = time.monotonic() + run_sync.SEND_S
            with contextlib.suppress(StorageError):  # asked again
                self._is_stopping = STOP in ObjectFolder(self._job["sweep_uri"], tries=1).objects("", recursive=False)
                self._is_ended = RESULT in ObjectFolder(self._store.uri, tries=1).objects("", recursive=False)
        return self._is_stopping or self._sweep_stop.exists()

    def _is_stopped_by_name(self) -> bool:
        """Return whether somebody said that this trial is over; in a store, as far as the last look into it told."""
        return self._is_ended or (self._store is None and state(self._folder) == "stopped")

    def _validations(self) -> Iterator[dict[str, Any]]:
        """Yield recorded validations, then those of the run as it goes on; the last one only once it has ended."""
        records = Records(self._folder / METRICS, from_start=True)
        last_step = self._config.train.steps
        given = self._job["step"]  # what was decided on before is not asked again
        held: dict[str, Any] = {}
        for record in self._records(records):
            if VALID_ELBO not in record or record["step"] <= given:
                continue
            given = record["step"]
            result = {k: v for k, v in record.items() if v is not None and k != "time_s"}
            if given < last_step:
                yield result
            else:
                held = result
        yield held | {"done": True} | ({NO_ROOM: self._no_room} if self._no_room else {})

    def _records(self, records: Records) -> Iterator[dict[str, Any]]:
        yield from records.new()
        if state(self._folder) in OVER or self._is_to_stop():
            return
        (self._folder / STOP).unlink(missing_ok=True)
        self._run = Background(self._train)
        running = True
        leaves_at_s: float | None = None
        while running:
            running = not self._run.ended(within_s=POLL_S)
            leaves_at_s = nodes.leaves_at_s(self._node_id)
            if self._is_to_stop() or leaves_at_s is not None or self._is_stopped_by_name():
                (self._folder / STOP).touch()
            yield from records.new()
        run, self._run = self._run, None
        try:
            ended = run.result()
        except room.NoRoomError as error:  # not to Tune, which would begin the trial again, and fill the log
            self._no_room = str(error)
            return
        except NonFiniteError as error:
            mark(self._folder, state="diverged", error=str(error))
            if self._store is not None:
                ObjectFolder(self._store.uri).upload(self._folder / RESULT, RESULT)
            return
        if leaves_at_s is not None and ended.state == "stopped" and not self._is_to_stop():
            self._leave(leaves_at_s)

    def _leave(self, at_s: float) -> None:
        """Wait for the end of this machine: it moves the trial to another, and counts as no failure of it."""
        while time.time() < at_s + _GRACE_S and not self._is_to_stop():
            time.sleep(POLL_S)
        if not self._is_to_stop():
            raise ClusterError(f"the machine of {self._folder} was to be taken away, and is still there")

    def _train(self) -> Outcome:
        resources, workers = WorkerResources(*self._job["resources"]), self._job["workers"]
        machines = Machines(
            workers=str(workers),
            cpus_per_worker=resources.cpus,
            gpu=bool(resources.gpus),
            wait_for_nodes=math.inf,  # for those of other trials too: what never comes, the sweep notices
        )
        run = RunOptions(self._config, self._folder, profile=self._job["profile"], store=self._store, machines=machines)
        return _train_here(run, resources) if workers == 1 else fit(run, say=lambda line: None)


def _train_here(run: RunOptions, resources: WorkerResources) -> Outcome:
    """Train in this process, as the only worker."""
    import torch  # here, since the command imports this module too, and needs no torch

    from zfdist.train import train
    from zfdist.world import connect

    environment = worker_env(resources, run.config)
    torch.set_num_threads(int(environment.pop("OMP_NUM_THREADS")))  # the next trial may take more
    os.environ.update(environment)
    use_ray_interface()
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    # A process on a machine that was cut off holds it until Ray there has given up, after a minute.
    with (
        room.explained(folder),
        opened(run, time.time_ns(), 0) as copy,
        logged(folder, rank=0),
        claim(folder, wait_s=120),
        StopFileReporter(folder) as reporter,
    ):
        world = connect(gpu_share=resources.gpus or 1.0)  # trials may share a GPU
        return train(run.config, folder, world, reporter, copy=copy, profile=run.profile)
