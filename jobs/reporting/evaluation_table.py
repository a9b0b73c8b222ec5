"""An evaluation in words and as JSON."""

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zfdist.data.kinds import KINDS

if TYPE_CHECKING:
    from zfdist.evaluation.results import Result
    from zfdist.evaluation.scores import Scores


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


def baseline(scores: "Scores") -> str:
    """Return what a simple model scores, in a line."""
    return f"{scores.what['model']}: " + ", ".join(f"{value} {name}" for name, value in baseline_numbers(scores))


def baseline_numbers(scores: "Scores") -> list[tuple[str, str]]:
    """Return the units and numbers, with their standard errors, of what a simple model scores."""
    result, kind = scores.result, KINDS[scores.what["kind"]]
    numbers = [
        (f"nats per {kind.sequences[scores.what['view']]}", "elbo_nats", "elbo_stderr_nats", ",.2f"),
        (f"nats per {kind.sample}", "nats_per_sample", "nats_per_sample_stderr", ".5f"),
    ]
    numbers += [("perplexity", "perplexity", "perplexity_stderr", ",.2f")] * (kind.score == "perplexity")
    return [
        (unit, f"{result[name]:{form}}" + (f" \u00b1 {error:{form}}" if _is_known(error := result[of]) else ""))
        for unit, name, of, form in numbers
    ]


def a(name: str) -> str:
    """Return a noun with its article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _size(result: "Result") -> Iterator[tuple[str, str]]:
    kind = KINDS[result.kind]
    yield "split", result.split
    yield "a sequence is", a(kind.sequences[result.view])
    of = f", of {result.groups:,} {kind.groups or kind.rows}" if result.groups != result.sequences else ""
    yield "sequences", f"{result.sequences:,}{of}"
    yield f"scored {kind.scored}", f"{result.frames:,}"
    if kind.frame != kind.sample:
        yield f"scored {kind.sample}s", f"{result.samples:,}"


def _bounds(result: "Result") -> Iterator[tuple[str, str]]:
    kind, name = KINDS[result.kind], "log-likelihood" if result.is_exact else "ELBO"
    elbo = f"{with_error(result, 'elbo_nats')} nats ({_error(result.elbo_stderr_nats, ',.2f')})"
    yield f"{name} per sequence", elbo
    if not result.is_exact:
        yield "its reconstruction part", f"{result.log_px_nats:,.2f} nats"
        yield "its KL part", f"{with_error(result, 'kl_nats')} nats"
        yield f"KL per {kind.frame}", f"{result.kl_nats_per_frame:.4f} nats"
    per_sample = f"{result.nats_per_sample:.5f} nats = {result.bits_per_sample:.5f} bits"
    error = result.nats_per_sample_stderr
    both = _error(error, ".5f") + (f" nats = {error / math.log(2):.5f} bits" if _is_known(error) else "")
    yield f"{name} per {kind.sample}", f"{per_sample} ({both})"
    if result.iwae_nats is not None:
        iwae = f"{with_error(result, 'iwae_nats')} nats ({_error(result.iwae_stderr_nats, ',.2f')})"
        yield f"IWAE-{result.iwae_samples} per sequence", iwae
    at_most = "" if result.is_exact else " at most"
    for name, what in _OTHERS.items():
        if getattr(result, name) is not None:
            number = with_error(result, name, ",.4f" if name == "accuracy" else ",.2f")
            if name == "perplexity":
                number += f" ({_error(result.perplexity_stderr, ',.2f')})"
            yield what.format(at_most=at_most, **vars(result)), number
    if result.unknown_share is not None:
        yield "<unk> among the words", f"{result.unknown_share:.2%}"
    if result.groups == 1:
        yield (
            "too small a split",
            f"one of the {kind.groups or kind.rows}: its score says nothing of others",
        )


def _error(error: float | None, form: str) -> str:
    return f"standard error {error:{form}}" if _is_known(error) else "no standard error"


def _is_known(error: float | None) -> bool:
    return error is not None and not math.isnan(error)


_OTHERS = {
    "legacy_elbo_nats": "ELBO, legacy denominator of {legacy_rows:,}",
    "nll_nats": "negative log-likelihood{at_most}",
    "iwae_nll_nats": "the same by IWAE-{iwae_samples}",
    "perplexity": "perplexity per word{at_most}",
    "iwae_perplexity": "the same by IWAE-{iwae_samples}",
    "accuracy": "accuracy on {labelled:,} labels",
}


def _provenance(result: "Result") -> Iterator[tuple[str, str]]:
    if KINDS[result.kind].is_normalised:
        yield "normalised by mean", f"{result.mean:.6g} (int16 units)"
        yield "normalised by std", f"{result.std:.6g} (int16 units)"
        yield "sigma floor", f"{result.sigma_floor:g} (normalised units)"
    yield "network", f"{result.system}, {result.density}, {result.parameters:,} parameters"
    yield "checkpoint at step", f"{result.step:,}"
    seeds = str(result.seed)
    if result.num_seeds > 1:
        seeds += f" to {result.seed + result.num_seeds - 1}: means \u00b1 standard error over seeds"
    yield "seed of the noise", seeds
