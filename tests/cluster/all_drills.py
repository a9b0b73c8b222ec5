"""All drills by name; as a program it runs them and prints a table: `make drills`, or this file with some names."""

import sys
from pathlib import Path

if __name__ == "__main__":
    tests = Path(__file__).parents[1]
    sys.path[:0] = [str(tests / "cluster"), str(tests), str(tests.parent)]

import drill_hosts
import drill_storage
import drill_strangers
from drills import Drill, run_all

DRILLS: dict[str, Drill] = {
    "worker killed": drill_hosts.worker_killed,
    "host crashed, a spare there": drill_hosts.host_crashed_with_spare,
    "host crashed, none spare: 2, 1, 2 workers": drill_hosts.elastic,
    "the only worker cut off": drill_hosts.alone_and_cut_off,
    "clocks that are hours apart": drill_hosts.clocks_off,
    "drained with a deadline": drill_hosts.drained,
    "network partition": drill_hosts.network_partition,
    "head crashed, resumed by name": drill_hosts.head_crashed,
    "sweep driver killed": drill_hosts.sweep_driver_killed,
    "stopped and resumed: 2, 1, 3 workers": drill_hosts.worlds_2_1_3,
    "Ray's own files torn": drill_storage.torn_ray_files,
    "newest checkpoint truncated": drill_storage.newest_checkpoint_truncated,
    "disk full while saving": drill_storage.disk_full,
    "object store failing six times": drill_storage.storage_failing,
    "NaN on one rank": drill_storage.nan_on_one_rank,
    "hanging rank": drill_hosts.hanging_rank,
    "stranger refused": drill_strangers.stranger_refused,
    "stranger sends rubbish to torch's ports": drill_strangers.stranger_pokes_at_training,
}

if __name__ == "__main__":
    chosen = sys.argv[1:] or list(DRILLS)
    unknown = [name for name in chosen if name not in DRILLS]
    if unknown:
        sys.exit(f"no drill {unknown[0]!r}; there are {', '.join(map(repr, DRILLS))}")
    sys.exit(run_all(DRILLS, chosen))
