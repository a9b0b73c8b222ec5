"""`zfdist prepare timit` on trees with TIMIT's layout and headers and real speech inside."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from folders import lists, tree
from raw import Pcm, prepared, refusal, speech, write_sphere

from zfdist.data.sources.timit import identity, speaker
from zfdist.data.store import Store

SENTENCES = ("SA1", "SA2", "SI648", "SX37")


@pytest.fixture(scope="module")
def sounds() -> list[Pcm]:
    return [pcm[:9000] for pcm in speech() if len(pcm) > 8000]


@pytest.fixture
def source(tmp_path: Path, sounds: list[Pcm]) -> Path:
    """Twenty-four speakers of four sentences; half of the files have a RIFF twin, all have their other files."""
    root, number = tmp_path / "in" / "timit" / "TIMIT", 0
    for folder, speakers in (("TRAIN", 20), ("TEST", 4)):
        for i in range(speakers):
            for sentence in SENTENCES:
                place = root / folder / f"DR{i % 8 + 1}" / f"{'FM'[i % 2]}{folder[:2]}{chr(65 + i)}0"
                path = write_sphere(place / f"{sentence}.WAV", sounds[number % len(sounds)])
                path.with_suffix(".TXT").write_text("0 46797 She had your dark suit in greasy wash water all year.\n")
                if number % 2:
                    soundfile.write(str(path) + ".wav", sounds[number % len(sounds)], 16_000, subtype="PCM_16")
                number += 1
    return tmp_path / "in"


def names(out: Path) -> dict[str, list[str]]:
    store = Store.open(out)
    return {split: store.names(split) for split in store.splits}


def test_the_rule_keeps_speakers_apart(
    source: Path, tmp_path: Path, sounds: list[Pcm], capsys: pytest.CaptureFixture[str]
) -> None:
    prepared("timit", "--source", source, "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert "train: 19 speakers, 76 utterances\nvalid: 1 speakers, 4 utterances\ntest: 4 speakers, 16" in said
    assert "48 RIFF twins of SPHERE files passed over" in said
    store = Store.open(tmp_path / "out", "always")
    assert store.sample_rate == 16_000 and store.kind.name == "pcm16"
    everything = [name for split in store.splits for name in store.names(split)]
    assert len(everything) == 96 == len({identity(name) for name in everything})
    assert not any(name.endswith(".wav") for name in everything)
    assert all("/TEST/" in name for name in store.names("test"))
    owners = [{speaker(name) for name in store.names(split)} for split in store.splits]
    assert sum(map(len, owners)) == 24 == len(set().union(*owners))
    assert owners[1] == {"mtrh0"}  # the rule is fixed
    first = store.gather("train", np.array([0]), np.array([0]), len(sounds[0]))[0]
    assert store.names("train")[0].endswith("TRAIN/DR1/FTRA0/SA1.WAV") and np.array_equal(first, sounds[0])


def test_upper_or_lower_case_and_the_folder_that_is_named_make_no_difference(source: Path, tmp_path: Path) -> None:
    prepared("timit", "--source", source, "--out", tmp_path / "a")
    for path in sorted(source.rglob("*"), reverse=True):
        path.rename(path.with_name(path.name.lower()))
    prepared("timit", "--source", source / "timit" / "timit", "--out", tmp_path / "b")
    assert Store.open(tmp_path / "a").fingerprint == Store.open(tmp_path / "b").fingerprint


def test_twins_change_nothing_and_stand_in_where_alone(source: Path, tmp_path: Path) -> None:
    prepared("timit", "--source", source, "--out", tmp_path / "a")
    for path in source.rglob("*.WAV"):
        if Path(f"{path}.wav").exists():
            path.unlink()
    prepared("timit", "--source", source, "--out", tmp_path / "b")
    assert Store.open(tmp_path / "a").fingerprint == Store.open(tmp_path / "b").fingerprint


def test_without_the_sentences_that_all_read(source: Path, tmp_path: Path) -> None:
    prepared("timit", "--source", source, "--out", tmp_path / "out", "--no-sa", "--valid-percent", "25")
    found = names(tmp_path / "out")
    assert [len(some) for some in found.values()] == [30, 10, 8]
    assert not any("/SA" in name for some in found.values() for name in some)


def test_list_files_in_any_spelling(source: Path, tmp_path: Path) -> None:
    chosen = {
        "train": ["TRAIN/DR1/FTRA0/SA1.WAV", "/home/me/timit/train/dr2/mtrb0/si648.wav"],
        "valid": ["timit\\TRAIN\\DR1\\FTRA0\\SX37.WAV.wav"],
        "test": ["./TIMIT/TEST/DR1/FTEA0/SA2"],
    }
    flags = [word for split, path in lists(tmp_path, **chosen).items() for word in (f"--list-{split}", path)]
    prepared("timit", "--source", source, "--out", tmp_path / "out", *flags)
    root = "timit/TIMIT"
    assert names(tmp_path / "out") == {
        "train": [f"{root}/TRAIN/DR1/FTRA0/SA1.WAV", f"{root}/TRAIN/DR2/MTRB0/SI648.WAV"],
        "valid": [f"{root}/TRAIN/DR1/FTRA0/SX37.WAV"],
        "test": [f"{root}/TEST/DR1/FTEA0/SA2.WAV"],
    }
    assert refusal("timit", "--source", source, "--out", tmp_path / "b", *flags, "--no-sa").startswith(
        "error: split 'test' is empty"
    )


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"train": ["TRAIN/DR1/FTRA0/SA9.WAV"]}, "1 of 1 utterances are not under"),
        ({"train": ["what.wav"]}, "the first is 'what.wav'"),
        (
            {"train": ["TRAIN/DR1/FTRA0/SA1.WAV"], "valid": ["train/dr1/ftra0/sa1.wav"]},
            "'train/dr1/ftra0/sa1.wav' is already in the list of train",
        ),
        ({"train": ["TRAIN/DR1/FTRA0/SA1.WAV"]}, "split 'valid' is empty"),
    ],
)
def test_bad_lists(source: Path, tmp_path: Path, chosen: dict[str, list[str]], message: str) -> None:
    paths = lists(tmp_path, **({"train": [], "valid": [], "test": []} | chosen))
    flags = [word for split, path in paths.items() for word in (f"--list-{split}", path)]
    assert message in refusal("timit", "--source", source, "--out", tmp_path / "out", *flags)
    said = refusal("timit", "--source", source, "--out", tmp_path / "out", *flags[:2])
    assert "--list-valid is missing: give all three lists or none" in said


def test_bad_files_are_reported_together(source: Path, tmp_path: Path, sounds: list[Pcm]) -> None:
    place = source / "timit" / "TIMIT" / "TRAIN" / "DR1" / "FTRA0"
    write_sphere(place / "SI1.WAV", sounds[0], coding="pcm,embedded-shorten-v2.00")
    cut = write_sphere(place / "SI2.WAV", sounds[0])
    cut.write_bytes(cut.read_bytes()[:-500])
    (place / "SI3.WAV").write_bytes(b"")
    headless = write_sphere(place / "SI4.WAV", sounds[0])
    headless.write_bytes(headless.read_bytes().replace(b"sample_count", b"sample_kount"))
    said = refusal("timit", "--source", source, "--out", tmp_path / "out")
    assert "4 files cannot be used, --max-bad allows 0" in said
    assert "SI1.WAV: compressed by shorten; unpack it first, e.g. with sph2pipe" in said
    assert "SI2.WAV: cut short: 17,500 of 18,000 bytes of sound are there" in said
    assert "SI3.WAV: empty file" in said and "SI4.WAV: SPHERE header without a valid sample_count" in said
    prepared("timit", "--source", source, "--out", tmp_path / "out", "--max-bad", "4")


def test_what_is_no_timit_says_so(source: Path, tmp_path: Path, sounds: list[Pcm]) -> None:
    write_sphere(tmp_path / "other" / "a.wav", sounds[0])
    assert "no path in it is like TRAIN/DR1/FCJF0/SA1.WAV" in refusal("timit", "--source", tmp_path / "other")
    write_sphere(source / "copy" / "TRAIN" / "DR1" / "FTRA0" / "SA1.WAV", sounds[0])
    assert "are the same utterance; remove all but one" in refusal("timit", "--source", source)
    only_train = source / "timit" / "TIMIT" / "TRAIN"
    said = refusal("timit", "--source", only_train, "--out", tmp_path / "out")
    assert "no path in it is like" in said
    (source / "timit" / "TIMIT" / "TEST").rename(tmp_path / "TEST")
    said = refusal("timit", "--source", source / "timit", "--out", tmp_path / "out")
    assert "split 'test' would be empty: TRAIN has 20 speakers, TEST has 0 utterances" in said


def test_the_same_command_does_nothing_more(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared("timit", "--source", source, "--out", tmp_path / "out")
    before = tree(tmp_path / "out")
    capsys.readouterr()
    prepared("timit", "--source", source, "--out", tmp_path / "out")
    assert "nothing to do" in capsys.readouterr().out and tree(tmp_path / "out") == before
    assert "different: split, leave_out_sa" in refusal(
        "timit", "--source", source, "--out", tmp_path / "out", "--no-sa", "--valid-percent", "9"
    )
