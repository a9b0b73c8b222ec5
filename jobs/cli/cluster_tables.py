"""The tables that `zfdist cluster` prints."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from jobs.cli.command import duration
from jobs.cli.screen import Screen

if TYPE_CHECKING:
    from cluster.provision.diagnosis import Facts, Finding
    from cluster.provision.submit import Machine, SubmittedJob

_WIDTH = 160  # off a terminal


def print_facts(facts: Sequence["Facts"]) -> None:
    """Print what the nodes told the doctor, one a line."""
    table = Table(box=None, pad_edge=False)
    for heading in ("node", "address", "python", "torch", "ray", "deepspeed", "code", "CPUs", "GPUs", "interface"):
        table.add_column(heading)
    for heading in ("clock", "disk GiB", "storage s", "MiB/s"):
        table.add_column(heading, justify="right")
    for f in facts:
        table.add_row(
            f.host + (" (head)" if f.is_head else ""),
            f.ip,
            *(f.versions[name] for name in ("python", "torch", "ray", "deepspeed", "code")),
            f"{f.cpus:g}",
            f"{f.gpus_of_ray:g}",
            f.interface or "none",
            f"{f.skew_s:+.1f}",
            f"{f.disk_gib:.0f}",
            "failed" if f.storage_error else f"{f.storage_s:.2f}",
            "" if f.mib_per_s is None else f"{f.mib_per_s:.0f}",
        )
    Screen(_WIDTH).print(table)


def print_findings(findings: Sequence["Finding"]) -> None:
    """Print what is wrong, the fatal first."""
    for finding in sorted(findings, key=lambda finding: not finding.is_fatal):
        print(f"{'FAIL' if finding.is_fatal else 'note'}  {finding.host}: {finding.sentence}")
    fatal = sum(finding.is_fatal for finding in findings)
    print(f"{fatal} of {len(findings)} findings would hurt a run" if findings else "nothing found: ready", flush=True)


def print_status(machines: Sequence["Machine"], jobs: Sequence["SubmittedJob"]) -> None:
    """Print the machines and the jobs of a cluster."""
    table = Table(box=None, pad_edge=False)
    for heading in ("node", "address", "state", "CPUs", "GPUs", "CPU busy", "memory used"):
        table.add_column(heading)
    for m in machines:
        busy = (f"{m.cpu_percent:.0f} %", f"{m.memory_percent:.0f} %") if m.is_alive else ("", "")
        state = "up" if m.is_alive else "lost"
        table.add_row(m.host + (" (head)" if m.is_head else ""), m.ip, state, f"{m.cpus:g}", f"{m.gpus:g}", *busy)
    Screen(_WIDTH).print(table)
    print()
    table = Table(box=None, pad_edge=False)
    for heading in ("job", "state", "for", "command"):
        table.add_column(heading, no_wrap=heading == "job")
    for job in jobs:
        seconds = (job.ended_s or time.time()) - job.started_s
        table.add_row(job.name, job.state.lower(), duration(max(0.0, seconds)), job.command.removeprefix("python -m "))
    Screen(_WIDTH).print(table if jobs else "no jobs yet")
