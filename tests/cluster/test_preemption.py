"""The clouds' notices, asked over real HTTP."""

import time

import clouds
import pytest

from cluster.provision.preemption import NOTICES, fetcher, main


@pytest.mark.parametrize(
    ("cloud", "what", "within_s"),
    [
        ("aws", "EC2 spot interruption (terminate)", 90),
        ("gcp", "Compute Engine preemption", 30),
        ("azure", "Azure scheduled event (Preempt)", 90),
    ],
)
def test_each_clouds_notice_is_read_with_its_deadline(cloud: str, what: str, within_s: float) -> None:
    with clouds.served(within_s=90) as endpoint:
        notice = NOTICES[cloud](fetcher(endpoint), time.time())
    assert notice is not None and notice.what == what
    assert notice.at_s - time.time() == pytest.approx(within_s, abs=5)


@pytest.mark.parametrize("cloud", sorted(NOTICES))
def test_no_notice_while_the_machine_stays(cloud: str) -> None:
    with clouds.served(within_s=None) as endpoint:
        assert NOTICES[cloud](fetcher(endpoint), time.time()) is None


def test_outside_of_a_cluster_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cloud", "aws", "--address", "nonsense"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no Ray cluster at 'nonsense': ") and error.count("\n") == 1
