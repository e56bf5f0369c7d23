"""Statistics of learnt tokens: immutable, float64, exact under ``+`` and ``−``, independent of N in size."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from faast_sklearn.errors import ForgetError, InputError
from faast_sklearn.language.reserve import Reserve
from faast_sklearn.moments.cross_moments import CrossMoments
from faast_sklearn.moments.scatter import Scatter
from faast_sklearn.persistence.arrays import Array
from faast_sklearn.persistence.fields import Integer, Listed, Maybe, Number
from faast_sklearn.persistence.state import Stateful

__all__ = ["LanguageMoments", "TokenMoments"]


class TokenMoments(Stateful):
    """Statistics of keys, the tokens that came next, and what the frozen model expected instead.

    Parameters
    ----------
    memory : CrossMoments
        Of keys (hidden states) and values.
    expected : Scatter or None
        Of the embeddings that the frozen model expected, ``Σ_v p_v e_v`` times the slopes of the logits; with
        ``curvature`` it gives the curvature of the loss. None for ``target="embedding"``.
    counts, probability, curvature : torch.Tensor of shape (vocabulary,), float64, or None
        How often each token came, the sum of its probabilities, and the sum of probability times squared
        slope of the logit. None for ``target="embedding"``. Choices have counts alone, one for each edge of their tree.
    loss : float
        Sum of the frozen model's negative log-likelihoods, natural logarithm.
    prompts : Scatter, default=None
        Of the hidden states in the samples whose next tokens are not learnt.
    """

    __slots__ = ("counts", "curvature", "expected", "loss", "memory", "probability", "prompts")
    _state: ClassVar = {
        "memory": CrossMoments.record(),
        "expected": Maybe(Scatter.record()),
        "counts": Maybe(Array("v")),
        "probability": Maybe(Array("v")),
        "curvature": Maybe(Array("v")),
        "loss": Number(),
        "prompts": Maybe(Scatter.record()),
    }

    def __init__(
        self,
        memory: "CrossMoments",
        expected: "Scatter | None" = None,
        counts: Any = None,
        probability: Any = None,
        curvature: Any = None,
        loss: float = 0.0,
        prompts: "Scatter | None" = None,
    ) -> None:
        self.memory = memory
        self.prompts = prompts
        self.expected = expected
        self.counts = counts
        self.probability = probability
        self.curvature = curvature
        self.loss = float(loss)

    @property
    def n_tokens(self) -> float:
        """Number of learnt tokens."""
        return self.memory.weight

    def with_prompts(self, prompts: "Scatter | None") -> "TokenMoments":
        """Return the same statistics of learnt tokens with other ones of prompts."""
        parts = (self.memory, self.expected, self.counts, self.probability, self.curvature)
        return TokenMoments(*parts, loss=self.loss, prompts=prompts)

    @property
    def device(self) -> Any:
        """Device that holds the statistics."""
        return self.memory.cross.device

    def _combine(self, other, sign):
        def both(name: str) -> Any:
            mine, yours = getattr(self, name), getattr(other, name)
            if mine is None or yours is None:
                return None
            yours = yours.to(self.device)
            return mine + yours if sign > 0 else mine - yours

        names = ("memory", "expected", "counts", "probability", "curvature")
        parts: Any = tuple(map(both, names))
        return TokenMoments(*parts, loss=self.loss + sign * other.loss, prompts=both("prompts"))

    def __add__(self, other):
        return self._combine(other, 1) if isinstance(other, TokenMoments) else NotImplemented

    def __sub__(self, other):
        return self._combine(other, -1) if isinstance(other, TokenMoments) else NotImplemented

    def to(self, device: Any) -> Any:
        """Return the same statistics on ``device``."""
        parts = (self.memory, self.expected, self.counts, self.probability, self.curvature)
        moved: Any = tuple(None if part is None else part.to(device) for part in (*parts, self.prompts))
        return TokenMoments(*moved[:-1], loss=self.loss, prompts=moved[-1])

    def summed(self, ranks: Any) -> Any:
        """Return the sum of all ranks' statistics; see :meth:`~faast_sklearn.moments.scatter.Scatter.summed`."""
        expected = None if self.expected is None else self.expected.summed(ranks)
        vectors: Any = [None if v is None else ranks.sum(v) for v in (self.counts, self.probability, self.curvature)]
        prompts = None if self.prompts is None else self.prompts.summed(ranks)
        loss = ranks.sum_number(self.loss)
        return TokenMoments(self.memory.summed(ranks), expected, *vectors, loss=loss, prompts=prompts)


class LanguageMoments(Stateful):
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
    _state: ClassVar = {
        "output": TokenMoments.record(),
        "middle": Listed(CrossMoments.record()),
        "reserve": Reserve.record(),
        "n_samples": Integer(),
    }

    def __init__(
        self, output: "TokenMoments", middle: Sequence = (), reserve: "Reserve | None" = None, n_samples: int = 0
    ) -> None:
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

    def to(self, device: Any) -> Any:
        """Return the same statistics on ``device``."""
        middle = [part.to(device) for part in self.middle]
        return LanguageMoments(self.output.to(device), middle, self.reserve.to(device), self.n_samples)

    def without(self, removed: Any) -> Any:
        """Return ``self − removed``; raise ForgetError if ``removed`` cannot be a part of what was learnt."""
        if removed.n_samples > self.n_samples or removed.output.n_tokens > self.output.n_tokens + 0.5:
            raise ForgetError(
                f"asked to forget {removed.n_samples} samples of {int(removed.output.n_tokens)} tokens, but only "
                f"{self.n_samples} of {int(self.output.n_tokens)} were learnt."
            )
        unknown = self.reserve.missing(removed.reserve)
        if unknown:
            raise ForgetError(f"at least {unknown} of these samples were never learnt in this form.")
        return self - removed

    def same_texts(self, other: Any) -> bool:
        """Whether both seem to be of the same texts: equal counts, and equal digests in the reserves."""
        one, two = (
            (m.n_samples, round(m.output.n_tokens), [s.digest for s in m.reserve.samples]) for m in (self, other)
        )
        return one == two

    def outline(self) -> Any:
        """Return what every rank must know before moments are summed across ranks."""
        output = self.output
        return _Outline(
            tuple(output.memory.cross.shape),
            None if output.expected is None else output.expected.n_features,
            [None if v is None else len(v) for v in (output.counts, output.probability, output.curvature)],
            [tuple(part.cross.shape) for part in self.middle],
            output.prompts is not None,
        )

    def __repr__(self):
        return f"LanguageMoments(n_samples={self.n_samples}, n_tokens={int(self.output.n_tokens)})"


class _Outline:
    """Widths of the moments of a language model; None for parts that it lacks."""

    def __init__(self, memory, expected, vectors, middle, prompts):
        self.memory, self.expected, self.vectors, self.middle = memory, expected, vectors, middle
        self.prompts = prompts

    def __add__(self, other):
        if vars(self) != vars(other):
            raise InputError("ranks have learnt with different language models or targets; use the same ones on all.")
        return self

    def summed(self, ranks, moments):
        """Return the sum of all ranks' moments, given this rank's own or None."""
        moments = self._empty() if moments is None else moments
        output = moments.output.summed(ranks)
        middle = [part.summed(ranks) for part in moments.middle]
        reserve = moments.reserve.summed(ranks, self.memory[0])
        return LanguageMoments(output, middle, reserve, int(ranks.each(moments.n_samples).sum()))

    def _empty(self):
        vectors: Any = [None if v is None else torch.zeros(v, dtype=torch.float64) for v in self.vectors]
        expected = None if self.expected is None else Scatter.empty(self.expected)
        prompts = Scatter.empty(self.memory[0]) if self.prompts else None
        output = TokenMoments(CrossMoments.empty(*self.memory), expected, *vectors, prompts=prompts)
        return LanguageMoments(output, [CrossMoments.empty(*shape) for shape in self.middle])
