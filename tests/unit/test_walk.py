"""The walk over a folder: links, loops, what cannot be read, what is left out, and that order does not matter."""

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zfdist.data.sources.inputs import SourceError, kind_of_name, list_inputs, remarks, walk

AGAIN = "link to a folder that is read already or holds the source"


def write(path: Path, content: bytes = b"fLaC") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_files_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    names = ["b/1.wav", "b.wav", "B.wav", "a/z/1.wav", "é.wav", "a.wav", "b-1.wav"]
    for name in names:
        write(tmp_path / "in" / name)
    found = walk(tmp_path / "in")
    assert list(found.files) == sorted(names, key=str.encode) and not found.left_out and found.links == 0
    assert all(path == tmp_path / "in" / name for name, path in found.files.items())


def test_links_to_folders_are_followed_once_each_and_without_loops(tmp_path: Path) -> None:
    source = tmp_path / "all"
    write(source / "mine" / "a.wav")
    write(tmp_path / "disk2" / "b.wav")
    write(tmp_path / "disk3" / "c.wav")
    (tmp_path / "disk2" / "more").symlink_to(tmp_path / "disk3")  # a link in a folder that a link leads to
    (tmp_path / "disk3" / "back").symlink_to(tmp_path / "disk2")  # a loop outside
    (source / "libri").symlink_to("../disk2")
    (source / "twice").symlink_to("../disk2")
    (source / "aaa").symlink_to("mine")  # sorts before the folder itself, which must win
    (source / "mine" / "loop").symlink_to(".")
    (source / "mine" / "up").symlink_to("../..")  # holds the source
    found = walk(source)
    assert list(found.files) == ["libri/b.wav", "libri/more/c.wav", "mine/a.wav"]
    assert found.links == 2 and found.left_out == {AGAIN: 5}
    (tmp_path / "alias").symlink_to(source)
    assert list(walk(tmp_path / "alias").files) == list(found.files)


def test_links_to_files_and_links_to_nowhere(tmp_path: Path) -> None:
    write(tmp_path / "outside.wav")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").symlink_to("../outside.wav")
    (tmp_path / "in" / "gone").symlink_to("../gone")
    found = walk(tmp_path / "in")
    assert list(found.files) == ["a.wav", "gone"] and found.broken == {"gone"}
    assert [item.name for item in list_inputs(tmp_path / "in").inputs] == ["a.wav", "gone"]
    (tmp_path / "in" / "self").symlink_to("self")
    with pytest.raises(SourceError, match=r"cannot read what is in it: 'self' \(Too many levels of symbolic links\)"):
        walk(tmp_path / "in")


def test_what_is_no_input_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.wav", ".DS_Store", "._a.wav", ".git/x.wav", "__MACOSX/a.wav", "a.wav:Zone.Identifier"):
        write(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.wav")  # opening it would wait for ever
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.wav")
        found = walk(tmp_path)
    assert list(found.files) == ["a.wav"] and found.left_out == {"hidden": 5, "socket, pipe or device": 2}
    for name in ("b.TXT", "c.txt", "noname", "d.m4a", "e.tar.gz"):
        write(tmp_path / name, b"not a sound")
    listing = list_inputs(tmp_path)
    assert listing.remarks({"in no list": 3}) == (
        "left out: 5 hidden, 3 in no list, 2 of .txt, 2 socket, pipe or device, 1 of .gz (packed; unpack them first), "
        "1 of .m4a (not read; convert them, e.g. with ffmpeg -i FILE FILE.wav), 1 of no known suffix",
    )


def test_kinds_of_names_are_few_and_plain() -> None:
    assert [kind_of_name(name) for name in ("a/b.PHN", "x", ".x", "a.\udcff", "a.b c", "a." + "x" * 50)] == [
        "of .phn",
        *["of no known suffix"] * 5,
    ]
    said = remarks(2, {f"of .{i:02d}": 100 - i for i in range(30)})
    assert said[0] == "links to folders that were followed: 2"
    assert said[1].endswith("81 of .19, 755 of 10 other kinds") and remarks(0, {}) == ()


@contextmanager
def another_user() -> Iterator[Path]:
    """Be somebody without rights, in a folder that all may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_folders_that_may_not_be_entered_are_named(tmp_path: Path) -> None:
    with another_user() as folder:
        locked = write(folder / "open" / "deep" / "locked" / "b.wav").parent
        locked.chmod(0o700)
        (folder / "link").symlink_to(tmp_path)  # below a folder of root's alone
        write(folder / "open" / "secret").chmod(0o600)
        os.seteuid(54321)
        try:
            with pytest.raises(SourceError, match="cannot read what is in it: 'link' ") as refused:
                walk(folder)
        finally:
            os.seteuid(0)
        said = str(refused.value)
        assert "'open/deep/locked' (Permission denied)" in said and "make it readable or take it out" in said
        locked.chmod(0o755)
        (folder / "link").unlink()
        os.seteuid(54321)
        try:  # a file that cannot be read may be sound whatever it is called: reading it fails and is reported
            assert [item.name for item in list_inputs(folder).inputs] == ["open/deep/locked/b.wav", "open/secret"]
        finally:
            os.seteuid(0)


def test_a_tree_deeper_than_a_path_may_be_long_is_an_error_that_stays_short(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    part = "d" * 200
    opened = [here]
    try:
        for _ in range(25):
            os.mkdir(part, dir_fd=opened[-1])
            opened.append(os.open(part, os.O_RDONLY, dir_fd=opened[-1]))
        with pytest.raises(SourceError, match="File name too long") as refused:
            walk(tmp_path)
        assert len(str(refused.value)) < 1000
    finally:
        for depth in range(25, 0, -1):
            os.rmdir(part, dir_fd=opened[depth - 1])
        for descriptor in opened:
            os.close(descriptor)


def test_deep_trees_are_no_trouble(tmp_path: Path) -> None:
    name = "/".join("d" for _ in range(1500)) + "/a.wav"
    here = tmp_path
    for part in name.split("/")[:-1]:
        here /= part
        here.mkdir()
    try:
        write(here / "a.wav")
        assert list(walk(tmp_path).files) == [name]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # pytest's own tidying up would recurse too deep


def test_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        walk(tmp_path / "none")
    with pytest.raises(SourceError, match="is a file; give the folder that it lies in"):
        walk(write(tmp_path / "a.wav"))
    with pytest.raises(SourceError, match="is a file; unpack it and give that folder"):
        walk(write(tmp_path / "a.tar.gz"))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SourceError, match=r"loop: cannot be read: |loop: no such folder"):
        walk(tmp_path / "loop")
    (tmp_path / "empty").mkdir()
    assert walk(tmp_path / "empty").files == {}
    with pytest.raises(SourceError, match=r"no WAV, FLAC, NIST SPHERE or MP3 file in it$"):
        list_inputs(tmp_path / "empty")
