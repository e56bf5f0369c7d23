"""Readers turn X into rows of features: ready rows stay as they are, raw samples go through a frozen backbone.

Each call of an estimator makes its own reader. ``samples(X)`` checks X and makes it indexable; ``stream(samples)``
yields ``(positions, rows)``, each position once; ``facts`` describes the samples, by the names of an estimator's
attributes. A reader never writes to an estimator.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

import numpy as np
import torch

from faast_sklearn.backbones.device import moments_device, resolve_device, resolve_dtype
from faast_sklearn.errors import InputError
from faast_sklearn.features.cache import as_cache
from faast_sklearn.features.cache.sample_keys import backbone_fingerprint, digest_of_rows, sample_keys
from faast_sklearn.features.cache.stream import stream_cached
from faast_sklearn.features.loop import stream_features
from faast_sklearn.features.normalize import unit_rows
from faast_sklearn.features.progress import Report
from faast_sklearn.inputs.columns import without_arrow
from faast_sklearn.inputs.datasets import is_dataset
from faast_sklearn.inputs.samples import as_samples, is_pil
from faast_sklearn.inputs.tables import check_columns, is_table, read_features, read_table, refuse_non_finite

__all__ = ["BackboneReader", "FeatureReader", "TableReader", "in_order"]

# Rows of ready features that are processed at once, so that no copy of the whole X is made.
_SLICE_ROWS = 16384


class FeatureReader(Protocol):
    """What the estimators need of a reader; a context manager that ends the report of the call.

    Attributes
    ----------
    device : torch.device
        Where features are computed.
    facts : dict
        ``n_features_in_``, ``_n_features``, ``feature_names_in_`` and ``device_``, as far as they are known.
    """

    device: torch.device
    facts: dict

    def samples(self, X: Any) -> Any:
        """Return X as indexable samples, checked as far as that is possible without reading them."""

    def stream(self, samples: Any) -> Any:
        """Yield (positions, rows): an ndarray of int and as many rows of features, where moments are kept."""

    def digest(self, samples: Any) -> str:
        """Return a digest; equal digests mean the same rows in the same order."""


class _CallReader:
    """What both readers share: the facts, the report of the call, and scaling to unit length."""

    def __init__(self, facts, normalize, report):
        self._facts = {name: value for name, value in facts.items() if name != "device_"}
        self._normalize = normalize
        self._report = Report() if report is None else report

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._report.__exit__(*error)

    def _scaled(self, rows, widths=()):
        return unit_rows(rows, widths) if self._normalize else rows


class TableReader(_CallReader):
    """Reads rows that are features already, as scikit-learn passes them.

    Parameters
    ----------
    name : str
        Name of the estimator, for messages.
    device, dtype
        As estimators take them. Wrong values are refused although there is no backbone.
    facts : dict, default={}
        What X has to agree with.
    normalize : bool, default=False
        Scale rows to unit length.
    report : Report, optional
    """

    def __init__(
        self,
        name: str,
        device: Any = None,
        dtype: Any = "auto",
        facts: Mapping[str, Any] | tuple = (),
        *,
        normalize: bool = False,
        report: "Report | None" = None,
    ) -> None:
        super().__init__(dict(facts), normalize, report)
        self._name = name
        automatic = device is None or (isinstance(device, str) and device == "auto")
        self.device = resolve_device("cpu" if automatic else device)
        resolve_dtype(dtype, self.device)

    @property
    def facts(self) -> Any:
        """What is known about the rows."""
        return dict(self._facts)

    def samples(self, X: Any) -> Any:
        """Return X as a finite two-dimensional array or tensor."""
        X = read_features(X, self._facts, self._name)
        return X.to(moments_device(X.device)) if isinstance(X, torch.Tensor) else X

    def stream(self, samples: Any) -> Iterator[Any]:
        """Yield positions and features of consecutive rows, on the device where moments are kept."""
        device = moments_device(self.device)
        for start in range(0, len(samples), _SLICE_ROWS):
            rows = samples[start : start + _SLICE_ROWS]
            if isinstance(rows, np.ndarray) and device.type != "cpu":
                rows = torch.tensor(np.ascontiguousarray(rows), device=device)
            self._report.add(len(rows))
            yield np.arange(start, start + len(rows)), self._scaled(rows)

    def digest(self, samples: Any) -> Any:
        """Return a digest of the rows, of whether they are scaled, and of the device."""
        return f"{digest_of_rows(samples)} {self._normalize} {self.device}"

    def check_width(self, n_features: Any) -> None:
        """Do nothing: ``samples`` has checked the columns of X."""


class BackboneReader(_CallReader):
    """Reads raw samples through an open frozen backbone.

    Parameters
    ----------
    backbone : Backbone
    in_memory : bool
        Whether its module is the caller's own: the caller may change it, and only a batch shows the number of features.
    name : str
        Name of the estimator, for messages.
    facts : dict, default={}
        What samples and backbone have to agree with.
    batch_size, cache
        As estimators take them.
    normalize : bool, default=False
        Scale features to unit length.
    report : Report, optional
    """

    def __init__(
        self,
        backbone: Any,
        in_memory: bool,
        name: str,
        facts: Mapping[str, Any] | tuple = (),
        *,
        batch_size: Any = "auto",
        cache: Any = None,
        normalize: bool = False,
        report: "Report | None" = None,
    ) -> None:
        super().__init__(dict(facts), normalize, report)
        self.backbone, self.device = backbone, backbone.device
        self._in_memory, self._name, self._batch_size = in_memory, name, batch_size
        self._cache = as_cache(cache)
        self._keys = (None, None)  # samples and their keys
        self.check_width(None if in_memory else backbone.n_features)

    @property
    def facts(self) -> Any:
        """What is known about the samples; ``n_features_in_`` of a table counts its columns, as in scikit-learn."""
        facts = {**self._facts, "device_": str(self.device)}
        if self._widths:
            facts.update(_blocks=self._widths, _feature_maps=self.backbone.feature_maps)
        if "_n_features" in facts:
            facts.setdefault("n_features_in_", facts["_n_features"])
        return facts

    @property
    def n_features(self) -> Any:
        """Number of features; None while it is unknown."""
        return self._facts.get("_n_features")

    def check_width(self, n_features: Any) -> None:
        """Raise InputError if the number of features differs from what was learnt; keep it if it is the first.

        ``stream`` calls it for each batch. Call it also when remembered moments replace a stream.
        """
        if n_features is None:
            return
        known = self._facts.setdefault("_n_features", n_features)
        if n_features != known:
            raise InputError(
                f"the backbone now gives {n_features} features, but {self._name} learnt from {known}; use the backbone "
                "it was fitted with."
            )

    def samples(self, X: Any) -> Any:
        """Return X as indexable samples of what the backbone reads."""
        if self.backbone.modality == "tensor":
            _refuse_unread(X, self.backbone)
        if self.backbone.modality == "tensor" and is_table(X):
            X = read_table(X, self._facts, self._name, "numeric")
            refuse_non_finite(X, self._name)
        elif self.backbone.modality == "tensor" and isinstance(X, torch.Tensor) and X.ndim == 2:
            check_columns(X.shape[1], self._facts, self._name)
        samples = as_samples(X, self.backbone.modality)
        if self._cache is not None and self.backbone.blocks is None and len(samples):
            # If all features come from the cache, no pass finds the widths of the inner layers; one sample does.
            in_order(stream_features(self.backbone, _First(samples)), 1)
        return samples

    @property
    def _widths(self):
        return self.backbone.blocks or ()

    def stream(self, samples: Any) -> Iterator[Any]:
        """Yield positions and features batch by batch, on the device where moments are kept."""
        device = moments_device(self.device)
        how = {"batch_size": self._batch_size, "report": self._report}
        if self._cache is None:
            stream = stream_features(self.backbone, samples, **how)
        else:
            stream = stream_cached(self._cache, self._sample_keys(samples), self.backbone, samples, **how)
        with closing(stream):
            for positions, rows in stream:
                self.check_width(rows.shape[1])
                yield positions, self._scaled(rows.to(device), self._widths)

    def digest(self, samples: Any) -> Any:
        """Return a digest of the samples, the backbone, whether features are scaled, and the device."""
        return f"{hashlib.sha256(b''.join(self._sample_keys(samples))).hexdigest()} {self._normalize} {self.device}"

    def _sample_keys(self, samples):
        """Return the cache key of each sample, for which each sample is read."""
        if self._keys[0] is not samples:
            fingerprint = backbone_fingerprint(self.backbone, self._in_memory)
            self._keys = (samples, sample_keys(samples, self.backbone, fingerprint))
        return self._keys[1]

    def probe(self, samples: Any) -> Any:
        """Return the number of features; if the backbone does not know it, encode the first sample."""
        if self.n_features is None:
            in_order(self.stream(_First(samples)), 1)
        return self.n_features


def in_order(stream: Any, n: int) -> Any:
    """Return what a stream yields for n samples, in the order of the samples.

    Parameters
    ----------
    stream : generator of (positions, values)
        Values are ndarrays, tensors or lists, one entry per position. The stream is closed, also after an error.
    n : int

    Returns
    -------
    ndarray or torch.Tensor of shape (n, ...)
        Tensors stay on their device, so that no batch waits for the host.

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.features.readers import in_order
    >>> in_order(iter([(np.array([2, 0]), ["c", "a"]), (np.array([1]), ["b"])]), 3).tolist()
    ['a', 'b', 'c']
    """
    out: Any = None
    try:
        for positions, values in stream:
            if isinstance(values, torch.Tensor):
                out = values.new_empty((n, *values.shape[1:])) if out is None else out
                out[torch.as_tensor(positions, device=out.device)] = values
                continue
            if out is None:
                array = isinstance(values, np.ndarray)
                out = np.empty((n, *values.shape[1:]), values.dtype) if array else np.empty(n, object)
            out[positions] = values
    finally:
        if hasattr(stream, "close"):
            stream.close()
    return out


def _refuse_unread(X, backbone):
    """Raise InputError if X holds texts, paths or images, and the backbone is a module that reads arrays."""
    known = isinstance(X, (list, tuple, np.ndarray)) or any(hasattr(X, name) for name in ("to_numpy", "column_names"))
    if not known or getattr(X, "shape", None) == () or is_dataset(X):
        return
    first = without_arrow(X[:1])
    first = first.to_numpy() if hasattr(first, "to_numpy") else first
    if not isinstance(first, (list, tuple, np.ndarray)) or not len(first):
        return
    sample = first[0]
    if isinstance(first, np.ndarray) and first.shape[1:] == (1,):  # a table of one column
        sample = sample[0]
    if isinstance(sample, (str, bytes, os.PathLike)) or is_pil(sample):
        kind = "PIL image" if is_pil(sample) else type(sample).__name__
        reads = f"{type(backbone.module).__name__} reads arrays"
        raise InputError(f"X holds {kind}s, and {reads}; pass {backbone.remedy}.")


class _First(Sequence):
    """A sequence of the first sample only."""

    def __init__(self, samples):
        self._samples = samples

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return self._samples[0]
