"""A cloud for Ray's launcher and autoscaler, whose machines the hosts of a test are: `provider: type: external`.

Runs in `ray up` and in the head's autoscaler, on other machines than the test. Both meet in a folder that all see: a
file for each machine that was asked for, which the test (`host_cloud.HostCloud`) boots, and ends when it is let go.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

LOCK = ".lock"
POOL = "pool"
"""The file with the addresses of the machines that the cloud has, by name."""
REFUSED = "refused"
"""The file with the types of which it has none now."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one that changes the folder within the block."""
    with (folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def machines(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what is known of each machine that was asked for: state, tags, and when."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def note(folder: Path, name: str, **changes: Any) -> None:
    """Change what is known of a machine; the folder is locked."""
    path = folder / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    new = path.with_suffix(".new")
    new.write_text(json.dumps(known | changes))
    os.replace(new, path)


class HostProvider(NodeProvider):  # type: ignore[misc]
    """What Ray asks of a cloud."""

    @property
    def _folder(self) -> Path:
        return Path(self.provider_config["folder"])

    def _known(self) -> dict[str, dict[str, Any]]:
        with locked(self._folder):
            found = machines(self._folder)
        return {name: known for name, known in found.items() if known["state"] != "let go"}

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        known = self._known()
        return [name for name in known if tag_filters.items() <= known[name]["tags"].items()]

    def is_running(self, node_id: str) -> bool:
        return self._known().get(node_id, {}).get("state") == "up"

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._known()

    def node_tags(self, node_id: str) -> dict[str, str]:
        tags: dict[str, str] = self._known().get(node_id, {}).get("tags", {})
        return tags

    def internal_ip(self, node_id: str) -> str:
        pool: dict[str, str] = json.loads((self._folder / POOL).read_text())
        return pool[node_id]

    external_ip = internal_ip

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        with locked(self._folder):
            taken, pool = machines(self._folder), json.loads((self._folder / POOL).read_text())
            if tags.get(TAG_RAY_USER_NODE_TYPE) in json.loads((self._folder / REFUSED).read_text()):
                raise RuntimeError("InsufficientInstanceCapacity")
            is_head = tags[TAG_RAY_NODE_KIND] == NODE_KIND_HEAD
            free = [name for name in pool if name not in taken and (name == "head") == is_head]
            if len(free) < count:
                raise RuntimeError(f"{count} machines asked for, and the cloud has {len(free)}")
            for name in free[:count]:
                note(self._folder, name, state="asked for", tags=tags, asked_s=time.time())

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        with locked(self._folder):
            known = machines(self._folder)
            if node_id in known:
                note(self._folder, node_id, tags=known[node_id]["tags"] | tags)

    def terminate_node(self, node_id: str) -> None:
        with locked(self._folder):
            if node_id in machines(self._folder):
                note(self._folder, node_id, state="let go")
