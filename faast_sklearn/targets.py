"""What users pass as y and as weights: labels that can be sorted, and one weight a row."""

import numpy as np
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from faast_sklearn.errors import InputError

__all__ = ["check_labels", "row_weights", "union_of_labels"]


def union_of_labels(a, b):
    """Return the sorted union of two arrays of labels, either of which may be empty.

    Raises
    ------
    InputError
        If their types do not mix.
    """
    if not len(a) or not len(b):
        return a if len(a) else b
    if (a.dtype.kind in "US") != (b.dtype.kind in "US") and "O" not in (a.dtype.kind, b.dtype.kind):
        raise InputError(f"labels of type {a.dtype} and {b.dtype} do not mix; use one type for all.")
    try:
        return np.union1d(a, b)
    except TypeError as error:
        raise InputError(f"labels such as {a[0]!r} and {b[0]!r} do not mix; use one type for all.") from error


def check_labels(y, name):
    """Return labels as a one-dimensional array that can be sorted.

    Raises
    ------
    InputError
        If y is missing, continuous, not finite, of several columns or of types that cannot be ordered.
    """
    if y is None:
        raise InputError("This estimator requires y to be passed, but the target y is None.")
    if isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype.kind in "biuU" and len(y):
        return y  # nothing can be wrong with these, and checking costs more than learning a few rows
    try:
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name=name)
        check_classification_targets(y)
        if y.dtype.kind == "O":
            np.unique(y)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in y})
        raise InputError(f"{name} mixes labels that cannot be ordered ({', '.join(kinds)}); use one type.") from error
    except ValueError as error:
        raise InputError(str(error)) from error
    return y


def row_weights(sample_weight, n, class_weight, classes, codes):
    """Return the weight of each row, or None where all are 1."""
    if sample_weight is None and class_weight is None:
        return None
    if sample_weight is None:
        weight = np.ones(n)
    else:
        weight = np.asarray(sample_weight, dtype=np.float64)
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
        counts = np.bincount(codes, weights=weight, minlength=len(classes))
        factors = weight.sum() / (np.maximum(counts, np.finfo(float).tiny) * max((counts > 0).sum(), 1))
    else:
        factors = np.array([float(class_weight.get(label, 1.0)) for label in classes.tolist()])
        if (factors < 0).any() or not np.isfinite(factors).all():
            raise ValueError(f"class_weight must hold finite weights that are not negative, got {class_weight!r}.")
    return weight * factors[codes]
