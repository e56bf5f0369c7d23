"""Sufficient statistics of keys and their value vectors, exact under ``+`` and ``−``."""

from typing import Any, ClassVar

import torch

from faast_sklearn.moments.scatter import Scatter
from faast_sklearn.persistence.arrays import Array
from faast_sklearn.persistence.fields import Number
from faast_sklearn.persistence.state import Stateful, require

__all__ = ["CrossMoments"]


class CrossMoments(Stateful):
    """Scatter of keys together with their product with values, both about the origin.

    The counterpart of :class:`~faast_sklearn.moments.ClassMoments` with a value vector for each row instead of a label:
    ``G = KᵀK`` and ``C = KᵀV`` determine the linear map from keys to values, and with ``tr VᵀV`` its residual.
    Instances are immutable and form a group.

    Parameters
    ----------
    keys : Scatter
        Of K.
    cross : torch.Tensor of shape (d, m), float64
        ``KᵀV``.
    power : float
        ``tr VᵀV``.

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.moments.cross_moments import CrossMoments
    >>> K, V = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    >>> whole = CrossMoments.from_rows(K, V)
    >>> parts = CrossMoments.from_rows(K[:1], V[:1]) + CrossMoments.from_rows(K[1:], V[1:])
    >>> whole.cross.ravel().tolist(), parts.cross.ravel().tolist(), parts.power
    ([4.0, 7.0], [4.0, 7.0], 14.0)
    """

    __slots__ = ("cross", "keys", "power")
    _state: ClassVar = {"keys": Scatter.record(), "cross": Array("dm"), "power": Number()}

    def __init__(self, keys: "Scatter", cross: torch.Tensor, power: float) -> None:
        self.keys = keys
        self.cross = cross
        self.power = float(power)

    @classmethod
    def empty(cls, n_features: Any, n_values: Any, device: Any = "cpu") -> "CrossMoments":
        """Return the neutral element of ``+``."""
        cross = torch.zeros((n_features, n_values), dtype=torch.float64, device=device)
        return cls(Scatter.empty(n_features, device), cross, 0.0)

    @classmethod
    def from_rows(cls, K: Any, V: Any) -> Any:
        """Compute the moments of keys K, of shape (n, d), and values V, of shape (n, m), on their device.

        Raises
        ------
        ValueError
            If the numbers of keys and values differ.
        """
        if len(K) != len(V):
            raise ValueError(f"{len(K)} keys and {len(V)} values; each key needs one value.")
        K, V = K.to(torch.float64), V.to(torch.float64)
        return cls(Scatter.from_rows(K), K.T @ V, V.detach().square().sum())

    @classmethod
    def _from_state(cls, keys, cross, power):
        require(keys.n_features == len(cross), "keys and their product with values have different numbers of features")
        return cls(keys, cross, power)

    @property
    def weight(self) -> float:
        """Number of rows."""
        return self.keys.weight

    def to(self, device: Any) -> "CrossMoments":
        """Return the same statistics on ``device``."""
        return CrossMoments(self.keys.to(device), self.cross.to(device), self.power)

    def __add__(self, other):
        if not isinstance(other, CrossMoments):
            return NotImplemented
        other = other.to(self.cross.device)
        return CrossMoments(self.keys + other.keys, self.cross + other.cross, self.power + other.power)

    def __sub__(self, other):
        if not isinstance(other, CrossMoments):
            return NotImplemented
        other = other.to(self.cross.device)
        return CrossMoments(self.keys - other.keys, self.cross - other.cross, self.power - other.power)

    def summed(self, ranks: Any) -> "CrossMoments":
        """Return the sum of all ranks' moments; see :meth:`Scatter.summed`."""
        power = ranks.sum_number(self.power)
        return CrossMoments(self.keys.summed(ranks), ranks.sum(self.cross), power)
