"""Connect to a Ray cluster, or start a Ray on this machine for as long as the program runs.

A local Ray obeys only this program and what it starts, keeps its dashboard (Tune and Train ask its State API which of
their actors are dead, to free what those held), and dies with this process, also by kill -9.

Ray reads parts of its environment when it is imported, so this module imports it only once that is set; who connects
imports the rest of this room afterwards.
"""

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterator

_OBJECT_STORE_BYTES = 128 * 2**20  # nothing of size travels through Ray here
_KNOCK_S = 10
_RESTORED = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # they would lack our runtime environment, and serve nobody
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same on workers as in the command
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # what a worker prints goes to its run's log
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # `cluster.run.fit` looks itself
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",  # a busy machine takes more than the 60 that it is by default
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


class ClusterError(ValueError):
    """No cluster, or not enough of one; the message names what is there and the remedy."""


@contextlib.contextmanager
def connect(address: str | None, say: Callable[[str], None] = print, cpus: int | None = None) -> Iterator[str]:
    """Be connected to Ray within the block; gives the cluster's address.

    Args:
        address: "auto" or host:port of a running cluster. None takes RAY_ADDRESS, and without that starts a local Ray.
        say: told what takes time.
        cpus: what a local Ray offers; None for as many as this process may use.

    Raises:
        ClusterError: if there is no cluster at the address.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    before = {name: os.environ.get(name) for name in _RESTORED}
    wanted = address if address not in (None, "auto") else before["RAY_ADDRESS"] or address
    if wanted is None:
        _keep_others_out()
    import ray

    try:
        if wanted is None:
            _start(cpus or len(os.sched_getaffinity(0)), say)
        else:
            _join(wanted, say)
        gcs_address: str = ray.get_runtime_context().gcs_address
        os.environ["RAY_ADDRESS"] = gcs_address  # other Rays on this host must not confuse Ray's own tools
        yield gcs_address
    finally:
        ray.shutdown()
        for restored, former in before.items():
            os.environ.pop(restored, None)
            if former is not None:
                os.environ[restored] = former


def on_worker_start() -> None:
    """Runs first in every process of ours on the cluster: which Ray it belongs to, for Ray's own clean-up."""
    import ray

    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


def _keep_others_out() -> None:
    """Make a token that only our children inherit, unless the user chose how Ray authenticates.

    Ray listens on the machine's address, even if asked for loopback, and runs whatever reaches it.
    """
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


def _start(cpus: int, say: Callable[[str], None]) -> None:
    say(f"starting Ray on this machine ({cpus} CPUs) ...")
    # What stops the command may signal all its processes at once (timeout, Slurm, systemd). Ray must outlive that for
    # as long as the run takes to save; its processes inherit this mask, and end with ours in any case.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        _init(
            address="local",
            num_cpus=cpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            object_store_memory=_OBJECT_STORE_BYTES,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _join(address: str, say: Callable[[str], None]) -> None:
    say(f"connecting to the Ray cluster ({address}) ...")
    try:
        _knock(address)
        _init(address=address)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ClusterError(
            f"no Ray cluster at {address!r} ({reason}); start one with `ray start --head`, "
            "or leave out --address and RAY_ADDRESS to use this machine alone"
        ) from None


def _knock(address: str) -> None:
    """Raise OSError if nobody listens there; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _init(**options: object) -> None:
    import ray

    ray.init(
        namespace="zfdist",
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"worker_process_setup_hook": "cluster.session.on_worker_start"},
        **options,
    )
