"""Values in place of one-hot codes: the nearest value, the zero-shot prior, and how many examples it is worth.

Ridge weights with an intercept learn the vector of each class as one more example of it. The paper mixes instead: its
vision classifier (Bao et al., arXiv 2605.04651, section 3) predicts ``y = (1 − r) x + r xW``, with
``r = N / (N0 + N)``, and compares y with the vector eₖ of each class by cosine. The length of y is common to all
classes, so that the argmax is that of ``(1 − r) x·eₖ + r (xW)·eₖ``, linear in x: the zero-shot score and what was
learnt, weighted.
"""

from typing import Any, Literal

import numpy as np
import scipy.special
import torch

from faast_sklearn.moments.class_moments import ClassMoments
from faast_sklearn.readout.calibration import SLACK, draw_scores, trust_in_left_out
from faast_sklearn.readout.linear import LinearReadout, score_readout, within_class

__all__ = [
    "choose_prior_strength",
    "mixed_readout",
    "prior_weight",
    "value_readout",
    "with_examples_of_names",
    "zero_shot_readout",
]

# Candidates of N0, and where it lies while there are too few examples to tell: five a class.
_STRENGTHS = np.logspace(-1, 5, 25)
_A_CLASS = 5.0
_TEMPERATURES = np.logspace(-1, 1, 17)
# The most examples that the vector of a class counts for when the statistics say how many.
_MOST_EXAMPLES = 20.0


def with_examples_of_names(
    moments: ClassMoments, classes: np.ndarray, values: Any, strength: float | Literal["auto"]
) -> tuple[ClassMoments, float]:
    """Add the vector of each class to the moments, as one example of it with a weight.

    Vectors are moved by the difference between the mean of the class means and theirs, since texts and images lie
    apart in the space of a dual encoder. Features that vectors do not have, those of inner layers, are put at the mean.

    Requests to an assistant (MiniLM, 30 classes, one example per class): 95.0 % where a mixture in log-odds had 94.1
    and no names 87.8; with the names of other classes 87.9, and 0.6 in the mixture.

    Parameters
    ----------
    moments : ClassMoments
        Of rows of unit length.
    classes : ndarray of shape (c,)
        All classes, sorted.
    values : ClassValues
        Of ``classes``.
    strength : float or "auto"
        N0: how many rows the vectors weigh together. "auto": per class ``v / t²``, with v the spread of a row about its
        class mean and t² the squared distance of a vector from it, 20 at most; vectors are then shrunk towards their
        mean as far as class means do not follow them (``β``, the slope of class means on vectors), so that vectors that
        say nothing do no harm. All follow from the second moments of class means and vectors.

    Returns
    -------
    (ClassMoments, float)
        And the N0 that was used.
    """
    m = values.vectors.shape[1]
    seen = np.searchsorted(classes, moments.classes)
    means, vectors, slope = moments.means, values.vectors, 1.0
    if strength == "auto":
        worth, slope = _worth_of_names(moments, means[:, :m], vectors[seen])
        strength = len(classes) * worth
    n0 = float(strength)

    def make():
        rows = np.repeat(means.mean(0)[None], len(classes), axis=0)
        rows[:, :m] += slope * (vectors - vectors[seen].mean(0))
        names = ClassMoments.from_rows(torch.as_tensor(rows, device=moments.scatter.device), classes)
        return moments + names.scale(n0 / len(classes) * moments.weight / moments.n_samples)

    return moments.derived(("names", tuple(classes.tolist()), vectors.tobytes(), slope, n0), make), n0


def _worth_of_names(moments, means, vectors):
    """Return how many rows of a class say as much of its mean as its vector, and the slope of means on vectors."""
    c, n = len(means), moments.n_samples
    if c < 2:
        return 1.0, 1.0
    per_class = c / (1.0 / moments.sizes).sum()
    spread = means - means.mean(0)
    shared = max(float((spread * (vectors - vectors.mean(0))).sum()) / (c - 1), 0.0)
    of_means = float((spread**2).sum()) / (c - 1)
    of_vectors = float(((vectors - vectors.mean(0)) ** 2).sum()) / (c - 1)
    about = means - moments.mean[: means.shape[1]]
    total = float(moments.scatter.variances()[: means.shape[1]].sum()) - float(moments.counts @ (about**2).sum(1))
    within = max(total, 0.0) / moments.weight * n
    noise = (within + (c - 1) * per_class * max(of_means - shared, 0.0)) / (n - 1)
    true = max(of_means - noise / per_class, shared)
    # With one row per class the noise is what spreads class means beyond what vectors share with them.
    distance = max(of_vectors - 2.0 * shared + true, 1e-9)
    return min(noise / distance, _MOST_EXAMPLES), shared / max(of_vectors, 1e-9)


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
    """Return the readout ``κ x·eₖ`` of unit rows x, for d features of which the values speak of the first m.

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
        Positions of the classes of ``moments`` among them.
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


def mixed_readout(learned: "LinearReadout", moments: Any, values: Any, seen: Any, strength: float) -> "LinearReadout":
    """Weigh what was learnt against the zero-shot prediction.

    Parameters
    ----------
    learned : LinearReadout
        Of all classes.
    moments, values, seen
        As in :func:`value_readout`.
    strength : float
        N0.

    Returns
    -------
    LinearReadout
        Calibrated.
    """
    share = prior_weight(moments.n_samples, strength)
    prior = zero_shot_readout(values, moments.n_features).coef if share else np.zeros_like(learned.coef)
    tau = _Mixture(learned, prior, moments, seen).temperature(share)
    coef, intercept = (1.0 - share) * learned.coef + share * prior, (1.0 - share) * learned.intercept
    return LinearReadout(tau * coef, tau * intercept)


def choose_prior_strength(learned: Any, moments: Any, values: Any, seen: Any) -> float:
    """Return the N0 of the least expected log-loss of left-out rows.

    Scores of left-out rows are taken as distributed about their class means with the tails of a t distribution, as
    for the temperature in :mod:`faast_sklearn.readout`; what the zero-shot prediction says needs no leaving out.
    With few rows the choice is drawn, in its logarithm, towards five examples a class.

    Parameters
    ----------
    learned, moments, values, seen
        As in :func:`mixed_readout`.

    Returns
    -------
    float
        O(d² c), and for each of 25 strengths O(c) for each of 2,000 draws and 17 temperatures.
    """
    default = _A_CLASS * len(values.vectors)
    trust = trust_in_left_out(moments, learned.inflation)
    if trust == 0.0:
        return default
    mixture = _Mixture(learned, zero_shot_readout(values, moments.n_features).coef, moments, seen)
    losses = [mixture.losses(prior_weight(moments.n_samples, strength)).min() for strength in _STRENGTHS]
    return float(_STRENGTHS[int(np.argmin(losses))] ** trust * default ** (1.0 - trust))


class _Mixture:
    """How scores of left-out rows are distributed under ``(1 − share) · learned + share · zero-shot``."""

    def __init__(self, learned, prior, moments, seen):
        # Only what was learnt spreads wider out of sample than in sample.
        coefs = np.concatenate([learned.inflation * learned.coef, prior])
        total = moments.scatter.quadratic(torch.as_tensor(coefs.T, device=moments.scatter.device)).cpu().numpy()
        within = within_class((moments.means - moments.mean) @ coefs.T, total, moments)
        self._within = within.reshape(2, len(prior), 2, len(prior))
        self._left_out, self._prior = learned.left_out, moments.means @ prior.T
        self._sizes, self._seen = moments.sizes, seen
        self._trust = trust_in_left_out(moments, learned.inflation)

    def losses(self, share):
        """Return the expected log-loss of left-out rows at each of the temperatures."""
        shares = np.array([1.0 - share, share])
        within = np.einsum("i,iajb,j->ab", shares, self._within, shares)
        means = shares[0] * self._left_out + shares[1] * self._prior
        scores, classes = draw_scores(means, within, self._sizes, self._seen)
        weights = self._sizes[classes] / self._sizes[classes].sum()
        right = scores[np.arange(len(scores)), self._seen[classes]]
        spread = [scipy.special.logsumexp(tau * scores, axis=1) for tau in _TEMPERATURES]
        return (spread - _TEMPERATURES[:, None] * right) @ weights

    def temperature(self, share):
        """Return the temperature of the least expected loss, as far as left-out moments are believed."""
        return (SLACK * _TEMPERATURES[int(np.argmin(self.losses(share)))]) ** self._trust
