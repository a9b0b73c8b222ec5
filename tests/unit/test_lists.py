"""List files as people write them: marks, ends of lines, slashes, absolute paths; and those that are no text."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zfdist.data.sources.inputs import Input, SourceError
from zfdist.data.sources.lists import listed_names, resolved, splits_by_lists

NAMES = ["a/1.wav", "ä/ß 2.wav", "c.wav"]
INPUTS = [Input(name, 1, "") for name in NAMES]


@given(
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    last=st.booleans(),
    backslashes=st.booleans(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_that_says_its_encoding(
    tmp_path: Path, encoding: str, end: str, last: bool, backslashes: bool
) -> None:
    lines = ["# a comment", "", *NAMES]
    text = end.join(line.replace("/", "\\") if backslashes else line for line in lines) + (end if last else "")
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    lists = dict.fromkeys(["train"], tmp_path / "list.txt")
    assert splits_by_lists(lists, tmp_path, INPUTS)["train"] == INPUTS


def test_big_endian_by_its_mark(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xfe\xff" + "c.wav\r\n".encode("utf-16-be"))
    assert listed_names(tmp_path / "list.txt", "--list-train") == ["c.wav"]


def test_paths_that_mean_a_file_under_the_source(tmp_path: Path) -> None:
    known = {item.name: item for item in INPUTS}
    (tmp_path / "in").mkdir()
    (tmp_path / "alias").symlink_to("in")
    for line in ("a/1.wav", "./a/1.wav", "a/../a/1.wav", r"a\1.wav", f"{tmp_path}/in/a/1.wav", "a//1.wav"):
        assert resolved(line, tmp_path / "in", known) == "a/1.wav", line
    assert resolved(f"{tmp_path}/in/c.wav", tmp_path / "alias", known) == "c.wav"
    for line in ("a/2.wav", "/elsewhere/a/1.wav", "../c.wav", "A/1.WAV", ""):
        assert resolved(line, tmp_path / "in", known) == line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("c.wav\n".encode("utf-16-le"), "holds NUL characters; save it as UTF-8 text"),
        ("ä.wav\n".encode("latin-1"), "is no utf-8 text; save it as UTF-8"),
        (b"\xff\xfea", "is no utf-16 text; save it as UTF-8"),
        (b"c.wav\n./c.wav\n", "'c.wav' is already in the list of train"),
        (b"c.wav\nC:\\data\\d.wav\n", r"1 of 2 files are not audio files under .*, the first is 'C:\\\\data\\\\d.wav'"),
    ],
)
def test_lists_that_cannot_be_used_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(SourceError, match=f"--list-train {tmp_path}/list.txt: .*{message}"):
        splits_by_lists({"train": tmp_path / "list.txt"}, tmp_path, INPUTS)
    with pytest.raises(SourceError, match=r"--list-test .*none.txt: unreadable \(No such file"):
        splits_by_lists({"test": tmp_path / "none.txt"}, tmp_path, INPUTS)
