"""One data set by one process, by several, from and to an object store: the same bytes, whatever happens meanwhile."""

import multiprocessing
import os
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import object_store
import pytest
import soundfile
from folders import lists, tree, write
from raw import prepared, refusal, speech
from words_of import some_sentences

from jobs.cli import prepare_progress
from jobs.cli.prepare_progress import line
from jobs.prepare import main
from zfdist.data.output import scratch
from zfdist.data.sources import audio
from zfdist.data.sources import speech as converter
from zfdist.data.sources.places import mirrored
from zfdist.data.sources.workers import Processes, WorkerLost
from zfdist.data.store import Store, StoreError
from zfdist.data.store_writer import writing
from zfdist.object_store import ObjectFolder


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with object_store.server() as port:
        yield port


def sound(folder: Path) -> list[object]:
    """Twelve recordings of several shards, two files that are none, and what lies beside them."""
    for i in range(12):
        write(folder / "in" / f"speaker{i % 3}" / f"{i:02d}.wav", 150_000 + 1000 * i, i)
    (folder / "in" / "speaker0" / "torn.flac").write_bytes(b"fLaC" + bytes(40))
    (folder / "in" / "empty.wav").write_bytes(b"")
    (folder / "in" / "LICENSE").write_text("public domain")
    return ["speech", "--shard-mb", "1", "--max-bad", "2", "--valid-percent", "25", "--test-percent", "25"]


def chapters(folder: Path) -> list[object]:
    """Seven chapters for the row split."""
    whole = np.concatenate(speech())
    (folder / "in").mkdir()
    for i in range(7):
        pcm = whole[i * 70_000 : i * 70_000 + 60_000 + 977 * i]
        soundfile.write(folder / "in" / f"{i}.wav", pcm, 16_000, subtype="PCM_16")
    (folder / "order.txt").write_text("".join(f"{i}.wav\n" for i in (3, 1, 2, 0, 5, 4, 6)))
    flags = "--split rows --streams 4 --group-files 3 --valid-row 20 --test-row 28 --end-row 36 --shard-mb 1"
    return ["blizzard", *flags.split(), "--order-list", folder / "order.txt"]


def digits(folder: Path) -> list[object]:
    (folder / "in").mkdir()
    rng = np.random.default_rng(5)
    for name, count in (("train-images-idx3-ubyte", 40), ("t10k-images-idx3-ubyte", 12)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / "in" / name).write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + pixels.tobytes())
    return ["mnist", "--idx-valid", "10"]


def sentences(folder: Path) -> list[object]:
    (folder / "in" / "pos").mkdir(parents=True)
    for i, sentence in enumerate(some_sentences(120)):
        (folder / "in" / "pos" / f"{i}.txt").write_text(sentence)
    return ["text"]


def stored(uri: str) -> dict[str, bytes]:
    place = ObjectFolder(uri)
    return {name: place.read(name) for name in sorted(place.sizes())}


@pytest.mark.parametrize(
    "raw",
    [sound, chapters, pytest.param(digits, marks=pytest.mark.drill), pytest.param(sentences, marks=pytest.mark.drill)],
)
def test_the_same_bytes_by_three_processes_and_from_and_to_a_store(
    raw: Callable[[Path], list[object]], tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = raw(tmp_path)
    prepared(*words, "--source", tmp_path / "in", "--out", tmp_path / "one")
    said = capsys.readouterr().out
    if raw is sound:
        prepared(*words, "--source", tmp_path / "in", "--out", tmp_path / "three", "--workers", "3")
        lines = [line for line in capsys.readouterr().out.splitlines() if " of sound, " not in line]
        assert lines == [line for line in said.splitlines() if " of sound, " not in line]
        assert tree(tmp_path / "three") == tree(tmp_path / "one")
    place = ObjectFolder(object_store.uri(port, f"{raw.__name__}/in"))
    for name, content in tree(tmp_path / "in").items():
        place.write(name, content)
    out = object_store.uri(port, f"{raw.__name__}/out")
    prepared(*words, "--source", place.uri, "--out", out, "--workers", "2")
    assert stored(out) == tree(tmp_path / "one")
    if raw is sound:
        assert "2 files left out" in said and "torn.flac" in said and "empty.wav: empty file" in said
        prepared(*words, "--source", place.uri, "--out", out)
        assert "was already made from this input" in capsys.readouterr().out
        other = refusal(*words, "--source", place.uri, "--out", out, "--sample-rate", "8000")
        assert "holds a data set made from other input" in other
        assert "is not an unfinished data set" in refusal(*words, "--source", tmp_path / "in", "--out", place.uri)
        assert "bucket/nothing: no such folder" in refusal(
            *words, "--source", object_store.uri(port, "nothing"), "--out", tmp_path / "x"
        )


def killed_at(source: Path, out: Path | str, split: dict[str, Path], shard: int) -> None:
    """Convert by two processes, and kill this one without warning when so many shards are done."""
    begun = converter.convert

    def deadly(*where: object, workers: Processes, **rest: object) -> object:
        def counted(*job: object) -> Iterator[object]:
            for done, result in enumerate(workers(*job), start=1):  # type: ignore[arg-type]
                if done == shard:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield result

        return begun(*where, workers=counted, **rest)  # type: ignore[arg-type]

    converter.convert = deadly  # type: ignore[assignment]
    converter.prepare(converter.Options(source=source, lists=split, shard_mb=1), out, workers=Processes(2))


@pytest.mark.parametrize("where", ["folder", pytest.param("store", marks=pytest.mark.drill)])
def test_killed_it_goes_on_and_keeps_what_was_finished(where: str, tmp_path: Path, port: int) -> None:
    source = tmp_path / "in"
    for i in range(6):
        write(source / f"{i}.wav", 300_000, i)
    split = lists(tmp_path, train=[f"{i}.wav" for i in range(4)], valid=["4.wav"], test=["5.wav"])
    options = converter.Options(source=source, lists=split, shard_mb=1)
    converter.prepare(options, tmp_path / "whole")
    out: Path | str = tmp_path / "out" if where == "folder" else object_store.uri(port, "killed")
    child = multiprocessing.get_context("fork").Process(target=killed_at, args=(source, out, split, 3))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    seen: list[int] = []
    converter.prepare(options, out, lambda done, total, name: seen.append(done))
    assert seen[-1] == 6 * 300_000
    found = tree(tmp_path / "out") if where == "folder" else stored(str(out))
    assert found == tree(tmp_path / "whole")


def fatal(job: int, report: Callable[[int, str], None]) -> int:
    report(1, f"job {job}")
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def test_a_lost_process_is_a_sentence() -> None:
    with pytest.raises(WorkerLost, match=r"killed by signal 9 \(perhaps for want of memory.*, at job 3; the same"):
        list(Processes(2)(fatal, range(6), lambda *said: None))
    assert not multiprocessing.active_children()


def test_flags_that_cannot_be(tmp_path: Path) -> None:
    words = ["speech", "--source", tmp_path, "--out", tmp_path / "out"]
    assert "--workers 0: must be 1 or more" in refusal(*words, "--workers", "0")
    assert "--address: needs --workers" in refusal(*words, "--address", "auto")
    assert main(["text", "--source", "s3:///x", "--out", str(tmp_path / "out")]) == 1


def test_what_is_said_while_it_works() -> None:
    hour = 3600 * 16_000
    said = line(2 * hour, 8 * hour, "a.mp3", 60.0, 16_000)
    assert said == "2.00 of 8.00 h of sound, 25 %, 120 times as fast as it plays, 3 min left, at a.mp3"
    assert line(0, 8, "a", 1.0, 0) == "reading, at a" and line(2, 8, "a", 1.0, 0) == "2 of 8, 25 %, 3 s left, at a"


def test_the_speed_is_that_of_the_work_and_not_of_the_listing_before_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 0.0
    monkeypatch.setattr(prepare_progress.time, "monotonic", lambda: now_s)
    with prepare_progress.shown(0) as progress:
        now_s = 100.0
        progress(0, 0, "a")
        now_s = 110.0
        progress(2, 8, "b")
    assert capsys.readouterr().out == "reading, at a\n2 of 8, 25 %, 30 s left, at b\n"


def test_files_are_measured_in_sight_and_only_where_the_set_may_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, measured, seen = audio.estimated_samples, list[str](), list[tuple[int, int, str]]()

    def estimated(path: Path, rate: int) -> int:
        measured.append(path.name)
        return real(path, rate)

    monkeypatch.setattr(audio, "estimated_samples", estimated)
    for i in range(3):
        write(tmp_path / "in" / f"{i}.wav", 9000, i)
    split = lists(tmp_path, train=["0.wav"], valid=["1.wav"], test=["2.wav"])
    options = converter.Options(source=tmp_path / "in", lists=split)
    with pytest.raises(StoreError, match="is not an unfinished data set"):
        converter.prepare(options, tmp_path / "in")
    with writing(tmp_path / "out"), pytest.raises(StoreError, match="another process is writing it"):
        converter.prepare(options, tmp_path / "out")
    assert not measured
    converter.prepare(options, tmp_path / "out", lambda *said: seen.append(said))
    assert seen[:3] == [(0, 0, f"{i}.wav") for i in range(3)] and seen[-1][:2] == (27_000, 27_000)


def test_what_killed_processes_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    unfinished = tmp_path / "out" / "unfinished"
    unfinished.mkdir(parents=True)
    for name in ("left.tmp", ".lock.lease.1.tmp", "train-00000.done.json"):
        (unfinished / name).touch()
    with writing(tmp_path / "out"):
        assert {path.name for path in unfinished.iterdir()} == {".lock.lease.1.tmp", "train-00000.done.json", "lock"}
    with scratch() as old, scratch() as busy, scratch() as young:
        (busy / "fresh").touch()
        for folder in (old, busy):
            os.utime(folder, (0, 0))
        with scratch():
            assert [folder.exists() for folder in (old, busy, young)] == [False, True, True]


def test_what_is_copied_from_a_store_is_named(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = ObjectFolder(object_store.uri(port, "copied"))
    names = [f"pos/{i}.txt" for i in range(3)]
    for name in names:
        place.write(name, b"a word")
    fetched: list[str] = []
    assert mirrored(place.uri, fetched.append) == mirrored(place.uri, fetched.append)
    assert fetched == names


def test_a_set_is_read_where_it_was_written(tmp_path: Path, port: int) -> None:
    uri = object_store.uri(port, "sample")
    prepared("speech", "--source", converter.SAMPLE, "--out", uri, "--workers", "2")
    store = Store.open(uri, cache=tmp_path)
    assert store.fingerprint == "a5a259f103267d93c7f3153b3519bf10879381bee0cfc74456416ed113535659"
