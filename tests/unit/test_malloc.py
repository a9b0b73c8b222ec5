"""Memory that was freed is there for the next step, without the kernel."""

import resource
import subprocess
import sys
from pathlib import Path

import torch

from zfdist.malloc import freed_is_kept

_MIB = 48  # above what malloc keeps by itself


def _faults_of_a_step() -> int:
    """Return the pages that the kernel had to find for a tensor that is made and dropped, when it has its place."""
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(_MIB * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def test_freed_is_kept_within_the_block_and_given_back_after_it() -> None:
    """In a process of its own: what tests before it have left free in this one's heap would serve it."""
    subprocess.run([sys.executable, __file__], check=True, cwd=Path(__file__).parents[2])


if __name__ == "__main__":
    pages = _MIB * 2**20 // resource.getpagesize()
    assert (without := _faults_of_a_step()) >= pages // 2, without
    with freed_is_kept():
        assert (within := _faults_of_a_step()) < pages // 20, within
        kept_mib = _resident_mib()
    assert _resident_mib() < kept_mib - _MIB / 2
