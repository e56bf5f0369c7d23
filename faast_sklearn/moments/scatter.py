"""Weight, mean and second moment of rows: the statistics of features without labels.

How precision is kept. Rows are converted to float64 and centred before they are multiplied; sets of rows are merged
by the pairwise update of Chan, Golub and LeVeque (1983). A product of two float32 (or narrower) numbers is exact in
float64, so the error of a scatter matrix is that of summing N float64 numbers, relative to the spread of the features
and not to their mean: below ``2**-53 · N · trace`` in the worst case and near ``1e-15 · trace`` in practice, whatever
the order and the split of the rows.
"""

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import scipy.linalg.blas
import torch

from faast_sklearn.persistence.arrays import Array, Stacked
from faast_sklearn.persistence.fields import Maybe, Number
from faast_sklearn.persistence.state import Stateful

__all__ = ["PENDING_ROWS", "Scatter", "add_crossproduct", "host", "mirror"]

# Rows that may wait for the next rank-k update. It is also the rank up to which a scatter stays a factor, so
# that few examples of many features are solved as an N×N problem.
PENDING_ROWS = 2048


def host(X: Any) -> Any:
    """Return a CPU tensor as a NumPy array on the same memory (bfloat16 as a float32 copy), anything else as it is."""
    if isinstance(X, np.ndarray) or X.device.type != "cpu":
        return X
    return (X.float() if X.dtype == torch.bfloat16 else X).numpy()


def add_crossproduct(total: Any, rows: Any) -> None:
    """Add ``rowsᵀ rows`` to the part of ``total`` on and below its diagonal, in place.

    This takes half the work of a general product on the host, where BLAS has a symmetric rank-k update, and five
    eighths elsewhere, where each panel of columns is multiplied only with the columns up to its end.
    """
    if isinstance(rows, np.ndarray):
        # BLAS takes Fortran order without a copy; transposed, its upper triangle is our lower one.
        scipy.linalg.blas.dsyrk(1.0, rows.T, beta=1.0, c=total.numpy().T, overwrite_c=1)
        return
    edges = [len(total) * i // 4 for i in range(5)]
    for start, stop in itertools.pairwise(edges):
        total[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])


def mirror(total: Any) -> torch.Tensor:
    """Copy the part of a square tensor below the diagonal to the part above it, in place, panel by panel."""
    whole = host(total)
    xp = np if isinstance(whole, np.ndarray) else torch
    edges = [len(whole) * i // 8 for i in range(9)]
    for start, stop in itertools.pairwise(edges):
        whole[:start, start:stop] = whole[start:stop, :start].T
        corner = whole[start:stop, start:stop]
        corner[:] = xp.tril(corner) + xp.tril(corner, -1).T
    return total


class Scatter(Stateful):
    """Weight, mean and centred second moment of rows.

    The scatter matrix ``T = Σ wᵢ (xᵢ − μ)(xᵢ − μ)ᵀ`` is kept as ``dense + Σ FᵀF`` with at most 2048 pending
    factor rows F (``max(2048, d)`` while nothing is dense). Few rows of many features are therefore never
    squared, and many small updates cost one large product now and then instead of a d×d pass each.

    Instances are immutable: every operation returns a new one.

    Parameters
    ----------
    weight : float
        Sum of the weights.
    mean : torch.Tensor of shape (d,), float64
    dense : torch.Tensor of shape (d, d), float64, or None
    factors : tuple of torch.Tensor of shape (r, d), float64
    """

    __slots__ = ("_dense", "_factors", "mean", "weight")
    _state: ClassVar = {
        "weight": Number(0),
        "mean": Array("d"),
        "dense": Maybe(Array("dd", symmetric=True)),
        "factors": Stacked("rd"),
    }

    def __init__(self, weight: float, mean: torch.Tensor, dense: Any = None, factors: Sequence = ()) -> None:
        self.weight = float(weight)
        self.mean = mean
        self._dense = dense
        self._factors = tuple(factors)

    @classmethod
    def empty(cls, n_features: Any, device: Any = "cpu") -> "Scatter":
        """Return the neutral element of ``+`` for ``n_features`` features."""
        return cls(0.0, torch.zeros(n_features, dtype=torch.float64, device=device))

    @classmethod
    def from_rows(cls, rows: Any) -> "Scatter":
        """Return the scatter of float64 ``rows`` of shape (n, d), each of weight one."""
        n, d = rows.shape
        if not n:
            return cls.empty(d, rows.device)
        mean = rows.mean(0)
        centred = rows - mean
        if n <= PENDING_ROWS:
            # A single row equals its mean.
            return cls(n, mean, None, (centred,) if n > 1 else ())
        dense = torch.zeros((d, d), dtype=torch.float64, device=rows.device)
        add_crossproduct(dense, host(centred))
        return cls(n, mean, mirror(dense))

    @property
    def n_features(self) -> int:
        """Number of features d."""
        return len(self.mean)

    @property
    def device(self) -> torch.device:
        """Device that holds the statistics."""
        return self.mean.device

    @property
    def is_small(self) -> bool:
        """Whether T has fewer factor rows than features and nothing else, so that their Gram matrix is the smaller."""
        return self._dense is None and self._n_pending < self.n_features

    @property
    def is_factored(self) -> bool:
        """Whether T consists of factor rows alone, however many."""
        return self._dense is None

    @property
    def _n_pending(self):
        return sum(len(f) for f in self._factors)

    def factor_rows(self) -> torch.Tensor:
        """Return the factor rows that are not yet squared, of shape (r, d); all of T if ``is_factored``."""
        if not self._factors:
            return self.mean.new_zeros((0, self.n_features))
        if len(self._factors) == 1:
            return self._factors[0]
        if self.device.type == "cpu":
            return torch.from_numpy(np.concatenate([f.numpy() for f in self._factors]))
        return torch.cat(self._factors)

    def matrix(self) -> torch.Tensor:
        """Return T itself, a new tensor of shape (d, d)."""
        d = self.n_features
        total = self.mean.new_zeros((d, d)) if self._dense is None else self._dense.clone()
        if self._factors:
            add_crossproduct(total, host(self.factor_rows()))
            mirror(total)
        return total

    def variances(self) -> torch.Tensor:
        """Return the diagonal of T, of shape (d,): the centred sum of squares of each feature."""
        total = torch.zeros_like(self.mean) if self._dense is None else self._dense.diagonal().clone()
        for rows in self._factors:
            total += rows.square().sum(0)
        return total

    def trace(self) -> float:
        """Return the trace of T."""
        einsum = np.einsum if self.device.type == "cpu" else torch.einsum  # NumPy's starts no threads
        total = sum(float(einsum("ij,ij->", host(f), host(f))) for f in self._factors)
        return total if self._dense is None else total + float(self._dense.diagonal().sum())

    def quadratic(self, W: Any) -> torch.Tensor:
        """Return ``Wᵀ T W`` for W of shape (d, m) without forming T: O(d m (r + d))."""
        rows = self.factor_rows() @ W
        total = rows.T @ rows
        return total if self._dense is None else total + W.T @ (self._dense @ W)

    def squares(self, W: Any) -> torch.Tensor:
        """Return the diagonal of ``Wᵀ T W`` for W of shape (d, m), the spread along each column: O(d m (r + d))."""
        total = (self.factor_rows() @ W).square().sum(0)
        return total if self._dense is None else total + (W * (self._dense @ W)).sum(0)

    def about_origin(self) -> "Scatter":
        """Return the scatter of the same rows about zero instead of their mean (one more factor row)."""
        row = (self.weight**0.5 * self.mean)[None]
        return Scatter(self.weight, torch.zeros_like(self.mean), self._dense, (*self._factors, row))

    def leading(self, d: Any) -> "Scatter":
        """Return the statistics of the first ``d`` features alone."""
        dense = None if self._dense is None else self._dense[:d, :d]
        return Scatter(self.weight, self.mean[:d], dense, [f[:, :d] for f in self._factors])._folded()

    def scaled_features(self, factors: Any) -> "Scatter":
        """Return the statistics of features that are multiplied by ``factors``, a tensor of shape (d,)."""
        dense = None if self._dense is None else self._dense * factors * factors[:, None]
        return Scatter(self.weight, self.mean * factors, dense, [f * factors for f in self._factors])

    def significant(self) -> "Scatter":
        """Return the scatter with features whose spread is rounding, ``4 · 2**-53`` of their mean, set to constant."""
        variances = self.variances()
        noise = self.weight * (2.0**-51 * self.mean).square()
        clear = (variances > 0) & (variances <= noise)
        if not bool(clear.any()):
            return self
        kept = (~clear).to(self.mean.dtype)
        dense = None if self._dense is None else self._dense * kept * kept[:, None]
        return Scatter(self.weight, self.mean, dense, [f * kept for f in self._factors])

    def to(self, device: Any) -> "Scatter":
        """Return the same statistics on ``device``."""
        return Scatter(
            self.weight,
            self.mean.to(device),
            None if self._dense is None else self._dense.to(device),
            [f.to(device) for f in self._factors],
        )

    def _folded(self):
        """Square the pending factor rows once there are too many of them."""
        limit = PENDING_ROWS if self._dense is not None else max(PENDING_ROWS, self.n_features)
        if self._n_pending <= limit:
            return self
        return Scatter(self.weight, self.mean, self.matrix())

    def __add__(self, other):
        if not isinstance(other, Scatter):
            return NotImplemented
        other = other.to(self.device)
        if other.weight == 0:
            return self
        if self.weight == 0:
            return other
        weight = self.weight + other.weight
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.weight / weight)
        between = (delta * (self.weight * other.weight / weight) ** 0.5)[None]
        if self._dense is None or other._dense is None:
            dense = self._dense if other._dense is None else other._dense
        else:
            dense = self._dense + other._dense
        return Scatter(weight, mean, dense, (*self._factors, *other._factors, between))._folded()

    def __sub__(self, other):
        if not isinstance(other, Scatter):
            return NotImplemented
        other = other.to(self.device)
        if other.weight == 0:
            return self
        weight = self.weight - other.weight
        if weight <= 1e-12 * self.weight:
            return Scatter.empty(self.n_features, self.device)
        delta = self.mean - other.mean
        mean = self.mean + delta * (other.weight / weight)
        between = delta * (self.weight * other.weight / weight) ** 0.5
        dense = self.matrix()
        dense -= other.matrix()
        dense -= torch.outer(between, between)
        return Scatter(weight, mean, dense)

    def scale(self, factor: Any) -> "Scatter":
        """Return the statistics with every weight multiplied by ``factor`` ≥ 0."""
        root = factor**0.5
        return Scatter(
            self.weight * factor,
            self.mean,
            None if self._dense is None else self._dense * factor,
            [f * root for f in self._factors],
        )

    def summed(self, ranks: Any) -> "Scatter":
        """Return the sum of all ranks' scatters, bit for bit the same on each.

        It is about the common mean: each rank adds the distance of its own mean from it, as Chan's update does.

        Parameters
        ----------
        ranks : Ranks
            See the module ``faast_sklearn.moments.ranks``.
        """
        weight = ranks.sum_number(self.weight)
        if not weight:
            return self
        mean = ranks.sum(self.mean * (self.weight / weight))
        rows = self.factor_rows()
        if self.weight:
            between = (self.mean - mean) * self.weight**0.5
            rows = torch.cat([rows, between[None]])
        pending, factored = ranks.each(len(rows), self.is_factored).T
        if factored.all() and pending.sum() <= max(PENDING_ROWS, self.n_features):
            return Scatter(weight, mean, None, (ranks.joined(rows),))
        dense = self.matrix()
        if self.weight:
            dense += torch.outer(between, between)
        # Mirrored entries may have been added up in different orders.
        return Scatter(weight, mean, mirror(ranks.sum(dense)))
