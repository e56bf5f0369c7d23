"""Rows of unit length: what ``normalize=True`` does to features before the moments."""

from typing import Any

import numpy as np
import torch

__all__ = ["unit_rows"]


def unit_rows(X: Any, widths: Any = ()) -> Any:
    """Scale rows to unit L2 norm in float64; zero rows stay zero.

    Parameters
    ----------
    X : ndarray or torch.Tensor of shape (n, d)
    widths : sequence of int, default=()
        Widths of blocks that are each scaled to unit length; by default whole rows are.

    Returns
    -------
    ndarray or torch.Tensor of shape (n, d), float64
        In a lower precision, results would depend on how rows are batched.

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.features.normalize import unit_rows
    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    if len(widths) > 1:
        starts = np.cumsum([0, *widths])
        parts = [unit_rows(X[:, start : start + width]) for start, width in zip(starts, widths, strict=False)]
        return np.concatenate(parts, 1) if isinstance(X, np.ndarray) else torch.cat(parts, 1)
    X = X.astype(np.float64, copy=False) if isinstance(X, np.ndarray) else X.to(torch.float64)
    largest = abs(X).max(1) if isinstance(X, np.ndarray) else abs(X).amax(1)
    X = X / (largest + (largest == 0))[:, None]  # squares neither overflow nor vanish
    norm = (X * X).sum(1) ** 0.5
    return X / (norm + (norm == 0))[:, None]
