"""Data in an object store: cached on each node, checked, mended; a real client and server."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import object_store
import pytest
from object_store import Door
from pyarrow import fs

from zfdist import object_store as storage
from zfdist.data.store import ShardCorrupt, Store, StoreError
from zfdist.object_store import ObjectFolder, StorageError


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with object_store.server() as port, object_store.door(port) as opened:
        yield opened


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(storage, "_LONGEST_PAUSE_S", 0.05)


@pytest.fixture
def uri(door: Door, store: Path, request: pytest.FixtureRequest) -> str:
    name = f"data/{request.node.name}"
    options = {"region": "us-east-1", "scheme": "http", "endpoint_override": f"127.0.0.1:{door.port}"}
    target = fs.S3FileSystem(**options)
    fs.copy_files(str(store), f"{object_store.BUCKET}/{name}", destination_filesystem=target)
    door.requests.clear()
    return object_store.uri(door.port, name)


def first_samples(store: Store) -> list[int]:
    windows = store.gather("train", np.arange(5), np.zeros(5, np.int64), 30)
    return [int(value) for value in windows.ravel()]


def reads(door: Door, name: str) -> int:
    return sum(method == "GET" and f"/{name}" in path for method, path in door.requests)


def read_in_a_process(uri: str, cache: str) -> list[int]:
    return first_samples(Store.open(uri, cache=cache))


def test_only_what_is_used_is_fetched_and_only_once(door: Door, uri: str, store: Path, tmp_path: Path) -> None:
    expected = first_samples(Store.open(store))
    opened = Store.open(uri, cache=tmp_path)
    assert opened.fingerprint == Store.open(store).fingerprint
    assert not any(method == "GET" and path.split("?")[0].endswith("00.arrow") for method, path in door.requests)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(read_in_a_process, [(uri, str(tmp_path))] * 2)
    assert found == [expected, expected] == [first_samples(opened)] * 2
    shards = {entry.path for entry in opened.manifest.splits["train"].shards}
    assert [reads(door, path) for path in shards] == [1], "fetched by more than one process"
    fetched = {p.relative_to(opened.root).as_posix() for p in opened.root.rglob("*.arrow")}
    assert shards <= fetched and not fetched & {e.path for e in opened.manifest.splits["test"].shards}


def test_a_damaged_copy_is_fetched_again(door: Door, uri: str, store: Path, tmp_path: Path) -> None:
    expected = first_samples(Store.open(store))
    opened = Store.open(uri, cache=tmp_path)
    path = opened.root / opened.manifest.splits["train"].shards[0].path
    assert first_samples(opened) == expected
    for damage in (lambda content: content[:-9], lambda content: content[:900] + b"\xff\xfe" + content[902:]):
        path.write_bytes(damage(path.read_bytes()))
        assert first_samples(Store.open(uri, "always", cache=tmp_path)) == expected


def test_faults_on_the_way_change_nothing(door: Door, uri: str, store: Path, tmp_path: Path) -> None:
    for fault in ("503", "reset", "truncated"):
        door.fail(3, fault, lambda method, path: method == "GET")  # type: ignore[arg-type]
        opened = Store.open(uri, cache=tmp_path / fault)
        assert first_samples(opened) == first_samples(Store.open(store)) and door.failed == 3


def test_what_is_wrong_is_said_in_a_sentence(door: Door, uri: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"s3://bucket/nothing: no manifest.json; copy a folder there"):
        Store.open(object_store.uri(door.port, "nothing"), cache=tmp_path)
    with pytest.raises(StorageError, match="there is no such bucket"):
        Store.open(uri.replace("bucket/", "nowhere/"), cache=tmp_path)
    opened = Store.open(uri, cache=tmp_path)
    name = opened.manifest.splits["train"].shards[0].path
    ObjectFolder(uri).write(name, b"something else")
    with pytest.raises(ShardCorrupt, match=r"its content is not what its manifest says; copy it again"):
        first_samples(opened)
    ObjectFolder(uri).delete([name])
    with pytest.raises(ShardCorrupt, match=r"missing; copy it again"):
        first_samples(opened)
