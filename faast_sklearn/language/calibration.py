"""How strong fast weights should be, from held-out tokens of what was learnt."""

import math
from typing import Any

import scipy.stats
import torch

from faast_sklearn.backbones.base import frozen
from faast_sklearn.language.tokens import raw_logits, row_chunks

__all__ = ["HeldOut", "best_weights", "interpolation_weight", "is_better", "losses_at", "losses_before"]

_MOST_STEPS = 8
# Choices have one deciding token a sample, often a few dozen in all, and of those Newton's method would make too much:
# mean and spread of both weights before any is seen.
_PRIOR = (0.5, 2.0)
_CERTAINTY = 0.977  # that the gain is one, or it counts for nothing: two standard errors of many samples
_LEAST_GAIN = 1e-3  # nats a token; another step is not worth its time
_INTERPOLATIONS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 1.0)


class HeldOut:
    """Tokens that were left out, and the directions learnt without them.

    Parameters
    ----------
    keys : torch.Tensor of shape (t, d)
    targets : torch.Tensor of shape (t,), int64
    samples : torch.Tensor of shape (t,), int64
        Which sample each token is of.
    learnt : object
        Of the other tokens: Directions, the (d, d) weights of a memory, or moments on the way to them.
    base : FastWeights, default=None
        What the model has already.
    among : torch.Tensor of int64, default=None
        Tokens between which there is a choice: ``targets`` are positions in it, and the loss is that of a softmax over
        these alone. By default all of the vocabulary.
    """

    def __init__(
        self,
        keys: torch.Tensor,
        targets: torch.Tensor,
        samples: torch.Tensor,
        learnt: Any,
        base: Any = None,
        among: torch.Tensor | None = None,
    ) -> None:
        self.keys, self.targets, self.samples, self.learnt = keys, targets, samples, learnt
        self.base, self.among = base, among

    def choosing(self, among: Any) -> Any:
        """Return the held-out tokens that are in sorted ``among``, as a choice between these alone."""
        kept = torch.isin(self.targets, among)
        targets = torch.searchsorted(among, self.targets[kept])
        return HeldOut(self.keys[kept], targets, self.samples[kept], self.learnt, self.base, among)

    def learning(self, learnt: Any, most: Any = None) -> Any:
        """Return the same tokens, or the first ``most`` of them, with something else learnt."""
        return HeldOut(self.keys[:most], self.targets[:most], self.samples[:most], learnt, self.base, self.among)


def best_weights(lm: Any, held: list, start: Any) -> tuple:
    """Minimise the negative log-likelihood of held-out tokens over the weights of step and shift.

    Logits are linear in the two weights (but for a soft cap), so the loss is convex and Newton's method with
    backtracking takes a few passes over the held-out tokens, O(t V d) each. Between choices a weak prior keeps the
    weights near a half while there are few samples.

    Parameters
    ----------
    lm : LanguageModel
    held : list of HeldOut
        With :class:`~faast_sklearn.language.solving.Directions`.
    start : (float, float)
        Where to begin.

    Returns
    -------
    weights : (float, float)
        Never negative.
    losses : torch.Tensor of shape (t,), float64
        Of each token, at those weights.
    """
    at = torch.tensor(start, dtype=torch.float64)
    n = sum(len(part.targets) for part in held)
    losses, *slopes = _sweep(lm, held, at)
    value, gradient, hessian = _add_prior(held, at, losses, *slopes)
    for _ in range(_MOST_STEPS):
        hessian = hessian + torch.diag(1e-6 * hessian.diagonal() + 1e-12)
        step = torch.linalg.solve(hessian, gradient)
        # A weight at zero that would turn negative stays there, and the other one moves on its own.
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
    """Return each held-out token's loss under the model as it is; a tensor of shape (t,), float64."""
    losses = []
    with frozen(lm.module):
        for part in held:
            for rows in row_chunks(len(part.targets), lm.head.out_features):
                raw = _among(part, raw_logits(lm, part.keys[rows], part.base))
                losses.append(_losses(lm, part, raw, rows))
    return torch.cat(losses).cpu().double()


def _add_prior(held, at, losses, gradient, hessian):
    """Return value, gradient and Hessian of the loss with the prior for choices added."""
    value = float(losses.sum())
    if held[0].among is None:
        return value, gradient, hessian
    mean, spread = _PRIOR
    off = (at - mean) / spread
    return value + float(off @ off) / 2, gradient + off / spread, hessian + torch.eye(2).double() / spread**2


def _sweep(lm, held, at):
    """Return each token's loss at weights ``at``, and gradient and (Gauss-Newton) Hessian of their sum."""
    losses, slopes, curves = [], [], []
    first, second = at.tolist()
    linear = torch.nn.functional.linear
    with frozen(lm.module):
        for part in held:
            learnt = part.learnt
            matrix = lm.head.weight if part.among is None else lm.head.weight[part.among]
            # Statistics may be kept on another device than the model's.
            update, reader, shift = (t.to(matrix.device) for t in (learnt.update, learnt.reader, learnt.shift))
            update, shift = update.to(matrix.dtype), _among(part, shift)
            for rows in row_chunks(len(part.targets), lm.head.out_features):
                keys, wanted = part.keys[rows], part.targets[rows, None]
                raw = _among(part, raw_logits(lm, keys, part.base)).float()
                moved = linear(keys @ update, matrix).float()
                read = (keys.float() @ reader)[:, None]
                raw.add_(moved, alpha=first).addcmul_(read * second, shift)
                slope = lm.logit_slope(raw)
                log_p = lm.finish_logits(raw, part.among).float().log_softmax(1)
                losses.append(-log_p.gather(1, wanted)[:, 0])
                shifted = read * shift
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
    # Only now does the host wait for the device.
    gradient, (aa, ab, bb) = (torch.stack(parts).cpu().double().sum(0) for parts in (slopes, curves))
    return torch.cat(losses).cpu().double(), gradient, torch.stack([torch.stack([aa, ab]), torch.stack([ab, bb])])


def is_better(before: Any, after: Any, held: Any) -> bool:
    """Whether losses fell by more than chance: two standard errors of the sum over many samples, more of a few.

    The tokens of a sample go together. With few samples their spread is uncertain too, so the bound is Student's.
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
    """Return the weight of an output memory in front of the final norm at which held-out tokens are most likely.

    Parameters
    ----------
    lm : LanguageModel
    held : list of HeldOut
        With the memory's (d, d) weights.

    Returns
    -------
    weight : float
        One of a few from 0.3 to 1; zero if none is better than the frozen model, as :func:`is_better` says.
    loss : float
        A token.
    """
    before = _interpolated(lm, held, 0.0)
    losses = {r: _interpolated(lm, held, r) for r in _INTERPOLATIONS}
    best = min(losses, key=lambda r: float(losses[r].sum()))
    if not is_better(before, losses[best], held):
        return 0.0, float(before.mean())
    return best, float(losses[best].mean())


def _interpolated(lm, held, r):
    losses = []
    with frozen(lm.module):
        for part in held:
            matrix = part.learnt.to(part.keys.dtype)
            for rows in row_chunks(len(part.targets), lm.head.out_features):
                keys = part.keys[rows]
                states = keys if r == 0 else (1 - r) * keys + r * (keys @ matrix)
                losses.append(_losses(lm, part, _among(part, raw_logits(lm, lm.normalise(states))), rows))
    return torch.cat(losses).cpu().double()


def _among(part, vocabulary):
    """Select the tokens that may be chosen from the last axis of a tensor, the vocabulary."""
    return vocabulary if part.among is None else vocabulary[..., part.among]


def _losses(lm, part, raw, rows):
    log_p = lm.finish_logits(raw, part.among).float().log_softmax(1)
    return -log_p.gather(1, part.targets[rows, None])[:, 0]
