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

__all__ = ["LinearReadout", "discriminant_readout", "score_readout"]

# Draws that stand for the distribution of left-out scores; fixed, so that results repeat.
_N_DRAWS = 2000
# Tails of the class-conditional scores. Gaussian tails leave the probabilities overconfident by a factor of two to
# three on image and text features; four degrees of freedom and the slack below come within 0.03 of the log-loss
# at the best temperature over all shot counts tried (docs/auto_alpha.md).
_TAIL_DF = 4.0
_SLACK = 0.7
# Grid of log τ.
_TAU_STEP = 1 / 64


@dataclass(frozen=True)
class LinearReadout:
    """Scores ``x ↦ coef x + intercept`` and probabilities ``softmax(temperature · scores)``.

    Parameters
    ----------
    coef : ndarray of shape (c, d), float64
    intercept : ndarray of shape (c,), float64
    temperature : float
    """

    coef: np.ndarray
    intercept: np.ndarray
    temperature: float = 1.0

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
        if isinstance(X, np.ndarray):
            return X.astype(np.float64, copy=False) @ self.coef.T + self.intercept
        coef, intercept = (torch.as_tensor(a).to(X.device, torch.float64) for a in (self.coef, self.intercept))
        return torch.addmm(intercept, X.to(torch.float64), coef.T)

    def log_probabilities(self, scores):
        """Return log-probabilities of an ndarray of scores of shape (n, c)."""
        return scipy.special.log_softmax(self.temperature * scores, axis=1)


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
    weights, counts, n = _host64(solution.weights), moments.counts, moments.weight
    means = moments.means - moments.mean
    root = np.sqrt(counts)
    fitted = means @ weights  # (c, c): row k is the mean centred score of class k
    values, vectors = np.linalg.eigh(_symmetric(root[:, None] * fitted / root))
    # In exact arithmetic the eigenvalues lie in [0, 1); one means that no within-class spread is left.
    doubt = len(counts) / (5.0 * moments.n_samples)
    inverse = (vectors / np.maximum(1.0 - (1.0 - doubt) * values, 1e-5)) @ vectors.T
    mixing = n * inverse / np.outer(root, root)
    mixing -= mixing.mean(axis=1, keepdims=True)
    centre = means.mean(axis=0)
    norms = np.einsum("kd,dk->k", means - centre, weights @ mixing)
    rows = np.maximum(np.maximum(counts, moments.rows), 1.0)
    reliability = (rows - 1.0) / (rows + 5.0)
    shrunk = norms.mean() ** (1.0 - reliability) * np.maximum(norms, 0.0) ** reliability
    mixing *= np.sqrt(np.divide(shrunk, norms, out=np.ones_like(norms), where=norms > 0))
    beta = weights @ mixing
    offset = -0.5 * shrunk - centre @ beta
    log_prior = np.log(counts / n)
    left_out, covariance = _left_out_scores(solution, moments, fitted, intercept=True)
    tau = _temperature(left_out @ mixing + offset, mixing.T @ covariance @ mixing, fitted @ mixing, log_prior, moments)
    coef = tau * beta.T
    return LinearReadout(coef, tau * offset + log_prior - coef @ moments.mean)


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
    return LinearReadout(np.ascontiguousarray(weights.T), shift, tau)


def _host64(tensor):
    return tensor.cpu().numpy()


def _symmetric(matrix):
    return 0.5 * (matrix + matrix.T)


def _left_out_scores(solution, moments, fitted, intercept):
    """Return class means (c, c) and pooled within-class covariance of left-out scores, shares subtracted."""
    counts, n, c = moments.counts, moments.weight, len(moments.counts)
    leverage = min((solution.df + intercept) / moments.n_samples, 1.0 - 1e-3)
    targets = np.eye(c) - counts / n
    left_out = targets - (targets - fitted) / (1.0 - leverage)
    # The scatter of the scores about their mean, less what lies between the classes.
    total = _host64(moments.scatter.quadratic(solution.weights))
    centred = fitted - counts @ fitted / n
    within = total - (centred.T * counts) @ centred
    return left_out, _symmetric(within) / (max(n - c, 1.0) * (1.0 - leverage) ** 2)


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
    spare = max(moments.n_samples - c, 0.0)
    trust = spare / (spare + 3.0 * c)
    if trust == 0.0:
        return float(prior)
    values, vectors = np.linalg.eigh(covariance)
    # The symmetric root is one and the same whatever signs and rotations the eigenvectors come in.
    root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    rng = np.random.default_rng(0)
    n_draws = max(_N_DRAWS, c)
    classes = np.arange(n_draws) % c
    radius = np.sqrt((_TAIL_DF - 2.0) / rng.chisquare(_TAIL_DF, n_draws))
    scores = means[classes] + (rng.standard_normal((n_draws, c)) * radius[:, None]) @ root
    share = np.exp(np.log(moments.counts) - np.log(moments.counts).max())[classes]

    def slope(log_tau):
        logits = np.exp(log_tau) * scores + log_prior
        chosen = np.einsum("ik,ik->i", scipy.special.softmax(logits, axis=1), scores)
        return share @ (chosen - scores[np.arange(n_draws), classes])

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
    return float(prior * np.exp(trust * (found + np.log(_SLACK))))
