"""zfdist generate: files of every kind of data, their rates and shapes, sameness, and its messages."""

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import soundfile
from matplotlib import image

from jobs import generate
from zfdist.data.kinds import BITS, TOKENS
from zfdist.data.store import Store


@pytest.fixture(scope="module")
def runs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder for each kind of data; tests only read them."""
    root = tmp_path_factory.mktemp("generate")
    stores = {"sound": store, **{k.name: models.make_store(root / k.name, k) for k in (BITS, TOKENS)}}
    for name, where in stores.items():
        models.save(root / f"run-{name}", models.config_for(where))
    models.save(root / "run-rnn", models.config_for(store, model__system="rnn"))
    return {name: root / f"run-{name}" for name in (*stores, "rnn")}


def generated(run: Path, what: str, out: Path, *argv: str) -> dict[str, Any]:
    assert generate.main([str(run), "--what", what, "--out", str(out), *argv]) == 0
    return json.loads((out / "generated.json").read_text())  # type: ignore[no-any-return]


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix != ".png"}


@pytest.mark.parametrize("kind", ["sound", "bits", "tokens"])
@pytest.mark.parametrize("what", ["samples", "continuations", "reconstructions", "interpolation"])
def test_the_same_command_gives_the_same_files(runs: dict[str, Path], tmp_path: Path, kind: str, what: str) -> None:
    argv = ["--frames", "5", *(() if what == "interpolation" else ("--num", "2"))]
    argv += ["--prefix-frames", "3"] if what == "continuations" else []
    seed = () if what == "reconstructions" else ("--seed", "1")
    record = generated(runs[kind], what, tmp_path / "a", *argv, *seed)
    generated(runs[kind], what, tmp_path / "b", *argv, *seed)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert any((tmp_path / "a").glob("*.png")) != (kind == "tokens")
    if what in ("samples", "continuations") and kind != "bits":  # images are pictures, which are not compared
        generated(runs[kind], what, tmp_path / "c", *argv, "--seed", "2")
        assert files(tmp_path / "a") != files(tmp_path / "c")
    assert (record["what"], record["seed"], record["frames"]) == (what, len(seed) // 2, 5)


def test_samples_of_sound_have_the_rate_and_length_asked_for(runs: dict[str, Path], tmp_path: Path) -> None:
    generated(runs["sound"], "samples", tmp_path, "--num", "5", "--seconds", "0.1")
    for i in range(5):
        info = soundfile.info(tmp_path / f"sample-{i}.wav")
        assert (info.samplerate, info.frames, info.channels, info.subtype) == (16_000, 1600, 1, "PCM_16")
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["picture-0.png", "picture-1.png"]
    assert image.imread(tmp_path / "picture-0.png").std() > 0.05


def test_a_continuation_begins_with_the_recording(runs: dict[str, Path], store: Path, tmp_path: Path) -> None:
    record = generated(runs["sound"], "continuations", tmp_path, "--num", "2", "--prefix-frames", "8", "--frames", "4")
    names = [piece["name"] for piece in record["pieces"]]
    assert len(names) == 4
    opened = Store.open(store)
    for name in names[1::2]:
        wave, _ = soundfile.read(tmp_path / f"{name}.wav", dtype="int16")
        assert len(wave) == 12 * models.FRAME
        original, _ = soundfile.read(tmp_path / f"{name.replace('continuation', 'original')}.wav", dtype="int16")
        assert np.array_equal(wave[: 8 * models.FRAME], original[: 8 * models.FRAME])
        i = int(name.split("-")[1])
        row = opened.gather("test", np.array([i]), np.array([models.FRAME]), 8 * models.FRAME)[0]
        assert np.array_equal(wave[: 8 * models.FRAME], row), "the first frame is the first input, never scored"


def test_temperature_zero_takes_the_seed_out(runs: dict[str, Path], tmp_path: Path) -> None:
    cold = ("--num", "2", "--frames", "6", "--temperature-z", "0", "--temperature-x", "0")
    for seed in ("1", "2"):
        generated(runs["sound"], "samples", tmp_path / seed, *cold, "--seed", seed)
    waves = [soundfile.read(tmp_path / seed / f"sample-{i}.wav")[0] for seed in "12" for i in (0, 1)]
    assert all(np.array_equal(wave, waves[0]) for wave in waves)


def test_images_are_a_grid(runs: dict[str, Path], tmp_path: Path) -> None:
    record = generated(runs["bits"], "interpolation", tmp_path / "mixed", "--between", "1", "4")
    assert [piece["frames"] for piece in record["pieces"]] == [784] * 24
    assert [piece["name"] for piece in record["pieces"]][:3] == ["original-1", "original-4", "greedy-0.0"]
    height, width, _ = image.imread(tmp_path / "mixed" / "images.png").shape
    assert (height, width) == (570, 1650), "two originals, then eleven greedy, then eleven sampled"
    record = generated(runs["bits"], "continuations", tmp_path / "on", "--num", "1")
    assert [piece["frames"] for piece in record["pieces"]] == [784, 784]


def test_sentences_are_lines_without_specials(runs: dict[str, Path], tmp_path: Path) -> None:
    generated(runs["tokens"], "reconstructions", tmp_path / "again", "--num", "3")
    lines = (tmp_path / "again" / "sentences.txt").read_text().splitlines()
    opened = Store.open(Path(models_root(runs["tokens"])))
    for i in range(3):
        length = int(opened.lengths("test")[i])
        row = opened.gather("test", np.array([i]), np.array([0]), length)[0]
        assert lines[2 * i].split() == ["original", str(i), *(models.WORDS[token] for token in row)]
    generated(runs["tokens"], "interpolation", tmp_path / "mixed")
    lines = (tmp_path / "mixed" / "sentences.txt").read_text().splitlines()
    assert [line[:11].split() for line in lines[2:]] == [
        [f"{i / 10:.1f}", how] for how in ("greedy", "sampled") for i in range(11)
    ]
    assert all("</s>" not in line and len(line.split()) <= 22 for line in lines)


def test_what_frames_a_sentence_is_never_written_and_unknown_words_only_if_wished(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    for what in ("samples", "continuations", "interpolation"):
        written = {}
        many = {"samples": ("--num", "12"), "continuations": ("--num", "2")}.get(what, ())
        for flag in ("--unknown", "--no-unknown"):
            out = tmp_path / what / flag
            generated(runs["tokens"], what, out, *many, flag)
            lines = (out / "sentences.txt").read_text().splitlines()
            written[flag] = " ".join(line for line in lines if "original" not in line)
            assert "<pad>" not in written[flag] and "<s>" not in written[flag]
        assert "<unk>" not in written["--no-unknown"]
        assert "<unk>" in written["--unknown"] or what != "samples", "else this measures nothing"


def models_root(run: Path) -> str:
    return str(json.loads((run / "config.json").read_text())["data"]["root"])


@pytest.mark.parametrize(
    ("run", "argv", "sentence"),
    [
        ("sound", ("--what", "samples", "--num", "0"), "--num 0: must be 1 or more"),
        ("sound", ("--what", "samples", "--temperature-z", "-1"), "--temperature-z -1: must be 0 or more"),
        ("sound", ("--what", "samples", "--seconds", "0"), "--seconds 0.0: must be more than 0"),
        ("sound", ("--what", "samples", "--seconds", "1", "--frames", "3"), "--seconds and --frames: give one"),
        ("bits", ("--what", "samples", "--seconds", "1"), "holds bits, no sound; use --frames"),
        ("sound", ("--what", "samples", "--between", "0", "1"), "--between: changes nothing of samples"),
        ("sound", ("--what", "interpolation", "--between", "0", "-1"), "--between: must be two sequences"),
        ("sound", ("--what", "interpolation", "--num", "3"), "--num: changes nothing of interpolation; it is for"),
        ("sound", ("--what", "interpolation", "--temperature-x", "0"), "--temperature-x 0: is the greedy half"),
        ("sound", ("--what", "interpolation", "--temperature-z", "0.5"), "--temperature-z: changes nothing of"),
        ("sound", ("--what", "reconstructions", "--seed", "1"), "--seed: changes nothing of reconstructions"),
        ("sound", ("--what", "reconstructions", "--temperature-x", "0"), "--temperature-x: changes nothing of"),
        ("sound", ("--what", "samples", "--prefix-frames", "3"), "--prefix-frames: changes nothing of samples"),
        ("sound", ("--what", "samples", "--split", "valid"), "--split: changes nothing of samples"),
        ("bits", ("--what", "samples", "--no-unknown"), "--no-unknown: "),
        ("rnn", ("--what", "samples", "--temperature-z", "0"), "--temperature-z: an rnn has no latents"),
        ("sound", ("--what", "interpolation", "--between", "0", "99"), "has no sequence 99"),
        ("sound", ("--what", "reconstructions", "--num", "99"), "not 99; pass a smaller --num"),
        ("sound", ("--what", "continuations", "--prefix-frames", "500"), "sequences of 500 frames or more"),
        ("sound", ("--what", "reconstructions", "--split", "dev"), "split 'dev': "),
        ("rnn", ("--what", "interpolation"), "an rnn has no latents to mix"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str, argv: Any, sentence: str
) -> None:
    assert generate.main([str(runs[run]), "--out", str(tmp_path / "out"), *argv]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and sentence in error
    assert not (tmp_path / "out").exists()
