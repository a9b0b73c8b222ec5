"""A sweep whose trials live in an object store, and the commands that read it there."""

import json
from pathlib import Path

import commands
import harness
import object_store
import pytest


def test_sweep_in_a_store_and_what_reads_it(
    cluster: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = harness.tiny_config(
        store,
        train__steps=20,
        train__validate_every=10,
        checkpoint__every_steps=10,
        data__cache=str(tmp_path / "cache"),
    )
    with object_store.server() as port:
        runs = object_store.uri(port, "runs")
        words = [
            "demo",
            "--name",
            "s",
            "--runs",
            runs,
            "--samples",
            "0",
            "--grid",
            "loss.alpha=0,0.05",
            "--scheduler",
            "none",
        ]
        code, out = commands.run("sweep", *words, *commands.flags(config), folder=tmp_path)
        assert code == 0 and "best trial: s3://bucket/runs/s/trials/00" in out, out
        code, again = commands.run("sweep", *words, *commands.flags(config), folder=tmp_path)
        assert code == 0 and "2 trials, 2 of them over" in again, again

        monkeypatch.setenv("HOME", str(tmp_path / "another machine"))
        trial = object_store.uri(port, "runs/s/trials/001")
        code, out = commands.run("evaluate", trial, "--json", "scores.json", folder=tmp_path)
        assert code == 0, out
        assert json.loads((tmp_path / "scores.json").read_text())["sequences"] > 0
        code, out = commands.run("report", object_store.uri(port, "runs/s"), "--out", "report", folder=tmp_path)
        assert code == 0 and (tmp_path / "report/report.md").read_text().count("0.05") >= 1, out
