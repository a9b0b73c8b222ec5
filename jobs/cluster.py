"""A cluster of machines, in the order of use: `zfdist cluster VERB ...`.

    lint   [--overlay FILE]               check the cluster files, without a cloud
    plan   RECIPE [--workers W] ...       what a run will take: memory, time, storage, money
    up     [--overlay FILE]               bring the cluster up
    doctor                                check it from every node, before it costs much
    submit train|sweep RECIPE --name N    start a job on it, and follow what it says
    status                                nodes and jobs
    logs N | stop N | resume N            follow a job; let it save and end; go on with it, also on a new cluster
    down                                  end the cluster, and make sure of it

Each verb that talks to a cluster takes --overlay FILE (and --file FILE), as `up` did, or --address http://HOST:8265 of
a Ray that somebody else brought up. `zfdist cluster VERB --help` has the rest.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import tyro

from jobs.cli import command, places, sample
from jobs.cli.cluster_options import Doctor, Named, Plan, Reach, Resume, Submit, Up, Which
from jobs.cli.job_entrypoint import JOBS

if TYPE_CHECKING:
    from cluster.provision.cluster_file import Cluster
    from cluster.provision.submit import Jobs, SubmittedJob


@command.program
def main(argv: Sequence[str]) -> int:
    """Run the command line `argv`; return the exit code."""
    verbs: dict[str, Callable[[Sequence[str]], int]] = {
        "lint": _lint,
        "plan": _plan,
        "up": _up,
        "doctor": _doctor,
        "submit": _submit,
        "status": _status,
        "logs": _logs,
        "stop": _stop,
        "resume": _resume,
        "down": _down,
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return command.DONE if argv else command.USAGE
    if argv[0] not in verbs:
        command.refuse(f"{argv[0]!r} is not a verb; there are {', '.join(verbs)}")
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it when anything first imports it
    return verbs[argv[0]](argv[1:])


def _lint(argv: Sequence[str]) -> int:
    which = tyro.cli(Which, prog="zfdist cluster lint", args=argv)
    findings = _findings(which, ready=False)
    for finding in findings:
        command.say(finding)
    command.say(f"{len(findings)} findings in {which.overlay or which.file}")
    return int(bool(findings))


def _plan(argv: Sequence[str]) -> int:
    from jobs import plan

    given, rest = tyro.cli(Plan, prog="zfdist cluster plan", args=argv, return_unknown_args=True, add_help=False)
    lines: list[str] = []
    if given.file or given.overlay:
        from cluster.provision import cluster_file

        lines = ["", *cluster_file.machines(cluster_file.read(given.file or cluster_file.FILE, given.overlay))]
    code = plan.main(rest)
    if code == 0 and lines:
        command.say("\n".join(lines))
    return code


def _findings(which: Which, *, ready: bool) -> list[str]:
    from cluster.provision import cluster_file, lint

    return lint.cluster_findings(
        cluster_file.read(which.file, which.overlay), which.file.absolute().parent, ready=ready
    )


def _up(argv: Sequence[str]) -> int:
    which = tyro.cli(Up, prog="zfdist cluster up", args=argv)
    from cluster.provision import up_down
    from cluster.session import ClusterError

    if findings := _findings(which, ready=True):
        raise ClusterError("; ".join(findings))
    cluster = _cluster(which)
    if up_down.make_token(up_down.token_file()):
        command.say(f"made {up_down.token_file()}, the token that opens your clusters")
    if not which.restart and up_down.is_up(cluster):
        command.say(f"cluster {cluster.name} is up already (--restart sets it up anew)")
        _bring_back(cluster)
        return 0
    up_down.up(cluster, say=command.say)
    flags = f" --overlay {which.overlay}" if which.overlay else ""
    command.say(
        f"\ncluster {cluster.name} is up and answers; its workers join as they come up. Next:\n"
        f"  zfdist cluster doctor{flags}\n"
        f"  zfdist cluster submit{flags} train demo --name NAME --workers 2\n"
        f"  zfdist cluster down{flags}"
    )
    return 0


def _bring_back(cluster: "Cluster") -> None:
    """Start Ray again on machines of ours that the cluster has lost; a cloud's are the autoscaler's to replace."""
    if not cluster.is_local:
        return
    from cluster.provision import cluster_file, reach, up_down
    from cluster.provision.submit import Jobs

    with reach.tunnel(cluster) as address:
        alive = [machine for machine in Jobs(address).machines() if machine.is_alive]
    there = {name for machine in alive for name in (machine.ip, machine.host)}
    for machine in cluster_file.absent(cluster.workers_of_ours, there):
        command.say(f"{machine} is not in it: {up_down.rejoin(cluster, machine)}")


def _down(argv: Sequence[str]) -> int:
    which = tyro.cli(Which, prog="zfdist cluster down", args=argv)
    from cluster.provision import up_down

    up_down.down(_cluster(which), say=command.say)
    return 0


def _submit(argv: Sequence[str]) -> int:
    split = next((i for i, word in enumerate(argv) if word in JOBS), len(argv))
    options = tyro.cli(Submit, prog="zfdist cluster submit", args=argv[:split])
    words = list(argv[split:])
    if len(words) < 2:
        command.refuse(f"submit what? e.g. submit train demo --name first; there are {', '.join(JOBS)}")
    name = places.value_of(words, "--name")
    if name is None:
        command.refuse(f"submit {words[0]}: --name is missing: it is by its name that you stop and resume it")
    command.run_folder(name)
    storage = places.storage_of(options)
    data = places.data_of(options, words[1], storage)
    given = places.value_of(words, "--data.root")
    brought = ["--sample", data] if data and words[1] == sample.RECIPE and given is None else []
    for flag, value in {"--address": "auto", "--runs": storage, "--data.root": data}.items():
        if value is not None and places.value_of(words, flag) is None:
            words += [flag, value]
    return _start(options, name, ["jobs.cli.job_entrypoint", "run", name, storage, *brought, *words])


def _resume(argv: Sequence[str]) -> int:
    options = tyro.cli(Resume, prog="zfdist cluster resume", args=argv)
    return _start(options, options.name, ["jobs.cli.job_entrypoint", "again", options.name, places.storage_of(options)])


def _start(options: Submit, name: str, words: Sequence[str]) -> int:
    with _jobs(options) as jobs:
        job = jobs.submit(name, words)
        command.say(f"submitted {name} as job {job.id}")
        if options.detach:
            return 0
        return _follow(jobs, job)


def _doctor(argv: Sequence[str]) -> int:
    options = tyro.cli(Doctor, prog="zfdist cluster doctor", args=argv)
    storage = places.storage_of(options)
    if not options.inside:
        words = ["jobs.cluster", "doctor", "--inside", "--storage", storage]
        words += [] if options.workers is None else ["--workers", str(options.workers)]
        words += [] if options.gpu is None else ["--gpu" if options.gpu else "--no-gpu"]
        listed = [] if options.address else _cluster(options).workers_of_ours
        words += ["--machines", *listed] if listed else []
        with _jobs(options) as jobs:
            ended = jobs.follow(jobs.submit("doctor", words), lambda text: print(text, end="", flush=True))
        return 0 if ended.state == "SUCCEEDED" else ended.exit_code or 1

    from cluster import session

    with session.connect("auto", say=command.say):
        from cluster.provision import diagnosis, doctor
        from jobs.cli.cluster_tables import print_facts, print_findings

        facts = doctor.examine(storage)
        findings = diagnosis.judge(facts, workers=options.workers, gpu=options.gpu, listed=options.machines)
    print_facts(facts)
    print_findings(findings)
    return int(any(finding.is_fatal for finding in findings))


def _status(argv: Sequence[str]) -> int:
    options = tyro.cli(Reach, prog="zfdist cluster status", args=argv)
    from jobs.cli.cluster_tables import print_status

    with _jobs(options) as jobs:
        print_status(jobs.machines(), jobs.all())
    return 0


def _logs(argv: Sequence[str]) -> int:
    options = tyro.cli(Named, prog="zfdist cluster logs", args=argv)
    with _jobs(options) as jobs:
        return _follow(jobs, jobs.of(options.name))


def _stop(argv: Sequence[str]) -> int:
    options = tyro.cli(Named, prog="zfdist cluster stop", args=argv)
    with _jobs(options) as jobs:
        job = jobs.of(options.name)
        if job.ended:
            command.say(f"{job.name} has ended already ({job.state.lower()})")
            return 0
        command.say(f"asking {job.name} to save and stop ...")
        jobs.stop(job)
    command.say(f"stopped; `zfdist cluster resume {options.name}` goes on with it")
    return 0


def _follow(jobs: "Jobs", job: "SubmittedJob") -> int:
    """Print what a job says until it ends; return its exit code. Ctrl-C leaves it running."""
    from cluster.session import ClusterError

    try:
        ended = jobs.follow(job, lambda text: print(text, end="", flush=True))
    except ClusterError as error:
        raise ClusterError(
            f"{error}; if only the way to it is lost, `logs {job.name}` follows the job again; "
            f"if the head is, `up` and then `resume {job.name}` go on with it"
        ) from None
    except KeyboardInterrupt:
        command.say(
            f"\n{job.name} goes on without you: `zfdist cluster logs {job.name}` follows it again, "
            f"`zfdist cluster stop {job.name}` lets it save and stop"
        )
        return command.INTERRUPTED
    if ended.state == "FAILED":
        print(f"error: {job.name} failed: {' '.join(ended.message.split())[:300]}", file=sys.stderr)
        return ended.exit_code or 1
    command.say(f"{job.name}: {ended.state.lower()}")
    return 0


@contextlib.contextmanager
def _jobs(reach: Reach) -> "Iterator[Jobs]":
    from cluster.provision import reach as ways
    from cluster.provision.submit import Jobs

    with contextlib.ExitStack() as stack:
        address = reach.address or stack.enter_context(ways.tunnel(_cluster(reach)))
        yield Jobs(address)


def _cluster(which: Which) -> "Cluster":
    from cluster.provision import cluster_file

    return cluster_file.load(which.file, which.overlay)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
