"""The strength of a filter by generalised cross-validation, from the statistics alone."""

import math
from typing import Any

import numpy as np
import torch

from faast_sklearn.solvers.condition import LEAST_SPREAD
from faast_sklearn.solvers.filters import pinv_filter, ridge_filter
from faast_sklearn.solvers.spectrum import as_column, as_number

__all__ = ["gcv_error", "gcv_pinv", "gcv_ridge", "gcv_tridiagonal", "residual_share", "targets_square"]

# Twenty steps a decade cost nothing beside the decomposition and leave the curve smooth.
_RIDGE_ALPHAS = np.logspace(-6, 4, 201)
_MOST_DF = 0.6  # of the samples; see gcv_ridge
_EXACT = 1e-9  # of the targets' squared norm: what is left of them where the fit goes through all rows
_PINV_ALPHAS = np.linspace(0.0, 1.5, 151)
# Where each candidate costs a solve, every fifth is tried, and then those beside the best.
_STRIDE = 5


def residual_share(
    df: float | torch.Tensor, n_samples: float | torch.Tensor, n_rows: float | torch.Tensor, least: float = 1e-3
) -> Any:
    """Return what is left of a row's own left-out residual when the row is in the fit: ``1 − h``, on average.

    Rows of equal weight have the mean leverage ``h = df / N``. Among unequal ones leverage goes with the weight while
    it is small, and no row has one above one. Of n rows that say as much as N, ``1 − h = (1 − b df / N)^(1 / b)`` with
    ``b = 1.5 N / n − 0.5``: 1 for equal weights, and first-order the same for all.

    Parameters
    ----------
    df : float or torch.Tensor
        Degrees of freedom of the fit.
    n_samples, n_rows : float or torch.Tensor
        N and n.
    least : float, default=1e-3
        No smaller share is returned.

    Returns
    -------
    float or torch.Tensor

    Examples
    --------
    >>> from faast_sklearn.solvers.gcv import residual_share
    >>> residual_share(20.0, 100.0, 100.0), round(residual_share(20.0, 50.0, 100.0), 2)
    (0.8, 0.66)
    """
    numbers = (torch.as_tensor(x, dtype=torch.float64) for x in (df, n_samples, n_rows))
    df_, n_samples, n_rows = torch.broadcast_tensors(*numbers)
    share = df_ / n_samples.to(df_.device)
    bend = 1.5 * (n_samples / n_rows).clamp(max=1.0).to(df_.device) - 0.5
    straight = (bend.abs() < 1e-9).to(bend.dtype)
    bent = (1.0 - bend * share).clamp(min=0.0) ** (1.0 / (bend + straight))
    left = torch.where(straight > 0, (-share).exp(), torch.where(bend == 1.0, 1.0 - share, bent))
    left = left.clamp(min=least, max=1.0)
    return left if isinstance(df, torch.Tensor) else float(left)


def gcv_ridge(
    spectrum: Any,
    cross: torch.Tensor,
    total: float,
    n_samples: float,
    *,
    n_rows: float | None = None,
    intercept: bool = True,
    alphas: np.ndarray = _RIDGE_ALPHAS,
    prior: Any = None,
) -> tuple:
    """Generalised cross-validation of :func:`solve_ridge` over a path of ``alphas``, from the statistics alone.

    With ``trVᵀV`` the residual sum of squares needs no second pass over the data:
    ``RSS = trVᵀV − Σ (2f − λf²) ‖uᵀC‖²``, and ``GCV = (RSS / N) / (1 − (df + 1) / N)²`` (Golub, Heath and
    Wahba, 1979), the 1 for the intercept; :func:`residual_share` has what it is for unequal weights.

    Rows that can be fitted exactly although there are more of them than dimensions of theirs are copies, as those of
    samples that were drawn again or learnt twice, and tell nothing of one another: they count as that many.

    Candidates that spend more than six tenths of the samples as degrees of freedom are refused: close to
    interpolation numerator and denominator vanish together, and with few noisy samples the quotient has spurious
    minima there (seen in one draw of ten of 16 texts a class, at a cost of five points of accuracy).

    Parameters
    ----------
    spectrum : Spectrum
    cross : torch.Tensor of shape (..., d, m)
    total : float
        ``trVᵀV`` of the (centred, if ``intercept``) targets.
    n_samples : float
        N, the number of rows of equal weight that say as much.
    n_rows : float, optional
        Number of rows; N by default.
    intercept : bool, default=True
    alphas : ndarray of shape (k,)
        Candidates.
    prior : (float, float), optional
        Median and spread in decades of a log-normal prior, ``(log₁₀(alpha / median) / spread)² / (N m)`` added to
        log GCV: what to take while N is too small for the data to tell. It counts as much as one number of the N m.

    Returns
    -------
    alpha : float or ndarray of shape (...)
        The candidate of least GCV, with the prior if there is one; of equals the largest.
    scores : ndarray of shape (..., k)
        GCV of each; infinite where refused.
    """
    penalties = as_column(alphas, spectrum.values) * as_column(spectrum.mean_value, spectrum.values)[..., None]
    scores, n = _gcv(spectrum, cross, total, n_samples, n_rows or n_samples, intercept, ridge_filter, penalties)
    return _least(alphas, _posterior(scores, alphas, prior, n * cross.shape[-1]), strong=True), scores


def gcv_tridiagonal(
    reduced: Any,
    rotated: np.ndarray,
    total: float,
    n_samples: float,
    *,
    n_rows: float | None = None,
    intercept: bool = True,
    prior: Any = None,
) -> float:
    """Choose alpha as :func:`gcv_ridge` does, from a tridiagonal form.

    Every fifth candidate is tried, a quarter of a decade apart, and then those beside the best: each costs a solve, and
    df and RSS vary over decades.

    Parameters
    ----------
    reduced : Tridiagonal
    rotated : ndarray of shape (d, m)
        From :meth:`Tridiagonal.rotated`.
    total, n_samples, n_rows, intercept, prior
        As in :func:`gcv_ridge`.

    Returns
    -------
    float
    """
    values, n_rows = reduced.values, n_rows or n_samples
    exact = torch.tensor([total - reduced.sums(rotated, 0.0)[0] <= _EXACT * total])
    rank = torch.tensor([len(values) + float(intercept)])

    def posterior(alphas):
        penalties = alphas * reduced.mean_value
        explained, shrinkage = torch.tensor([reduced.sums(rotated, penalty) for penalty in penalties]).T
        df = (values / (values + torch.as_tensor(penalties)[:, None])).sum(1)
        scores, n = _criterion(df, total - explained - shrinkage, exact, rank, n_samples, n_rows, intercept)
        return _posterior(scores, alphas, prior, n * rotated.shape[1])

    best = _STRIDE * _least_at(posterior(_RIDGE_ALPHAS[::_STRIDE]), strong=True)
    near = _RIDGE_ALPHAS[max(best - _STRIDE + 1, 0) : best + _STRIDE]
    return _least(near, posterior(near), strong=True)


def gcv_pinv(
    spectrum: Any,
    cross: Any,
    total: Any,
    n_samples: Any,
    *,
    n_rows: Any = None,
    intercept: bool = True,
    alphas: Any = _PINV_ALPHAS,
) -> tuple:
    """Generalised cross-validation of :func:`solve_pinv` over its exponent; as :func:`gcv_ridge`.

    Returns
    -------
    alpha : float or ndarray of shape (...)
        The exponent of least GCV; of equals the smallest, which truncates most.
    scores : ndarray of shape (..., k)
    """
    cutoffs = as_column(float(n_samples) ** -np.asarray(alphas), spectrum.values)
    scores, _ = _gcv(spectrum, cross, total, n_samples, n_rows or n_samples, intercept, pinv_filter, cutoffs)
    return _least(alphas, scores, strong=False), scores


def targets_square(counts: np.ndarray, intercept: bool) -> float:
    """Return ``trVᵀV`` of one-hot targets, centred if ``intercept``, from the weight of each class."""
    weight = counts.sum()
    return float(weight - intercept * (counts * (counts / weight)).sum())


def gcv_error(solution: Any, moments: Any, *, intercept: bool = True) -> float:
    """Return the generalised cross-validation error of weights that were solved for one-hot targets.

    Parameters
    ----------
    solution : Solution
    moments : ClassMoments
        What it was computed from.
    intercept : bool, default=True
        Whether keys and targets were centred.

    Returns
    -------
    float
        Comparable between features of the same samples; infinite close to interpolation, where it means nothing.
    """
    n, total = moments.n_samples, targets_square(moments.counts, intercept)
    scatter = moments.scatter if intercept else moments.scatter.about_origin()
    explained = 2.0 * (solution.weights * moments.class_sums(centred=intercept).T).sum()
    rss = float(total - explained + scatter.squares(solution.weights).sum())
    if residual_share(solution.df, n, moments.n_rows) < 1.0 - _MOST_DF:
        return math.inf
    return max(rss, 0.0) / n / residual_share(solution.df + intercept, n, moments.n_rows) ** 2


def _gcv(spectrum, cross, total, n_samples, n_rows, intercept, spectral_filter, strengths):
    """Return the criterion of strengths (..., k, 1), an ndarray of shape (..., k), and the N it went by, (..., 1)."""
    values = spectrum.values
    if not values.shape[-1]:
        shape = values.shape[:-1]
        return np.full((*shape, strengths.shape[-2]), np.inf), np.full((*shape, 1), float(n_samples))
    # Fourth powers of features would leave float64 early, so everything is in units of the largest eigenvalue, or of
    # the power of four near it, which leaves all digits as they are.
    root = torch.exp2((torch.log2(values[..., -1:].clamp(min=LEAST_SPREAD)) / 2).round())
    power = (spectrum.vectors.mT @ cross / root[..., None]).square().sum(-1)
    f = spectral_filter(values[..., None, :], strengths).mul_(root[..., None]).mul_(root[..., None])
    values = values / root / root
    exact = total - torch.where(values > 0, power / values, 0.0).sum(-1, keepdim=True) <= _EXACT * total
    rank = (values > 0).sum(-1, keepdim=True) + float(intercept)
    # Products over the spectrum instead of sums of products: the filters of all candidates are the largest array.
    sums = f @ torch.stack([values, 2.0 * power], -1)
    df, explained = sums[..., 0], sums[..., 1]
    rss = total - explained + (f.square_() @ (values * power)[..., None])[..., 0]
    return _criterion(df, rss, exact, rank, n_samples, n_rows, intercept)


def _criterion(df, rss, exact, rank, n_samples, n_rows, intercept):
    n = torch.where(exact, rank.clamp(max=n_samples), float(n_samples))
    n_rows = torch.where(exact & (rank < n_samples), n, float(n_rows))
    scores = rss.clamp(min=0.0) / n / residual_share(df + float(intercept), n, n_rows).square()
    refused = residual_share(df, n, n_rows) < 1.0 - _MOST_DF
    return scores.masked_fill(refused, torch.inf).cpu().numpy(), n.cpu().numpy()


def _posterior(scores, alphas, prior, numbers):
    """Multiply scores (..., k) by the prior's factor, for as many ``numbers`` as the data have."""
    if prior is None:
        return scores
    median, spread = prior
    distance = np.log10(np.maximum(alphas, np.finfo(float).tiny) / median) / spread
    return scores * np.exp(distance**2 / numbers)


def _least(alphas, scores, strong):
    """Return the candidate of least score; of those equal up to rounding the last if ``strong``, else the first."""
    return as_number(np.asarray(alphas)[_least_at(scores, strong)])


def _least_at(scores, strong):
    least = scores <= scores.min(-1, keepdims=True) * (1 + 1e-9)
    return least.shape[-1] - 1 - least[..., ::-1].argmax(-1) if strong else least.argmax(-1)
