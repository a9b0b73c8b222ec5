"""The section of a report about a sweep's search, from a folder with recorded trials."""

import csv
import json
from pathlib import Path

import pytest

from cluster.sweep import record
from cluster.sweep.goal import Goal, Objective, as_tree
from cluster.sweep.search_space import Space
from jobs.reporting import sweep_figures
from zfdist.config import Config

SPACE = Space(
    choice={"loss.kl.kind": ("constant", "linear")},
    uniform={"loss.kl.start": (0.1, 0.9)},
    loguniform={"optim.learning_rate": (1e-4, 1e-1)},
)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trials, best at a learning rate of 0.01; one was stopped early, one diverged before it was validated."""
    folder = tmp_path_factory.mktemp("sweeps") / "s"
    made = record.prepare(folder, Config(), SPACE, samples=60, seed=0)
    goal = Goal((Objective(), Objective("valid/kl_nats", "min")))
    made._replace(tree=made.tree | {"goal": as_tree(goal)}).write(folder)
    for number, trial in enumerate(made.trials):
        run = folder / "trials" / trial.id
        run.mkdir(parents=True)
        state = {3: "stopped", 4: "diverged"}.get(number, "finished")
        (run / "result.json").write_text(json.dumps({"state": state, "step": 100}))
        elbo = -abs(trial.values["optim.learning_rate"] - 0.01)
        line = {"step": 100, "time_s": 1.0, "valid/elbo_nats": elbo, "valid/kl_nats": 10 * elbo}
        (run / "metrics.jsonl").write_text("" if state == "diverged" else json.dumps(line) + "\n")
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_section_has_every_figure_with_its_numbers(swept: Path, tmp_path: Path) -> None:
    found = sweep_figures.read(swept)
    assert found is not None and len(found.scored) > 30
    (tmp_path / "figures").mkdir()
    section = sweep_figures.write(found, tmp_path, Path("figures"))
    for name in ("history", "importance", "slices", "parallel", "pareto"):
        assert f"(figures/{name}.png)" in section
        assert (tmp_path / f"figures/{name}.png").stat().st_size > 5_000
    history = rows(tmp_path / "figures/history.csv")
    so_far = [float(row["best so far"]) for row in history]
    assert so_far == sorted(so_far) and so_far[-1] == max(float(row["valid/elbo_nats"]) for row in history)
    assert [row["state"] for row in history].count("stopped") == 1
    parts = {row["name"]: float(row["importance"]) for row in rows(tmp_path / "figures/importance.csv")}
    assert max(parts, key=lambda name: parts[name]) == "optim.learning_rate"
    front = [row for row in rows(tmp_path / "figures/pareto.csv") if row["on the front"] == "True"]
    assert front and max(float(row["valid/elbo_nats"]) for row in history) in [
        float(r["valid/elbo_nats"]) for r in front
    ]
    assert all(
        (row["loss.kl.start"] == "") == (row["loss.kl.kind"] == "constant")
        for row in rows(tmp_path / "figures/slices.csv")
    )


def test_a_base_value_that_lies_beyond_a_range_is_drawn_beyond_its_axis(tmp_path: Path) -> None:
    space = Space(grid={"loss.beta": (0.0, 0.005)}, loguniform={"loss.alpha": (1e-4, 1.0)})
    base = Config().with_values({"loss.alpha": 0.0})  # as in the plain model, and no logarithm has it
    made = record.prepare(tmp_path / "s", base, space, samples=2, seed=0)
    made.write(tmp_path / "s")
    for number, trial in enumerate(made.trials):
        run = tmp_path / "s/trials" / trial.id
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text(json.dumps({"step": 10, "valid/elbo_nats": float(number)}) + "\n")
    found = sweep_figures.read(tmp_path / "s")
    assert found is not None and [s.values["loss.alpha"] for s in found.scored][:2] == [0.0, 0.0]
    (tmp_path / "figures").mkdir()
    assert "(figures/parallel.png)" in sweep_figures.write(found, tmp_path, Path("figures"))


def test_a_folder_that_is_no_sweep_has_no_section(tmp_path: Path) -> None:
    assert sweep_figures.read(tmp_path) is None
