"""Eigendecompositions of scatter matrices, one or many of one size at once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from faast_sklearn.solvers.condition import LEAST_SPREAD

__all__ = ["Spectrum", "above_rounding", "as_column", "as_number", "decompose"]


@dataclass(frozen=True)
class Spectrum:
    """Eigendecomposition of a scatter matrix without its null space.

    Parameters
    ----------
    values : torch.Tensor of shape (..., r), float64
        Positive eigenvalues, ascending; r is at most min(N, d). If many problems share r, some may be zero, and the
        filters drop them.
    vectors : torch.Tensor of shape (..., p, r), float64
        Orthonormal columns.
    n_features : int, optional
        Number of features d; p by default. It differs from p if keys are given by p coordinates in their own span.
    """

    values: torch.Tensor
    vectors: torch.Tensor
    n_features: Any = None

    def __post_init__(self):
        if self.n_features is None:
            object.__setattr__(self, "n_features", self.vectors.shape[-2])

    @property
    def mean_value(self) -> Any:
        """Mean of all d eigenvalues, zeros included: trace / d."""
        return as_number(self.values.sum(-1)) / self.n_features


def decompose(scatter: Any) -> "Spectrum":
    """Eigendecompose a scatter matrix on whichever side is smaller.

    Parameters
    ----------
    scatter : Scatter
        While it has fewer factor rows than features, the r×r Gram matrix of the rows is decomposed,
        O(r²d + r³); otherwise the d×d matrix, O(d³).

    Returns
    -------
    Spectrum
        Eigenvalues that are zero up to rounding are left out.

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.moments.scatter import Scatter
    >>> from faast_sklearn.solvers import decompose
    >>> rows = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
    >>> decompose(Scatter(2.0, torch.zeros(3, dtype=torch.float64), None, (rows,))).values.tolist()
    [4.0, 9.0]
    """
    if scatter.is_small:
        rows = scatter.factor_rows()
        values, left = torch.linalg.eigh(rows @ rows.T)
        kept = above_rounding(values, scatter.n_features)
        values, left = values[kept], left[:, kept]
        return Spectrum(values, (rows.T @ left) / values.sqrt())
    values, vectors = torch.linalg.eigh(scatter.matrix())
    kept = above_rounding(values, scatter.n_features)
    return Spectrum(values[kept], vectors[:, kept])


def above_rounding(values: torch.Tensor, n_features: int) -> torch.Tensor:
    """Return which eigenvalues of a positive semidefinite matrix are larger than rounding and underflow.

    Parameters
    ----------
    values : torch.Tensor of shape (..., r)
        Ascending.
    n_features : int
        d.

    Returns
    -------
    torch.Tensor of bool, shape (..., r)
    """
    # Rounding was seen to reach three units of the largest eigenvalue for small d and large N.
    largest = values[..., -1:].clamp(min=0)
    rounding = (largest * max(n_features, 8) * torch.finfo(torch.float64).eps).clamp(min=LEAST_SPREAD)
    # A negative eigenvalue shows the size of rounding errors, which have either sign and grow when rows are forgotten.
    return values > torch.maximum(rounding, -16.0 * values[..., :1])


def as_number(x: Any) -> Any:
    """Return a quantity with one value per problem: as a float without leading axes, as it is with them."""
    return x if np.ndim(x) else float(x)


def as_column(x: Any, values: Any) -> Any:
    """Return a quantity with one value per problem as a tensor with one more axis, along which it broadcasts."""
    return torch.as_tensor(x, dtype=values.dtype, device=values.device)[..., None]
