"""Fast weights of a language model, applied as hooks or folded into its output matrix."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from faast_sklearn.backbones.base import uncompiled
from faast_sklearn.backbones.hooks import hooked
from faast_sklearn.errors import BackboneError
from faast_sklearn.persistence.arrays import Array
from faast_sklearn.persistence.fields import Integer, Listed, Maybe, OneOf
from faast_sklearn.persistence.state import Stateful

__all__ = ["FastWeights", "Middle"]


_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Middle(Stateful):
    """A memory in front of a block of a published checkpoint.

    Parameters
    ----------
    layer : int
        Index of the block.
    update : torch.Tensor of shape (d, d)
        ``h ← h + h update``: its fast weights times the trained projection.
    """

    layer: int
    update: torch.Tensor

    _state: ClassVar = {"layer": Integer(), "update": Array("dd", _FLOATS)}


@dataclass(frozen=True, eq=False)
class FastWeights(Stateful):
    """Solved memories, ready to be attached to a language model.

    Each is a linear update of a hidden state, ``h ← h + h U``. The output memory of Bao et al., ``(1 − r) h + r h W``,
    has ``U = r (W − I)`` and acts in front of the final norm. Residual fast weights act where the state enters the
    output matrix E, so they fold into it as ``E (I + U)ᵀ`` and then cost nothing.

    Parameters
    ----------
    target : {"residual", "embedding"}
        Where ``update`` acts: at the output matrix's input, or at the final norm's.
    update : torch.Tensor of shape (d, d), or None
        None leaves the model's states unchanged, bit for bit.
    reader, shift : torch.Tensor of shape (d, k) and (k, vocabulary), or None
        ``h reader shift`` is added to the output matrix's result, so it folds into the matrix too. As ``h reader`` is
        nearly constant, each row of ``shift`` acts as a bias over the vocabulary; one row per pass over the data.
    middle : tuple of Middle, default=()
    """

    target: str
    update: torch.Tensor | None
    reader: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    middle: tuple = ()
    _state: ClassVar = {
        "target": OneOf("residual", "embedding"),
        "update": Maybe(Array("dd", _FLOATS)),
        "reader": Maybe(Array("dk", _FLOATS)),
        "shift": Maybe(Array("kv", _FLOATS)),
        "middle": Listed(Middle.record()),
    }
    _carried: threading.local = field(default_factory=threading.local, repr=False)

    def fits(self, lm: Any) -> bool:
        """Whether all weights are on the model's device and in its dtype."""
        return all(t.device == lm.device and t.dtype == lm.dtype for t in self._tensors())

    def to(self, device: Any, dtype: Any = None) -> Any:
        """Return the same weights on ``device``, in ``dtype`` (their own by default)."""

        def moved(tensor):
            return None if tensor is None else tensor.to(device=device, dtype=dtype or tensor.dtype)

        middle = tuple(Middle(m.layer, moved(m.update)) for m in self.middle)
        return FastWeights(self.target, moved(self.update), moved(self.reader), moved(self.shift), middle)

    def _tensors(self):
        own = (self.update, self.reader, self.shift, *(m.update for m in self.middle))
        return [tensor for tensor in own if tensor is not None]

    def plus(self, other: Any) -> Any:
        """Return the sum of both weights, which need the same target and no middle memories."""

        def added(one, two):
            return one if two is None else two if one is None else one + two

        def joined(one, two, dim):
            return one if two is None else two if one is None else torch.cat([one, two], dim)

        reader, shift = joined(self.reader, other.reader, 1), joined(self.shift, other.shift, 0)
        return FastWeights(self.target, added(self.update, other.update), reader, shift)

    def adapt(self, states: Any) -> Any:
        """Return hidden states with the update added."""
        if self.update is None:
            return states
        return states + states @ self.update

    def adapt_raw(self, states: Any, raw: Any) -> Any:
        """Add the shift to the output matrix's result; ``states`` are those before the update."""
        if self.shift is None:
            return raw
        flat = torch.addmm(raw.flatten(0, -2), (states @ self.reader).flatten(0, -2), self.shift)
        return flat.view(raw.shape)

    def hooks(self, lm: Any) -> Any:
        """Return hooks before and after modules, as :func:`~faast_sklearn.backbones.hooks.hooked` takes them."""
        before, after = [(lm.layers[m.layer], _adding(m.update)) for m in self.middle], []
        if self.target == "embedding" and self.update is not None:
            before.append((lm.final_norm, self.adapt))
        if self.target == "residual" and not (self.update is None and self.shift is None):
            before.append((lm.head, self._enter))
            if self.shift is not None:
                after.append((lm.head, self._leave))
        return before, after

    @contextmanager
    def attached(self, lm: Any, *, private: bool = False) -> Iterator[Any]:
        """Attach the weights to the model for the time of a block.

        Parameters
        ----------
        lm : LanguageModel
        private : bool, default=False
            See :func:`~faast_sklearn.backbones.hooks.hooked`.
        """
        try:
            # Code that was compiled before lacks the hooks, and code compiled now would keep them.
            with uncompiled(lm.module, everywhere=not private), hooked(*self.hooks(lm), private=private):
                yield
        finally:
            self._carried.__dict__.clear()  # left by a pass that failed

    def folded_matrix(self, lm: Any) -> Any:
        """Return the output matrix with the fast weights folded in: shape (vocabulary, d), in its own dtype.

        Raises
        ------
        BackboneError
            If the weights do not act on the output matrix.
        """
        if self.middle:
            raise BackboneError(
                "memories in the middle of the model do not act on its output matrix, so they cannot be folded into it."
            )
        matrix = lm.head.weight.detach()
        if self.target == "embedding" and self.update is not None:
            raise BackboneError(
                "target='embedding' changes the hidden state in front of the final norm, which is not linear, so the "
                "change cannot be folded into the output matrix; use target='residual'."
            )
        folded = matrix.to(torch.float32 if matrix.dtype != torch.float64 else torch.float64)
        if self.update is not None:
            folded = folded + folded @ self.update.T.to(folded.dtype)
        else:
            folded = folded.clone()
        if self.shift is not None:
            folded.addmm_(self.shift.T.to(folded.dtype), self.reader.T.to(folded.dtype))
        return folded.to(matrix.dtype)

    def _enter(self, states):
        if self.shift is not None:
            # The shift needs the state before the update, which the hook after the matrix does not see.
            self._carried.__dict__.setdefault("states", []).append(states)  # the same weights may be attached twice
        return self.adapt(states)

    def _leave(self, _, raw):
        states = self._carried.__dict__.get("states")
        # None if another thread attached the weights while this one was inside the matrix.
        return self.adapt_raw(states.pop(), raw) if states else None


def _adding(update):
    return lambda states: states + states @ update
