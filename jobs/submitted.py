"""What a submitted job runs on the cluster: one of our commands, noted where its run is kept.

    python -m jobs.submitted run NAME STORAGE train demo --name NAME ...     note the command, then run it
    python -m jobs.submitted again NAME STORAGE                              run what was noted

So a run that was submitted once can be gone on with by its name alone, on any cluster that reaches the storage.
"""

import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jobs import command

NOTE = "submission.json"
JOBS = ("train", "sweep", "evaluate", "generate", "paper")


def main(argv: Sequence[str]) -> int:
    """Run the command line `argv`; return the exit code."""
    verb, name, storage, *words = argv
    note = Path(storage) / name / NOTE
    if verb == "again":
        try:
            words = json.loads(note.read_text())["command"]
        except FileNotFoundError:
            command.refuse(f"{note}: no such run was submitted; the runs there: {_names(Path(storage))}")
    else:
        note.parent.mkdir(parents=True, exist_ok=True)
        record = {"command": words, "submitted": time.strftime("%F %T")}
        note.write_text(json.dumps(record, indent=2) + "\n")
    print(f"python -m jobs.{' '.join(words)}", flush=True)
    code: int = importlib.import_module(f"jobs.{words[0]}").main(words[1:])
    return code


def _names(storage: Path) -> str:
    return ", ".join(sorted(path.parent.name for path in storage.glob(f"*/{NOTE}"))) or "none"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
