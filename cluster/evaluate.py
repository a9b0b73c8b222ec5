"""One evaluation on N workers: each scores its shares of a split, and the scores of all are the answer.

Shares are smaller than a worker's part, so that a slow or lost worker costs little; Ray hands them out again if a
machine dies. The score of a sequence is the same wherever it is computed, so the answer is that of one process.
"""

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.exceptions
import torch
from numpy.typing import NDArray

from cluster import nodes, tasks
from cluster.demand import Say, Shortage, Supply
from cluster.nodes import WorkerResources
from cluster.run.attempt import FitError, cause_of, root_message
from cluster.run.worker import worker_env
from zfdist.config import Config
from zfdist.data.store import Store
from zfdist.errors import ZfdistError
from zfdist.evaluation.evaluate import Evaluation, Loaded, data_of, load_model, result_of, share_of
from zfdist.evaluation.results import Question

_SHARES_PER_WORKER = 4


def measure(
    checkpoint: Path,
    config: Config,
    question: Question,
    *,
    workers: int,
    cpus_per_worker: int | None = None,
    use_gpu: bool | None = None,
    say: Say = print,
) -> Evaluation:
    """Return what `evaluate_split` would, from `workers` processes at a time; needs a connected Ray.

    Args:
        checkpoint: a folder with weights, on a filesystem that all workers share, as the data are.
        config: the model's own, or one with another place, view or size of batches of the data.
        question: what is asked.
        workers: processes.
        cpus_per_worker: None for an even part of what the cluster has, or may get.
        use_gpu: a GPU for each worker; None if the cluster has any, or may get it.
        say: told how far it is.

    Raises:
        ClusterError: if the workers do not fit, or no machine came that could hold one.
        CheckpointError, StoreError, OrderError, EvaluationError: as in one process.
        FitError: if workers died again and again.
    """
    loaded = load_model(checkpoint)._replace(config=config)
    store = data_of(loaded, question.as_trained)
    supply = Supply(None, say)
    resources = supply.plan(
        lambda there, coming: nodes.resources_per_worker(
            there, workers=workers, cpus_per_worker=cpus_per_worker, use_gpu=use_gpu, coming=coming
        )
    )
    remote = ray.remote(_score).options(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        max_retries=tasks.RETRIES,
        runtime_env={"env_vars": worker_env(resources, config)},
    )
    count = workers * _SHARES_PER_WORKER
    say(f"evaluating {question.split} in {count} shares on {workers} worker{'s' * (workers > 1)} ...")

    def begin(rank: int) -> Any:
        return remote.remote(Path.cwd(), checkpoint, config, question, resources, rank, count)

    shortage = Shortage(supply, resources, say)
    return result_of(loaded, store, question, _gathered(begin, count, workers, shortage, say))


def _gathered(begin: Any, count: int, at_once: int, shortage: Shortage, say: Say) -> list[torch.Tensor]:
    """Return the scores of all shares, of which never more than `at_once` are under way."""
    parts: list[torch.Tensor] = []
    try:
        for _, scores in tasks.ended(begin, count, at_once=at_once, shortage=shortage):
            parts.append(torch.tensor(scores))
            say(f"{len(parts)} of {count} shares done")
    except ray.exceptions.RayError as error:
        raise _explained(error) from None
    return parts


def _score(
    directory: Path,
    checkpoint: Path,
    config: Config,
    question: Question,
    resources: WorkerResources,
    rank: int,
    world_size: int,
) -> NDArray[np.float64]:
    """What a worker does with a share."""
    if directory.is_dir():
        os.chdir(directory)  # relative paths mean what they mean to the command
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # of `worker_env`
    loaded, store = _opened(checkpoint, config, question.as_trained)
    device = torch.device("cuda" if resources.gpus else "cpu")
    scores: NDArray[np.float64] = share_of(
        loaded, store, question, device=device, rank=rank, world_size=world_size
    ).numpy()
    return scores


@functools.lru_cache(maxsize=1)
def _opened(checkpoint: Path, config: Config, as_trained: bool) -> tuple[Loaded, Store]:
    """Load once for all shares of a worker."""
    loaded = load_model(checkpoint)._replace(config=config)
    return loaded, data_of(loaded, as_trained)


def _explained(error: Exception) -> Exception:
    """Return the error that a person should see for what Ray raised."""
    cause = cause_of(error)
    return (
        cause if isinstance(cause, ZfdistError) else FitError(f"a share could not be evaluated: {root_message(error)}")
    )
