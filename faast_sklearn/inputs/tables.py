"""Tables of numbers: ready features, or the input of a user's module that takes arrays."""

import functools
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from faast_sklearn.errors import InputError, NonFiniteError
from faast_sklearn.inputs.columns import vectors_in
from faast_sklearn.inputs.datasets import is_dataset
from faast_sklearn.inputs.samples import refuse_single

__all__ = ["check_columns", "is_table", "read_features", "read_table", "refuse_non_finite"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_features(X: Any, facts: dict, name: str) -> Any:
    """Return ready features as a finite two-dimensional array or tensor.

    Parameters
    ----------
    X : array, tensor, DataFrame or list of shape (n_samples, d)
    facts : dict
        What is known of the columns, under scikit-learn's names ``n_features_in_`` and ``feature_names_in_``. X must
        match it; an empty dict is filled.
    name : str
        Name of the estimator, for messages.

    Returns
    -------
    ndarray, or torch.Tensor without a gradient

    Raises
    ------
    InputError
        If X is not a table of numbers, or its columns do not match ``facts``.
    NonFiniteError
        If a value is NaN or infinite; the message gives the row.
    """
    refuse_single(X, "tensor")
    if isinstance(X, torch.Tensor):
        if X.ndim != 2 or X.dtype not in _FLOATS or not len(X):
            raise InputError(
                f"X is a {X.dtype} tensor of shape {tuple(X.shape)}; expected floating features (n_samples, d)."
            )
        check_columns(X.shape[1], facts, name)
        X = X.detach()
    elif is_dataset(X):
        raise InputError(
            f"X is a {type(X).__name__}, whose items a backbone reads; ready features are one array of shape "
            "(n_samples, d), such as np.stack([x for x in as_indexable(X)])."
        )
    elif hasattr(X, "__iter__") and not any(hasattr(X, name) for name in ("__getitem__", "__array__", "shape")):
        raise InputError(
            f"X is a {type(X).__name__}, read once and in its own order, so it works in fit and partial_fit "
            "but not here; pass an array of shape (n_samples, d)."
        )
    else:
        X = read_table(X, facts, name, (np.float64, np.float32, np.float16))
    refuse_non_finite(X, name)
    return X


def read_table(X: Any, facts: Any, name: Any, dtype: Any) -> np.ndarray:
    """Check a table as scikit-learn does, with its messages; only :func:`refuse_non_finite` checks that it is finite.

    Parameters
    ----------
    X, facts, name
        As in :func:`read_features`.
    dtype : str or tuple of dtypes
        As ``check_array`` takes it.

    Returns
    -------
    ndarray of shape (n_samples, d)
    """
    refuse_single(X, "tensor")
    X = vectors_in(X)
    _refuse_kinds(X)
    # scikit-learn checks columns against attributes of an estimator, whose class name appears in the messages.
    estimator = _of_name(name)()
    vars(estimator).update(facts)
    try:
        X = validate_data(estimator, X, reset="n_features_in_" not in facts, dtype=dtype, ensure_all_finite=False)
    except (ValueError, OverflowError) as error:
        # Values that are not numbers still raise TypeError, which scikit-learn demands of estimators.
        message = str(error)
        raise InputError(message.partition("\n")[0] + "." if "Complex data" in message else message) from error
    facts.update(vars(estimator))
    return X


@functools.cache  # making a class takes as long as checking some thousands of rows
def _of_name(name):
    return type(name, (BaseEstimator,), {})


def check_columns(n_columns: Any, facts: Any, name: Any) -> None:
    """Check the number of columns of a tensor, as scikit-learn does for tables."""
    known = facts.setdefault("n_features_in_", n_columns)
    if n_columns != known:
        raise InputError(f"X has {n_columns} features, but {name} is expecting {known} features as input.")


def is_table(X: Any) -> bool:
    """Whether X can only be rows of numbers: it has at most two axes and is not a list of arrays or tensors."""
    if isinstance(X, torch.Tensor) or is_dataset(X):
        return False
    if hasattr(X, "shape"):
        return len(X.shape) <= 2
    return hasattr(X, "__array__") or (isinstance(X, (list, tuple)) and not (len(X) and hasattr(X[0], "shape")))


def refuse_non_finite(X: Any, name: Any) -> None:
    """Raise NonFiniteError for the first row with a value that is not finite."""
    # A sum is finite only if all terms are, and takes one pass without allocating memory.
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = X.dtype in (np.float16, torch.float16, torch.bfloat16)
        total = X.sum(dtype=(np.float32 if isinstance(X, np.ndarray) else torch.float32) if narrow else None)
    if np.isfinite(float(total)):
        return
    bad = ~(np.isfinite(X) if isinstance(X, np.ndarray) else torch.isfinite(X).cpu().numpy())
    if not bad.any():
        return
    row, column = (int(i[0]) for i in np.nonzero(bad))
    value = "NaN" if np.isnan(float(X[row, column])) else "infinity"
    raise NonFiniteError(
        f"Input X contains {value}: {name} found it in row {row}, column {column} "
        f"({int(bad.any(axis=1).sum())} of {len(bad)} rows are not finite). Drop or impute such rows."
    )


def _refuse_kinds(X):
    """Raise InputError for columns that NumPy would turn into meaningless numbers."""
    if isinstance(X, np.matrix):
        raise InputError("X is a np.matrix; pass np.asarray(X).")
    dtypes = list(X.dtypes) if hasattr(X, "columns") else [getattr(X, "dtype", None)]
    kinds = {getattr(dtype, "kind", "") for dtype in dtypes}
    if kinds & {"m", "M"}:
        raise InputError("X holds dates or times; convert them to numbers, such as (X - X.min()) / one day.")
    if "V" in kinds:
        raise InputError(f"X is a structured array of dtype {X.dtype}; pass one array of numbers, (n_samples, d).")
