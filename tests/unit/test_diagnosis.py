"""The doctor's judgement: a healthy cluster has no finding, and each illness is found with its remedy."""

from typing import Any

import pytest

from cluster.provision.diagnosis import Facts, judge

VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "ray": "2.60.0", "deepspeed": "0.19.8", "code": "aa"}


def node(number: int, **changes: Any) -> Facts:
    healthy = Facts(
        host=f"n{number}", ip=f"10.0.0.{number}", is_head=number == 0, versions=VERSIONS, interface="eth0",
        name_is_loopback=False, cpus=0 if number == 0 else 8, gpus_of_ray=0 if number == 0 else 1,
        gpus_of_torch=0 if number == 0 else 1, gpu_error="", disk_gib=100, shm_mib=4096, has_token=True,
        has_compiler=True, has_headers=True, storage_error="", storage_s=0.1, skew_s=0.0, mib_per_s=900.0,
    )  # fmt: skip
    return healthy._replace(**changes)


def test_a_healthy_cluster_has_no_finding() -> None:
    assert judge([node(0), node(1), node(2)], workers=2) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"versions": VERSIONS | {"torch": "2.12.0"}}, "torch 2.12.0, the head has 2.13.0: run setup-node.sh on it"),
        ({"versions": VERSIONS | {"deepspeed": "none"}}, "deepspeed none, the head has 0.19.8"),
        ({"versions": VERSIONS | {"code": "bb"}}, "code bb, the head has aa"),
        ({"interface": None}, "no network interface carries 10.0.0.2"),
        ({"gpus_of_torch": 0, "gpu_error": "driver too old"}, "Ray offers 1 GPUs, torch can use 0 (driver too old)"),
        ({"disk_gib": 3.0}, "3.0 GiB of disk free, 10 needed"),
        ({"shm_mib": 64.0}, "/dev/shm has 64 MiB free"),
        ({"has_token": False}, "no token in ~/.ray/auth_token"),
        ({"has_compiler": False}, "no gcc and g++"),
        ({"has_headers": False}, "apt-get install python3.11-dev"),
        ({"storage_error": "s3://b: access is denied"}, "storage: s3://b: access is denied"),
        ({"skew_s": -7.0}, "its clock is -7.0 s off the head's"),
    ],
)
def test_each_illness_is_found_on_its_node(changes: dict[str, Any], sentence: str) -> None:
    (finding,) = judge([node(0), node(1), node(2, **changes)], workers=2)
    assert finding.host == "n2" and finding.is_fatal and sentence in finding.sentence


def test_a_name_that_is_loopback_is_only_noted() -> None:
    (finding,) = judge([node(0), node(1, name_is_loopback=True)])
    assert not finding.is_fatal and "resolves to loopback" in finding.sentence


def test_a_machine_of_the_file_that_is_not_in_the_cluster_is_found() -> None:
    facts = [node(0), node(1), node(2)]
    assert judge(facts, listed=["10.0.0.1", "n2"]) == []
    (finding,) = judge(facts, listed=["10.0.0.1", "10.0.0.2", "10.0.0.9"])
    assert finding.host == "10.0.0.9" and finding.is_fatal and "not in the cluster" in finding.sentence


def test_a_package_that_no_node_has_is_found_on_each() -> None:
    nothing = VERSIONS | {"deepspeed": "none"}
    findings = judge([node(0, versions=nothing), node(1, versions=nothing)])
    assert [f.sentence for f in findings] == ["no deepspeed: run ~/zfdist/setup-node.sh on it"] * 2


@pytest.mark.parametrize(("workers", "gpu", "room"), [(3, None, 2), (3, True, 2), (17, False, 16), (None, None, None)])
def test_room_for_what_is_asked(workers: int | None, gpu: bool | None, room: int | None) -> None:
    findings = judge([node(0), node(1), node(2)], workers=workers, gpu=gpu)
    if room is None:
        assert findings == []
    else:
        assert f"room for {room} workers, {workers} asked" in findings[0].sentence


def test_a_head_alone_has_no_room() -> None:
    (finding,) = judge([node(0)])
    assert finding.host == "cluster" and "room for 0 workers, 1 asked" in finding.sentence
