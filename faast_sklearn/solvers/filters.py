"""Spectral filters, and the weights that they give."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from faast_sklearn.persistence.arrays import Array
from faast_sklearn.persistence.fields import Number, OneOf
from faast_sklearn.persistence.state import Stateful
from faast_sklearn.solvers.condition import LEAST_SPREAD, condition_estimate, safe_condition
from faast_sklearn.solvers.spectrum import as_column, as_number

__all__ = ["Solution", "condition_of", "pinv_filter", "ridge_filter", "solve_cholesky", "solve_pinv", "solve_ridge"]


@dataclass(frozen=True)
class Solution(Stateful):
    """Fast weights and what is known about the fit.

    Parameters
    ----------
    weights : torch.Tensor of shape (..., d, m), float64
    df : float or torch.Tensor of shape (...)
        Effective degrees of freedom ``Σ λ f(λ)``, the trace of the hat matrix.
    alpha : float or ndarray of shape (...)
        The regulariser that was used, in the solver's unit.
    method : {"cholesky", "tridiagonal", "eigh"}
        The factorisation that gave the weights.
    condition : float or torch.Tensor of shape (...)
        Condition number of the problem that was solved: ``(λ_max + penalty) / (λ_min + penalty)`` for ridge, ``λ_max``
        over the smallest eigenvalue kept for pinv; at least 1. Directions whose eigenvalue is zero up to rounding are
        dropped and do not count; "cholesky" drops none and gives an estimate.
    """

    weights: torch.Tensor
    df: float
    alpha: float
    method: str
    condition: float

    _state: ClassVar = {
        "weights": Array("dm"),
        "df": Number(),
        "alpha": Number(0),
        "method": OneOf("cholesky", "tridiagonal", "eigh"),
        "condition": Number(1),
    }


def ridge_filter(values: torch.Tensor, penalty: float | torch.Tensor) -> torch.Tensor:
    """Tikhonov's filter ``f(λ) = 1 / (λ + penalty)``, 0 for an eigenvalue of 0.

    Parameters
    ----------
    values : torch.Tensor of shape (..., r)
        Eigenvalues.
    penalty : float or torch.Tensor
        λ of the ridge objective ``‖K W − V‖² + λ ‖W‖²``; of shape (k, 1) for k penalties.

    Returns
    -------
    torch.Tensor of the shape that both broadcast to, such as (r,) or (k, r)

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.solvers.filters import ridge_filter
    >>> ridge_filter(torch.tensor([1.0, 3.0]), 1.0).tolist()
    [0.5, 0.25]
    """
    return (values.masked_fill(values <= 0, torch.inf) + penalty).reciprocal_()


def pinv_filter(values: torch.Tensor, rtol: float | torch.Tensor) -> torch.Tensor:
    """Truncation ``f(λ) = 1/λ`` where the singular value ``√λ`` exceeds ``rtol · √λ_max``, else 0.

    Parameters
    ----------
    values : torch.Tensor of shape (..., r)
        Eigenvalues, ascending.
    rtol : float or torch.Tensor
        Relative cutoff of the singular values of K, of shape (k, 1) for k cutoffs; the paper's is ``N ** -alpha``.

    Returns
    -------
    torch.Tensor of the shape that both broadcast to, such as (r,) or (k, r)

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.solvers.filters import pinv_filter
    >>> pinv_filter(torch.tensor([1.0, 4.0]), 0.9).tolist()
    [0.0, 0.25]
    """
    kept = values > values[..., -1:] * rtol**2
    return torch.where(kept, 1.0 / values, torch.zeros_like(values))


def solve_ridge(spectrum: Any, cross: torch.Tensor, alpha: Any) -> "Solution":
    """Ridge regression: minimise ``‖K W − V‖² + λ ‖W‖²`` with ``λ = alpha · trace(KᵀK) / d``.

    Parameters
    ----------
    spectrum : Spectrum
        Of ``KᵀK``.
    cross : torch.Tensor of shape (..., d, m)
        ``KᵀV``.
    alpha : float or ndarray of shape (...)
        Regulariser relative to the mean eigenvalue, so that it means the same at any scale of the features.

    Returns
    -------
    Solution
        At a cost of O(d r m).
    """
    penalty = as_column(alpha, spectrum.values) * as_column(spectrum.mean_value, spectrum.values)
    return _filtered(spectrum, cross, ridge_filter(spectrum.values, penalty), alpha)


def solve_pinv(spectrum: Any, cross: torch.Tensor, alpha: Any, n_samples: float) -> "Solution":
    """Truncated pseudo-inverse ``W = pinv(K; rtol = N ** -alpha) V`` of Bao et al. (section 3).

    Parameters
    ----------
    spectrum : Spectrum
        Of ``KᵀK``.
    cross : torch.Tensor of shape (..., d, m)
        ``KᵀV``.
    alpha : float or ndarray of shape (...)
        Exponent of the cutoff.
    n_samples : float
        N.

    Returns
    -------
    Solution
        At a cost of O(d r m).
    """
    cutoff = as_column(float(n_samples) ** -alpha, spectrum.values)
    return _filtered(spectrum, cross, pinv_filter(spectrum.values, cutoff), alpha)


def _filtered(spectrum, cross, f, alpha):
    weights = spectrum.vectors @ (f[..., None] * (spectrum.vectors.mT @ cross))
    df = as_number((spectrum.values * f).sum(-1))
    return Solution(weights, df, as_number(alpha), "eigh", as_number(condition_of(f)))


def condition_of(f: torch.Tensor) -> torch.Tensor:
    """Return the condition number of the matrix that a spectral filter inverts, over the directions that it keeps.

    Parameters
    ----------
    f : torch.Tensor of shape (..., r)
        From :func:`ridge_filter` or :func:`pinv_filter`: the inverse eigenvalues, 0 for those that are dropped.

    Returns
    -------
    torch.Tensor of shape (...)
        At least 1; 1 where nothing is kept.
    """
    if not f.shape[-1]:
        return f.new_ones(f.shape[:-1])
    most = f.amax(-1)
    return torch.where(most > 0, most / f.masked_fill(f <= 0, torch.inf).amin(-1), 1.0)


def solve_cholesky(
    scatter: Any, cross: torch.Tensor, alpha: float, n_samples: float | None = None
) -> "Solution | None":
    """Ridge regression for one given ``alpha`` without a decomposition; the same minimum as :func:`solve_ridge`.

    Parameters
    ----------
    scatter : Scatter
        Of the keys.
    cross : torch.Tensor of shape (d, m)
        ``KᵀV``.
    alpha : float
        As in :func:`solve_ridge`.
    n_samples : float, optional
        N, which bounds the rounding; the sum of the weights by default.

    Returns
    -------
    Solution or None
        At a cost of O(d³/3); None if the matrix is not positive definite in float64, or so ill-conditioned that
        the scores may lose digits. The eigendecomposition is then the better choice: it can tell small eigenvalues
        from rounding.
    """
    d = scatter.n_features
    penalty = alpha * scatter.trace() / d
    matrix = scatter.matrix()
    matrix.diagonal().add_(penalty)
    factor, info = torch.linalg.cholesky_ex(matrix)
    # A pivot at the level of rounding shows that digits are lost although the factorisation succeeded.
    pivots = factor.diagonal()
    if int(info) or not penalty > LEAST_SPREAD or float(pivots.min() / pivots.max()) ** 2 < 1e-13:
        return None
    inverse = torch.linalg.solve_triangular(factor, torch.eye(d, dtype=factor.dtype, device=factor.device), upper=False)
    condition = condition_estimate(matrix, inverse)
    if condition > safe_condition(scatter.weight if n_samples is None else n_samples):
        return None
    weights = torch.cholesky_solve(cross, factor)
    df = d - penalty * float((inverse * inverse).sum())
    return Solution(weights, max(df, 0.0), float(alpha), "cholesky", condition)
