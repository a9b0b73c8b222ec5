"""A few of the drills, on a cluster of a head and three workers; `make drills` runs all of them."""

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


def test_stranger_is_refused(real: RealCluster) -> None:
    assert drill_strangers.stranger_refused(real).outcome == "refused"


def test_hanging_worker_is_named_and_the_run_ends_bit_equal(real: RealCluster) -> None:
    assert drill_hosts.hanging_rank(real).outcome == "bit-equal"


def test_machine_taken_away_with_notice_costs_no_step(real: RealCluster) -> None:
    assert drill_hosts.drained(real)[2:] == (0, "bit-equal")
