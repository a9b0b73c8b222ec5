"""Drills: a fault on a real cluster, and what became of the run, beside the same run undisturbed.

`make drills` runs them all and prints a table; tests/cluster/test_drills.py runs a few. Faults come from outside, as in
life: machines lose their power or their network, processes are killed or stopped, disks are full. The code that is
drilled knows nothing of it.
"""

import re
import statistics
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

from followed_run import Run
from hosts import Hosts, why_not
from real_cluster import HEAD, RealCluster
from waiting import last_lines

EVERY = 50
"""Steps between the checkpoints of the drills' runs."""
AT = 120
"""The step at which a fault comes: far from a checkpoint, and in the middle of the run."""
LOST = r"lost worker|no progress"


class Result(NamedTuple):
    """What a drill found; a drill that finds anything wrong raises instead."""

    detect_s: float | None
    """From the fault to the first word of it on the laptop."""
    again_s: float | None
    """From the fault to the next step that was made after it."""
    redone: int | None
    """Steps that were made twice."""
    outcome: str


Drill = Callable[[RealCluster], Result]


def undisturbed(cluster: RealCluster, **changes: float) -> Run:
    """Return the run of two workers that nothing happens to, with these changes of its config; made once."""
    name = "-".join(["undisturbed", *(f"{key.split('__')[1]}{value}" for key, value in changes.items())])
    if name not in cluster.references:
        run = cluster.train(name, **changes)
        finish(cluster, run)
        cluster.references[name] = run
    return cluster.references[name]


def finish(cluster: RealCluster, run: Run, *, looks_at_leftovers: bool = True) -> None:
    """Wait for the good end of a run and look what it left."""
    assert run.wait() == 0, f"exit code {run.wait()}:\n{last_lines(run.said())}"
    left = cluster.leftovers(run.folder) if looks_at_leftovers else []
    assert not left, f"{run.folder.name} has ended, and this is left: {left}"


def bit_equal(cluster: RealCluster, run: Run, **changes: float) -> str:
    """Check that a run's final parameters are those of the undisturbed run, to the bit."""
    same = run.weights() == undisturbed(cluster, **changes).weights()
    assert same, f"other parameters than undisturbed: {losses_agree(cluster, run, float('inf'), **changes)}"
    return "bit-equal"


def losses_agree(cluster: RealCluster, run: Run, within: float = 1e-5, **changes: float) -> str:
    """Check that every step's loss is that of the undisturbed run up to rounding.

    Relative to its size, or to the median's where it is less: it passes through zero.
    """
    ours, theirs = run.losses(), undisturbed(cluster, **changes).losses()
    steps = sorted(ours.keys() & theirs.keys())
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 4 * EVERY, f"steps are missing: {steps}"
    typical = statistics.median(abs(theirs[step]) for step in steps)
    errors = {step: abs(ours[step] - theirs[step]) / max(abs(theirs[step]), typical) for step in steps}
    worst = max(steps, key=lambda step: errors[step])
    assert errors[worst] <= within, (
        f"step {worst}: loss {ours[worst]!r}, undisturbed {theirs[worst]!r}: {errors[worst]:.1e} apart"
    )
    return f"losses to {errors[worst]:.0e}"


def disturbed(
    cluster: RealCluster,
    run: Run,
    fault: Callable[[], object],
    *,
    noticed: str = LOST,
    at: int = AT,
    most_redone: int = EVERY,
    looks_at_leftovers: bool = True,
) -> Result:
    """Let a run come to step `at`, cause the fault, and let it go on to its end by itself.

    Args:
        cluster: where the run is.
        run: just started.
        fault: causes it.
        noticed: a pattern of the line by which a person is told of it.
        at: the step.
        most_redone: steps that may be lost.
        looks_at_leftovers: once it has ended; false where a machine cannot be reached then.
    """
    run.wait_for_step(at)
    told, fault_s = len(run.said()), time.time()
    fault()
    run.wait_for(lambda: bool(re.search(noticed, run.said()[told:])), f"a line with {noticed!r} after the fault")
    detect_s = time.time() - fault_s
    finish(cluster, run, looks_at_leftovers=looks_at_leftovers)
    again_s, redone = run.pause_after(fault_s)
    assert redone <= most_redone, f"{redone} steps were made twice, with a checkpoint every {EVERY}"
    return Result(detect_s, again_s, redone, bit_equal(cluster, run))


def run_all(drills: dict[str, Drill], names: list[str]) -> int:
    """Run the drills on a cluster of three workers and print the table; return how many failed."""
    reason = why_not()
    if reason is not None:
        print(f"no drills: {reason}")
        return 0
    failed: list[str] = []
    rows: list[tuple[str, ...]] = [("drill", "s to detect", "s to train again", "steps redone", "outcome")]
    with Hosts([HEAD, "one", "two", "three"], loopback="one") as hosts:
        cluster = RealCluster(hosts, ["one", "two", "three"])
        print(f"ray up: {cluster.up():.0f} s until all three workers were there", flush=True)
        undisturbed(cluster)
        for name in names:
            started = time.monotonic()
            try:
                cluster.mend()
                result = drills[name](cluster)
            except Exception as error:  # the other drills go on
                failed.append(name)
                traceback.print_exc()
                rows.append((name, "", "", "", "FAILED: " + (str(error) or type(error).__name__).splitlines()[0][:60]))
            else:
                figures = (result.detect_s, result.again_s)
                texts = ["" if value is None else f"{value:.1f}" for value in figures]
                rows.append((name, *texts, "" if result.redone is None else str(result.redone), result.outcome))
            print(f"{' | '.join(rows[-1])} ({time.monotonic() - started:.0f} s)", flush=True)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return len(failed)
