"""Connect to a Ray cluster, or start a Ray on this machine for as long as the program runs.

A local Ray obeys only this program and what it starts, keeps its dashboard (Tune and Train ask its State API which of
their actors are dead, to free what those held), and dies with this process, also by kill -9.

Ray reads parts of its environment when it is imported, so this module imports it only once that is set; who connects
imports the rest of this package afterwards.
"""

import contextlib
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster import address as addresses
from cluster import preflight
from zfdist import container
from zfdist.errors import ZfdistError

_OBJECT_STORE_MIB = 128  # nothing of size travels through Ray here
_RESTORED = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR", "TMPDIR")
_ALONE = {"RAY_ADDRESS": "unset RAY_ADDRESS", "--address": "leave out --address"}
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


class ClusterError(ZfdistError):
    """No cluster, or not enough of one; the message names what is there and the remedy."""


@contextlib.contextmanager
def connect(address: str | None, say: Callable[[str], None] = print, cpus: int | None = None) -> Iterator[str]:
    """Be connected to Ray within the block; gives the cluster's address.

    Args:
        address: "auto" or host:port of a running cluster. None takes RAY_ADDRESS, and without that starts a local Ray,
            as "local" does.
        say: told what takes time.
        cpus: what a local Ray offers; None for as many as this process may use.

    Raises:
        ClusterError: if there is no cluster at the address that this process can join, or none can start here.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("HOME", str(container.user_home()))  # what Ray starts asks for it
    before = {name: os.environ.get(name) for name in _RESTORED}
    given = (before["RAY_ADDRESS"] or "").strip()
    wanted, source = (given, "RAY_ADDRESS") if given and address in (None, "auto") else (address, "--address")
    try:
        if addresses.is_local(wanted):
            _start(cpus or container.cpus(), say)
        else:
            _join(str(wanted).strip(), source, say)
        import ray

        gcs_address: str = ray.get_runtime_context().gcs_address
        os.environ["RAY_ADDRESS"] = gcs_address  # other Rays on this host must not confuse Ray's own tools
        yield gcs_address
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
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
    in_shared_memory = preflight.has_shared_memory(_OBJECT_STORE_MIB)
    room_mib = preflight.room_mib(_OBJECT_STORE_MIB, in_shared_memory=in_shared_memory)
    try:
        place = preflight.place(os.environ, lambda folder: preflight.trouble_with(folder, room_mib))
    except LookupError as error:
        raise ClusterError(f"Ray cannot start on this machine: {error}") from None
    if why := preflight.too_tight(preflight.limits(), cpus):
        raise ClusterError(f"Ray cannot start on this machine: {why}")
    if place.remark:
        say(place.remark)
    os.environ["RAY_TMPDIR"] = place.folder
    if len(os.fsencode(os.environ.get("TMPDIR", ""))) > preflight.LONGEST_FOLDER_BYTES:
        os.environ["TMPDIR"] = place.folder  # Python's own sockets, which Ray's dashboard opens, are there
    say(f"starting Ray on this machine ({cpus} CPUs) ...")
    _keep_others_out()
    # What stops the command may signal all its processes at once (timeout, Slurm, systemd). Ray must outlive that for
    # as long as the run takes to save; its processes inherit this mask, and end with ours in any case.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        _init(
            address="local",
            num_cpus=cpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            object_store_memory=_OBJECT_STORE_MIB * 2**20,
            _plasma_directory=None if in_shared_memory else place.folder,
        )
    except Exception as error:  # Ray raises of every kind, where the system refuses it something
        said = preflight.last_words(Path(place.folder) / "ray", os.getpid())
        raise ClusterError(f"Ray cannot start on this machine: {_reason(error)}{said}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _join(address: str, source: str, say: Callable[[str], None]) -> None:
    if address == "auto":
        try:
            address = addresses.running_here()
        except LookupError as error:
            raise ClusterError(
                f"no Ray cluster at 'auto': {error}, or {_ALONE[source]} to use this machine alone"
            ) from None
    why = addresses.misread(address)
    if why is None:
        say(f"connecting to the Ray cluster ({address}) ...")
        why = addresses.refused(address)
    if why is None:
        try:
            return _init(address=address)
        except Exception as error:  # the cluster may end meanwhile, and Ray raises of every kind
            why = _reason(error)
    raise ClusterError(
        f"no Ray cluster at {address!r} ({source}): {why}; or {_ALONE[source]} to use this machine alone"
    )


def _reason(error: BaseException) -> str:
    """Return the first line of what is at the bottom of an exception of Ray's."""
    seen = {id(error)}  # Ray raises errors that are their own causes, by way of others
    while error.__cause__ is not None and id(error.__cause__) not in seen:
        error = error.__cause__
        seen.add(id(error))
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _init(**options: object) -> None:
    import ray

    ray.init(
        namespace="zfdist",
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"worker_process_setup_hook": "cluster.session.on_worker_start"},
        **options,
    )
