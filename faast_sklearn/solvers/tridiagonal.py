"""Ridge regression from a tridiagonal form: all strengths at the price of one reduction, without eigenvectors.

``T = Q S Qᵀ`` with S tridiagonal is the first step of an eigendecomposition, and about a quarter of its cost. It is
enough for generalised cross-validation: the degrees of freedom need the eigenvalues, O(d²), and with ``(T + p) W = C``

    RSS = tr VᵀV − 2 tr CᵀW + tr WᵀTW = tr VᵀV − tr CᵀW − p ‖W‖²

needs one solve with ``S + p`` per penalty p, O(d c), since ``tr CᵀW`` and ``‖W‖`` are the same for QᵀC and QᵀW. With
fewer factor rows F than features, ``T = FᵀF``, the Gram matrix ``FFᵀ = Q S Qᵀ`` is reduced instead, and
``W = (C − FᵀQ (S + p)⁻¹ QᵀFC) / p``.
"""

from typing import Any

import numpy as np
import torch
from scipy.linalg import lapack

from faast_sklearn.solvers.filters import Solution, condition_of, ridge_filter
from faast_sklearn.solvers.spectrum import above_rounding

__all__ = ["ReducedRidge", "Tridiagonal", "reduced_ridge", "tridiagonalise"]

# With fewer features, eigenvectors cost next to nothing.
_FEWEST = 128
# The largest eigenvalue in penalties up to which W is accurate to ten digits although eigenvalues vanish.
_LARGEST = 1e6


class Tridiagonal:
    """The tridiagonal form of a scatter matrix or of the Gram matrix of its factor rows.

    Solves are in units of the power of four near the largest eigenvalue, so that no square leaves float64.

    Parameters
    ----------
    packed, tau : ndarray of shape (r, r) and (r - 1,)
        The reflections that make up Q, as LAPACK's ``dsytrd`` leaves them.
    diagonal, off : ndarray of shape (r,) and (r - 1,)
        Of S.
    values : torch.Tensor of shape (k,), float64
        Eigenvalues above rounding, ascending.
    n_features : int
        d.
    rows : ndarray of shape (r, d), optional
        The factor rows, if S is the form of their Gram matrix.
    """

    def __init__(
        self,
        packed: np.ndarray,
        tau: np.ndarray,
        diagonal: np.ndarray,
        off: np.ndarray,
        values: torch.Tensor,
        n_features: int,
        rows: np.ndarray | None = None,
    ) -> None:
        self.values, self.n_features = values, n_features
        self.mean_value = float(values.sum()) / n_features
        self.is_regular = len(values) == n_features
        self.root = 2.0 ** round(np.log2(float(values[-1])) / 2)
        self.rows = rows
        self._reflections, self._tau = np.asfortranarray(packed[1:, :-1]), tau
        self._diagonal, self._off = diagonal / self.root / self.root, off / self.root / self.root

    def solved(self, columns: np.ndarray, penalty: float) -> np.ndarray:
        """Return ``(S + p)⁻¹`` times columns of shape (r, m), both in the units of the solves; O(r m)."""
        diagonal, off, _ = lapack.dpttrf(self._diagonal + penalty, self._off)
        return lapack.dpttrs(diagonal, off, columns)[0]

    def rotated(self, columns: np.ndarray, transposed: bool) -> np.ndarray:
        """Return Q, or Qᵀ if ``transposed``, times columns of shape (r, m); O(r² m)."""
        columns, side = np.array(columns, order="F"), "T" if transposed else "N"
        rest = np.asfortranarray(columns[1:])  # Q leaves the first row as it is
        room = lapack.dormqr("L", side, self._reflections, self._tau, rest, -1)[1]
        columns[1:] = lapack.dormqr("L", side, self._reflections, self._tau, rest, int(room[0]))[0]
        return columns


def tridiagonalise(scatter: Any) -> Tridiagonal | None:
    """Reduce a scatter matrix, or the Gram matrix of its factor rows if these are fewer, to tridiagonal form.

    Parameters
    ----------
    scatter : Scatter

    Returns
    -------
    Tridiagonal or None
        At a cost of ``4/3 r³`` for a matrix of size r, without the ``8/3 r³`` or more of the eigenvectors. None where
        an eigendecomposition is the better choice: on devices other than the CPU, which have no such routine; for small
        matrices; and where nothing varies.

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.moments.scatter import Scatter
    >>> from faast_sklearn.solvers.tridiagonal import tridiagonalise
    >>> rows = torch.randn(3000, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> scatter = Scatter.from_rows(rows)
    >>> torch.allclose(tridiagonalise(scatter).values, torch.linalg.eigvalsh(scatter.matrix()))
    True
    """
    if scatter.device.type != "cpu":
        return None
    d = scatter.n_features
    rows = scatter.factor_rows().numpy() if scatter.is_small else None
    size = d if rows is None else len(rows)
    if size < _FEWEST:
        return None
    matrix = scatter.matrix().numpy() if rows is None else rows @ rows.T
    room = int(lapack.dsytrd_lwork(size, lower=1)[0])
    # Symmetric, so that its transpose is itself in Fortran's order.
    packed, diagonal, off, tau, _ = lapack.dsytrd(matrix.T, lower=1, lwork=room, overwrite_a=1)
    values = torch.from_numpy(lapack.dsterf(diagonal, off)[0])
    values = values[above_rounding(values, d)]
    return Tridiagonal(packed, tau, diagonal, off, values, d, rows) if len(values) else None


def reduced_ridge(scatter: Any, cross: torch.Tensor) -> "ReducedRidge | None":
    """Reduce a ridge problem for all penalties; None where :func:`tridiagonalise` returns None."""
    form = tridiagonalise(scatter)
    return None if form is None else ReducedRidge(form, cross)


class ReducedRidge:
    """Ridge regressions of the same targets at any penalty, from a tridiagonal form.

    Parameters
    ----------
    form : Tridiagonal
        Of ``KᵀK``.
    cross : torch.Tensor of shape (d, m)
        ``KᵀV``.
    """

    def __init__(self, form: Tridiagonal, cross: torch.Tensor) -> None:
        self.form, self.n_targets = form, cross.shape[1]
        self._cross = cross.numpy() / form.root
        self._square = float(np.vdot(self._cross, self._cross))
        columns = self._cross if form.rows is None else form.rows @ self._cross / form.root
        self._rotated = form.rotated(columns, transposed=True)

    def sums(self, penalty: float) -> tuple[float, float]:
        """Return ``tr CᵀW`` and ``p ‖W‖²``, both in units of the targets' squares; O(r m)."""
        p = penalty / self.form.root / self.form.root
        solved = self.form.solved(self._rotated, p)
        along, shrinkage = float(np.vdot(self._rotated, solved)), p * float(np.vdot(solved, solved))
        if self.form.rows is None:
            return along, shrinkage
        return (self._square - along) / p, (self._square - along - shrinkage) / p

    def solution(self, alpha: float) -> Solution | None:
        """Return the solution for one strength, relative to the mean eigenvalue; O(r² m + r d m).

        It is the minimum that :func:`~faast_sklearn.solvers.solve_ridge` finds. None if eigenvalues vanish and the
        penalty is so small beside the largest that rounding would be magnified.
        """
        form, penalty = self.form, alpha * self.form.mean_value
        if not form.is_regular and not float(form.values[-1]) <= _LARGEST * penalty:
            return None
        p = penalty / form.root / form.root
        weights = form.rotated(form.solved(self._rotated, p), transposed=False)
        if form.rows is not None:
            weights = (self._cross - form.rows.T @ weights / form.root) / p
        f = ridge_filter(form.values, penalty)
        df, W = float((form.values * f).sum()), torch.from_numpy(np.ascontiguousarray(weights) / form.root)
        return Solution(W, df, float(alpha), "tridiagonal", float(condition_of(f)))
