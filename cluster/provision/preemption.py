"""Watch for the cloud's notice that it takes this machine away, and drain its Ray node with the deadline.

    python -m cluster.provision.preemption --cloud aws|gcp|azure [--endpoint URL] [--address GCS] [--node-id ID]
        [--every SECONDS]

Runs on every worker machine beside Ray, until the notice came or the machine's Ray has ended. Ray's own launcher does
not look for these notices. A drained node gets no new work, and `cluster.run.fit` saves and goes on elsewhere. Of ours
it imports `cluster.ray_internals` alone, as these two files may stand alone on a machine.

Sources: docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html,
cloud.google.com/compute/docs/instances/spot, cloud.google.com/compute/docs/metadata/getting-live-migration-notice,
learn.microsoft.com/azure/virtual-machines/linux/scheduled-events.
"""

import argparse
import email.utils
import json
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from cluster import ray_internals

ENDPOINTS = {
    "aws": "http://169.254.169.254",
    "gcp": "http://metadata.google.internal",
    "azure": "http://169.254.169.254",
}
_GCP_NOTICE_S = 30.0
_GCP_MAINTENANCE_S = 3600.0  # the notice that machines with GPUs get
_AZURE_TAKEN_AWAY = ("Preempt", "Terminate", "Redeploy", "Reboot")
_HTTP_TIMEOUT_S = 2.0
_GCS_TIMEOUT_S = 10.0
_ALIVE_EVERY_S = 30.0

Fetch = Callable[..., str]
"""fetch(path, method="GET", **headers) gives the answer's text, "" where there is nothing (404)."""


class Notice(NamedTuple):
    """That this machine will be taken away."""

    what: str
    at_s: float
    """Seconds since 1970."""


class SpotError(RuntimeError):
    """No notice can be watched for, or none be passed on; one sentence."""


def aws_notice(fetch: Fetch, now_s: float) -> Notice | None:
    """Return the notice of an EC2 spot interruption; two minutes ahead."""
    token = fetch("/latest/api/token", method="PUT", **{"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    text = fetch("/latest/meta-data/spot/instance-action", **{"X-aws-ec2-metadata-token": token})
    if not text:
        return None
    entry = json.loads(text)
    at = datetime.fromisoformat(entry["time"].replace("Z", "+00:00"))
    return Notice(f"EC2 spot interruption ({entry['action']})", at.timestamp())


def gcp_notice(fetch: Fetch, now_s: float) -> Notice | None:
    """Return the notice of a preemption, 30 s ahead, or of a maintenance that stops the machine."""
    instance, flavor = "/computeMetadata/v1/instance", {"Metadata-Flavor": "Google"}
    if fetch(f"{instance}/preempted", **flavor).strip() == "TRUE":
        return Notice("Compute Engine preemption", now_s + _GCP_NOTICE_S)
    if fetch(f"{instance}/maintenance-event", **flavor).strip() == "TERMINATE_ON_HOST_MAINTENANCE":
        return Notice("Compute Engine host maintenance", now_s + _GCP_MAINTENANCE_S)
    return None


def azure_notice(fetch: Fetch, now_s: float) -> Notice | None:
    """Return the scheduled event that ends or restarts this very machine; at least 30 s ahead."""
    asked = {"Metadata": "true"}
    events = json.loads(fetch("/metadata/scheduledevents?api-version=2020-07-01", **asked) or '{"Events": []}')
    taken = [e for e in events["Events"] if e["EventType"] in _AZURE_TAKEN_AWAY]
    if not taken:
        return None
    name = fetch("/metadata/instance/compute/name?api-version=2021-02-01&format=text", **asked).strip()
    for event in taken:
        if name in event["Resources"]:
            when = event.get("NotBefore")  # empty once it has begun
            at_s = email.utils.parsedate_to_datetime(when).timestamp() if when else now_s
            return Notice(f"Azure scheduled event ({event['EventType']})", at_s)
    return None


NOTICES = {"aws": aws_notice, "gcp": gcp_notice, "azure": azure_notice}


def fetcher(endpoint: str) -> Fetch:
    """Return what asks a metadata service; it never goes through a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def fetch(path: str, method: str = "GET", **headers: str) -> str:
        request = urllib.request.Request(endpoint.rstrip("/") + path, method=method, headers=headers)
        try:
            with opener.open(request, timeout=_HTTP_TIMEOUT_S) as answer:
                text: str = answer.read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return ""
            raise
        return text

    return fetch


def nodes_here(client: Any) -> list[str]:
    """Return the ids of the Ray nodes that run on this machine."""
    alive = ray_internals.alive_nodes(client, within_s=_GCS_TIMEOUT_S)
    return [node_id for node_id, ip in alive.items() if _is_here(ip)]


def drain(client: Any, node_id: str, notice: Notice) -> None:
    """Tell Ray that a node goes at the notice's time.

    Raises:
        SpotError: if Ray refuses.
    """
    refusal = ray_internals.drain_node(client, node_id, notice.what, notice.at_s)
    if refusal is not None:
        raise SpotError(f"Ray does not drain node {node_id}: {refusal}")


def watch(cloud: str, endpoint: str, client: Any, node_id: str | None, every_s: float) -> None:
    """Wait for a notice and drain; return also when this machine has no Ray node any more."""
    fetch, complained, next_look_s = fetcher(endpoint), False, 0.0
    while True:
        ids: list[str] = []
        if time.monotonic() >= next_look_s:
            ids = nodes_here(client)
            if not ids:
                return _say("this machine is in no Ray cluster any more")
            next_look_s = time.monotonic() + _ALIVE_EVERY_S
        try:
            notice = NOTICES[cloud](fetch, time.time())
        except (OSError, ValueError, KeyError) as error:
            notice = None
            if not complained:
                _say(f"{endpoint} gives no notices of {cloud} ({error}); trying on")
                complained = True
        if notice is not None:
            _say(f"{notice.what} in {notice.at_s - time.time():.0f} s")
            for one in [node_id] if node_id else nodes_here(client):
                drain(client, one, notice)
                _say(f"drained node {one}")
            return None
        time.sleep(every_s)


def main(argv: list[str]) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.provision.preemption", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--cloud", required=True, choices=sorted(NOTICES))
    parser.add_argument("--endpoint", help="the metadata service; default: the cloud's own")
    parser.add_argument(
        "--address", default="auto", help="of the Ray cluster; default: the one that this machine is in"
    )
    parser.add_argument("--node-id", help="the node to drain; default: all nodes of this machine")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two looks")
    options = parser.parse_args(argv)
    try:
        client = _client(options.address)
        _say(f"watching for notices of {options.cloud}")
        watch(options.cloud, options.endpoint or ENDPOINTS[options.cloud], client, options.node_id, options.every)
    except SpotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _client(address: str) -> Any:
    try:
        client = ray_internals.gcs_client(None if address == "auto" else address)
    except (ConnectionError, ValueError) as error:
        raise SpotError(f"no Ray cluster at {address!r}: {error}") from None
    if client is None:
        raise SpotError("this machine is in no Ray cluster; start Ray first, or pass --address")
    return client


def _is_here(ip: str) -> bool:
    """Return whether an address is one of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True


def _say(line: str) -> None:
    print(f"{time.strftime('%F %T')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
