"""What a submitted job runs on the cluster: one of our commands, noted where its run is kept.

    python -m jobs.cli.job_entrypoint run NAME STORAGE train demo --name NAME ...   note the command, then run it
    python -m jobs.cli.job_entrypoint run NAME STORAGE --sample ROOT train ...      with the sample that ships in ROOT
    python -m jobs.cli.job_entrypoint again NAME STORAGE                            run what was noted

So a run that was submitted once can be gone on with by its name alone, on any cluster that reaches the storage.
"""

import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.cli import command, sample
from zfdist.errors import ZfdistError

NOTE = "submission.json"
JOBS = ("train", "sweep")


@command.program
def main(argv: Sequence[str]) -> int:
    """Run the command line `argv`; return the exit code."""
    if len(argv) < 3 or argv[0] not in ("run", "again") or (argv[0] == "run") != (len(argv) > 3):
        command.refuse("must be: run NAME STORAGE train|sweep ..., or: again NAME STORAGE")
    verb, name, storage, *words = argv
    if verb == "again":
        words = _noted(storage, name)
    sample_root = None
    if words[0] == "--sample":
        _, sample_root, *words = words
    if words[0] not in JOBS:
        command.refuse(f"{words[0]!r} is not a job; there are {', '.join(JOBS)}")
    if verb == "run":
        _refuse_other_kind(storage, name, words)
    if sample_root is not None:
        sample.bring(sample_root, say=command.say)

    def note() -> None:
        record = {"command": words, "submitted": time.strftime("%F %T")}
        _write(storage, name, json.dumps(record, indent=2) + "\n")

    print(f"zfdist {' '.join(words)}", flush=True)
    # A command that is refused leaves the note of the one before.
    code: int = importlib.import_module(f"jobs.{words[0]}").main(words[1:], note)
    return code


def _refuse_other_kind(storage: str, name: str, words: Sequence[str]) -> None:
    """Refuse a run by the name of a sweep, and the other way: each would take the note from the other."""
    try:
        before = json.loads(_read(storage, name))["command"][0]
    except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
        return  # none, or a damaged one
    if before != words[0] and before in JOBS:
        command.refuse(f"{storage}/{name} was submitted as a {before}; take another --name for a {words[0]}")


def _noted(storage: str, name: str) -> list[str]:
    """Return the command that was noted; refuses a name without one."""
    try:
        words = json.loads(_read(storage, name))["command"]
    except FileNotFoundError:
        raise ZfdistError(f"{storage}/{name}: no such run was submitted; look for its name in {storage}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        words = None
    if not isinstance(words, list) or not words or words[0] not in JOBS:
        raise ZfdistError(f"{storage}/{name}/{NOTE}: damaged; submit the run's command again, it goes on with it")
    return [str(word) for word in words]


def _read(storage: str, name: str) -> str:
    """Return the note of a run; raises FileNotFoundError if there is none."""
    from zfdist import object_store as remote

    if not remote.is_remote(storage):
        return (Path(storage) / name / NOTE).read_text()
    try:
        return remote.ObjectFolder(remote.join(storage, name)).read(NOTE).decode()
    except remote.Missing:
        raise FileNotFoundError(NOTE) from None


def _write(storage: str, name: str, text: str) -> None:
    from zfdist import atomic_io
    from zfdist import object_store as remote

    if remote.is_remote(storage):
        remote.ObjectFolder(remote.join(storage, name)).write(NOTE, text.encode())
    else:
        (Path(storage) / name).mkdir(parents=True, exist_ok=True)
        atomic_io.write(Path(storage) / name / NOTE, text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
