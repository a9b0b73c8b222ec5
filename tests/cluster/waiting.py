"""Bounded waits whose failure tells the end of a log."""

import time
from collections.abc import Callable
from pathlib import Path


class HostError(RuntimeError):
    """Something on a host failed or took too long; the message has what it said last."""


def wait_for(true: Callable[[], bool], what: str, within_s: float = 30, log: Path | None = None) -> float:
    """Wait until something is true; return the seconds that took.

    Raises:
        HostError: after `within_s`, with the last lines of `log`.
    """
    started = time.monotonic()
    while not true():
        if time.monotonic() - started > within_s:
            tail = last_lines(log.read_text(errors="replace")) if log is not None and log.exists() else ""
            raise HostError(f"{what}: not within {within_s:g} s" + (f"; the end of {log}:\n{tail}" if log else ""))
        time.sleep(0.1)
    return time.monotonic() - started


def last_lines(text: str, count: int = 30) -> str:
    """Return the end of a text."""
    return "\n".join(text.splitlines()[-count:])
