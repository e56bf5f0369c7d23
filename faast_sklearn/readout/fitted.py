"""Moments and parameters, solved when first asked: what predictions are made from."""

import threading
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import NotFittedError

from faast_sklearn.features.normalize import unit_rows
from faast_sklearn.moments.class_moments import ClassMoments
from faast_sklearn.readout.linear import LinearReadout, discriminant_readout, score_readout
from faast_sklearn.readout.novelty import ClassDirections
from faast_sklearn.readout.zero_shot import choose_prior_strength, mixed_readout, value_readout, zero_shot_readout
from faast_sklearn.solvers.closed_form import Solution, fast_weights
from faast_sklearn.solvers.condition import warn_if_ill_conditioned

__all__ = ["Compiled", "Fitted", "Settings"]


@dataclass(frozen=True)
class Settings:
    """The parameters of an estimator that the solve depends on; ``unit_rows``: moments are of rows of unit length."""

    solver: str = "ridge"
    alpha: float | str = "auto"
    intercept: bool = True
    unit_rows: bool = False
    prior_strength: float | str = 0.0


@dataclass(frozen=True)
class Fitted:
    """The outcome of a solve.

    Parameters
    ----------
    moments : ClassMoments
    solution : Solution or None
        None without examples.
    readout : LinearReadout
        One column for each class.
    prior_strength : float
        The one that was used.
    """

    moments: ClassMoments
    solution: Solution | None
    readout: LinearReadout
    prior_strength: float


class Compiled:
    """What an estimator has learnt and the parameters that go with it, solved once, under a lock.

    An estimator replaces it as a whole, so that threads that predict see one consistent state.

    Parameters
    ----------
    learnt : ClassMoments
    classes : ndarray of shape (c,)
        Sorted; those of the moments and more that were declared.
    settings : Settings
    values : ClassValues, optional
        Of ``classes``; None for one-hot codes.
    """

    def __init__(self, learnt, classes, settings, values=None):
        self.learnt, self.classes = learnt, classes
        self.settings, self._values = settings, values
        self._fitted = self._directions = None
        self._lock = threading.Lock()

    @property
    def fitted(self):
        """The outcome of the solve."""
        with self._lock:
            if self._fitted is None:
                self._fitted = self._solve()
            return self._fitted

    @property
    def n_features(self):
        """Number of features d."""
        return self.learnt.n_features if self._fitted is None else self._fitted.readout.coef.shape[1]

    def mapped(self, features):
        """Return features as they were learnt: themselves, or at unit length."""
        return unit_rows(features) if self.settings.unit_rows else features

    @property
    def directions(self):
        """The class directions that novelty is measured against."""
        fitted = self.fitted
        if len(fitted.moments.classes) < 2:
            raise NotFittedError(
                "novelty is measured against the means of two classes or more; learn examples of them."
            )
        with self._lock:
            if self._directions is None:
                ridge = self.settings.solver == "ridge"
                self._directions = ClassDirections(fitted.moments, fitted.solution.alpha if ridge else None)
            return self._directions

    def refitted(self, learnt, settings):
        """Return what other moments and settings give, for the same classes and values."""
        return Compiled(learnt, self.classes, settings, self._values)

    def _solve(self):
        moments, settings, values = self.learnt, self.settings, self._values
        if not moments.n_rows:
            if values is None:
                raise NotFittedError(
                    "Nothing has been learnt, or all of it has been forgotten; call 'partial_fit' or 'fit' first."
                )
            return Fitted(moments, None, zero_shot_readout(values, moments.n_features), np.inf)
        solution = fast_weights(moments, solver=settings.solver, alpha=settings.alpha, intercept=settings.intercept)
        warn_if_ill_conditioned(
            solution.condition,
            moments.scatter,
            moments.n_samples,
            solver=settings.solver,
            alpha=solution.alpha,
            intercept=settings.intercept,
        )
        discriminant = settings.solver == "ridge" and settings.intercept
        seen = np.searchsorted(self.classes, moments.classes)
        if values is not None and (settings.prior_strength == 0.0 or not discriminant):
            learned = value_readout(solution, moments, values, seen, settings.intercept)
        elif len(moments.classes) == 1:
            learned = LinearReadout(np.zeros((1, moments.n_features)), np.zeros(1))
        elif discriminant:
            learned = discriminant_readout(solution, moments)
        else:
            learned = score_readout(solution, moments, settings.intercept)
        if values is None:
            return Fitted(moments, solution, self._spread(learned, moments.classes), 0.0)
        shares = discriminant and settings.prior_strength != 0.0
        strength = settings.prior_strength
        if strength == "auto":
            strength = choose_prior_strength(learned, moments, values, seen, shares)
        readout = mixed_readout(learned, moments, values, seen, strength, shares)
        return Fitted(moments, solution, readout, float(strength))

    def _spread(self, readout, seen):
        """Give classes that were declared but never seen a score of minus infinity."""
        if len(self.classes) == len(seen):
            return readout
        at = np.searchsorted(self.classes, seen)
        coef = np.zeros((len(self.classes), readout.coef.shape[1]))
        intercept = np.full(len(self.classes), -np.inf)
        coef[at], intercept[at] = readout.coef, readout.intercept
        return LinearReadout(coef, intercept, readout.temperature)

    def __getstate__(self):
        # A factor as large as the moments, and as quick to make again.
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_directions")}

    def __setstate__(self, state):
        self.__dict__.update(state, _directions=None, _lock=threading.Lock())

    def __deepcopy__(self, memo):
        return self  # nothing in it changes after the solve
