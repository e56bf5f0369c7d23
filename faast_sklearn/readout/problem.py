"""Moments and settings as one problem, which is solved on first access and from which predictions are made."""

import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from sklearn.exceptions import NotFittedError

from faast_sklearn.moments.blocks import Blocks
from faast_sklearn.moments.class_moments import ClassMoments
from faast_sklearn.persistence.arrays import Array, Labels
from faast_sklearn.persistence.fields import Boolean, Maybe, Number, OneOf
from faast_sklearn.persistence.not_saved import NotSaved, OrNotSaved
from faast_sklearn.persistence.state import Stateful, require
from faast_sklearn.readout.class_vectors import ClassValues
from faast_sklearn.readout.layers import FeatureScales, scaled_moments, solve_layers
from faast_sklearn.readout.linear import LinearReadout, discriminant_readout, score_readout
from faast_sklearn.readout.novelty import ClassDirections
from faast_sklearn.readout.zero_shot import (
    choose_prior_strength,
    mixed_readout,
    value_readout,
    with_examples_of_names,
    zero_shot_readout,
)
from faast_sklearn.solvers.condition import warn_if_ill_conditioned
from faast_sklearn.solvers.filters import Solution
from faast_sklearn.solvers.solve import fast_weights

__all__ = ["ReadoutProblem", "Settings", "SolvedReadout"]


@dataclass(frozen=True)
class Settings(Stateful):
    """The parameters of an estimator that the solve depends on.

    ``unit_rows``: moments are of rows of unit length. ``choose_layers``: inner layers may be left out.
    """

    solver: str = "ridge"
    alpha: float | str = "auto"
    intercept: bool = True
    unit_rows: bool = False
    prior_strength: float | str = 0.0
    choose_layers: bool = True

    _state: ClassVar = {
        "solver": OneOf("ridge", "pinv"),
        "alpha": OneOf("auto", field=Number(0)),
        "intercept": Boolean(),
        "unit_rows": Boolean(),
        "prior_strength": OneOf("auto", field=Number(0)),
        "choose_layers": Boolean(),
    }

    @property
    def discriminant(self) -> bool:
        """Whether weights are read out as a discriminant."""
        return self.solver == "ridge" and self.intercept


@dataclass(frozen=True)
class SolvedReadout(Stateful):
    """The outcome of a solve.

    Parameters
    ----------
    solution : Solution or None
        None without examples.
    readout : LinearReadout
        One column for each class.
    prior_strength : float
        The one that was used.
    factors : torch.Tensor of shape (d,), optional
        Factors that multiplied the features before the solve; zero for layers that are not read.
    """

    solution: Solution | None
    readout: LinearReadout
    prior_strength: float
    factors: Any = None

    _state: ClassVar = {
        "solution": Maybe(Solution.record()),
        "readout": LinearReadout.record(),
        "prior_strength": Number(0, infinite=True),
        "factors": Maybe(Array("d", least=0)),
    }


class ReadoutProblem(Stateful):
    """What an estimator has learnt and the parameters that go with it, solved once, under a lock.

    An estimator replaces it as a whole, so that threads that predict see one consistent state.

    Parameters
    ----------
    moments : ClassMoments
    classes : ndarray of shape (c,)
        Sorted; those of the moments and any others that were declared.
    settings : Settings
    values : ClassValues, optional
        Of ``classes``; None for one-hot codes.
    blocks : Blocks, optional
        Widths of the layers that the features come from; None if there is one layer.
    """

    _state: ClassVar = {
        "blocks": Maybe(Blocks.record()),
        "classes": Labels(),
        "settings": Settings.record(),
        "values": Maybe(ClassValues.record()),
        "moments": OrNotSaved(ClassMoments.record(), lambda moments: moments.n_rows),
        "solved": Maybe(SolvedReadout.record()),
    }

    def __init__(
        self,
        moments: Any,
        classes: np.ndarray,
        settings: "Settings",
        values: "ClassValues | None" = None,
        blocks: "Blocks | None" = None,
        solved: Any = None,
    ) -> None:
        self.moments, self.classes = moments, classes
        self.settings, self.values, self.blocks = settings, values, blocks
        self._solved = solved
        self._directions: ClassDirections | None = None
        self._lock = threading.Lock()

    @property
    def solved(self) -> Any:
        """The outcome of the solve."""
        with self._lock:
            if self._solved is None:
                self._solved = self._solve()
            return self._solved

    @property
    def n_features(self) -> int:
        """Number of features d."""
        return self.moments.n_features if self._solved is None else self._solved.readout.coef.shape[1]

    @property
    def examples(self) -> ClassMoments:
        """The moments that are solved: with the class vectors, if these are learnt as examples of their classes."""
        return self._examples()[0]

    def _examples(self):
        """Return the moments that are solved, and N0."""
        moments, strength = self.moments, self.settings.prior_strength
        if self.values is None or strength == 0.0 or not self.settings.discriminant or not moments.n_rows:
            return moments, strength
        return with_examples_of_names(moments, self.classes, self.values, strength)

    @property
    def directions(self) -> Any:
        """The class directions with which ``novelty`` compares rows from ``scales.rows``."""
        solution, scales = self.solved.solution, self.scales
        if len(self.moments.classes) < 2:
            raise NotFittedError(
                "novelty is measured against the means of two classes or more; learn examples of them."
            )
        with self._lock:
            if self._directions is None:
                ridge = self.settings.solver == "ridge"
                moments = scaled_moments(self.moments, scales)
                self._directions = ClassDirections(moments, solution.alpha if ridge else None)
            return self._directions

    @property
    def scales(self) -> FeatureScales:
        """How features were scaled before the solve."""
        return FeatureScales(self.solved.factors)

    def novelty(self, X: Any) -> Any:
        """Return the novelty of rows X of shape (n, d): an array or tensor, like X, of shape (n,)."""
        directions = self.directions
        return directions.novelty(self.scales.rows(X))

    def with_moments(self, moments: Any, settings: Any) -> Any:
        """Return a problem with these moments and settings, and the same classes, values and blocks."""
        return ReadoutProblem(moments, self.classes, settings, self.values, self.blocks)

    def without_moments(self) -> Any:
        """Return the solved problem with no more than it takes to predict."""
        solved = SolvedReadout(None, self.solved.readout, self.solved.prior_strength, self.solved.factors)
        nothing = NotSaved(self.moments.n_samples if isinstance(self.moments, NotSaved) else self.moments.n_rows)
        return ReadoutProblem(nothing, self.classes, self.settings, self.values, self.blocks, solved)

    def _solve(self):
        moments, settings, values = self.moments, self.settings, self.values
        if not moments.n_rows:
            if values is None:
                raise NotFittedError(
                    "Nothing has been learnt, or all of it has been forgotten; call 'partial_fit' or 'fit' first."
                )
            return SolvedReadout(None, zero_shot_readout(values, moments.n_features), np.inf)
        moments, strength = self._examples()
        if moments is not self.moments:
            values = None  # they are examples now
        how = {"solver": settings.solver, "alpha": settings.alpha, "intercept": settings.intercept}
        moments, solution, scales = solve_layers(
            moments,
            self.blocks,
            lambda scaled: fast_weights(scaled, **how),
            choose=settings.choose_layers,
            intercept=settings.intercept,
        )
        warn_if_ill_conditioned(
            solution.condition,
            moments.scatter,
            moments.n_samples,
            solver=settings.solver,
            alpha=solution.alpha,
            intercept=settings.intercept,
        )
        seen = np.searchsorted(self.classes, moments.classes)
        if values is not None:
            learned = value_readout(solution, moments, values, seen, settings.intercept)
        elif len(moments.classes) == 1:
            learned = LinearReadout(np.zeros((1, moments.n_features)), np.zeros(1))
        elif settings.discriminant:
            learned = discriminant_readout(solution, moments)
        else:
            learned = score_readout(solution, moments, settings.intercept)
        if values is None:
            readout = scales.unscaled(self._spread(learned, moments.classes))
            return SolvedReadout(solution, readout, 0.0 if self.values is None else strength, scales.factors)
        if strength == "auto":
            strength = choose_prior_strength(learned, moments, values, seen)
        readout = scales.unscaled(mixed_readout(learned, moments, values, seen, strength))
        return SolvedReadout(solution, readout, float(strength), scales.factors)

    def _spread(self, readout, seen):
        """Give classes that were declared but never seen a score of minus infinity."""
        if len(self.classes) == len(seen):
            return readout
        at = np.searchsorted(self.classes, seen)
        coef = np.zeros((len(self.classes), readout.coef.shape[1]))
        intercept = np.full(len(self.classes), -np.inf)
        coef[at], intercept[at] = readout.coef, readout.intercept
        return LinearReadout(coef, intercept, readout.temperature)

    # Directions are as large as the moments and quick to compute again, so no file or pickle holds them.
    def _stated(self):
        parts = {name: getattr(self, name) for name in ("blocks", "classes", "settings", "values", "moments")}
        return SimpleNamespace(**parts, solved=self._solved)

    @classmethod
    def _from_state(cls, blocks, classes, settings, values, moments, solved):
        left_out = isinstance(moments, NotSaved)
        require(left_out or np.isin(moments.classes, classes).all(), "moments have classes that are not listed")
        require(values is None or len(values.vectors) == len(classes), "there are not as many values as classes")
        require(solved is not None or not left_out, "there are neither moments nor weights")
        if solved is not None:
            require(len(solved.readout.coef) == len(classes), "the numbers of weights and classes differ")
        if solved is not None and not left_out:
            width, solution = moments.n_features, solved.solution
            require(solved.readout.coef.shape[1] == width, "weights and moments have different numbers of features")
            n_read = width if solved.factors is None else int((solved.factors > 0).sum())
            require(solution is None or n_read <= len(solution.weights) <= width, "the solution has another width")
        require(blocks is None or left_out or sum(blocks.widths) == moments.n_features, "blocks have another width")
        return cls(moments, classes, settings, values, blocks, solved)

    def __deepcopy__(self, memo):
        return self  # nothing in it changes after the solve
