"""Make a data set: `zfdist prepare speech --source DIR --out data/NAME`; or timit, blizzard, mnist, text."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import make_dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from jobs.cli.command import program, refuse, say
from jobs.cli.prepare_options import Blizzard, Command, Lists, Mnist, Speech, Text, Timit

if TYPE_CHECKING:
    from zfdist.data.sources.convert import Outcome, Progress

SOURCES = "zfdist.data.sources"
COMMANDS: dict[str, Callable[..., Command]] = {
    "speech": Speech,
    "timit": Timit,
    "blizzard": Blizzard,
    "mnist": Mnist,
    "text": Text,
}


@program
def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`, print what came of it, return the exit code."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS | _by_name(argv),
        prog="zfdist prepare",
        description="Make a data set of Arrow shards from raw files.",
        args=argv,
    )
    from zfdist.data.sources.inputs import SourceError

    try:
        convert = _converter(command)
    except SourceError as error:  # nothing was looked at but the flags
        refuse(str(error))
    with _progress(command) as progress:
        outcome = convert(progress)
    _print_outcome(command, outcome)


def _by_name(argv: Sequence[str]) -> dict[str, Callable[..., Command]]:
    """Return the command that a file of data/sources gives by itself: `NAME.py` with `Options` and `prepare`."""
    name = argv[0] if argv else ""
    if name in COMMANDS or not name.isidentifier() or not find_spec(f"{SOURCES}.{name}"):
        return {}
    source = import_module(f"{SOURCES}.{name}")
    if not hasattr(source, "Options") or not hasattr(source, "prepare"):
        return {}  # a part of other sources
    out: Any = ("out", Path)
    return {name: make_dataclass(name, [out], bases=(source.Options,), kw_only=True, frozen=True)}


def _converter(command: Command) -> "Callable[[Progress], Outcome]":
    """Return the converter of a command; raises SourceError if its flags cannot be."""
    from zfdist.data.sources import blizzard, mnist, speech, text, timit
    from zfdist.data.sources.rows import Fields

    given = {name: value for name, value in vars(command).items() if name != "out"}
    if type(command) not in COMMANDS.values():
        source = import_module(f"{SOURCES}.{type(command).__name__}")
        return partial(source.prepare, source.Options(**given), command.out)
    if isinstance(command, Mnist):
        return partial(mnist.prepare, mnist.Mnist(**given), command.out)
    if isinstance(command, Text):
        fields = Fields(*(given.pop(f"{name}_field") for name in ("text", "review", "label")))
        return partial(text.prepare, text.Text(sources=given.pop("source"), fields=fields, **given), command.out)
    given |= {"lists": _lists(command.lists)} | vars(given.pop("output"))
    if isinstance(command, Speech):
        return partial(speech.prepare, speech.Options(**given), command.out)
    if isinstance(command, Timit):
        options = timit.Timit(leave_out_sa=given.pop("no_sa"), **given)
        return partial(timit.prepare, options, command.out)
    names = ("group_files", "streams", "valid_row", "test_row", "end_row")
    rows = {name: given.pop(name) for name in names}
    order_list, split, chapter = given.pop("order_list"), given.pop("split"), given.pop("chapter")
    _check_blizzard(command)
    if split == "rows":
        return partial(blizzard.prepare, blizzard.Rows(order_list=order_list, **rows, **given), command.out)
    return partial(speech.prepare, speech.Options(split_by=chapter, **given), command.out, converter="blizzard")


def _check_blizzard(command: Blizzard) -> None:
    """Raise SourceError if flags of one split are given with the other."""
    from zfdist.data.sources.inputs import SourceError

    if command.split == "rows" and command.order_list is None:
        raise SourceError("--order-list is missing: --split rows needs the list of files that fixes their order")
    if command.split == "rows" and command.lists.list_train is not None:
        raise SourceError("--list-train is for --split chapters; --split rows takes --order-list")
    if command.split == "chapters" and command.order_list is not None:
        raise SourceError("--order-list is for --split rows; give --split rows with it")


def _lists(given: Lists) -> Mapping[str, Path] | None:
    """Return the list file of each split; raises SourceError if some are missing."""
    from zfdist.data.sources.inputs import SourceError

    lists = {name: getattr(given, f"list_{name}") for name in ("train", "valid", "test")}
    missing = [name for name, path in lists.items() if path is None]
    if missing and len(missing) < len(lists):
        raise SourceError(f"--list-{missing[0]} is missing: give all three lists or none")
    return None if missing else lists


@contextmanager
def _progress(command: Command) -> Iterator["Progress"]:
    """Show what is done and the time left: a bar on a terminal, else a line every few seconds."""
    if sys.stdout.isatty():
        from rich.progress import Progress as Bar

        with Bar() as bar:
            task = bar.add_task("converting", total=None)
            yield lambda done, total, name: bar.update(task, completed=done, total=total or None)
        return
    per_minute = 60 * getattr(command, "sample_rate", 0)
    begun = latest = time.monotonic()

    def print_line(done: int, total: int, name: str) -> None:
        nonlocal latest
        now = time.monotonic()
        if now - latest < 5:
            return
        latest = now
        if not done:
            say(f"reading, at {name}")
            return
        left = (now - begun) * max(0, total - done) / done
        amount = f"{done:,} of {total:,}"
        if per_minute:
            amount = f"{done / per_minute:.1f} of {total / per_minute:.1f} min of sound"
        say(f"{amount}, {100 * done / max(total, done):.0f} %, {left:.0f} s left, at {name}")

    yield print_line


def _print_outcome(command: Command, outcome: "Outcome") -> None:
    from jobs.cli import prepare_summary
    from zfdist.data.sources.convert import named

    manifest = outcome.manifest
    if outcome.was_there:
        print(f"{command.out} was already made from this input; nothing to do.")
    for remark in outcome.remarks:
        print(remark)
    if outcome.bad:
        print(f"{len(outcome.bad):,} files left out:\n{named(outcome.bad)}")
    if outcome.doubtful:
        print(f"{len(outcome.doubtful):,} files were read of which this should be known:")
        print(named(outcome.doubtful))
    for line in prepare_summary.lines(command.out, manifest):
        print(line)
    if outcome.short:
        print(f"{outcome.short} recordings are shorter than two frames of 200 samples and give no sequence of those.")
    print(f"fingerprint {manifest.fingerprint}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
