"""`zfdist prepare` on sound as people have it: what it reads, what it leaves out, and that it says so."""

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from folders import lists, tree, write
from raw import prepared, refusal, write_sphere

from zfdist.data.store import Store

SINE = np.sin(np.arange(4000) * 0.05)
TONE = (3000 * SINE).astype("<i2")
SPLIT = ("--valid-percent", 30, "--test-percent", 30)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve short recordings, enough for three splits."""
    for i in range(12):
        write(tmp_path / "in" / f"{i:02d}.wav", 500 + i, i)
    return tmp_path / "in"


def recordings(out: Path) -> int:
    store = Store.open(out)
    return sum(len(store.names(split)) for split in store.splits)


def test_links_to_folders_and_what_is_left_out_are_told(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A corpus of links, with transcripts, other sound and what other systems leave behind."""
    for i in range(12):
        write(tmp_path / "disk2" / f"l{i:02d}.wav", 500, i)
    (source / "libri").symlink_to("../disk2")
    for name in ("a.txt", "b.TXT", ".DS_Store", "c.m4a", "d"):
        (source / name).write_bytes(b"not a sound")
    prepared("speech", "--source", source, "--out", tmp_path / "out", *SPLIT)
    said = capsys.readouterr().out
    assert recordings(tmp_path / "out") == 24 and "links to folders that were followed: 1\n" in said
    assert (
        "left out: 2 of .txt, 1 hidden, 1 of .m4a (not read; convert them, e.g. with ffmpeg -i FILE FILE.wav), "
        "1 of no known suffix\n"
    ) in said
    before = tree(tmp_path / "out")
    prepared("speech", "--source", source, "--out", tmp_path / "out", *SPLIT)
    assert "left out: 2 of .txt" in capsys.readouterr().out and tree(tmp_path / "out") == before


def test_files_in_no_list_are_counted(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = lists(tmp_path, train=["00.wav", "01.wav"], valid=["02.wav"], test=["03.wav"])
    paths["train"].write_bytes(b"\xef\xbb\xbf" + paths["train"].read_bytes().replace(b"\n", b"\r\n"))
    flags = [word for split, path in paths.items() for word in (f"--list-{split}", path)]
    prepared("speech", "--source", source, "--out", tmp_path / "out", *flags)
    assert "left out: 8 in no list" in capsys.readouterr().out and recordings(tmp_path / "out") == 4


def test_doubtful_files_are_read_and_named_again_by_a_later_run(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    streamed = bytearray((source / "00.wav").read_bytes())
    at = streamed.index(b"data") + 4
    streamed[at : at + 4] = struct.pack("<I", 0x7FFFF000)
    (source / "00.wav").write_bytes(streamed)
    soundfile.write(source / "01.wav", 1.1 * SINE, 16_000, subtype="FLOAT")
    for _ in range(2):
        prepared("speech", "--source", source, "--out", tmp_path / "out", *SPLIT)
        said = capsys.readouterr().out
        assert "2 files were read of which this should be known:" in said
        assert "  00.wav: its header does not tell its length; read to the end\n" in said
        assert "% of its float values are beyond full scale, up to 1.1: clipped\n" in said
    assert recordings(tmp_path / "out") == 12


def test_files_that_make_no_sense_are_bad(source: Path, tmp_path: Path) -> None:
    soundfile.write(source / "int.wav", 20_000 * SINE, 16_000, subtype="FLOAT")
    fast = bytearray((source / "00.wav").read_bytes())
    fast[24:28] = struct.pack("<I", 2_147_483_647)
    (source / "fast.wav").write_bytes(fast)
    said = refusal("speech", "--source", source, "--out", tmp_path / "out", *SPLIT)
    assert "2 files cannot be used, --max-bad allows 0" in said
    assert "int.wav: float values up to 20,000, " in said and "fast.wav: a sample rate of 2,147,483,647 Hz" in said


@pytest.mark.parametrize("clicks", [0, 1])
def test_silence_is_refused_or_said(tmp_path: Path, clicks: int, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(12):
        sound = np.zeros(4000, np.int16)
        sound[:clicks] = 1
        (tmp_path / "in").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "in" / f"{i:02d}.wav", sound, 16_000)
    arguments = ("speech", "--source", tmp_path / "in", "--out", tmp_path / "out", *SPLIT)
    if clicks:
        prepared(*arguments)
        assert "warning: train is almost silent: its std of 0.0158 is below 1, " in capsys.readouterr().out
    else:
        assert "all samples of the training split are equal: no standard deviation" in refusal(*arguments)


def timit(root: Path, part: str, speakers: list[str]) -> None:
    for speaker in speakers:
        for sentence in ("SA1", "SI1027"):
            write_sphere(root / part / "DR1" / speaker / f"{sentence}.WAV", TONE)


def test_timit_whose_test_is_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timit(tmp_path / "timit", "TRAIN", ["FCJF0", "MDAB0", "FAKS0"])
    timit(tmp_path / "disk2", "TEST", ["FELC0"])
    (tmp_path / "timit" / "TEST").symlink_to("../disk2/TEST")
    arguments = ("timit", "--source", tmp_path / "timit", "--out", tmp_path / "out")
    prepared(*arguments)
    assert "links to folders that were followed: 1" in capsys.readouterr().out and recordings(tmp_path / "out") == 8
    (tmp_path / "disk2").rename(tmp_path / "unmounted")
    assert "'TEST' is a link that leads nowhere; mend or remove it" in refusal(*arguments)


def test_timit_as_it_is_handed_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With RIFF twins, transcripts and the marks of other systems; and a recording that is none of TIMIT's."""
    timit(tmp_path / "data", "TRAIN", ["FCJF0", "MDAB0"])
    timit(tmp_path / "data", "TEST", ["FELC0"])
    for path in sorted((tmp_path / "data").rglob("*.WAV")):
        soundfile.write(f"{path}.wav", TONE, 16_000)
        path.with_suffix(".PHN").write_text("0 4000 h#\n")
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
        Path(f"{path}:Zone.Identifier").write_bytes(b"[ZoneTransfer]\r\nZoneId=3\r\n")
    write(tmp_path / "data" / "README_SOUND.wav", 500, 1)
    prepared("timit", "--source", tmp_path, "--out", tmp_path / "out", "--no-sa")
    said = capsys.readouterr().out
    assert "6 RIFF twins of SPHERE files passed over" in said and recordings(tmp_path / "out") == 3
    assert (
        "left out: 12 hidden, 6 of .phn, 3 sentences SA1 and SA2, "
        "1 sound files at no path like TRAIN/DR1/FCJF0/SA1.WAV\n"
    ) in said


def test_blizzard_rows_tell_of_doubtful_files_and_those_in_no_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        write(tmp_path / "in" / f"{i}.wav", 40_000, i)
    soundfile.write(tmp_path / "in" / "1.wav", 1.1 * np.tile(SINE, 10), 16_000, subtype="FLOAT")
    (tmp_path / "order.txt").write_bytes(b"\xff\xfe" + "0.wav\r\n.\\1.wav\r\n".encode("utf-16-le"))
    flags = ("--order-list", tmp_path / "order.txt", "--streams", 1, "--valid-row", 5, "--test-row", 7, "--end-row", 9)
    prepared("blizzard", "--split", "rows", "--source", tmp_path / "in", "--out", tmp_path / "out", *flags)
    said = capsys.readouterr().out
    assert "left out: 1 not in the order list" in said and "  1.wav: 2" in said
