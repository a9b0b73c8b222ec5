"""Who has no token gets in by no door: not by the dashboard, its job API, the client port, or Ray's own."""

import json

from drills import Result, bit_equal, finish
from hosts import HOME, Host
from real_cluster import HEAD, RealCluster

_TRIES = 3  # a busy head may take longer than Ray waits to start the server of a client
_PAGES = ("/api/jobs/", "/api/version", "/nodes?view=summary", "/logs/", "/api/v0/actors")
_KNOCK = """
import socket, urllib.error, urllib.request
try:
    socket.create_connection(({head!r}, 8265), timeout=3)
    print("the dashboard listens on the network")
except OSError:
    pass
"""
_ASK = """
import urllib.error, urllib.request
for page in {pages!r}:
    for headers in ({{}}, {{"Authorization": "Bearer " + "0" * 64}}):
        try:
            answer = urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8265" + page, headers=headers))
            print(page, headers, "answered", answer.read()[:200])
        except urllib.error.HTTPError as error:
            if error.code not in (401, 403):
                print(page, headers, error)
"""
_JOIN = """
import ray
try:
    ray.init({address!r}, logging_level="ERROR", log_to_driver=False)
    print("inside:", ray.nodes())
except Exception as error:
    print("refused:", str(error)[:300])
"""


# Where the workers of a run listen: torch's meeting, gloo, and whatever else.
_PORTS = """
import json, psutil
ours = [p for p in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(p.info["cmdline"] or [])]
listening = [c.laddr for p in ours for c in p.net_connections("tcp") if c.status == "LISTEN"]
print(json.dumps([[address.ip, address.port] for address in listening]))
"""
_POKE = """
import os, socket
answered = []
for port in {ports!r}:
    try:
        with socket.create_connection(({address!r}, port), timeout=3) as knock:
            knock.sendall(os.urandom(4096))
            answered.append(port)
    except OSError:
        pass
print(len(answered))
"""


def stranger_pokes_at_training(cluster: RealCluster) -> Result:
    """Somebody on the cluster's network sends rubbish to every port of torch while a run trains on two machines.

    Torch's ports ask for no token, so it is for the network to keep strangers out (cluster/README.md). They listen on
    the address of the node alone, and rubbish costs a run at most a launch, never its result.
    """
    run = cluster.train("poked")
    run.wait_for_step(20)
    knocked = 0
    for name in cluster.training_on():
        host = cluster.hosts[name]
        listening = json.loads(host.run("python", "-c", _PORTS, env={"PATH": cluster.path}))
        everywhere = [port for ip, port in listening if ip not in (host.address, "127.0.0.1", "::1")]
        assert len(everywhere) <= 1, f"{name}: but for Ray's own, which asks for the token, {everywhere} are open"
        ports = [port for ip, port in listening if ip == host.address]
        poke = _POKE.format(ports=ports, address=host.address)
        knocked += int(cluster.hosts.laptop.run("python", "-c", poke, env={"PATH": cluster.path}))
    assert knocked, "no port of torch was found"
    finish(cluster, run)
    return Result(None, None, None, f"{bit_equal(cluster, run)} after rubbish at {knocked} ports")


def stranger_refused(cluster: RealCluster) -> Result:
    """Somebody on the cluster's network, or with an account on the head, has no token or a wrong one."""
    head, one = cluster.hosts[HEAD], cluster.hosts["one"]
    token = (head.home / ".ray/auth_token").read_text()
    said = _python(one, _KNOCK.format(head=head.address)) + _python(head, _ASK.format(pages=_PAGES))
    assert said == "", said
    for address in (f"{head.address}:6379", f"ray://{head.address}:10001"):
        join = _JOIN.format(address=address)
        said = _python(one, join, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
        assert "refused" in said and "inside" not in said, f"{address}: {said}"
        for _ in range(_TRIES):
            said = _python(one, join, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
            if "inside" in said:
                break
        assert "inside" in said, f"{address} also refuses the token: {said}"
    broken = HOME / "broken-in"
    words = ["ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--", "touch", str(broken)]
    said = _run(head, *words, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
    assert "uthentic" in said or "401" in said or "403" in said, said
    assert not (head.home / broken.name).exists()
    return Result(None, None, None, "refused")


def _python(host: Host, code: str, **env: str) -> str:
    return _run(host, "python", "-c", code, **env)


def _run(host: Host, *words: str, **env: str) -> str:
    """Run a command as somebody else than the cluster's owner."""
    host.run("mkdir", "-p", "/tmp/stranger")
    return host.run(*words, env={"HOME": "/tmp/stranger", "PATH": RealCluster.path} | env, check=False, timeout_s=90)
