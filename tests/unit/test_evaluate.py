"""Evaluation and generation, on a store and a checkpoint made here."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zfdist import seeding
from zfdist.checkpoint import export
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint.data_identity import OtherDataError
from zfdist.checkpoint.folder import CheckpointError, CheckpointManifest
from zfdist.config import Config
from zfdist.data.loader import evaluation_batches
from zfdist.data.store import Store
from zfdist.data.store_writer import Recording, publish, write_shard, writing
from zfdist.evaluation import generate
from zfdist.evaluation.evaluate import EvaluationError, evaluate, evaluate_split, load_model
from zfdist.evaluation.results import Question
from zfdist.model.kernels import matmul_backend
from zfdist.model.objective import objective
from zfdist.model.systems import build
from zfdist.model.terms import Terms
from zfdist.schedule import EVALUATION

CPU = torch.device("cpu")
CONFIG = Config().with_values(
    {
        "model.hidden": 12, "model.z_dim": 3, "model.mlp_dim": 8, "data.frame_samples": 10, "data.segment_frames": 4,
        "data.eval_batch": 3, "data.prefetch_batches": 0,
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    root = tmp_path_factory.mktemp("store")
    random = np.random.default_rng(0)
    with writing(root):
        splits = {}
        for split, lengths in (("train", [300, 200]), ("test", [95, 30, 250, 21, 64, 15, 119])):
            recordings = [
                Recording(f"{split}{i}", random.normal(50, 900, n).astype(np.int16)) for i, n in enumerate(lengths)
            ]
            splits[split] = [write_shard(root, f"{split}-00000", split, recordings, {})]
        publish(root, splits, sample_rate=16_000, source={}, licence="none")
    return Store.open(root, verify="size")


@pytest.fixture(scope="module")
def model():
    return build(CONFIG.model, 10, seed=1)


def batches(store, *, rank=0, world_size=1, **values):
    data = CONFIG.with_values({f"data.{k}": v for k, v in values.items()}).data
    return evaluation_batches(store, data, "test", rank=rank, world_size=world_size, device=CPU)


def save(folder: Path, weights, store, *, step=100, valid=None, config=CONFIG, x_dim=10) -> Path:
    partial = checkpoint.begin(folder, step)
    save_file({name: w.contiguous() for name, w in weights.items()}, str(partial / checkpoint.WEIGHTS))
    manifest = CheckpointManifest(
        step=step, config=config, x_dim=x_dim, world_size=1, precision="fp32", data_fingerprint=store.fingerprint,
        normalisation={"mean": store.mean, "std": store.std}, progress={},
        validation=None if valid is None else {"valid/elbo_nats": valid},
    )  # fmt: skip
    return checkpoint.commit(partial, checkpoint.complete(manifest, checkpoint.hashed(partial)))


def run(model, given, **options):
    return evaluate(model, given, z_dim=3, frame_samples=10, seed=7, **options)


def test_means_over_sequences_one_at_a_time(store, model):
    """Each sequence alone, unpadded, with the noise of its place in the split."""
    elbos, frames = [], 0
    for batch in batches(store, eval_batch=1):
        assert batch.x_TBX.shape[:2] == (int(batch.lengths_B[0]), 1)
        eps = seeding.normals(seeding.key(7, "evaluate"), batch.ids_B, len(batch.x_TBX), 3)
        with torch.no_grad():
            loss = objective(model(batch.x_TBX, batch.y_TBX, batch.lengths_B, eps), batch.mask_TB, EVALUATION, 1)
        elbos.append(float(loss.sums["elbo_nats"]))
        frames += len(batch.x_TBX)
    bound = run(model, batches(store))
    assert (bound.sequences, bound.frames, bound.samples) == (6, frames, frames * 10)  # 15 samples give no target
    assert frames == 8 + 2 + 24 + 1 + 5 + 10
    assert bound.elbo_nats == pytest.approx(np.mean(elbos), rel=1e-6)
    assert bound.elbo_nats == pytest.approx(bound.log_px_nats - bound.kl_nats, rel=1e-12)
    assert bound.kl_nats_per_frame == pytest.approx(bound.kl_nats * 6 / frames, rel=1e-12)
    assert bound.nats_per_sample == pytest.approx(bound.elbo_nats * 6 / (frames * 10), rel=1e-12)
    assert bound.bits_per_sample == pytest.approx(bound.nats_per_sample / math.log(2), rel=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 5, 32])
def test_batch_size_changes_nothing(store, model, rows):
    expected, actual = run(model, batches(store)), run(model, batches(store, eval_batch=rows))
    assert dataclasses.astuple(actual) == pytest.approx(dataclasses.astuple(expected), rel=1e-6)


@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_world_size_changes_nothing_though_a_rank_may_have_no_batch(store, model, world_size):
    parts = []

    def collect(sums):
        parts.append(sums)
        return sum(parts)

    for rank in range(world_size):
        try:
            bound = run(model, batches(store, rank=rank, world_size=world_size), reduce=collect)
        except EvaluationError:
            assert not parts[-1].any()
    assert len(parts) == world_size
    assert dataclasses.astuple(bound) == pytest.approx(dataclasses.astuple(run(model, batches(store))), rel=1e-6)


def test_the_seed_is_the_noise(store, model):
    one, same = run(model, batches(store)), run(model, batches(store))
    other = evaluate(model, batches(store), z_dim=3, frame_samples=10, seed=8)
    assert one == same
    assert one.elbo_nats != other.elbo_nats


def test_any_callable_will_do_and_padding_counts_nowhere(store):
    def fixed(x_TBX, y_TBX, lengths_B, eps_TBZ):
        mask = torch.arange(len(x_TBX))[:, None] < lengths_B
        one = torch.where(mask, 1.0, torch.nan)
        return Terms(3 * one, one, one, one, -one)

    bound = run(fixed, batches(store))
    assert bound.elbo_nats == pytest.approx(2 * bound.frames / bound.sequences)
    assert bound.kl_nats_per_frame == 1.0


def test_a_dummy_row_is_no_sequence(store, model):
    (batch, *_) = batches(store, eval_batch=3)
    dummy = batch._replace(lengths_B=batch.lengths_B * torch.tensor([1, 0, 1]))
    assert run(model, [dummy]).sequences == 2


def test_nothing_to_evaluate_is_a_sentence(model):
    with pytest.raises(EvaluationError, match="no sequences"):
        run(model, [])


def asked(loaded, store, split="test", seed=7, **values):
    config = CONFIG.with_values({name.replace("__", "."): value for name, value in values.items()})
    return evaluate_split(loaded._replace(config=config), store, Question(split=split, seeds=[seed]), device=CPU).result


def test_a_split_with_its_provenance(store, model, tmp_path):
    loaded = load_model(save(tmp_path, model.state_dict(), store))
    result = asked(loaded, store, data__eval_view="segments")
    assert (result.split, result.view, result.kind, result.step, result.seed) == ("test", "segments", "pcm16", 100, 7)
    assert (result.mean, result.std, result.sigma_floor) == (store.mean, store.std, 1e-3)
    assert result.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert result.sequences == 2 + 1 + 6 + 1 + 2 + 3
    json.dumps(dataclasses.asdict(result))
    with matmul_backend.float32(CPU):
        assert asked(loaded, store).elbo_nats == run(model, batches(store)).elbo_nats


def test_what_does_not_fit_together_is_named(store, model, tmp_path):
    loaded = load_model(save(tmp_path, model.state_dict(), store))
    with pytest.raises(EvaluationError, match=r"'valid'.*train"):
        asked(loaded, store, split="valid")
    with pytest.raises(OtherDataError, match=r"data\.frame_samples = 20: the model has 10"):
        asked(loaded, store, data__frame_samples=20)
    foreign = dataclasses.replace(loaded.manifest, normalisation={"mean": 1.0, "std": store.std})
    with pytest.raises(OtherDataError, match="units differ"):
        asked(loaded._replace(manifest=foreign), store)


def test_load_model_from_checkpoint_run_and_export(store, model, tmp_path):
    other = build(CONFIG.model, 10, seed=2)
    best = save(tmp_path, model.state_dict(), store, step=100, valid=-5.0)
    newest = save(tmp_path, other.state_dict(), store, step=200, valid=-6.0)
    export.write(newest, tmp_path / "export")
    for path, expected in ((best, model), (tmp_path, model), (newest, other), (tmp_path / "export", other)):
        loaded = load_model(path)
        assert loaded.config == CONFIG
        for name, weight in loaded.model.state_dict().items():
            assert torch.equal(weight, expected.state_dict()[name])


def test_damage_and_absence_are_sentences(store, model, tmp_path):
    with pytest.raises(CheckpointError, match="no such run"):
        load_model(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        load_model(tmp_path)
    folder = save(tmp_path, model.state_dict(), store)
    weights = folder / checkpoint.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="hash"):
        load_model(folder)


@pytest.mark.parametrize("density", ["gaussian", "categorical"])
def test_the_manifest_says_how_many_values_or_words_there_are(store, tmp_path, density):
    """Ten words, of a config that says seven samples a frame; the weights say it where a manifest does not."""
    words = {"data.frame_samples": 7, "model.embed_dim": 5} if density == "categorical" else {}
    config = CONFIG.with_values({"model.density": density, **words})
    weights = build(config.model, 10, seed=1).state_dict()
    for step, x_dim in enumerate((10, None)):
        assert load_model(save(tmp_path, weights, store, step=step, config=config, x_dim=x_dim)).model.x_dim == 10
    with pytest.raises(CheckpointError, match=r"tensor .* of another shape"):
        load_model(save(tmp_path, weights, store, config=config, x_dim=11))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_that_are_not_the_configs_are_named(store, model, tmp_path, change):
    weights = dict(model.state_dict())
    moved = weights.pop("input.weight")
    if change != "missing":
        weights["input.weight"] = moved[:-1] if change == "shape" else moved
    if change == "unknown":
        weights["stranger"] = moved.clone()
    name = "stranger" if change == "unknown" else r"input\.weight"
    with pytest.raises(CheckpointError, match=f"tensor {name} is missing, unknown or of another shape"):
        load_model(save(tmp_path, weights, store))


def test_evaluation_needs_neither_ray_nor_deepspeed():
    code = (
        "import sys; from zfdist.evaluation import evaluate, generate; "
        "print(sorted({'ray', 'deepspeed'} & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_waveforms_are_the_recordings_back(store):
    normalisation = {"mean": store.mean, "std": store.std}
    for batch in batches(store):
        for wave, i in zip(generate.originals(batch, normalisation), batch.ids_B.tolist(), strict=True):
            n = (store.lengths("test")[_recordings(store)[i]] // 10) * 10
            assert wave.shape == (n - 10,)
            pcm = store.gather("test", np.array([_recordings(store)[i]]), np.array([10]), int(n - 10))[0]
            assert np.array_equal(np.round(wave * 32768).astype(np.int16), pcm)


def _recordings(store):
    return [i for i, n in enumerate(store.lengths("test")) if n >= 20]


def test_loud_frames_are_clipped_to_full_scale():
    wave = generate.waveforms(torch.tensor([[[-99.0, 99.0]]]), {"mean": 0.0, "std": 1000.0})
    assert wave.tolist() == [[-1.0, 32767 / 32768]]


def test_speech_is_a_function_of_seed_and_sequence(model):
    units = {"mean": 3.0, "std": 700.0}
    some = generate.speech(model, units, sequences=2, frames=6, seed=4)
    more = generate.speech(model, units, sequences=3, frames=6, seed=4)
    assert some.shape == (2, 60)
    assert some.dtype == np.float32
    np.testing.assert_allclose(more[:2], some, atol=1e-6)
    assert not np.allclose(generate.speech(model, units, sequences=2, frames=6, seed=5), some, atol=1e-3)
    still = generate.speech(model, units, sequences=2, frames=6, seed=4, temperature=0.0, frame_noise=0.0)
    np.testing.assert_allclose(still[0], still[1], atol=1e-6)


def test_reconstructions_and_continuations(store, model):
    units = {"mean": store.mean, "std": store.std}
    for batch in batches(store, eval_batch=2):
        rebuilt = generate.reconstructions(model, batch, units)
        assert [len(w) for w in rebuilt] == [10 * n for n in batch.lengths_B.tolist()]
        sampled = generate.reconstructions(model, batch, units, seed=1)
        assert not np.allclose(rebuilt[0], sampled[0], atol=1e-7)
    (ragged, *_) = batches(store, eval_batch=3)
    with pytest.raises(ValueError, match="one length"):
        generate.continuations(model, ragged, units, frames=5, seed=2)


def test_a_continuation_begins_with_the_last_frame_heard_in_the_state_after_it(store, model):
    units, silent = {"mean": store.mean, "std": store.std}, {"temperature": 0.0, "frame_noise": 0.0}
    (heard, *_) = batches(store, eval_batch=1)
    assert generate.continuations(model, heard, units, frames=5, seed=2).shape == (1, 50)
    steps = len(heard.x_TBX)
    with torch.no_grad():
        inferred = model.infer(heard.x_TBX, heard.y_TBX, heard.lengths_B, torch.zeros(steps, 1, 3))
        z = model._prior(inferred.features_TBH[-1], heard.y_TBX[-1]).mean
        state = model.recurrence.step(model.input(heard.y_TBX[-1]), z, inferred.state)
        first = model.output.density(state.h_BH).mean
    expected = generate.waveforms(first[None], units)
    drawn = generate.continuations(model, heard, units, frames=1, seed=2, **silent)
    np.testing.assert_allclose(drawn, expected, atol=1e-7)
    assert np.abs(expected - generate.waveforms(heard.y_TBX[-1:], units)).max() > 1e-4
