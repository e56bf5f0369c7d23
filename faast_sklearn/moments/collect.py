"""Sums of the moments of batches of labelled rows, and the moments that were computed last."""

import threading
from collections import OrderedDict
from contextlib import closing
from typing import Any

import numpy as np

from faast_sklearn.errors import NonFiniteError
from faast_sklearn.moments.class_moments import ClassMoments

__all__ = ["collect", "collect_folds", "recent", "refuse_overflow"]


def collect(batches: Any) -> "ClassMoments":
    """Add up the moments of batches of labelled rows.

    Parameters
    ----------
    batches : generator of LabelledRows
        At least one batch. The generator is always closed, also after an error.

    Returns
    -------
    ClassMoments
    """
    total: Any = None
    with closing(batches), np.errstate(over="ignore", invalid="ignore"):
        for rows, codes, classes, weight, _ in batches:
            part = ClassMoments.from_codes(rows, codes, classes, weight)
            total = part if total is None else total + part
    return total


def collect_folds(batches: Any, fold_of: np.ndarray, n_folds: int) -> list:
    """Add up the moments of the rows of each fold, in one pass.

    Parameters
    ----------
    batches : generator of LabelledRows
        Always closed, also after an error.
    fold_of : ndarray of int, shape (n,)
        Fold of each row, by position.
    n_folds : int

    Returns
    -------
    list of ClassMoments
    """
    folds: list[Any] = [None] * n_folds
    with closing(batches):
        for rows, codes, classes, weight, positions in batches:
            for k in np.unique(fold_of[positions]):
                at = np.flatnonzero(fold_of[positions] == k)
                part = ClassMoments.from_codes(rows[at], codes[at], classes, None if weight is None else weight[at])
                folds[k] = part if folds[k] is None else folds[k] + part
    return folds


def refuse_overflow(moments: Any) -> None:
    """Raise NonFiniteError if squares of finite rows overflow; once per call, since it waits for the device."""
    if not moments.scatter.trace() + moments.weight * float(moments.scatter.mean.square().sum()) < 1e300:
        raise NonFiniteError(
            "features (or weights) are so large that their squares overflow float64; divide them by a constant, "
            "or use normalize=True."
        )


class _Recent:
    """The moments that were computed last in this process, within a limit of memory.

    A search over ``alpha``, ``solver``, ``values`` or ``prior_strength`` fits the same rows once for each candidate;
    the moments keep the decompositions that earlier candidates made.
    """

    def __init__(self, max_bytes):
        self._entries = OrderedDict()
        self._lock = threading.Lock()
        self._max_bytes = max_bytes

    def get(self, key, make):
        """Return the moments of a key, from ``make()`` if they are not there."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        moments = make()
        moments.keep()
        with self._lock:
            self._entries[key] = moments
            while len(self._entries) > 1 and sum(m.nbytes() for m in self._entries.values()) > self._max_bytes:
                self._entries.popitem(last=False)
        return moments


# Ten folds of 1,280 features, with their decompositions, take a quarter of this limit.
recent = _Recent(max_bytes=1 << 30)
