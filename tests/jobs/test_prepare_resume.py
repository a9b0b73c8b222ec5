"""Converting, interrupted at any point and begun again: the same bytes, and nothing done twice."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from folders import lists, prepare_to, tree, write

from zfdist.data.sources import audio
from zfdist.data.sources.inputs import SourceError
from zfdist.data.sources.speech import Options, prepare
from zfdist.data.store import Store, StoreError


def killed_at(source: Path, out: Path, split: dict[str, Path], fsync: int) -> None:
    """Convert, and kill this process without warning just before its n-th write to disk is made safe."""
    real, calls = os.fsync, []

    def deadly(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fsync:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = deadly
    prepare(Options(source=source, lists=split, shard_mb=1), out)


def test_killed_at_any_point_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for i in range(4):
        write(source / f"{i}.wav", 300_000, i)
    split = lists(tmp_path, train=["0.wav", "1.wav"], valid=["2.wav"], test=["3.wav"])
    undisturbed = tree(prepare_to(source, tmp_path / "whole", lists=split, shard_mb=1))
    point, outcome = 0, -signal.SIGKILL
    while outcome == -signal.SIGKILL:
        point += 1
        out = tmp_path / f"killed{point}"
        child = multiprocessing.get_context("fork").Process(target=killed_at, args=(source, out, split, point))
        child.start()
        child.join()
        outcome = child.exitcode or 0
        prepare_to(source, out, lists=split, shard_mb=1)
        assert tree(out) == undisturbed, f"killed at write {point}"
    assert outcome == 0 and point > 20


def test_finished_shards_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in"
    for i in range(5):
        write(source / f"{i}.wav", 300_000, i)
    split = lists(tmp_path, train=["0.wav", "1.wav", "2.wav"], valid=["3.wav"], test=["4.wav"])
    real, read = audio.read, []

    def failing(path: Path, rate: int, remarks: list[str]) -> object:
        read.append(path.name)
        if len(read) == 3:
            raise KeyboardInterrupt
        return real(path, rate, remarks)

    monkeypatch.setattr(audio, "read", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare_to(source, tmp_path / "out", lists=split, shard_mb=1)
    with pytest.raises(StoreError, match=r"no manifest\.json"):
        Store.open(tmp_path / "out")
    seen: list[tuple[int, int]] = []
    prepare(
        Options(source=source, lists=split, shard_mb=1), tmp_path / "out", lambda n, total, _: seen.append((n, total))
    )
    assert read == ["0.wav", "1.wav", "2.wav", "2.wav", "3.wav", "4.wav"]
    measured = [(0, 0)] * 5  # every file, before there is a plan
    assert seen == measured + [(300_000 * i, 1_500_000) for i in range(1, 6)]


def test_changed_input_starts_the_shards_concerned_anew(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for i in range(40):
        write(source / f"{i}.wav", 500, i)
    (source / "bad.wav").write_bytes(b"RIFF")
    with pytest.raises(SourceError, match="1 files cannot be used"):
        prepare_to(source, tmp_path / "out")
    (source / "bad.wav").unlink()
    prepare_to(source, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(prepare_to(source, tmp_path / "fresh"))
