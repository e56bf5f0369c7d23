"""Logits of the tokens that matter for what was learnt; one more stands for all others."""

from typing import Any

import torch

from faast_sklearn.backbones.base import frozen
from faast_sklearn.language.tokens import row_chunks

__all__ = ["Shortlist"]

# Of SmolLM2's 49,152 tokens, 4,096 have all learnt ones and 96 % of the probability; 8,192 give the same losses.
_MOST = 4096


class Shortlist:
    """The learnt tokens, those that the frozen model expects most, and one logit for all others together.

    The last logit is the logarithm of the others' summed exponentials in the frozen model. It follows an update of the
    states along the others' mean embedding, weighted by their probabilities.

    Parameters
    ----------
    lm : LanguageModel
    moments : TokenMoments
        With ``counts`` and ``probability``.
    shift : torch.Tensor of shape (vocabulary,)
        Added to the output matrix's result, times what is read from each state.
    """

    def __init__(self, lm: Any, moments: Any, shift: torch.Tensor) -> None:
        counts, probability = moments.counts, moments.probability
        n_tokens = len(counts)
        size = min(n_tokens, max(_MOST, int((counts > 0.5).sum())))
        first = probability + (counts > 0.5) * (1 + probability.sum())
        self.lm, self.tokens = lm, first.topk(size).indices.sort().values.to(lm.device)
        # Losses of tokens need float32 at least, whatever the model's own type.
        self.dtype = torch.float64 if lm.dtype == torch.float64 else torch.float32
        self.matrix = self._rows(self.tokens)
        self.shift = shift.to(lm.device, self.dtype)
        self.position = torch.full((n_tokens,), -1, device=lm.device)
        self.position[self.tokens] = torch.arange(size, device=lm.device)
        self.others = (self.position < 0).nonzero()[:, 0]
        if len(self.others):
            weight = probability[self.others.to(probability.device)].clamp_min(torch.finfo(torch.float64).tiny)
            self.mean = (weight / weight.sum()).to(self.dtype).to(lm.device) @ self._rows(self.others)

    def _rows(self, tokens):
        return self.lm.head.weight.detach()[tokens].to(self.dtype)

    def rest(self, keys: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """Return the logit of all others in the frozen model with the shift; shape (t,). O(t V d)."""
        if not len(self.others):
            return torch.empty((len(keys), 0), device=keys.device)
        matrix, bias = self._rows(self.others), self.lm.head.bias
        found = []
        with frozen(self.lm.module):
            for rows in row_chunks(len(keys), len(self.others)):
                raw = keys[rows] @ matrix.T
                raw.addcmul_(read[rows, None], self.shift[self.others])
                if bias is not None:
                    raw += bias[self.others]
                found.append(self.lm.finish(raw, self.others).logsumexp(1, keepdim=True))
        return torch.cat(found)

    def raw(self, states: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """Return the output matrix's result for the shortlist, with the shift; shape (t, s)."""
        raw = torch.addcmul(states @ self.matrix.T, read[:, None], self.shift[self.tokens])
        bias = self.lm.head.bias
        return raw if bias is None else raw + bias[self.tokens].to(self.dtype)

    def logits(self, raw: torch.Tensor, rest: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """Return the logits of the shortlist and of the rest, whose states moved by ``moved`` (t, d)."""
        logits = self.lm.finish(raw, self.tokens)
        if not len(self.others):
            return logits
        return torch.cat([logits, rest + self.lm.finish.scale * (moved @ self.mean)[:, None]], 1)

    def residuals(self, keys: Any, targets: Any, read: Any, rest: Any, update: torch.Tensor) -> torch.Tensor:
        """Return the negative gradients of the loss at each state, with fast weights ``update``; shape (t, d).

        Targets have to be on the shortlist.
        """
        found = torch.empty_like(keys)
        for rows in row_chunks(len(keys), len(self.tokens) + 1):
            moved = keys[rows] @ update
            raw = self.raw(keys[rows] + moved, read[rows])
            difference = -self.logits(raw, rest[rows], moved).softmax(1)
            difference.scatter_add_(1, self.position[targets[rows], None], torch.ones_like(difference[:, :1]))
            slope = self.lm.finish.slope(raw)
            found[rows] = (difference[:, : len(self.tokens)] * slope) @ self.matrix
            if len(self.others):
                found[rows] += difference[:, -1:] * (self.lm.finish.scale * self.mean)
        return found

    def losses_along(
        self, keys: Any, targets: Any, read: Any, rest: Any, update: Any, step: Any, lengths: Any
    ) -> list[float]:
        """Return the mean loss at ``update + length * step`` for each length, over targets on the shortlist."""
        on_list = self.position[targets] >= 0
        keys, read, rest = keys[on_list], read[on_list], rest[on_list]
        wanted, totals = self.position[targets[on_list], None], torch.zeros(len(lengths), dtype=torch.float64)
        for rows in row_chunks(len(keys), len(self.tokens) + 1):
            start, along = keys[rows] @ update, keys[rows] @ step
            raw, raised = self.raw(keys[rows] + start, read[rows]), along @ self.matrix.T
            for i, length in enumerate(lengths):
                logits = self.logits(raw + length * raised, rest[rows], start + length * along)
                losses = logits.logsumexp(1) - logits.gather(1, wanted[rows])[:, 0]
                totals[i] += losses.double().sum().cpu()
        return (totals / max(1, len(keys))).tolist()
