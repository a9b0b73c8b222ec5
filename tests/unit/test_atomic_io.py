"""Files that are there whole or not at all: modes, failures, left-overs, folders that no one can sync."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zfdist import atomic_io


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_umask_decides_who_may_read(umask: int, tmp_path: Path) -> None:
    atomic_io.write(tmp_path / "text", "x")
    atomic_io.write_json(tmp_path / "tree", {"x": 1})
    with atomic_io.replacing(tmp_path / "weights") as fresh:
        save_file({"w": torch.zeros(2)}, str(fresh))  # writes for its owner alone, whatever the umask
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("text", "tree", "weights"), 0o666 & ~umask)


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    atomic_io.write(path, "before")
    with pytest.raises(RuntimeError, match="no more"), atomic_io.replacing(path) as fresh:
        fresh.write_text("half")
        raise RuntimeError("no more")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_that_was_meant(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        atomic_io.write(tmp_path / "none" / "x", "")
    assert caught.value.filename == str(tmp_path / "none" / "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        atomic_io.write(tmp_path / "folder", "")
    assert caught.value.filename == str(tmp_path / "folder") and len(list(tmp_path.iterdir())) == 1


def test_what_killed_writers_left_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    old, fresh, other = (tmp_path / name for name in (".x.1.tmp", ".x.2.tmp", ".y.1.tmp"))
    for path in (old, fresh, other):
        path.write_text("torn")
    for path in (old, other):
        os.utime(path, (0, 0))
    atomic_io.write(tmp_path / "x", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".x.2.tmp", ".y.1.tmp", "x"]
    atomic_io.remove_left(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_file_systems_that_cannot_sync_folders_are_passed_over(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def of_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    atomic_io.write(tmp_path / "x", "whole")
    assert (tmp_path / "x").read_text() == "whole"


def test_a_disk_that_fails_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output error"):
        atomic_io.write(tmp_path / "x", "whole")
    assert not list(tmp_path.iterdir())


def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("before")
    for name, target in (("link", "folder/x"), ("dangling", "folder/y"), ("null", "/dev/null")):
        (tmp_path / name).symlink_to(target)
        atomic_io.write(tmp_path / name, name)
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / "folder/x").read_text() == "link" and (tmp_path / "folder/y").read_text() == "dangling"
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    atomic_io.write(tmp_path / "pipe", "through")
    assert os.read(reader, 99) == b"through" and (tmp_path / "pipe").is_fifo()
    os.close(reader)
