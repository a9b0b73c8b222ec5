"""An evaluation in words and as JSON."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zfdist.evaluation.results import Result

_SEQUENCES = {
    ("pcm16", "utterances"): "an utterance",
    ("pcm16", "segments"): "a segment",
    ("bits", "utterances"): "an image",
    ("tokens", "utterances"): "a sentence",
}
_UNITS = {"pcm16": ("frame", "sample"), "bits": ("pixel", "pixel"), "tokens": ("word", "word")}
_FRAMES = {"pcm16": "frames", "bits": "pixels", "tokens": "words, with </s>"}


def rows(result: "Result") -> list[tuple[str, str]]:
    """Return the lines of a table: what, and the number with its unit."""
    return [*_size(result), *_bounds(result), *_provenance(result)]


def to_json(result: "Result", **more: Any) -> str:
    """Return all fields of a result, and `more`, as indented JSON; a number that does not exist is null."""
    known = {name: None if value != value else value for name, value in vars(result).items()}
    return json.dumps(known | more, indent=2) + "\n"


def with_error(result: "Result", name: str, form: str = ",.2f") -> str:
    """Return a number of a result, and over several seeds its standard error."""
    number = format(getattr(result, name), form)
    error = result.seed_stderr.get(name)
    return number if error is None else f"{number} \u00b1 {format(error, form)}"


def _size(result: "Result") -> Iterator[tuple[str, str]]:
    yield "split", result.split
    yield "a sequence is", _SEQUENCES[result.kind, result.view]
    yield "sequences", f"{result.sequences:,}"
    yield f"scored {_FRAMES[result.kind]}", f"{result.frames:,}"
    if result.kind == "pcm16":
        yield "scored samples", f"{result.samples:,}"


def _bounds(result: "Result") -> Iterator[tuple[str, str]]:
    elbo = f"{with_error(result, 'elbo_nats')} nats (standard error {result.elbo_stderr_nats:,.2f})"
    yield "ELBO per sequence", elbo
    yield "its reconstruction part", f"{result.log_px_nats:,.2f} nats"
    yield "its KL part", f"{with_error(result, 'kl_nats')} nats"
    frame, sample = _UNITS[result.kind]
    yield f"KL per {frame}", f"{result.kl_nats_per_frame:.4f} nats"
    yield f"ELBO per {sample}", f"{result.nats_per_sample:.5f} nats = {result.bits_per_sample:.5f} bits"
    if result.iwae_nats is not None:
        iwae = f"{with_error(result, 'iwae_nats')} nats (standard error {result.iwae_stderr_nats:,.2f})"
        yield f"IWAE-{result.iwae_samples} per sequence", iwae
    for name, what in _OTHERS.items():
        if getattr(result, name) is not None:
            yield what.format(**vars(result)), with_error(result, name, ",.4f" if name == "accuracy" else ",.2f")


_OTHERS = {
    "legacy_elbo_nats": "ELBO, legacy denominator of {legacy_rows:,}",
    "nll_nats": "negative log-likelihood at most",
    "iwae_nll_nats": "the same by IWAE-{iwae_samples}",
    "perplexity": "perplexity per word at most",
    "iwae_perplexity": "the same by IWAE-{iwae_samples}",
    "accuracy": "accuracy on {labelled:,} labels",
}


def _provenance(result: "Result") -> Iterator[tuple[str, str]]:
    if result.kind == "pcm16":
        yield "normalised by mean", f"{result.mean:.6g} (int16 units)"
        yield "normalised by std", f"{result.std:.6g} (int16 units)"
        yield "sigma floor", f"{result.sigma_floor:g} (normalised units)"
    yield "network", f"{result.system}, {result.density}, {result.parameters:,} parameters"
    yield "checkpoint at step", f"{result.step:,}"
    seeds = str(result.seed)
    if result.num_seeds > 1:
        seeds += f" to {result.seed + result.num_seeds - 1}: means \u00b1 standard error over seeds"
    yield "seed of the noise", seeds
