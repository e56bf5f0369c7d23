"""Competitors timed in turn, so that a machine whose speed drifts slows all of them, and compared as paired ratios."""

import statistics
import time

import torch


def in_turn(runs, repeats, device=None):
    """Return the seconds of each run in each repeat; the first round of all is not counted, since it allocates.

    On a CUDA device the seconds are those between two events on its stream, so that work that was queued is part of
    them and the host's wait for it is not.
    """
    clock = on_stream if device is not None and device.type == "cuda" else on_host
    seconds = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            seconds[name].append(clock(run))
    return {name: taken[1:] for name, taken in seconds.items()}


def on_host(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def on_stream(run):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def ratio(seconds, beside):
    """Return the median of the repeats' ratios."""
    return statistics.median(a / b for a, b in zip(seconds, beside, strict=True))
