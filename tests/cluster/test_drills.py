"""A few of the drills, on a cluster of a head and three workers; `make drills` runs all of them."""

import json
from collections.abc import Iterator

import drill_hosts
import drill_strangers
import hosts
import pytest
from real_cluster import HEAD, RealCluster

pytestmark = [
    pytest.mark.skipif(hosts.why_not() is not None, reason=str(hosts.why_not())),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def real() -> Iterator[RealCluster]:
    """A cluster that the shipped commands brought up."""
    with hosts.Hosts([HEAD, "one", "two", "three"], loopback="one") as made:
        cluster = RealCluster(made, ["one", "two", "three"])
        cluster.up()
        yield cluster
        assert "cluster drill is down" in cluster.command("down")
        left = {host.name: host.processes("raylet") for host in made}
        assert not any(left.values()), f"what `down` left running: {left}"


def test_doctor_asks_every_machine_and_names_the_ill_one(real: RealCluster) -> None:
    said = real.command("doctor", "--workers", "3")
    assert all(host.address in said for host in real.hosts), said
    assert "one: its name resolves to loopback" in said and "no token" not in said, said
    ill = real.hosts["two"]
    ill.run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(real.runs))
    try:
        said = real.command("doctor", check=False)
    finally:
        ill.run("umount", str(real.runs))
    assert "two: storage: " in said and "three: storage: " not in said and "one: storage: " not in said, said
    assert all(host.address in real.command("status") for host in real.hosts)


def test_a_cluster_that_is_reached_by_ssh_alone_is_found_up_and_left_alone(real: RealCluster) -> None:
    """From another laptop: it has no file of Ray's launcher, and a way to the head through a worker only."""
    before, laptop, overlay = real.nodes(), real.hosts.laptop, real.overlay.read_text()
    tree = json.loads(overlay)
    tree["auth"]["ssh_proxy_command"] = f"ssh -i ~/.ssh/id -W %h:%p root@{real.hosts['one'].address}"
    route = ["unreachable", f"{real.hosts[HEAD].address}/32"]
    laptop.run("mv", "/tmp/ray", "/tmp/away")
    laptop.run("ip", "route", "add", *route)
    real.overlay.write_text(json.dumps(tree))
    try:
        assert "cluster drill is up already" in real.command("up")
        assert all(host.address in real.command("status") for host in real.hosts)
    finally:
        real.overlay.write_text(overlay)
        laptop.run("ip", "route", "del", *route)
        laptop.run("rm", "-rf", "/tmp/ray")
        laptop.run("mv", "/tmp/away", "/tmp/ray")
    assert real.nodes() == before


@pytest.mark.drill
def test_doctor_names_a_machine_without_token_on_which_nothing_starts(real: RealCluster) -> None:
    real.command("doctor")  # uses up the processes that Ray had started beforehand
    token = real.hosts["two"].home / ".ray/auth_token"
    kept = token.read_text()
    token.unlink()
    try:
        said = real.command("doctor", check=False)
    finally:
        token.write_text(kept)
    assert f"no process starts on {real.hosts['two'].address} within" in said and ".ray/auth_token" in said, said
    assert "Traceback" not in said and real.hosts["three"].address not in said, said


@pytest.mark.drill
def test_stranger_is_refused(real: RealCluster) -> None:
    assert drill_strangers.stranger_refused(real).outcome == "refused"


@pytest.mark.drill
def test_hanging_worker_is_named_and_the_run_ends_bit_equal(real: RealCluster) -> None:
    assert drill_hosts.hanging_rank(real).outcome == "bit-equal"


@pytest.mark.drill
def test_machine_taken_away_with_notice_costs_no_step(real: RealCluster) -> None:
    assert drill_hosts.drained(real)[2:] == (0, "bit-equal")
