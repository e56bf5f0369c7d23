"""One temperature for the scores of classes, from left-out moments: probabilities without a validation set.

The scores of rows that were not learnt are modelled by a t distribution about a left-out mean of each class, with a
covariance that all classes share. The temperature minimises their expected log-loss. With few rows neither mean nor
covariance is reliable, and the result relies on a prior.
"""

from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

__all__ = ["SLACK", "draw_scores", "log_shares", "temperature", "trust_in_left_out"]

# Draws that stand for the distribution of left-out scores; fixed, so that results repeat.
_N_DRAWS = 2000
# Rows that are added to each class (Laplace's rule of succession), since with few rows the true shares are less unequal
# than the observed ones.
_PRIOR_ROWS = 1.0
# Degrees of freedom of the scores of a class, and a factor on the temperature for what this misses: classes are
# mixtures. docs/accuracy.md says on which data these and the numbers below were chosen, and how they do on others.
_TAIL_DF = 6.0
SLACK = 0.68
# Rows per class, beyond those that the fit uses up, at which left-out moments and the prior have equal weight.
_HALF_TRUST = 1.5
# Errors in N + 2 rows that are expected besides those that the statistics predict: between classes that are all but
# separated, only they keep the temperature finite.
_UNFORESEEN = 0.02
# With few rows, the in-sample margin of class means at the best temperature is about 4.5 + log c on all data tried.
_MARGIN = 4.5
# How far left-out moments may raise log τ, since no moments predict outliers, and lower it, times 1 / (1 − trust),
# since few rows that predict no margin at all say little.
_MOST_UP, _MOST_DOWN = 1.5, 1.0
# Grid of log τ.
_TAU_STEP = 1 / 64


def log_shares(moments: Any) -> Any:
    """Return the logarithms of the shares of the classes by Laplace's rule, of shape (c,)."""
    rows = moments.effective_size
    shares = moments.counts / moments.weight * rows + _PRIOR_ROWS
    return np.log(shares) - np.log(rows + _PRIOR_ROWS * len(shares))


def log_share_of_none(moments: Any) -> float:
    """Return what :func:`log_shares` would be for one more class, of which no row was seen."""
    return float(np.log(_PRIOR_ROWS) - np.log(moments.effective_size + _PRIOR_ROWS * len(moments.classes)))


def trust_in_left_out(moments: Any, inflation: float) -> Any:
    """Return how far left-out moments are trusted: 0 with one row per class, near 1 with many.

    Parameters
    ----------
    moments : ClassMoments
    inflation : float
        ``1 / (1 − h)`` at the mean leverage h: a fit that goes through its rows says nothing about others.
    """
    spare = moments.n_spare / inflation
    return spare / (spare + _HALF_TRUST * len(moments.classes))


def draw_scores(means: np.ndarray, covariance: np.ndarray, sizes: np.ndarray, seen: np.ndarray | None = None) -> tuple:
    """Draw scores of left-out rows of each class in turn; the draws are fixed, whatever the names of the classes.

    Parameters
    ----------
    means : ndarray of shape (k, c)
        Mean scores of the rows of k classes.
    covariance : ndarray of shape (c, c)
        Of the scores about these means.
    sizes : ndarray of shape (k,)
        Of these classes.
    seen : ndarray of int, shape (k,), optional
        Columns of these classes; all by default.

    Returns
    -------
    scores : ndarray of shape (n, c)
        From a t distribution.
    classes : ndarray of int, shape (n,)
        Their rows of ``means``.
    """
    k, c = means.shape
    seen = np.arange(c) if seen is None else seen
    rows, columns = _order(means, sizes, seen)
    values, vectors = np.linalg.eigh(covariance)
    # The symmetric root does not depend on signs and rotations of the eigenvectors.
    root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    rng = np.random.default_rng(0)
    n = max(_N_DRAWS, k)
    classes = np.arange(n) % k
    radius = np.sqrt((_TAIL_DF - 2.0) / rng.chisquare(_TAIL_DF, n))
    noise = rng.standard_normal((n, c)) * radius[:, None]
    # The last class has the draws of the first, mirrored, so that two classes can be swapped.
    mirror = np.arange(n) - classes + (k - 1 - classes)
    late = np.flatnonzero((classes > k - 1 - classes) & (mirror < n))
    noise[late] = noise[mirror[late], ::-1]
    scores = np.empty((n, c))
    scores[:, columns] = means[rows[classes]][:, columns] + noise @ root[np.ix_(columns, columns)]
    return scores, rows[classes]


def _order(means, sizes, seen):
    """Return classes and columns in an order that depends on the statistics alone, not on rounding in ties."""
    own = means[np.arange(len(seen)), seen]
    scale = np.abs(means).max(initial=0.0) or 1.0
    rows = np.lexsort((np.round(own / scale, 9), np.round(sizes / sizes.max(), 9)))
    others = np.setdiff1d(np.arange(means.shape[1]), seen)
    others = others[np.argsort(np.round(means[:, others].mean(0) / scale, 9), kind="stable")]
    return rows, np.concatenate([seen[rows], others])


def temperature(
    means: np.ndarray, covariance: np.ndarray, fitted: np.ndarray, log_prior: np.ndarray, moments: Any, inflation: float
) -> float:
    """Minimise the expected log-loss of ``τ · scores + log_prior`` over τ > 0.

    Parameters
    ----------
    means : ndarray of shape (c, c)
        Mean scores of left-out rows of each class.
    covariance : ndarray of shape (c, c)
        Of left-out scores about these means.
    fitted : ndarray of shape (c, c)
        Mean scores of learnt rows of each class. The prior is the τ at which the own class leads the average of the
        others by ``4.5 + log c``; it counts as far as left-out moments are not trusted.
    log_prior : ndarray of shape (c,)
    moments : ClassMoments
    inflation : float
        As in :func:`trust_in_left_out`.

    Returns
    -------
    float
        O(c) for each of 2,000 draws and about ten values of τ.
    """
    c = len(fitted)
    margin = (np.trace(fitted) * c - fitted.sum()) / (c * (c - 1))
    if not np.isfinite(margin) or margin <= 0:
        return 1.0
    prior = (_MARGIN + np.log(c)) / margin
    trust = trust_in_left_out(moments, inflation)
    if trust == 0.0:
        return float(prior)
    scores, classes = draw_scores(means, covariance, moments.sizes)
    found = _least_loss(scores, classes, prior, trust, log_prior, moments)
    tau, slack = prior * np.exp(trust * found), SLACK**trust
    needed = _needed(fitted, log_prior)
    return float(max(slack * tau, min(tau, 1.25 * needed[needed <= tau].max(initial=0.0))))


def _least_loss(scores, classes, prior, trust, log_prior, moments):
    """Return log (τ / prior) of the least expected loss of drawn scores, within bounds."""
    share = moments.sizes[classes]  # by effective size, from which weights may differ much
    own = scores[np.arange(len(scores)), classes]
    doubt = _UNFORESEEN / (moments.n_samples + 2.0)
    right = (1.0 - doubt) * own + doubt * (scores.sum(1) - own) / (scores.shape[1] - 1)

    def slope(x):
        chosen = scipy.special.softmax(prior * np.exp(x) * scores + log_prior, axis=1)
        return share @ (np.einsum("ik,ik->i", chosen, scores) - right)

    # The loss is convex in τ, so its slope rises and has one root. Where the classes are all but separated, the spread
    # within them is a difference of nearly equal numbers and its last digits depend on the split of the data; rounding
    # to a grid finer than the uncertainty of the draws removes this.
    low, high = -min(_MOST_DOWN / (1.0 - trust), 10.0), _MOST_UP
    if slope(low) >= 0:
        found = low
    elif slope(high) <= 0:
        found = high
    else:
        found = scipy.optimize.brentq(slope, low, high, xtol=1e-9)
    return round(found / _TAU_STEP) * _TAU_STEP


def _needed(means, log_prior):
    """Return the least τ at which the mean of each class is predicted as that class; 0 where there is none.

    It keeps the slack from losing rare classes: against its share, one row beside 100,000 needs a large τ.
    """
    gaps = np.diagonal(means)[:, None] - means
    off = ~np.eye(len(means), dtype=bool)
    apart = (gaps > 0).all(axis=1, where=off)
    needed = np.divide(log_prior - log_prior[:, None], gaps, out=np.zeros_like(gaps), where=off & apart[:, None])
    return needed.max(axis=1)
