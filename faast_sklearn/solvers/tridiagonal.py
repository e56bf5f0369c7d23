"""Ridge regression from a tridiagonal form: all strengths at the price of one reduction, without eigenvectors.

``T = Q S Qᵀ`` with S tridiagonal is the first step of an eigendecomposition, and about a quarter of its cost. It is
enough for generalised cross-validation: the degrees of freedom need the eigenvalues, O(d²), and with ``(T + p) W = C``

    RSS = tr VᵀV − 2 tr CᵀW + tr WᵀTW = tr VᵀV − tr CᵀW − p ‖W‖²

needs one solve with ``S + p`` per penalty p, O(d c), since ``tr CᵀW`` and ``‖W‖`` are the same for QᵀC and QᵀW.
"""

from typing import Any

import numpy as np
import torch
from scipy.linalg import lapack

from faast_sklearn.solvers.filters import Solution, condition_of, ridge_filter
from faast_sklearn.solvers.spectrum import above_rounding

__all__ = ["Tridiagonal", "solve_tridiagonal", "tridiagonalise"]

# With fewer features, eigenvectors cost next to nothing.
_FEWEST = 128


class Tridiagonal:
    """The tridiagonal form of a positive definite matrix, ``T = Q S Qᵀ``.

    Solves are in units of the power of four near the largest eigenvalue, so that no square leaves float64.

    Parameters
    ----------
    packed, tau : ndarray of shape (d, d) and (d - 1,)
        The reflections that make up Q, as LAPACK's ``dsytrd`` leaves them.
    diagonal, off : ndarray of shape (d,) and (d - 1,)
        Of S.
    values : torch.Tensor of shape (d,), float64
        Eigenvalues, ascending.
    """

    def __init__(
        self, packed: np.ndarray, tau: np.ndarray, diagonal: np.ndarray, off: np.ndarray, values: torch.Tensor
    ) -> None:
        self.values, self.n_features = values, len(values)
        self.mean_value = float(values.sum()) / len(values)
        self._reflections, self._tau = np.asfortranarray(packed[1:, :-1]), tau
        self._root = 2.0 ** round(np.log2(float(values[-1])) / 2)
        self._diagonal, self._off = diagonal / self._root / self._root, off / self._root / self._root

    def rotated(self, cross: torch.Tensor) -> np.ndarray:
        """Return QᵀC for C of shape (d, m); O(d² m)."""
        return self._rotate(cross.numpy() / self._root, "T")

    def solved(self, rotated: np.ndarray, penalty: float) -> np.ndarray:
        """Return ``(S + p)⁻¹ QᵀC`` given QᵀC; O(d m)."""
        diagonal, off, _ = lapack.dpttrf(self._diagonal + penalty / self._root / self._root, self._off)
        return lapack.dpttrs(diagonal, off, rotated)[0]

    def weights(self, solved: np.ndarray) -> torch.Tensor:
        """Return fast weights of shape (d, m), given ``(S + p)⁻¹ QᵀC``; O(d² m)."""
        return torch.from_numpy(np.ascontiguousarray(self._rotate(solved, "N")) / self._root)

    def sums(self, rotated: np.ndarray, penalty: float) -> tuple[float, float]:
        """Return ``tr CᵀW`` and ``p ‖W‖²``, in units of the targets' squares, given QᵀC."""
        solved = self.solved(rotated, penalty)
        shrinkage = penalty / self._root / self._root * float(np.vdot(solved, solved))
        return float(np.vdot(rotated, solved)), shrinkage

    def _rotate(self, columns, transposed):
        columns = np.array(columns, order="F")
        rest = np.asfortranarray(columns[1:])  # Q leaves the first row as it is
        room = lapack.dormqr("L", transposed, self._reflections, self._tau, rest, -1)[1]
        columns[1:] = lapack.dormqr("L", transposed, self._reflections, self._tau, rest, int(room[0]))[0]
        return columns


def tridiagonalise(scatter: Any) -> Tridiagonal | None:
    """Reduce a scatter matrix to tridiagonal form.

    Parameters
    ----------
    scatter : Scatter

    Returns
    -------
    Tridiagonal or None
        At a cost of ``4/3 d³``, without the ``8/3 d³`` or more of the eigenvectors. None where an eigendecomposition is
        the better choice: on devices other than the CPU, which have no such routine; for few features, or fewer rows
        than features; and for a matrix with eigenvalues that are zero up to rounding, which must be left out.

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
    d = scatter.n_features
    if scatter.device.type != "cpu" or scatter.is_small or d < _FEWEST:
        return None
    matrix = scatter.matrix().numpy().T  # symmetric, and in Fortran's order
    room = int(lapack.dsytrd_lwork(d, lower=1)[0])
    packed, diagonal, off, tau, _ = lapack.dsytrd(matrix, lower=1, lwork=room, overwrite_a=1)
    values = torch.from_numpy(lapack.dsterf(diagonal, off)[0])
    if not bool(above_rounding(values, d).all()):
        return None
    return Tridiagonal(packed, tau, diagonal, off, values)


def solve_tridiagonal(reduced: Tridiagonal, rotated: np.ndarray, alpha: float) -> Solution:
    """Ridge regression for one ``alpha``; the same minimum as :func:`~faast_sklearn.solvers.solve_ridge`.

    Parameters
    ----------
    reduced : Tridiagonal
        Of ``KᵀK``.
    rotated : ndarray of shape (d, m)
        ``KᵀV``, from :meth:`Tridiagonal.rotated`.
    alpha : float
        Relative to the mean eigenvalue.

    Returns
    -------
    Solution
        At a cost of O(d² m).
    """
    penalty = alpha * reduced.mean_value
    f = ridge_filter(reduced.values, penalty)
    weights = reduced.weights(reduced.solved(rotated, penalty))
    return Solution(weights, float((reduced.values * f).sum()), float(alpha), "tridiagonal", float(condition_of(f)))
