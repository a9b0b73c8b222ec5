"""Machines come because a run asks for them, and go when it ends; drill_demand.py has the rest, for `make drills`."""

from collections.abc import Iterator

import drill_demand
import hosts
import pytest
from host_cloud import IDLE_S, CloudCluster, cluster_from_zero

pytestmark = [
    pytest.mark.skipif(hosts.why_not() is not None, reason=str(hosts.why_not())),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[CloudCluster]:
    with cluster_from_zero(["one", "two", "three"]) as made:
        yield made


def test_a_run_from_zero(cluster: CloudCluster) -> None:
    times = drill_demand.from_zero(cluster)
    assert times.most == 1, "it asked for what it needed"
    assert times.zero_s is not None and times.zero_s < IDLE_S + 30, times
