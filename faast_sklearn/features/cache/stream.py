"""A pass over samples that encodes only what a cache lacks."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, Literal

import numpy as np
import torch

from faast_sklearn.features.loop import first_batch_size, in_running_order, stream_features

__all__ = ["stream_cached"]

_LOOKED_UP = 4096  # keys looked up at a time
# Batches claimed at a time: two workers share the work in such blocks, and each block is a new pass.
_CLAIMED_BATCHES = 8
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.1  # seconds between two checks of what others compute


def stream_cached(
    cache: Any, keys: list, backbone: Any, samples: Sequence, *, batch_size: int | Literal["auto"], report: Any
) -> Iterator[Any]:
    """Yield features as :func:`~faast_sklearn.features.loop.stream_features` does, encoding only what the cache lacks.

    Stored features come first, in large blocks. Equal samples are encoded once. Features that another thread or process
    is encoding come last, after a wait.

    Parameters
    ----------
    cache : FeatureCache
    keys : list of bytes
        One for each sample.
    backbone : Backbone
    samples : sequence
    batch_size : int or "auto"
    report : Report
        Counts stored samples as done, too.

    Yields
    ------
    indices : ndarray of int, shape (b,)
    features : torch.Tensor, shape (b, d)
        On the backbone's device.
    """
    size = first_batch_size(backbone, batch_size)
    where = {}
    for i, key in enumerate(keys):
        where.setdefault(key, []).append(i)
    stream = _CachedStream(cache, where, backbone, samples, batch_size, report)
    missing = []
    for block in _blocks(list(where), _LOOKED_UP):
        found = yield from stream.found(block)
        missing += [key for key in block if key not in found]
    if not missing:
        return
    firsts = in_running_order(backbone, samples, np.array([where[key][0] for key in missing]))
    missing = [keys[i] for i in firsts]
    waiting = []
    for block in _blocks(missing, _CLAIMED_BATCHES * size):
        waiting += yield from stream.encoded(block)
    pause = _FIRST_PAUSE
    while waiting:
        left = yield from stream.encoded(waiting)
        pause = _FIRST_PAUSE if len(left) < len(waiting) else min(2 * pause, _LONGEST_PAUSE)
        waiting = left
        if waiting:
            time.sleep(pause)


class _CachedStream:
    """One pass over samples with a cache in between."""

    def __init__(self, cache, where, backbone, samples, batch_size, report):
        self.cache = cache
        self.where = where  # key -> positions
        self.backbone = backbone
        self.samples = samples
        self.batch_size = batch_size
        self.report = report

    def found(self, keys):
        """Yield the stored features of some keys, and return them."""
        rows = self.cache.store.get(keys)
        kinds = {}
        for key in keys:
            if key in rows:
                dtype, data = rows[key]
                kinds.setdefault((dtype, len(data)), []).append(key)
        for (dtype, _), same in kinds.items():
            features = torch.frombuffer(bytearray().join(rows[key][1] for key in same), dtype=getattr(torch, dtype))
            indices, features = self._spread(same, features.reshape(len(same), -1))
            self.cache.count(hits=len(indices))
            self.report.add(len(indices))
            yield indices, features.to(self.backbone.device)
        return rows.keys()

    def encoded(self, keys):
        """Yield the features of some keys, encoding the missing ones; return the keys that others are encoding."""
        store = self.cache.store
        won, theirs = store.claim(keys)
        claimed = dict.fromkeys(won)
        try:
            others = claimed.keys() | set(theirs)
            stored = [key for key in keys if key not in others]
            found = yield from self.found(stored)
            # Nobody else will encode rows that were stored but are damaged or have been dropped since.
            yield from self._run([*won, *(key for key in stored if key not in found)], claimed)
        finally:
            if claimed:
                store.release(list(claimed))
        return theirs

    def _run(self, keys, claimed):
        if not keys:
            return
        at = {self.where[key][0]: key for key in keys}
        stream = stream_features(
            self.backbone,
            self.samples,
            batch_size=self.batch_size,
            report=self.report,
            positions=np.fromiter(at, dtype=np.int64, count=len(at)),
        )
        late = None
        with closing(stream):
            for indices, features in stream:
                batch = [at[int(i)] for i in indices]
                rows = _on_host(features)
                if late is not None:
                    self._store(*late, claimed)
                late = (batch, rows)
                if features.device.type != "cuda":
                    self._store(*late, claimed)
                    late = None
                indices, features = self._spread(batch, features)
                self.cache.count(hits=len(indices) - len(batch), misses=len(batch))
                self.report.add(len(indices) - len(batch))
                yield indices, features
        if late is not None:
            self._store(*late, claimed)

    def _store(self, keys, rows, claimed):
        rows = rows()
        dtype = str(rows.dtype).removeprefix("torch.")
        good = torch.isfinite(rows).all(1).tolist()
        data = rows.contiguous().view(torch.uint8).numpy()
        for key, row, finite in zip(keys, data, good, strict=True):
            if finite:
                self.cache.store.put(key, dtype, row.tobytes())
                claimed.pop(key, None)

    def _spread(self, keys, features):
        """Repeat the features of samples that occur in X more than once."""
        positions = [self.where[key] for key in keys]
        counts = [len(each) for each in positions]
        indices = np.array([i for each in positions for i in each], dtype=np.int64)
        if len(indices) > len(keys):
            features = features.repeat_interleave(torch.tensor(counts, device=features.device), dim=0)
        return indices, features


def _on_host(features):
    """Start to copy features to the host; the returned function waits for that alone, not for batches queued later."""
    if features.device.type != "cuda":
        return features.cpu
    copy = torch.empty(features.shape, dtype=features.dtype, pin_memory=True).copy_(features, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(features.device))

    def wait():
        done.synchronize()
        return copy

    return wait


def _blocks(items, size):
    return (items[start : start + size] for start in range(0, len(items), size))
