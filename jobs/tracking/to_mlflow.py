"""Runs in MLflow, through its server or straight into its database."""

from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from jobs.tracking.tracker import TrackedRun

_TAG = "zfdist.run"
_MOST_PARAMETERS, _MOST_METRICS = 100, 1000  # in one request
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "diverged": "FAILED"}


class MlflowRun:
    """A run of an experiment; one that is there already, by its tag, is gone on with."""

    def __init__(self, run: TrackedRun, project: str, url: str | None) -> None:
        """`project` is the experiment; `url` is MLflow's tracking URI, None for what MLFLOW_TRACKING_URI says."""
        self._client = MlflowClient(url)
        found = self._client.get_experiment_by_name(project)
        experiment = found.experiment_id if found else self._client.create_experiment(project)
        same = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.id}'", max_results=1)
        self._waiting: list[Metric] = []
        if same:
            self._id = same[0].info.run_id
            return
        tags = {_TAG: run.id} | ({"zfdist.sweep": run.group} if run.group else {})
        self._id = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
        parameters = [Param(name, str(value)) for name, value in run.config.items()]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=parameters[first : first + _MOST_PARAMETERS])

    def log(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._waiting += [Metric(name, float(value), round(1000 * time_s), step) for name, value in metrics.items()]
        if len(self._waiting) >= _MOST_METRICS:
            self.flush()

    def add(self, folder: Path) -> None:
        """See `Tracker`."""
        self._client.log_artifacts(self._id, str(folder))

    def flush(self) -> None:
        """See `Tracker`."""
        while self._waiting:
            self._client.log_batch(self._id, metrics=self._waiting[:_MOST_METRICS])
            del self._waiting[:_MOST_METRICS]

    def end(self, state: str) -> None:
        """See `Tracker`."""
        self.flush()
        if state in _STATUS:
            self._client.set_terminated(self._id, _STATUS[state])


begin = MlflowRun
