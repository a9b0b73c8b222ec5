"""Where a submitted command finds runs and data, and the sample that is brought along if there are none."""

from pathlib import Path

import object_store
import pytest

from jobs import cluster
from jobs.cli import places, sample
from jobs.cli.cluster_options import Submit
from zfdist.data.store import Store

ROOT = Path(__file__).parents[2]
SHIPPED = Submit(file=ROOT / "ray-cluster.yaml", overlay=ROOT / "cluster/gcp.yaml")
ELSEWHERE = "s3://b/runs?scheme=http"


@pytest.mark.parametrize(
    ("options", "recipe", "data"),
    [
        (SHIPPED, "demo", "gs://YOUR-BUCKET/zfdist/data/demo"),
        (SHIPPED, "timit", "gs://YOUR-BUCKET/zfdist/data/timit"),
        (SHIPPED, "dmeo", None),
        (Submit(storage=ELSEWHERE), "demo", "s3://b/runs/.data/demo?scheme=http"),
        (Submit(storage="/shared/runs"), "demo", "/shared/runs/.data/demo"),
        (Submit(storage="/shared/runs"), "timit", None),
    ],
)
def test_data_of_a_recipe(options: Submit, recipe: str, data: str | None) -> None:
    assert places.data_of(options, recipe, options.storage or "unused") == data


def test_the_sample_is_brought_once(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        sample.bring(str(tmp_path / "data" / "demo"), said.append)
    assert len(said) == 1 and "preparing the speech sample that ships" in said[0]
    with object_store.server() as port:
        uri = object_store.uri(port, "data/demo")
        for _ in range(2):
            sample.bring(uri, said.append)
        stored = Store.open(uri, cache=tmp_path / "cache").fingerprint
    assert len(said) == 2 and stored == Store.open(tmp_path / "data" / "demo").fingerprint


def test_a_plan_names_the_machines_of_an_overlay(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "demo", "--x-dim", "200", "--file", str(SHIPPED.file), "--overlay", str(SHIPPED.overlay)]
    assert cluster.main(words) == 0
    assert capsys.readouterr().out.endswith("gpu: up to 8 of 8 CPU, 1 GPU\n")
    assert cluster.main([*words[:-1], "none.yaml"]) == 1
    assert capsys.readouterr().out == ""
