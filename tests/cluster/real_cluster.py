"""A cluster of hosts, brought up from ray-cluster.yaml by the shipped commands as a person at the laptop types them.

The overlay replaces provider, auth and node types, and nothing else: set-up, start and stop commands, tokens and
versions are the ones that ship.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from followed_run import Run
from hosts import HOME, Host, Hosts
from object_store import CREDENTIALS
from waiting import HostError, wait_for

from zfdist.data.sources.speech import SAMPLE

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
HEAD = "head"

_OURS = (
    "RayTrainWorker",
    "TrainController",
    "ray::Coordinator",
    "TrialActor",
    "PlacementGroupCleaner",
    "jobs.cli.job_entrypoint",
)
# A small network on the sample that ships, a line of metrics for every step.
_SMALL = {
    "model.hidden": 32,
    "model.z-dim": 8,
    "model.mlp-dim": 32,
    "data.eval-batch": 4,
    "train.steps": 300,
    "train.log-every": 1,
    "train.validate-every": 150,
    "checkpoint.every-steps": 50,
    "checkpoint.keep-last": 10,
}
FAULTY_STEP = 129
"""After so many steps a machine that holds the file ~/faulty computes NaN once, in every run."""
# What every Python on the machines reads at its start: a faulty processor, which no code of ours knows of.
_FAULT = f"""
import importlib.util, pathlib, sys

class Faulty:
    def find_spec(self, name, path=None, target=None):
        if name != "zfdist.seeding":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            normals = module.normals
            def bad(key, *shape):
                noise = normals(key, *shape)
                if pathlib.Path("{HOME}/faulty").exists() and key == module.key(1234, "noise", {FAULTY_STEP}):
                    noise[:, 0] = float("nan")
                return noise
            module.normals = bad
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Faulty())

if pathlib.Path("{HOME}/clock").exists():  # a clock that is off by so many seconds
    import time
    off_s, clock, clock_ns = int(pathlib.Path("{HOME}/clock").read_text()), time.time, time.time_ns
    time.time, time.time_ns = lambda: clock() + off_s, lambda: clock_ns() + 10**9 * off_s
"""
_VARIABLES = {
    "RAY_worker_niceness": "0",  # Ray's own is 15; these machines share their processors with whatever else runs here
    "PYTHONPATH": f"{HOME}/faults",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "AUTOSCALER_NODE_SSH_INTERVAL_S": "1",
    **CREDENTIALS,
}
_NODES = """
import json, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
groups = [g for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
print("NODES", json.dumps([{k: n[k] for k in ("NodeID", "NodeManagerAddress", "Alive")} for n in ray.nodes()]))
print("GROUPS", json.dumps(len(groups)))
print("FREE", json.dumps(ray.available_resources().get("CPU", 0) == ray.cluster_resources().get("CPU", 0)))
"""


def make_image(host: Host) -> None:
    """Give a machine the disk that an image with our versions brings; what was on it is gone."""
    for kept in (host.home / "zfdist", host.home / "faults", host.home / ".ray"):
        shutil.rmtree(kept, ignore_errors=True)
    (host.home / "zfdist").mkdir()
    (host.home / "zfdist/venv").symlink_to(BIN.parent)  # what setup-node.sh finds
    (host.home / ".bashrc").write_text("export " + " ".join(f"{name}={value}" for name, value in _VARIABLES.items()))
    (host.home / "faults").mkdir()
    (host.home / "faults/sitecustomize.py").write_text(_FAULT)
    shutil.copy(Path(__file__).with_name("host_provider.py"), host.home / "faults")


class RealCluster:
    """The hosts head and `workers`, with the data of the drills on what they share.

    Args:
        hosts: with a machine called head.
        workers: names of those machines that the cluster file lists, or that may come.
        changes: further keys of the cluster file; None for machines that one owns.
    """

    path = f"{BIN}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    """Where the machines look for commands: this environment first."""
    _env: ClassVar = {"PATH": path, "PYTHONPATH": f"{HOME}/faults"}

    def __init__(self, hosts: Hosts, workers: Sequence[str], changes: Mapping[str, Any] | None = None) -> None:
        self.hosts, self.workers = hosts, list(workers)
        self.runs, self.data = hosts.shared / "runs", hosts.shared / "data"
        ours = {
            "provider": {
                "type": "local",
                "head_ip": hosts[HEAD].address,
                "worker_ips": [hosts[name].address for name in workers],
            },
            "max_workers": None,
            "head_node_type": None,
            "available_node_types": None,
        }
        overlay = {
            "cluster_name": "drill",
            "metadata": {"storage": str(self.runs), "data": str(self.data), "shared_folder": True},
            "auth": {"ssh_user": "root", "ssh_private_key": "~/.ssh/id"},
            "head_setup_commands": [],  # installs the client of a cloud
            **(ours if changes is None else changes),
        }
        self.references: dict[str, Run] = {}
        """Undisturbed runs, to compare with."""
        self.overlay = hosts.laptop.home / "drill.yaml"
        self.overlay.write_text(json.dumps(overlay))
        for host in [*hosts, hosts.laptop]:
            make_image(host)
        out = ["--source", str(SAMPLE), "--out", str(self.data / "speech")]
        subprocess.run(
            [sys.executable, "-m", "jobs.prepare", "speech", *out], cwd=ROOT, check=True, capture_output=True
        )

    def up(self) -> float:
        """Bring the cluster up; return the seconds until all machines are in it."""
        started = time.monotonic()
        self.command("up", timeout_s=300)
        self.wait_for_nodes([HEAD, *self.workers])
        return time.monotonic() - started

    def command(self, verb: str, *words: str, timeout_s: float = 120, check: bool = True) -> str:
        """Run `zfdist cluster VERB --overlay ... WORDS` on the laptop."""
        return self.hosts.laptop.run(*self._command(verb, *words), timeout_s=timeout_s, check=check, env=self._env)

    def train(
        self, name: str, *words: str, workers: int | str = 2, storage: Path | str | None = None, **changes: Any
    ) -> Run:
        """Submit a run of the drills' config; `changes` are its flags, with __ for the dot."""
        flags = _SMALL | {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
        given = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        data = ["--data.root", str(self.data / "speech")]
        train = ["train", "demo", "--name", name, "--workers", str(workers), *data, *given, *words]
        where = [] if storage is None else ["--storage", str(storage)]
        return self.start("submit", *where, *train, storage=storage)

    def sweep(self, name: str, *words: str) -> Run:
        """Submit a sweep over the drills' config."""
        given = [word for key, value in _SMALL.items() for word in (f"--{key}", str(value))]
        return self.start(
            "submit", "sweep", "demo", "--name", name, "--data.root", str(self.data / "speech"), *given, *words
        )

    def mount_small(self, place: Path, mib: int) -> Path:
        """Mount one small disk at a place of the shared folder on all machines; return it as seen from outside."""
        place.mkdir(exist_ok=True)
        image = place.with_suffix(".ext4")
        with image.open("wb") as file:
            file.truncate(mib * 2**20)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)
        for host in self.hosts:
            host.run("mount", "-o", "loop", str(image), str(place))
        return self.hosts[HEAD].seen_from_outside(place)

    def mend(self) -> None:
        """Make the cluster whole: every machine up, connected and in it, and nothing running on it."""
        for host in self.hosts:
            if not host.is_up:
                self.hosts.boot(host.name)
            self.hosts.heal(host.name)
        self.hosts[HEAD].kill("jobs.cli.job_entrypoint")
        try:  # Ray's autoscaler brings back a machine that answers again
            self.wait_for_nodes([HEAD, *self.workers], 100)
        except HostError:
            self.command("up", timeout_s=300)
            self.wait_for_nodes([HEAD, *self.workers])
        wait_for(lambda: self._state()["FREE"], "all CPUs free", 60)

    def start(self, verb: str, *words: str, storage: Path | str | None = None) -> Run:
        """Start a command that follows a job of the name in `words`, or last in them."""
        name = words[words.index("--name") + 1] if "--name" in words else words[-1]
        self.runs.mkdir(exist_ok=True)
        said = self.hosts.folder / f"{name}.{len(list(self.hosts.folder.glob(f'{name}.*.said')))}.said"
        with said.open("wb") as file:
            process = subprocess.Popen(
                self.hosts.laptop.command(*self._command(verb, *words), env=self._env),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        runs = self.hosts[HEAD].seen_from_outside(storage) if isinstance(storage, Path) else self.runs
        return Run(runs / name, process, said)

    def nodes(self) -> dict[str, str]:
        """Return the ids of the nodes that are alive, by the machine's name."""
        names = {host.address: host.name for host in self.hosts}
        alive = [node for node in self._state()["NODES"] if node["Alive"]]
        return {names[node["NodeManagerAddress"]]: node["NodeID"] for node in alive}

    def wait_for_nodes(self, names: Sequence[str], within_s: float = 180) -> float:
        """Wait until exactly these machines are in the cluster; return the seconds that took."""
        seen: list[str] = []

        def all_there() -> bool:
            seen[:] = sorted(self.nodes())
            return seen == sorted(names)

        try:
            return wait_for(all_there, f"nodes {', '.join(sorted(names))}", within_s)
        except HostError as error:
            logs = "tail -n 25 /tmp/ray/session_latest/logs/monitor.out"
            raise HostError(
                f"{error}; there are {seen}; {self.hosts[HEAD].run('sh', '-c', logs, check=False)}"
            ) from None

    def drain(self, node_id: str, deadline_s: int) -> None:
        """Take a node away as a cloud does with a spot machine."""
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        deadline = ["--deadline-remaining-seconds", str(deadline_s)]
        self.on_head("ray", "drain-node", "--node-id", node_id, *reason, *deadline)

    def on_head(self, *words: str, timeout_s: float = 60) -> str:
        """Run a command on the head with the cluster's token."""
        env = {"PATH": self.path, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
        return self.hosts[HEAD].run(*words, timeout_s=timeout_s, env=env)

    def leftovers(self, run: Path, within_s: float = 60) -> list[str]:
        """Return what a run that has ended still holds after a while: processes, zombies, CPUs, half checkpoints."""
        left: list[str] = []

        def nothing() -> bool:
            left[:] = [*self._processes(), *(str(p) for p in (run / "checkpoints").glob("*.partial"))]
            if not left:
                state = self._state()
                left[:] = [f"{state['GROUPS']} placement groups"] * bool(state["GROUPS"])
                left.extend(["CPUs that nobody gave back"] * (not state["FREE"]))
            return not left

        with contextlib.suppress(HostError):
            wait_for(nothing, "nothing left", within_s)
        return left

    def training_on(self) -> list[str]:
        """Return the names of the machines on which workers of a run are."""
        return [host.name for host in self.hosts if host.is_up and host.processes("RayTrainWorker")]

    def _processes(self) -> Iterator[str]:
        for host in self.hosts:
            for pid, text in (host.processes() if host.is_up else {}).items():
                state, _, command = text.partition(" ")
                if state.startswith("Z") or any(part in command for part in _OURS):
                    yield f"{host.name}: process {pid} {text[:100]}"

    def _state(self) -> dict[str, Any]:
        try:
            lines = [line.split(" ", 1) for line in self.on_head("python", "-c", _NODES).splitlines()]
        except HostError:  # a head that is just starting
            return {"NODES": [], "GROUPS": 0, "FREE": False}
        return {line[0]: json.loads(line[1]) for line in lines if line[0] in ("NODES", "GROUPS", "FREE")}

    def _command(self, verb: str, *words: str) -> list[str]:
        overlay = str(HOME / self.overlay.name)
        return ["env", f"--chdir={ROOT}", "python", "-m", "jobs.cluster", verb, "--overlay", overlay, *words]
