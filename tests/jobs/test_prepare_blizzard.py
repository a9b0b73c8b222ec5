"""`zfdist prepare blizzard`: chapters, and the published row split with its targets."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from folders import tree
from raw import Pcm, prepared, refusal, speech

from zfdist.config import DataConfig
from zfdist.data.loader import evaluation_batches
from zfdist.data.sources import blizzard
from zfdist.data.sources.blizzard import Rows
from zfdist.data.store import Store

STREAMS = 4
FLAGS = ("--split", "rows", "--streams", "4", "--group-files", "3", "--valid-row", "20", "--test-row", "28")
FLAGS = (*FLAGS, "--end-row", "36")
ORDER = ["b/03.wav", "a/01.wav", "b/02.wav", "a/00.wav", "a/05.wav", "b/04.wav", "a/06.wav"]


@pytest.fixture(scope="module")
def chapters() -> list[Pcm]:
    """Seven chapters of about 4 s of speech."""
    whole = np.concatenate(speech())
    return [whole[i * 70_000 : i * 70_000 + 60_000 + 977 * i] for i in range(7)]


@pytest.fixture
def source(tmp_path: Path, chapters: list[Pcm]) -> Path:
    for i, pcm in enumerate(chapters):
        path = tmp_path / "in" / "ab"[i in (2, 3, 4)] / f"{i:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, pcm, 16_000, subtype="PCM_16")
    (tmp_path / "order.txt").write_text("# by hand\n" + "\n".join(ORDER) + "\n")
    return tmp_path / "in"


def rows_by_hand(chapters: list[Pcm], groups: list[list[int]]) -> list[tuple[int, int, Pcm]]:
    """The published preparation: (group, stream, row of 8,000 samples), in the order of the published file."""
    rows = []
    for number, group in enumerate(groups):
        joined = np.concatenate([chapters[i] for i in group])
        size = len(joined) // STREAMS
        streams = joined[: size * STREAMS].reshape(STREAMS, size)
        for i in range((size - 1) // 8000):
            rows += [(number, j, streams[j, i * 8000 : (i + 1) * 8000]) for j in range(STREAMS)]
    return rows


GROUPS = [[3, 1, 2], [0, 5, 4], [6]]


def test_rows_are_the_published_ones(source: Path, tmp_path: Path, chapters: list[Pcm]) -> None:
    rows = rows_by_hand(chapters, GROUPS)
    assert len(rows) == 48
    out = tmp_path / "out"
    prepared("blizzard", "--source", source, "--out", out, "--order-list", tmp_path / "order.txt", *FLAGS)
    store = Store.open(out, "always")
    expected = {"train": rows[:20], "valid": rows[20:28], "test": rows[28:36]}
    config = DataConfig(eval_view="segments", eval_batch=50)
    for split, some in expected.items():
        assert int(store.lengths(split).sum()) == 8000 * len(some)
        (batch,) = evaluation_batches(store, config, split, rank=0, world_size=1, device=torch.device("cpu"))
        assert batch.num_sequences == len(some)
        found = {}
        for k, length in enumerate(batch.lengths_B.tolist()):
            x, y = (t[:length, k].double() * store.std + store.mean for t in (batch.x_TBX, batch.y_TBX))
            pcm = torch.cat([x[:1], y]).round().flatten().to(torch.int16).numpy()
            found[pcm[:8000].tobytes()] = pcm
        for at, (group, stream, row) in enumerate(some):
            pcm = found[row.tobytes()]
            later = [r for g, j, r in some[at + 1 :] if (g, j) == (group, stream)]
            # The last target is the next frame of the row's own stream, where that row is in the same split.
            following = later[0][:200] if later else row[:0]
            assert np.array_equal(pcm, np.concatenate([row, following]))


def test_an_empty_line_ends_a_group(source: Path, tmp_path: Path, chapters: list[Pcm]) -> None:
    (tmp_path / "order.txt").write_text("\n".join([*ORDER[:2], "", "", *ORDER[2:]]) + "\n\n")
    out = tmp_path / "out"
    prepared("blizzard", "--source", source, "--out", out, "--order-list", tmp_path / "order.txt", *FLAGS)
    rows = rows_by_hand(chapters, [[3, 1], [2, 0, 5], [4, 6]])
    store = Store.open(out)
    first = store.gather("test", np.array([0]), np.array([0]), 8000)[0]
    assert np.array_equal(first, rows[28][2]) and store.manifest.source["split"]["groups"] == 3


def killed_at(source: Path, order: Path, out: Path, fsync: int) -> None:
    real, calls = os.fsync, []

    def deadly(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fsync:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = deadly
    convert_rows(source, order, out)


def convert_rows(source: Path, order: Path, out: Path) -> None:
    limits = {"valid_row": 20, "test_row": 28, "end_row": 36}
    blizzard.prepare(Rows(source=source, order_list=order, group_files=3, streams=4, **limits), out)


def test_killed_at_any_point_it_goes_on_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    order = tmp_path / "order.txt"
    convert_rows(source, order, tmp_path / "whole")
    undisturbed = tree(tmp_path / "whole")
    point, outcome = -2, -signal.SIGKILL
    while outcome == -signal.SIGKILL:
        point += 3
        out = tmp_path / f"killed{point}"
        child = multiprocessing.get_context("fork").Process(target=killed_at, args=(source, order, out, point))
        child.start()
        child.join()
        outcome = child.exitcode or 0
        convert_rows(source, order, out)
        assert tree(out) == undisturbed, f"killed at write {point}"
    assert outcome == 0 and point > 20


def test_sound_left_by_an_interrupted_run_is_not_taken_for_other_files(source: Path, tmp_path: Path) -> None:
    order, out = tmp_path / "order.txt", tmp_path / "out"
    convert_rows(source, order, tmp_path / "whole")
    (out / "unfinished").mkdir(parents=True)
    (out / "unfinished" / "group-00000.pcm").write_bytes(bytes(1_000_000))
    (out / "unfinished" / "group-00001.json").write_text('{"key": "other", "samples": 5}')
    convert_rows(source, order, out)
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize(
    ("order", "flags", "message"),
    [
        (ORDER[:3], (), "give 20 rows of 8,000 samples, and --end-row is 36: the published boundaries hold"),
        (["b/03.wav", "none.wav"], (), "line 2: 'none.wav' is no audio file under"),
        (["b/03.wav", "b/03.wav"], (), "line 2: 'b/03.wav' is also on line 1; remove one of them"),
        (["#"], (), "names no file"),
        (ORDER, ("--valid-row", "21"), "--valid-row 21: must be a multiple of --streams 4"),
        (ORDER, ("--valid-row", "32"), "must rise"),
        (ORDER, ("--streams", "0"), "--streams 0: must be at least 1"),
        (ORDER, ("--max-bad", "1"), "--max-bad: must be 0 for --split rows"),
    ],
)
def test_bad_orders(source: Path, tmp_path: Path, order: list[str], flags: tuple[str, ...], message: str) -> None:
    (tmp_path / "order.txt").write_text("\n".join(order))
    line = ("--source", source, "--out", tmp_path / "out", "--order-list", tmp_path / "order.txt")
    assert message in refusal("blizzard", *line, *FLAGS, *flags)


def test_bad_files_of_all_groups_are_reported_together(source: Path, tmp_path: Path) -> None:
    for name in ("a/01.wav", "a/06.wav"):
        (source / name).write_bytes((source / name).read_bytes()[:5000])
    line = ("--source", source, "--out", tmp_path / "out", "--order-list", tmp_path / "order.txt", *FLAGS)
    said = refusal("blizzard", *line)
    assert "2 files cannot be used" in said and "a/01.wav: cut short" in said and "a/06.wav: cut short" in said


def test_flags_of_the_other_split(source: Path, tmp_path: Path) -> None:
    order = tmp_path / "order.txt"
    assert "--order-list is missing" in refusal("blizzard", "--source", source, "--split", "rows")
    assert "--order-list is for --split rows" in refusal("blizzard", "--source", source, "--order-list", order)
    lists = [word for split in ("train", "valid", "test") for word in (f"--list-{split}", order)]
    said = refusal("blizzard", "--source", source, "--split", "rows", "--order-list", order, *lists)
    assert "--list-train is for --split chapters" in said


def test_chapters_go_whole_to_a_split(source: Path, tmp_path: Path, chapters: list[Pcm]) -> None:
    line = ("--source", source, "--out", tmp_path / "out", "--valid-percent", "30", "--test-percent", "30")
    prepared("blizzard", *line)
    store = Store.open(tmp_path / "out")
    names = [name for split in store.splits for name in store.names(split)]
    assert sorted(names) == sorted(ORDER) and store.manifest.source["converter"] == "blizzard"
    assert sum(int(store.lengths(split).sum()) for split in store.splits) == sum(map(len, chapters))


def test_chapters_of_mp3_in_folders(source: Path, tmp_path: Path, chapters: list[Pcm]) -> None:
    for path in list(source.rglob("*.wav")):
        pcm, _ = soundfile.read(path)
        (source / f"book{path.stem}").mkdir()
        for part in range(2):
            stereo = np.stack([pcm, pcm], axis=1)[part::2][: 44_100 // 2]
            soundfile.write(source / f"book{path.stem}" / f"{part}.mp3", stereo, 44_100, format="MP3")
        path.unlink()
    line = ("--source", source, "--out", tmp_path / "out", "--valid-percent", "30", "--test-percent", "30")
    prepared("blizzard", *line, "--chapter", "folder")
    store = Store.open(tmp_path / "out")
    owners = [{name.split("/")[0] for name in store.names(split)} for split in store.splits]
    assert sum(map(len, owners)) == 7 == len(set().union(*owners))
    assert all(abs(length - 8000) < 1000 for split in store.splits for length in store.lengths(split).tolist())
