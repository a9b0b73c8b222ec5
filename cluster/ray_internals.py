"""Every use of what Ray does not document: its private modules, for what it offers in no other way.

A new version of Ray may move or change any of it, so all of it is here, each behind a function that says what for.
Imports are inside the functions: who asks for one needs no more of Ray than that. This file imports nothing of ours,
as it stands on machines beside `cluster.provision.preemption` alone.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_FREED_WITHIN_S = 5.0


def draining_nodes() -> dict[str, float]:
    """Return when each node that is about to be taken away goes, by its id: seconds since 1970, 0 if it is not known.

    What Ray's own watcher of preemptions asks. Needs a connected Ray.
    """
    import ray._private.state

    draining: Mapping[str, int] = ray._private.state.state.get_draining_nodes()
    return {node_id: until_ms / 1000 for node_id, until_ms in draining.items()}


def free_resources() -> dict[str, dict[str, float]]:
    """Return the resources that nobody holds, by the id of the node; Ray's documented call gives the sum over nodes."""
    import ray._private.state

    free: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()
    return free


def autoscaler_settings_here(gcs_address: str) -> dict[str, Any] | None:
    """Return the cluster file that the autoscaler of a cluster goes by, as seen from the head's machine; None if none.

    The control service has a place for it (`GetClusterConfig`), which nothing in open-source Ray 2.60 fills: so it is
    read where the autoscaler reads it, from the file that its command line names, or from Kubernetes.
    """
    import psutil
    import yaml

    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        given = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if any(word.endswith("monitor.py") for word in words) and given.get("gcs-address") == gcs_address:
            if "autoscaling-config" not in given:
                return None
            settings = yaml.safe_load(Path(given["autoscaling-config"]).expanduser().read_text())
            return settings if isinstance(settings, dict) else None
    return _kuberay_settings()


def _kuberay_settings() -> dict[str, Any] | None:
    """Return the same of a cluster that KubeRay made, whose autoscaler runs in a container beside the head's."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    namespace = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    if name is None or not namespace.exists():
        return None
    from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer

    try:
        cluster = AutoscalingConfigProducer(name, namespace.read_text().strip())
        if not cluster.kubernetes_api_client.get(f"rayclusters/{name}")["spec"].get("enableInTreeAutoscaling"):
            return None
        settings: dict[str, Any] = cluster()
    except Exception:  # no right to ask is no autoscaler of ours
        return None
    return settings


def starting_machines(gcs_address: str, *, within_s: int) -> tuple[dict[str, int], str | None]:
    """Return how many machines of each type the autoscaler is starting, and why it last could not start one.

    What `ray status` asks. Nothing is told by Ray's first autoscaler, which only machines of one's own still have.
    """
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        status = get_cluster_status(gcs_address, timeout=within_s)
    except Exception:  # a head that is busy now says it the next time
        return {}, None
    starting: dict[str, int] = {}
    for launch in status.pending_launches:
        starting[launch.ray_node_type_name] = starting.get(launch.ray_node_type_name, 0) + launch.count
    for node in status.pending_nodes:
        starting[node.ray_node_type_name] = starting.get(node.ray_node_type_name, 0) + 1
    failures = sorted(status.failed_launches, key=lambda launch: launch.failed_ts_s or 0)
    return starting, failures[-1].details if failures else None


def remove_placement_groups(*, of_actor: str | None = None, of_dead_actors: bool = False) -> None:
    """Remove the placement groups of this job that an actor made, or that were made by actors that are dead.

    Ray itself does so only once the whole job is over.
    """
    import ray
    import ray._private.state
    from ray.core.generated import gcs_pb2
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for entry in ray._private.state.state._connect_and_get_accessor().get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(entry)
        if group.state == gcs_pb2.PlacementGroupTableData.REMOVED or group.creator_job_id.hex() != job:
            continue
        maker = group.creator_actor_id.hex()
        if maker == of_actor or (of_dead_actors and group.creator_actor_dead and maker.strip("f")):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def free_placement_groups(groups: Sequence[Any]) -> None:
    """Remove placement groups, and wait until the control service counts what they held as free.

    What asked for the same before that would have to wait, and the autoscaler would start one more machine for it.
    """
    from ray.util.placement_group import placement_group_table, remove_placement_group

    free = free_resources()
    expected: dict[tuple[str, str], float] = {}
    for group in groups:
        told = placement_group_table(group)
        for index, node in told.get("bundles_to_node_id", {}).items():
            for name, amount in told["bundles"][index].items():
                key = (node, name)
                expected[key] = expected.get(key, free.get(node, {}).get(name, 0.0)) + amount
        remove_placement_group(group)
    deadline_s = time.monotonic() + _FREED_WITHIN_S
    while expected and time.monotonic() < deadline_s:  # somebody else may take it first
        free = free_resources()
        expected = {
            key: least for key, least in expected.items() if free.get(key[0], {}).get(key[1], 0.0) < least - 1e-6
        }
        time.sleep(0.02)


def launch_trainer() -> Any:
    """Return the class of Ray Train's trainer for one launch, with one more argument: `reserved`, placement groups.

    It differs from Ray's own in three things. `controller` is the handle of Train's actor over all workers, from its
    start on: killing it ends them. What is reserved is freed by that actor in the moment before it asks for the same.
    And it does not call `request_resources` on the side, which is one list for the whole cluster, would override what
    others asked for, and stays for three minutes after the job has died.
    """
    import ray
    from ray.train.v2._internal.constants import get_env_vars_to_propagate
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class LaunchTrainer(DataParallelTrainer):  # type: ignore[misc]
        controller: Any = None

        def __init__(self, *arguments: Any, reserved: Sequence[Any], **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._reserved = reserved

        def _initialize_and_run_controller(self, **options: Any) -> Any:
            options["scaling_policy"] = launch_policy()(self.scaling_config, self._reserved)
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            actor = ray.remote(
                num_cpus=0, scheduling_strategy=here, runtime_env={"env_vars": get_env_vars_to_propagate()}
            )(TrainController)
            self.controller = actor.remote(**options)
            ray.get(self.controller.run.remote())
            return ray.get(self.controller.get_result.remote())

    return LaunchTrainer


def launch_policy() -> Any:
    """Return the class that tells Ray Train how many workers to start: as many as it was given, and see above."""
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    class LaunchPolicy(FixedScalingPolicy):  # type: ignore[misc]
        def __init__(self, scaling_config: Any, reserved: Sequence[Any]) -> None:
            super().__init__(scaling_config)
            self._reserved = reserved

        def make_decision_for_non_running_worker_group(self) -> Any:
            free_placement_groups(self._reserved)
            return super().make_decision_for_non_running_worker_group()

        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    return LaunchPolicy


def is_lost_worker(error: BaseException) -> bool:
    """Return whether an error of a worker in Ray Train's list means that its process died."""
    from ray.exceptions import RayActorError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return isinstance(error, RayActorError | WorkerHealthCheckFailedError)


def check_cluster_file(config: dict[str, Any]) -> None:
    """Check a cluster file as `ray up` and then the head do: twice, the second time what the first has filled in.

    Raises:
        Exception: of many types, also SystemExit: what Ray refuses, in its words.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    for _ in range(2):
        config = prepare_config(config)
        validate_config(config)


def gcs_client(address: str | None) -> Any | None:
    """Return a client of the control service of the Ray at `address`, or of this machine's own (None); None if none.

    A driver is not needed for it: `ray.init` would make this process one, and count as a job.

    Raises:
        ConnectionError, ValueError: if there is no Ray at the address.
    """
    import ray._raylet
    from ray._private import services

    found = services.canonicalize_bootstrap_address(address)
    return ray._raylet.GcsClient(address=found) if found else None


def alive_nodes(client: Any, *, within_s: float) -> dict[str, str]:
    """Return the address of every node that is up, by its id, as the control service knows them."""
    infos = client.get_all_node_info(timeout=within_s).values()
    return {info.node_id.hex(): info.node_manager_address for info in infos if info.state == 0}


def drain_node(client: Any, node_id: str, what: str, deadline_s: float) -> str | None:
    """Tell Ray that a node will be taken away, by preemption, at a time in seconds since 1970; return its refusal."""
    from ray.core.generated import autoscaler_pb2

    accepted, refusal = client.drain_node(
        node_id, autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION, what, int(deadline_s * 1000)
    )
    return None if accepted else str(refusal)


def dashboard_nodes(client: Any) -> Any:
    """Return the answer of a cluster's dashboard to the question for its nodes, through a JobSubmissionClient."""
    return client._do_request("GET", "/nodes?view=summary")


def launcher_command() -> list[str]:
    """Return the words that start the program `ray` of this Python, which need not be on the PATH."""
    return [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]


def gcs_addresses_here() -> tuple[list[str], str | None]:
    """Return the addresses of the clusters that run on this machine, and that of the latest `ray start`, if any."""
    from ray._private import services

    services.find_gcs_addresses.cache_clear()
    return sorted(services.find_gcs_addresses()), services.find_bootstrap_address(None)


def node_ids_here() -> set[str]:
    """Return the ids of the nodes whose processes run on this machine."""
    from ray._private import services

    ids: set[str] = services.find_node_ids()
    return ids


def cluster_metadata(address: str, *, within_s: float) -> bytes:
    """Return what a GCS keeps of its cluster, in JSON: its versions; asked without joining.

    Raises:
        grpc.RpcError: if it does not answer, or not to us.
        ray.exceptions.AuthenticationError: if there is no token to ask with.
    """
    from ray._private import grpc_utils, ray_constants
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    question = gcs_service_pb2.InternalKVGetRequest(namespace=b"cluster", key=b"CLUSTER_METADATA")
    with grpc_utils.init_grpc_channel(address, ray_constants.GLOBAL_GRPC_OPTIONS) as channel:
        stub = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)
        told: bytes = stub.InternalKVGet(question, timeout=within_s).value
        return told


def living_nodes(address: str, *, within_s: float) -> set[str]:
    """Return the ids of the nodes that are up in the cluster of a GCS; raises as `cluster_metadata`."""
    from ray._private import grpc_utils, ray_constants
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    with grpc_utils.init_grpc_channel(address, ray_constants.GLOBAL_GRPC_OPTIONS) as channel:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        reply = stub.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), timeout=within_s)
        return {node.node_id.hex() for node in reply.node_info_list if node.state == node.ALIVE}
