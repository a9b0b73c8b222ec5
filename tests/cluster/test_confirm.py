"""Whether a difference over seeds is more than noise."""

import csv
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from cluster.sweep.confirm import Standing, difference, trials, verdict, write
from cluster.sweep.goal import Objective
from zfdist.config import Config

VALUES = st.lists(st.floats(-100, 100).map(lambda v: round(v, 3)), min_size=3, max_size=8)


def standing(name: str, values: list[float]) -> Standing:
    return Standing(name, {"loss.alpha": 0.1}, dict(enumerate(values, start=1)))


@given(VALUES, st.data())
def test_the_verdict_is_that_of_the_paired_t_test(values: list[float], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.floats(-100, 100).map(lambda v: round(v, 3)), min_size=len(values), max_size=8))
    others = others[: len(values)]
    gap = difference(standing("a", values), standing("b", others), Objective())
    assert gap is not None
    if np.std(np.subtract(values, others)) > 1e-9:
        p_value = ttest_rel(values, others).pvalue
        assert gap.is_more_than_noise == (p_value < 0.05) or abs(p_value - 0.05) < 1e-6
    assert gap.better == ("a" if np.mean(values) >= np.mean(others) else "b") or abs(gap.mean) < 1e-9


def test_less_is_better_where_it_is_asked_for_and_only_shared_seeds_count() -> None:
    one, other = Standing("000", {}, {1: 1.0, 2: 2.0, 3: 9.0}), Standing("001", {}, {1: 2.0, 2: 3.1})
    gap = difference(one, other, Objective("valid/kl_nats", "min"))
    assert gap is not None and (gap.better, gap.seeds) == ("000", 2) and abs(gap.mean - 1.05) < 1e-9
    assert difference(one, Standing("002", {}, {7: 1.0}), Objective()) is None


def test_seeds_are_new_and_the_same_for_all(tmp_path: Path) -> None:
    best = [{"id": "004", "values": {"loss.alpha": 0.1}}, {"id": "001", "values": {"loss.alpha": 0.2}}]
    listed = trials(Config(), best, 3)
    own = Config().train.seed
    assert [t.id for t in listed] == [f"{i}-seed-{own + s}" for i in ("004", "001") for s in (1, 2, 3)]
    assert all(t.values["train.seed"] != own for t in listed)
    found = [standing("004", [1.0, 1.1, 1.2]), standing("001", [0.0, 0.11, 0.2])]
    assert "004 is better than 001 by 0.997" in verdict(found, Objective())[-1]
    assert "more than noise" in verdict(found, Objective())[-1]
    write(tmp_path, found, Objective())
    with (tmp_path / "verdict.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["004", "001"] and rows[1]["more_than_noise"] == "True"
