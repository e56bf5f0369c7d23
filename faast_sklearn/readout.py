"""From fast weights to class scores and probabilities, from the statistics alone.

Two links turn weights into a classifier:

* :func:`discriminant_readout`: Gaussian classes with the regularised pooled covariance. The ridge weights already
  hold everything: with the total scatter ``T = S + B`` (within plus between), ``(S + λ)⁻¹M`` follows from
  ``W = (T + λ)⁻¹ Sᵀ`` by a c×c inverse (Woodbury). Unlike the argmax of ridge scores it does not mask classes
  and is right for unequal class sizes.
* :func:`score_readout`: the weights' own scores, whose argmax is the paper's prediction, with a softmax.

Both are calibrated by one temperature. Leave-one-out moments of the scores follow from the in-sample ones and the
mean leverage ``h`` (the residual of a left-out row is ``r / (1 − h)``); the temperature minimises the expected
log-loss of scores distributed about the left-out class means with the tails of a t distribution. No example is
needed, so the probabilities of a model that learnt in pieces are those of one that learnt at once.
"""

from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.special
import torch

__all__ = [
    "LinearReadout",
    "discriminant_mixing",
    "discriminant_readout",
    "draw_scores",
    "score_readout",
    "trust_in_left_out",
]

# Draws that stand for the distribution of left-out scores; fixed, so that results repeat.
_N_DRAWS = 2000
# Tails of the class-conditional scores. Gaussian tails leave the probabilities overconfident by a factor of two to
# three on image and text features; four degrees of freedom and the slack below come within 0.03 of the log-loss
# at the best temperature over all shot counts tried (docs/auto_alpha.md).
_TAIL_DF = 4.0
_SLACK = 0.7
# Errors that are expected beside those that the statistics foretell, of all N rows: where none is foretold, as between
# classes that are all but separated, it alone keeps the temperature finite (log-loss 0.37 against 0.03 on the digits
# with random features).
_UNFORESEEN = 0.1
# Grid of log τ.
_TAU_STEP = 1 / 64
# Rows scored at once: few enough to stay in the cache between their conversion and their product.
_BLOCK_ROWS = 1024
# Up to so many NumPy is faster: torch's calls cost more than the product.
_FEW_ROWS = 256


@dataclass(frozen=True)
class LinearReadout:
    """Scores ``x ↦ coef x + intercept`` and probabilities ``softmax(temperature · scores)``.

    Parameters
    ----------
    coef : ndarray of shape (c, d), float64
    intercept : ndarray of shape (c,), float64
    temperature : float
    left_out : ndarray of shape (c, c), optional
        Mean scores of left-out rows of each class.
    inflation : float, default=1.0
        How much wider than in sample left-out scores spread.
    """

    coef: np.ndarray
    intercept: np.ndarray
    temperature: float = 1.0
    left_out: np.ndarray | None = None
    inflation: float = 1.0

    def __post_init__(self):
        # The last digit of a product depends on how its factors lie in memory; one that was saved and loaded must not.
        object.__setattr__(self, "coef", np.ascontiguousarray(self.coef))

    def scores(self, X):
        """Return the scores of rows, computed in float64 where X is.

        Parameters
        ----------
        X : ndarray or torch.Tensor of shape (n, d)
            Of any floating dtype.

        Returns
        -------
        ndarray or torch.Tensor of shape (n, c), float64
        """
        if isinstance(X, np.ndarray) and len(X) <= _FEW_ROWS:
            return X.astype(np.float64, copy=False) @ self.coef.T + self.intercept
        coef, intercept = _as_float64_tensor(self.coef), _as_float64_tensor(self.intercept)
        if not isinstance(X, np.ndarray):
            return torch.addmm(intercept.to(X.device), X.to(torch.float64), coef.to(X.device).T)
        out = torch.empty(len(X), len(coef), dtype=torch.float64)
        for start in range(0, len(X), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            torch.addmm(intercept, _as_float64_tensor(X[part]), coef.T, out=out[part])
        return out.numpy()

    def log_probabilities(self, scores):
        """Return log-probabilities of an ndarray of scores of shape (n, c)."""
        return scipy.special.log_softmax(self.temperature * scores, axis=1)


def _as_float64_tensor(rows):
    """Return rows of an ndarray as a float64 tensor on the CPU."""
    if rows.flags.writeable and rows.flags.c_contiguous and min(rows.strides) >= 0:
        return torch.from_numpy(rows).to(torch.float64)
    # What torch warns of or refuses.
    return torch.from_numpy(np.array(rows, np.float64, order="C"))


def discriminant_readout(solution, moments):
    """Regularised linear discriminant from centred ridge weights.

    Class k scores ``τ (aₖᵀ Σ⁻¹(x − m̄) − ½ aₖᵀ Σ⁻¹ aₖ) + log πₖ`` with ``Σ = (S + λI) / N``, S the pooled within-class
    scatter, πₖ the share of class k, and aₖ its mean less the average m̄ of the class means, with one correction: the
    squared norm ``qₖ = (mₖ − m̄)ᵀ Σ⁻¹ (mₖ − m̄)`` becomes ``q̄^(1 − ρₖ) · qₖ^ρₖ`` with ``ρₖ = (nₖ − 1) / (nₖ + 5)``.
    A mean of few rows has a direction worth following, but its norm is noise that would favour some classes
    everywhere: with one example a class all norms are taken as equal, with a hundred as they are. For the same
    reason S takes in the share ``c / 5N`` of the between-class scatter, which vanishes as N grows.

    Parameters
    ----------
    solution : Solution
        Of :func:`~faast_sklearn.solvers.solve_ridge` or ``solve_cholesky`` on the centred scatter and the centred
        class sums as ``cross``.
    moments : ClassMoments
        What the solution was computed from; at least two classes.

    Returns
    -------
    LinearReadout
        The scores are log-posteriors up to a constant; its temperature is 1. Costs O(d c² + c³).
    """
    weights, n = _host64(solution.weights), moments.weight
    fitted = (moments.means - moments.mean) @ weights
    mixing, offset = discriminant_mixing(fitted, moments.counts, moments.rows)
    log_prior = np.log(moments.counts / n)
    left_out, covariance = _left_out_scores(solution, moments, fitted, intercept=True)
    left_out = left_out @ mixing + offset
    tau = _temperature(left_out, mixing.T @ covariance @ mixing, fitted @ mixing, log_prior, moments)
    coef = tau * (weights @ mixing).T
    constant = tau * offset + log_prior - coef @ moments.mean
    return LinearReadout(coef, constant, 1.0, tau * left_out + log_prior, _inflation(solution, moments, True))


def discriminant_mixing(fitted, counts, rows):
    """Turn ridge scores into those of the discriminant, in the space of classes alone.

    Parameters
    ----------
    fitted : ndarray of shape (..., c, c), float64
        Row k is the mean centred ridge score of class k, ``(mₖ − m)ᵀW``; of one or of many problems.
    counts : ndarray of shape (c,)
        Weight of each class, the same for all problems.
    rows : ndarray of shape (c,)
        Number of rows of each class.

    Returns
    -------
    mixing : ndarray of shape (..., c, c)
        ``W @ mixing`` holds the ``Σ⁻¹aₖ`` of :func:`discriminant_readout` as columns.
    offset : ndarray of shape (..., c)
        The scores are ``(x − m)ᵀ W @ mixing + offset``, up to the temperature and the log-shares. Costs O(c³).
    """
    n = counts.sum()
    root = np.sqrt(counts)
    values, vectors = np.linalg.eigh(_symmetric(root[:, None] * fitted / root))
    # In exact arithmetic the eigenvalues lie in [0, 1); one means that no within-class spread is left.
    doubt = len(counts) / (5.0 * max(n, rows.sum()))
    kept = np.maximum(1.0 - (1.0 - doubt) * values, 1e-5)
    mixing = n * ((vectors / kept[..., None, :]) @ np.swapaxes(vectors, -1, -2)) / np.outer(root, root)
    mixing -= mixing.mean(axis=-1, keepdims=True)
    centre = fitted.mean(axis=-2)
    norms = np.maximum(np.einsum("...kj,...jk->...k", fitted - centre[..., None, :], mixing), 0.0)
    rows = np.maximum(np.maximum(counts, rows), 1.0)
    reliability = (rows - 1.0) / (rows + 5.0)
    shrunk = norms.mean(axis=-1, keepdims=True) ** (1.0 - reliability) * norms**reliability
    mixing *= np.sqrt(np.divide(shrunk, norms, out=np.ones_like(norms), where=norms > 0))[..., None, :]
    return mixing, -0.5 * shrunk - np.einsum("...j,...jk->...k", centre, mixing)


def score_readout(solution, moments, intercept):
    """Read the weights' own scores: ``W`` on one-hot targets, the paper's prediction without a text tower.

    Parameters
    ----------
    solution : Solution
        Of the centred problem if ``intercept``, else of the uncentred one.
    moments : ClassMoments
        What it was computed from; at least two classes.
    intercept : bool
        Whether the mean feature maps to the class shares (centred keys and values), or zero to zero.

    Returns
    -------
    LinearReadout
        With ``coef = Wᵀ`` and the temperature of the probabilities.
    """
    weights, n = _host64(solution.weights), moments.weight
    shift = moments.counts / n - moments.mean @ weights if intercept else np.zeros(weights.shape[1])
    fitted = moments.means @ weights + shift
    left_out, covariance = _left_out_scores(solution, moments, fitted - moments.counts / n, intercept)
    tau = _temperature(left_out, covariance, fitted, np.zeros(len(fitted)), moments)
    left_out = left_out + moments.counts / n
    return LinearReadout(weights.T.copy(), shift, tau, left_out, _inflation(solution, moments, intercept))


def _host64(tensor):
    return tensor.cpu().numpy()


def _symmetric(matrix):
    return 0.5 * (matrix + np.swapaxes(matrix, -1, -2))


def _left_out_scores(solution, moments, fitted, intercept):
    """Return class means (c, c) and pooled within-class covariance of left-out scores, shares subtracted."""
    if moments.weight < 2.0**-900:
        moments = moments.scale(2.0**1000)  # only ratios of weights count, and these are too small to divide by
    counts, n, c = moments.counts, moments.weight, len(moments.counts)
    inflation = _inflation(solution, moments, intercept)
    targets = np.eye(c) - counts / n
    left_out = targets - (targets - fitted) * inflation
    # The scatter of the scores about their mean, less what lies between the classes.
    total = _host64(moments.scatter.quadratic(solution.weights))
    centred = fitted - (counts / n) @ fitted
    within = (total - (centred.T * counts) @ centred) / n
    # Weights that sum to something else than the number of rows make the spread neither wider nor narrower.
    rows = moments.n_samples
    return left_out, _symmetric(within) * (rows / max(rows - c, 1.0)) * inflation**2


def _inflation(solution, moments, intercept):
    """Return ``1 / (1 − h)`` at the mean leverage h: what residuals grow by when their row is left out."""
    return 1.0 / (1.0 - min((solution.df + intercept) / moments.n_samples, 1.0 - 1e-3))


def trust_in_left_out(moments):
    """Return how far left-out moments are believed: 0 with one row a class, near 1 with many."""
    c = len(moments.classes)
    spare = max(moments.n_samples - c, 0.0)
    return spare / (spare + 3.0 * c)


def draw_scores(means, covariance):
    """Draw scores of left-out rows of each class in turn, always the same.

    Parameters
    ----------
    means : ndarray of shape (k, c)
    covariance : ndarray of shape (c, c)

    Returns
    -------
    scores : ndarray of shape (n, c)
        With the tails of a t distribution.
    classes : ndarray of int, shape (n,)
        Rows of ``means``.
    """
    k, c = means.shape
    values, vectors = np.linalg.eigh(covariance)
    # The symmetric root is one and the same whatever signs and rotations the eigenvectors come in.
    root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    rng = np.random.default_rng(0)
    n = max(_N_DRAWS, k)
    classes = np.arange(n) % k
    radius = np.sqrt((_TAIL_DF - 2.0) / rng.chisquare(_TAIL_DF, n))
    return means[classes] + (rng.standard_normal((n, c)) * radius[:, None]) @ root, classes


def _temperature(means, covariance, fitted, log_prior, moments):
    """Minimise the expected log-loss of ``τ · scores + log_prior`` over τ > 0.

    ``means`` and ``covariance`` describe left-out scores. With few rows a class neither is worth much (with one,
    leaving it out leaves the class empty), and the result leans on a prior: the τ at which the margin of a class
    mean is ``(4 + 7 log₂(c/2)) / 3``, that of features which explain two fifths of the variance of the labels.
    """
    c = len(means)
    margin = (np.trace(fitted) * c - fitted.sum()) / (c * (c - 1))
    if not np.isfinite(margin) or margin <= 0:
        return 1.0
    prior = (4.0 + 7.0 * np.log2(c / 2)) / 3.0 / margin
    trust = trust_in_left_out(moments)
    if trust == 0.0:
        return float(prior)
    scores, classes = draw_scores(means, covariance)
    share = np.exp(np.log(moments.counts) - np.log(moments.counts).max())[classes]
    own = scores[np.arange(len(scores)), classes]
    doubt = _UNFORESEEN / (moments.n_samples + 2.0)
    right = (1.0 - doubt) * own + doubt * (scores.sum(1) - own) / (c - 1)

    def slope(log_tau):
        logits = np.exp(log_tau) * scores + log_prior
        chosen = np.einsum("ik,ik->i", scipy.special.softmax(logits, axis=1), scores)
        return share @ (chosen - right)

    # The loss is convex in τ, so its slope rises and has one root. A hundredfold away from the prior the data have
    # nothing to say. Where the classes are all but separated, the within-class spread is a difference of nearly equal
    # numbers and its last digits depend on the split of the data; a grid finer than the draws are certain does not.
    span = 4.6
    if slope(np.log(prior) - span) >= 0:
        found = -span
    elif slope(np.log(prior) + span) <= 0:
        found = span
    else:
        found = scipy.optimize.brentq(lambda x: slope(np.log(prior) + x), -span, span, xtol=1e-9)
    found = round(found / _TAU_STEP) * _TAU_STEP
    tau, slack = prior * np.exp(trust * found), _SLACK**trust
    # The slack leaves the mean of a rare class to it: one row beside 100,000 has a long way to go against its share.
    gaps = np.diagonal(means)[:, None] - means
    off = ~np.eye(c, dtype=bool)
    apart = (gaps > 0).all(axis=1, where=off)
    needed = np.divide(log_prior - log_prior[:, None], gaps, out=np.zeros_like(gaps), where=off & apart[:, None])
    needed = needed.max(axis=1)
    return float(max(slack * tau, min(tau, 1.25 * needed[needed <= tau].max(initial=0.0))))
