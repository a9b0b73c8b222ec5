"""Bring a cluster up and down: a token, Ray's own launcher (`ray up`, `ray down`), and a check at the end."""

import os
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.provision import reach
from cluster.provision.cluster_file import Cluster
from cluster.session import ClusterError
from zfdist.container import user_home

_CLOSED_S = 20
_NEVER_SET_UP = 3
# The autoscaler is the one that the launcher gave a copy of the private key (`auth.ssh_private_key`).
_STOP_EVERYTHING = (
    "~/zfdist/venv/bin/ray stop --grace-period 10; ! pgrep -u $(id -u) -x raylet && rm -f ~/ray_bootstrap_key.pem"
)
_TRIES = 2  # a head that was just about to start Ray on a worker may come in between

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


def up(cluster: Cluster, *, say: Say = print) -> None:
    """Start the head, which starts the workers; returns when the head answers.

    Raises:
        ClusterError: if Ray's launcher fails or nothing answers.
    """
    if not cluster.is_local:
        reach.head_in_the_cloud(cluster)  # without credentials the launcher would end with a traceback
    log = cluster.file.with_suffix(".up.log")
    say(f"setting up the head of cluster {cluster.name}; all that is done is in {log}")
    words = ["--yes", "--no-config-cache", str(cluster.file)]
    failure = reach.followed_launcher("up", *words, cluster=cluster, log=log, say=say)
    if failure is not None:
        raise ClusterError(f"ray up {cluster.file} failed: {failure}; {log} has all of it")
    with reach.tunnel(cluster):
        pass


def is_up(cluster: Cluster) -> bool:
    """Return whether Ray listens on the head.

    Raises:
        ClusterError: if there is a head that cannot be asked: `ray up` would end the jobs of a Ray that runs there.
    """
    if not cluster.is_local and reach.head_in_the_cloud(cluster) is None:
        return False
    return bool(reach.listening(cluster))


def rejoin(cluster: Cluster, machine: str) -> str:
    """Start Ray again on a worker of ours that was away; return what came of it.

    Ray's own autoscaler gives up on a machine that it could not reach, and `ray up` would restart the head.
    """
    commands = [*(cluster.config["setup_commands"] or []), *cluster.config["worker_start_ray_commands"]]
    script = " && ".join([f"export RAY_HEAD_IP={cluster.config['provider']['head_ip']}", *commands])
    started = f"test -f ~/zfdist/start-ray.sh || exit {_NEVER_SET_UP}; {script}"
    code = reach.ssh(cluster, machine, started).returncode
    if code == reach.SSH_FAILED:
        return "it cannot be reached by ssh"
    if code == _NEVER_SET_UP:
        return "it was never set up: zfdist cluster up --restart"
    return "it joined again" if code == 0 else "Ray did not start there: ssh to it and look into /tmp/ray"


def down(cluster: Cluster, *, say: Say = print) -> None:
    """Stop the cluster and make sure of it.

    `ray down` runs a plain `ray stop` on the head: if that is not on the path of its login shell, or the head cannot
    be reached, it still says that nothing remains and returns 0; and on machines of ours it leaves the workers to find
    out. So Ray is stopped by its full path on each of these, and the head is asked what still listens.

    Raises:
        ClusterError: if something still runs, or it cannot be known; names it and the remedy.
    """
    left = _stop_our_machines(cluster, say) if cluster.is_local else []
    log = cluster.file.with_suffix(".down.log")
    say(f"ending cluster {cluster.name}; all that is done is in {log}")
    failure = reach.followed_launcher("down", "--yes", str(cluster.file), cluster=cluster, log=log, say=say)
    left += _still_listening(cluster) if cluster.is_local else _left_in_the_cloud(cluster)
    if left:
        raise ClusterError(f"cluster {cluster.name} is still up: {'; '.join(left)}")
    if failure is not None:
        raise ClusterError(
            f"ray down {cluster.file} failed ({failure}; {log} has all of it), though no head is left: "
            "check in the provider's console that no machine of the cluster is"
        )
    say(f"cluster {cluster.name} is down")


def _stop_our_machines(cluster: Cluster, say: Say) -> list[str]:
    """Stop Ray on the head, which would start it again elsewhere, then on all others; return where it still runs.

    Raises:
        ClusterError: if the head cannot be reached; the other machines are stopped then.
    """
    head, workers = reach.head_of_ours(cluster), cluster.config["provider"]["worker_ips"]
    codes = _stopped(cluster, [head]) | _stopped(cluster, workers)
    for machine in workers:
        if codes[machine] == reach.SSH_FAILED:
            say(f"{machine} cannot be reached; its Ray ends by itself within a minute of finding its head gone")
    if codes[head] == reach.SSH_FAILED:
        raise ClusterError(
            f"cluster {cluster.name} may still be up: its head {head} cannot be reached by ssh, and if it runs, it "
            "starts Ray on its workers again; run this again once it can be reached (if it is switched off, nothing is "
            "left to do)"
        )
    still = [machine for machine, code in codes.items() if code not in (0, reach.SSH_FAILED)]
    return [f"on {machine} Ray still runs; ssh to it and run `ray stop --force`" for machine in still]


def _stopped(cluster: Cluster, machines: Sequence[str]) -> dict[str, int]:
    """Stop Ray on these machines at once; return the exit code from each."""
    codes: dict[str, int] = {}
    for _ in range(_TRIES):
        again = [machine for machine in machines if codes.get(machine, 1) not in (0, reach.SSH_FAILED)]
        with ThreadPoolExecutor(max_workers=32) as pool:
            done = pool.map(lambda machine: reach.ssh(cluster, machine, _STOP_EVERYTHING).returncode, again)
            codes |= zip(again, done, strict=True)
    return codes


def _still_listening(cluster: Cluster) -> list[str]:
    deadline_s = time.monotonic() + _CLOSED_S
    while (services := reach.listening(cluster)) and time.monotonic() < deadline_s:
        time.sleep(1)
    head = reach.head_of_ours(cluster)
    return [f"{service} still listens on {head}; ssh to it and end that" for service in services]


def _left_in_the_cloud(cluster: Cluster) -> list[str]:
    head = reach.head_in_the_cloud(cluster)
    return [] if head is None else [f"its head {head} still exists; end it in the provider's console"]
