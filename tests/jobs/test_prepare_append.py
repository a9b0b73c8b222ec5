"""Data sets that grow, are checked, and say what is in them: `zfdist prepare speech --append`, `verify`, `info`."""

import json
from collections.abc import Iterator
from pathlib import Path

import harness
import numpy as np
import object_store
import pytest
import torch
from folders import tree, write
from raw import prepared, refusal

from jobs.cli import prepare_info
from zfdist import train, world
from zfdist.checkpoint.folder import CheckpointError
from zfdist.data import manifest as manifests
from zfdist.data.manifest import StoreManifest
from zfdist.data.sources import convert, speech
from zfdist.data.store import Store, StoreError
from zfdist.data.store_writer import writing
from zfdist.data.verify import verify
from zfdist.object_store import ObjectFolder

FLAGS = ("--valid-percent", "25", "--test-percent", "25", "--shard-mb", "1")


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    with object_store.server() as port:
        yield object_store.uri(port, "grown")


def recordings(folder: Path, numbers: range) -> Path:
    for i in numbers:
        write(folder / f"speaker{i % 3}" / f"{i:03d}.wav", 9000 + 411 * i, i)
    return folder


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    """A store of two parts: the recordings of folder `in`, then those that came to it."""
    source = recordings(tmp_path / "in", range(12))
    prepared("speech", "--source", source, "--out", tmp_path / "out", *FLAGS)
    recordings(source, range(12, 20))
    (source / "torn.wav").write_bytes(b"RIFF")
    prepared("speech", "--source", source, "--out", tmp_path / "out", *FLAGS, "--append", "--max-bad", "1")
    return tmp_path / "out"


def test_new_recordings_are_new_shards_and_old_ones_stay(
    tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = recordings(tmp_path / "in", range(12)), tmp_path / "out"
    prepared("speech", "--source", source, "--out", out, *FLAGS)
    first, before = StoreManifest.read(out), tree(out)
    old = {split: Store.open(out).names(split) for split in first.splits}
    more = recordings(tmp_path / "more", range(12, 20))
    prepared("speech", "--source", more, "--out", out, *FLAGS, "--append")
    second = StoreManifest.read(out)
    assert second.generation == 2 and second.fingerprint != first.fingerprint
    kept = {name: content for name, content in tree(out).items() if name in before and name.startswith("shards/")}
    assert kept == {name: content for name, content in before.items() if name.startswith("shards/")}
    store = Store.open(out, "always")
    assert all(store.names(split)[: len(names)] == names for split, names in old.items())
    for split in store.splits:
        for i, name in enumerate(store.names(split)):
            number = int(Path(name).stem)
            pcm = np.random.default_rng(number).integers(-3000, 3000, 9000 + 411 * number, dtype=np.int16)
            assert np.array_equal(store.gather(split, np.array([i]), np.array([0]), pcm.size)[0], pcm)
    train = np.concatenate(
        [store.gather("train", np.array([i]), np.array([0]), int(n))[0] for i, n in enumerate(store.lengths("train"))]
    )
    assert store.std == pytest.approx(train.astype(np.float64).std(), rel=1e-12)
    assert verify(out) == []
    whole = tree(out)
    capsys.readouterr()
    prepared("speech", "--source", more, "--out", out, *FLAGS, "--append")
    assert "nothing to do" in capsys.readouterr().out and tree(out) == whole
    recordings(source, range(12, 20))  # all old files unchanged, and new ones: here those of both parts
    recordings(source, range(20, 23))
    prepared("speech", "--source", source, "--out", out, *FLAGS, "--append")
    assert StoreManifest.read(out).generation == 3 and verify(out) == []
    prepared("speech", "--source", recordings(tmp_path / "first", range(12)), "--out", uri, *FLAGS)
    prepared("speech", "--source", more, "--out", uri, *FLAGS, "--append")
    assert {name: ObjectFolder(uri).read(name) for name in sorted(ObjectFolder(uri).sizes())} == whole
    assert verify(uri) == []
    ObjectFolder(uri).write(second.splits["train"].shards[-1].path, b"something else")
    (said,) = verify(uri)
    assert said.startswith("s3://bucket/grown/shards/train-") and "cut short: 14 bytes" in said


def test_what_cannot_be_added(grown: Path, tmp_path: Path) -> None:
    source, words = tmp_path / "in", ("--out", grown, *FLAGS, "--append", "--max-bad", "1")
    before = tree(grown)
    other = recordings(tmp_path / "other", range(30, 31))
    assert "different: sample_rate" in refusal("speech", "--source", other, *words, "--sample-rate", "8000")
    assert "different: split" in refusal("speech", "--source", other, *words, "--test-percent", "30")
    write(source / "speaker0" / "003.wav", 9000, 77)
    said = refusal("speech", "--source", source, *words)
    assert "--append: of 12 files that were read before, 12 are in --source, and not all of them as they were" in said
    assert "holds no finished data set" in refusal("speech", "--source", other, "--out", tmp_path / "x", "--append")
    (other / "bad.wav").write_bytes(b"RIFF")
    assert "1 files cannot be used" in refusal("speech", "--source", other, *words[:-1], "0")
    changed = {name for name, content in tree(grown).items() if before.get(name) != content}
    assert all(name.startswith(("unfinished/", "shards/")) for name in changed) and verify(grown) == []
    (other / "bad.wav").unlink()
    mine = tree(grown)
    with writing(grown, is_finished=True):  # somebody else is adding
        assert "another process is writing it" in refusal("speech", "--source", other, *words)
    assert tree(grown) == mine
    prepared("speech", "--source", other, *words)
    assert StoreManifest.read(grown).generation == 3 and verify(grown) == []


def test_a_part_without_the_hash_of_what_it_holds_is_refused(grown: Path) -> None:
    tree = json.loads((grown / "manifest.json").read_bytes())
    del tree["parts"][1]["content_sha256"]["train"]
    tree["splits"]["train"]["content_sha256"] = tree["parts"][0]["content_sha256"]["train"]
    said = manifests.build(StoreManifest, tree, "m")
    tree["fingerprint"] = manifests.fingerprint(said.kind, said.sample_rate, said.splits)
    (grown / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(StoreError, match="the splits do not follow from the parts"):
        verify(grown)


def test_two_who_add_at_once_do_not_lose_what_the_other_added(
    grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (recordings(tmp_path / name, range(i, i + 1)) for name, i in (("a", 40), ("b", 41)))
    words = ("--out", grown, *FLAGS, "--append")

    def late(*where: object, **given: object) -> object:
        """Let the other finish between reading the manifest and taking the right to write."""
        monkeypatch.setattr(speech, "convert", convert.convert)
        prepared("speech", "--source", second, *words)
        return convert.convert(*where, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(speech, "convert", late)
    options = speech.Options(source=first, valid_percent=25, test_percent=25, append=True)
    with pytest.raises(StoreError, match="was added to by another process meanwhile; give the command again"):
        speech.prepare(options, grown)
    prepared("speech", "--source", first, *words)
    names = {name for split in ("train", "valid", "test") for name in Store.open(grown).names(split)}
    assert {"speaker1/040.wav", "speaker2/041.wav"} <= names and verify(grown) == []


def test_a_run_on_data_that_grew_says_so_and_takes_its_weights_along(tmp_path: Path) -> None:
    source = recordings(tmp_path / "in", range(12))
    prepared("speech", "--source", source, "--out", tmp_path / "out", *FLAGS)
    world.connect()
    here = world.World(0, 1, 0, torch.device("cpu"), None)
    config = harness.tiny_config(tmp_path / "out")
    train.train(config, tmp_path / "run", here, harness.Recorder())
    prepared("speech", "--source", recordings(source, range(12, 20)), "--out", tmp_path / "out", *FLAGS, "--append")
    with pytest.raises(CheckpointError, match=r"recordings were added to it \(2 parts\).*--from takes"):
        train.train(config, tmp_path / "run", here, harness.Recorder())


def test_damage_is_found_file_by_file(grown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared("verify", grown)
    assert "every file and every recording is what the manifest says" in capsys.readouterr().out
    manifest = StoreManifest.read(grown)
    shard, other = (manifest.splits[split].shards[0].path for split in ("train", "valid"))
    content = bytearray((grown / shard).read_bytes())
    content[len(content) // 2] ^= 1
    (grown / shard).write_bytes(content)
    (grown / other).unlink()
    index = grown / manifest.splits["test"].index.path
    index.write_bytes(index.read_bytes()[:-1])
    said = refusal("verify", grown)
    assert all(f"{grown}/{name}" in said for name in (shard, other, index.name)) and len(said.splitlines()) == 4
    (grown / "manifest.json").write_bytes((grown / "manifest.json").read_bytes()[:-40])
    assert "manifest.json: unreadable" in refusal("verify", grown)
    assert "holds no finished data set" in refusal("verify", grown.parent)


def test_info(grown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared("info", grown)
    lines = capsys.readouterr().out.splitlines()
    store = Store.open(grown)
    assert lines[0] == f"{grown}: sound at 16,000 Hz, 2 parts, fingerprint {store.fingerprint}"
    (row,) = [line.split() for line in lines if line.startswith("train ")]
    lengths = store.lengths("train")
    assert row[1:4] == [str(len(lengths)), f"{lengths.sum() / 16_000 / 3600:.2f}", f"{lengths.min() / 16_000:.4g}"]
    assert any(line.startswith("train: recordings of 3 folders") for line in lines)
    counts = [int(line.split()[-1]) for line in lines[lines.index("recordings of train by length, s") + 1 :]]
    assert len(counts) == prepare_info.BINS and sum(counts) == len(lengths)
