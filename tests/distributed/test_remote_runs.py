"""Runs in an object store: a real S3 client against a real server, with faults put between them."""

import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import object_store
import pytest
import torch
from object_store import Door
from safetensors.torch import load

from zfdist import lease, train, world
from zfdist import object_store as storage
from zfdist.checkpoint import fetch, run_sync
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint.folder import CheckpointError
from zfdist.config import Config
from zfdist.object_store import ObjectFolder, StorageError
from zfdist.run_protocol import Weights

STEPS = 8
HERE = world.World(0, 1, 0, torch.device("cpu"), None)


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with object_store.server() as port:
        yield port


@pytest.fixture(scope="module", autouse=True)
def process_group() -> None:
    world.connect()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses as short as on a machine where all is near."""
    monkeypatch.setattr(storage, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(storage, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(lease, "_SETTLE_S", 0.05)


@pytest.fixture
def door(server: int) -> Iterator[Door]:
    with object_store.door(server) as opened:
        yield opened


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train.train(harness.tiny_config(store), folder, HERE, harness.Recorder())
    return folder


def train_remotely(
    uri: str, config: Config, cache: str, stop_after: int | None = None, owner: str = "me", private: bool = False
) -> tuple[str, int]:
    """Train as a worker of a cluster does; `private` gives every rank a disk of its own."""
    here = world.connect()
    own = Path(cache, str(here.rank)) if private else Path(cache)
    with run_sync.opened(uri, here.rank, owner=owner, cache=own, tries=config.checkpoint.max_failures) as copy:
        return tuple(train.train(config, copy.folder, here, harness.Recorder(stop_after), copy=copy))


def weights(uri: str, step: int = STEPS) -> bytes:
    """The weights of a step as the store has them."""
    place = ObjectFolder(uri)
    (name,) = [n for n in place.sizes() if n.endswith(f"/{checkpoint.WEIGHTS}") and f"step-{step:08d}." in n]
    return place.read(name)


def weights_of(run: Path, step: int = STEPS) -> bytes:
    return (checkpoint.folder_of(run, step) / checkpoint.WEIGHTS).read_bytes()


def manifests(uri: str) -> list[str]:
    return sorted(n for n in ObjectFolder(uri).sizes() if n.endswith("/manifest.json"))


def test_a_fresh_node_goes_on_bit_for_bit(server: int, store: Path, tmp_path: Path, undisturbed: Path) -> None:
    uri = object_store.uri(server, "runs/fresh")
    config = harness.tiny_config(store)
    assert train_remotely(uri, config, str(tmp_path / "a"), stop_after=5) == ("stopped", 5)
    assert train_remotely(uri, config, str(tmp_path / "b")) == ("finished", STEPS)
    assert weights(uri) == weights_of(undisturbed)
    assert lease.NAME not in ObjectFolder(uri).sizes()
    lines = ObjectFolder(uri).read("metrics.jsonl").decode().splitlines()
    assert lines == (run_sync.folder_of(uri, tmp_path / "b") / "metrics.jsonl").read_text().splitlines()
    steps = [int(line.split('"step": ')[1].split(",")[0]) for line in lines if "train/elbo_nats" in line]
    assert steps == [3, 6, 8]
    assert len(manifests(uri)) == 3


def test_a_new_run_takes_the_weights_of_one_in_a_store(server: int, store: Path, tmp_path: Path) -> None:
    uri = object_store.uri(server, "runs/taught")
    config = harness.tiny_config(store, checkpoint__keep_best=1, data__cache=str(tmp_path / "here"))
    train_remotely(uri, config, str(tmp_path / "there"))
    new = config.with_values({"train.steps": 1, "optim.learning_rate": 0.0})
    train.train(new, tmp_path / "new", HERE, harness.Recorder(), start_from=Weights(uri))
    best = checkpoint.best(run_sync.folder_of(uri, tmp_path / "there"))
    assert best is not None
    assert weights_of(tmp_path / "new", 1) == (best / checkpoint.WEIGHTS).read_bytes()
    with pytest.raises(CheckpointError, match=r"s3://bucket/runs/nobody: no such run"):
        nobody = object_store.uri(server, "runs/nobody")
        train.train(new, tmp_path / "newer", HERE, harness.Recorder(), start_from=Weights(nobody))


def test_the_best_validation_is_kept_in_the_store(server: int, store: Path, tmp_path: Path) -> None:
    uri = object_store.uri(server, "runs/best")
    values = {"checkpoint__every_steps": 100, "checkpoint__keep_last": 1, "train__validate_every": 2}
    config = harness.tiny_config(store, **values, data__cache=str(tmp_path / "here"))
    assert train_remotely(uri, config, str(tmp_path / "a"), stop_after=5) == ("stopped", 5)
    ruined = config.with_values({"optim.learning_rate": 5.0})
    assert train_remotely(uri, ruined, str(tmp_path / "b")) == ("finished", STEPS)
    assert [name.split("/")[1][:13] for name in manifests(uri)] == ["step-00000004", "step-00000008"]
    read = fetch.with_weights(fetch.local(uri, tmp_path / "c"))
    assert checkpoint.resolve(read).name == "step-00000004"


@pytest.mark.parametrize("fault", ["503", "reset", "truncated"])
def test_faults_that_pass_change_nothing(
    door: Door, store: Path, tmp_path: Path, undisturbed: Path, fault: Any
) -> None:
    uri = object_store.uri(door.port, f"runs/faults-{fault}")
    config = harness.tiny_config(store)
    chosen = (lambda method, path: method == "GET") if fault == "truncated" else (lambda method, path: True)
    for cache, stop_after, ended in (("a", 5, ("stopped", 5)), ("b", None, ("finished", STEPS))):
        door.fail(4, fault, chosen)
        assert train_remotely(uri, config, str(tmp_path / cache), stop_after) == ended
        assert door.failed == (4 if cache == "b" or fault != "truncated" else door.failed)
    assert weights(uri) == weights_of(undisturbed)


def test_faults_that_last_stop_the_run_with_their_cause(door: Door, store: Path, tmp_path: Path) -> None:
    uri = object_store.uri(door.port, "runs/broken")
    config = harness.tiny_config(store, checkpoint__max_failures=3)

    def is_second_checkpoint(method: str, path: str) -> bool:
        return method == "PUT" and "step-00000008" in path

    door.fail(10**6, "503", is_second_checkpoint)
    with pytest.raises(StorageError, match=r"step-00000008.*could not write it \(tried 3 times; AWS Error SLOW_DOWN"):
        train_remotely(uri, config, str(tmp_path / "a"))
    assert door.failed == 3
    assert [n for n in manifests(uri) if "step-00000004" in n] == manifests(uri) and len(manifests(uri)) == 1
    assert lease.NAME not in ObjectFolder(uri).sizes(), "the claim is left behind"
    assert "metrics.jsonl" in ObjectFolder(uri).sizes()


@pytest.mark.parametrize("victim", ["mp_rank_00_model_states.pt", "manifest.json"])
def test_kill_9_in_mid_upload_then_another_node(
    door: Door, store: Path, tmp_path: Path, undisturbed: Path, victim: str
) -> None:
    uri = object_store.uri(door.port, f"runs/killed-before-{victim}")
    config = harness.tiny_config(store)
    code = (
        "import pickle, sys; sys.path[:0] = sys.argv[1:3]; import harness, test_remote_runs\n"
        "harness.torch.set_num_threads(1)\n"
        "test_remote_runs.train_remotely(*pickle.loads(bytes.fromhex(sys.argv[3])))"
    )
    places = [str(Path(__file__).parent), str(Path(harness.__file__).parent)]
    argument = pickle.dumps((uri, config, str(tmp_path / "a"))).hex()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *places, argument],
    )

    def kills(method: str, path: str) -> bool:
        if method == "PUT" and "step-00000008" in path and path.split("?")[0].endswith(victim):
            process.kill()
            return True
        return False

    door.fail(10**6, "reset", kills)
    assert process.wait(200) == -signal.SIGKILL
    left = [n for n in ObjectFolder(uri).sizes("checkpoints") if "step-00000008" in n]
    assert not any(n.endswith("manifest.json") for n in left)
    if victim == "manifest.json":
        written = [p for p in checkpoint.folder_of(undisturbed, STEPS).rglob("*") if p.is_file()]
        assert len(left) == len(written) - 1, "all other files were there"
    door.fail(0, "reset")
    assert train_remotely(uri, config, str(tmp_path / "b")) == ("finished", STEPS)
    assert weights(uri) == weights_of(undisturbed)
    assert len(manifests(uri)) == 2 and not set(left) & set(ObjectFolder(uri).sizes()), (
        "what the dead launch left stays"
    )


def test_a_damaged_checkpoint_is_set_aside(server: int, store: Path, tmp_path: Path, undisturbed: Path) -> None:
    uri = object_store.uri(server, "runs/damaged")
    config = harness.tiny_config(store)
    assert train_remotely(uri, config, str(tmp_path / "a")) == ("finished", STEPS)
    place = ObjectFolder(uri)
    (victim,) = [n for n in place.sizes() if "step-00000008" in n and n.endswith("optim_states.pt")]
    content = place.read(victim)
    place.write(victim, content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert train_remotely(uri, config, str(tmp_path / "b")) == ("finished", STEPS)
    names = place.sizes()
    assert [n for n in names if n.endswith("manifest.damaged.json")] == [
        victim.split("/deepspeed")[0] + "/manifest.damaged.json"
    ]
    (fresh,) = [n for n in manifests(uri) if "step-00000008" in n]
    assert place.read(fresh.replace("manifest.json", "model.safetensors")) == weights_of(undisturbed)
    for name in manifests(uri):  # and with none intact the run never starts over
        place.write(name.replace("manifest.json", "model.safetensors"), b"short")
    for cache in ("c", "c"):  # nor at the second try
        with pytest.raises(CheckpointError, match=r"none of its .*checkpoints is intact"):
            train_remotely(uri, config, str(tmp_path / cache))


def several_ranks(server: int, config: Config, folder: str) -> list[Any]:
    """What two ranks do: a run on a shared disk, then the same in a store, cut and gone on with on other nodes."""
    shared = train_parts_of(Path(folder, "shared"), config)
    uris = [object_store.uri(server, f"runs/two-{i}") for i in range(2)]
    ended: list[Any] = [shared]
    ended += [train_remotely(uri, config, f"{folder}/a", stop_after=4, private=True) for uri in uris]
    ended.append(train_remotely(uris[0], config, f"{folder}/b", private=True))
    try:
        train_parts_of(Path(folder, f"own-{world.connect().rank}"), config)
    except CheckpointError as error:
        ended.append(str(error))
    return ended


def train_parts_of(folder: Path, config: Config) -> tuple[str, int]:
    return tuple(train.train(config, folder, world.connect(), harness.Recorder()))


def test_two_nodes_that_share_nothing(server: int, store: Path, tmp_path: Path) -> None:
    config = harness.tiny_config(store)
    for ended in harness.run_ranks(2, several_ranks, server, config, str(tmp_path)):
        assert ended[:4] == [("finished", STEPS), ("stopped", 4), ("stopped", 4), ("finished", STEPS)]
        assert "is not one folder but another one on each of" in ended[4]
    first, second = (object_store.uri(server, f"runs/two-{i}") for i in range(2))
    assert weights(first) == weights_of(tmp_path / "shared")
    (manifest,) = [n for n in manifests(first) if "step-00000008" in n]
    files = checkpoint.parse(ObjectFolder(first).read(manifest), manifest).files
    assert sum("optim_states" in name for name in files) == 2
    kept = [sorted(p.name for p in (tmp_path / "b" / str(r)).rglob("step-00000008/**/*.pt")) for r in range(2)]
    assert kept[0] != kept[1] and len(kept[1]) == 1, "each node holds what it wrote"
    assert train_remotely(second, config, str(tmp_path / "c")) == ("finished", STEPS)
    ours, theirs = load(weights(second)), load(weights(first))
    assert all((ours[name] - theirs[name]).abs().max() < 1e-5 for name in ours)


def test_one_run_has_one_trainer(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    monkeypatch.setattr(lease, "STALE_S", 1.0)
    place = ObjectFolder(object_store.uri(server, "runs/claimed"))
    with lease.held(place, "one", 1, wait_s=0) as held:
        with pytest.raises(lease.BusyError, match=r"s3://bucket/runs/claimed is being trained by another process"):
            lease.Lease(place, "two", 1).acquire(wait_s=2.0)
        with lease.held(place, "one", 2, wait_s=0):  # of the same command: it takes over from one that renews
            held._ended.wait(1.0)  # both have renewed several times
            with pytest.raises(lease.BusyError, match="was taken over by another process"):
                held.check()
    lease.Lease(place, "two", 1).acquire(wait_s=0)  # given free
    assert b'"two"' in place.read(lease.NAME)


def test_what_a_store_refuses_is_one_sentence(server: int) -> None:
    uri = object_store.uri(server, "runs")
    assert 0 < storage.probe(uri) < 60
    assert not any(".probe" in name for name in ObjectFolder(uri).sizes())
    for wrong, message in {
        uri.replace("bucket/", "nowhere/"): "there is no such bucket",
        uri.replace(f":{server}", ":9"): "could not write it .tried once; AWS Error NETWORK_CONNECTION",
        "s3://me:secret@bucket/runs": "no credentials in a URI",
        "s3:///runs": "names no bucket",
        "s3://bucket/runs?color=red": "unknown option color; there are region",
        "nonsense://bucket": "Unrecognized filesystem type",
    }.items():
        with pytest.raises(StorageError, match=message) as caught:
            storage.probe(wrong)
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
