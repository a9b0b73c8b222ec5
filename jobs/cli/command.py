"""What the front doors of a run share: a recipe with typed overrides, and errors as one sentence."""

import contextlib
import difflib
import errno
import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import tyro

from jobs.recipes import RECIPES
from zfdist.config import Config, ConfigError, parse_value

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

Arguments = TypeVar("Arguments")


def parse(kind: type[Arguments], job: str, argv: Sequence[str], defaults: Callable[[Config], Arguments]) -> Arguments:
    """Parse `RECIPE --flag value ...` into `kind`; answers --help and mistakes by itself and exits.

    Args:
        kind: a dataclass whose field `config` holds the flags of the recipe.
        job: e.g. "train", for `python -m jobs.train`.
        argv: the command line without the program.
        defaults: makes the `kind` that holds a recipe's config and the defaults of the job.
    """
    prog = f"python -m jobs.{job}"
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(prog))
        raise SystemExit(0 if argv else 2)
    recipe = argv[0]
    if recipe not in RECIPES:
        near = difflib.get_close_matches(recipe, RECIPES, n=1)
        refuse(
            f"{recipe!r} is not a recipe; "
            + (f"perhaps you meant {near[0]!r}" if near else f"there are {', '.join(RECIPES)}")
        )
    config = RECIPES[recipe]()
    try:
        config.with_values(dict(overrides(argv[1:])))  # for its messages; tyro's own name no ranges
    except ConfigError as error:
        refuse(_in_flags(str(error)))
    return tyro.cli(kind, prog=f"{prog} {recipe}", default=defaults(config), args=list(argv[1:]))


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
    """Print what is wrong with the command line and exit with code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


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


def give_home() -> None:
    """Give a user who has no home folder, or may not write to it, a place for what libraries keep there.

    Containers run as users that the machine does not know; Ray and PyTorch end with a traceback then.
    """
    import tempfile

    place = Path(tempfile.gettempdir()) / f"zfdist-{os.getuid()}"
    try:
        home = Path.home()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
        if os.access(cache if cache.exists() else home, os.W_OK | os.X_OK):
            return
        variable = "XDG_CACHE_HOME"
    except RuntimeError:
        variable = "HOME"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.lstat().st_uid != os.getuid() or not place.is_dir():
        place = Path(tempfile.mkdtemp(prefix="zfdist-"))
    os.environ[variable] = str(place)
    print(f"this user (uid {os.getuid()}) has no home folder to write to: caches go to {place}", file=sys.stderr)


def exit_code(job: Callable[[], None]) -> int:
    """Run a job; print the errors that this project defines as one sentence.

    Returns:
        0; 1 after a failure; 2 for a config that cannot be; 130 if aborted.
    """
    try:
        give_home()
        job()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("aborted; the same command goes on from the newest checkpoint", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("zfdist", "cluster"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


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


def overrides(argv: Sequence[str]) -> Iterator[tuple[str, object]]:
    """Yield the dotted flags of a command line with their values."""
    words = [word for flag in argv for word in (flag.split("=", 1) if flag.startswith("--") else [flag])]
    for flag, text in itertools.pairwise(words):
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and "." in name:
            yield name, parse_value(name, text)
