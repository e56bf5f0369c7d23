"""How much rounding may change a solve: condition numbers, and the warning about them.

Each of N additions rounds the moments by ``2**-53``, with errors of either sign, so the scatter matrix T is off by
about ``2**-53 · √N`` of its norm. Ridge scores ``K (T + λ)⁻¹ C`` magnify this error at most by the condition number of
``T + λ``, so rounding may change scores by ``condition · 2**-53 · √N``, relative to the size of the targets.
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

# Below this spread, squares of features lose digits to underflow, so it counts as zero.
LEAST_SPREAD = 2.0**-1000
# Three digits of the scores must be safe: the fourth changes a prediction only where two classes are all but tied.
_SAFE = 1e-3
_POWER_STEPS = 6
_MOST_NAMED = 3
# Correlations of more features would cost too much for a message.
_MOST_COMPARED = 4096


def score_error(condition: float, n_samples: float) -> float:
    """Return the relative change of the scores that rounding may cause.

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
        ``L⁻¹``, with L the Cholesky factor: ``L Lᵀ`` is the matrix.

    Returns
    -------
    float
        A lower bound, up to rounding; in practice it is a few per cent too small. Power iteration starts from the
        largest diagonal entries of the matrix and of its inverse.

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
        v = v / largest  # so that its squares neither overflow nor underflow
        length = v.norm()
        v = v / length
    return largest * length


def regular_factor(matrix: torch.Tensor) -> torch.Tensor:
    """Return the Cholesky factor of a positive semidefinite matrix, made regular where rounding leaves it singular.

    Parameters
    ----------
    matrix : torch.Tensor of shape (d, d)
        Its diagonal is changed in place.

    Returns
    -------
    torch.Tensor of shape (d, d)
        The factor of the matrix with a share of its trace added to the diagonal: the least of 0, 1e-12, 1e-10, ...
        with which the factorisation succeeds. The identity if the trace is zero.
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
    """Warn if scores may be off by more than a thousandth, or if features are too small; name reason and remedy.

    Parameters
    ----------
    condition : float
        Condition number of the problem that was solved.
    scatter : Scatter
        Scatter of the features.
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
    # Features that are lost in the rounding of the others matter only if the filter is too weak to remove them anyway.
    rounding = len(variances) * 2.0**-52
    strength = n_samples ** (-2.0 * alpha) if solver == "pinv" else alpha
    unheard = (variances > 0) & (variances < rounding * variances.max(initial=0.0)) & (strength < rounding)
    if trace < LEAST_SPREAD and (trace > 0 or 0 < largest_mean < LEAST_SPREAD**0.5):
        text = "the features (or weights) are so small that their squares vanish in float64"
        remedy = "multiply them by a constant, or use normalize=True"
    elif error > _SAFE:
        text = (
            f"the condition number of the solve is {condition:.1e}, so that rounding may change the scores by "
            f"{min(error, 1.0):.1g} of their size"
        )
        remedy = "take a larger alpha or alpha='auto'"
        if solver == "pinv":
            remedy = "take a smaller alpha or alpha='auto', which cut more, or solver='ridge'"
        remedy += ", scale features with StandardScaler or normalize=True, and drop constant and duplicate ones"
    elif unheard.any():
        text = f"{int(unheard.sum())} features are ignored, as they are smaller than the rounding errors of the others"
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
    """Return the stack level, as seen by the function that warns, of the first caller outside the library."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("faast_sklearn"):
        level, frame = level + 1, frame.f_back
    return level
