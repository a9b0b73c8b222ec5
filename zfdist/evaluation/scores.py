"""The bounds of single sequences as files, so that anything else can be computed of them: errors, differences, plots.

    runs/NAME/scores/test-step-00002750-1f3a9c2e.csv    id, name, group, frames, and the bounds, a sequence a line
    runs/NAME/scores/test-step-00002750-1f3a9c2e.json   what was scored and how, the means, and the hash of the other

The second is written last: it tells whether both are whole.
"""

import csv
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zfdist import atomic_io
from zfdist.evaluation.results import EvaluationError

FOLDER = "scores"
SAME = (
    "data_fingerprint", "split", "view", "segment_frames", "frame_samples", "mean", "std", "words_sha256",
)  # fmt: skip
"""What of `Scores.what` must be equal for bounds to compare: the same sequences, in the same units and words."""
_HEAD = ("id", "name", "group", "frames", "elbo_nats", "log_px_nats", "kl_nats", "iwae_nats")
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """The bounds of each sequence of a split, means over the seeds of the noise, in nats."""

    what: Mapping[str, Any]
    """What was scored, and how: the names in SAME, "model" (what people call it), "weights" (their hash), "seeds" (of
    the noise), "iwae_samples", "is_exact"; None where it does not apply."""
    config: Mapping[str, Any] | None
    """Of the run that the model is of, as in its config.json; None for a model that is no run's."""
    result: Mapping[str, Any]
    """The means, by the names of `zfdist.evaluation.results.Result`."""
    ids_N: NDArray[np.int64]
    """Places in the split's view."""
    names: Sequence[str]
    """Of the rows that the sequences are of."""
    groups: Sequence[str]
    """What came by itself, see `Kind.group`."""
    frames_N: NDArray[np.int64]
    """Scored frames: of sound, pixels, or words with the </s> of each sentence."""
    elbo_N: Floats
    log_px_N: Floats
    kl_N: Floats
    iwae_N: Floats | None

    @property
    def groups_N(self) -> NDArray[np.int64]:
        """Numbers of the groups."""
        return np.unique(np.array(self.groups), return_inverse=True)[1].astype(np.int64)


def folder_for(checkpoint: Path) -> Path:
    """Return where the scores of a checkpoint (then in its run) or of an export belong."""
    is_in_run = checkpoint.absolute().parent.name == "checkpoints"
    return (checkpoint.absolute().parent.parent if is_in_run else checkpoint) / FOLDER


def path_of(folder: Path, what: Mapping[str, Any]) -> Path:
    """Return the JSON file in `folder` of what was scored."""
    decisive = json.dumps(dict(sorted(what.items())))
    digest = hashlib.blake2b(decisive.encode(), digest_size=4).hexdigest()
    step = f"step-{what['step']:08d}" if what.get("step") is not None else what["model"]
    return folder / f"{what['split']}-{step}-{digest}.json"


def write(scores: Scores, folder: Path) -> Path:
    """Write both files into a folder, which is made; return that of the sequences. Raises OSError."""
    path = path_of(folder, scores.what)
    table = path.with_suffix(".csv")
    folder.mkdir(parents=True, exist_ok=True)
    iwae = [""] * len(scores.names) if scores.iwae_N is None else [repr(float(value)) for value in scores.iwae_N]
    columns = (
        scores.ids_N.tolist(), scores.names, scores.groups, scores.frames_N.tolist(),
        *([repr(float(value)) for value in column] for column in (scores.elbo_N, scores.log_px_N, scores.kl_N)), iwae,
    )  # fmt: skip
    atomic_io.write_csv(table, [_HEAD, *zip(*columns, strict=True)])
    result = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in scores.result.items()}
    file = {"name": table.name, "xxh3_128": atomic_io.digest(table)}
    atomic_io.write_json(path, {"what": scores.what, "result": result, "config": scores.config, "sequences": file})
    return table


def keep(scores: Scores, checkpoint: Path, say: Callable[[str], None]) -> Path | None:
    """Write scores where those of a checkpoint belong; where that cannot be written, say so and return None."""
    try:
        return write(scores, folder_for(checkpoint))
    except OSError as error:
        say(f"the scores of single sequences are not kept: {folder_for(checkpoint)}: {error.strerror or error}")
        return None


def read(path: Path) -> Scores:
    """Return what `write` wrote; `path` is either of the two files.

    Raises:
        EvaluationError: if one is missing, damaged or not of the other.
    """
    path = path.with_suffix(".json")
    try:
        tree = json.loads(path.read_bytes())
        table = path.with_name(Path(tree["sequences"]["name"]).name)
        if atomic_io.digest(table) != tree["sequences"]["xxh3_128"]:
            raise ValueError(f"{table.name} is not what was written with it")
        with table.open(newline="") as file:
            head, *rows = csv.reader(file)
        if tuple(head) != _HEAD or set(SAME) - tree["what"].keys():
            raise ValueError("columns or entries of another version")
        ids, names, groups, frames, *bounds = zip(*rows, strict=True)
        elbo, log_px, kl = (np.array(column, np.float64) for column in bounds[:3])
        iwae = np.array(bounds[3], np.float64) if bounds[3][0] else None
        whole = (np.array(ids, np.int64), np.array(frames, np.int64))
    except FileNotFoundError as error:
        raise EvaluationError(f"{error.filename}: no such file of scores; evaluate again") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EvaluationError(f"{path}: no scores of sequences, or damaged ({error}); evaluate again") from None
    return Scores(
        what=tree["what"], config=tree["config"], result=tree["result"], ids_N=whole[0], names=names, groups=groups,
        frames_N=whole[1], elbo_N=elbo, log_px_N=log_px, kl_N=kl, iwae_N=iwae,
    )  # fmt: skip


def kept(folder: Path, what: Mapping[str, Any]) -> Scores | None:
    """Return the scores that an earlier evaluation wrote into a folder; None if there are none that are whole."""
    try:
        found = read(path_of(folder, what))
    except EvaluationError:
        return None
    return found if found.what == json.loads(json.dumps(what)) else None
