"""The flags of `zfdist cluster`, a class for each verb."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Which:
    """Which cluster."""

    file: Path = Path("ray-cluster.yaml")
    """The cluster file."""
    overlay: Path | None = None
    """A file that is laid over it, e.g. cluster/local.yaml."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which cluster's machines to tell of beside the plan; none if neither file is named."""

    file: Path | None = None
    """The cluster file."""
    overlay: Path | None = None
    """A file that is laid over it, e.g. cluster/local.yaml."""


@dataclass(frozen=True, kw_only=True)
class Up(Which):
    """Bring the cluster up; if it is, bring back the machines that it lost."""

    restart: bool = False
    """Set it up anew even if it is up, with the files as they are now; ends its jobs."""


@dataclass(frozen=True, kw_only=True)
class Reach(Which):
    """Which cluster, and how to reach it."""

    address: str | None = None
    """Of its dashboard, http://host:port; None for an ssh tunnel to the head that the files describe."""


@dataclass(frozen=True, kw_only=True)
class Submit(Reach):
    """Start a job on the cluster and follow what it says; our flags stand before the job's name."""

    detach: bool = False
    """Return at once."""
    storage: str | None = None
    """Where runs are kept; None for metadata.storage of the cluster file."""


@dataclass(frozen=True, kw_only=True)
class Named(Reach):
    """A job of the cluster."""

    name: Annotated[str, tyro.conf.Positional]
    """The run's or sweep's name."""


@dataclass(frozen=True, kw_only=True)
class Doctor(Reach):
    """Check the cluster from every node: versions, network, storage, GPUs, clocks, disks, tokens."""

    storage: str | None = None
    """Where runs are to be kept; None for metadata.storage of the cluster file."""
    workers: int | None = None
    """Workers that a run is to have."""
    gpu: bool | None = None
    """A GPU for each of them; None if there are any."""
    machines: tuple[str, ...] = ()
    """That must be in the cluster, by name or address; provider.worker_ips of the cluster file."""
    inside: bool = False
    """Examine the cluster that this process is in, rather than send a job there that does."""


@dataclass(frozen=True, kw_only=True)
class Resume(Submit):
    """Go on with a run that was submitted before, on this or another cluster."""

    name: Annotated[str, tyro.conf.Positional]
    """The run's or sweep's name."""
