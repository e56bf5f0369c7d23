"""How far rounding reaches into a solve: what a condition number costs, and the warning that says so.

Moments are rounded to ``2**-53`` at each of N additions, errors of either sign, so that the scatter matrix T is off by
about ``2**-53 · √N`` of its norm. Ridge scores ``K (T + λ)⁻¹ C`` magnify that by the condition number of ``T + λ`` at
most, with respect to the size of the targets. ``condition · 2**-53 · √N`` is the share of the scores that rounding may
change.
"""

import sys
import warnings
from typing import Any, Literal

import numpy as np
import torch

from faast_sklearn.errors import ConditionWarning, listed

__all__ = [
    "LEAST_SPREAD",
    "condition_estimate",
    "regular_factor",
    "safe_condition",
    "score_error",
    "warn_if_ill_conditioned",
]

# Below it the squares of features lose digits to underflow, and there is no spread to speak of.
LEAST_SPREAD = 2.0**-1000
# Three digits of the scores have to be safe: ties apart, no prediction hangs on the fourth.
_SAFE = 1e-3
_POWER_STEPS = 6
_MOST_NAMED = 3
# Correlations of more features than these are not looked at for the sake of a message.
_MOST_COMPARED = 4096


def score_error(condition: float, n_samples: float) -> float:
    """Return the share of the scores that rounding may change.

    Parameters
    ----------
    condition : float
    n_samples : float

    Returns
    -------
    float

    Examples
    --------
    >>> from faast_sklearn.solvers.condition import score_error
    >>> f"{score_error(1e6, 10_000):.0e}"
    '1e-08'
    """
    return condition * 2.0**-53 * max(n_samples, 1.0) ** 0.5


def safe_condition(n_samples: Any) -> Any:
    """Return the condition number up to which three digits of the scores are safe; 9e9 for a million rows."""
    return _SAFE / score_error(1.0, n_samples)


def condition_estimate(matrix: torch.Tensor, inverse_factor: torch.Tensor) -> float:
    """Estimate the condition number of a positive definite matrix from its Cholesky factor, in O(d²).

    Parameters
    ----------
    matrix : torch.Tensor of shape (d, d)
    inverse_factor : torch.Tensor of shape (d, d)
        ``L⁻¹`` where ``L Lᵀ`` is the matrix.

    Returns
    -------
    float
        Never too large but for rounding; in practice a few per cent too small. By power iteration, from the column
        that says most.

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.solvers.condition import condition_estimate
    >>> values = torch.tensor([1.0, 10.0, 400.0], dtype=torch.float64)
    >>> round(condition_estimate(torch.diag(values), torch.diag(values.rsqrt())), 6)
    400.0
    """
    largest = _largest_eigenvalue(lambda v: matrix @ v, matrix.diagonal().argmax(), matrix)
    inverse = _largest_eigenvalue(
        lambda v: inverse_factor.T @ (inverse_factor @ v), inverse_factor.square().sum(0).argmax(), matrix
    )
    return max(float(largest * inverse), 1.0)


def _largest_eigenvalue(times, start, matrix):
    v = torch.zeros_like(matrix[0])
    v[start] = 1.0
    for _ in range(_POWER_STEPS):
        v = times(v)
        largest = v.abs().amax()
        v = v / largest  # whose squares neither overflow nor vanish
        length = v.norm()
        v = v / length
    return largest * length


def regular_factor(matrix: torch.Tensor) -> torch.Tensor:
    """Return the Cholesky factor of a positive semidefinite matrix, made regular where rounding leaves it singular.

    Parameters
    ----------
    matrix : torch.Tensor of shape (d, d)
        Its diagonal is changed.

    Returns
    -------
    torch.Tensor of shape (d, d)
        Of the matrix and the least of a few shares of its trace, from 1e-12 on, with which the factorisation goes
        through; the identity where there is no trace.
    """
    trace = float(matrix.diagonal().sum())
    if not trace > LEAST_SPREAD:
        return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    added = 0.0
    for share in (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0):
        matrix.diagonal().add_((share - added) * trace)
        added = share
        factor, info = torch.linalg.cholesky_ex(matrix)
        if not int(info):
            break
    return factor


def warn_if_ill_conditioned(
    condition: float, scatter: Any, n_samples: float, *, solver: Literal["ridge", "pinv"], alpha: float, intercept: bool
) -> None:
    """Warn where rounding may change the scores by more than a thousandth; the message has reason and remedy.

    Parameters
    ----------
    condition : float
        Of the problem that was solved.
    scatter : Scatter
        Of the features.
    n_samples : float
    solver : {"ridge", "pinv"}
    alpha : float
    intercept : bool
        Whether features were centred.

    Warns
    -----
    ConditionWarning
    """
    largest_mean = float(scatter.mean.abs().max())
    scatter = scatter.significant() if intercept else scatter.about_origin()
    error, variances = score_error(condition, n_samples), scatter.variances().cpu().numpy()
    trace = float(variances.sum())
    # Too small beside the others to be told from rounding; a filter of ordinary strength hides them anyway.
    rounding = len(variances) * 2.0**-52
    strength = n_samples ** (-2.0 * alpha) if solver == "pinv" else alpha
    unheard = (variances > 0) & (variances < rounding * variances.max(initial=0.0)) & (strength < rounding)
    if trace < LEAST_SPREAD and (trace > 0 or 0 < largest_mean < LEAST_SPREAD**0.5):
        text = "the features (or weights) are so small that their squares vanish in float64"
        remedy = "multiply them by a constant, or use normalize=True"
    elif error > _SAFE:
        text = (
            f"the condition number of the solve is {condition:.1e}, so that rounding may change "
            f"{min(error, 1.0):.1g} of the scores"
        )
        remedy = "take a larger alpha or alpha='auto'"
        if solver == "pinv":
            remedy = "take a smaller alpha or alpha='auto', which cut more, or solver='ridge'"
        remedy += ", scale features with StandardScaler or normalize=True, and drop constant and duplicate ones"
    elif unheard.any():
        text = f"{int(unheard.sum())} features are too small beside the others to be told from rounding: no weight"
        remedy = "scale features with StandardScaler in front"
    else:
        return
    reasons = _reasons(scatter, variances, solver, alpha)
    warnings.warn(f"{text} ({'; '.join(reasons)}). Remedy: {remedy}.", ConditionWarning, stacklevel=_caller())


def _reasons(scatter, variances, solver, alpha):
    reasons = [f"solver={solver!r}, alpha={alpha:.3g}"]
    varying = np.flatnonzero(variances > 0)
    constant = np.flatnonzero(variances <= 0)
    if len(varying):
        order = varying[np.argsort(variances[varying], kind="stable")]
        ratio = np.sqrt(variances[order[-1]]) / np.sqrt(variances[order[0]])
        if ratio > 1e3:
            reasons.append(
                f"scales of features differ by {ratio:.0e}, largest {_named(order[::-1])}, smallest {_named(order)}"
            )
    if len(constant):
        reasons.append(f"constant: {_named(constant)}")
    if len(varying) > 1 and len(variances) <= _MOST_COMPARED:
        root = np.sqrt(variances[varying])
        matrix = scatter.matrix().cpu().numpy()[np.ix_(varying, varying)]
        again = np.triu(np.abs(matrix / root[:, None] / root) > 1 - 1e-12, 1)
        if again.any():
            first, second = np.nonzero(again)
            pairs = [f"{varying[i]} and {varying[j]}" for i, j in zip(first, second, strict=True)]
            reasons.append(f"equal up to scale: {listed(pairs, _MOST_NAMED)}")
    return reasons


def _named(columns):
    return "column " + listed([str(column) for column in columns], _MOST_NAMED)


def _caller():
    """Return the stack level, for who warns, of the first caller outside of the library."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("faast_sklearn"):
        level, frame = level + 1, frame.f_back
    return level
