"""Sufficient statistics of labelled rows: immutable, centred, float64, exact under ``+`` and ``−``.

Everything that the solvers and readouts need follows from them; no example is kept.
:mod:`faast_sklearn.moments.scatter` says how precision is kept.
"""

import threading
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import scipy.sparse
import torch

from faast_sklearn.errors import ForgetError
from faast_sklearn.inputs.labels import union_of_labels
from faast_sklearn.moments.scatter import PENDING_ROWS, Scatter, add_crossproduct, host, mirror
from faast_sklearn.persistence.arrays import Array, Labels
from faast_sklearn.persistence.state import Stateful, require

__all__ = ["ClassMoments"]

# Rows multiplied at once: enough for the rank-k update to run at full speed, and 21 MB at d = 1280.
_BLOCK_ROWS = 2048


def _float64(X):
    return X.astype(np.float64, copy=False) if isinstance(X, np.ndarray) else X.to(torch.float64)


def _like(X, values):
    """Return float64 ``values`` as the same kind of array as X, on its device."""
    return values if isinstance(X, np.ndarray) else torch.as_tensor(values, device=X.device)


def _rough_mean(X, weight):
    """Return an approximate mean of rows in float64; the remainder is computed later and subtracted exactly.

    Without weights, a thousand rows spread over X are enough to lose no digits. With weights, one row may outweigh
    all others, so all rows are used, in their own precision.
    """
    if weight is None:
        return _float64(X[:: max(1, len(X) // 1024)]).mean(0)
    weight = _like(X, weight / weight.sum())
    if isinstance(X, np.ndarray):
        return _float64(weight[:, 0].astype(np.result_type(X.dtype, np.float32)) @ X)
    return (weight.T.to(X.dtype) @ X)[0].to(torch.float64)


def _centred(X, shift, scratch):
    """Return ``X − shift`` in float64, in ``scratch`` if given: a new array costs as much as the subtraction."""
    if scratch is None:
        return _float64(X) - shift
    return np.subtract(X, shift, out=scratch[: len(X)])


def _sum_by_class(rows, codes, c):
    """Return the (c, d) sums of rows with the same code."""
    n = len(codes)
    if not isinstance(rows, np.ndarray):
        # A product with indicators is deterministic on a GPU, where adding by index is not.
        index = torch.as_tensor(codes, device=rows.device, dtype=torch.int64)
        return torch.nn.functional.one_hot(index, c).to(torch.float64).T @ rows
    # A sparse product uses no BLAS. NumPy and SciPy have one BLAS each; if NumPy's product alternated with SciPy's
    # rank-k update, the waiting threads of one would take cores from the other.
    return scipy.sparse.csr_array((np.ones(n), codes, np.arange(n + 1)), shape=(n, c)).T @ rows


def _mean_weights(codes, weight, counts):
    """Return ``Σw² / Σw`` of each class, 0 without weight; no square is formed that could overflow."""
    shares = np.divide(weight, counts[codes], out=np.zeros(len(codes)), where=counts[codes] > 0)
    return np.bincount(codes, weights=weight * shares, minlength=len(counts))


class _Kept:
    """Results computed from some moments, each once; other threads wait meanwhile."""

    def __init__(self):
        self._made = {}
        self._lock = threading.Lock()

    def get(self, key, make):
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]


class ClassMoments(Stateful):
    """Scatter of the features together with weight, number of rows and mean of each class.

    One row per class is enough for any coding of the targets: with centred class sums ``S = diag(n)(M − μ)`` the
    cross-moment of one-hot targets is ``Sᵀ`` and that of value vectors E is ``Sᵀ E``. A new class is a new row.

    Statistics form a group: ``a + b`` is what one pass over the rows of both would have given, ``a − b`` forgets
    b, both exact up to float64 rounding. Classes are matched by label. Instances are immutable.

    Parameters
    ----------
    classes : ndarray of shape (c,)
        Sorted labels.
    counts : ndarray of shape (c,), float64
        Sum of the weights of each class.
    rows : ndarray of shape (c,), int64
        Number of rows of each class with a positive weight.
    mean_weights : ndarray of shape (c,), float64
        Mean of the weights of each class, weighted by themselves, ``Σw² / Σw``: 1 without weights.
    means : torch.Tensor of shape (c, d), float64
        Weighted mean of each class.
    scatter : Scatter

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.moments import ClassMoments
    >>> X = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 5.0]])
    >>> a = ClassMoments.from_rows(X[:2], np.array(["u", "v"]))
    >>> b = ClassMoments.from_rows(X[2:], np.array(["v"]))
    >>> (a + b).counts
    array([1., 2.])
    >>> (a + b).scatter.matrix().numpy().round(6).tolist()
    [[8.0, 8.0], [8.0, 10.666667]]
    """

    __slots__ = ("_kept", "_means", "classes", "counts", "mean_weights", "rows", "scatter")
    _state: ClassVar = {
        "classes": Labels(),
        "counts": Array("c", numpy=True, least=0),
        "rows": Array("c", (torch.int64,), numpy=True, least=0),
        "mean_weights": Array("c", numpy=True, least=0),
        "means": Array("cd", numpy=True),
        "scatter": Scatter.record(),
    }

    def __init__(
        self,
        classes: np.ndarray,
        counts: np.ndarray,
        rows: np.ndarray,
        mean_weights: np.ndarray,
        means: torch.Tensor,
        scatter: "Scatter",
    ) -> None:
        self.classes = classes
        self.counts = counts
        self.rows = rows
        self.mean_weights = mean_weights
        self._means = means
        self.scatter = scatter
        self._kept: _Kept | None = None

    @classmethod
    def empty(cls, n_features: Any, device: Any = "cpu") -> "ClassMoments":
        """Return the neutral element of ``+``."""
        scatter = Scatter.empty(n_features, device)
        means = torch.zeros((0, n_features), dtype=torch.float64, device=device)
        return cls(np.array([]), np.zeros(0), np.zeros(0, np.int64), np.zeros(0), means, scatter)

    @classmethod
    def from_rows(cls, X: Any, y: Any, sample_weight: Any = None) -> "ClassMoments":
        """Compute the moments of labelled rows, in one pass and bounded additional memory.

        Parameters
        ----------
        X : array or torch.Tensor of shape (n, d)
            Features of any floating dtype, on any device with float64; the moments stay there.
        y : ndarray of shape (n,)
            Labels.
        sample_weight : ndarray of shape (n,), optional
            Non-negative. Only ratios affect the solve; a row of weight 0 is left out.

        Returns
        -------
        ClassMoments
        """
        classes, codes = np.unique(np.asarray(y), return_inverse=True)
        return cls.from_codes(X, codes.ravel(), classes, sample_weight)

    @classmethod
    def from_codes(cls, X: Any, codes: Any, classes: Any, sample_weight: Any = None) -> "ClassMoments":
        """Compute the moments of rows labelled by their position in sorted ``classes``; see ``from_rows``.

        Classes without a row of positive weight are left out.
        """
        X = host(X) if isinstance(X, torch.Tensor) else np.asarray(X)
        if sample_weight is not None:
            sample_weight = np.asarray(sample_weight, dtype=np.float64)
            kept = np.flatnonzero(sample_weight > 0)
            if len(kept) < len(sample_weight):
                at = kept if isinstance(X, np.ndarray) else torch.as_tensor(kept, device=X.device)
                X, codes, sample_weight = X[at], codes[kept], sample_weight[kept]
        device = X.device if isinstance(X, torch.Tensor) else "cpu"
        n, c, d = len(X), len(classes), X.shape[1]
        if not n:
            return cls.empty(d, device)
        rows = np.bincount(codes, minlength=c)
        counts: np.ndarray = rows.astype(np.float64)
        mean_weights = np.ones(c)
        if sample_weight is not None:
            counts = np.bincount(codes, weights=sample_weight, minlength=c)
            mean_weights = np.maximum(_mean_weights(codes, sample_weight, counts), counts / np.maximum(rows, 1))
        # From here on, arrays are NumPy's on the host (its element-wise operations start no threads, which matters
        # for batches of a few rows) and torch's elsewhere; the expressions are the same for both.
        weight = None if sample_weight is None else _like(X, sample_weight)[:, None]
        shift = _rough_mean(X, weight)
        few = n <= PENDING_ROWS
        dense = None if few else torch.zeros((d, d), dtype=torch.float64, device=device)
        scratch = None if few or device != "cpu" else np.empty((min(n, _BLOCK_ROWS), d))
        sums: Any = 0.0
        for start in range(0, n, _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            centred = _centred(X[part], shift, scratch)
            if weight is None:
                sums = sums + _sum_by_class(centred, codes[part], c)
            else:
                sums = sums + _sum_by_class(centred * weight[part], codes[part], c)
                centred *= weight[part] ** 0.5
            if not few:
                add_crossproduct(dense, centred)
        total = float(counts.sum())
        offset = sums.sum(0) / total
        mean = torch.as_tensor(shift + offset)
        if few:
            # The rows stay a factor and must be centred exactly; they are few enough for a second pass.
            centred -= offset if weight is None else weight**0.5 * offset
            # A single row equals its mean.
            scatter = Scatter(total, mean, None, (torch.as_tensor(centred),) if n > 1 else ())
        else:
            offset = torch.as_tensor(total**0.5 * offset)  # so that the product is exactly symmetric
            scatter = Scatter(total, mean, mirror(dense).addr_(offset, offset, alpha=-1))
        means = shift + sums / _like(X, np.where(counts > 0, counts, 1.0))[:, None]
        means = torch.as_tensor(means)
        return cls(classes, counts, rows.astype(np.int64), mean_weights, means, scatter)._compact()

    def _absorb(self, other):
        """Return ``self + other`` for the same ``classes``."""
        counts = self.counts + other.counts
        share = other.counts / np.where(counts > 0, counts, 1.0)
        mean_weights = self.mean_weights + (other.mean_weights - self.mean_weights) * share
        means = self._means + (other._means - self._means) * torch.as_tensor(share, device=self._means.device)[:, None]
        rows, scatter = self.rows + other.rows, self.scatter + other.scatter
        return ClassMoments(self.classes, counts, rows, mean_weights, means, scatter)

    def _compact(self):
        """Drop classes without rows."""
        seen = self.rows > 0
        if seen.all():
            return self
        keep = torch.as_tensor(np.flatnonzero(seen), device=self._means.device)
        parts = (a[seen] for a in (self.classes, self.counts, self.rows, self.mean_weights))
        return ClassMoments(*parts, self._means[keep], self.scatter)

    def reindexed(self, classes: Any) -> "ClassMoments":
        """Return the same statistics with one row for each of sorted ``classes``, a superset of the present ones."""
        if len(classes) == len(self.classes):
            return self
        c, d = len(classes), self.n_features
        at = np.searchsorted(classes, self.classes) if len(self.classes) else np.zeros(0, np.intp)
        counts, rows, mean_weights = np.zeros(c), np.zeros(c, np.int64), np.zeros(c)
        counts[at], rows[at], mean_weights[at] = self.counts, self.rows, self.mean_weights
        means = self._means.new_zeros((c, d))
        means[torch.as_tensor(at, device=means.device)] = self._means
        return ClassMoments(classes, counts, rows, mean_weights, means, self.scatter)

    @property
    def n_features(self) -> int:
        """Number of features d."""
        return self.scatter.n_features

    @property
    def weight(self) -> float:
        """Sum of all weights, Σw."""
        return self.scatter.weight

    @property
    def n_rows(self) -> int:
        """Number of rows with a positive weight."""
        return int(self.rows.sum())

    @property
    def sizes(self) -> np.ndarray:
        """Kish's effective size of each class, ``(Σw)² / Σw²``: an ndarray of shape (c,)."""
        return self.counts / self.mean_weights

    @property
    def n_samples(self) -> float:
        """N, the sum of ``sizes``: the number of rows if all rows of a class have the same weight."""
        return float(self.sizes.sum())

    @property
    def n_spare(self) -> float:
        """``N − c``, the number of rows beyond one per class; at least 0."""
        return max(self.n_samples - len(self.classes), 0.0)

    @property
    def bessel(self) -> float:
        """Bessel's correction of mean squares within classes, at most N: ``N / (N − c)`` for equal weights."""
        return 1.0 / max(1.0 - float((self.mean_weights / self.weight).sum()), 1.0 / max(self.n_samples, 1.0))

    @property
    def effective_size(self) -> float:
        """Kish's effective size over all rows, ``(Σw)² / Σw²``, for estimating the shares of classes."""
        return float(self.weight / ((self.counts / self.weight) @ self.mean_weights)) if self.weight else 0.0

    @property
    def mean(self) -> np.ndarray:
        """Mean of all rows, ndarray of shape (d,)."""
        return self.scatter.mean.cpu().numpy()

    @property
    def means(self) -> np.ndarray:
        """Mean of each class, ndarray of shape (c, d)."""
        return self._means.cpu().numpy()

    def class_sums(self, centred: bool = True) -> torch.Tensor:
        """Return ``diag(n)(M − μ)``, or ``diag(n) M`` uncentred: a tensor of shape (c, d)."""
        means = self._means - self.scatter.mean if centred else self._means
        return means * torch.as_tensor(self.counts, device=means.device)[:, None]

    def keep(self) -> "ClassMoments":
        """Keep the results of ``once`` from now on, for moments that are solved repeatedly; return the moments."""
        self._kept = _Kept()
        return self

    @property
    def keeps(self) -> bool:
        """Whether results of ``once`` are kept."""
        return self._kept is not None

    def once(self, key: Any, make: Any) -> Any:
        """Return ``make()``, called every time, or after ``keep`` once for each key."""
        return make() if self._kept is None else self._kept.get(key, make)

    def derived(self, key: Any, make: Callable[[], "ClassMoments"]) -> "ClassMoments":
        """Return ``once(key, make)``, moments made of these, which keep what is made of them if these do."""

        def kept():
            made = make()
            return made.keep() if self.keeps else made

        return self.once(key, kept)

    def nbytes(self) -> int:
        """Return the approximate size of the moments and one decomposition in bytes."""
        return 16 * min(self.n_features, self.n_rows) * self.n_features

    def to(self, device: Any) -> "ClassMoments":
        """Return the same statistics on ``device``."""
        return self._with(self._means.to(device), self.scatter.to(device))

    def leading(self, d: Any) -> "ClassMoments":
        """Return the statistics of the first ``d`` features alone."""
        return self._with(self._means[:, :d], self.scatter.leading(d))

    def scaled_features(self, factors: Any) -> "ClassMoments":
        """Return the statistics of features that are multiplied by ``factors``, a tensor of shape (d,)."""
        return self._with(self._means * factors, self.scatter.scaled_features(factors))

    def _with(self, means, scatter):
        return ClassMoments(self.classes, self.counts, self.rows, self.mean_weights, means, scatter)

    def scale(self, factor: Any) -> "ClassMoments":
        """Return the statistics with every weight multiplied by ``factor`` > 0."""
        counts, mean_weights = self.counts * factor, self.mean_weights * factor
        return ClassMoments(self.classes, counts, self.rows, mean_weights, self._means, self.scatter.scale(factor))

    def _aligned(self, other):
        classes = union_of_labels(self.classes, other.classes)
        return self.reindexed(classes), other.to(self.scatter.device).reindexed(classes)

    def __add__(self, other):
        if not isinstance(other, ClassMoments):
            return NotImplemented
        a, b = self._aligned(other)
        return a._absorb(b)

    def __sub__(self, other):
        if not isinstance(other, ClassMoments):
            return NotImplemented
        a, b = self._aligned(other)
        # A class stays as long as weight is left. If weight is left but no row, all rows have lost a part of theirs.
        left = a.counts - b.counts
        parts = (a.rows <= b.rows) & (left > 1e-9 * a.counts)
        rows = np.where(parts, a.rows, np.where(left > 1e-12 * a.counts, a.rows - b.rows, 0).clip(min=0))
        counts = np.where(rows > 0, left, 0.0)
        ratio = b.counts / np.where(counts > 0, counts, 1.0)
        mean_weights = a.mean_weights + (a.mean_weights - b.mean_weights) * ratio
        # Sums of squares do not show how much each of these rows lost; the same share is assumed.
        mean_weights = np.where(parts, a.mean_weights * counts / np.where(parts, a.counts, 1.0), mean_weights)
        mean_weights = np.clip(mean_weights, counts / np.maximum(rows, 1), counts)
        means = a._means + (a._means - b._means) * torch.as_tensor(ratio, device=a._means.device)[:, None]
        scatter = a.scatter - b.scatter if rows.any() else Scatter.empty(a.n_features, a.scatter.device)
        return ClassMoments(a.classes, counts, rows, mean_weights, means, scatter)._compact()

    def without(self, removed: Any) -> "ClassMoments":
        """Return ``self − removed``; raise ForgetError if ``removed`` cannot be a part of what was learnt."""
        unknown = np.setdiff1d(removed.classes, self.classes)
        if len(unknown):
            raise ForgetError(
                f"y has labels that were never learnt: {unknown[:5].tolist()}; known are {self.classes[:10].tolist()}."
            )
        at = np.searchsorted(self.classes, removed.classes)
        excess = (removed.rows > self.rows[at]) | (removed.counts > self.counts[at] * (1 + 1e-9))
        if excess.any():
            k = int(np.flatnonzero(excess)[0])
            raise ForgetError(
                f"asked to forget {removed.rows[k]} samples of weight {removed.counts[k]:g} of class "
                f"{removed.classes[k]!r}, but only {self.rows[at[k]]} of weight {self.counts[at[k]]:g} were learnt."
            )
        left = self - removed
        before, after = self.scatter.variances(), left.scatter.variances()
        if bool((after < -1e-8 * before).any()):
            raise ForgetError("these samples were never learnt: taking them away leaves a negative variance.")
        return left

    def outline(self) -> Any:
        """Return what every rank must know before moments are summed across ranks."""
        return _Outline(self.n_features, self.classes)

    def _summed(self, ranks, classes):
        mine = self.reindexed(classes)
        scatter = mine.scatter.summed(ranks)
        counts = torch.as_tensor(mine.counts, device=scatter.device)
        sums = ranks.sum(mine.class_sums(centred=False) - counts[:, None] * scatter.mean)
        own, counts = counts, ranks.sum(counts)
        whole = torch.where(counts > 0, counts, 1.0)
        mean_weights = ranks.sum(torch.as_tensor(mine.mean_weights, device=scatter.device) * (own / whole))
        means = scatter.mean + sums / whole[:, None]
        rows = ranks.sum(torch.as_tensor(mine.rows))
        counts, mean_weights = counts.cpu().numpy(), mean_weights.cpu().numpy()
        return ClassMoments(classes, counts, rows.numpy(), mean_weights, means, scatter)._compact()

    @classmethod
    def _from_state(cls, classes, counts, rows, mean_weights, means, scatter):
        require(scatter.n_features == means.shape[1], "class means and scatter have different numbers of features")
        require(bool((mean_weights > 0).all()), "mean weights are not positive")
        return cls(classes, counts, rows, mean_weights, torch.from_numpy(np.array(means)), scatter)

    def __repr__(self):
        return f"ClassMoments(n_rows={self.n_rows}, n_features={self.n_features}, n_classes={len(self.classes)})"


class _Outline:
    """Width and labels of moments; ``+`` gives those of the sum."""

    def __init__(self, n_features, classes):
        self.n_features, self.classes = n_features, classes

    def __add__(self, other):
        return _Outline(self.n_features, union_of_labels(self.classes, other.classes))

    def summed(self, ranks, moments):
        """Return the sum of all ranks' moments, given this rank's own or None."""
        moments = ClassMoments.empty(self.n_features) if moments is None else moments
        return moments._summed(ranks, self.classes)
