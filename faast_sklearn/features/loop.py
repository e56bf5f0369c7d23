"""The only loop over data: samples in, features out, one batch at a time."""

import gc
import logging
import math
import numbers
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from faast_sklearn.backbones.device import empty_cache
from faast_sklearn.backbones.memo import remember, remembered
from faast_sklearn.errors import InputError, NonFiniteError, OutOfMemoryError
from faast_sklearn.features.loader import Loader
from faast_sklearn.features.progress import Report
from faast_sklearn.inputs.samples import name_sample

__all__ = ["check_batch_size", "first_batch_size", "in_running_order", "stream_features"]

_logger = logging.getLogger("faast_sklearn")

# Batches prepared while the model runs. With two, a slow batch does not stop the model; more only take memory.
_AHEAD = 2
_MOST = "samples that fit into memory"


def stream_features(
    backbone: Any,
    samples: Sequence,
    *,
    batch_size: int | Literal["auto"] = "auto",
    report: "Report | None" = None,
    positions: np.ndarray | None = None,
) -> Any:
    """Run a backbone over samples and yield their features batch by batch.

    Samples are read and collated in threads, a few batches ahead of the model, which runs in the calling
    thread. Texts come longest first, everything else in its own order. Memory is that of a few batches,
    however many samples there are.

    Parameters
    ----------
    backbone : Backbone
        Opened, as :mod:`faast_sklearn.backbones` describes.
    samples : sequence of n_samples
        As :func:`~faast_sklearn.inputs.as_samples` returns.
    batch_size : int or "auto", default="auto"
        ``"auto"`` starts from the backbone's own estimate. If a batch does not fit into memory, its size is
        halved, also if it was given, and the same samples run again. The size that fits is remembered as long
        as the backbone stays open.
    report : Report, default=None
        Counts samples and truncated texts over several streams; its owner closes it. By default the stream has
        its own report, which warns at the end.
    positions : ndarray of int, default=None
        Positions of the samples to run; by default all.

    Yields
    ------
    indices : ndarray of int, shape (b,)
        Positions in ``samples``; over the whole stream each requested position occurs once.
    features : torch.Tensor, shape (b, n_features)
        On the backbone's device (or anything else that its ``forward`` returns). They are checked while the next
        batch runs, so an error about one batch may be raised with the next one or at the end.

    Raises
    ------
    ValueError
        If ``batch_size`` is neither ``"auto"`` nor a positive integer; raised before iteration.
    InputError
        If a sample cannot be read, or a text is too long for a backbone with ``truncation="error"``.
    NonFiniteError
        If features are NaN or infinite.
    OutOfMemoryError
        If a single sample does not fit.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from types import SimpleNamespace
    >>> from faast_sklearn.backbones import Backbone
    >>> from faast_sklearn.features.loop import stream_features
    >>> class Mean(Backbone):
    ...     modality, n_features, default_batch_size, truncation = "tensor", 1, 2, "warn"
    ...     device, dtype = torch.device("cpu"), torch.float32
    ...     read = staticmethod(torch.as_tensor)
    ...     def collate(self, items):
    ...         return SimpleNamespace(inputs=torch.stack(items), size=len(items), lengths=None, limit=None)
    ...     def forward(self, batch):
    ...         return batch.inputs.mean(1, keepdim=True)
    >>> [(idx.tolist(), F.ravel().tolist()) for idx, F in stream_features(Mean(), np.eye(3))]
    [([0, 1], [0.333..., 0.333...]), ([2], [0.333...])]
    """
    size = first_batch_size(backbone, batch_size)
    # The size that fits is remembered per opened backbone, which has one device, dtype and modality.
    size = min(size, remembered(backbone.shares_memory_with, _MOST, lambda: math.inf))
    positions = np.arange(len(samples)) if positions is None else np.asarray(positions)
    level = logging.INFO if batch_size == "auto" else logging.WARNING
    stream = _Stream(backbone, samples, positions, size, level)
    return _run_alone(stream) if report is None else stream.run(report)


def first_batch_size(backbone: Any, batch_size: int | Literal["auto"]) -> int:
    """Return the batch size to start with, before any batch was too large for memory.

    Parameters
    ----------
    backbone : Backbone
    batch_size : int or "auto"

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If it is neither ``"auto"`` nor a positive integer.
    """
    check_batch_size(batch_size)
    return backbone.default_batch_size if isinstance(batch_size, str) else int(batch_size)


def check_batch_size(batch_size: Any) -> None:
    """Raise ValueError if ``batch_size`` is neither ``"auto"`` nor a positive integer.

    Examples
    --------
    >>> from faast_sklearn.features.loop import check_batch_size
    >>> check_batch_size(0)
    Traceback (most recent call last):
    ...
    ValueError: batch_size must be 'auto' or a positive integer, got 0.
    """
    number = isinstance(batch_size, numbers.Integral) and not isinstance(batch_size, bool) and batch_size > 0
    if not number and not (isinstance(batch_size, str) and batch_size == "auto"):
        raise ValueError(f"batch_size must be 'auto' or a positive integer, got {batch_size!r}.")


def in_running_order(backbone: Any, samples: Sequence, positions: np.ndarray) -> np.ndarray:
    """Sort positions as they are run: texts longest first, everything else in its own order.

    Texts of similar length then share a batch, so little of it is padding, and a batch that is too large fails first.

    Parameters
    ----------
    backbone : Backbone
    samples : sequence
    positions : ndarray of int, shape (m,)

    Returns
    -------
    ndarray of int, shape (m,)
    """
    if backbone.modality != "text":
        return positions
    lengths = (backbone.sort_key(backbone.read(samples[int(i)])) for i in positions)
    return positions[np.argsort(-np.fromiter(lengths, dtype=np.int64, count=len(positions)), kind="stable")]


def _run_alone(stream):
    with Report() as report:
        yield from stream.run(report)


class _Stream:
    """One pass of a backbone over samples."""

    def __init__(self, backbone, samples, positions, size, level):
        self.backbone = backbone
        self.samples = samples
        self.positions = positions
        self.size = size
        self.level = level

    def run(self, report):
        order = in_running_order(self.backbone, self.samples, self.positions)
        unchecked = None
        following = 0  # where in order the next batch to prepare starts
        ahead = deque()
        with Loader(self.backbone, self.samples, single=len(order) <= self.size) as loader:
            while following < len(order) or ahead:
                while following < len(order) and len(ahead) <= _AHEAD:
                    indices = order[following : following + self.size]
                    ahead.append(loader.submit(indices))
                    following += len(indices)
                prepared = ahead.popleft()
                indices, batch = prepared.indices, prepared.result()
                self._refuse_cut(indices, batch)
                features = self._forward(batch)
                if features is None:
                    for late in ahead:
                        late.cancel()
                    following -= len(indices) + sum(len(late.indices) for late in ahead)
                    ahead.clear()
                    del prepared, batch
                    self._halve(indices)
                    continue
                self.backbone.check(features, len(indices))
                report.add(batch.size, batch.lengths, batch.limit)
                if unchecked is not None:
                    self._raise_if_bad(*unchecked)
                flags = self.backbone.finite(features)
                unchecked = None if flags is None else (indices, _Flags(flags))
                yield indices, features
            if unchecked is not None:
                self._raise_if_bad(*unchecked)

    def _refuse_cut(self, indices, batch):
        if self.backbone.truncation != "error" or batch.lengths is None or batch.limit is None:
            return
        lengths = np.asarray(batch.lengths)
        if (lengths > batch.limit).any():
            first = indices[lengths > batch.limit].min()
            raise InputError(
                f"X[{first}] has {lengths[indices == first][0]} tokens and the backbone reads {batch.limit}; "
                "split it, or use truncation='warn' to cut such texts."
            )

    def _forward(self, batch):
        """Run the model; return None if memory is short, after the failed attempt has released its memory."""
        try:
            return self.backbone.forward(batch)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        return None

    def _halve(self, indices):
        device = self.backbone.device
        gc.collect()
        empty_cache(device.type)
        if len(indices) == 1:
            raise OutOfMemoryError(
                f"Not even one sample, {name_sample(indices[0], self.samples[indices[0]])}, fits into the memory of "
                f"{device}. Free memory there, take a smaller backbone or dtype, or use device='cpu'."
            )
        self.size = len(indices) // 2
        remember(self.backbone.shares_memory_with, _MOST, self.size, better=min)
        _logger.log(self.level, "%d samples did not fit on %s: batch_size is now %d", len(indices), device, self.size)

    def _raise_if_bad(self, indices, finite):
        good = finite.rows()
        if good.all():
            return
        first = int(indices[~good].min())
        remedy = "check that its values are finite"
        if self.backbone.dtype in (torch.float16, torch.bfloat16):
            remedy = "try dtype='float32', or " + remedy
        raise NonFiniteError(
            f"{name_sample(first, self.samples[first])} gives NaN or infinite features in "
            f"{str(self.backbone.dtype).removeprefix('torch.')}; {remedy}."
        )


class _Flags:
    """One flag per sample, read later so that the host does not wait for the device now."""

    def __init__(self, flags):
        self._done = None
        device = flags.device
        if device.type == "cuda":
            # Reading flags after the next batch has been queued would wait for that batch too.
            flags = flags.to("cpu", non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(device))
        self._flags = flags

    def rows(self):
        if self._done is not None:
            self._done.synchronize()
        return self._flags.cpu().numpy()


def _is_out_of_memory(error):
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    message = str(error).lower()
    return any(sign in message for sign in ("out of memory", "can't allocate memory", "cublas_status_alloc_failed"))
