"""Stop a trial or a whole sweep from outside: files that its driver and its trials look for."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.sweep.population import GENERATIONS
from cluster.sweep.record import FILE, mark, read_tree, state
from cluster.sweep.row import Row
from zfdist.errors import ZfdistError
from zfdist.object_store import ObjectFolder, join, without_options
from zfdist.run_protocol import METRICS, RESULT, STOP, records

_STOPPED = b'{"state": "stopped", "step": 0, "by": "name"}\n'


class StopError(ZfdistError):
    """There is no such sweep or trial to stop; names what there is."""


def stop_sweep(place: str) -> None:
    """Ask all trials of a sweep, a folder or URI, to save and stop.

    Raises:
        StopError: if it is no sweep.
        StorageError: if it is in a store that cannot be used.
    """
    _refuse_other(place)
    if "://" in place:
        ObjectFolder(place).write(STOP, b"")
    else:
        (Path(place) / STOP).touch()


def passing_on(folder: Path, part: Path, show: Callable[[Sequence[Row]], None]) -> Callable[[Sequence[Row]], None]:
    """Return `show`, which also stops `part` of the sweep in `folder` once that is asked to stop.

    A part is a sweep of its own: a generation, or the runs of a confirmation. Who asks need not know which one runs.
    """

    def shown(rows: Sequence[Row]) -> None:
        if (folder / STOP).exists() and not (part / STOP).exists():
            (part / STOP).touch()
        show(rows)

    return shown


def stop_trial(place: str, trial: str) -> str:
    """End one trial of a sweep for good, whether it runs or waits; return what became of it, for people.

    Raises:
        StopError: if it is no sweep, or has no such trial.
        StorageError: if it is in a store that cannot be used.
    """
    _refuse_other(place)
    if "://" in place:
        of_trial = ObjectFolder(join(place, f"trials/{trial}"))
        there = of_trial.objects("", recursive=False)
        if not there:
            raise StopError(f"{without_options(place)} has no trial {trial!r} that was begun")
        if RESULT in there:
            return "is over already"
        of_trial.write(RESULT, _STOPPED)
        return "is stopped; its process ends within seconds"
    if (Path(place) / GENERATIONS).is_dir():
        raise StopError(f"{place} is a population, whose members go on from each other: stop all, without {trial!r}")
    folder = Path(place) / "trials" / trial
    listed = {t.get("id") for t in (read_tree(Path(place) / FILE) or {}).get("trials", [])}
    known = sorted(listed | {path.name for path in folder.parent.glob("*")})
    if trial not in known:
        some = ", ".join(known if len(known) < 8 else [*known[:3], "...", known[-1]])
        raise StopError(f"{place} has no trial {trial!r}: there are {some or 'none yet'}")
    ended = state(folder)
    if ended is not None:
        return f"is over already: {ended}"
    step = max((r["step"] for r in records(folder)), default=0)
    mark(folder, state="stopped", step=step, by="name")
    return "is stopped; its process ends within seconds" if (folder / METRICS).exists() else "is stopped"


def _refuse_other(place: str) -> None:
    is_sweep = (
        FILE in ObjectFolder(place).objects("", recursive=False) if "://" in place else (Path(place) / FILE).is_file()
    )
    if not is_sweep:
        raise StopError(f"{without_options(place)}: is no sweep, it has no {FILE}")
