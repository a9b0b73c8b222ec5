"""A kind of data that the project does not have, added by what CONTRIBUTING.md names, from raw files to a report."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import harness
import numpy as np
import pytest
import torch

from jobs import evaluate, generate, paper, prepare, report
from jobs.cli import prepare_summary
from jobs.reporting import show
from jobs.reporting.draw_samples import Piece
from zfdist import train, world
from zfdist.config import ConfigError
from zfdist.data import kinds, sources
from zfdist.data.kinds import KINDS, Kind
from zfdist.data.order import OrderError
from zfdist.data.store import Store

HERE = world.World(0, 1, 0, torch.device("cpu"), None)
SPIKES = Kind(
    name="spikes",
    column="spikes",
    dtype=np.dtype(np.uint8),
    densities=("bernoulli",),
    frame_samples=4,
    title="spike trains",
    rows="trials",
    sequences={"utterances": "trial", "segments": "segment"},
    frame="bin",
    sample="neuron",
    scored="bins",
    prefix=3,
    new=5,
)
SOURCE = '''
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zfdist.data.kinds import KINDS
from zfdist.data.sources.convert import PlannedShard, convert
from zfdist.data.store_writer import Recording


@dataclass(frozen=True)
class Options:
    """Convert .npy files."""

    source: Path
    """Folder with the files."""
    trials: int = 3
    """Of each split."""


def prepare(options, out, progress):
    def planned(split, first):
        paths = sorted(options.source.iterdir())[first : first + options.trials]

        def recordings(notes, report):
            for path in paths:
                yield Recording(path.name, np.load(path).ravel())

        return PlannedShard(split, split + "-0", "key", len(paths), recordings)

    plan = [planned(split, options.trials * i) for i, split in enumerate(("train", "valid", "test"))]
    return convert(out, plan, source={}, licence="", total=0, kind=KINDS["spikes"])
'''


def lines(out: Path, made: Sequence[Piece], *_: object) -> Iterator[Path]:
    path = out / "spikes.txt"
    path.write_text("".join(f"{piece.title}: {piece.values_TX.int().tolist()}\n" for piece in made))
    yield path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of nine trials of 12 bins, made by `zfdist prepare` from the source above."""
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/spikes.py").write_text(SOURCE)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path / "sources")])
    monkeypatch.setitem(KINDS, "spikes", SPIKES)
    monkeypatch.setitem(show._WRITERS, "spikes", lines)
    (tmp_path / "raw").mkdir()
    rng = np.random.default_rng(0)
    for i in range(9):
        np.save(tmp_path / f"raw/{i}.npy", rng.integers(0, 2, (12, 4)).astype(np.uint8))
    out = tmp_path / "data"
    assert prepare.main(["spikes", "--source", str(tmp_path / "raw"), "--out", str(out), "--trials", "3"]) == 0
    return out


def test_a_further_kind_of_data(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = Store.open(store)
    table = "\n".join(prepare_summary.lines(store, opened.manifest))
    assert "trials" in table and "neurons" in table and "144" in table
    assert (opened.mean, opened.std, opened.lengths("test").tolist()) == (0.0, 1.0, [48] * 3)
    values = {"data__frame_samples": 4, "model__density": "bernoulli", "data__global_batch": 2, "train__steps": 2}
    world.connect()
    for name in ("zforcing", "rnn"):
        config = harness.tiny_config(store, model__system=name, data__segment_frames=5, **values)
        train.train(config, tmp_path / name, HERE, harness.Recorder())
    run = str(tmp_path / "zforcing")
    assert evaluate.main([run, "--json", str(tmp_path / "it.json")]) == 0
    got = json.loads((tmp_path / "it.json").read_text())
    assert (got["kind"], got["frames"], got["samples"], got["is_exact"]) == ("spikes", 33, 132, False)
    assert got["nll_nats"] is None and "ELBO per neuron" in capsys.readouterr().out
    assert generate.main([run, "--what", "continuations", "--num", "2", "--out", str(tmp_path / "out")]) == 0
    written = (tmp_path / "out/spikes.txt").read_text().splitlines()
    assert len(written) == 4 and written[1].count("[") == 1 + SPIKES.prefix + SPIKES.new
    page = report.write(
        [tmp_path / "zforcing", tmp_path / "rnn"], tmp_path / "report", say=lambda line: None
    ).read_text()
    assert "on spike trains" in page.splitlines()[0] and "nats per trial" in page and "KL per bin" in page
    assert page.count("```\nsample 0: [[") == 2
    assert paper.main(["table1", "--runs", run, "--out", str(tmp_path / "table")]) == 0
    assert "KL, nats per bin" in (tmp_path / "table/table1.md").read_text()


def test_what_does_not_go_with_it_is_refused(store: Path, tmp_path: Path) -> None:
    assert SPIKES in kinds.with_density("bernoulli") and SPIKES not in kinds.with_density("gaussian")
    world.connect()
    with pytest.raises(ConfigError, match="holds spikes, which take bernoulli"):
        train.train(harness.tiny_config(store), tmp_path / "run", HERE, harness.Recorder())
    with pytest.raises(OrderError, match="frame_samples = 20: must be 4"):
        train.train(harness.tiny_config(store, model__density="bernoulli"), tmp_path / "run", HERE, harness.Recorder())


@pytest.mark.parametrize("name", ["convert", "nothing", "../x", ""])
def test_a_name_that_is_no_source_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`convert` is a file beside the sources that prepares nothing by itself."""
    assert prepare.main([name, "--source", "a", "--out", "b"]) == 2
