"""Make a data set: `python -m jobs.prepare speech --source DIR --out data/NAME`."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from zfdist.data.sources.convert import Outcome, Progress
    from zfdist.data.sources.speech import Options

ListFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]


@dataclass(frozen=True)
class Speech:
    """Convert a folder of WAV, FLAC, NIST SPHERE and MP3 files, at any depth, into Arrow shards.

    Channels are averaged, sound is resampled and kept as int16; a file is one recording. Files are known by their
    first bytes; hidden ones and those of other kinds are passed over, links to folders are not followed.

    The split: u = sha256 of a file's path below --source, as a fraction of 1; test if 100 u is below --test-percent,
    valid if it is below the sum of both percentages, else train. It does not change when other files come or go.

    The same command goes on where an interrupted one stopped. The same input gives the same bytes.
    """

    source: Path
    """Folder with the audio files."""
    out: Path
    """Folder of the data set to write, e.g. data/speech."""
    sample_rate: int = 16_000
    """Samples a second of the data set."""
    split_by: Literal["file", "folder"] = "file"
    """Whose path decides the split: the file's, or that of its folder (keeps a speaker's folder together)."""
    valid_percent: float = 10.0
    """Share of files (or folders) for validation."""
    test_percent: float = 10.0
    """Share of files (or folders) for the test."""
    list_train: ListFile = None
    """Text file with the paths below --source to train on, one a line. Give all three lists or none."""
    list_valid: ListFile = None
    """The same for validation; files in no list are left out."""
    list_test: ListFile = None
    """The same for the test."""
    max_bad: int = 0
    """Files that may be unreadable, cut short or empty; they are left out and reported."""
    shard_mb: int = 256
    """Size of a shard file, about, in MiB."""
    licence: str = ""
    """Licence of the data; default: the text of a LICENSE or COPYRIGHT file in --source."""


def main(argv: list[str]) -> int:
    """Run the command line `argv`, print what came of it, return the exit code."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"speech": Speech},
        prog="python -m jobs.prepare",
        description="Make a data set of Arrow shards from raw files.",
        args=argv,
    )
    from zfdist.data.sources import speech
    from zfdist.data.sources.inputs import SourceError
    from zfdist.data.store import StoreError

    try:
        with _progress(command.sample_rate) as progress:
            outcome = speech.prepare(_options(command), command.out, progress)
        _print_outcome(command.out, outcome)
    except (StoreError, SourceError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
    return 0


def _options(command: Speech) -> "Options":
    from zfdist.data.sources.inputs import SourceError
    from zfdist.data.sources.speech import Options

    lists = {"train": command.list_train, "valid": command.list_valid, "test": command.list_test}
    given = {name: path for name, path in lists.items() if path is not None}
    if given and len(given) < len(lists):
        missing = next(name for name in lists if name not in given)
        raise SourceError(f"--list-{missing} is missing: give all three lists or none")
    return Options(
        source=command.source,
        sample_rate=command.sample_rate,
        split_by=command.split_by,
        valid_percent=command.valid_percent,
        test_percent=command.test_percent,
        lists=given or None,
        shard_mb=command.shard_mb,
        licence=command.licence,
        max_bad=command.max_bad,
    )


@contextmanager
def _progress(sample_rate: int) -> Iterator["Progress"]:
    """Show minutes of sound done and the time left: a bar on a terminal, else a line every few seconds."""
    if sys.stdout.isatty():
        from rich.progress import Progress as Bar

        with Bar() as bar:
            task = bar.add_task("converting", total=None)
            yield lambda done, total, name: bar.update(task, completed=done, total=total)
        return
    begun = latest = time.monotonic()

    def print_line(done: int, total: int, name: str) -> None:
        nonlocal latest
        now = time.monotonic()
        if now - latest < 5 or not done:
            return
        latest = now
        left = (now - begun) * max(0, total - done) / done
        minutes = f"{done / sample_rate / 60:.1f} of {total / sample_rate / 60:.1f} min"
        print(f"{minutes} of sound, {100 * done / max(total, done):.0f} %, {left:.0f} s left, at {name}", flush=True)

    yield print_line


def _print_outcome(out: Path, outcome: "Outcome") -> None:
    manifest = outcome.manifest
    if outcome.was_there:
        print(f"{out} was already made from this input; nothing to do.")
    if outcome.bad:
        print(f"{len(outcome.bad)} files left out:")
        for name, reason in outcome.bad.items():
            print(f"  {name}: {reason}")
    print(f"{'split':<8}{'recordings':>11}{'minutes':>10}{'samples':>14}{'mean':>9}{'std':>10}{'shards':>8}")
    for name, split in manifest.splits.items():
        minutes = split.samples / manifest.sample_rate / 60
        print(
            f"{name:<8}{split.recordings:>11,}{minutes:>10.2f}{split.samples:>14,}{split.statistics.mean:>9.3f}"
            f"{split.statistics.std:>10.2f}{len(split.shards):>8}"
        )
    if outcome.short:
        print(f"{outcome.short} recordings are shorter than two frames of 200 samples and give no sequence of those.")
    normalisation = manifest.normalisation
    print(f"normalised by mean {normalisation.mean:.6g} and std {normalisation.std:.6g} of {normalisation.split}")
    print(f"fingerprint {manifest.fingerprint}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
