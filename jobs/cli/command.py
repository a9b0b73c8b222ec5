"""What all commands share: one door, through which errors leave as a sentence and an exit code; recipes; places."""

import contextlib
import difflib
import errno
import functools
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

import tyro

from zfdist import container
from zfdist.config import Config, ConfigError
from zfdist.errors import ZfdistError
from zfdist.recipes import RECIPES

if TYPE_CHECKING:
    from zfdist.checkpoint.run_sync import WorkingCopy

RUNS = "runs"
_REMEDIES = {
    errno.EACCES: f"this user (uid {os.getuid()}) needs the right to it; or name another folder",
    errno.EPERM: f"this user (uid {os.getuid()}) needs the right to it; or name another folder",
    errno.EROFS: "name a folder on a disk that may be written",
    errno.ENOSPC: "free some space, and go on",
    errno.EDQUOT: "free some space, and go on",
    errno.ENOTDIR: "a file is where a folder should be; name another place",
    errno.EEXIST: "something else is where a folder should be; name another place",
    errno.EISDIR: "a folder is where a file should be; name another place",
    errno.ENAMETOOLONG: "take a shorter name",
}

DONE, REFUSED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""The exit codes of every command."""

Arguments = TypeVar("Arguments")
P = ParamSpec("P")


class UsageError(ZfdistError):
    """A command line that cannot be understood, or names what cannot be."""


def parse(kind: type[Arguments], job: str, argv: Sequence[str], defaults: Callable[[Config], Arguments]) -> Arguments:
    """Parse `RECIPE --flag value ...` into `kind`; answers --help and mistakes in flags itself, by SystemExit.

    Args:
        kind: a dataclass whose field `config` holds the flags of the recipe.
        job: e.g. "train", for `zfdist train`.
        argv: the command line without the program.
        defaults: makes the `kind` that holds a recipe's config and the defaults of the job.
    """
    prog = f"zfdist {job}"
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(prog))
        raise SystemExit(DONE if argv else USAGE)
    recipe = argv[0]
    if recipe not in RECIPES:
        near = difflib.get_close_matches(recipe, RECIPES, n=1)
        refuse(
            f"{recipe!r} is not a recipe; "
            + (f"perhaps you meant {near[0]!r}" if near else f"there are {', '.join(RECIPES)}")
        )
    return _parsed(kind, f"{prog} {recipe}", argv[1:], defaults(RECIPES[recipe]()))


def with_flags(config: Config, prog: str, argv: Sequence[str]) -> Config:
    """Return a config changed by its own flags alone; as `parse` otherwise."""
    return _parsed(tyro.conf.FlagConversionOff[Config], prog, argv, config)


def _parsed(kind: type[Arguments], prog: str, argv: Sequence[str], default: Arguments) -> Arguments:
    try:
        return tyro.cli(kind, prog=prog, args=list(argv), default=default)
    except ConfigError as error:
        refuse(_in_flags(str(error)))


def run_place(runs: str, name: str) -> str:
    """Return the folder or URI of a run or sweep called `name`; refuses what is no plain name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        refuse(f"--name {name!r}: must be letters, digits, '.', '_' and '-', as it names a folder in {runs}/")
    if "://" not in runs:
        return str(Path(runs) / name)
    place, question_mark, options = runs.partition("?")
    return f"{place.rstrip('/')}/{name}{question_mark}{options}"


def shown(place: str) -> str:
    """Return a run's folder or URI as people should read it."""
    return place.partition("?")[0] if "://" in place else place


def check_place(place: str) -> None:
    """Raise OSError now if a run's folder cannot be made or written, rather than after Ray has started."""
    if "://" in place:
        return
    nearest = Path(place)
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
    if not os.access(nearest, os.W_OK | os.X_OK):
        is_read_only = os.statvfs(nearest).f_flag & os.ST_RDONLY
        reason = errno.EROFS if is_read_only else errno.EACCES
        raise OSError(reason, os.strerror(reason), str(nearest))


def run_folder(name: str) -> Path:
    """Return the folder of a run called `name` in runs/; refuses what is no plain name."""
    return Path(run_place(RUNS, name))


@contextlib.contextmanager
def followed(place: str, cache: str) -> Iterator[tuple[Path, "WorkingCopy | None"]]:
    """Have the folder of a run within the block: its own, or a copy that follows a run in a store."""
    if "://" not in place:
        yield Path(place), None
        return
    from zfdist.checkpoint import run_sync

    with run_sync.followed(place, cache=Path(cache)) as copy:
        yield copy.folder, copy


def owner() -> str:
    """Return what tells this command from all others that might claim the same run."""
    return f"{time.time_ns():x}-{os.getpid()}"


def refuse(sentence: str) -> NoReturn:
    """Raise UsageError: say what is wrong with the command line."""
    raise UsageError(sentence)


def refuse_below(arguments: object, **least: float) -> None:
    """Raise UsageError for the first of the named arguments that is given (not None) and below what it must be."""
    for name, low in least.items():
        value = getattr(arguments, name)
        if value is not None and not value >= low:
            refuse(f"{flag(name)} {value:g}: must be {low:g} or more")


def flag(name: str) -> str:
    """Return a name as it is typed: num_samples -> --num-samples."""
    return "--" + name.replace("_", "-")


def say(line: str) -> None:
    """Print a line at once. That nobody reads it any more does not end what is being done."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        if not reader_has_gone():
            raise


def check_data(config: Config) -> None:
    """Raise StoreError now if the data are not there, rather than in a worker after Ray has started."""
    from zfdist.data.store import Store

    Store.open(config.data.root, verify="size", cache=config.data.cache)


def duration(seconds: float) -> str:
    """Return e.g. "45 s", "12 min" or "3 h 20 min"."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def program(main: Callable[P, int | None]) -> Callable[P, int]:
    """Make `main` a command: what it raises for people becomes one sentence on stderr, and it returns an exit code.

    0: done. 1: refused, or failed. 2: the command line itself is wrong. 130: interrupted by Ctrl-C. A reader that has
    gone (`| head`) has had enough: 0, without a word. A fault of the program is raised, with its traceback.
    """

    @functools.wraps(main)
    def door(*arguments: P.args, **named: P.kwargs) -> int:
        try:
            if remark := container.lend_home():
                print(remark, file=sys.stderr)
            code = main(*arguments, **named) or DONE
            sys.stdout.flush()
            return code
        except SystemExit as stop:  # of --help, and of mistakes in flags
            return stop.code if isinstance(stop.code, int) else DONE if stop.code is None else REFUSED
        except UsageError as error:
            _complain(f"error: {error}")
            return USAGE
        except KeyboardInterrupt:
            _complain("interrupted; the same command goes on from what it has written")
            return INTERRUPTED
        except OSError as error:
            if isinstance(error, BrokenPipeError) and reader_has_gone():
                return DONE
            _complain(f"error: {sentence(error)}")
            return REFUSED
        except ZfdistError as error:
            _complain(f"error: {error}")
            return REFUSED

    return door


def _complain(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)


def reader_has_gone() -> bool:
    """Return whether nobody reads stdout any more; what is still to be written there then goes nowhere."""
    looked = select.poll()
    looked.register(sys.stdout, 0)
    if not any(events & select.POLLERR for _, events in looked.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def sentence(error: OSError) -> str:
    """Return what a file system (or a network) refused as one sentence with the remedy."""
    what = error.strerror or " ".join(str(error).split()) or type(error).__name__
    where = f"{os.fspath(error.filename)}: " if isinstance(error.filename, str | os.PathLike) else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{where}{what}" + (f"; {remedy}" if remedy else "")


def _overview(prog: str) -> str:
    lines = [f"usage: {prog} RECIPE --name NAME [OPTIONS]", "", "recipes:"]
    lines += [f"  {name:10} {(make.__doc__ or '').splitlines()[0]}" for name, make in RECIPES.items()]
    return "\n".join([*lines, "", f"{prog} RECIPE --help lists all options with the recipe's defaults."])


def _in_flags(message: str) -> str:
    """Return a message about dotted names as one about flags: model.z_dim -> --model.z-dim."""
    return re.sub(r"\b[a-z]+(\.[a-z0-9_]*[a-z][a-z0-9_]*)+\b", lambda m: "--" + m.group().replace("_", "-"), message)
