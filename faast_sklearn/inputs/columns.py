"""Columns and tables of pandas, polars and pyarrow as NumPy arrays of the same type, without importing the three."""

from typing import Any

import numpy as np
import torch

from faast_sklearn.errors import InputError, shortened

__all__ = ["column_array", "vectors_in", "without_arrow"]


def column_array(values: Any, name: str, remedy: str) -> Any:
    """Convert a column of pandas, polars or pyarrow to an array of its own type; return anything else unchanged.

    Nullable integers and booleans keep their type; scikit-learn would turn them into floats or objects.

    Parameters
    ----------
    values : object
        A Series, an extension array, a polars or pyarrow column; or anything else.
    name : str
        Name of the column in messages.
    remedy : str
        What the message advises for a missing value.

    Returns
    -------
    object
        An ndarray of shape (n,), or ``values``.

    Raises
    ------
    InputError
        If a value is missing; the message gives its index.

    Examples
    --------
    >>> import pandas as pd
    >>> from faast_sklearn.inputs.columns import column_array
    >>> column_array(pd.Series([3, 1], dtype="Int64"), "y", "drop it.")
    array([3, 1])
    """
    library = type(values).__module__.partition(".")[0]
    if library == "pandas" and getattr(values, "ndim", 0) == 1 and not isinstance(values.dtype, np.dtype):
        _refuse_missing(values.isna(), values, name, remedy)
        own = getattr(values.dtype, "numpy_dtype", None)  # of masked and of arrow columns
        return np.asarray(values) if own is None or np.dtype(own).kind == "O" else values.to_numpy(dtype=own)
    if library == "polars" and hasattr(values, "is_null"):
        _refuse_missing(values.is_null(), values, name, remedy)
        return values.to_numpy()
    if library == "pyarrow" and hasattr(values, "null_count"):
        _refuse_missing(values.is_null(), values, name, remedy)
        return np.asarray(values)
    return values


def _refuse_missing(missing, values, name, remedy):
    missing = np.asarray(missing, dtype=bool)
    if missing.any():
        i = int(missing.argmax())
        value = values.iloc[i] if hasattr(values, "iloc") else values[i]
        raise InputError(f"Input {name} contains NaN: {name}[{i}] is {value}; {remedy}")


def without_arrow(X: Any) -> Any:
    """Convert a pyarrow column or one-column table to an array, a wider one to a DataFrame; return other X as is."""
    if type(X).__module__.partition(".")[0] != "pyarrow":
        return X
    if hasattr(X, "column_names"):
        return X.to_pandas() if X.num_columns != 1 else np.asarray(X.column(0))
    return np.asarray(X) if hasattr(X, "null_count") else X


def vectors_in(X: Any) -> Any:
    """Stack a column whose cells are vectors: a Series, a one-column table or an array of lists or arrays.

    Parameters
    ----------
    X : object

    Returns
    -------
    object
        An ndarray of shape (n, d), or X itself if it holds anything else.

    Raises
    ------
    InputError
        If the vectors differ in length or a cell is not a vector; the message names the first such cell.

    Examples
    --------
    >>> import pandas as pd
    >>> from faast_sklearn.inputs.columns import vectors_in
    >>> vectors_in(pd.DataFrame({"vector": [[1.0, 2.0], [3.0, 4.0]]}))
    array([[1., 2.],
           [3., 4.]])
    """
    X = without_arrow(X)
    column = X
    if hasattr(X, "columns") and getattr(X, "shape", ())[1:] == (1,):
        column = X[X.columns[0]]
    elif hasattr(X, "columns"):
        return X
    if hasattr(column, "to_numpy"):
        column = column.to_numpy()
    if not isinstance(column, np.ndarray):
        return X
    if column.ndim == 2 and column is not X:
        return column if column.dtype != object and column.shape[1] > 1 else X  # polars stacks equally long lists
    if column.dtype != object or column.shape[1:] not in ((), (1,)) or not column.size:
        return X
    cells = column.reshape(-1)
    if not isinstance(cells[0], (list, tuple, np.ndarray, torch.Tensor)):
        return X
    rows = [_vector(i, cell) for i, cell in enumerate(cells)]
    other = next((i for i, row in enumerate(rows) if len(row) != len(rows[0])), None)
    if other is not None:
        raise InputError(
            f"X[{other}] has {len(rows[other])} numbers and X[0] has {len(rows[0])}; all must be equally long."
        )
    return np.stack(rows)


def _vector(i, cell):
    try:
        row = np.asarray(cell.detach().cpu() if isinstance(cell, torch.Tensor) else cell)
    except (TypeError, ValueError):
        row = np.empty(0, dtype=object)
    if row.ndim != 1 or row.dtype.kind not in "biuf":
        raise InputError(
            f"X[{i}] is {shortened(cell)} ({type(cell).__name__}), expected a vector of numbers; drop or fill such "
            "samples."
        )
    return row
