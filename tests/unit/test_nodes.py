"""What a worker gets of the machines that there are: CPUs, and whole GPUs or parts of them."""

import pytest

from cluster import nodes
from cluster.nodes import Node, WorkerResources, resources_per_worker
from cluster.run.worker import worker_env
from cluster.session import ClusterError
from zfdist.config import Config

BOX = Node("10.0.0.1", cpus=16, gpus=2)
PLAIN = Node("10.0.0.2", cpus=8, gpus=0)


def resources_of(machines, workers=1, cpus=None, use_gpu=None, part=None):
    return resources_per_worker(machines, workers=workers, cpus_per_worker=cpus, use_gpu=use_gpu, gpu_part=part)


def test_a_whole_gpu_where_there_are_any_and_an_even_part_of_the_cpus():
    assert resources_of([PLAIN], workers=2) == WorkerResources(4, 0)
    assert resources_of([BOX], workers=2) == WorkerResources(8, 1)
    assert resources_of([BOX, PLAIN], workers=2) == WorkerResources(8, 1)
    assert resources_of([BOX, PLAIN], workers=3, use_gpu=False) == WorkerResources(8, 0)


@pytest.mark.parametrize(
    ("part", "on_one", "in_all"), [(1.0, 1, 2), (0.5, 2, 4), (0.34, 2, 4), (0.33, 3, 6), (0.25, 4, 8), (0.1, 10, 16)]
)
def test_parts_of_a_gpu(part, on_one, in_all):
    resources = resources_of([BOX], cpus=1, part=part)
    assert resources == WorkerResources(1, part)
    assert nodes.on_a_gpu(resources) == on_one
    assert nodes.room_for([BOX, PLAIN], resources) == in_all, "a part lies on one GPU, and CPUs bound it too"


def test_a_part_of_a_gpu_is_for_a_trial_of_one_worker():
    with pytest.raises(ClusterError, match=r"a part of a GPU \(0.5\) is for one worker, not 2: NCCL"):
        resources_of([BOX], workers=2, part=0.5)
    assert resources_of([BOX], workers=2, part=1.0) == WorkerResources(8, 1)


def test_parts_of_what_is_not_there_are_refused():
    with pytest.raises(ClusterError, match=r"1 CPU and 0.5 GPU each do not fit: .*8 CPUs and no GPU, room for 0"):
        resources_of([PLAIN], part=0.5)
    assert resources_of([PLAIN], use_gpu=False, part=0.5) == WorkerResources(8, 0)


@pytest.mark.parametrize(
    ("given", "asked", "threads"), [(None, 0, 4), ("2", 0, 2), ("8", 0, 4), ("2", 3, 3), ("x", 0, 4)]
)
def test_threads_of_a_worker_are_those_of_its_cpus_or_fewer_if_told(
    given: str | None, asked: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    config = Config().with_values({"engine.threads_per_worker": asked})
    assert worker_env(WorkerResources(4, 0), config)["OMP_NUM_THREADS"] == str(threads)
