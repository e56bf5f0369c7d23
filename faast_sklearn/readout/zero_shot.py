"""Values in place of one-hot codes: the nearest value, the zero-shot prior, and how many examples it is worth.

The paper's vision classifier (Bao et al., arXiv 2605.04651, section 3) predicts ``y = (1 − r) x + r xW``, with
``r = N / (N0 + N)``, and compares y with the vector eₖ of each class by cosine. The length of y is common to all
classes, so that the argmax is that of ``(1 − r) x·eₖ + r (xW)·eₖ``, linear in x: a weighted sum of the zero-shot score
and the learnt one. Where ridge weights are read out as a discriminant, its log-likelihoods replace ``κ (xW)·eₖ``, with
κ the model's factor from cosines to logits; the log-shares of the classes are added to the mixture.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.special
import torch

from faast_sklearn.readout.calibration import SLACK, draw_scores, log_shares, trust_in_left_out
from faast_sklearn.readout.linear import LinearReadout, score_readout

__all__ = ["choose_prior_strength", "mixed_readout", "prior_weight", "value_readout", "zero_shot_readout"]

# Candidates of N0, and its value per class while there are too few examples to choose.
_STRENGTHS = np.logspace(-1, 5, 25)
_A_CLASS = 5.0
_TEMPERATURES = np.logspace(-1, 1, 17)


def prior_weight(n_samples: Any, strength: Any) -> Any:
    """Return ``1 − r = N0 / (N0 + N)``, the share of the zero-shot prediction.

    Examples
    --------
    >>> from faast_sklearn.readout.zero_shot import prior_weight
    >>> prior_weight(100, 400)
    0.8
    """
    return strength / (strength + n_samples) if np.isfinite(strength) else 1.0


def zero_shot_readout(values: Any, n_features: int) -> "LinearReadout":
    """Return the readout ``κ x·eₖ`` of unit rows x, for d features of which the values have the first m.

    Parameters
    ----------
    values : ClassValues
    n_features : int

    Returns
    -------
    LinearReadout
    """
    c, m = values.vectors.shape
    coef = np.zeros((c, n_features))
    coef[:, :m] = values.logit_scale * values.vectors
    return LinearReadout(coef, np.zeros(c))


def value_readout(solution: Any, moments: Any, values: Any, seen: np.ndarray, intercept: bool) -> "LinearReadout":
    """Compare what the weights recall with the value of each class: scores ``κ y(x)·eₖ``, ``y(x) = Σⱼ sⱼ(x) eⱼ``.

    Parameters
    ----------
    solution : Solution
        For one-hot targets; the weights for value vectors are its product with them.
    moments : ClassMoments
        What it was computed from.
    values : ClassValues
        Of all classes.
    seen : ndarray of int
        Positions of the classes of ``moments`` among all classes.
    intercept : bool

    Returns
    -------
    LinearReadout
        One column for each class, seen or not.
    """
    if len(seen) > 1:
        scores = score_readout(solution, moments, intercept)
    else:
        weights = solution.weights.cpu().numpy()
        shift = 1.0 - moments.mean @ weights if intercept else np.zeros(1)
        scores = LinearReadout(weights.T, shift, left_out=np.ones((1, 1)))
    likeness = values.logit_scale * (values.vectors[seen] @ values.vectors.T)  # (seen, c)
    return LinearReadout(
        likeness.T @ scores.coef, scores.intercept @ likeness, 1.0, scores.left_out @ likeness, scores.inflation
    )


def mixed_readout(
    learned: "LinearReadout", moments: Any, values: Any, seen: Any, strength: float, shares: bool
) -> "LinearReadout":
    """Weigh what was learnt against the zero-shot prediction.

    Parameters
    ----------
    learned : LinearReadout
        Of all classes, or of the seen ones alone.
    moments, values, seen
        As in :func:`value_readout`.
    strength : float
        N0.
    shares : bool
        Whether the log-shares of the classes are in ``learned``, as in log-posteriors.

    Returns
    -------
    LinearReadout
        Calibrated if the left-out scores are known.
    """
    learned, log_prior = _for_all(learned, moments, seen, len(values.vectors), shares)
    mixed = _Mixture(learned, moments, values, seen, prior_weight(moments.n_samples, strength), log_prior)
    tau = mixed.temperature() if mixed.is_known else 1.0
    return LinearReadout(tau * mixed.coef, tau * mixed.intercept + log_prior)


def choose_prior_strength(learned: Any, moments: Any, values: Any, seen: Any, shares: Any) -> float:
    """Return the N0 of the least expected log-loss of left-out rows.

    Scores of left-out rows are modelled by a t distribution about their class means, as for the temperature in
    ``faast_sklearn.readout.calibration``; the zero-shot prediction needs no leaving out.
    With few rows the logarithm of the choice is shrunk towards that of five examples per class.

    Parameters
    ----------
    learned, moments, values, seen, shares
        As in :func:`mixed_readout`.

    Returns
    -------
    float
        O(d² c) for each of 25 strengths, and O(c) for each of 2,000 draws and 17 temperatures.
    """
    default = _A_CLASS * len(values.vectors)
    trust = trust_in_left_out(moments, learned.inflation)
    if learned.left_out is None or trust == 0.0:
        return default
    learned, log_prior = _for_all(learned, moments, seen, len(values.vectors), shares)
    weights = [prior_weight(moments.n_samples, strength) for strength in _STRENGTHS]
    losses = [_Mixture(learned, moments, values, seen, weight, log_prior).losses().min() for weight in weights]
    return float(_STRENGTHS[int(np.argmin(losses))] ** trust * default ** (1.0 - trust))


def _for_all(learned, moments, seen, c, shares):
    """Return the learnt readout for all classes, without their log-shares, and the log-shares.

    Classes without examples, about which nothing was learnt, get the mean score and log-share of the others.
    """
    log_prior = np.zeros(c)
    if shares:
        own = log_shares(moments)
        log_prior[:] = own.mean()
        log_prior[seen] = own
        if len(learned.coef) > 1:
            left_out = None if learned.left_out is None else learned.left_out - own
            learned = replace(learned, intercept=learned.intercept - own, left_out=left_out)
    if len(learned.coef) == c:
        return learned, log_prior
    coef, intercept = (np.broadcast_to(a.mean(0), (c, *a.shape[1:])).copy() for a in (learned.coef, learned.intercept))
    coef[seen], intercept[seen] = learned.coef, learned.intercept
    left_out = None
    if learned.left_out is not None:
        left_out = np.repeat(learned.left_out.mean(1, keepdims=True), c, axis=1)
        left_out[:, seen] = learned.left_out
    return replace(learned, coef=coef, intercept=intercept, left_out=left_out), log_prior


class _Mixture:
    """``(1 − share) · learned + share · zero-shot``, and how its scores of left-out rows are distributed."""

    def __init__(self, learned, moments, values, seen, share, log_prior):
        self.moments, self.seen, self._log_prior = moments, seen, log_prior
        self.coef, self.intercept = (1.0 - share) * learned.coef, (1.0 - share) * learned.intercept
        self.is_known = learned.left_out is not None
        if self.is_known:
            self._left_out = (1.0 - share) * learned.left_out
        # Only the learnt scores spread wider out of sample than in sample.
        self._inflation = learned.inflation
        self._outer = learned.inflation * self.coef
        if share:
            prior = share * zero_shot_readout(values, moments.n_features).coef
            self.coef, self._outer = self.coef + prior, self._outer + prior
            if self.is_known:
                self._left_out = self._left_out + moments.means @ prior.T

    def losses(self):
        """Return the expected log-loss of left-out rows at each of the temperatures."""
        moments = self.moments
        total = moments.scatter.quadratic(torch.as_tensor(self._outer.T, device=moments.scatter.device)).cpu().numpy()
        centred = (moments.means - moments.mean) @ self._outer.T
        within = (total - (centred.T * moments.counts) @ centred) / moments.weight
        within *= moments.bessel
        scores, classes = draw_scores(self._left_out, within, moments.sizes, self.seen)
        share = moments.sizes[classes] / moments.sizes[classes].sum()
        own = self.seen[classes]
        right = scores[np.arange(len(scores)), own]
        spread = [scipy.special.logsumexp(tau * scores + self._log_prior, axis=1) for tau in _TEMPERATURES]
        return (spread - self._log_prior[own] - _TEMPERATURES[:, None] * right) @ share

    def temperature(self):
        """Return the temperature of the least expected loss, as far as left-out moments are trusted."""
        best = _TEMPERATURES[int(np.argmin(self.losses()))]
        return (SLACK * best) ** trust_in_left_out(self.moments, self._inflation)
