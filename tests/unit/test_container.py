"""What a container allows, from the texts of its control groups as version 1 and 2 have them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfdist import container

BOTH = "cpu,cpuacct"
NOISE = st.sampled_from(["", "max", "-1", "max 100000", "0 0", "nonsense", "\0", "1.5", "-1 100000"])


def root_of(folder: Path, groups: str, files: Mapping[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{n}": t for n, t in files.items()}}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "350000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {}, 64),
        ("0::/system.slice/job.scope\n", {"system.slice/cpu.max": "400000 100000\n"}, 4),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "800000 100000\n"}, 4),
        ("1:name=systemd:/\n0::/\n", {"unified/cpu.max": "300000 100000\n"}, 3),
        ("4:cpu,cpuacct:/docker/0\n", {f"{BOTH}/cpu.cfs_quota_us": "250000", f"{BOTH}/cpu.cfs_period_us": "50000"}, 5),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("4:pids:/\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
)  # fmt: skip
def test_a_quota_counts(groups: str, files: dict[str, str], cpus: int, tmp_path: Path) -> None:
    assert container.cpus(root_of(tmp_path, groups, files)) == cpus


@given(quota_us=st.integers(1000, 10**8), period_us=st.integers(1000, 10**6), outer=NOISE, groups=NOISE)
def test_never_more_than_the_quota_or_the_affinity_and_never_none(
    quota_us: int, period_us: int, outer: str, groups: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = {"cpu.max": outer, "a/cpu.max": f"{quota_us} {period_us}\n"}
    root = root_of(tmp_path_factory.mktemp("root"), f"0::/a\n{groups}\n", files)
    assert container.cpus(root) == max(1, min(len(os.sched_getaffinity(0)), quota_us // period_us))


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/\n", {"pids.max": "512\n", "pids.current": "500\n"}, 12),
        ("0::/a\n", {"a/pids.max": "max\n", "a/pids.current": "7\n"}, None),
        ("3:pids:/x\n", {"pids/x/pids.max": "10\n", "pids/x/pids.current": "30\n"}, 0),
        ("", {}, None),
    ],
)
def test_processes_left(groups: str, files: dict[str, str], left: int | None, tmp_path: Path) -> None:
    assert container.processes_left(root_of(tmp_path, groups, files)) == left


def test_a_user_without_a_home_has_a_folder_that_nobody_else_owns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    monkeypatch.setattr(container.tempfile, "tempdir", str(tmp_path))
    ours = tmp_path / f"zfdist-{os.getuid()}"
    found = container.user_home.__wrapped__()
    assert found == ours and found.stat().st_mode & 0o777 == 0o700
    (tmp_path / "zfdist-54321").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    other = container.user_home.__wrapped__()
    assert other.parent == tmp_path and other not in (ours, tmp_path / "zfdist-54321") and other.is_dir()


def test_caches_go_where_this_user_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(container, "user_home", lambda: tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert container.lend_home() is None
    assert container.cache_home() == tmp_path / ".cache"
    assert container.at_home(Path("~/.cache/zfdist")) == tmp_path / ".cache/zfdist"
    assert container.at_home(Path("~/x")) == tmp_path / "x" and container.at_home(Path("/x")) == Path("/x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert container.at_home(Path("~/.cache/zfdist")) == tmp_path / "caches/zfdist"

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(container, "user_home", lambda: tmp_path / "file")  # no folder, so nothing can be made there
    ours = tmp_path / "tmp" / f"zfdist-{os.getuid()}"
    assert container.cache_home() == ours and container.at_home(Path("~/.cache/a")) == ours / "a"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # which is put back after this test
    assert str(ours) in (container.lend_home() or "") and os.environ["XDG_CACHE_HOME"] == str(ours)


def test_affinity_counts_in_a_real_process() -> None:
    code = """
import os
from zfdist import container
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(container.cpus())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_a_quota_counts_in_a_real_control_group() -> None:
    mount = Path("/sys/fs/cgroup")
    group = (mount / "cpu" if (mount / "cpu").is_dir() else mount) / f"zfdist-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("control groups are not ours to make here")
    try:
        if (group / "cpu.cfs_quota_us").exists():
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("150000")
        elif (group / "cpu.max").exists():
            (group / "cpu.max").write_text("150000 100000")
        else:
            pytest.skip("no controller of CPUs here")
        code = f"""
import os
from pathlib import Path
from zfdist import container
Path({str(group / "cgroup.procs")!r}).write_text(str(os.getpid()))
print(container.cpus())
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "1"
    finally:
        group.rmdir()
