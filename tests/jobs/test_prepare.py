"""`zfdist prepare`: splits, lists, sameness of bytes, resuming after a kill, bad files, and what it says."""

import contextlib
import hashlib
import io
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from folders import lists, prepare_to, tree, write

from jobs import prepare as prepare_job
from zfdist.data.manifest import StoreManifest
from zfdist.data.sources.inputs import SourceError, split_key, split_of_key
from zfdist.data.sources.speech import SAMPLE, Options, prepare
from zfdist.data.store import Store, StoreError
from zfdist.data.store_writer import writing

ROOT = Path(__file__).parents[2]
FIRST = "speaker0/00.flac"
SAMPLE_SHA256 = "796b7de0a59973aaa816dfb66f17700f9af231e4f699491e8e1f9764580d13f3"
"""Of the sha256 of every file of the sample's store: the same bytes with the pyarrow of constraints.txt."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Forty short recordings in four folders."""
    for i in range(40):
        write(tmp_path / "in" / f"speaker{i % 4}" / f"{i:02d}.{'wav' if i % 3 else 'flac'}", 500 + 37 * i, i)
    (tmp_path / "in" / "COPYRIGHT.txt").write_text("public domain")
    write(tmp_path / "in" / ".hidden" / "x.wav", 500, 99)
    return tmp_path / "in"


def job(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in this process: its imports take longer than what it does here."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = prepare_job.main([str(argument) for argument in arguments])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), error.getvalue())


def test_the_sample_that_ships_becomes_a_store(tmp_path: Path) -> None:
    first = job("speech", "--source", SAMPLE, "--out", tmp_path / "out")
    assert first.returncode == 0, first.stderr
    store = Store.open(tmp_path / "out", "always")
    assert sum(len(store.lengths(split)) for split in store.splits) == 186
    samples = {split: int(store.lengths(split).sum()) for split in store.splits}
    assert samples == {"train": 5_227_382, "valid": 562_778, "test": 735_548}
    assert "Allison Smith" in store.manifest.licence and store.fingerprint in first.stdout
    # The data of every published result hang on this: a change of it is a change of the data.
    assert store.fingerprint == "a5a259f103267d93c7f3153b3519bf10879381bee0cfc74456416ed113535659"
    content = "".join(hashlib.sha256(data).hexdigest() for data in tree(tmp_path / "out").values())
    assert hashlib.sha256(content.encode()).hexdigest() == SAMPLE_SHA256
    lines = [line.split() for line in first.stdout.splitlines()]
    assert ["split", "recordings", "minutes", "samples", "mean", "std", "shards"] in lines
    assert ["train", "146", "5.45", "5,227,382", "-1.659", "4570.17", "1"] in lines
    before = tree(tmp_path / "out")
    again = job("speech", "--source", SAMPLE, "--out", tmp_path / "out")
    assert again.returncode == 0 and "nothing to do" in again.stdout and tree(tmp_path / "out") == before


def split_of(name: str, split_by: str, valid_percent: float, test_percent: float) -> str:
    return split_of_key(split_key(name, split_by), valid_percent, test_percent)


def test_the_split_rule_is_fixed_and_keeps_folders_together(source: Path, tmp_path: Path) -> None:
    names = [f"speaker/{i}.wav" for i in range(1000)]
    splits = [split_of(name, "file", 10, 10) for name in names]
    assert [i for i in range(25) if splits[i] == "test"] == [9, 15, 20]
    assert [i for i in range(25) if splits[i] == "valid"] == [10]
    assert 70 < splits.count("valid") < 130 and 70 < splits.count("test") < 130
    assert {split_of(name, "folder", 10, 10) for name in names} == {split_of("speaker/x", "folder", 10, 10)}
    store = Store.open(prepare_to(source, tmp_path / "out", split_by="folder", valid_percent=30, test_percent=30))
    owners = [{name.split("/")[0] for name in store.names(split)} for split in store.splits]
    assert sum(len(owner) for owner in owners) == 4 == len(set().union(*owners))


@pytest.mark.parametrize(
    ("split_by", "key"),
    [
        ("file", "clean/19/198/19-198-0001.flac"),
        ("folder", "clean/19/198"),
        ("1", "clean"),
        ("2", "clean/19"),
        ("9", "clean/19/198/19-198-0001.flac"),
        ("^[^/]+/([^/]+)/", "19"),
        (r"(\d+)-\d+-\d+\.flac$", "19"),
    ],
)
def test_what_decides_a_split(split_by: str, key: str) -> None:
    assert split_key("clean/19/198/19-198-0001.flac", split_by) == key


def test_a_voice_with_subfolders_stays_together_and_is_listed(tmp_path: Path) -> None:
    """Speakers with chapters below, as in LibriSpeech: by folder they leak, which is said; by depth they do not."""
    tree = tmp_path / "tree"
    for i in range(24):
        write(tree / f"speaker{i // 3}" / f"chapter{i % 3}" / "a.wav", 500, i)
    flags = ("--valid-percent", "30", "--test-percent", "30")
    leaky = job("speech", "--source", tree, "--out", tmp_path / "leaky", "--split-by", "folder", *flags)
    assert leaky.returncode == 0, leaky.stderr
    assert "of 8 top folders are in several splits through their subfolders" in leaky.stdout + leaky.stderr
    whole = job("speech", "--source", tree, "--out", tmp_path / "whole", "--split-by", "1", *flags)
    assert whole.returncode == 0, whole.stderr
    store = Store.open(tmp_path / "whole")
    owners = {split: {name.split("/")[0] for name in store.names(split)} for split in store.splits}
    assert sum(map(len, owners.values())) == 8 == len(set().union(*owners.values()))
    for split, found in owners.items():
        assert f"{split}: {len(found)} folder{'s' * (len(found) != 1)}: {', '.join(sorted(found))}" in whole.stdout
    by_name = job("speech", "--source", tree, "--out", tmp_path / "none", "--split-by", "(nobody)")
    assert by_name.returncode != 0 and "finds nothing in 'speaker0/" in by_name.stderr
    few = job("speech", "--source", tree / "speaker0", "--out", tmp_path / "few", "--split-by", "folder")
    assert few.returncode != 0 and "3 folders are too few for the rule (--split-by folder" in few.stderr
    assert not re.search(r"\d+ files are too few", few.stderr)


def test_contents_names_statistics_and_licence(source: Path, tmp_path: Path) -> None:
    store = Store.open(prepare_to(source, tmp_path / "out"))
    everything = []
    for split in store.splits:
        names = store.names(split)
        assert names == sorted(names) and all(split_of(name, "file", 10, 10) == split for name in names)
        for i, (name, length) in enumerate(zip(names, store.lengths(split), strict=True)):
            expected, _ = soundfile.read(source / name, dtype="int16")
            assert np.array_equal(store.gather(split, np.array([i]), np.array([0]), int(length))[0], expected)
            everything += [expected] if split == "train" else []
    train = np.concatenate(everything).astype(np.float64)
    assert store.mean == pytest.approx(train.mean(), rel=1e-13) and store.std == pytest.approx(train.std(), rel=1e-13)
    assert store.manifest.licence == "public domain" and store.manifest.source["files"] == 40


def test_the_same_input_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    source.rename(moved)
    a, b = prepare_to(moved, tmp_path / "a"), prepare_to(moved, tmp_path / "b")
    assert tree(a) == tree(b)
    for path in moved.rglob("*.wav"):
        os.utime(path)
    assert prepare(Options(source=moved), a).was_there


def test_shards_are_cut_by_size(source: Path, tmp_path: Path) -> None:
    for i in range(5):
        write(source / f"long{i}.wav", 400_000, i)
    files = sorted(p.relative_to(source).as_posix() for p in source.rglob("*.wav") if ".hidden" not in p.parts)
    split = lists(tmp_path, train=files[:-2], valid=files[-2:-1], test=files[-1:])
    store = Store.open(prepare_to(source, tmp_path / "out", lists=split, shard_mb=1))
    shards = store.manifest.splits["train"].shards
    assert len(shards) == 5 and all(shard.bytes < 1.1 * 2**20 for shard in shards)


def test_bad_files_are_reported_together(source: Path, tmp_path: Path) -> None:
    (source / "empty.wav").write_bytes(b"")
    (source / "text.mp3").write_bytes(b"not a sound")
    cut = write(source / "speaker0" / "cut.wav", 1000, 7)
    cut.write_bytes(cut.read_bytes()[:-100])
    (source / "gone.flac").symlink_to("nowhere.flac")
    out = job("speech", "--source", source, "--out", tmp_path / "out", "--max-bad", "3")
    assert out.returncode == 1 and "4 files cannot be used, --max-bad allows 3" in out.stderr
    for line in (
        "empty.wav: empty file",
        "text.mp3: neither WAV",
        "speaker0/cut.wav: cut short: 1,900 of 2,000 bytes",
        "gone.flac: unreadable: No such file",
    ):
        assert line in out.stderr
    assert "Traceback" not in out.stderr and not (tmp_path / "out" / "manifest.json").exists()
    out = job("speech", "--source", source, "--out", tmp_path / "out", "--max-bad", "4")
    assert out.returncode == 0 and "4 files left out:" in out.stdout
    assert set(StoreManifest.read(tmp_path / "out").source["left_out"]) == {
        "empty.wav",
        "text.mp3",
        "speaker0/cut.wav",
        "gone.flac",
    }
    assert "4 files left out:" in job("speech", "--source", source, "--out", tmp_path / "out").stdout


def test_recordings_too_short_for_two_frames_are_counted(source: Path, tmp_path: Path) -> None:
    for i, samples in enumerate((1, 399, 400)):
        write(source / f"short{i}.wav", samples, i)
    assert prepare(Options(source=source), tmp_path / "out").short == 2


def test_other_input_to_a_finished_store_is_refused(source: Path, tmp_path: Path) -> None:
    prepare_to(source, tmp_path / "out")
    assert prepare(Options(source=source, max_bad=9, licence="mine"), tmp_path / "out").was_there
    with pytest.raises(StoreError, match=r"other input or options \(different: split\); choose another --out"):
        prepare_to(source, tmp_path / "out", valid_percent=20)
    write(source / "speaker1" / "01.wav", 537, 1234)  # the same size, other sound
    with pytest.raises(StoreError, match=r"different: inputs_sha256"):
        prepare_to(source, tmp_path / "out")


def test_list_files(source: Path, tmp_path: Path) -> None:
    chosen = {
        "train": ["speaker0/00.flac", "speaker1/01.wav"],
        "valid": ["speaker2/02.wav"],
        "test": ["speaker3/03.flac"],
    }
    flags = [f for split, path in lists(tmp_path, **chosen).items() for f in (f"--list-{split}", path)]
    assert job("speech", "--source", source, "--out", tmp_path / "out", *flags).returncode == 0
    store = Store.open(tmp_path / "out")
    assert {split: store.names(split) for split in store.splits} == chosen
    assert store.manifest.source["split"]["rule"] == "list files"
    moved = chosen | {"train": chosen["train"][:1], "test": chosen["test"] + chosen["train"][1:]}
    with pytest.raises(StoreError, match=r"different: split\)"):
        prepare_to(source, tmp_path / "out", lists=lists(tmp_path, **moved))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            {"train": ["speaker0/00.flac"], "valid": ["a.wav"], "test": []},
            r"--list-valid .*1 of 1 .* first is 'a\.wav'",
        ),
        (
            {"train": ["speaker0/00.flac"] * 2, "valid": [], "test": []},
            r"'speaker0/00\.flac' is already in the list of train",
        ),
        (
            {"train": ["speaker0/00.flac"], "valid": ["speaker2/02.wav"], "test": []},
            r"'test' is empty: .*names no file",
        ),
    ],
)
def test_bad_list_files(source: Path, tmp_path: Path, split: dict[str, list[str]], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        prepare_to(source, tmp_path / "out", lists=lists(tmp_path, **split))


def test_what_is_no_input_says_so(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        prepare_to(tmp_path / "none", tmp_path / "out")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("hello")
    with pytest.raises(SourceError, match="no WAV, FLAC, NIST SPHERE or MP3 file in it"):
        prepare_to(tmp_path / "notes", tmp_path / "out")
    with pytest.raises(StoreError, match="exists and is not an unfinished data set"):
        prepare_to(source, tmp_path / "notes")
    write(tmp_path / "few" / "a.wav", 500, 1)
    with pytest.raises(SourceError, match=r"split '\w+' would be empty: 1 file is too few .* raise the percentages"):
        prepare_to(tmp_path / "few", tmp_path / "out")
    write(tmp_path / "few" / "b.wav", 500, 1).rename(tmp_path / "few" / os.fsdecode(b"\xff.wav"))
    with pytest.raises(SourceError, match="is not valid UTF-8; rename it"):
        prepare_to(tmp_path / "few", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_at_once_are_kept_apart(source: Path, tmp_path: Path) -> None:
    with (
        writing(tmp_path / "out"),
        pytest.raises(StoreError, match="another process is writing it"),
    ):
        prepare_to(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--list-train", "x.txt"], "error: --list-valid is missing: give all three lists or none"),
        (
            ["--valid-percent", "60", "--test-percent", "40"],
            "error: --valid-percent 60 and --test-percent 40",
        ),
        (["--max-bad", "-1"], "error: --max-bad -1: must be 0 to"),
        (["--sample-rate", "10"], "error: --sample-rate 10: must be 1000 to 768000"),
        (["--splitby", "file"], "--split-by"),
        (["--split-by", "speaker"], "--split-by speaker: must be file, folder, a number of leading folders, or"),
        (["--split-by", "0"], "--split-by 0: must be file, folder, a number"),
        (["--split-by", "(["], "--split-by ([: must be file, folder"),
    ],
)
def test_bad_options(tmp_path: Path, flags: list[str], message: str) -> None:
    out = job("speech", "--source", tmp_path, "--out", tmp_path / "out", *flags)
    assert out.returncode != 0 and message in out.stderr and "Traceback" not in out.stderr


def test_the_flags_are_a_frozen_list() -> None:
    text = job("speech", "--help").stdout
    assert " ".join(sorted(set(re.findall(r"(?m)^\W*--([a-z][\w-]+)", text)))) == (
        "address append licence list-test list-train list-valid max-bad out sample-rate shard-mb source split-by "
        "test-percent valid-percent workers"
    )
