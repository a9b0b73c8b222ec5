"""Make a data set: `zfdist prepare speech --source DIR --out data/NAME`; or timit, blizzard, mnist, text.

`zfdist prepare verify DIR` checks one that is there, `zfdist prepare info DIR` says what is in it.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import make_dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from jobs.cli.command import program, refuse, refuse_below, say
from jobs.cli.command import shown as place_shown
from jobs.cli.prepare_options import (
    Blizzard,
    Command,
    Info,
    Lists,
    Machines,
    Mnist,
    Speech,
    Text,
    Timit,
    Verb,
    Verify,
)
from jobs.cli.prepare_progress import shown

if TYPE_CHECKING:
    from zfdist.data.sources.convert import Outcome, Progress
    from zfdist.data.sources.workers import Workers

SOURCES = "zfdist.data.sources"
COMMANDS: dict[str, Callable[..., Command | Verb]] = {
    "speech": Speech,
    "timit": Timit,
    "blizzard": Blizzard,
    "mnist": Mnist,
    "text": Text,
    "verify": Verify,
    "info": Info,
}


@program
def main(argv: Sequence[str]) -> None:
    """Run the command line `argv`, print what came of it, return the exit code."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS | _by_name(argv),
        prog="zfdist prepare",
        description="Make a data set of Arrow shards from raw files, check one, or say what is in it.",
        args=argv,
    )
    from jobs.cli import prepare_info

    if isinstance(command, Verify):
        prepare_info.verify(_place(command.where))
    elif isinstance(command, Info):
        for line in prepare_info.lines(_place(command.where)):
            say(line)
    else:
        _make(command)


def _make(command: Command) -> None:
    from zfdist.data.sources.places import SourceError

    machines = getattr(command, "machines", Machines())
    refuse_below(machines, workers=1)
    if machines.address is not None and machines.workers is None:
        refuse("--address: needs --workers, how many tasks there are to be at a time")
    try:
        convert = _converter(command)
    except SourceError as error:  # nothing was looked at but the flags
        refuse(str(error))
    with _workers(command, machines) as workers, shown(getattr(command, "sample_rate", 0)) as progress:
        outcome = convert(progress, workers)
    _print_outcome(command, outcome)


@contextmanager
def _workers(command: Command, machines: Machines) -> Iterator["Workers"]:
    """Give who does the work."""
    from zfdist.data.sources.workers import Processes, here

    if machines.workers is None or (machines.workers == 1 and machines.address is None):
        yield here
    elif machines.address is None:
        yield Processes(machines.workers)
    else:
        from cluster import session

        with session.connect(machines.address, say=say):
            from cluster.prepare import Tasks

            sources = command.source if isinstance(command.source, tuple) else (command.source,)
            yield Tasks(machines.workers, [_place(source) for source in sources], _place(command.out), say)


def _place(given: Any) -> Any:
    """Return a folder as a path, and a URI as it is."""
    return given if "://" in str(given) else Path(given)


def _by_name(argv: Sequence[str]) -> dict[str, Callable[..., Command | Verb]]:
    """Return the command that a file of data/sources gives by itself: `NAME.py` with `Options` and `prepare`."""
    name = argv[0] if argv else ""
    if name in COMMANDS or not name.isidentifier() or not find_spec(f"{SOURCES}.{name}"):
        return {}
    source = import_module(f"{SOURCES}.{name}")
    if not hasattr(source, "Options") or not hasattr(source, "prepare"):
        return {}  # a part of other sources
    out: Any = ("out", Path)
    return {name: make_dataclass(name, [out], bases=(source.Options,), kw_only=True, frozen=True)}


def _converter(command: Command) -> "Callable[[Progress, Workers], Outcome]":
    """Return the converter of a command; raises SourceError if its flags cannot be."""
    from zfdist.data.sources import blizzard, mnist, speech, text, timit
    from zfdist.data.sources.rows import Fields

    given = {name: value for name, value in vars(command).items() if name not in ("out", "machines")}
    out = _place(command.out)
    if type(command) not in COMMANDS.values():
        source = import_module(f"{SOURCES}.{type(command).__name__}")
        return lambda progress, workers: source.prepare(source.Options(**given), command.out, progress)
    if isinstance(command, Text):
        sources = tuple(_place(source) for source in given.pop("source"))
        fields = Fields(*(given.pop(f"{name}_field") for name in ("text", "review", "label")))
        return partial(text.prepare, text.Text(sources=sources, fields=fields, **given), out)
    given["source"] = _place(command.source)
    if isinstance(command, Mnist):
        return partial(mnist.prepare, mnist.Mnist(**given), out)
    given |= {"lists": _lists(command.lists)} | vars(given.pop("output"))
    if isinstance(command, Speech):
        return partial(speech.prepare, speech.Options(**given), out)
    if isinstance(command, Timit):
        options = timit.Timit(leave_out_sa=given.pop("no_sa"), **given)
        return partial(timit.prepare, options, out)
    names = ("group_files", "streams", "valid_row", "test_row", "end_row")
    rows = {name: given.pop(name) for name in names}
    order_list, split, chapter = given.pop("order_list"), given.pop("split"), given.pop("chapter")
    _check_blizzard(command)
    if split == "rows":
        return partial(blizzard.prepare, blizzard.Rows(order_list=order_list, **rows, **given), out)
    return partial(speech.prepare, speech.Options(split_by=chapter, **given), out, converter="blizzard")


def _check_blizzard(command: Blizzard) -> None:
    """Raise SourceError if flags of one split are given with the other."""
    from zfdist.data.sources.places import SourceError

    if command.split == "rows" and command.order_list is None:
        raise SourceError("--order-list is missing: --split rows needs the list of files that fixes their order")
    if command.split == "rows" and command.lists.list_train is not None:
        raise SourceError("--list-train is for --split chapters; --split rows takes --order-list")
    if command.split == "chapters" and command.order_list is not None:
        raise SourceError("--order-list is for --split rows; give --split rows with it")


def _lists(given: Lists) -> Mapping[str, Path] | None:
    """Return the list file of each split; raises SourceError if some are missing."""
    from zfdist.data.sources.places import SourceError

    lists = {name: getattr(given, f"list_{name}") for name in ("train", "valid", "test")}
    missing = [name for name, path in lists.items() if path is None]
    if missing and len(missing) < len(lists):
        raise SourceError(f"--list-{missing[0]} is missing: give all three lists or none")
    return None if missing else lists


def _print_outcome(command: Command, outcome: "Outcome") -> None:
    from jobs.cli import prepare_summary
    from zfdist.data.sources.convert import named

    manifest = outcome.manifest
    if outcome.was_there:
        print(f"{place_shown(str(command.out))} was already made from this input; nothing to do.")
    for remark in outcome.remarks:
        print(remark)
    if outcome.bad:
        print(f"{len(outcome.bad):,} files left out:\n{named(outcome.bad)}")
    if outcome.doubtful:
        print(f"{len(outcome.doubtful):,} files were read of which this should be known:")
        print(named(outcome.doubtful))
    for line in prepare_summary.lines(_place(command.out), manifest):
        print(line)
    if outcome.short:
        print(f"{outcome.short} recordings are shorter than two frames of 200 samples and give no sequence of those.")
    print(f"fingerprint {manifest.fingerprint}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
