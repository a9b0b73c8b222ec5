"""What a crash leaves of the small files of a run: passed over with one word, wherever it stands."""

import json
from pathlib import Path

import harness
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfdist import metrics, run_protocol
from zfdist.checkpoint import run_folder
from zfdist.config import Config
from zfdist.tail import Records

BAD = st.sampled_from(
    [b"", b"\0" * 300, b'{"step": 3, "train/elb', b"\xff\xfe{}", b"[1, 2]", b"7", b'"step"', b"null", b"{}", b"NaN",
     b'{"step": null}', b'{"step": "3"}', b'{"step": 3, "time_s": "x"}', b"[" * 3000, b'{"step": 1}{"step": 2}']
)  # fmt: skip
GOOD = [{"step": step, "time_s": 100.0 + step, "valid/elbo_nats": -float(step)} for step in range(4)]


@given(st.lists(st.tuples(st.integers(0, 4), BAD), max_size=8), st.sampled_from([b"\n", b""]))
@settings(max_examples=60, deadline=None)
def test_lines_that_are_no_records_are_passed_over_with_one_word(
    tmp_path_factory: pytest.TempPathFactory, placed: list[tuple[int, bytes]], end: bytes
) -> None:
    folder = tmp_path_factory.mktemp("run")
    lines = [bad for at in range(5) for place, bad in placed if place == at]
    whole: list[bytes] = []
    for at in range(5):
        whole += [bad for place, bad in placed if place == at]
        whole += [json.dumps(GOOD[at]).encode()] if at < 4 else []
    (folder / run_protocol.METRICS).write_bytes(b"\n".join(whole) + end)
    said: list[str] = []
    assert list(run_protocol.records(folder, said.append)) == GOOD
    if end:
        assert len(said) == bool(lines) and all(f"{len(lines)} line" in line and str(folder) in line for line in said)
        followed: list[str] = []
        assert list(Records(folder / run_protocol.METRICS, from_start=True, say=followed.append).new()) == GOOD
        assert followed == said


def test_a_record_behind_nuls_is_whole(tmp_path: Path) -> None:
    (tmp_path / run_protocol.METRICS).write_bytes(bytes(4000) + json.dumps(GOOD[0]).encode() + b"\n")
    assert list(run_protocol.records(tmp_path)) == GOOD[:1]


def test_a_new_record_is_not_glued_to_a_torn_one(tmp_path: Path) -> None:
    torn = json.dumps(GOOD[0]) + "\n" + json.dumps(GOOD[1])[:20]
    (tmp_path / run_protocol.METRICS).write_text(torn)
    log = metrics.Log(tmp_path, resumed_step=0)
    log.write(1, {"train/elbo_nats": -1.0})
    log.close()
    steps = [json.loads(line)["step"] for line in (tmp_path / run_protocol.METRICS).read_text().splitlines()]
    assert steps == [0, 1]


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 200, b'{"state": "fini', b"[]", b"null", b"7", b"{}", b'{"state": "finished"}', b"\xff\xff",
     b'{"state": "happy", "step": 8}', b'{"state": ["finished"], "step": 8}', b'{"state": "finished", "step": "8"}'],
)  # fmt: skip
def test_a_result_that_is_empty_torn_or_of_another_shape_is_none(content: bytes, tmp_path: Path) -> None:
    assert run_protocol.result(tmp_path) is None
    (tmp_path / run_protocol.RESULT).write_bytes(content)
    assert run_protocol.result(tmp_path) is None


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    for result in ({"state": "finished", "step": 8}, {"state": "diverged", "error": "x"}):
        (tmp_path / run_protocol.RESULT).write_text(json.dumps(result))
        assert run_protocol.result(tmp_path) == result


@pytest.mark.parametrize("content", [None, b"", b"\0" * 200, b'{"model": {', b"\xff\xff", b"[]", b'{"model": 3}'])
def test_a_torn_config_is_that_of_the_newest_checkpoint(trained: Path, content: bytes | None, tmp_path: Path) -> None:
    known = run_folder.config_of(trained)
    assert known is not None and known.train.steps == 8
    copy = harness.copied(trained, tmp_path / "run")
    (copy / "config.json").unlink()
    if content is not None:
        (copy / "config.json").write_bytes(content)
    assert run_folder.config_of(copy) == known
    assert run_folder.config_of(tmp_path) is None
    assert isinstance(known, Config)
