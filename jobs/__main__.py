"""The front door: `zfdist VERB ...`, or `python -m jobs VERB ...`; every verb is a module of this package.

It imports the one that is asked for and nothing else, so that --help and a mistyped verb are answered at once.
"""

import contextlib
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

_NO_VERBS = ("plan",)  # what another command calls


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`, that of the process by default; return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else 2
    verb = words[0]
    if verb not in verbs():
        near = difflib.get_close_matches(verb, verbs(), n=1)
        meant = f"perhaps you meant {near[0]!r}" if near else f"there are {', '.join(verbs())}"
        print(f"error: {verb!r} is no command of zfdist; {meant}", file=sys.stderr)
        return 2
    with _quiet_ctrl_c():
        command = importlib.import_module(f"jobs.{verb}").main
    code: int = command(words[1:])
    return code


@contextlib.contextmanager
def _quiet_ctrl_c() -> Iterator[None]:
    """End the process at Ctrl-C within the block, which imports: raised there, it would become all sorts of errors."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # whoever started this has it ignored
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: object) -> None:
    os.write(2, b"interrupted; nothing was begun\n")
    os._exit(130)


def verbs() -> list[str]:
    """Return the names of all commands."""
    names = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in names if not name.startswith("_") and name not in _NO_VERBS)


def _overview() -> str:
    width = max(len(verb) for verb in verbs())
    lines = [f"  {verb:<{width}}  {_purpose(verb)}" for verb in verbs()]
    return "\n".join(["usage: zfdist COMMAND ...", "", *lines, "", "zfdist COMMAND --help tells what each takes."])


def _purpose(verb: str) -> str:
    """Return what a module says of itself before the first colon of its docstring."""
    with (Path(__file__).parent / f"{verb}.py").open() as file:
        return file.readline().removeprefix('"""').partition(":")[0].strip()


if __name__ == "__main__":
    sys.exit(main())
