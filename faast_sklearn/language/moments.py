"""What is known of learnt tokens: immutable float64 statistics, exact under ``+`` and ``−``, of a size without N."""

import numpy as np
import torch

from faast_sklearn.language.reserve import Reserve

__all__ = ["LanguageMoments", "TokenMoments"]


class TokenMoments:
    """Statistics of keys, the tokens that came next, and what the frozen model expected instead.

    Parameters
    ----------
    memory : CrossMoments
        Of keys (hidden states) and values.
    expected : Scatter or None
        Of the embeddings that the frozen model expected, ``Σ_v p_v e_v``: with ``probability`` the curvature of the
        loss. None for targets that need none.
    counts, probability, curvature : torch.Tensor of shape (vocabulary,), float64, or None
        How often each token came, the sum of its probabilities, and that sum weighted with the squared slope of the
        logits.
    loss : float
        Sum of the frozen model's negative log-likelihoods, natural logarithm.
    """

    __slots__ = ("counts", "curvature", "expected", "loss", "memory", "probability")

    def __init__(self, memory, expected=None, counts=None, probability=None, curvature=None, loss=0.0):
        self.memory = memory
        self.expected = expected
        self.counts = counts
        self.probability = probability
        self.curvature = curvature
        self.loss = float(loss)

    @property
    def n_tokens(self):
        """Number of learnt tokens."""
        return self.memory.weight

    @property
    def device(self):
        """Device that holds the statistics."""
        return self.memory.cross.device

    def _combine(self, other, sign):
        def both(name):
            mine, yours = getattr(self, name), getattr(other, name)
            if mine is None:
                return None
            yours = yours.to(self.device)
            return mine + yours if sign > 0 else mine - yours

        names = ("memory", "expected", "counts", "probability", "curvature")
        return TokenMoments(*map(both, names), self.loss + sign * other.loss)

    def __add__(self, other):
        return self._combine(other, 1) if isinstance(other, TokenMoments) else NotImplemented

    def __sub__(self, other):
        return self._combine(other, -1) if isinstance(other, TokenMoments) else NotImplemented

    def to(self, device):
        """Return the same statistics on ``device``."""
        parts = (self.memory, self.expected, self.counts, self.probability, self.curvature)
        return TokenMoments(*(None if part is None else part.to(device) for part in parts), self.loss)

    def __getstate__(self):
        vectors = [None if v is None else v.cpu().numpy() for v in (self.counts, self.probability, self.curvature)]
        return (self.memory, self.expected, vectors, self.loss)

    def __setstate__(self, state):
        memory, expected, vectors, loss = state
        vectors = [None if v is None else torch.from_numpy(np.array(v)) for v in vectors]
        self.__init__(memory, expected, *vectors, loss)


class LanguageMoments:
    """Everything that was learnt: output memory, middle memories of published checkpoints, and the reserve.

    Parameters
    ----------
    output : TokenMoments
    middle : tuple of CrossMoments
    reserve : Reserve
    n_samples : int
        Samples learnt.
    """

    __slots__ = ("middle", "n_samples", "output", "reserve")

    def __init__(self, output, middle=(), reserve=None, n_samples=0):
        self.output = output
        self.middle = tuple(middle)
        self.reserve = Reserve() if reserve is None else reserve
        self.n_samples = int(n_samples)

    def __add__(self, other):
        if not isinstance(other, LanguageMoments):
            return NotImplemented
        middle = [a + b for a, b in zip(self.middle, other.middle, strict=True)]
        reserve = self.reserve + other.reserve
        return LanguageMoments(self.output + other.output, middle, reserve, self.n_samples + other.n_samples)

    def __sub__(self, other):
        if not isinstance(other, LanguageMoments):
            return NotImplemented
        middle = [a - b for a, b in zip(self.middle, other.middle, strict=True)]
        reserve = self.reserve - other.reserve
        return LanguageMoments(self.output - other.output, middle, reserve, self.n_samples - other.n_samples)

    def to(self, device):
        """Return the same statistics on ``device``."""
        middle = [part.to(device) for part in self.middle]
        return LanguageMoments(self.output.to(device), middle, self.reserve.to(device), self.n_samples)

    def __getstate__(self):
        return (self.output, self.middle, self.reserve, self.n_samples)

    def __setstate__(self, state):
        self.__init__(*state)

    def __repr__(self):
        return f"LanguageMoments(n_samples={self.n_samples}, n_tokens={int(self.output.n_tokens)})"
