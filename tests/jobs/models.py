"""Networks that nobody trained, saved as checkpoints, over small stores of every kind."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint.folder import CheckpointManifest
from zfdist.config import Config
from zfdist.data.kinds import BITS, SPECIALS, TOKENS, Kind
from zfdist.data.store import Store
from zfdist.data.store_writer import Recording, publish, write_shard
from zfdist.model.systems import build

FRAME = 20
WORDS = [*SPECIALS, *(f"word{i}" for i in range(12))]


def make_store(root: Path, kind: Kind) -> Path:
    """Write six images, or six sentences of 3 to 8 words, into each split."""
    rng = np.random.default_rng(0)

    def row() -> np.ndarray:  # type: ignore[type-arg]
        if kind == BITS:
            return rng.integers(0, 2, 784).astype(kind.dtype)
        return rng.integers(len(SPECIALS), len(WORDS), rng.integers(3, 9)).astype(kind.dtype)

    shards = {
        split: [write_shard(root, f"{split}-0", "k", [Recording(f"{split}-{i}", row()) for i in range(6)], {}, kind)]
        for split in ("train", "valid", "test")
    }
    publish(
        root,
        shards,
        sample_rate=0,
        source={},
        licence="",
        kind=kind,
        words=WORDS[len(SPECIALS) :] if kind == TOKENS else None,
    )
    return root


def config_for(store: Path, **values: object) -> Config:
    """A small config that fits the kind of a store; `values` are dotted names with `__` for the dot."""
    kind = Store.open(store).kind
    sizes: dict[str, object] = {"model.hidden": 8, "model.z_dim": 3, "model.mlp_dim": 6, "data.root": str(store)}
    sizes["data.frame_samples"] = FRAME if not kind.added else 1
    if kind.added:
        sizes |= {"data.train_view": "utterances", "data.eval_view": "utterances"}
        sizes["model.density"] = "bernoulli" if kind == BITS else "categorical"
        sizes["model.embed_dim"] = 0 if kind == BITS else 5
    return Config().with_values(sizes | {name.replace("__", "."): value for name, value in values.items()})


def save(folder: Path, config: Config, *, step: int = 100) -> Path:
    """Write a checkpoint of random weights into the run folder `folder`; return the checkpoint's folder."""
    store = Store.open(Path(config.data.root))
    model = build(config.model, len(WORDS) if store.kind == TOKENS else config.data.frame_samples, seed=1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    partial = checkpoint.begin(folder, step)
    save_file(model.state_dict(), str(partial / checkpoint.WEIGHTS))
    manifest = CheckpointManifest(
        step=step, config=config, x_dim=model.x_dim, world_size=1, precision="fp32", data_fingerprint=store.fingerprint,
        normalisation={"mean": store.mean, "std": store.std}, progress={}, validation={"valid/elbo_nats": -1.0},
    )  # fmt: skip
    (folder / "config.json").write_text(config.to_json())
    return checkpoint.commit(partial, checkpoint.complete(manifest, checkpoint.hashed(partial)))
