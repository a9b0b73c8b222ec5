"""The paper's tables: `zfdist paper table1|table2|table3|figure2|beyond --name N [--scale tiny|paper] ...`.

Trains what the table needs as a sweep in runs/N, evaluates it, and writes CSV, Markdown and, for figure2, PNG. The same
command again goes on. With --runs it trains nothing and takes the runs that are named.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jobs.cli import command
from jobs.cli.sweep_options import renewed
from jobs.reporting import paper_rows
from zfdist.config import Config, ConfigError
from zfdist.data.kinds import PCM16, TOKENS, with_density
from zfdist.recipes import RECIPES

if TYPE_CHECKING:
    from zfdist.data.store import Store

Table = Literal["table1", "table2", "table3", "figure2", "beyond"]
_WORDS = ("table2", "table3")
_OF_ONE_SIZE = ("table1", "beyond")
_SAMPLES = 25


@dataclass(frozen=True)
class Arguments:
    """Make a table or figure of the paper: our rows beside the published ones.

    Names of a config change the recipe of all rows, e.g. --train.steps 500 --data.root data/mine.
    """

    table: Annotated[Table, tyro.conf.Positional]
    """table1: all systems by their bound. table2: perplexity over alpha. table3: interpolation. figure2: KL.
    beyond: systems without and with latents, each with a Gaussian output and one autoregressive inside the frame."""
    name: str | None = None
    """Train as the sweep runs/NAME; the same command again goes on."""
    runs: tuple[Path, ...] = ()
    """Instead: run and sweep folders that were trained before."""
    scale: Literal["tiny", "paper"] = "tiny"
    """tiny: minutes on a CPU, to see that all goes through. paper: the recipe's sizes."""
    recipe: str | None = None
    """Whose config is the base; default: demo (tiny) or timit, for table2 and table3 imdb."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for the table; default: in the sweep's folder."""
    seeds: int = 1
    """Runs of each row, with train.seed from the recipe's on."""
    alpha: float = paper_rows.USUAL_ALPHA
    """alpha = beta of the rows with auxiliary cost, where the paper prints none."""
    parameters: int | None = None
    """Size of every system, heads without weight not counted; 0 takes the recipe's sizes; default for table1 and
    beyond: that of zforcing with all its heads in the recipe's sizes, else 0: the paper compares rows of one size."""
    num_samples: int | None = None
    """Of IWAE; 0 for none; default: 25 for table2, else none."""
    workers_per_trial: int = 1
    """Processes that share each run's global batch."""
    trials_at_once: int | None = None
    """Runs at a time; None for as many as fit."""
    address: str | None = None
    """A running Ray cluster, "auto" or host:port; None takes RAY_ADDRESS, else starts Ray on this machine."""


@command.program
def main(argv: Sequence[str]) -> int:
    """Run the command line `argv`; return the exit code."""
    arguments, rest = tyro.cli(Arguments, prog="zfdist paper", args=renewed(argv), return_unknown_args=True)
    command.refuse_below(arguments, seeds=1, workers_per_trial=1, trials_at_once=1, parameters=0, num_samples=0)
    if (arguments.name is None) == (not arguments.runs):
        command.refuse("give --name to train the table's rows, or --runs to take trained ones")
    if arguments.runs and arguments.out is None:
        command.refuse("--runs: needs --out, the folder for the table")
    if arguments.name is not None:
        folder = command.run_folder(arguments.name)
        code = _train(arguments, _base(arguments, rest), folder)
        if code is not None:
            return code
        _write(arguments, [folder], arguments.out or folder / arguments.table)
        return command.DONE
    if rest:
        command.refuse(f"{rest[0]}: nothing is trained with --runs, so there is nothing to set")
    _write(arguments, arguments.runs, arguments.out or Path())
    return command.DONE


def _base(arguments: Arguments, rest: list[str]) -> Config:
    """Return the config that rows change; refuses what is wrong with it."""
    is_text = arguments.table in _WORDS
    recipe = arguments.recipe or ("imdb" if is_text else "demo" if arguments.scale == "tiny" else "timit")
    if recipe not in RECIPES:
        command.refuse(f"--recipe {recipe}: there are {', '.join(RECIPES)}")
    base = RECIPES[recipe]().with_values(paper_rows.TINY if arguments.scale == "tiny" else {})
    return command.with_flags(base, f"zfdist paper {arguments.table}", rest)


def _train(arguments: Arguments, base: Config, folder: Path) -> int | None:
    """Train all rows that are not over; return the exit code if some are still not."""
    from zfdist.data.store import Store

    store = Store.open(base.data.root, verify="size", cache=base.data.cache)
    _refuse_other_kind(arguments.table, store, base)
    x_dim = store.frame_size(base.data.frame_samples)
    rows = paper_rows.rows(arguments.table, base, arguments.alpha)
    budget = 0 if arguments.parameters is None and arguments.table not in _OF_ONE_SIZE else arguments.parameters
    points = paper_rows.points(base, rows, arguments.seeds, x_dim, budget)

    from cluster.sweep.record import prepare_list
    from zfdist import run_protocol

    record = prepare_list(folder, base, points)
    if all(run_protocol.result(folder / "trials" / trial.id) is not None for trial in record.trials):
        return None

    from cluster import session
    from jobs.cli.sweep_table import Board

    with session.connect(arguments.address, say=command.say), Board(list(points[0]), base.train.steps) as board:
        from cluster.sweep.driver import sweep
        from cluster.sweep.plan import Stopping, SweepPlan, TrialMachines
        from zfdist.signals import was_interrupted

        machines = TrialMachines(arguments.workers_per_trial, trials_at_once=arguments.trials_at_once)
        plan = SweepPlan(Stopping("none"), machines)
        results = sweep(folder, base, record, plan, show=board.show, say=board.say)
    unfinished = len(record.trials) - sum(result["state"] != "unfinished" for result in results)
    if not unfinished:
        return None
    command.say(f"{unfinished} of {len(record.trials)} runs are not over; the same command goes on with them")
    return command.INTERRUPTED if was_interrupted(folder) else command.DONE


def _refuse_other_kind(table: str, store: "Store", base: Config) -> None:
    density = base.model.density
    wanted = [TOKENS] if table in _WORDS else [PCM16] if table == "beyond" else with_density(density)
    if store.kind not in wanted:
        names = " or ".join(kind.name for kind in wanted)
        raise ConfigError(f"{table} with density {density} needs {names}; {store.root} holds {store.kind.name}")


def _write(arguments: Arguments, runs: "list[Path] | tuple[Path, ...]", out: Path) -> None:
    from jobs.reporting import paper_figures, paper_tables

    samples = arguments.num_samples
    if samples is None:
        samples = _SAMPLES if arguments.table == "table2" else 0
    task = paper_tables.Task(table=arguments.table, runs=runs, out=out, num_samples=samples)
    if arguments.table == "figure2":
        files = paper_figures.figure2(task)
    elif arguments.table == "table3":
        files = paper_figures.table3(task)
    else:
        files = paper_tables.write(task, arguments.alpha, command.say)
    print("\n".join(f"written: {path}" for path in files))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
