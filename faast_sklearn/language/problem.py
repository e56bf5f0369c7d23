"""Moments and settings as one problem: choose alpha and strengths on held-out tokens, then solve with all tokens."""

import functools
import numbers
import operator
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import torch

from faast_sklearn.language.calibration import (
    HeldOut,
    best_weights,
    interpolation_weight,
    is_better,
    losses_at,
    losses_before,
    losses_with,
)
from faast_sklearn.language.choice_weights import (
    choice_directions,
    choice_fast_weights,
    choice_moments,
)
from faast_sklearn.language.descent import Descent
from faast_sklearn.language.fast_weights import FastWeights, Middle
from faast_sklearn.language.moments import LanguageMoments
from faast_sklearn.language.solving import (
    ALPHAS,
    DAMPING,
    FURTHER_DAMPING,
    associative_weights,
    curvature,
    key_condition,
    residual_directions,
    token_spectrum,
)
from faast_sklearn.language.tokens import TARGETS, token_moments
from faast_sklearn.persistence.fields import Boolean, Integer, Listed, Maybe, Number, OneOf
from faast_sklearn.persistence.not_saved import NotSaved, OrNotSaved
from faast_sklearn.persistence.state import Stateful, require
from faast_sklearn.solvers.condition import warn_if_ill_conditioned

__all__ = ["SolvedWeights", "WeightProblem", "check_settings", "solve_weights"]

# Strengths of step and shift at memory_weight=1.
_UNIT = (1.0, 0.75)
_FEW_TOKENS = 4000.0
# Strengths of the discriminant and of the frozen model if nothing is held out: the prior of the search.
_FEW_CHOICES = (0.5, 1.0)
_MIDDLE_ALPHA = {"ridge": 0.1, "pinv": 0.5}
# Of further steps. 0.1 and 0.5 are equally good on 19,000 and 56,000 tokens of translations and 2,300 of short answers.
_FURTHER_ALPHA = 0.3
# Held-out tokens that are a smaller share of all than one in so many stay unlearnt by further steps.
_SMALL_SHARE = 16
# Held-out tokens that compare alphas; strengths at the best one are then chosen on all held-out tokens.
_TRIAL_TOKENS = 256


@dataclass(frozen=True, eq=False)
class SolvedWeights(Stateful):
    """Fast weights and the settings that gave them.

    Parameters
    ----------
    weights : FastWeights
    alpha : float
        The regulariser used.
    memory_weight : float
        The strength used.
    shift_weight : float
        Strength of the vocabulary's shift; 0 for targets without a shift.
    held_out_loss : float or None
        Negative log-likelihood per held-out token, at these strengths; None if nothing was held out.
    condition : float or None
        Condition number of the solve for the keys of the output memory; None if nothing was solved.
    n_iter : int, default=1
        Closed-form steps that gave the weights.
    """

    weights: FastWeights
    alpha: float
    memory_weight: float
    shift_weight: float = 0.0
    held_out_loss: float | None = None
    condition: float | None = None
    n_iter: int = 1

    _state: ClassVar = {
        "weights": FastWeights.record(),
        "alpha": Number(0),
        "memory_weight": Number(),
        "shift_weight": Number(),
        "held_out_loss": Maybe(Number()),
        "condition": Maybe(Number(1)),
        "n_iter": Integer(),
    }


def check_settings(*, target: Any, solver: Any, alpha: Any, memory_weight: Any, max_iter: Any) -> None:
    """Raise ValueError for a setting that :func:`solve_weights` does not know."""
    for name, value, allowed in (("target", target, TARGETS), ("solver", solver, ("ridge", "pinv"))):
        if not (isinstance(value, str) and value in allowed):
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    for name, value in (("alpha", alpha), ("memory_weight", memory_weight)):
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (isinstance(value, str) and value == "auto") and not (number and 0 <= value < float("inf")):
            raise ValueError(f"{name} must be 'auto' or a finite number of at least 0, got {value!r}.")
    if isinstance(max_iter, bool) or not (isinstance(max_iter, numbers.Integral) and max_iter >= 1):
        raise ValueError(f"max_iter must be an integer of at least 1, got {max_iter!r}.")


def solve_weights(
    lm: Any,
    moments: Any,
    *,
    target: Literal["residual", "embedding"],
    solver: Literal["ridge", "pinv"],
    alpha: float | Literal["auto"],
    memory_weight: float | Literal["auto"],
    max_iter: int = 1,
    among: Sequence | None = None,
    base: "FastWeights | None" = None,
    hold_out: bool = False,
) -> "SolvedWeights":
    """Solve for fast weights.

    Held-out tokens come from the reserve. If it has more than a quarter of all tokens, it is split into up to four
    folds, each left out of the statistics in turn; else it is left out as a whole. Where data is read in several
    passes, all hold out the first fold only, and none starts from weights that have learnt it.

    Parameters
    ----------
    lm : LanguageModel
    moments : LanguageMoments
    target : {"residual", "embedding"}
    solver : {"ridge", "pinv"}
    alpha, memory_weight : float or "auto"
    max_iter : int, default=1
        Most closed-form steps; further ones need ``memory_weight="auto"``, ``target="residual"``, ``solver="ridge"``
        and a model without ``base``.
    among : sequence of sequences of int, default=None
        If only some answers are possible, the nodes of their tree, see
        :class:`~faast_sklearn.language.choices.ChoiceTree`: the tokens that may follow, node by node. With
        ``target="residual"`` moments are then those of its edges, and losses are of a softmax over the tokens of each
        node; with "embedding", over those of all nodes. By default it is over the whole vocabulary.
    base : FastWeights, default=None
        Weights at which residuals were taken; the result includes them. By default the frozen model.
    hold_out : bool, default=False
        Solve for the weights without the held-out tokens too, so that another pass can start from them.

    Returns
    -------
    SolvedWeights
    """
    if memory_weight == 0:
        return SolvedWeights(FastWeights(target, None), 0.0 if alpha == "auto" else float(alpha), 0.0)
    if lm.readouts is not None:
        return _published(lm, moments, alpha, memory_weight)
    if target == "embedding":
        return _embedding(lm, moments, solver, alpha, memory_weight, among)
    if among is not None:
        return _choices(lm, moments, solver, alpha, memory_weight, among)
    return _residual(lm, moments, solver, alpha, memory_weight, max_iter, base, hold_out)


def _choices(lm, moments, solver, alpha, memory_weight, nodes):
    """Solve for a discriminant between the tokens that decide; its strengths are chosen on held-out samples."""
    directions, solutions = choice_directions(lm, moments, nodes, solver, alpha)
    parts, loss, share = [], None, 1.0
    if memory_weight == "auto":

        def statistics(keys, edges):
            return LanguageMoments(*choice_moments(keys.to(moments.output.device), edges, nodes))

        for part in _left_out(lm, moments, moments, statistics):
            learnt, (found, _) = part.learnt, choice_directions(lm, part.learnt, nodes, solver, alpha)
            parts += _by_node(part.learning(found), nodes, learnt.output.counts.to(lm.device) > 0.5)
    if memory_weight != "auto":
        strengths, share = (float(memory_weight), _FEW_CHOICES[1]), min(float(memory_weight), 1.0)
    elif not parts:
        strengths = _FEW_CHOICES
    else:
        strengths, losses = best_weights(lm, parts, _FEW_CHOICES)
        before = losses_before(lm, parts)
        if not losses.sum() < before.sum():
            strengths, losses = (0.0, 0.0), before
        loss = float(losses.mean())
    condition, weights = None, FastWeights("residual", None)
    if any(strengths):
        weights = choice_fast_weights(lm, directions, *strengths, share)
        for solution in solutions[:1]:
            condition, keys = solution.condition, moments.output.memory.keys
            how = {"solver": solver, "alpha": solution.alpha, "intercept": True}
            warn_if_ill_conditioned(condition, keys, moments.output.n_tokens, **how)
    alpha = solutions[0].alpha if solutions else 0.0 if alpha == "auto" else alpha
    return SolvedWeights(weights, float(alpha), *strengths, loss, condition)


def _by_node(part, nodes, known):
    """Split held-out edges by the node of the tree, without the edges of which no example was learnt."""
    split, start = [], 0
    for tokens in nodes:
        edges = torch.arange(start, start + len(tokens), device=part.targets.device)
        edges, start = edges[known[edges]], start + len(tokens)
        at = torch.isin(part.targets, edges)
        if len(edges) > 1 and bool(at.any()):
            among = torch.tensor([token for node in nodes for token in node], device=edges.device)[edges]
            rows = {name: getattr(part, name)[at] for name in ("keys", "samples")}
            targets = torch.searchsorted(edges, part.targets[at])
            split.append(HeldOut(**rows, targets=targets, learnt=part.learnt.of(among), among=among))
    return split


def _residual(lm, moments, solver, alpha, memory_weight, max_iter, base, hold_out):
    output = moments.output
    damped = curvature(lm, output)
    factor = damped(DAMPING)
    further_alpha = _FURTHER_ALPHA if alpha == "auto" else alpha
    automatic = memory_weight == "auto"
    single = hold_out or base is not None
    needed = automatic or alpha == "auto" or hold_out
    statistics = functools.partial(token_moments, lm, "residual", weights=base)
    parts = _left_out(lm, moments, output, statistics, base, single) if needed else []
    parts = [part.learning(part.learnt.with_prompts(output.prompts)) for part in parts]
    strengths = _few(output) if automatic else tuple(memory_weight * w for w in _UNIT)
    spectra = [token_spectrum(part.learnt) for part in parts]  # the same for every alpha

    def trial(alpha, start, most=None):
        held = []
        for part, spectrum in zip(parts, spectra, strict=True):
            directions = residual_directions(part.learnt, spectrum, factor, solver, alpha, lm.finish.scale)
            held.append(part.learning(directions, None if most is None else max(1, most // len(parts))))
        return best_weights(lm, held, start) if automatic else (start, losses_at(lm, held, start))

    if alpha == "auto" and not parts:
        alpha = _MIDDLE_ALPHA[solver]
    elif alpha == "auto":
        # The strongest filter comes first; each search starts where the one before ended.
        tried, start = {}, strengths
        for one in sorted(ALPHAS[solver], reverse=solver == "ridge"):
            start, losses = tried[one] = trial(one, start, _TRIAL_TOKENS)
        alpha = min(tried, key=lambda one: float(tried[one][1].sum()))
        strengths = tried[alpha][0]
    loss = None
    if parts:
        strengths, losses = trial(alpha, strengths)
        before = losses_before(lm, parts)
        if automatic and not is_better(before, losses, parts):
            strengths, losses = (0.0, 0.0), before
        loss = float(losses.mean())
    first, second = strengths
    weights, condition = FastWeights("residual", None), None
    if first or second:
        if hold_out and parts:
            learnt, spectrum = parts[0].learnt, spectra[0]
        else:
            learnt, spectrum = output, token_spectrum(output)
        found = residual_directions(learnt, spectrum, factor, solver, alpha, lm.finish.scale)
        condition = key_condition(learnt, spectrum, solver, alpha)
        _warn(condition, learnt.memory, solver, alpha)
        reader, shift = found.reader[:, None], second * found.shift[None]
        weights = FastWeights("residual", *(_cast(lm, t) for t in (first * found.update, reader, shift)))
    if parts and automatic and first and max_iter > 1 and solver == "ridge" and base is None:
        directions = residual_directions(parts[0].learnt, spectra[0], factor, solver, alpha, lm.finish.scale)
        start, whole = parts[0].learning(directions), None if hold_out else spectrum
        further = _further(
            lm, moments, parts[0], start, (first, second), spectra[0], whole, damped, further_alpha, max_iter
        )
        if further is not None:
            return replace(further, alpha=float(alpha), condition=condition)
    if base is not None:
        weights = base.plus(weights)
    return SolvedWeights(weights, float(alpha), float(first), float(second), loss, condition)


def _further(lm, moments, part, start, strengths, spectrum, whole, damped, alpha, max_iter):
    """Take further steps on kept tokens; return None if held-out tokens gain no more than by chance.

    ``spectrum`` is without held-out tokens, ``whole`` with them; without ``whole`` they stay unlearnt.
    """
    reserve = moments.reserve
    held = set(reserve.folds(moments.output.n_tokens)[0])
    kept = [i for i in range(len(reserve)) if i not in held]
    if not kept:
        return None
    factor = damped(FURTHER_DAMPING)

    def descent(learnt, spectrum, which):
        keys, targets, _ = reserve.rows(which)
        return Descent(lm, learnt, spectrum, factor, alpha, start.learnt.reader, shift, keys, targets)

    def weights(update):
        reader = start.learnt.reader[:, None]
        return FastWeights("residual", *(_cast(lm, t) for t in (update, reader, shift[None])))

    shift = strengths[1] * start.learnt.shift
    steps = descent(part.learnt, spectrum, kept)
    update, lengths = steps.run(max_iter, steps.tokens(part.keys, part.targets))
    before, after = losses_at(lm, [start], strengths), losses_with(lm, [part], weights(update))
    if not is_better(before, after, [part]):
        return None
    if whole is not None and len(part.targets) * _SMALL_SHARE > moments.output.n_tokens:
        # Held-out tokens are too many to leave unlearnt: the same steps again, with all.
        update, _ = descent(moments.output, whole, range(len(reserve))).run(max_iter, lengths=lengths)
    return SolvedWeights(weights(update), alpha, *strengths, float(after.mean()), n_iter=len(lengths))


def _warn(condition, memory, solver, alpha):
    warn_if_ill_conditioned(condition, memory.keys, memory.weight, solver=solver, alpha=alpha, intercept=False)


def _few(output):
    """Return strengths that are safe with few tokens: the start of the search, or final if nothing is held out."""
    return (output.n_tokens / (output.n_tokens + _FEW_TOKENS), 0.5)


def _embedding(lm, moments, solver, alpha, memory_weight, among):
    solution = associative_weights(moments.output.memory, solver, alpha)
    loss = None
    if memory_weight == "auto":
        parts = _left_out(lm, moments, moments.output, functools.partial(token_moments, lm, "embedding"))
        if among is not None:
            chosen = torch.tensor(sorted({token for node in among for token in node}), device=lm.device)
            parts = [part for part in (part.choosing(chosen) for part in parts) if len(part.targets)]
        held = [
            part.learning(_cast(lm, associative_weights(part.learnt.memory, solver, solution.alpha).weights))
            for part in parts
        ]
        memory_weight, loss = interpolation_weight(lm, held) if held else (0.9, None)
    if memory_weight == 0:
        return SolvedWeights(FastWeights("embedding", None), solution.alpha, 0.0, 0.0, loss)
    _warn(solution.condition, moments.output.memory, solver, solution.alpha)
    weights = _interpolating(lm, solution, memory_weight)
    return SolvedWeights(weights, solution.alpha, float(memory_weight), 0.0, loss, solution.condition)


def _published(lm, moments, alpha, memory_weight):
    readouts = lm.readouts
    alpha = readouts.alpha if alpha == "auto" else alpha
    weight = readouts.weight if memory_weight == "auto" else memory_weight
    solution = associative_weights(moments.output.memory, "pinv", alpha)
    middle = []
    for layer, projection, memory in zip(readouts.layer_indices, readouts.out_projs, moments.middle, strict=True):
        W = associative_weights(memory, "pinv", alpha).weights
        middle.append(Middle(layer, _cast(lm, W @ projection.to(W).T)))
    weights = _interpolating(lm, solution, weight)
    weights = FastWeights("embedding", weights.update, middle=tuple(middle))
    _warn(solution.condition, moments.output.memory, "pinv", alpha)
    return SolvedWeights(weights, float(alpha), float(weight), condition=solution.condition)


def _interpolating(lm, solution, weight):
    W = solution.weights
    return FastWeights("embedding", _cast(lm, weight * (W - torch.eye(len(W), dtype=W.dtype, device=W.device))))


def _cast(lm, tensor):
    return tensor.to(device=lm.device, dtype=lm.dtype)


def _left_out(lm, moments, total, statistics, base=None, single=False):
    """Return parts of held-out tokens, each with the statistics of all other tokens; if ``single`` only the first.

    ``statistics`` is a function of keys and targets; ``total`` are the statistics of everything.
    """
    reserve, n_tokens = moments.reserve, moments.output.n_tokens
    folds = reserve.folds(n_tokens)
    parts = []
    for fold in folds[:1] if single else folds:
        keys, targets, samples = (tensor.to(lm.device) for tensor in reserve.rows(fold))
        parts.append(HeldOut(keys, targets, samples, statistics(keys, targets), base))
    if sum(len(part.targets) for part in parts) < n_tokens or single:
        return [part.learning(total - part.learnt) for part in parts]
    # The folds have all tokens. Adding up the other parts, instead of subtracting, keeps few tokens as few rows.
    others = [[other.learnt for other in parts if other is not part] for part in parts]
    return [part.learning(functools.reduce(operator.add, o)) for part, o in zip(parts, others, strict=True)]


class WeightProblem(Stateful):
    """Moments and their settings; solved once, when first asked, under a lock.

    Immutable except for the solution. Its pickle loads without the device that made it.

    Parameters
    ----------
    moments : LanguageMoments
    target, solver, alpha, memory_weight, max_iter, among, base, hold_out
        As in :func:`solve_weights`.
    solved : SolvedWeights, optional
    """

    _state: ClassVar = {
        "moments": OrNotSaved(LanguageMoments.record(), lambda moments: moments.n_samples),
        "solved": Maybe(SolvedWeights.record()),
        "target": OneOf(*TARGETS),
        "solver": OneOf("ridge", "pinv"),
        "alpha": OneOf("auto", field=Number(0)),
        "memory_weight": OneOf("auto", field=Number(0)),
        "max_iter": Integer(),
        "among": Maybe(Listed(Listed(Integer()))),
        "base": Maybe(FastWeights.record()),
        "hold_out": Boolean(),
    }

    def __init__(
        self,
        moments: Any,
        *,
        target: Any,
        solver: Any,
        alpha: Any,
        memory_weight: Any,
        max_iter: int = 1,
        among: Any = None,
        base: Any = None,
        hold_out: bool = False,
        solved: "SolvedWeights | None" = None,
    ) -> None:
        self.moments = moments
        self.settings = {"target": target, "solver": solver, "alpha": alpha, "memory_weight": memory_weight}
        self.settings |= {"max_iter": max_iter, "among": among, "base": base, "hold_out": hold_out}
        self._solved = solved
        self._lock = threading.Lock()

    def solved(self, lm: Any) -> Any:
        """Return the fast weights, on the device and in the dtype of the language model."""
        with self._lock:
            if self._solved is None:
                self._solved = solve_weights(lm, self.moments, **self.settings)
            elif not self._solved.weights.fits(lm):
                self._solved = replace(self._solved, weights=self._solved.weights.to(lm.device, lm.dtype))
            return self._solved

    def without_moments(self, lm: Any) -> Any:
        """Return a solved copy that keeps only what prediction needs."""
        return WeightProblem(NotSaved(self.moments.n_samples), **self.settings, solved=self.solved(lm))

    def _stated(self):
        return SimpleNamespace(moments=self.moments, solved=self._solved, **self.settings)

    @classmethod
    def _from_state(cls, moments, solved, **settings):
        require(solved is not None or not isinstance(moments, NotSaved), "there are neither moments nor weights")
        return cls(moments, solved=solved, **settings)

    def __deepcopy__(self, memo):
        return self  # nothing in it changes but the solution
