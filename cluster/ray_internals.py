"""Every use of what Ray does not document: its private modules, for what it offers in no other way.

A new version of Ray may move or change any of it, so all of it is here, each behind a function that says what for.
Imports are inside the functions: who asks for one needs no more of Ray than that. This file imports nothing of ours,
as it stands on machines beside `cluster.provision.preemption` alone.
"""

import sys
from collections.abc import Mapping
from typing import Any


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


def train_controller() -> Any:
    """Return the handle of Ray Train's actor over all workers, in one of these; it has to be killed with its run."""
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().controller_actor


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
