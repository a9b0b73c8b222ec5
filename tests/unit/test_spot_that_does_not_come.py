"""What Ray's autoscaler would start for what a job asks for, on the shipped cluster file with its second type on.

Its scheduler is asked without a Ray; drill_shortage.py does the same on a cluster whose cloud has no more spot.
"""

import copy
from pathlib import Path
from typing import Any

from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance, NodeState
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GangResourceRequest
from ray.core.generated.common_pb2 import LabelSelectorOperator
from ray.core.generated.instance_manager_pb2 import Instance, NodeKind

from cluster import nodes
from cluster.demand import Fallback
from cluster.provision import cluster_file

WORKER = {"CPU": 8, "GPU": 1}


def started(*groups: list[tuple[dict[str, float], dict[str, str]]]) -> dict[str, int]:
    """Return how many machines of each type are started for placement groups, each of (bundle, selector) pairs."""
    config = cluster_file.read(Path(__file__).parents[2] / "ray-cluster.yaml")
    config["available_node_types"]["gpu-on-demand"]["max_workers"] = 8
    settings = AutoscalingConfig(copy.deepcopy(config), skip_content_hash=True)
    head = AutoscalerInstance(
        cloud_instance_id="head",
        ray_node=_head(),
        im_instance=Instance(
            instance_id="head",
            instance_type="head",
            status=Instance.RAY_RUNNING,
            node_kind=NodeKind.HEAD,
            node_id="head",
            launch_config_hash=settings.get_node_type_configs()["head"].launch_config_hash,
        ),
    )
    reply = ResourceDemandScheduler(event_logger=None).schedule(
        SchedulingRequest(
            disable_launch_config_check=False,
            node_type_configs=settings.get_node_type_configs(),
            max_num_nodes=settings.get_max_num_nodes(),
            gang_resource_requests=[GangResourceRequest(requests=list(map(_request, group))) for group in groups],
            current_instances=[head],
        )
    )
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def _head() -> NodeState:
    has: Any = {nodes.HEAD: 1.0, "CPU": 0.0}
    return NodeState(node_id=b"head", instance_id="head", total_resources=has,
                     available_resources=has, ray_node_type_name="head")  # fmt: skip


def _request(asked: tuple[dict[str, float], dict[str, str]]) -> Any:
    bundle, selector = asked
    labels = [(key, LabelSelectorOperator.LABEL_OPERATOR_IN, [value]) for key, value in selector.items()]
    return ResourceRequestUtil.make(bundle, label_selectors=[labels] if labels else None)


def fallback(workers: int) -> Fallback:
    return Fallback(nodes.NodeType("gpu-on-demand", 8, None, 300), workers)


def test_at_first_spot_alone_is_asked_for() -> None:
    assert started([(WORKER, {})] * 3) == {"gpu": 3}
    assert started(*[[(WORKER, {})]] * 20) == {"gpu": 8}, "the file's max_workers are of both types together"


def test_a_run_then_asks_for_as_many_of_the_other_type_as_have_not_come() -> None:
    selectors = fallback(2).selectors(3)
    assert started([(WORKER, selector) for selector in selectors]) == {"gpu": 1, "gpu-on-demand": 2}


def test_trials_that_ask_for_all_that_may_come_leave_room_for_the_other_type() -> None:
    trials = [[(WORKER, {})]] * 8
    instead = [(WORKER, fallback(1).type.selector), ({nodes.HEAD: 0.001}, {})]  # as Shortage asks
    assert started(*trials, instead)["gpu-on-demand"] == 1
    assert started(*trials, instead[:1]) == {"gpu": 8}, "what is smaller comes last, and finds no room"
