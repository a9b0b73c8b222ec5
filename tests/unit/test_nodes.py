"""What a worker gets of the machines that there are: CPUs, and whole GPUs or parts of them."""

from pathlib import Path

import pytest
import yaml

from cluster import nodes
from cluster.demand import Fallback
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


HEAD = Node("10.0.0.1", cpus=0, gpus=0, is_head=True)
GPU_TYPE = {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 4}
BIG_TYPE = {"resources": {"CPU": 64}, "max_workers": 4}


def may_come(alive=(HEAD,), most=4, **types):
    settings = {"head_node_type": "head", "max_workers": most, "available_node_types": types}
    return nodes.coming(alive, nodes.autoscaler_of(settings))


def test_shares_are_planned_from_what_may_come_and_refused_by_its_name():
    coming = may_come(head={"resources": {"CPU": 0}}, gpu=GPU_TYPE)
    assert coming.room_for(WorkerResources(8, 1)) == 4
    assert resources_per_worker([HEAD], workers=4, cpus_per_worker=None, use_gpu=None, coming=coming) == (8, 1)
    for how, said in (
        (
            {"workers": 1, "cpus_per_worker": 16},
            r"a worker of 16 CPUs and a GPU fits no machine: .*pass a smaller --cpus",
        ),
        (
            {"workers": 5, "cpus_per_worker": 8},
            r"at most 4 more may come \(gpu: 8 CPUs and 1 GPU\), room for 4; pass f",
        ),
    ):
        with pytest.raises(ClusterError, match=said):
            resources_per_worker([HEAD], use_gpu=None, coming=coming, **how)


def test_what_stands_in_for_others_says_after_what_time_and_how_it_is_asked_for():
    labels = {nodes.ASKED_AFTER: "300"}
    kinds = {"spot": GPU_TYPE, "dear": GPU_TYPE | {"labels": labels}, "off": GPU_TYPE | {"max_workers": 0}}
    spot, dear = nodes.autoscaler_of({"max_workers": 4, "available_node_types": kinds}).types
    assert (spot.asked_after_s, spot.selector) == (None, {}) and (dear.asked_after_s, dear.selector) == (300, labels)
    fallback = Fallback(dear, workers=2)
    assert fallback.selectors(3) == [{}, labels, labels], "one of three is on a machine that is there"
    assert str(fallback) == "no machine for 2 workers in 300 s: asking for dear"
    for wrong in ("0", "-5", "5 min", "1.5", ""):
        with pytest.raises(
            ClusterError, match=r"available_node_types.dear.labels: zfdist/asked-after-s = .*: whole se"
        ):
            nodes.asked_after_s("dear", {"labels": {nodes.ASKED_AFTER: wrong}})


def test_a_type_with_both_is_needed_for_workers_with_both():
    coming = may_come(gpu=GPU_TYPE, big=BIG_TYPE)
    resources = resources_per_worker([HEAD], workers=4, cpus_per_worker=64, use_gpu=False, coming=coming)
    assert resources == (64, 0), "no machine with a GPU is in the way of four without"
    with pytest.raises(ClusterError, match="add a type of machine that has both"):
        resources_per_worker([HEAD], workers=1, cpus_per_worker=None, use_gpu=True, coming=may_come(big=BIG_TYPE))


def test_machines_that_are_up_count_against_what_may_come():
    up = [HEAD, Node("10.0.0.2", cpus=8, gpus=1, type="gpu")]
    assert len(may_come(up, gpu=GPU_TYPE, big=BIG_TYPE).nodes) == 3 + 4
    assert may_come(up, gpu=GPU_TYPE, big=BIG_TYPE).most == 3, "the limit is on all types together"
    assert may_come(up, most=1, gpu=GPU_TYPE).room_for(WorkerResources(1, 0)) == 0


def test_machines_of_a_size_that_nobody_knows_are_waited_for():
    listed = {"local.cluster.node": {"resources": {}, "max_workers": 3}}
    assert may_come(**listed).of_unknown_size == 3, "as of machines that one owns"
    assert may_come([HEAD, PLAIN, PLAIN, PLAIN], **listed) == nodes.Coming(most=1)
    assert nodes.coming([HEAD], None).of_unknown_size == 1, "a head without CPUs is no cluster yet"
    assert nodes.coming([PLAIN], None) == nodes.NOTHING


def test_what_may_come_on_kubernetes_is_read_from_its_manifest():
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    text = (Path(__file__).parents[2] / "cluster/kuberay/ray-cluster.yaml").read_text()
    (manifest,) = (part for part in yaml.safe_load_all(text) if part["kind"] == "RayCluster")
    manifest["metadata"]["namespace"] = "default"
    autoscaler = nodes.autoscaler_of(_derive_autoscaling_config_from_ray_cr(manifest))
    assert [(kind.name, kind.most, kind.node and kind.node[1:3]) for kind in autoscaler.types] == [("gpu", 8, (7, 1))]


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
