"""What a run folder says of its run although some of its files are torn or damaged; nothing is changed."""

from collections.abc import Mapping
from pathlib import Path

from zfdist import run_protocol
from zfdist.checkpoint import folder as checkpoint
from zfdist.checkpoint.folder import CONFIG, CheckpointError, CheckpointManifest, OtherVersionError
from zfdist.config import Config, ConfigError


def newest_manifest(run_folder: Path) -> CheckpointManifest | None:
    """Return the newest manifest that can be read, whether or not its files are intact; None if there is none.

    Raises:
        CheckpointError: if there are checkpoints and the manifest of none can be read, or a newer one is of another
            version of this program.
    """
    problems = []
    for step in reversed(checkpoint.steps(run_folder)):
        try:
            return checkpoint.read_manifest(checkpoint.folder_of(run_folder, step))
        except OtherVersionError:
            raise
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise checkpoint.none_intact(run_folder, problems)
    return None


def config_of(run_folder: Path) -> Config | None:
    """Return the config of a run: its config.json, or if that is torn or gone that of its newest checkpoint.

    None if neither can be read, or another version of this program wrote it.
    """
    try:
        return Config.from_json((run_folder / CONFIG).read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError, ConfigError, UnicodeDecodeError, RecursionError):
        pass
    try:
        manifest = newest_manifest(run_folder)
    except CheckpointError:
        return None
    return None if manifest is None else manifest.config


def choice(run_folder: Path, kept: Mapping[int, float | None]) -> str:
    """Return in words which checkpoint of a run is evaluated, and of which steps its best validation and newest are.

    Args:
        run_folder: with the records of the run.
        kept: validation ELBO of its checkpoints by step, see `zfdist.checkpoint.folder.scores`.
    """
    best, ranked = run_protocol.best_validation(run_protocol.records(run_folder)), checkpoint.ranked(kept)
    if not kept:
        return "no checkpoint"
    if not ranked:
        return f"no checkpoint was validated; the newest, of step {max(kept):,}, is what is evaluated"
    if best is None or best["step"] == ranked[0]:
        words = f"the best validation, {kept[ranked[0]]:,.2f} nats per sequence, is that of step {ranked[0]:,}, kept"
    else:
        words = (
            f"the best validation, {best[run_protocol.VALID_ELBO]:,.2f} nats per sequence at step {best['step']:,}, "
            f"has no checkpoint; the best that has is that of step {ranked[0]:,}, {kept[ranked[0]]:,.2f} nats"
        )
    if kept[max(kept)] is None:
        words += f"; the newest checkpoint, of step {max(kept):,}, was not validated"
    return words


def changes(config: Config, run_folder: Path) -> list[str]:
    """Return what differs from the config that a run had before; whether it may is for `continuation` to say."""
    known = config_of(run_folder)
    if known is None:  # a new run, or one that another version began
        return []
    before = known.flat()
    return [f"{name} {before[name]} -> {value}" for name, value in config.flat().items() if before[name] != value]


def is_finished(config: Config, run_folder: Path) -> bool:
    """Return whether exactly this run has come to its last step."""
    if changes(config, run_folder):
        return False
    ended = run_protocol.result(run_folder)
    return ended is not None and ended.get("step") == config.train.steps
