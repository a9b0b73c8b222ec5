"""Checkpoints: folders that are complete or absent, described by a manifest that a person can read.

    runs/NAME/checkpoints/
        step-00001000/
            manifest.json          written last: config, step, world size, data, versions, size and hash of every file
            model.safetensors      all weights in fp32: evaluation and export need nothing else
            deepspeed/state/...    DeepSpeed's shards from every worker: what an exact resume needs
        step-00002000.partial/     being written, or left by a crash; never read
        step-00000500.damaged/     failed its check; kept for inspection, never read

A folder gets its final name by one rename after its manifest is on disk. Every file is checked against the manifest
before anything in it is read, and beside the shards nothing may lie that it does not list: DeepSpeed's shards are
pickles, and it loads what it finds. The hashes tell damage, not who wrote: whoever may write to a run's folder can make
its workers run what they like. `model.safetensors` is all that evaluation, export and --from read, and runs nothing.
"""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from zfdist import atomic_io
from zfdist.config import Config, ConfigError
from zfdist.errors import ZfdistError
from zfdist.run_protocol import VALID_ELBO

FORMAT = 1
MANIFEST = "manifest.json"
CONFIG = "config.json"
"""In a run folder and an export."""
WEIGHTS = "model.safetensors"
WORDS = "vocabulary.txt"  # of a model of sentences
SHARDS = "deepspeed"
PACKAGES = ("zfdist", "torch", "deepspeed", "ray", "pyarrow", "numpy")


class CheckpointError(ZfdistError):
    """A checkpoint that cannot be used; the message names the folder or file and the remedy."""


class OtherVersionError(CheckpointError):
    """A checkpoint of another version of this program: not damaged, and left alone."""


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """What a checkpoint is: enough to judge it without reading a tensor."""

    step: int
    """Optimizer steps finished."""
    config: Config
    world_size: int
    precision: str
    """What engine.precision came to: fp32, tf32, bf16 or fp16."""
    recurrence: str | None = None
    """What model.recurrence came to; None where it was not recorded, or there is no such loop."""
    optimizer: str | None = None  # by its name in torch; None where it was not recorded: AdamW on a CPU
    x_dim: int | None = None
    """Values of a frame, or words of the vocabulary; None where it was not recorded."""
    data_fingerprint: str
    data_kind: str | None = None  # None where it was not recorded, as for the next two
    sample_rate: int | None = None
    """Samples a second; 0 where the data are no sound."""
    vocabulary_sha256: str | None = None
    """Of the words, which are in WORDS; None also where the data are no sentences."""
    normalisation: Mapping[str, float]
    """Mean and std of the training samples, in units of the stored integers."""
    progress: Mapping[str, Any]
    """Sums of metrics between two log lines, and skipped updates in a row."""
    validation: Mapping[str, float] | None = None
    """Metrics of a validation at this very step, if there was one."""
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Size in bytes and xxh3_128 of every file by relative path."""
    format: int = FORMAT

    @property
    def valid_elbo_nats(self) -> float | None:
        """Validation ELBO with KL weight 1, in nats per sequence."""
        return None if self.validation is None else self.validation.get(VALID_ELBO)


def folder_of(run_folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step belongs."""
    return run_folder / "checkpoints" / f"step-{step:08d}"


def begin(run_folder: Path, step: int) -> Path:
    """Make an empty folder to write a checkpoint into; on one worker only."""
    partial = folder_of(run_folder, step).with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def hashed(partial: Path) -> dict[str, dict[str, Any]]:
    """Return size and hash of every file of a folder by relative path, once it is on disk."""
    files = {}
    for path in sorted(p for p in partial.rglob("*") if p.is_file()):
        atomic_io.sync(path)
        files[path.relative_to(partial).as_posix()] = {"bytes": path.stat().st_size, "xxh3_128": atomic_io.digest(path)}
    return files


def complete(manifest: CheckpointManifest, files: Mapping[str, Mapping[str, Any]]) -> CheckpointManifest:
    """Return a manifest with the files of all workers, and the versions that wrote them."""
    return dataclasses.replace(manifest, files=dict(sorted(files.items())), versions=_versions())


def commit(partial: Path, manifest: CheckpointManifest) -> Path:
    """Write the complete manifest, and give the folder its final name; on one worker only."""
    atomic_io.write(partial / MANIFEST, to_json(manifest))
    final = partial.with_suffix("")
    if final.exists():  # the same step again, after a fall back to an older checkpoint
        shutil.rmtree(final)
    partial.rename(final)
    atomic_io.sync_folder(final.parent)
    return final


def to_json(manifest: CheckpointManifest) -> str:
    """Return a manifest as the text of its file."""
    return json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"


def read_manifest(folder: Path) -> CheckpointManifest:
    """Return the manifest of a checkpoint or export.

    Raises:
        CheckpointError: if it is missing, not JSON, or of another format.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no {MANIFEST}, so this is not a finished checkpoint") from None
    return parse(content, str(path))


def parse(content: bytes, where: str) -> CheckpointManifest:
    """Return the manifest that a file called `where` holds; raises CheckpointError as `read_manifest`."""
    try:
        tree = json.loads(content)
        if tree["format"] != FORMAT:
            raise OtherVersionError(f"{where}: format {tree['format']}, this version reads {FORMAT}")
        if outside := [name for name in tree["files"] if not atomic_io.is_inside(name)]:
            raise CheckpointError(f"{where}: damaged (it lists {outside[0]!r}, which is in no checkpoint)")
        return CheckpointManifest(**{**tree, "config": Config.from_json(json.dumps(tree["config"]))})
    except ConfigError as error:
        raise OtherVersionError(f"{where}: written by another version: {error}") from None
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where}: damaged ({type(error).__name__}: {error})") from None


def verify(folder: Path, only: str | None = None) -> CheckpointManifest:
    """Return the manifest after checking size and hash of every file (or of the one named `only`).

    Raises:
        CheckpointError: naming the first file that is missing, of another size or of other content, or (if all are
            checked) that lies among the shards and is not listed.
    """
    manifest = read_manifest(folder)
    if only is not None and only not in manifest.files:
        raise CheckpointError(f"{folder}: the manifest lists no {only}")
    for name in manifest.files if only is None else [only]:
        check(folder / name, manifest.files[name])
    if only is None and (strange := unlisted(folder, manifest)):
        raise CheckpointError(f"{strange[0]}: the manifest does not list it, so it was not written by this run")
    return manifest


def unlisted(folder: Path, manifest: CheckpointManifest) -> list[Path]:
    """Return what lies among the shards of a checkpoint and is not one of them; a link to a folder counts."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    relative = {path.relative_to(folder).as_posix(): path for path in found}
    return [path for name, path in relative.items() if name.startswith(SHARDS) and name not in manifest.files]


def check(path: Path, expected: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless a file has the size and hash that its manifest gives."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    if path.stat().st_size != expected["bytes"]:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes, the manifest says {expected['bytes']}")
    if atomic_io.digest(path) != expected["xxh3_128"]:
        raise CheckpointError(f"{path}: its content is not what was written (hash differs)")


def steps(run_folder: Path) -> list[int]:
    """Return the steps that have a checkpoint under its final name, ascending."""
    return sorted(int(name[5:]) for name in _names(run_folder) if name[:5] == "step-" and name[5:].isdecimal())


def newest_valid(run_folder: Path, say: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint that passes its check, or None if the run has none at all.

    Left-overs of a crash are removed and damaged checkpoints set aside, each with a line to `say`; on one worker only.

    Raises:
        CheckpointError: if there are checkpoints and none is intact, so that a run never silently starts over; nothing
            is changed then.
    """
    damaged: dict[Path, str] = {}
    newest = None
    for step in reversed(steps(run_folder)):
        folder = folder_of(run_folder, step)
        try:
            verify(folder)
        except OtherVersionError:
            raise
        except CheckpointError as error:
            damaged[folder] = str(error)
            continue
        newest = folder
        break
    if damaged and newest is None:
        raise none_intact(run_folder, list(damaged.values()))
    for name in _names(run_folder):
        if name.startswith("step-") and name.endswith(".partial"):
            partial = run_folder / "checkpoints" / name
            say(f"removing {partial}: left unfinished by an interruption")
            shutil.rmtree(partial)
    for folder, problem in damaged.items():
        aside = folder.with_suffix(".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        say(f"damaged checkpoint set aside as {aside}: {problem}")
    return newest


def none_intact(run_folder: Path, problems: Sequence[str]) -> CheckpointError:
    """Return the error for a run of whose checkpoints none can be used."""
    return CheckpointError(
        f"{run_folder}: none of its {len(problems)} checkpoints is intact ({problems[0]}); "
        "restore one from a backup, or use another --name to start anew"
    )


def best(run_folder: Path) -> Path | None:
    """Return the checkpoint with the highest validation ELBO, or None if none was validated."""
    first = ranked(scores(run_folder))[:1]
    return folder_of(run_folder, first[0]) if first else None


def ranked(scores: Mapping[int, float | None]) -> list[int]:
    """Return the steps with a finite validation ELBO, the best first; of equal ones the earlier."""
    known = [(elbo, step) for step, elbo in scores.items() if elbo is not None and math.isfinite(elbo)]
    return [step for elbo, step in sorted(known, key=lambda pair: (-pair[0], pair[1]))]


def resolve(path: Path) -> Path:
    """Return the folder with weights that `path` means: a checkpoint, an export, or a run's best (else newest) one.

    Raises:
        CheckpointError: if there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"{path}: no such run, checkpoint or export")
    available = steps(path)
    if not available:
        raise CheckpointError(f"{path}: holds no finished checkpoint")
    return best(path) or folder_of(path, available[-1])


def _names(run_folder: Path) -> list[str]:
    """Return what is in a run's folder of checkpoints; raises OSError where that is there and may not be read."""
    try:
        return sorted(os.listdir(run_folder / "checkpoints"))
    except (FileNotFoundError, NotADirectoryError):
        return []


def scores(run_folder: Path) -> dict[int, float | None]:
    """Return the validation ELBO by step; without folders whose manifest cannot be read, see `newest_valid`."""
    found: dict[int, float | None] = {}
    for step in steps(run_folder):
        try:
            found[step] = read_manifest(folder_of(run_folder, step)).valid_elbo_nats
        except CheckpointError:
            continue
    return found


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
