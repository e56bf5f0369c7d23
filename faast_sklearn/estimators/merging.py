"""Merge estimators that learnt different samples, such as those of different shards, machines or days."""

import copy
import functools
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from faast_sklearn.errors import InputError
from faast_sklearn.estimators.base import RUN_PARAMETERS

__all__ = ["merge"]


def merge(estimators: Any) -> Any:
    """Return an estimator that knows everything that the given estimators have learnt.

    The statistics are added exactly, so the result equals ``fit`` on all samples at once, up to float64 rounding.

    Parameters
    ----------
    estimators : sequence of FaastClassifier, or of FaastSeq2Seq
        Fitted, with equal parameters except ``batch_size``, ``device``, ``dtype``, ``cache`` and ``verbose``. They do
        not change.

    Returns
    -------
    FaastClassifier or FaastSeq2Seq
        With the parameters of the first estimator.

    Raises
    ------
    InputError
        If there are no estimators, or they differ in class, in a parameter, or in the number or names of features; the
        message says in which.
    sklearn.exceptions.NotFittedError
        If an estimator has learnt nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from faast_sklearn import FaastClassifier, merge
    >>> X, y = load_digits(return_X_y=True)
    >>> whole = FaastClassifier().fit(X, y)
    >>> merged = merge([FaastClassifier().fit(X[:900], y[:900]), FaastClassifier().fit(X[900:], y[900:])])
    >>> bool(np.allclose(whole.coef_, merged.coef_))
    True
    """
    estimators = list(estimators)
    if not estimators:
        raise InputError("there is nothing to merge; pass at least one fitted estimator.")
    first = estimators[0]
    known = []
    for i, other in enumerate(estimators):
        check_is_fitted(other)
        known.append(other._known())
        _refuse_different(first, other, i)
    merged = copy.deepcopy(first)
    merged._publish(functools.reduce(operator.add, known))
    return merged


def _refuse_different(first, other, i):
    if type(other) is not type(first):
        raise InputError(f"estimators[{i}] is a {type(other).__name__} and the first a {type(first).__name__}.")
    mine, yours = first.get_params(deep=False), other.get_params(deep=False)
    for name, value in mine.items():
        if name not in RUN_PARAMETERS and not _same(value, yours[name]):
            raise InputError(f"estimators[{i}] has {name}={yours[name]!r} and the first {value!r}; they must be equal.")
    widths = [getattr(estimator, "n_features_in_", None) for estimator in (first, other)]
    if widths[0] != widths[1]:
        raise InputError(f"estimators[{i}] has learnt from {widths[1]} features and the first from {widths[0]}.")


def _same(a, b):
    """Whether two values of a parameter are equal; arrays, also in a dict or list, are compared by their content."""
    if a is b:
        return True
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return repr(a) == repr(b)
