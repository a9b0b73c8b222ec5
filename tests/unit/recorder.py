"""A stand-in for recording on a GPU, that runs the code again."""

import math

import unrolls

from zfdist.model.kernels.cuda_graphs import Graphs
from zfdist.model.kernels.manual_backward import BPTT
from zfdist.model.kernels.recording import Captured, Loop, idle_row

LOOP = Loop(BPTT, timed=3, idle=idle_row)


class Recorder:
    """Records nothing, but behaves as a graph does: reads and writes the same buffers at every replay."""

    def __init__(self):
        self.made = 0

    def __call__(self, function):
        self.made += 1
        kept = [None if o is None else o.clone() for o in function()]

        def replay():
            for buffer, fresh in zip(kept, function(), strict=True):
                if buffer is not None:
                    buffer.copy_(fresh)

        return Captured(replay, kept, sum(k.nbytes for k in kept if k is not None))


def recorded(limit_bytes=math.inf):
    recorder = Recorder()
    return Graphs(LOOP, recorder, limit_bytes), recorder


def bytes_of(given):
    run, _ = recorded()
    for _ in range(2):
        unrolls.results(run, given)
    return run.held_bytes
