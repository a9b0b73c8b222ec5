"""A damaged store: never a crash, never another sequence than was written; always the file and what to do.

What is said is judged too. Hashes are made to fit half of the damaged files, as a manifest that was made for them
would: what they hold must be checked by what it is.
"""

import dataclasses
import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from stores import make, noise

from zfdist.data import manifest as manifests
from zfdist.data import store_writer
from zfdist.data.manifest import StoreManifest
from zfdist.data.store import Store, StoreError
from zfdist.data.verify import verify
from zfdist.errors import ZfdistError

Damage = Callable[[random.Random, Path], str]
FILES = ("manifest.json", "index-train.arrow", "shard", "other shard")
NUMBERS = (0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**40, 1e308, -0.5, True, None, "7", [], {})


def made(folder: Path) -> Path:
    return make(folder, [noise(300, 301, 17, 900, 1), noise(301, 300, 17, 1, 900, seed=1)])


def path_of(root: Path, name: str) -> Path:
    if name.endswith("shard"):
        shards = json.loads((root / "manifest.json").read_bytes())["splits"]["train"]["shards"]
        return root / str(shards[name == "other shard"]["path"])
    return root / name


def random_bytes(dice: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(dice.choice((1, 1, 2, 8, 64))):
        content[dice.randrange(len(content))] = dice.randrange(256)
    path.write_bytes(content)


def cut(dice: random.Random, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: dice.randrange(len(content))])


def lengthened(dice: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes() + dice.randbytes(dice.randrange(1, 100)))


def other_endianness(dice: random.Random, path: Path) -> None:
    content = path.read_bytes()
    width = dice.choice((2, 4, 8))
    start = dice.randrange(0, max(1, len(content) - 64)) // 8 * 8
    stop = min(len(content), start + dice.choice((64, 1024, len(content)))) // 8 * 8
    turned = np.frombuffer(content[start:stop], f"<i{width}").byteswap().tobytes() if stop > start else b""
    path.write_bytes(content[:start] + turned + content[max(start, stop) :])


def giant_number(dice: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = dice.randrange(0, max(1, len(content) - 8)) // 8 * 8
    content[start : start + 8] = dice.choice((b"\xff" * 7 + b"\x7f", b"\xff" * 8, b"\0\0\0\0\1\0\0\0", bytes(8)))
    path.write_bytes(content)


def zeros(dice: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = dice.randrange(len(content))
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)


BYTES = (random_bytes, cut, lengthened, other_endianness, giant_number, zeros)


def fit_hashes(root: Path) -> None:
    """Make sizes and hashes of the manifest those of the files that are there."""
    tree = json.loads((root / "manifest.json").read_bytes())
    for split in tree["splits"].values():
        for entry in (split["index"], *split["shards"]):
            content = (root / entry["path"]).read_bytes()
            entry |= {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}
            entry |= {"sha256": hashlib.sha256(content).hexdigest()} if "sha256" in entry else {}
    (root / "manifest.json").write_text(json.dumps(tree))


def change_manifest(dice: random.Random, root: Path) -> None:
    """Change a value anywhere in the manifest, or exchange two, and let what is derived follow."""
    tree = json.loads((root / "manifest.json").read_bytes())
    places: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                pending.append(node[key])
    node, key = dice.choice(places)
    other, other_key = dice.choice(places)
    what = dice.randrange(4)
    if what == 0:
        node[key] = dice.choice(NUMBERS)
    elif what == 1:
        node[key] = other[other_key]
    elif what == 2 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
        node[key] += dice.choice((-1, 1, 1000))
    elif what == 3 and isinstance(node, dict):
        del node[key]
    text = json.dumps(tree, default=str, check_circular=False) if what != 1 else _text(tree)
    (root / "manifest.json").write_text(text)
    if dice.random() < 0.5:
        _let_follow(root)


def _text(tree: Any) -> str:
    try:
        return json.dumps(tree)
    except (ValueError, RecursionError):  # a value became a part of itself
        return "{}"


def _let_follow(root: Path) -> None:
    """Make fingerprint and normalisation those that follow from the rest, where that can be."""
    path = root / "manifest.json"
    try:
        tree = json.loads(path.read_bytes())
        manifest = manifests.build(StoreManifest, tree, "m")
        normal = manifests.normalisation(manifest.kind, manifest.normalisation.split, manifest.splits)
        identity = manifests.fingerprint(manifest.kind, manifest.sample_rate, manifest.splits, manifest.vocabulary)
        path.write_text(json.dumps(tree | {"normalisation": dataclasses.asdict(normal), "fingerprint": identity}))
    except Exception:
        return


def damage(dice: random.Random, root: Path) -> str:
    """Damage a store in one way; return which."""
    what = dice.randrange(10)
    if what < 3:
        change_manifest(dice, root)
        return "manifest's values"
    if what == 3:
        a, b = (path_of(root, name) for name in dice.sample(FILES[1:], 2))
        content = a.read_bytes()
        if dice.random() < 0.5:
            a.write_bytes(b.read_bytes())
        b.write_bytes(content)
        name = "files exchanged or doubled"
    else:
        how, file = dice.choice(BYTES), dice.choice(FILES)
        how(dice, path_of(root, file))
        name = f"{how.__name__} of {file}"
        if file == "manifest.json":
            return name
    if dice.random() < 0.5:
        fit_hashes(root)
        return name + ", with fitting hashes"
    return name


def read(root: Path) -> tuple[str, list[bytes], list[str]]:
    """Return fingerprint, recordings and names of a store."""
    store = Store.open(root, "always")
    rows = []
    for i, length in enumerate(store.lengths("train").tolist()):
        rows.append(store.gather("train", np.array([i]), np.array([0]), length)[0].tobytes())
    return store.fingerprint, rows, store.names("train")


def fuzz(folder: Path, seeds: range) -> Counter[str]:
    """Damage a store once for each seed; return how many were found, and how many changed nothing that is read."""
    whole = made(folder / "whole")
    before, rows, names = read(whole)
    found: Counter[str] = Counter()
    for seed in seeds:
        dice = random.Random(seed)
        root = folder / "damaged"
        shutil.copytree(whole, root)
        how = damage(dice, root)
        try:
            identity, got, its_names = read(root)
        except ZfdistError as error:
            assert str(root) in str(error), f"seed {seed}, {how}: names no file: {error}"
            assert "prepare" in str(error), f"seed {seed}, {how}: no remedy: {error}"
            found["found"] += 1
        else:
            is_whole = got == rows and its_names == names
            # Hashes made to fit: what is read is not what was written, and says so by its name, or to `verify`.
            is_told = identity != before or verify(root) != []
            assert is_whole or "with fitting hashes" in how or how == "manifest's values", f"seed {seed}, {how}"
            assert is_whole or its_names != names or is_told, f"seed {seed}, {how}: another sequence, and nobody knows"
            found["harmless" if is_whole else "hashes made to fit, told by fingerprint or verify"] += 1
        shutil.rmtree(root)
    return found


def run_in_a_process(folder: Path, first: int, count: int) -> Counter[str]:
    """Fuzz in a process of its own, whose crash is seen."""
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]}\n"
        f"import pathlib, json, test_store_fuzz as fuzz\n"
        f"fuzz.store_writer.BATCH_BYTES = 1000\n"
        f"print(json.dumps(fuzz.fuzz(pathlib.Path({str(folder)!r}), range({first}, {first + count}))))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, f"exit code {out.returncode}: {out.stderr[-3000:]}"
    return Counter(json.loads(out.stdout))


def test_damage_of_every_kind_is_found(tmp_path: Path) -> None:
    found = run_in_a_process(tmp_path, 0, 300)
    assert found.total() == 300 and found["found"] > 200, found


@pytest.mark.drill
def test_a_great_deal_of_damage_is_found(tmp_path: Path) -> None:
    found = run_in_a_process(tmp_path, 1000, 20_000)
    print(found)
    assert found.total() == 20_000


def test_what_the_fuzz_does_is_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "BATCH_BYTES", 1000)
    root = made(tmp_path / "store")
    path_of(root, "shard").write_bytes(path_of(root, "other shard").read_bytes())
    with pytest.raises(StoreError):
        read(root)
    fit_hashes(root)
    with pytest.raises(StoreError, match="other recordings than the index lists"):
        read(root)
