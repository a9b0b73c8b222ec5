"""zfdist track: what a tracker is told of a run, once; and MLflow and Weights & Biases themselves."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import track
from jobs.tracking.tracker import Position, untold

ROOT = Path(__file__).parents[2]
_RECORDS = st.lists(
    st.tuples(st.integers(0, 5), st.sets(st.sampled_from("abc"), min_size=1)).map(
        lambda pair: {"step": pair[0], "time_s": 1.0} | dict.fromkeys(sorted(pair[1]), 0.5)
    ),
    max_size=8,
).map(lambda records: sorted(records, key=lambda record: record["step"]))


def told(records: list[dict[str, Any]], position: Position) -> tuple[list[tuple[int, str]], Position]:
    new = list(untold(records, position))
    points = [(step, name) for step, _, metrics, _ in new for name in metrics]
    return points, new[-1][3] if new else position


@given(_RECORDS, st.data())
def test_nothing_is_told_twice_or_left_out(records: list[dict[str, Any]], data: st.DataObject) -> None:
    """Wherever the telling is cut, and though a run that lost work writes the records behind a checkpoint again."""
    everything = {(record["step"], name) for record in records for name in record if name in "abc"}
    first, position = told(records[: data.draw(st.integers(0, len(records)))], Position())
    again, end = told(records, position)
    assert len(set(first + again)) == len(first + again) and set(first + again) == everything
    assert told(records, end)[0] == []


def test_a_sweep_is_followed_until_its_results_are_written(tmp_path: Path) -> None:
    assert track.has_begun_all(tmp_path), "a run"
    (tmp_path / "sweep.json").write_text('{"trials": []}')  # as of one that searches, between two trials
    assert not track.has_begun_all(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    assert track.has_begun_all(tmp_path)


def test_a_tracker_that_is_not_installed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert track.main([str(trained), "--to", "wandb"]) == 2
    assert capsys.readouterr().err == "error: --to wandb: is not installed here; pip install 'zfdist[wandb]'\n"


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_the_trackers_themselves(trained: Path, tmp_path: Path) -> None:
    """In a venv of their own, as what they ask for does not go with the pins: a server of MLflow, files of W&B."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "mlflow", "wandb"], check=True)
    packages = next((tmp_path / "venv/lib").iterdir()) / "site-packages"
    ours = Path(pytest.__file__).parents[1]
    (packages / "zfdist.pth").write_text(f"{ROOT}\n{ours}\n")  # behind what the trackers brought
    run = shutil.copytree(trained, tmp_path / "runs/first")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [python, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--workers", "1",
         "--artifacts-destination", tmp_path / "artifacts", "--host", "127.0.0.1", "--port", str(port)],
        cwd=tmp_path, stdout=(tmp_path / "server.log").open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        _wait_for(f"{url}/health", server)
        _mlflow(python, run, url)
    finally:
        server.terminate()
        server.wait()
    _wandb(python, run, tmp_path)


def _track(python: Path, run: Path, *flags: str, **environment: str) -> str:
    command = [python, "-m", "jobs", "track", run, *flags]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, cwd=run.parent, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _points(run: Path) -> dict[str, list[tuple[int, float]]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name not in ("step", "time_s") and isinstance(value, int | float):
                points.setdefault(name, []).append((record["step"], value))
    return points


_READ = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(sys.argv[1])
(experiment,) = [e for e in client.search_experiments() if e.name == "zfdist"]
(run,) = client.search_runs([experiment.experiment_id])
names = list(run.data.metrics)
history = {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in names}
files = [file.path for file in client.list_artifacts(run.info.run_id)]
print(json.dumps({"history": history, "params": run.data.params, "files": files, "status": run.info.status}))
"""


def _mlflow(python: Path, run: Path, url: str) -> None:
    def read() -> Any:
        return json.loads(subprocess.run([python, "-c", _READ, url], capture_output=True, text=True, check=True).stdout)

    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    result = (run / "result.json").read_text()
    (run / "metrics.jsonl").write_text("".join(lines[:5]))  # while it trains
    (run / "result.json").unlink()
    _track(python, run, "--to", "mlflow", "--url", url, "--once")
    assert read()["status"] == "RUNNING"
    (run / "metrics.jsonl").write_text("".join(lines))
    (run / "result.json").write_text(result)
    assert "all of it told" in _track(python, run, "--to", "mlflow", "--url", url)
    seen = read()
    assert {name: [tuple(point) for point in points] for name, points in seen["history"].items()} == _points(run)
    hidden = json.loads((run / "config.json").read_text())["model"]["hidden"]
    assert seen["status"] == "FINISHED" and seen["params"]["model.hidden"] == str(hidden)
    assert {"report.html", "report.md", "samples"} <= set(seen["files"])
    assert _track(python, run, "--to", "mlflow", "--url", url) == ""
    (run / ".told-mlflow.json").unlink()  # as of a copy of the run on another machine
    _track(python, run, "--to", "mlflow", "--url", url, "--no-report")
    assert read()["history"] == seen["history"]


_SCAN = """
import json, sys
from wandb.proto import wandb_internal_pb2

BLOCK = 32768  # a log of LevelDB: crc (4 bytes), length (2), type (1: whole, 2 to 4: first to last part), a part
content, at, parts = open(sys.argv[1], "rb").read(), 7, b""
while at + 7 <= len(content):
    if BLOCK - at % BLOCK < 7:
        at += BLOCK - at % BLOCK
        continue
    length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
    parts = (b"" if kind in (1, 2) else parts) + content[at + 7 : at + 7 + length]
    at += 7 + length
    if kind not in (1, 4):
        continue
    record = wandb_internal_pb2.Record()
    record.ParseFromString(parts)
    if record.WhichOneof("record_type") == "history":
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        print(json.dumps(items))
"""


def _wandb(python: Path, run: Path, tmp_path: Path) -> None:
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    assert "all of it told" in _track(python, run, "--to", "wandb", **offline)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    rows = subprocess.run([python, "-c", _SCAN, file], capture_output=True, text=True, check=True).stdout.splitlines()
    seen: dict[str, list[tuple[int, float]]] = {}
    for row in map(json.loads, rows):
        for name, value in row.items():
            if not name.startswith("_"):
                seen.setdefault(name, []).append((row["_step"], value))
    assert seen == _points(run)
    assert _track(python, run, "--to", "wandb", **offline) == ""
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def _wait_for(url: str, server: "subprocess.Popen[Any]") -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no server at {url}, exit code {server.poll()}; python {sys.version}")
