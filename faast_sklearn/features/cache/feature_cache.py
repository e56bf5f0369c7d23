"""The per-sample cache of features: each sample is encoded once, whoever asks."""

import functools
import numbers
import os
import threading
from pathlib import Path
from typing import Any

from faast_sklearn.features.cache.directory_store import DirectoryStore
from faast_sklearn.features.cache.memory_store import MemoryStore

__all__ = ["FeatureCache", "as_cache"]

_GIB = 1 << 30


class FeatureCache:
    """A bounded store of features by the content of samples, shared by estimators, clones, threads and processes.

    Pass it, or for short ``"memory"`` or a directory, as ``cache`` of an estimator with a backbone. Features are stored
    under a digest of the sample's content and of everything that determines them: backbone, weights, code,
    preprocessing, pooling, length, precision. So they are found again under any file name and at any
    position in X, and never for another backbone.

    Parameters
    ----------
    directory : str or path-like, default=None
        Where to store features, on a local disk; created on first use, if it does not exist. None keeps them in memory.
    max_bytes : int, default=None
        Maximum bytes of features; the least recently used are dropped first. By default 1 GiB in memory and 10 GiB in
        a directory.

    Attributes
    ----------
    directory : Path or None
    max_bytes : int
    hits, misses : int
        Samples that this process found in the cache, and samples that it had to encode.

    Raises
    ------
    ValueError
        If ``max_bytes`` is not a positive integer.

    Notes
    -----
    ``clone`` and ``deepcopy`` return the cache itself. A pickle holds the path and ``max_bytes``, but no features.

    If two workers need the same features at once, one encodes them and the other waits. Features that a killed process
    had stored stay valid; others take over those that it was encoding.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from faast_sklearn import BackboneFeatures, FeatureCache
    >>> class Mean(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x.float().mean((2, 3))
    >>> cache = FeatureCache()
    >>> features = BackboneFeatures(Mean(), device="cpu", cache=cache)
    >>> X = np.random.default_rng(0).random((5, 3, 8, 8))
    >>> first, again = features.fit_transform(X), features.transform(X[::-1])
    >>> np.array_equal(first, again[::-1]), len(cache), cache.misses
    (True, 5, 5)
    """

    def __init__(self, directory: Any = None, *, max_bytes: int | None = None) -> None:
        if max_bytes is None:
            max_bytes = _GIB if directory is None else 10 * _GIB
        if not isinstance(max_bytes, numbers.Integral) or isinstance(max_bytes, bool) or max_bytes <= 0:
            raise ValueError(f"max_bytes must be a positive integer or None, got {max_bytes!r}.")
        self.directory = None if directory is None else Path(_resolved(directory))
        self.max_bytes = int(max_bytes)
        self.hits = 0
        self.misses = 0
        self._count_lock = threading.Lock()
        self.store = (
            MemoryStore(self.max_bytes) if directory is None else DirectoryStore(self.directory, self.max_bytes)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of stored features."""
        return self.store.n_bytes

    def clear(self) -> None:
        """Remove all features."""
        self.store.clear()

    def count(self, hits: Any = 0, misses: Any = 0) -> None:
        """Add to ``hits`` and ``misses``."""
        with self._count_lock:
            self.hits += hits
            self.misses += misses

    def __len__(self):
        return len(self.store)

    def __bool__(self):
        return True  # also while it is empty

    def __repr__(self):
        where = "" if self.directory is None else f"{str(self.directory)!r}, "
        return f"FeatureCache({where}max_bytes={self.max_bytes})"

    def __sklearn_clone__(self, *_):
        return self

    __copy__ = __deepcopy__ = __sklearn_clone__

    def __reduce__(self):
        if self.directory is None:
            return functools.partial(FeatureCache, max_bytes=self.max_bytes), ()
        return _shared_cache, (str(self.directory), self.max_bytes)


_shared = {}  # (directory or None, max_bytes) -> its one cache in this process
_shared_lock = threading.Lock()


def as_cache(cache: Any) -> "FeatureCache | None":
    """Return the cache that an estimator's ``cache`` parameter names.

    Parameters
    ----------
    cache : None, "memory", str, path-like or FeatureCache
        ``"memory"`` and each directory have one cache per process; processes share the files of a directory.

    Returns
    -------
    FeatureCache or None

    Raises
    ------
    ValueError
        If it is anything else.

    Examples
    --------
    >>> from faast_sklearn.features.cache.feature_cache import as_cache
    >>> as_cache("memory") is as_cache("memory")
    True
    """
    if cache is None or isinstance(cache, FeatureCache):
        return cache
    if isinstance(cache, str) and cache == "memory":
        return _shared_cache(None, _GIB)
    if isinstance(cache, (str, os.PathLike)) and os.fspath(cache):
        return _shared_cache(_resolved(cache), 10 * _GIB)
    raise ValueError(f"cache must be None, 'memory', a directory or a FeatureCache, got {cache!r}.")


def _resolved(directory):
    return os.path.realpath(os.path.expanduser(os.fspath(directory)))


def _shared_cache(directory, max_bytes):
    with _shared_lock:
        key = (directory, max_bytes)
        if key not in _shared:
            _shared[key] = FeatureCache(directory, max_bytes=max_bytes)
        return _shared[key]
