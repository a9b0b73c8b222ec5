"""Train one run: `zfdist train RECIPE --name NAME [--workers W] [--loss.alpha 0.005] ...`.

The same command again goes on with the run. Ctrl-C (exit code 130) or SIGTERM (0) saves and stops; a second one aborts.
With `--no-ray` this process trains as the worker that it is: alone, or one of those that torchrun or srun started.
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from jobs.cli import command
from zfdist.config import Config, ConfigError
from zfdist.recipes import RECIPES
from zfdist.run_options import Machines, Range, RunLocation, RunOptions
from zfdist.run_protocol import Outcome, Weights


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
    dry_run: bool = False
    """Print the resolved config, the network, shares, memory and time, refuse what the run would; start nothing."""
    ray: bool = True
    """Let Ray start the workers, again after a fault and on more or fewer machines; --no-ray: this process is one."""
    address: str | None = None
    """A running Ray cluster, "auto" or host:port; None takes RAY_ADDRESS, else starts Ray on this machine."""
    machines: tyro.conf.OmitArgPrefixes[Machines] = field(default_factory=Machines)
    config: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


@command.program
def main(argv: Sequence[str], on_accepted: Callable[[], None] = lambda: None) -> int:
    """Run the command line `argv`; return the exit code. `on_accepted` is called once nothing of it was refused."""
    arguments = command.parse(Arguments, "train", argv, lambda config: Arguments(name=tyro.MISSING, config=config))
    place = command.run_place(arguments.runs, arguments.name)
    _refuse_bad_range(arguments.machines.workers)
    if arguments.as_trained and arguments.start_from is None:
        command.refuse("--as-trained: needs --from, whose mean and std the run then takes over")
    command.refuse_below(
        arguments.machines, cpus_per_worker=1, max_failures=0, hang_timeout=1, wait_for_nodes=0, grow_every=0
    )
    _refuse_what_ray_does(arguments)
    if arguments.dry_run:
        _dry_run(arguments, argv[0], place)
        return command.DONE
    if not arguments.ray:
        return _train_here(arguments, place, on_accepted)
    return _train(arguments, place, on_accepted)


def _refuse_bad_range(workers: str) -> None:
    try:
        Range.parsed(workers)
    except ConfigError as error:
        command.refuse(str(error))


def _train(arguments: Arguments, place: str, on_accepted: Callable[[], None]) -> int:
    command.check_place(place)
    command.check_data(arguments.config)

    from cluster import session
    from zfdist import startup

    startup.begin_with_process("command")
    console = Console(arguments.config.train.steps, command.say)
    follows = command.followed(place, arguments.config.data.cache)
    with session.connect(arguments.address, say=command.say), follows as (folder, _):
        from cluster.run.fit import fit
        from zfdist.signals import was_interrupted

        run = _options(arguments, place, folder)
        startup.ended("Ray's connection")
        outcome = fit(run, on_accepted=on_accepted, on_report=console.report, say=command.say)
        is_interrupted = outcome.state == "stopped" and was_interrupted(folder)
    _say_outcome(outcome, place, command.say)
    return command.INTERRUPTED if is_interrupted else command.DONE


def _dry_run(arguments: Arguments, recipe: str, place: str) -> None:
    """Print what the run will be and take; raise what it would refuse before it starts."""
    command.check_place(place)
    command.check_data(arguments.config)

    import torch

    from jobs import plan
    from zfdist import launcher, refusals

    machines = arguments.machines
    workers = Range.parsed(machines.workers) if arguments.ray else Range(*[launcher.place(os.environ).size] * 2)
    has_gpu = machines.gpu or (machines.gpu is None and torch.cuda.is_available())
    run = _options(arguments, place, Path(place))
    refusals.refuse(run, device="cuda" if has_gpu else "cpu", workers=range(workers.low, workers.high + 1))
    print("\n".join(plan.of_run(arguments.config, RECIPES[recipe](), workers.high, has_gpu)))
    print(f"nothing was started; without --dry-run the run's folder is {command.shown(place)}")


def _say_outcome(outcome: Outcome, place: str, say: Callable[[str], None]) -> None:
    if outcome.state == "stopped":
        say(f"stopped at step {outcome.step}; the same command goes on from there")
    else:
        say(f"finished at step {outcome.step}: {command.shown(place)}")


def _train_here(arguments: Arguments, place: str, on_accepted: Callable[[], None]) -> int:
    """Train without Ray."""
    command.check_place(place)
    command.check_data(arguments.config)

    from zfdist import launcher, standalone

    say = functools.partial(print, file=sys.stdout, flush=True)  # this one, though the run's prints go to its log
    outcome, is_interrupted = standalone.fit(
        _options(arguments, place, Path(place)),
        on_accepted=on_accepted,
        on_report=Console(arguments.config.train.steps, say).report,
        say=say,
    )
    if launcher.place(os.environ).rank == 0:
        _say_outcome(outcome, place, say)
    return command.INTERRUPTED if is_interrupted else command.DONE


def _options(arguments: Arguments, place: str, folder: Path) -> RunOptions:
    weights = None if arguments.start_from is None else Weights(arguments.start_from, arguments.as_trained)
    location = RunLocation(place, command.owner(), Path(arguments.config.data.cache)) if "://" in place else None
    return RunOptions(arguments.config, folder, weights, arguments.profile, location, arguments.machines)


def _refuse_what_ray_does(arguments: Arguments) -> None:
    """Refuse, of a run without Ray, what only Ray does; and one with Ray in every process of another launcher."""
    from zfdist import launcher

    size, machines = launcher.place(os.environ).size, arguments.machines
    if arguments.ray:
        if size > 1:
            command.refuse(f"this is one of {size} processes of torchrun or srun: add --no-ray, or start one only")
        return
    only_ray = ("cpus_per_worker", "max_failures", "wait_for_nodes", "grow_every")
    given = [name for name in only_ray if getattr(machines, name) != getattr(Machines, name)]
    given += ["address"] if arguments.address is not None else []
    if given:
        command.refuse(f"{command.flag(given[0])} with --no-ray: only Ray does that; leave one of them out")
    if machines.workers not in ("1", str(size)):
        command.refuse(
            f"--workers {machines.workers} with --no-ray: this is one process of {size}; start a fixed number of them "
            "with torchrun --nproc-per-node N -m jobs.train ..., or leave --no-ray out"
        )


class Console:
    """Says a run's metrics, a line for each record."""

    def __init__(self, steps: int, say: Callable[[str], None]) -> None:
        self._steps, self._say = steps, say

    def report(self, record: dict[str, Any]) -> None:
        """Print a record of metrics.jsonl: training, validation, checkpoint or skipped update."""
        step = f"step {record['step']:>{len(str(self._steps))}}/{self._steps}"
        if "train/elbo_nats" in record:
            left_s = (self._steps - record["step"]) * record["speed/step_s"]
            self._say(
                f"{step}  train elbo {_nats(record['train/elbo_nats'])} nats/seq  kl {_nats(record['train/kl_nats'])}"
                f"  {record['speed/frames_per_s']:>9,.0f} frames/s  ETA {command.duration(left_s)}"
            )
        elif "valid/elbo_nats" in record:
            self._say(
                f"{step}  valid elbo {_nats(record['valid/elbo_nats'])} nats/seq  kl {_nats(record['valid/kl_nats'])}"
                f"  {record['valid/nats_per_sample']:.4f} nats/sample"
            )
        elif "checkpoint/save_s" in record:
            self._say(f"{step}  checkpoint saved in {record['checkpoint/save_s']:.2f} s")
        elif "skipped/terms" in record:
            scale = f" (fp16: loss scale now {record['optim/loss_scale']:g})" if "optim/loss_scale" in record else ""
            self._say(f"{step}  update skipped: not finite: {', '.join(record['skipped/terms'])}{scale}")


def _nats(value: float | None) -> str:
    return f"{value:>10.2f}" if value is not None else f"{'not finite':>10}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
