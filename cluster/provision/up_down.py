"""Bring a cluster up and down: a token, Ray's own launcher (`ray up`, `down`, `dashboard`), and a check at the end."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster import ray_internals
from cluster.provision.cluster_file import Cluster
from cluster.session import ClusterError
from zfdist.container import user_home

_HEAD_PORTS = {6379: "Ray", 8265: "the dashboard"}
_ANSWER_S = 60
_CLOSED_S = 20
_SSH_FAILED = 255
_STOP_EVERYTHING = "~/zfdist/venv/bin/ray stop --grace-period 10; ! pgrep -u $(id -u) -x raylet"

Say = Callable[[str], None]


def token_file() -> Path:
    """Return where the token is that opens this user's clusters."""
    return user_home() / ".ray" / "auth_token"


def make_token(path: Path) -> bool:
    """Make the token that opens this user's clusters, unless there is one; return whether it was made."""
    if path.exists() and path.read_text().strip():
        path.chmod(0o600)
        return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return True


def up(cluster: Cluster) -> None:
    """Start the head, which starts the workers; returns when the head answers.

    Raises:
        ClusterError: if Ray's launcher fails or nothing answers.
    """
    if _ray("up", "--yes", "--no-config-cache", str(cluster.file), cluster=cluster).returncode:
        raise ClusterError(f"ray up {cluster.file} failed; what it printed above says where")
    with tunnel(cluster):
        pass


def is_up(cluster: Cluster) -> bool:
    """Return whether the cluster has a head that runs Ray."""
    if cluster.is_local:
        return bool(open_ports(_head_of_ours(cluster)))
    with contextlib.suppress(ClusterError):
        head_ip(cluster)
        with tunnel(cluster):
            return True
    return False


def rejoin(cluster: Cluster, machine: str) -> str:
    """Start Ray again on a worker of ours that was away; return what came of it.

    Ray's own autoscaler gives up on a machine that it could not reach, and `ray up` would restart the head.
    """
    commands = [*(cluster.config["setup_commands"] or []), *cluster.config["worker_start_ray_commands"]]
    script = " && ".join([f"export RAY_HEAD_IP={cluster.config['provider']['head_ip']}", *commands])
    code = _ssh(cluster, machine, f"test -f ~/zfdist/start-ray.sh || exit 3; {script}")
    if code == _SSH_FAILED:
        return "it cannot be reached by ssh"
    if code == 3:
        return "it was never set up: python -m jobs.cluster up --restart"
    return "it joined again" if code == 0 else "Ray did not start there: ssh to it and look into /tmp/ray"


def head_ip(cluster: Cluster) -> str:
    """Return the address of the head.

    Raises:
        ClusterError: if there is none.
    """
    done = _ray("get-head-ip", str(cluster.file), cluster=cluster, quiet=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise ClusterError(f"cluster {cluster.name} has no head: python -m jobs.cluster up")
    return str(lines[-1].split()[-1])


@contextlib.contextmanager
def tunnel(cluster: Cluster) -> Iterator[str]:
    """Reach the head's dashboard, which listens on the head's loopback only; gives its address here.

    Raises:
        ClusterError: if it does not answer.
    """
    port = _free_port()
    forward = subprocess.Popen(
        [*ray_internals.launcher_command(), "dashboard", str(cluster.file), "--port", str(port)],
        env=_environment(cluster),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is for us
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline_s = time.monotonic() + _ANSWER_S
        while not answers(address):
            if forward.poll() is not None:
                said = (forward.stdout.read() if forward.stdout else "").strip().splitlines() or ["nothing"]
                raise ClusterError(f"no way to the head of cluster {cluster.name}: is it up? (ssh said: {said[-1]})")
            if time.monotonic() > deadline_s:
                raise ClusterError(f"the head of cluster {cluster.name} does not answer; see python -m jobs.cluster up")
            time.sleep(0.5)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(forward.pid, signal.SIGTERM)
        forward.wait()


def answers(address: str) -> bool:
    """Return whether a Ray dashboard answers at the address, be it with a refusal."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def down(cluster: Cluster, *, say: Say = print) -> None:
    """Stop the cluster and make sure of it.

    `ray down` runs a plain `ray stop` on the head: if that is not on the path of its login shell, or the head cannot
    be reached, it still says that nothing remains and returns 0; and on machines of ours it leaves the workers to find
    out. So Ray is stopped by its full path on each of these, and the head's ports are tried.

    Raises:
        ClusterError: if something still runs; names it and the remedy.
    """
    left = _stop_our_machines(cluster, say) if cluster.is_local else []
    failed = _ray("down", "--yes", str(cluster.file), cluster=cluster).returncode
    left += _still_listening(cluster) if cluster.is_local else _left_in_the_cloud(cluster)
    if left:
        raise ClusterError(f"cluster {cluster.name} is still up: {'; '.join(left)}")
    if failed:
        raise ClusterError(
            f"ray down {cluster.file} failed (see above), though no head is left: "
            "check in the provider's console that no machine of the cluster is"
        )
    say(f"cluster {cluster.name} is down")


def _stop_our_machines(cluster: Cluster, say: Say) -> list[str]:
    """Stop Ray on all machines at once; return a sentence for each on which it still runs."""
    machines = [_head_of_ours(cluster), *cluster.config["provider"]["worker_ips"]]
    with ThreadPoolExecutor(max_workers=32) as pool:
        codes = list(pool.map(lambda machine: _ssh(cluster, machine, _STOP_EVERYTHING), machines))
    for machine, code in zip(machines, codes, strict=True):
        if code == _SSH_FAILED:
            say(f"{machine} cannot be reached; its Ray ends by itself within a minute of finding its head gone")
    still = [machine for machine, code in zip(machines, codes, strict=True) if code not in (0, _SSH_FAILED)]
    return [f"on {machine} Ray still runs; ssh to it and run `ray stop --force`" for machine in still]


def _still_listening(cluster: Cluster) -> list[str]:
    head = _head_of_ours(cluster)
    deadline_s = time.monotonic() + _CLOSED_S
    while (ports := open_ports(head)) and time.monotonic() < deadline_s:
        time.sleep(1)
    return [f"{_HEAD_PORTS[port]} still listens on {head}:{port}; ssh to it and end that" for port in ports]


def _head_of_ours(cluster: Cluster) -> str:
    provider = cluster.config["provider"]
    return str(provider.get("external_head_ip") or provider["head_ip"])


def _left_in_the_cloud(cluster: Cluster) -> list[str]:
    with contextlib.suppress(ClusterError):
        return [f"its head {head_ip(cluster)} still exists; end it in the provider's console"]
    return []


def open_ports(machine: str) -> list[int]:
    """Return those of the head's ports that something listens on at the machine, as seen from here."""
    found = []
    for port in _HEAD_PORTS:
        with contextlib.suppress(OSError):
            socket.create_connection((machine, port), timeout=3).close()
            found.append(port)
    return found


def _ssh(cluster: Cluster, machine: str, command: str) -> int:
    """Run a command on a machine of ours; return its exit code."""
    auth = cluster.config.get("auth", {})
    key = ["-i", os.path.expanduser(auth["ssh_private_key"])] if "ssh_private_key" in auth else []
    proxy = ["-o", f"ProxyCommand={auth['ssh_proxy_command']}"] if "ssh_proxy_command" in auth else []
    quiet = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    user = f"{auth.get('ssh_user', 'ubuntu')}@{machine}"
    words = ["ssh", "-o", "ConnectTimeout=10", "-o", "BatchMode=yes", *quiet, *key, *proxy, user, command]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True).returncode


def _ray(verb: str, *words: str, cluster: Cluster, quiet: bool = False) -> "subprocess.CompletedProcess[str]":
    output = subprocess.PIPE if quiet else None
    return subprocess.run(
        [*ray_internals.launcher_command(), verb, *words],
        env=_environment(cluster),
        stdout=output,
        stderr=output,
        text=True,
    )


def _environment(cluster: Cluster) -> dict[str, str]:
    """What Ray's launcher reads: its second autoscaler does not know machines of ours (2.60)."""
    off = {"RAY_UP_enable_autoscaler_v2": "0"} if cluster.is_local else {}
    return os.environ | {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"} | off


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
