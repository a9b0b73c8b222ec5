"""Train one run: `python -m jobs.train RECIPE --name NAME [--workers W] [--loss.alpha 0.005] ...`.

The same command again goes on with the run. Ctrl-C (exit code 130) or SIGTERM (0) saves and stops; a second one aborts.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jobs.cli import command
from zfdist.config import Config


@dataclass(frozen=True)
class Machines:
    """Where it runs, and what is done when some of that is lost."""

    workers: str = "1"
    """Processes that share each global batch: a number, or MIN:MAX to shrink and grow with the machines."""
    cpus_per_worker: int | None = None
    """CPUs of each worker; None for an even part of what there is."""
    gpu: bool | None = None
    """A GPU for each worker; None if there are any."""
    address: str | None = None
    """A running Ray cluster, "auto" or host:port; None takes RAY_ADDRESS, else starts Ray on this machine."""
    max_failures: int = 3
    """Deaths of workers that are answered by going on from the newest checkpoint."""
    hang_timeout: float = 600.0
    """A worker without progress for so many seconds counts as dead; more than the longest start or checkpoint."""
    wait_for_nodes: float | None = None
    """Seconds to wait for missing machines; None for not at all at the start, and 600 after a loss."""
    grow_every: float = 120.0
    """Seconds for which a launch is left alone before it is ended for the sake of more workers."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train one run of a recipe; the same command again goes on with it."""

    name: str
    """The run's name: its folder is RUNS/NAME."""
    runs: str = command.RUNS
    """Where runs live: a folder that all machines of the cluster share, or a store: s3://BUCKET/PREFIX, gs://..."""
    start_from: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """A checkpoint, run or export, or the URI of a run, whose weights a new run starts from."""
    as_trained: bool = False
    """With --from: read sound under the mean and std that those weights were trained with, as of another voice."""
    profile: bool = False
    """Write where the time goes to the run's folder profile/: a trace of a few steps and a table."""
    machines: tyro.conf.OmitArgPrefixes[Machines] = Machines()
    config: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


@command.program
def main(argv: Sequence[str], on_accepted: Callable[[], None] = lambda: None) -> int:
    """Run the command line `argv`; return the exit code. `on_accepted` is called once nothing of it was refused."""
    arguments = command.parse(Arguments, "train", argv, lambda config: Arguments(name=tyro.MISSING, config=config))
    place = command.run_place(arguments.runs, arguments.name)
    workers = _range(arguments.machines.workers)
    if arguments.as_trained and arguments.start_from is None:
        command.refuse("--as-trained: needs --from, whose mean and std the run then takes over")
    command.refuse_below(
        arguments.machines, cpus_per_worker=1, max_failures=0, hang_timeout=1, wait_for_nodes=0, grow_every=0
    )
    return _train(arguments, place, workers, on_accepted)


def _range(text: str) -> tuple[int, int]:
    """Return fewest and most workers of "N" or "MIN:MAX"."""
    parts = text.split(":")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        command.refuse(f"--workers {text}: must be a number or MIN:MAX, e.g. 2 or 1:4")
    low, high = int(parts[0]), int(parts[-1])
    if low < 1:
        command.refuse(f"--workers {text}: must be 1 or more")
    if high < low:
        command.refuse(f"--workers {text}: the second number must not be below the first")
    return low, high


def _train(arguments: Arguments, place: str, workers: tuple[int, int], on_accepted: Callable[[], None]) -> int:
    command.check_place(place)
    command.check_data(arguments.config)

    from cluster import session

    console = Console(arguments.config.train.steps)
    follows = command.followed(place, arguments.config.data.cache)
    with session.connect(arguments.machines.address, say=command.say), follows as (folder, copy):
        from cluster.run.fit import fit
        from cluster.run.policy import Range
        from cluster.run.signals import was_interrupted
        from cluster.run.worker import RunLocation
        from zfdist.run_protocol import Weights

        where = arguments.start_from
        start_from = None if where is None else Weights(where, arguments.as_trained)
        cache = Path(arguments.config.data.cache)
        store = None if copy is None else RunLocation(place, command.owner(), cache)
        outcome = fit(
            arguments.config,
            folder,
            workers=Range(*workers),
            cpus_per_worker=arguments.machines.cpus_per_worker,
            use_gpu=arguments.machines.gpu,
            max_failures=arguments.machines.max_failures,
            start_from=start_from,
            profile=arguments.profile,
            store=store,
            hang_timeout_s=arguments.machines.hang_timeout,
            wait_for_nodes_s=arguments.machines.wait_for_nodes,
            grow_every_s=arguments.machines.grow_every,
            on_accepted=on_accepted,
            on_report=console.report,
            say=command.say,
        )
        is_interrupted = outcome.state == "stopped" and was_interrupted(folder)
    if outcome.state == "stopped":
        command.say(f"stopped at step {outcome.step}; the same command goes on from there")
    else:
        command.say(f"finished at step {outcome.step}: {command.shown(place)}")
    return command.INTERRUPTED if is_interrupted else command.DONE


class Console:
    """Prints a run's metrics, a line for each record."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def report(self, record: dict[str, Any]) -> None:
        """Print a record of metrics.jsonl: training, validation, checkpoint or skipped update."""
        step = f"step {record['step']:>{len(str(self._steps))}}/{self._steps}"
        if "train/elbo_nats" in record:
            left_s = (self._steps - record["step"]) * record["speed/step_s"]
            command.say(
                f"{step}  train elbo {_nats(record['train/elbo_nats'])} nats/seq  kl {_nats(record['train/kl_nats'])}"
                f"  {record['speed/frames_per_s']:>9,.0f} frames/s  ETA {command.duration(left_s)}"
            )
        elif "valid/elbo_nats" in record:
            command.say(
                f"{step}  valid elbo {_nats(record['valid/elbo_nats'])} nats/seq  kl {_nats(record['valid/kl_nats'])}"
                f"  {record['valid/nats_per_sample']:.4f} nats/sample"
            )
        elif "checkpoint/save_s" in record:
            command.say(f"{step}  checkpoint saved in {record['checkpoint/save_s']:.2f} s")
        elif "skipped/terms" in record:
            scale = f" (fp16: loss scale now {record['optim/loss_scale']:g})" if "optim/loss_scale" in record else ""
            command.say(f"{step}  update skipped: not finite: {', '.join(record['skipped/terms'])}{scale}")


def _nats(value: float | None) -> str:
    return f"{value:>10.2f}" if value is not None else f"{'not finite':>10}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
