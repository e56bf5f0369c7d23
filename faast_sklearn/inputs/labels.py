"""What users pass as y and as weights: labels that can be sorted, and one weight per row."""

import numbers
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from faast_sklearn.errors import InputError, nearest, shortened
from faast_sklearn.inputs.columns import column_array
from faast_sklearn.inputs.datasets import is_class_label, refuse_unlabelled

__all__ = ["balanced_factors", "check_labels", "named_weights", "row_weights", "union_of_labels"]

_DROP = "drop samples that have no label, or give them one."


def union_of_labels(a: Any, b: Any) -> Any:
    """Return the sorted union of two arrays of labels, either of which may be empty.

    Raises
    ------
    InputError
        If labels of their types cannot be sorted together.
    """
    if not len(a) or not len(b):
        return a if len(a) else b
    if (a.dtype.kind in "US") != (b.dtype.kind in "US") and "O" not in (a.dtype.kind, b.dtype.kind):
        raise InputError(f"labels of type {a.dtype} and {b.dtype} do not mix; use one type for all.")
    try:
        return np.union1d(a, b)
    except TypeError as error:
        raise InputError(f"labels such as {a[0]!r} and {b[0]!r} do not mix; use one type for all.") from error


def check_labels(y: Any, name: Any) -> Any:
    """Return labels as a one-dimensional array that can be sorted.

    Raises
    ------
    InputError
        If y is missing, continuous, not finite, has several columns or holds labels that cannot be ordered. The
        message names the first missing label.
    """
    if y is None:
        raise InputError("This estimator requires y to be passed, but the target y is None.")
    if isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype.kind in "biuU" and len(y):
        return y  # nothing can be wrong with these, and checking costs more than learning a few rows
    column = getattr(y, "column_name", None)  # of a Hugging Face dataset
    if column is not None and is_class_label(y.source, column):
        y = np.asarray(y[:])
        refuse_unlabelled(y, column)
    y = column_array(_only_column(y), name, _DROP)
    if isinstance(y, np.ndarray) and y.dtype.kind == "T":  # numpy's strings of any length
        y = y.astype(object)
    if isinstance(y, (str, bytes, Mapping, Set, Iterator)) and not hasattr(y, "toarray"):
        raise InputError(f"{name} is one {type(y).__name__}; pass a list or array of labels, one for each sample.")
    if hasattr(y, "toarray"):
        raise InputError(f"{name} is sparse; pass {name}.toarray().ravel().")
    if isinstance(y, (list, tuple)):
        _refuse_mixed(y, name)
    try:
        y = column_or_1d(y, warn=True)
        if y.dtype.kind in "OmM":
            _refuse_missing(y, name)
        if len(y) and isinstance(y[0], bytes):
            raise TypeError  # as scikit-learn does from 1.7 on; 1.6 only warns
        assert_all_finite(y, input_name=name)
        check_classification_targets(y)
        if y.dtype.kind == "O":
            np.unique(y)
    except InputError:
        raise
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in y})
        if len(kinds) == 1:
            raise InputError(f"{name} has labels of type {kinds[0]}; use strings, integers or booleans.") from error
        raise InputError(f"{name} mixes labels that cannot be ordered ({', '.join(kinds)}); use one type.") from error
    except ValueError as error:
        if "label type: unknown" in str(error):
            kinds = sorted({type(label).__name__ for label in y})
            raise InputError(
                f"Unknown label type: {name} holds {', '.join(kinds)}; use strings, integers or booleans."
            ) from error
        # Some messages of scikit-learn have the whole array after their first line.
        message = str(error).partition("\n")[0]
        raise InputError(message.replace("y should", f"{name} should", 1)) from error
    return y


def _only_column(y):
    """Return the column of a one-column table, with its type; return anything else unchanged."""
    if hasattr(y, "columns") and getattr(y, "shape", ())[1:] == (1,):
        return y.column(0) if hasattr(y, "column_names") else y[y.columns[0]]
    return y


def _refuse_mixed(y, name):
    """Raise InputError for strings among other labels: NumPy would turn all of them into strings."""
    n_strings = sum(isinstance(label, str) for label in y)
    if 0 < n_strings < len(y):
        _refuse_missing(y, name)
        kinds = sorted({type(label).__name__ for label in y})
        raise InputError(f"{name} mixes labels that cannot be ordered ({', '.join(kinds)}); use one type.")


def _refuse_missing(labels, name):
    """Raise InputError for a label that is None, NA, NaN or NaT."""
    for i, label in enumerate(labels):
        # pandas.NA and NaT cannot be compared without importing pandas; their type names are stable.
        missing = label is None or type(label).__name__ in ("NAType", "NaTType")
        if missing or (isinstance(label, (float, np.datetime64, np.timedelta64)) and label != label):
            told = f"Input {name} contains NaN: " if isinstance(label, float) else ""
            raise InputError(f"{told}{name}[{i}] is {label}; {_DROP}")


def balanced_factors(counts: Any) -> Any:
    """Return one factor per class that makes the total weights ``counts`` equal; 1 for a class of weight 0.

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.inputs.labels import balanced_factors
    >>> balanced_factors(np.array([1.0, 3.0, 0.0])).round(3).tolist()
    [2.0, 0.667, 1.0]
    """
    seen = counts > 0
    return np.where(seen, counts.sum() / (np.where(seen, counts, 1.0) * max(seen.sum(), 1)), 1.0)


def row_weights(sample_weight: Any, n: Any, class_weight: Any, classes: Any, codes: Any, stream: bool = False) -> Any:
    """Return the weight of each row, or None if no weights are given.

    Raises
    ------
    InputError
        If weights are not finite numbers of at least 0, or ``class_weight`` has a key that is not a label. In a
        ``stream`` other labels may follow, so only keys that no label can equal are refused.
    """
    if sample_weight is None and class_weight is None:
        return None
    if sample_weight is None:
        weight = np.ones(n)
    else:
        weight = _numbers(sample_weight)
        if weight.ndim == 0:
            weight = np.full(n, float(weight))
        if weight.shape != (n,):
            raise InputError(f"sample_weight has shape {weight.shape}, expected ({n},).")
        bad = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
        if len(bad):
            raise InputError(
                f"sample_weight[{bad[0]}] is {weight[bad[0]]}; weights are finite and not negative "
                "(to take a sample away, use forget)."
            )
    if class_weight is None:
        return weight
    if class_weight == "balanced":
        factors = balanced_factors(np.bincount(codes, weights=weight, minlength=len(classes)))
    else:
        _refuse_unmatched(class_weight, classes.tolist(), stream)
        try:
            factors = np.array([float(class_weight.get(label, 1.0)) for label in classes.tolist()])
        except (TypeError, ValueError):
            factors = np.array([np.nan])
        if (factors < 0).any() or not np.isfinite(factors).all():
            raise ValueError(
                f"class_weight must hold finite weights that are not negative, got {shortened(class_weight, 200)}."
            )
    return weight * factors[codes]


def named_weights(class_weight: dict, classes: np.ndarray) -> Any:
    """Return class weights with an entry for each class, to use with samples of only some classes.

    Parameters
    ----------
    class_weight : dict
    classes : ndarray of shape (c,)
        All classes.

    Raises
    ------
    InputError
        If ``class_weight`` has a key that is not a class.
    """
    _refuse_unmatched(class_weight, classes.tolist(), stream=False)
    return {**dict.fromkeys(classes.tolist(), 1.0), **class_weight}


def _refuse_unmatched(class_weight, labels, stream):
    """Raise InputError for keys that no label can equal and, if a label has no weight, for all that are not labels."""
    known = set(labels)
    unmatched = [key for key in class_weight if key not in known]
    never = [key for key in unmatched if labels and not _could_equal(key, labels)]
    unweighted = [label for label in labels if label not in class_weight]
    if not never and (stream or not unmatched or not unweighted):
        return
    key = (never or unmatched)[0]
    near = nearest(key, labels)
    meant = "." if near is None else f"; did you mean {near!r}?"
    raise InputError(
        f"class_weight names {shortened(key)} ({type(key).__name__}), which is not a label; labels are "
        f"{shortened(labels, 120)} ({type(labels[0]).__name__}){meant}"
    )


def _could_equal(key, labels):
    """Whether a label of a later batch may equal a key."""
    if isinstance(labels[0], str):
        return isinstance(key, str)
    if not isinstance(labels[0], numbers.Real):
        return True  # dates and the like
    if not isinstance(key, (numbers.Real, np.bool_)):
        return False
    if all(isinstance(label, bool) for label in labels):
        return float(key) in (0.0, 1.0)
    return float(key).is_integer() or not all(isinstance(label, numbers.Integral) for label in labels)


def _numbers(sample_weight):
    if isinstance(sample_weight, (Mapping, Set, Iterator)) or hasattr(sample_weight, "toarray"):
        kind = type(sample_weight).__name__
        raise InputError(f"sample_weight is a {kind}; pass a list or array of numbers, one for each sample.")
    try:
        weight = np.asarray(sample_weight)
        if weight.dtype.kind in "cmM":
            raise TypeError(f"{weight.dtype} is not a weight")
        return weight.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"sample_weight must be numbers, one for each sample ({error}).") from error
