"""Sufficient statistics of what was learnt: immutable, centred, float64, exact under ``+`` and ``−``.

:class:`Scatter` describes the features alone, :class:`ClassMoments` adds one row a class. Everything that the
solvers need follows from these; the examples themselves are gone.

How precision is kept. Each block of rows is converted to float64, centred about its own mean and only then
multiplied; blocks are merged by the pairwise update of Chan, Golub and LeVeque (1983). A product of two
float32 (or narrower) numbers is exact in float64, so the error of a scatter matrix is that of summing N float64
numbers, relative to the spread of the features and not to their mean: below ``2**-53 · N · trace`` in the worst
case and near ``1e-15 · trace`` in practice, whatever the order and the split of the rows.
"""

import itertools

import numpy as np
import scipy.linalg.blas
import scipy.sparse
import torch

__all__ = ["ClassMoments", "Scatter"]

# Rows multiplied at once: enough for the rank-k update to run at full speed, and 21 MB at d = 1280.
_BLOCK_ROWS = 2048
# Rows that may wait for the next rank-k update. It is also the rank up to which a scatter stays a factor, so
# that few examples of many features are solved as an N×N problem.
_PENDING_ROWS = 2048


def _host(X):
    """Return a CPU tensor as the NumPy array that shares its memory, anything else as it is."""
    if isinstance(X, np.ndarray) or X.device.type != "cpu":
        return X
    return (X.float() if X.dtype == torch.bfloat16 else X).numpy()


def _float64(X):
    return X.astype(np.float64, copy=False) if isinstance(X, np.ndarray) else X.to(torch.float64)


def _like(X, values):
    """Return float64 ``values`` as the kind of array that X is, where X is."""
    return values if isinstance(X, np.ndarray) else torch.as_tensor(values, device=X.device)


def _rough_mean(X, weight):
    """Return about the mean of rows in float64: what it misses is found later and taken off exactly.

    Unweighted, a thousand rows from all over X are enough to lose no digits. Weighted, one row may outweigh all
    others, so that all are looked at, in the precision they have.
    """
    if weight is None:
        return _float64(X[:: max(1, len(X) // 1024)]).mean(0)
    weight = _like(X, weight / weight.sum())
    if isinstance(X, np.ndarray):
        return _float64(weight[:, 0].astype(np.result_type(X.dtype, np.float32)) @ X)
    return (weight.T.to(X.dtype) @ X)[0].to(torch.float64)


def _centred(X, shift, scratch):
    """Return ``X − shift`` in float64, in ``scratch`` if any: new pages cost as much as the subtraction."""
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
    # Sparse, and not for its zeros: NumPy's product and SciPy's rank-k update bring a BLAS each, whose waiting threads
    # take the cores from one another when they alternate.
    return scipy.sparse.csr_array((np.ones(n), codes, np.arange(n + 1)), shape=(n, c)).T @ rows


def _add_crossproduct(total, rows):
    """Add ``rowsᵀ rows`` to the part of ``total`` on and below its diagonal, in place.

    Work is half of a general product's on the host, where BLAS has a symmetric rank-k update, and five eighths
    elsewhere, where column panels are multiplied with the columns up to their own end.
    """
    if isinstance(rows, np.ndarray):
        # Fortran order is what BLAS takes without a copy; transposed, its upper triangle is our lower one.
        scipy.linalg.blas.dsyrk(1.0, rows.T, beta=1.0, c=total.numpy().T, overwrite_c=1)
        return
    edges = [len(total) * i // 4 for i in range(5)]
    for start, stop in itertools.pairwise(edges):
        total[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])


def _mirror(total):
    """Copy the part of a square tensor below the diagonal to the part above it, in place, panel by panel."""
    whole = _host(total)
    xp = np if isinstance(whole, np.ndarray) else torch
    edges = [len(whole) * i // 8 for i in range(9)]
    for start, stop in itertools.pairwise(edges):
        whole[:start, start:stop] = whole[start:stop, :start].T
        corner = whole[start:stop, start:stop]
        corner[:] = xp.tril(corner) + xp.tril(corner, -1).T
    return total


class Scatter:
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

    def __init__(self, weight, mean, dense=None, factors=()):
        self.weight = float(weight)
        self.mean = mean
        self._dense = dense
        self._factors = tuple(factors)

    @classmethod
    def empty(cls, n_features, device="cpu"):
        """Return the neutral element of ``+`` for ``n_features`` features."""
        return cls(0.0, torch.zeros(n_features, dtype=torch.float64, device=device))

    @property
    def n_features(self):
        """Number of features d."""
        return len(self.mean)

    @property
    def device(self):
        """Device that holds the statistics."""
        return self.mean.device

    @property
    def is_small(self):
        """Whether T is known by fewer factor rows than it has features, so that the rows' side is the smaller one."""
        return self._dense is None and sum(len(f) for f in self._factors) < self.n_features

    def factor_rows(self):
        """Return the factor rows that are not yet squared, of shape (r, d); all of T where :attr:`is_small`."""
        if not self._factors:
            return self.mean.new_zeros((0, self.n_features))
        if len(self._factors) == 1:
            return self._factors[0]
        if self.device.type == "cpu":
            return torch.from_numpy(np.concatenate([f.numpy() for f in self._factors]))
        return torch.cat(self._factors)

    def matrix(self):
        """Return T itself, a new tensor of shape (d, d)."""
        d = self.n_features
        total = self.mean.new_zeros((d, d)) if self._dense is None else self._dense.clone()
        if self._factors:
            _add_crossproduct(total, _host(self.factor_rows()))
            _mirror(total)
        return total

    def variances(self):
        """Return the diagonal of T, of shape (d,): the centred sums of squares of each feature."""
        total = torch.zeros_like(self.mean) if self._dense is None else self._dense.diagonal().clone()
        for rows in self._factors:
            total += rows.square().sum(0)
        return total

    def trace(self):
        """Return the trace of T."""
        return float(self.variances().sum())

    def quadratic(self, W):
        """Return ``Wᵀ T W`` for W of shape (d, m) without forming T: O(d m (r + d))."""
        rows = self.factor_rows() @ W
        total = rows.T @ rows
        return total if self._dense is None else total + W.T @ (self._dense @ W)

    def about_origin(self):
        """Return the scatter of the same rows about zero instead of their mean (one more factor row)."""
        row = (self.weight**0.5 * self.mean)[None]
        return Scatter(self.weight, torch.zeros_like(self.mean), self._dense, (*self._factors, row))

    def to(self, device):
        """Return the same statistics on ``device``."""
        return Scatter(
            self.weight,
            self.mean.to(device),
            None if self._dense is None else self._dense.to(device),
            [f.to(device) for f in self._factors],
        )

    def _folded(self):
        """Square the pending factor rows once there are too many of them."""
        pending = sum(len(f) for f in self._factors)
        limit = _PENDING_ROWS if self._dense is not None else max(_PENDING_ROWS, self.n_features)
        if pending <= limit:
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

    def scale(self, factor):
        """Return the statistics with every weight multiplied by ``factor`` ≥ 0."""
        root = factor**0.5
        return Scatter(
            self.weight * factor,
            self.mean,
            None if self._dense is None else self._dense * factor,
            [f * root for f in self._factors],
        )

    def __getstate__(self):
        # CPU arrays only, so that what was learnt on a GPU loads anywhere.
        return {
            "weight": self.weight,
            "mean": self.mean.cpu().numpy(),
            "dense": None if self._dense is None else self._dense.cpu().numpy(),
            "factors": [f.cpu().numpy() for f in self._factors],
        }

    def __setstate__(self, state):
        dense = state["dense"]
        self.__init__(
            state["weight"],
            torch.from_numpy(np.array(state["mean"])),
            None if dense is None else torch.from_numpy(np.array(dense)),
            [torch.from_numpy(np.array(f)) for f in state["factors"]],
        )


class ClassMoments:
    """Scatter of the features together with weight, number of rows and mean of each class.

    A row a class is all that any target code needs: with centred class sums ``S = diag(n)(M − μ)`` the
    cross-moment of one-hot targets is ``Sᵀ`` and that of value vectors E is ``Sᵀ E``. A class that was never seen
    before is a new row; the scatter does not change with it.

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

    __slots__ = ("_means", "classes", "counts", "rows", "scatter")

    def __init__(self, classes, counts, rows, means, scatter):
        self.classes = classes
        self.counts = counts
        self.rows = rows
        self._means = means
        self.scatter = scatter

    @classmethod
    def empty(cls, n_features, device="cpu"):
        """Return the neutral element of ``+``."""
        scatter = Scatter.empty(n_features, device)
        means = torch.zeros((0, n_features), dtype=torch.float64, device=device)
        return cls(np.array([]), np.zeros(0), np.zeros(0, np.int64), means, scatter)

    @classmethod
    def from_rows(cls, X, y, sample_weight=None):
        """Compute the moments of labelled rows, in one pass and bounded memory beside X.

        Parameters
        ----------
        X : array or torch.Tensor of shape (n, d)
            Features of any floating dtype, on any device with float64; the moments stay there.
        y : ndarray of shape (n,)
            Labels.
        sample_weight : ndarray of shape (n,), optional
            Non-negative; 2 counts a row twice and 0 leaves it out.

        Returns
        -------
        ClassMoments
        """
        classes, codes = np.unique(np.asarray(y), return_inverse=True)
        return cls.from_codes(X, codes.ravel(), classes, sample_weight)

    @classmethod
    def from_codes(cls, X, codes, classes, sample_weight=None):
        """Compute the moments of rows labelled by their position in sorted ``classes``; see :meth:`from_rows`.

        Classes without a row of positive weight are left out.
        """
        X = _host(X) if isinstance(X, torch.Tensor) else np.asarray(X)
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
        counts = rows.astype(np.float64)
        if sample_weight is not None:
            counts = np.bincount(codes, weights=sample_weight, minlength=c)
        # From here on NumPy on the host (its element-wise operations start no threads, which matters for batches
        # of a few rows) and torch elsewhere; the expressions are the same for both.
        weight = None if sample_weight is None else _like(X, sample_weight)[:, None]
        shift = _rough_mean(X, weight)
        few = n <= _PENDING_ROWS
        dense = None if few else torch.zeros((d, d), dtype=torch.float64, device=device)
        scratch = None if few or device != "cpu" else np.empty((min(n, _BLOCK_ROWS), d))
        sums = 0.0
        for start in range(0, n, _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            centred = _centred(X[part], shift, scratch)
            if weight is None:
                sums = sums + _sum_by_class(centred, codes[part], c)
            else:
                sums = sums + _sum_by_class(centred * weight[part], codes[part], c)
                centred *= weight[part] ** 0.5
            if not few:
                _add_crossproduct(dense, centred)
        total = float(counts.sum())
        offset = sums.sum(0) / total
        mean = torch.as_tensor(shift + offset)
        if few:
            # Stays a factor; its rows must be centred exactly, and there are few enough to touch twice.
            centred -= offset if weight is None else weight**0.5 * offset
            # A single row lies at its own mean.
            scatter = Scatter(total, mean, None, (torch.as_tensor(centred),) if n > 1 else ())
        else:
            offset = torch.as_tensor(offset)
            scatter = Scatter(total, mean, _mirror(dense).addr_(offset, offset, alpha=-total))
        means = shift + sums / _like(X, np.where(counts > 0, counts, 1.0))[:, None]
        return cls(classes, counts, rows.astype(np.int64), torch.as_tensor(means), scatter)._compact()

    def _absorb(self, other):
        """Return ``self + other`` for the same ``classes``."""
        counts = self.counts + other.counts
        share = torch.as_tensor(other.counts / np.where(counts > 0, counts, 1.0), device=self._means.device)[:, None]
        means = self._means + (other._means - self._means) * share
        return ClassMoments(self.classes, counts, self.rows + other.rows, means, self.scatter + other.scatter)

    def _compact(self):
        """Drop classes without rows."""
        seen = self.rows > 0
        if seen.all():
            return self
        keep = torch.as_tensor(np.flatnonzero(seen), device=self._means.device)
        return ClassMoments(self.classes[seen], self.counts[seen], self.rows[seen], self._means[keep], self.scatter)

    def reindexed(self, classes):
        """Return the same statistics with one row for each of sorted ``classes``, a superset of the present ones."""
        if len(classes) == len(self.classes):
            return self
        c, d = len(classes), self.n_features
        at = np.searchsorted(classes, self.classes) if len(self.classes) else np.zeros(0, np.intp)
        counts, rows = np.zeros(c), np.zeros(c, np.int64)
        counts[at], rows[at] = self.counts, self.rows
        means = self._means.new_zeros((c, d))
        means[torch.as_tensor(at, device=means.device)] = self._means
        return ClassMoments(classes, counts, rows, means, self.scatter)

    @property
    def n_features(self):
        """Number of features d."""
        return self.scatter.n_features

    @property
    def weight(self):
        """Sum of all weights, Σw."""
        return self.scatter.weight

    @property
    def n_rows(self):
        """Number of rows with a positive weight."""
        return int(self.rows.sum())

    @property
    def mean(self):
        """Mean of all rows, ndarray of shape (d,)."""
        return self.scatter.mean.cpu().numpy()

    @property
    def means(self):
        """Mean of each class, ndarray of shape (c, d)."""
        return self._means.cpu().numpy()

    def class_sums(self, centred=True):
        """Return ``diag(n)(M − μ)``, or ``diag(n) M`` uncentred: a tensor of shape (c, d)."""
        means = self._means - self.scatter.mean if centred else self._means
        return means * torch.as_tensor(self.counts, device=means.device)[:, None]

    def to(self, device):
        """Return the same statistics on ``device``."""
        return ClassMoments(self.classes, self.counts, self.rows, self._means.to(device), self.scatter.to(device))

    def scale(self, factor):
        """Return the statistics with every weight multiplied by ``factor`` > 0."""
        return ClassMoments(self.classes, self.counts * factor, self.rows, self._means, self.scatter.scale(factor))

    def _aligned(self, other):
        if not len(self.classes):
            classes = other.classes
        elif not len(other.classes):
            classes = self.classes
        else:
            classes = np.union1d(self.classes, other.classes)
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
        # A class stays while weight is left of it, if only of rows that lost a part of theirs.
        left = a.counts - b.counts
        rows = np.where(left > 1e-12 * a.counts, np.maximum(a.rows - b.rows, left > 1e-9 * a.counts), 0)
        counts = np.where(rows > 0, left, 0.0)
        ratio = torch.as_tensor(b.counts / np.where(counts > 0, counts, 1.0), device=a._means.device)[:, None]
        means = a._means + (a._means - b._means) * ratio
        scatter = a.scatter - b.scatter if rows.any() else Scatter.empty(a.n_features, a.scatter.device)
        return ClassMoments(a.classes, counts, rows, means, scatter)._compact()

    def __getstate__(self):
        return (self.classes, self.counts, self.rows, self.means, self.scatter)

    def __setstate__(self, state):
        classes, counts, rows, means, scatter = state
        self.__init__(classes, counts, rows, torch.from_numpy(np.array(means)), scatter)

    def __repr__(self):
        return f"ClassMoments(n_rows={self.n_rows}, n_features={self.n_features}, n_classes={len(self.classes)})"
