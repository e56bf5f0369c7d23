"""Choose the strength of fast weights on held-out tokens."""

import math
from dataclasses import dataclass, replace
from typing import Any

import scipy.stats
import torch

from faast_sklearn.backbones.base import frozen
from faast_sklearn.language.tokens import raw_logits, row_chunks

__all__ = ["HeldOut", "best_weights", "interpolation_weight", "is_better", "losses_at", "losses_before", "losses_with"]

_MOST_STEPS = 8
# Prior mean of the weights, and standard deviation of both, where answers are choices: a sample then has about one
# deciding token, and Newton's method would overfit a few dozen tokens.
_PRIOR = ((0.5, 1.0), 1.0)
_CERTAINTY = 0.977  # one-sided confidence that a gain has to reach: two standard errors with many samples
_LEAST_GAIN = 1e-3  # nats per token; a smaller gain ends the search
_INTERPOLATIONS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 1.0)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out tokens, and what was learnt without them.

    Parameters
    ----------
    keys : torch.Tensor of shape (t, d)
    targets : torch.Tensor of shape (t,), int64
    samples : torch.Tensor of shape (t,), int64
        Number of the sample of each token.
    learnt : object
        What the other tokens gave: moments, then Directions or the (d, d) weights of a memory.
    base : FastWeights, default=None
        Fast weights that the model has already.
    among : torch.Tensor of int64, default=None
        Tokens to choose from: ``targets`` are positions in it, and the softmax of the loss is over these tokens only.
        By default the whole vocabulary.
    """

    keys: torch.Tensor
    targets: torch.Tensor
    samples: torch.Tensor
    learnt: Any
    base: Any = None
    among: torch.Tensor | None = None

    def choosing(self, among: Any) -> Any:
        """Return the held-out tokens that are in ``among`` (sorted), with a softmax over ``among`` only."""
        kept = torch.isin(self.targets, among)
        targets = torch.searchsorted(among, self.targets[kept])
        return replace(self, keys=self.keys[kept], targets=targets, samples=self.samples[kept], among=among)

    def learning(self, learnt: Any, most: Any = None) -> Any:
        """Return the same tokens, or the first ``most`` of them, with another ``learnt``."""
        some = {name: getattr(self, name)[:most] for name in ("keys", "targets", "samples")}
        return replace(self, **some, learnt=learnt)


def best_weights(lm: Any, held: list, start: Any) -> tuple:
    """Minimise the negative log-likelihood of held-out tokens over the weights of step and shift.

    Without a soft cap, logits are linear in the two weights, so the loss is convex. Newton's method with backtracking
    takes a few passes over the held-out tokens, O(t V d) each. With ``among``, a weak prior keeps the weights near 0.5
    and 1 while there are few samples.

    Parameters
    ----------
    lm : LanguageModel
    held : list of HeldOut
        With :class:`~faast_sklearn.language.solving.Directions`.
    start : (float, float)
        First guess.

    Returns
    -------
    weights : (float, float)
        Never negative.
    losses : torch.Tensor of shape (t,), float64
        Loss of each token at those weights.
    """
    at = torch.tensor(start, dtype=torch.float64)
    n = sum(len(part.targets) for part in held)
    losses, *slopes = _sweep(lm, held, at)
    value, gradient, hessian = _add_prior(held, at, losses, *slopes)
    for _ in range(_MOST_STEPS):
        hessian = hessian + torch.diag(1e-6 * hessian.diagonal() + 1e-12)
        step = torch.linalg.solve(hessian, gradient)
        # A weight at zero that would turn negative stays at zero, and only the other one moves.
        blocked = (at <= 0) & (step > 0)
        if blocked.any():
            step = torch.where(blocked, 0.0, gradient / hessian.diagonal())
        rate = 1.0
        while rate > 1e-2:
            tried = (at - rate * step).clamp_min(0)
            new_losses, *slopes = _sweep(lm, held, tried)
            new_value, new_gradient, new_hessian = _add_prior(held, tried, new_losses, *slopes)
            if new_value <= value:
                break
            rate /= 3
        gain = value - new_value
        if not gain > 0:
            break
        at, losses, value, gradient, hessian = tried, new_losses, new_value, new_gradient, new_hessian
        if gain < _LEAST_GAIN * n:
            break
    return tuple(at.tolist()), losses


def losses_at(lm: Any, held: Any, weights: Any) -> Any:
    """Return each held-out token's loss at given weights of step and shift; a tensor of shape (t,), float64."""
    return _sweep(lm, held, torch.tensor(weights, dtype=torch.float64))[0]


def losses_before(lm: Any, held: Any) -> Any:
    """Return each held-out token's loss without what was learnt; a tensor of shape (t,), float64."""
    return _losses(lm, held, lambda part, keys: _raw(lm, part, keys))


def losses_with(lm: Any, held: Any, weights: Any) -> Any:
    """Return each held-out token's loss with residual fast weights; a tensor of shape (t,), float64."""
    return _losses(lm, held, lambda part, keys: raw_logits(lm, keys, weights))


def _add_prior(held, at, losses, gradient, hessian):
    """Return value, gradient and Hessian of the loss, including the prior for choices."""
    value = float(losses.sum())
    if held[0].among is None:
        return value, gradient, hessian
    mean, spread = torch.tensor(_PRIOR[0], dtype=torch.float64), _PRIOR[1]
    off = (at - mean) / spread
    return value + float(off @ off) / 2, gradient + off / spread, hessian + torch.eye(2).double() / spread**2


def _sweep(lm, held, at):
    """Return each token's loss at weights ``at``, and the gradient and Gauss-Newton Hessian of the total loss."""
    losses, slopes, curves = [], [], []
    first, second = at.tolist()
    linear = torch.nn.functional.linear
    with frozen(lm.module):
        for part in held:
            learnt = part.learnt
            matrix = lm.head.weight if part.among is None else lm.head.weight[part.among]
            # Statistics and model may be on different devices.
            update, shift = (t.to(matrix.device) for t in (learnt.update, learnt.shift))
            update = update.to(matrix.dtype)
            for rows in row_chunks(len(part.targets), lm.head.out_features):
                keys, wanted = part.keys[rows], part.targets[rows, None]
                raw = _raw(lm, part, keys).float()
                if learnt.tokens is not None:
                    moved, shifted = (keys @ update).float(), keys.float() @ shift
                    raw.add_(keys.float() @ learnt.fixed.to(matrix.device))
                else:
                    moved = linear(keys @ update, matrix).float()
                    shifted = (keys.float() @ learnt.reader.to(matrix.device))[:, None] * shift
                raw.add_(moved, alpha=first).add_(shifted, alpha=second)
                slope = lm.finish.slope(raw)
                log_p = lm.finish(raw, part.among).float().log_softmax(1)
                losses.append(-log_p.gather(1, wanted)[:, 0])
                if not isinstance(slope, float) or slope != 1:
                    moved, shifted = moved * slope, shifted * slope
                p = log_p.exp_()
                weighted = [p * moved, p * shifted]
                means = [one.sum(1) for one in weighted]
                own = [one.gather(1, wanted)[:, 0] for one in (moved, shifted)]
                slopes.append(torch.stack([(mean - one).sum() for mean, one in zip(means, own, strict=True)]))
                pairs = ((0, moved, 0), (0, shifted, 1), (1, shifted, 1))
                curves.append(
                    torch.stack(
                        [torch.einsum("nv,nv->", weighted[i], other) - means[i] @ means[j] for i, other, j in pairs]
                    )
                )
    # The host waits for the device only here.
    gradient, (aa, ab, bb) = (torch.stack(parts).cpu().double().sum(0) for parts in (slopes, curves))
    return torch.cat(losses).cpu().double(), gradient, torch.stack([torch.stack([aa, ab]), torch.stack([ab, bb])])


def is_better(before: Any, after: Any, held: Any) -> bool:
    """Whether losses fell by more than chance: two standard errors of the sum, more with few samples.

    Tokens of a sample are correlated, so gains are summed per sample. The bound is a quantile of Student's t.
    """
    offset, index = 0, []
    for part in held:
        index.append(part.samples.cpu() + offset)
        offset += int(part.samples.max()) + 1
    gain = torch.zeros(offset, dtype=torch.float64).index_add_(0, torch.cat(index), before - after)
    total = float(gain.sum())
    if offset < 2:
        return total > 0
    error = float(gain.std()) * math.sqrt(offset)
    return total > float(scipy.stats.t.ppf(_CERTAINTY, offset - 1)) * error


def interpolation_weight(lm: Any, held: list) -> tuple:
    """Choose the weight of an output memory (in front of the final norm) that makes held-out tokens most likely.

    Parameters
    ----------
    lm : LanguageModel
    held : list of HeldOut
        With the memory's (d, d) weights.

    Returns
    -------
    weight : float
        One of nine from 0.3 to 1; 0 if the best is not better than the frozen model by :func:`is_better`.
    loss : float
        Per token.
    """
    before = _interpolated(lm, held, 0.0)
    losses = {r: _interpolated(lm, held, r) for r in _INTERPOLATIONS}
    best = min(losses, key=lambda r: float(losses[r].sum()))
    if not is_better(before, losses[best], held):
        return 0.0, float(before.mean())
    return best, float(losses[best].mean())


def _interpolated(lm, held, r):
    def raw(part, keys):
        states = keys if r == 0 else (1 - r) * keys + r * (keys @ part.learnt.to(keys.dtype))
        return _raw(lm, part, lm.normalise(states))

    return _losses(lm, held, raw)


def _raw(lm, part, keys):
    """Return the output matrix's result for the tokens to choose from."""
    if part.among is None:
        return raw_logits(lm, keys, part.base)
    bias = lm.head.bias
    return torch.nn.functional.linear(keys, lm.head.weight[part.among], None if bias is None else bias[part.among])


def _losses(lm, held, raw):
    """Return each held-out token's loss, given the output matrix's results of a part's keys as a function."""
    losses = []
    with frozen(lm.module):
        for part in held:
            for rows in row_chunks(len(part.targets), lm.head.out_features):
                logits = lm.finish(raw(part, part.keys[rows]), part.among)
                losses.append(-logits.float().log_softmax(1).gather(1, part.targets[rows, None])[:, 0])
    return torch.cat(losses).cpu().double()
