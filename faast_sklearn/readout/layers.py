"""Whether inner layers are read, decided by generalised cross-validation, and how their features are scaled."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from faast_sklearn.solvers.gcv import gcv_error

__all__ = ["FeatureScales", "scaled_moments", "solve_layers"]

# Inner layers are left out if the error with them is larger by more than this factor.
_CLEARLY = 1.02


class FeatureScales:
    """The factors by which features are multiplied before the solve.

    Parameters
    ----------
    factors : torch.Tensor of shape (d,) or None
        Zero for features that are not read, which come last; None leaves all features as they are.
    """

    def __init__(self, factors: Any = None) -> None:
        self.factors = factors
        self._width = None if factors is None else int(factors.nonzero().max()) + 1 if bool(factors.any()) else 1

    def moments(self, moments: Any) -> Any:
        """Return moments of the scaled features that are read."""
        if self.factors is None:
            return moments
        return moments.leading(self._width).scaled_features(self.factors[: self._width].to(moments.scatter.device))

    def rows(self, X: Any) -> Any:
        """Return rows of the scaled features that are read, in float64."""
        if self.factors is None:
            return X
        factors = self.factors[: self._width]
        if isinstance(X, np.ndarray):
            return X[:, : self._width] * factors.cpu().numpy()
        return X[:, : self._width].to(torch.float64) * factors.to(X.device)

    def unscaled(self, readout: Any) -> Any:
        """Return a readout of the unscaled features that gives the same scores."""
        if self.factors is None:
            return readout
        coef = np.zeros((len(readout.coef), len(self.factors)))
        coef[:, : self._width] = readout.coef * self.factors[: self._width].cpu().numpy()
        return replace(readout, coef=coef)


def solve_layers(moments: Any, blocks: Any, solve: Any, *, choose: bool, intercept: bool) -> tuple:
    """Solve with the inner layers and, to compare, with the last layer alone.

    The last layer alone is read if the generalised cross-validation error with inner layers is larger by more than 2 %.
    On photographs, digits and intents with 1 to 64 examples per class, inner layers raised the accuracy in all cases in
    which their error was smaller.

    Parameters
    ----------
    moments : ClassMoments
    blocks : Blocks or None
        None if there are no inner layers.
    solve : callable
        Returns the Solution of moments.
    choose : bool
        Whether the last layer alone may be taken.
    intercept : bool
        Whether ``solve`` centres features and targets.

    Returns
    -------
    (ClassMoments, Solution, FeatureScales)
        Moments of the scaled features that are read, their solution, and how they were scaled. This takes two solves;
        that of the last layer is the cheaper.
    """
    if blocks is None:
        return moments, solve(moments), FeatureScales()
    factors = blocks.scales(moments)
    candidates = [factors]
    # If no inner feature varies, both candidates are the same.
    if choose and len(moments.classes) > 1 and bool(factors[blocks.n_last :].any()):
        last = torch.zeros_like(factors)
        last[: blocks.n_last] = 1.0
        candidates.append(last)
    solved = []
    for one in candidates:
        scales = FeatureScales(one)
        scaled = scaled_moments(moments, scales)
        solved.append((scaled, solve(scaled), scales))
    if len(solved) > 1:
        errors = [gcv_error(solution, scaled, intercept=intercept) for scaled, solution, _ in solved]
        if errors[0] > _CLEARLY * errors[1]:
            return solved[1]
    return solved[0]


def scaled_moments(moments: Any, scales: FeatureScales) -> Any:
    """Return moments of scaled features; they remember decompositions if ``moments`` does."""
    if scales.factors is None:
        return moments
    key = ("scaled", scales.factors.cpu().numpy().tobytes())
    return moments.derived(key, lambda: scales.moments(moments))
