"""Closed-form fast weights from moments: pure functions, usable without an estimator.

All of them minimise, over ``W`` of shape (d, m), a spectrally filtered least-squares problem

    ‖K W − V‖²  with  W = U f(Λ) Uᵀ KᵀV,   KᵀK = U Λ Uᵀ,

and differ in the filter f alone: :func:`ridge_filter` is Tikhonov's ``1 / (λ + penalty)``, :func:`pinv_filter`
truncates, which is the pseudo-inverse of Bao et al. (arXiv 2605.04651, section 3). ``KᵀK`` comes as a
:class:`~faast_sklearn.moments.scatter.Scatter`, ``KᵀV`` as an array: no example is needed.

Everything from a :class:`Spectrum` on takes many problems of one size at once: tensors with leading axes, written
``...`` below. Numbers that one problem has one of (a strength, a mean eigenvalue) are floats without leading axes and
arrays of shape ``(...)`` with them.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from faast_sklearn.persistence.arrays import Array
from faast_sklearn.persistence.fields import Number, OneOf
from faast_sklearn.persistence.state import Stateful
from faast_sklearn.solvers.condition import LEAST_SPREAD, condition_estimate, safe_condition

__all__ = [
    "Solution",
    "Spectrum",
    "above_rounding",
    "condition_of",
    "decompose",
    "fast_weights",
    "gcv_error",
    "gcv_pinv",
    "gcv_ridge",
    "pinv_filter",
    "residual_share",
    "ridge_filter",
    "solve_cholesky",
    "solve_pinv",
    "solve_ridge",
    "solve_spectrum",
]

# Twenty steps a decade cost nothing beside the decomposition and leave the curve smooth.
_RIDGE_ALPHAS = np.logspace(-6, 4, 201)
_ALPHA_PRIOR = (10.0, 0.3)  # median, and spread in decades
_MOST_DF = 0.6  # of the samples; see gcv_ridge
_EXACT = 1e-9  # of the targets' squared norm: what is left of them where the fit goes through all rows
_PINV_ALPHAS = np.linspace(0.0, 1.5, 151)


@dataclass(frozen=True)
class Spectrum:
    """Eigendecomposition of a scatter matrix without its null space.

    Parameters
    ----------
    values : torch.Tensor of shape (..., r), float64
        Positive eigenvalues, ascending; r is at most min(N, d). Zeros may stay where r is shared by many problems:
        the filters leave them out.
    vectors : torch.Tensor of shape (..., p, r), float64
        Orthonormal columns.
    n_features : int, optional
        Number of features d; p by default. It is another where keys are given in p coordinates of their own span.
    """

    values: torch.Tensor
    vectors: torch.Tensor
    n_features: int | None = None

    def __post_init__(self):
        if self.n_features is None:
            object.__setattr__(self, "n_features", self.vectors.shape[-2])

    @property
    def mean_value(self):
        """Mean of all d eigenvalues, zeros included: trace / d."""
        return _number(self.values.sum(-1)) / self.n_features

    @property
    def condition(self):
        """Ratio of the largest to the smallest of all d eigenvalues; infinite when some are zero."""
        if len(self.values) < self.n_features:
            return float("inf")
        return float(self.values[-1] / self.values[0])


@dataclass(frozen=True)
class Solution(Stateful):
    """Fast weights and what is known about the fit.

    Parameters
    ----------
    weights : torch.Tensor of shape (..., d, m), float64
    df : float or torch.Tensor of shape (...)
        Effective degrees of freedom ``Σ λ f(λ)``, the trace of the hat matrix.
    alpha : float or ndarray of shape (...)
        The regulariser that was used, in the unit of the solver that used it.
    method : {"cholesky", "eigh"}
        The factorisation that gave the weights.
    condition : float or torch.Tensor of shape (...)
        Condition number of the problem that was solved: ``(λ_max + penalty) / (λ_min + penalty)`` for ridge, ``λ_max``
        to the smallest eigenvalue kept for truncation; at least 1. Directions that were dropped because their
        eigenvalue is zero up to rounding do not count. "cholesky" drops none, and gives an estimate.
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
        "method": OneOf("cholesky", "eigh"),
        "condition": Number(1),
    }


def fast_weights(moments, *, solver="ridge", alpha="auto", intercept=True):
    """Solve for the weights that map features to one-hot targets.

    Parameters
    ----------
    moments : ClassMoments
        What was learnt.
    solver : {"ridge", "pinv"}, default="ridge"
        The spectral filter.
    alpha : float or "auto", default="auto"
        Its strength, see :func:`solve_ridge` and :func:`solve_pinv`; "auto" minimises generalised
        cross-validation along a path of strengths.
    intercept : bool, default=True
        Centre keys and values first.

    Returns
    -------
    Solution
        ``weights`` has one column for each class.

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.moments import ClassMoments
    >>> from faast_sklearn.solvers import fast_weights
    >>> K, y = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    >>> solution = fast_weights(ClassMoments.from_rows(K, y), solver="pinv", alpha=2.0, intercept=False)
    >>> np.allclose(solution.weights, np.linalg.pinv(K) @ np.eye(2))
    True
    """
    scatter = moments.scatter.significant() if intercept else moments.scatter.about_origin()
    cross = moments.class_sums(centred=intercept).T
    if solver == "ridge" and alpha != "auto" and alpha > 0 and not scatter.is_small and not moments.keeps:
        solution = solve_cholesky(scatter, cross, alpha, moments.n_samples)
        if solution is not None:
            return solution
    spectrum = moments.once(("spectrum", intercept), lambda: decompose(scatter))
    return solve_spectrum(
        spectrum,
        cross,
        moments.counts,
        solver=solver,
        alpha=alpha,
        intercept=intercept,
        n_samples=moments.n_samples,
        n_rows=moments.n_rows,
    )


def solve_spectrum(
    spectrum, cross, counts, *, solver="ridge", alpha="auto", intercept=True, n_samples=None, n_rows=None
):
    """Solve for the weights that map features to one-hot targets, from a decomposition.

    Parameters
    ----------
    spectrum : Spectrum
        Of the keys, centred if ``intercept``.
    cross : torch.Tensor of shape (..., p, c)
        Class sums of the keys.
    counts : ndarray of shape (c,)
        Weight of each class, the same for all problems.
    solver, alpha, intercept
        As in :func:`fast_weights`.
    n_samples, n_rows : float, optional
        N and the number of rows, as in :func:`gcv_ridge`; the sum of the weights and N by default.

    Returns
    -------
    Solution
    """
    weight = counts.sum()
    n_samples = weight if n_samples is None else n_samples
    if alpha == "auto":
        total = float(weight - intercept * (counts * (counts / weight)).sum())
        if solver == "ridge":
            choose = functools.partial(gcv_ridge, prior=_ALPHA_PRIOR)
        else:
            choose = gcv_pinv
        alpha, _ = choose(spectrum, cross, total, n_samples, n_rows=n_rows, intercept=intercept)
    if solver == "ridge":
        return solve_ridge(spectrum, cross, alpha)
    return solve_pinv(spectrum, cross, alpha, n_samples)


def decompose(scatter):
    """Eigendecompose a scatter matrix on whichever side is smaller.

    Parameters
    ----------
    scatter : Scatter
        While it has fewer factor rows than features the r×r Gram matrix of the rows is decomposed,
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


def above_rounding(values, n_features):
    """Say which eigenvalues of a positive semidefinite matrix are more than rounding, and than underflow.

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
    # Rounding was seen to reach three units of the largest eigenvalue where d is small and N is not.
    largest = values[..., -1:].clamp(min=0)
    rounding = (largest * max(n_features, 8) * torch.finfo(torch.float64).eps).clamp(min=LEAST_SPREAD)
    # A negative eigenvalue is rounding itself, more of it where many rows were forgotten, and of either sign.
    return values > torch.maximum(rounding, -16.0 * values[..., :1])


def ridge_filter(values, penalty):
    """Tikhonov's filter ``f(λ) = 1 / (λ + penalty)``, 0 for an eigenvalue of 0.

    Parameters
    ----------
    values : torch.Tensor of shape (..., r)
        Eigenvalues.
    penalty : float or torch.Tensor
        λ of the ridge objective ``‖K W − V‖² + λ ‖W‖²``; of shape (k, 1) for k of them.

    Returns
    -------
    torch.Tensor of shape (r,) or (k, r), or what else the two broadcast to

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.solvers import ridge_filter
    >>> ridge_filter(torch.tensor([1.0, 3.0]), 1.0).tolist()
    [0.5, 0.25]
    """
    return (values.masked_fill(values <= 0, torch.inf) + penalty).reciprocal_()


def pinv_filter(values, rtol):
    """Truncation ``f(λ) = 1/λ`` where the singular value ``√λ`` exceeds ``rtol · √λ_max``, else 0.

    Parameters
    ----------
    values : torch.Tensor of shape (..., r)
        Eigenvalues, ascending.
    rtol : float or torch.Tensor
        Relative cutoff of the singular values of K, of shape (k, 1) for k of them; the paper's is ``N ** -alpha``.

    Returns
    -------
    torch.Tensor of shape (r,) or (k, r), or what else the two broadcast to

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.solvers import pinv_filter
    >>> pinv_filter(torch.tensor([1.0, 4.0]), 0.9).tolist()
    [0.0, 0.25]
    """
    kept = values > values[..., -1:] * rtol**2
    return torch.where(kept, 1.0 / values, torch.zeros_like(values))


def solve_ridge(spectrum, cross, alpha):
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
    penalty = _column(alpha, spectrum.values) * _column(spectrum.mean_value, spectrum.values)
    return _filtered(spectrum, cross, ridge_filter(spectrum.values, penalty), alpha)


def solve_pinv(spectrum, cross, alpha, n_samples):
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
        N, or the sum of the weights.

    Returns
    -------
    Solution
        At a cost of O(d r m).
    """
    cutoff = _column(float(n_samples) ** -alpha, spectrum.values)
    return _filtered(spectrum, cross, pinv_filter(spectrum.values, cutoff), alpha)


def _filtered(spectrum, cross, f, alpha):
    weights = spectrum.vectors @ (f[..., None] * (spectrum.vectors.mT @ cross))
    df = _number((spectrum.values * f).sum(-1))
    return Solution(weights, df, _number(alpha), "eigh", _number(condition_of(f)))


def condition_of(f):
    """Return the condition number of what a spectral filter inverts, among the directions that it keeps.

    Parameters
    ----------
    f : torch.Tensor of shape (..., r)
        Of :func:`ridge_filter` or :func:`pinv_filter`: one over what is inverted, 0 for what is dropped.

    Returns
    -------
    torch.Tensor of shape (...)
        At least 1; 1 where nothing is kept.
    """
    if not f.shape[-1]:
        return f.new_ones(f.shape[:-1])
    most = f.amax(-1)
    return torch.where(most > 0, most / f.masked_fill(f <= 0, torch.inf).amin(-1), 1.0)


def _number(x):
    """Return what one problem has one of: a float without leading axes, x with them."""
    return x if np.ndim(x) else float(x)


def _column(x, values):
    """Return what one problem has one of as a tensor that broadcasts along an axis after its own."""
    return torch.as_tensor(x, dtype=values.dtype, device=values.device)[..., None]


def solve_cholesky(scatter, cross, alpha, n_samples=None):
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
        At a cost of O(d³/3); None where the matrix is not positive definite in float64 or so ill-conditioned that
        digits of the scores are at stake, so that the caller takes the eigendecomposition instead, which tells
        small eigenvalues from rounding.
    """
    d = scatter.n_features
    penalty = alpha * scatter.trace() / d
    matrix = scatter.matrix()
    matrix.diagonal().add_(penalty)
    factor, info = torch.linalg.cholesky_ex(matrix)
    # A pivot at the level of rounding says that digits are gone although the factorisation went through.
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


def residual_share(df, n_samples, n_rows, least=1e-3):
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
    >>> from faast_sklearn.solvers import residual_share
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


def gcv_ridge(spectrum, cross, total, n_samples, *, n_rows=None, intercept=True, alphas=_RIDGE_ALPHAS, prior=None):
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
    penalties = _column(alphas, spectrum.values) * _column(spectrum.mean_value, spectrum.values)[..., None]
    scores, n = _gcv(spectrum, cross, total, n_samples, n_rows or n_samples, intercept, ridge_filter, penalties)
    posterior = scores
    if prior is not None:
        median, spread = prior
        distance = np.log10(np.maximum(alphas, np.finfo(float).tiny) / median) / spread
        posterior = scores * np.exp(distance**2 / (n * cross.shape[-1]))
    return _least(alphas, posterior, strong=-1), scores


def gcv_pinv(spectrum, cross, total, n_samples, *, n_rows=None, intercept=True, alphas=_PINV_ALPHAS):
    """Generalised cross-validation of :func:`solve_pinv` over its exponent; as :func:`gcv_ridge`.

    Returns
    -------
    alpha : float or ndarray of shape (...)
        The exponent of least GCV; of equals the smallest, which truncates most.
    scores : ndarray of shape (..., k)
    """
    cutoffs = _column(float(n_samples) ** -np.asarray(alphas), spectrum.values)
    scores, _ = _gcv(spectrum, cross, total, n_samples, n_rows or n_samples, intercept, pinv_filter, cutoffs)
    return _least(alphas, scores, strong=0), scores


def gcv_error(solution, moments, intercept=True):
    """Generalised cross-validation error of one solution, comparable between features of the same rows.

    Parameters
    ----------
    solution : Solution
        Of :func:`fast_weights`.
    moments : ClassMoments
        What it was computed from.
    intercept : bool, default=True

    Returns
    -------
    float
        Mean squared error of left-out one-hot targets, estimated; O(d² c).

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.moments import ClassMoments
    >>> from faast_sklearn.solvers import fast_weights, gcv_error
    >>> moments = ClassMoments.from_rows(np.array([[0.0], [1.0], [9.0], [10.0]]), np.array([0, 0, 1, 1]))
    >>> round(gcv_error(fast_weights(moments, alpha=0.01), moments), 3)
    0.024
    """
    scatter = moments.scatter if intercept else moments.scatter.about_origin()
    cross = moments.class_sums(centred=intercept).T
    total = float(moments.counts.sum() - intercept * (moments.counts * (moments.counts / moments.weight)).sum())
    rss = total - 2.0 * float((solution.weights * cross).sum()) + float(scatter.squares(solution.weights).sum())
    left = residual_share(solution.df + float(intercept), moments.n_samples, moments.n_rows)
    return max(rss, 0.0) / moments.weight / left**2


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
    n = torch.where(exact, rank.clamp(max=n_samples), float(n_samples))
    n_rows = torch.where(exact & (rank < n_samples), n, float(n_rows))
    # Products over the spectrum instead of sums of products: the filters of all candidates are the largest array.
    sums = f @ torch.stack([values, 2.0 * power], -1)
    df, explained = sums[..., 0], sums[..., 1]
    rss = (total - explained + (f.square_() @ (values * power)[..., None])[..., 0]).clamp(min=0.0)
    scores = rss / n / residual_share(df + float(intercept), n, n_rows).square()
    refused = residual_share(df, n, n_rows) < 1.0 - _MOST_DF
    return scores.masked_fill(refused, torch.inf).cpu().numpy(), n.cpu().numpy()


def _least(alphas, scores, strong):
    """Return the candidate of least score; of those equal up to rounding the one at the ``strong`` end."""
    least = scores <= scores.min(-1, keepdims=True) * (1 + 1e-9)
    last = least.shape[-1] - 1
    return _number(np.asarray(alphas)[last - least[..., ::-1].argmax(-1) if strong else least.argmax(-1)])
