"""A laptop that reaches the head by ssh alone, through another machine: what it asks of the head, it asks on it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hosts
import pytest
from real_cluster import BIN, ROOT
from waiting import wait_for

pytestmark = pytest.mark.skipif(hosts.why_not() is not None, reason=str(hosts.why_not()))

# Listens where Ray's control service and its dashboard do, and answers as a dashboard does that refuses a token.
_SERVICES = """
import http.server, threading
class Refuses(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(401)
gcs = http.server.HTTPServer(("0.0.0.0", 6379), Refuses)
http.server.HTTPServer(("127.0.0.1", 8265), Refuses).serve_forever()
"""
_ASK = """
import pathlib, sys
from cluster.provision import cluster_file, reach, up_down
cluster = cluster_file.load(overlay=pathlib.Path(sys.argv[1]))
print("up:", up_down.is_up(cluster))
if up_down.is_up(cluster):
    with reach.tunnel(cluster) as address:
        print("answers:", reach.answers(address))
"""


@pytest.fixture(scope="module")
def made() -> Iterator[hosts.Hosts]:
    """A head to which the laptop has no way but through the machine called gate."""
    with hosts.Hosts(["head", "gate"]) as made:
        overlay = {
            "cluster_name": "behind",
            "metadata": {"storage": str(made.shared), "data": str(made.shared), "shared_folder": True},
            "provider": {"type": "local", "head_ip": made["head"].address, "worker_ips": [made["gate"].address]},
            "auth": {
                "ssh_user": "root",
                "ssh_private_key": "~/.ssh/id",
                "ssh_proxy_command": f"ssh -i ~/.ssh/id -o ConnectTimeout=5 -W %h:%p root@{made['gate'].address}",
            },
            **dict.fromkeys(("max_workers", "head_node_type", "available_node_types", "head_setup_commands")),
        }
        (made.laptop.home / "behind.yaml").write_text(json.dumps(overlay))
        made.laptop.run("ip", "route", "add", "unreachable", f"{made['head'].address}/32")
        yield made


def on_laptop(made: hosts.Hosts, *words: str) -> str:
    """Run this Python on the laptop in the checkout; return what it says, which is no traceback."""
    env = {"PATH": f"{BIN}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    said = made.laptop.run("env", f"--chdir={ROOT}", "python", *words, env=env, check=False)
    assert "Traceback" not in said, said
    return said


def asked(made: hosts.Hosts) -> list[str]:
    return on_laptop(made, "-c", _ASK, str(hosts.HOME / "behind.yaml")).splitlines()


def test_the_head_is_asked_through_the_proxy_and_so_is_its_dashboard(made: hosts.Hosts) -> None:
    assert asked(made) == ["up: False"]
    serving = subprocess.Popen(made["head"].command(str(BIN / "python"), "-c", _SERVICES))
    wait_for(lambda: "up: True" in asked(made), "services on the head")
    assert asked(made) == ["up: True", "answers: True"]
    serving.kill()
    serving.wait()
    made["head"].kill("HTTPServer")
    wait_for(lambda: asked(made) == ["up: False"], "end of the services")


def test_a_head_that_cannot_be_asked_is_neither_restarted_nor_called_down(made: hosts.Hosts) -> None:
    made.partition("head")
    logs = made.laptop.home / ".cache/zfdist/clusters"
    overlay = ["--overlay", str(hosts.HOME / "behind.yaml")]
    try:
        said = on_laptop(made, "-m", "jobs.cluster", "up", *overlay)
        assert "cannot be reached by ssh, so whether Ray runs there is not known" in said, said
        said = on_laptop(made, "-m", "jobs.cluster", "down", *overlay)
        assert "may still be up: its head 10.77.0.2 cannot be reached by ssh" in said, said
    finally:
        made.heal("head")
    assert not list(logs.glob("*.log")), "Ray's launcher was started"


def test_the_copy_of_the_private_key_goes_with_the_cluster(made: hosts.Hosts) -> None:
    key: Path = made["head"].home / "ray_bootstrap_key.pem"
    key.write_text("a copy")
    said = on_laptop(made, "-m", "jobs.cluster", "down", "--overlay", str(hosts.HOME / "behind.yaml"))
    assert "cluster behind is down" in said and not key.exists(), said
