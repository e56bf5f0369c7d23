"""Further closed-form steps on kept tokens, as long as held-out tokens gain.

Hidden states do not depend on residual fast weights, so a step needs the states of learnt tokens and no pass of the
network. Each is the first one again, at other weights: the negative gradient ``C(W) = Kᵀ(Y − P(W))E / n``,
preconditioned by ``f(G)`` on the side of the keys and by the damped curvature on that of the embeddings, both as in
:mod:`~faast_sklearn.language.solving`. Directions are conjugate (Polak and Ribière's formula, in the metric of the
preconditioner). The length of each step is the best of a few on held-out tokens, which thereby also say when to stop.

If only some tokens were kept, ``C(0)`` of all tokens corrects that of the kept ones (a control variate, as in SVRG;
Johnson and Zhang, 2013): the first step is then that of all tokens. The correction fades from step to step, as
gradients become unlike the first.
"""

from dataclasses import dataclass
from typing import Any

import torch

from faast_sklearn.language.shortlist import Shortlist
from faast_sklearn.language.solving import step_filter

__all__ = ["Descent", "Tokens"]

_LENGTHS = (0.0, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# Of 7,200 tokens of translations, 2,500 were kept. Held-out losses: without a correction 3.05, with one that stays
# 2.99, with one that fades 2.91; with all tokens 2.78.
_FADING = 0.7
_LEAST_GAIN = 1e-3  # nats per token; a smaller gain is the last


@dataclass(frozen=True, eq=False)
class Tokens:
    """Learnt or held-out tokens.

    Parameters
    ----------
    keys : torch.Tensor of shape (t, d)
    targets : torch.Tensor of shape (t,), int64
    read : torch.Tensor of shape (t,)
        What the shift's reader reads from each key.
    rest : torch.Tensor of shape (t, 1) or (t, 0)
        See :meth:`Shortlist.rest`.
    """

    keys: torch.Tensor
    targets: torch.Tensor
    read: torch.Tensor
    rest: torch.Tensor


class Descent:
    """Steps from the frozen model with a shift.

    Parameters
    ----------
    lm : LanguageModel
    moments : TokenMoments
        Of all learnt tokens.
    spectrum : Spectrum
        Of their keys.
    factor : torch.Tensor of shape (d, d)
        Lower Cholesky factor of the damped curvature.
    alpha : float
        Of the filter.
    reader, shift : torch.Tensor of shape (d,) and (vocabulary,)
    keys, targets : torch.Tensor
        The kept ones among the learnt tokens.
    """

    def __init__(
        self,
        lm: Any,
        moments: Any,
        spectrum: Any,
        factor: torch.Tensor,
        alpha: float,
        reader: torch.Tensor,
        shift: torch.Tensor,
        keys: torch.Tensor,
        targets: torch.Tensor,
    ) -> None:
        self.shortlist = Shortlist(lm, moments, shift)
        self.reader = reader.to(lm.device, self.shortlist.dtype)
        self.kept = self.tokens(keys, targets)
        self.vectors, self.factor = spectrum.vectors, factor
        self.filter = step_filter(moments, spectrum, alpha)
        self.missing = None
        if len(keys) < moments.n_tokens - 0.5:
            own = self._gradient(self.kept.keys.new_zeros(factor.shape))
            self.missing = moments.memory.cross / moments.n_tokens - own

    def tokens(self, keys: torch.Tensor, targets: torch.Tensor) -> Tokens:
        """Return keys and targets with what does not change from step to step."""
        keys = keys.to(self.reader)
        read = keys @ self.reader
        return Tokens(keys, targets.to(keys.device), read, self.shortlist.rest(keys, read))

    def run(self, most: int, held: Tokens | None = None, lengths: Any = None) -> tuple[torch.Tensor, list[float]]:
        """Take steps, and return the update (d, d) and their lengths.

        Parameters
        ----------
        most : int
            Most steps.
        held : Tokens, default=None
            Held-out tokens, which choose the lengths.
        lengths : sequence of float, default=None
            In place of ``held``: the lengths of all steps.
        """
        kept, taken = self.kept, []
        update = kept.keys.new_zeros(self.factor.shape)
        direction = before = None
        last = float("inf")
        for i in range(most if lengths is None else len(lengths)):
            gradient = self._gradient(update)
            if self.missing is not None:
                gradient = gradient + _FADING**i * self.missing
            gradient = self.vectors.T @ gradient
            step = torch.cholesky_solve((self.filter[:, None] * gradient).T, self.factor).T
            if before is None:
                direction = step
            else:
                norm = (before[0] * before[1]).sum().clamp_min(torch.finfo(torch.float64).tiny)
                change = ((gradient - before[0]) * step).sum() / norm
                direction = step + change.clamp(0, 1) * direction
            before = gradient, step
            ahead = (self.vectors @ direction).to(update.dtype).to(update.device)
            if lengths is None:
                losses = self.shortlist.losses_along(
                    held.keys, held.targets, held.read, held.rest, update, ahead, _LENGTHS
                )
                best = min(range(len(_LENGTHS)), key=losses.__getitem__)
                length, gain, last = _LENGTHS[best], last - losses[best], losses[best]
            else:
                length, gain = lengths[i], float("inf")
            update = update + length * ahead
            taken.append(length)
            if gain < _LEAST_GAIN:
                break
        return update, taken

    def _gradient(self, update):
        kept = self.kept
        residuals = self.shortlist.residuals(kept.keys, kept.targets, kept.read, kept.rest, update)
        # Statistics are float64, which not all devices of models have.
        return (kept.keys.T @ residuals).to(self.vectors.device).double() / max(1, len(kept.keys))
