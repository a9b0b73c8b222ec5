"""How far `zfdist prepare` is, over all its workers: a bar on a terminal, else a line every few seconds."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.cli.command import duration, say

if TYPE_CHECKING:
    from zfdist.data.sources.convert import Progress

SAY_EVERY_S = 5.0


@contextmanager
def shown(sample_rate: int) -> Iterator["Progress"]:
    """Show what is done, how fast, and the time left; samples count as sound of `sample_rate`, if it is not 0.

    Speed is counted from the last time that nothing was done, as files are listed and measured before.
    """
    if sys.stdout.isatty():
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        with Bar(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}")) as bar:
            task = bar.add_task("converting", total=None, words="")
            begun_s = time.monotonic()

            def move(done: int, total: int, name: str) -> None:
                nonlocal begun_s
                begun_s = begun_s if done else time.monotonic()
                words = line(done, total, name, time.monotonic() - begun_s, sample_rate)
                bar.update(task, completed=done, total=total or None, words=words)

            yield move
        return
    begun_s = latest_s = time.monotonic()

    def print_line(done: int, total: int, name: str) -> None:
        nonlocal begun_s, latest_s
        now_s = time.monotonic()
        begun_s = begun_s if done else now_s
        if now_s - latest_s >= SAY_EVERY_S:
            latest_s = now_s
            say(line(done, total, name, now_s - begun_s, sample_rate))

    yield print_line


def line(done: int, total: int, name: str, passed_s: float, sample_rate: int) -> str:
    """Return what is said, e.g. "1.2 of 10.0 h of sound, 12 %, 340 times as fast as it plays, 0:01:33 left, at a.mp3".

    What was made before counts as done at once, so the speed is that of this process and what it found.
    """
    if not done:
        return f"reading, at {name}"
    left = duration(passed_s * max(0, total - done) / done)
    share = f"{100 * done / max(total, done):.0f} %"
    if not sample_rate:
        return f"{done:,} of {total:,}, {share}, {left} left, at {name}"
    hours = sample_rate * 3600
    speed = done / sample_rate / max(passed_s, 1e-9)
    return (
        f"{done / hours:.2f} of {total / hours:.2f} h of sound, {share}, {speed:,.0f} times as fast as it plays, "
        f"{left} left, at {name}"
    )
