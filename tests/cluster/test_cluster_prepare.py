"""A data set made by tasks of a Ray has the bytes that one process gives it, and survives the loss of a worker."""

import os
import signal
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
import soundfile

from zfdist.data.sources.speech import Options, prepare


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve recordings of several shards, and one that is none."""
    folder = tmp_path_factory.mktemp("raw")
    for i in range(12):
        pcm = np.random.default_rng(i).integers(-3000, 3000, 150_000 + 1000 * i, dtype=np.int16)
        soundfile.write(folder / f"{i:02d}.wav", pcm, 16_000, subtype="PCM_16")
    (folder / "torn.wav").write_bytes(b"RIFF")
    return folder


def options(source: Path) -> Options:
    return Options(source=source, shard_mb=1, max_bad=1, valid_percent=25.0, test_percent=25.0)


def test_the_command(cluster: str, source: Path, tmp_path: Path) -> None:
    prepare(options(source), tmp_path / "one")
    limits = ["--shard-mb", "1", "--max-bad", "1", "--valid-percent", "25", "--test-percent", "25"]
    words = ["speech", "--source", str(source), "--out", "tasks", *limits, "--address", "auto", "--workers"]
    code, out = commands.run("prepare", *words, "2", folder=tmp_path)
    assert code == 0 and "1 files left out" in out and "torn.wav: neither WAV" in out, out
    assert tree(tmp_path / "tasks") == tree(tmp_path / "one")
    code, out = commands.run("prepare", *words[:3], "--out", "more", *words[5:], "64", folder=tmp_path)
    assert code == 1 and "error: --workers 64 of 1 CPU each do not fit" in out and "Traceback" not in out, out
    commands.wait_for(commands.nothing_held, "all CPUs free", within_s=20)


def test_a_lost_worker_costs_its_shard_only(cluster: str, source: Path, tmp_path: Path) -> None:
    from cluster.prepare import Tasks
    from zfdist.data.sources import convert

    made = convert._made

    def die_once(out: Path, kind: Any, shard: Any, report: Any) -> Any:
        with (tmp_path / "begun").open("a") as file:
            file.write(f"{shard.label}\n")
        if shard.label == "train-00000" and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return made(out, kind, shard, report)

    prepare(options(source), tmp_path / "one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "_made", die_once)
        workers = Tasks(2, [source], tmp_path / "out", say=lambda line: None)
        prepare(options(source), tmp_path / "out", workers=workers)
    assert tree(tmp_path / "out") == tree(tmp_path / "one")
    begun = (tmp_path / "begun").read_text().splitlines()
    assert sorted(begun) == sorted([*set(begun), "train-00000"]), "more than the lost shard was made again"


def test_a_machine_that_does_not_share_the_folders_is_named(cluster: str, source: Path, tmp_path: Path) -> None:
    from cluster import prepare as cluster_prepare
    from cluster.session import ClusterError

    seen = {str(source): cluster_prepare._look(source)}
    with pytest.raises(ClusterError, match=r"--out .*: machine .* does not see what this one writes"):
        cluster_prepare._refuse_blind(seen, tmp_path, "unfinished/seen-1")
    with pytest.raises(ClusterError, match=r"--source .*: machine .* sees something else there, or nothing"):
        cluster_prepare._refuse_blind({str(tmp_path / "gone"): "a.wav"}, tmp_path, "seen")
