"""Scores that are linear in the features, and the two ways in which they follow from fast weights."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.special
import torch

from faast_sklearn.persistence.arrays import Array
from faast_sklearn.persistence.fields import Maybe, Number
from faast_sklearn.persistence.state import Stateful
from faast_sklearn.readout.calibration import log_shares, temperature
from faast_sklearn.readout.discriminant import Between
from faast_sklearn.solvers.gcv import residual_share

__all__ = ["LinearReadout", "discriminant_readout", "score_readout", "within_class"]

# Rows scored at once: few enough to stay in the cache between their conversion and their product.
_BLOCK_ROWS = 1024
# Up to this number of rows NumPy is faster: torch's calls cost more than the product.
_FEW_ROWS = 256


@dataclass(frozen=True)
class LinearReadout(Stateful):
    """Scores ``x ↦ coef x + intercept`` and probabilities ``softmax(temperature · scores)``.

    Parameters
    ----------
    coef : ndarray of shape (c, d), float64
    intercept : ndarray of shape (c,), float64
    temperature : float
    left_out : ndarray of shape (c, c), optional
        Mean scores of left-out rows of each class.
    inflation : float, default=1.0
        Spread of left-out scores relative to that of learnt rows.
    """

    coef: np.ndarray
    intercept: np.ndarray
    temperature: float = 1.0
    left_out: np.ndarray | None = None
    inflation: float = 1.0

    _state: ClassVar = {
        "coef": Array("cd", numpy=True),
        "intercept": Array("c", numpy=True, finite=False),
        "temperature": Number(0),
        "left_out": Maybe(Array("kk", numpy=True)),
        "inflation": Number(0),
    }

    def __post_init__(self):
        # The last digit of a product depends on the memory layout, which must be the same after saving and loading.
        object.__setattr__(self, "coef", np.ascontiguousarray(self.coef))

    def scores(self, X: Any) -> np.ndarray | torch.Tensor:
        """Return the scores of rows, computed in float64 on the device of X.

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

    def log_probabilities(self, scores: Any) -> np.ndarray:
        """Return log-probabilities of an ndarray of scores of shape (n, c)."""
        return scipy.special.log_softmax(self.temperature * scores, axis=1)


def _as_float64_tensor(rows):
    """Return rows of an ndarray as a float64 tensor on the CPU."""
    if rows.flags.writeable and rows.flags.c_contiguous and min(rows.strides) >= 0:
        return torch.from_numpy(rows).to(torch.float64)
    # torch warns of read-only arrays and refuses negative strides.
    return torch.from_numpy(np.array(rows, np.float64, order="C"))


def discriminant_readout(solution: Any, moments: Any) -> "LinearReadout":
    """Regularised linear discriminant from centred ridge weights.

    Class k scores ``τ (bₖ gₖ aₖᵀ Σ⁻¹(x − m₀) − ½ oₖ) + log πₖ`` with ``aₖ = mₖ − m₀``, ``Σ = (S + λI) / N`` and S the
    pooled within-class scatter. Three parts are for classes of unequal size:

    * ``bₖ = s / (s + vₖ)`` shrinks class means towards m₀ as far as they are noise. In the metric Σ⁻¹, s is the squared
      distance of the true means from their mean, estimated from the spread of the sample means (DerSimonian and Laird,
      1986), and ``vₖ = tr(Σ⁻¹ Cov) / nₖ`` the squared error of a sample mean; m₀ weighs the means by ``1 / (s + vₖ)``.
      Without shrinkage, noise makes a mean of few rows look far from everything, even from its own rows.
    * ``gₖ² = qₖ′ / qₖ`` and ``oₖ = bₖ (qₖ′ − (1 − bₖ) q̄ₖ)``, where qₖ′ is ``qₖ = aₖᵀ Σ⁻¹ aₖ`` shrunk towards q̄ₖ, the
      value that s and vₖ predict, by the reliability ``(nₖ − 1) / (nₖ + 5)``: the norm of one row is noise.
    * ``πₖ = (nₖ + 1) / (N + c)``, shares by Laplace's rule.

    With classes of equal size, bₖ and m₀ are common to all and affect only the temperature. The share ``c / 5N`` of
    the between-class scatter counts as within.

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
    moments = _above_underflow(moments)
    weights, n = _host64(solution.weights), moments.n_samples
    fitted = (moments.means - moments.mean) @ weights
    between = Between(fitted, moments.counts, n)
    total = _host64(moments.scatter.quadratic(solution.weights))
    leverage = between.leverage(solution.df, total, moments.n_spare, moments.n_rows - len(fitted))
    spread = leverage * max(moments.n_spare, 1.0) / (1.0 - leverage) * moments.bessel
    directions = between.directions(moments.sizes, spread / moments.sizes)
    means = fitted @ directions.mixing + directions.offset
    left_out = means - directions.optimism
    covariance = directions.mixing.T @ within_class(fitted, total, moments) @ directions.mixing / (1.0 - leverage) ** 2
    log_prior = log_shares(moments)
    inflation = 1.0 / (1.0 - leverage)
    tau = temperature(left_out, covariance, means, log_prior, moments, inflation)
    coef = tau * (weights @ directions.mixing).T
    constant = tau * directions.offset + log_prior - coef @ moments.mean
    return LinearReadout(coef, constant, 1.0, tau * left_out + log_prior, inflation)


def score_readout(solution: Any, moments: Any, intercept: bool) -> "LinearReadout":
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
    moments = _above_underflow(moments)
    weights, shares = _host64(solution.weights), moments.counts / moments.weight
    shift = shares - moments.mean @ weights if intercept else np.zeros(weights.shape[1])
    fitted = moments.means @ weights + shift
    # Leaving a row out changes its residual from r to r / (1 − h), with h its leverage.
    inflation = 1.0 / residual_share(solution.df + intercept, moments.n_samples, moments.n_rows)
    targets = np.eye(len(shares))
    left_out = targets - (targets - fitted) * inflation
    total = _host64(moments.scatter.quadratic(solution.weights))
    covariance = within_class(fitted, total, moments) * inflation**2
    tau = temperature(left_out, covariance, fitted, np.zeros(len(fitted)), moments, inflation)
    return LinearReadout(weights.T.copy(), shift, tau, left_out, inflation)


def within_class(fitted: np.ndarray, total: np.ndarray, moments: Any) -> np.ndarray:
    """Return the covariance of ridge scores within classes, (c, c), from their scatter ``Wᵀ T W`` about their mean."""
    centred = fitted - (moments.counts / moments.weight) @ fitted
    within = (total - (centred.T * moments.counts) @ centred) / moments.weight
    return 0.5 * (within + within.T) * moments.bessel


def _above_underflow(moments):
    """Return the moments, with larger weights if they are too small to divide by: only ratios of weights matter."""
    return moments.scale(2.0**1000) if moments.weight < 2.0**-900 else moments


def _host64(tensor):
    return tensor.cpu().numpy()
