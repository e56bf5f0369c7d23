"""Batches prepared in threads while the model runs."""

import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from faast_sklearn.errors import FaastError, InputError
from faast_sklearn.inputs.samples import name_sample

__all__ = ["Loader"]

# A PIL image opened from a file is decoded on first use, which is not thread-safe; the same object may
# occur twice in X, or in the X of two threads.
_image_locks = [threading.Lock() for _ in range(64)]


class Loader:
    """Reads and collates batches of samples ahead of the model.

    A context manager: on exit, it drops the batches that wait, and waits until each thread has finished its
    current sample and ended.

    Parameters
    ----------
    backbone : Backbone
        Its ``read`` and ``collate`` run here.
    samples : sequence
    single : bool
        Whether there is only one batch.
    """

    def __init__(self, backbone: Any, samples: Sequence, *, single: bool = False) -> None:
        self.backbone = backbone
        self.samples = samples
        self.stopped = False
        self.n_threads = _n_threads(backbone.modality, len(samples), single)
        self._pool = ThreadPoolExecutor(self.n_threads, "faast-load") if self.n_threads else None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stopped = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, indices: Any) -> "Pending":
        """Start to prepare a batch.

        Parameters
        ----------
        indices : ndarray of int
            Positions in ``samples``.

        Returns
        -------
        Pending
        """
        pending = Pending(self, indices)
        if self._pool is None:
            pending.read(0, len(indices))
            return pending
        # Several pieces per thread balance samples that take longer than others.
        step = len(indices) if self.n_threads == 1 else math.ceil(len(indices) / (4 * self.n_threads))
        bounds = [(start, min(start + step, len(indices))) for start in range(0, len(indices), step)]
        pending.unfinished = len(bounds)
        for start, stop in bounds:
            self._pool.submit(pending.read, start, stop)
        return pending

    def read(self, i: Any) -> Any:
        """Read one sample; an error names it."""
        sample = None
        try:
            sample = self.samples[i]
            if hasattr(sample, "convert"):
                with _image_locks[(id(sample) >> 4) % len(_image_locks)]:
                    return self.backbone.read(sample)
            return self.backbone.read(sample)
        except Exception as error:
            if isinstance(error, MemoryError) or (isinstance(error, FaastError) and not isinstance(error, InputError)):
                raise
            raise InputError(_unreadable(i, sample, error)) from error


class Pending:
    """A batch being prepared; the thread that reads its last piece also collates it."""

    def __init__(self, loader: Any, indices: Any) -> None:
        self.indices = indices
        self.unfinished = 1
        self._loader = loader
        self._items = [None] * len(indices)
        self._errors = {}
        self._cancelled = False
        self._lock = threading.Lock()
        self._batch = Future()

    def read(self, start: Any, stop: Any) -> None:
        """Read the samples of one piece."""
        try:
            for k in range(start, stop):
                if self._cancelled or self._loader.stopped:
                    return
                self._items[k] = self._loader.read(int(self.indices[k]))
        except BaseException as error:
            self._errors[start] = error
        with self._lock:
            self.unfinished -= 1
            if self.unfinished:
                return
        self._finish()

    def _finish(self):
        if self._errors:
            # The error of the first piece, not the earliest error, so that the same data give the same error.
            self._batch.set_exception(self._errors[min(self._errors)])
            return
        try:
            items, self._items = self._items, None
            self._batch.set_result(self._loader.backbone.collate(items))
        except BaseException as error:
            self._batch.set_exception(error)

    def result(self) -> Any:
        """Wait for the collated batch, or raise the error of its first bad sample."""
        return self._batch.result()

    def cancel(self) -> None:
        """Read no further samples; there will be no result."""
        self._cancelled = True


def _n_threads(modality, n_samples, single):
    if modality == "text":
        # Tokenisers have threads of their own.
        return 0 if single else 1
    if n_samples <= 4:
        return 0
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, usable)


def _unreadable(i, sample, error):
    where = name_sample(i, sample)
    if isinstance(error, InputError):
        told = isinstance(sample, (str, os.PathLike)) and os.fspath(sample) in str(error)
        return f"X[{i}]: {error}" if told else f"{where}: {error}"
    if isinstance(error, FileNotFoundError):
        return f"{where} does not exist; check the path, which is taken relative to {os.getcwd()!r}."
    if isinstance(error, IsADirectoryError):
        return f"{where} is a folder, expected one file; list its images with image_folder(path)."
    return f"{where} cannot be read ({type(error).__name__}: {error}); repair it or leave it out."
