"""The strength of a filter, chosen by generalised cross-validation from the statistics alone."""

import math
from typing import Any

import numpy as np
import torch

from faast_sklearn.solvers.condition import LEAST_SPREAD
from faast_sklearn.solvers.filters import pinv_filter, ridge_filter
from faast_sklearn.solvers.spectrum import as_column, as_number

__all__ = ["gcv_error", "gcv_pinv", "gcv_ridge", "gcv_tridiagonal", "residual_share", "targets_square"]

# Twenty steps per decade cost little beside the decomposition, and the curve is smooth between them.
_RIDGE_ALPHAS = np.logspace(-6, 4, 201)
_MOST_DF = 0.6  # as a share of N; see gcv_ridge
_EXACT = 1e-9  # a fit with a smaller residual, as a share of the targets' squared norm, counts as exact
_PINV_ALPHAS = np.linspace(0.0, 1.5, 151)
# If each candidate costs a solve, every fifth is tried first, and then those beside the best.
_STRIDE = 5


def residual_share(
    df: float | torch.Tensor, n_samples: float | torch.Tensor, n_rows: float | torch.Tensor, least: float = 1e-3
) -> Any:
    """Return the mean ratio of a row's residual in the fit to its residual when it is left out: ``1 − h``.

    Rows of equal weight have the mean leverage ``h = df / N``. A row's leverage is proportional to its weight while it
    is small, and never exceeds one. For n rows of effective size N, ``1 − h = (1 − b df / N)^(1 / b)`` with
    ``b = 1.5 N / n − 0.5``, which is 1 for equal weights; to first order in df the result does not depend on b.

    Parameters
    ----------
    df : float or torch.Tensor
        Degrees of freedom of the fit.
    n_samples, n_rows : float or torch.Tensor
        Effective size N, and number of rows n.
    least : float, default=1e-3
        The smallest share that is returned.

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
    Wahba, 1979), where the 1 is for the intercept. With unequal weights, :func:`residual_share` takes the place of
    ``1 − (df + 1) / N``.

    If the targets can be fitted exactly although there are more rows than their rank, rows are copies of one another,
    such as samples that were drawn or learnt twice. N is then at most the rank (plus one with an intercept).

    Candidates with more than 0.6 N degrees of freedom are refused: close to interpolation numerator and denominator
    vanish together, and with few noisy samples the quotient has spurious minima there (in one of ten draws of 16 texts
    per class, at a cost of five points of accuracy).

    Parameters
    ----------
    spectrum : Spectrum
    cross : torch.Tensor of shape (..., d, m)
    total : float
        ``trVᵀV`` of the (centred, if ``intercept``) targets.
    n_samples : float
        Effective size N: the number of rows of equal weight that would be as informative.
    n_rows : float, optional
        Number of rows; N by default.
    intercept : bool, default=True
    alphas : ndarray of shape (k,)
        Candidates.
    prior : (float, float), optional
        Median and spread in decades of a log-normal prior: ``(log₁₀(alpha / median) / spread)² / (N m)`` is added to
        log GCV, so that the prior weighs as much as one of the N m numbers and decides where the data do not.

    Returns
    -------
    alpha : float or ndarray of shape (...)
        The candidate with the least GCV, with the prior if there is one; of equal ones the largest.
    scores : ndarray of shape (..., k)
        GCV of each candidate; infinite if it is refused.
    """
    penalties = as_column(alphas, spectrum.values) * as_column(spectrum.mean_value, spectrum.values)[..., None]
    scores, n = _gcv(spectrum, cross, total, n_samples, n_rows or n_samples, intercept, ridge_filter, penalties)
    return _least(alphas, _posterior(scores, alphas, prior, n * cross.shape[-1]), strong=True), scores


def gcv_tridiagonal(
    ridge: Any,
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
    ridge : ReducedRidge
    total, n_samples, n_rows, intercept, prior
        As in :func:`gcv_ridge`.

    Returns
    -------
    float
    """
    form, n_rows = ridge.form, n_rows or n_samples
    rank = torch.tensor([len(form.values) + float(intercept)])
    # Whether the fit is exact matters only if the rank is less than N; the matrix is regular then.
    exact = torch.tensor([float(rank) < n_samples and total - ridge.sums(0.0)[0] <= _EXACT * total])

    def posterior(alphas):
        penalties = alphas * form.mean_value
        explained, shrinkage = torch.tensor([ridge.sums(penalty) for penalty in penalties]).T
        df = (form.values / (form.values + torch.as_tensor(penalties)[:, None])).sum(1)
        scores, n = _criterion(df, total - explained - shrinkage, exact, rank, n_samples, n_rows, intercept)
        return _posterior(scores, alphas, prior, n * ridge.n_targets)

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
    """Generalised cross-validation of :func:`solve_pinv` over a path of exponents, as in :func:`gcv_ridge`.

    Returns
    -------
    alpha : float or ndarray of shape (...)
        The exponent with the least GCV; of equal ones the smallest, which truncates most.
    scores : ndarray of shape (..., k)
    """
    cutoffs = as_column(float(n_samples) ** -np.asarray(alphas), spectrum.values)
    scores, _ = _gcv(spectrum, cross, total, n_samples, n_rows or n_samples, intercept, pinv_filter, cutoffs)
    return _least(alphas, scores, strong=False), scores


def targets_square(counts: np.ndarray, intercept: bool) -> float:
    """Return ``trVᵀV`` of one-hot targets from the weight of each class; targets are centred if ``intercept``."""
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
        It can be compared between features of the same samples. It is infinite close to interpolation, where GCV is
        meaningless.
    """
    n, total = moments.n_samples, targets_square(moments.counts, intercept)
    scatter = moments.scatter if intercept else moments.scatter.about_origin()
    explained = 2.0 * (solution.weights * moments.class_sums(centred=intercept).T).sum()
    rss = float(total - explained + scatter.squares(solution.weights).sum())
    if residual_share(solution.df, n, moments.n_rows) < 1.0 - _MOST_DF:
        return math.inf
    return max(rss, 0.0) / n / residual_share(solution.df + intercept, n, moments.n_rows) ** 2


def _gcv(spectrum, cross, total, n_samples, n_rows, intercept, spectral_filter, strengths):
    """Return the GCV of strengths (..., k, 1), an ndarray of shape (..., k), and the N that was used, (..., 1)."""
    values = spectrum.values
    if not values.shape[-1]:
        shape = values.shape[:-1]
        return np.full((*shape, strengths.shape[-2]), np.inf), np.full((*shape, 1), float(n_samples))
    # Fourth powers of features could overflow float64, so everything is divided by a power of four near the largest
    # eigenvalue, which changes no digit.
    root = torch.exp2((torch.log2(values[..., -1:].clamp(min=LEAST_SPREAD)) / 2).round())
    power = (spectrum.vectors.mT @ cross / root[..., None]).square().sum(-1)
    f = spectral_filter(values[..., None, :], strengths).mul_(root[..., None]).mul_(root[..., None])
    values = values / root / root
    exact = total - torch.where(values > 0, power / values, 0.0).sum(-1, keepdim=True) <= _EXACT * total
    rank = (values > 0).sum(-1, keepdim=True) + float(intercept)
    # Matrix products avoid further arrays as large as f, which holds the filters of all candidates.
    sums = f @ torch.stack([values, 2.0 * power], -1)
    df, explained = sums[..., 0], sums[..., 1]
    rss = total - explained + (f.square_() @ (values * power)[..., None])[..., 0]
    return _criterion(df, rss, exact, rank, n_samples, n_rows, intercept)


def _criterion(df, rss, exact, rank, n_samples, n_rows, intercept):
    """Return GCV of fits, and N; if the fit is exact, there are no more samples than the rank."""
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
