"""The moments stage on two Dask workers of one thread each, against one process of one thread.

    python examples/benchmarks/dask_moments.py [--rows 1000000] [--features 512] [--classes 10] [--chunk 125000]
        [--workers 2] [--repeats 3]

Features are float32 in a file that every process maps, labels in another: nothing but moments travels. Both sides read
them once beforehand, so that neither waits for the disk. What is measured is ``fit`` before the solve, from the call to
the sum in the client; runs of both sides alternate, times are the least of the repeats, and the ratio is within this
run. The floor is 1.7, on two otherwise idle cores.
"""

import argparse
import functools
import os
import tempfile
import time

import dask
import dask.array as da
import numpy as np
import torch
from distributed import Client, LocalCluster
from threadpoolctl import threadpool_limits

import faast_sklearn.dask
from faast_sklearn import FaastClassifier


def write(path, labels, d):
    """Write rows part by part, the same at each call; their spectrum falls off like that of pooled features."""
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(labels), d))
    scale = np.arange(1, d + 1, dtype=np.float32) ** -0.5
    centres = np.random.default_rng(0).standard_normal((labels.max() + 1, d), dtype=np.float32)
    for number, start in enumerate(range(0, len(labels), 50_000)):
        y = labels[start : start + 50_000]
        noise = np.random.default_rng(number + 1).standard_normal((len(y), d), dtype=np.float32)
        rows[start : start + len(y)] = (noise + 0.5 * centres[y]) * scale
    rows.flush()


@functools.cache
def mapped(path):
    return np.load(path, mmap_mode="r")


def read(path, start, stop):
    return mapped(path)[start:stop]


def partitioned(path, like, chunk):
    """Return the rows of a file, shaped and typed as ``like``, as a dask array whose blocks workers map themselves."""
    load, n = dask.delayed(read), len(like)
    bounds = [(start, min(start + chunk, n)) for start in range(0, n, chunk)]
    return da.concatenate([da.from_delayed(load(path, a, b), (b - a, *like.shape[1:]), like.dtype) for a, b in bounds])


def seconds(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--chunk", type=int, default=125_000, help="rows of a partition")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    # As in Dask's workers.
    threadpool_limits(1)
    torch.set_num_threads(1)
    labels = np.random.default_rng(0).integers(0, args.classes, args.rows)
    with tempfile.TemporaryDirectory() as folder:
        path, label_path = (os.path.join(folder, name) for name in ("features.npy", "labels.npy"))
        write(path, labels, args.features)
        np.save(label_path, labels)
        rows = mapped(path)
        # The memory is the page cache's, not the workers': a limit on them would only make them pause.
        cluster = LocalCluster(
            n_workers=args.workers, threads_per_worker=1, processes=True, memory_limit=0, dashboard_address=None
        )
        with cluster, Client(cluster):
            X, y = partitioned(path, rows, args.chunk), partitioned(label_path, labels, args.chunk)
            faast_sklearn.dask.fit(FaastClassifier(), X, y)  # workers import what they need, and map the file
            one, many = [], []
            for _ in range(args.repeats):
                spent, local = seconds(lambda: FaastClassifier().fit(rows, labels))
                one.append(spent)
                spent, shared = seconds(lambda: faast_sklearn.dask.fit(FaastClassifier(), X, y))
                many.append(spent)
            difference = np.abs(shared.coef_ - local.coef_).max() / np.abs(local.coef_).max()
    print(f"{args.rows} x {args.features} float32, {X.numblocks[0]} partitions, {args.workers} workers of one thread")
    print(f"one process {min(one):.3f} s, workers {min(many):.3f} s, ratio {min(one) / min(many):.2f} (floor 1.7)")
    print(f"largest difference of coefficients, relative to the largest: {difference:.1e} (floor 1e-9)")


if __name__ == "__main__":
    main()
