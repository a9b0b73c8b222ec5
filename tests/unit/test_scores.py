"""Scores of single sequences as files: what is read is what was written, and what is damaged is a sentence."""

import json

import numpy as np
import pytest

from zfdist.data.kinds import BITS, PCM16, TOKENS
from zfdist.evaluation import scores
from zfdist.evaluation.results import EvaluationError

WHAT = dict.fromkeys(scores.SAME) | {"split": "test", "model": "vrnn", "step": 20, "seeds": [1], "iwae_samples": 5}


def make(count=4, iwae=True):
    rng = np.random.default_rng(0)
    bounds = rng.normal(size=(4, count)) * 100
    return scores.Scores(
        what=WHAT, config={"train": {"seed": 1}}, result={"elbo_nats": 1.5, "elbo_stderr_nats": float("nan")},
        ids_N=np.arange(count), names=[f'a "b", {i}\n.wav' for i in range(count)], groups=["x", "y", "x", "z"][:count],
        frames_N=np.arange(1, count + 1), elbo_N=bounds[0], log_px_N=bounds[1], kl_N=bounds[2],
        iwae_N=bounds[3] if iwae else None,
    )  # fmt: skip


@pytest.mark.parametrize("iwae", [True, False])
def test_what_is_read_is_what_was_written(tmp_path, iwae):
    written = make(iwae=iwae)
    table = scores.write(written, tmp_path / "scores")
    assert table.name.startswith("test-step-00000020-") and table.read_text().startswith(
        "id,name,group,frames,elbo_nats"
    )
    for path in (table, table.with_suffix(".json")):
        read = scores.read(path)
        assert list(read.names) == written.names and list(read.groups) == written.groups
        for name in ("ids_N", "frames_N", "elbo_N", "log_px_N", "kl_N", "groups_N"):
            assert np.array_equal(getattr(read, name), getattr(written, name)), name
        assert (read.iwae_N is None) if not iwae else np.array_equal(read.iwae_N, written.iwae_N)
        assert read.result == {"elbo_nats": 1.5, "elbo_stderr_nats": None} and read.config == written.config
    assert scores.kept(tmp_path / "scores", WHAT) is not None
    assert scores.kept(tmp_path / "scores", WHAT | {"iwae_samples": 6}) is None


def test_what_is_damaged_is_a_sentence_and_evaluated_again(tmp_path):
    table = scores.write(make(), tmp_path)
    content = table.read_text()
    table.write_text(content.replace("x", "w"))
    with pytest.raises(EvaluationError, match="is not what was written with it"):
        scores.read(table)
    assert scores.kept(tmp_path, WHAT) is None
    table.unlink()
    with pytest.raises(EvaluationError, match="no such file of scores"):
        scores.read(table)
    for text in ("", "[]", "{}", json.dumps({"sequences": {"name": "../x"}})):
        table.with_suffix(".json").write_text(text)
        with pytest.raises(EvaluationError):
            scores.read(table)


@pytest.mark.parametrize(
    ("kind", "name", "group"),
    [
        (PCM16, "a/b:3.wav", "a/b:3.wav"),
        (BITS, "train/00001", "train/00001"),
        (TOKENS, "pos/0_9.txt:3", "pos/0_9.txt"),
        (TOKENS, "pos/0_9.txt:3:2", "pos/0_9.txt"),
        (TOKENS, "a.zip/pos/0_9.TXT.gz:3:2", "a.zip/pos/0_9.TXT.gz"),
        (TOKENS, "rt.pos:17", "rt.pos:17"),
        (TOKENS, "rt.pos:17:2", "rt.pos:17"),
        (TOKENS, "r.jsonl:5:2:1", "r.jsonl:5"),
        (TOKENS, "odd:name.jsonl:5:2", "odd:name.jsonl:5"),
        (TOKENS, "bare", "bare"),
    ],
)
def test_what_a_row_is_a_part_of(kind, name, group):
    assert kind.group(name) == group


def test_where_scores_belong(tmp_path):
    assert scores.folder_for(tmp_path / "run/checkpoints/step-00000004") == tmp_path / "run/scores"
    assert scores.folder_for(tmp_path / "export") == tmp_path / "export/scores"
