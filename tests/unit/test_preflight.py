"""Where Ray's files may be, and which limits leave it no room."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import preflight
from cluster.preflight import LONGEST_FOLDER_BYTES, Limits, Place, place, too_tight, trouble_with

MINE = f"zfdist-{os.getuid()}"
FOLDERS = ("/tmp", f"/tmp/{MINE}", f"/var/tmp/{MINE}", f"/dev/shm/{MINE}", "/run/user/1", "/scratch", "/elsewhere")


def test_the_folder_is_rays_own_choice_where_that_will_do() -> None:
    def fine(folder: str) -> None:
        return None

    assert place({}, fine) == Place("/tmp")
    assert place({"TMPDIR": "/scratch"}, fine) == Place("/scratch")
    assert place({"TMPDIR": "/scratch", "RAY_TMPDIR": "/elsewhere"}, fine) == Place("/elsewhere")
    assert place({"TMPDIR": ""}, fine) == Place("/tmp")


@given(
    bad=st.sets(st.sampled_from(FOLDERS)),
    environment=st.dictionaries(
        st.sampled_from(["TMPDIR", "RAY_TMPDIR", "XDG_RUNTIME_DIR"]), st.sampled_from(FOLDERS[4:])
    ),
)
def test_a_folder_that_will_not_do_is_never_taken_and_always_named(bad: set[str], environment: dict[str, str]) -> None:
    first = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp"
    try:
        found = place(environment, lambda folder: "is full" if folder in bad else None)
    except LookupError as error:
        assert f"{first} is full" in str(error) and "set RAY_TMPDIR to a folder" in str(error)
        assert "RAY_TMPDIR" in environment or {f"/tmp/{MINE}", f"/var/tmp/{MINE}", f"/dev/shm/{MINE}"} <= bad
    else:
        assert found.folder not in bad
        assert (found.folder == first) == (found.remark is None)
        assert found.remark is None or f"{first} is full" in found.remark


@given(st.integers(1, 200))
def test_too_long_a_folder_is_one_that_rays_sockets_do_not_fit_in(size: int) -> None:
    folder = "/" + "x" * (size - 1)
    inside = f"{folder}/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
    assert (size > LONGEST_FOLDER_BYTES) == (len(inside) > 107)


def test_folders_that_cannot_hold_rays_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with preflight.tempfile.TemporaryDirectory(dir="/var/tmp", prefix="z") as short:
        file = Path(short) / "file"
        file.touch()
        assert trouble_with(short, room_mib=1) is None
        assert trouble_with(f"{short}/new/one", room_mib=1) is None
        assert os.listdir(f"{short}/ray") == [] and os.path.isdir(f"{short}/new/one/ray")
        for folder, room_mib, why in (
            (str(file), 1, "Not a directory"),
            ("/proc/nowhere", 1, "No such file or directory"),
            (short, 2**30, "of files and sockets ("),
            ("/" + "ü" * 30, 1, "is too long for Ray's sockets (61 bytes)"),
            (".", 1, "is no absolute path"),
        ):
            assert why in (trouble_with(folder, room_mib) or ""), folder
    assert not Path(short).exists()


def test_the_length_is_that_of_the_system() -> None:
    """A path of 107 bytes can be bound, one more cannot."""
    with preflight.tempfile.TemporaryDirectory(dir="/var/tmp") as folder, socket.socket(socket.AF_UNIX) as probe:
        with pytest.raises(OSError, match="too long"):
            probe.bind(os.path.join(folder, "x" * (107 - len(folder))))
        probe.bind(os.path.join(folder, "x" * (106 - len(folder))))


@given(
    processes=st.none() | st.integers(0, 5000), open_files=st.none() | st.integers(0, 10**6), cpus=st.integers(1, 64)
)
def test_limits(processes: int | None, open_files: int | None, cpus: int) -> None:
    why = too_tight(Limits(processes, open_files), cpus)
    if processes is not None and processes < 50:
        assert why is not None and f"{processes} more processes" in why and "ulimit -u" in why
    elif processes is None and open_files is not None and open_files < 100:
        assert why is not None and f"{open_files} files" in why and "ulimit -Hn" in why
    elif processes is None and (open_files is None or open_files >= 4096):
        assert why is None


def test_this_machine_has_room() -> None:
    assert too_tight(preflight.limits(), 2) is None
    assert preflight.room_mib(128, in_shared_memory=False) == preflight.room_mib(128, in_shared_memory=True) + 128
    assert not preflight.has_shared_memory(2**30)


def test_the_last_complaint_in_rays_logs_is_found(tmp_path: Path) -> None:
    assert preflight.last_words(tmp_path, 7) == ""
    logs = tmp_path / "session_2026-01-01_00-00-00_000000_7" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text("[2026 I 7 7] all is well\n[2026-01-01 E 7 7] no  room\n[2026 I 7 7] bye\n")
    (logs / "gcs_server.err").write_bytes(b"\xff\xfe\n")
    assert preflight.last_words(tmp_path, 7) == f" ({logs}/raylet.out: [2026-01-01 E 7 7] no room)"
    assert preflight.last_words(tmp_path, 8) == ""
