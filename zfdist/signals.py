"""What SIGTERM and SIGINT mean to a command that follows a run: save and end."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from zfdist.run_protocol import STOP

_SAME_SIGNAL_S = 1.0  # timeout and others signal a process and then its group


@contextlib.contextmanager
def stop_on_signals(run_folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Let the first SIGTERM or SIGINT ask the run to save and end, and a second one abort; main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    asked_s: list[float] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        if asked_s:
            if time.monotonic() - asked_s[0] > _SAME_SIGNAL_S:
                raise KeyboardInterrupt
            return
        asked_s.append(time.monotonic())
        (run_folder / STOP).write_text(signal.Signals(number).name)
        say("saving, then stopping (once more to abort at once) ...")

    for kind in kinds:
        signal.signal(kind, ask)
    try:
        yield
    finally:
        for kind in kinds:
            signal.signal(kind, before[kind])


def was_interrupted(run_folder: Path) -> bool:
    """Return whether the run was last asked to stop by SIGINT, as Ctrl-C is, and not by SIGTERM or another program."""
    try:
        return (run_folder / STOP).read_text() == signal.SIGINT.name
    except OSError:
        return False
