"""Linear discriminants from mean ridge scores alone, for classes of equal or unequal size.

The ridge weights of centred one-hot labels hold the inverse of the scatter within classes (Woodbury). So c×c matrices
are enough to compare class means and their noise in its metric, for one problem or many.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from faast_sklearn.solvers.gcv import residual_share

__all__ = ["Between", "Directions", "discriminant_mixing"]

# Least share of the spread of the class means that counts as signal.
_LEAST_SIGNAL = 0.1
# Least value of ``1 − leverage``, by which spreads are divided.
_LEAST_SHARE = 0.01


def discriminant_mixing(fitted: np.ndarray, counts: np.ndarray, sizes: np.ndarray) -> tuple:
    """Turn ridge scores into those of the discriminant, for classes of equal size.

    Parameters
    ----------
    fitted : ndarray of shape (..., c, c), float64
        Row k is the mean centred ridge score of class k, ``(mₖ − m)ᵀW``; of one or of many problems.
    counts : ndarray of shape (c,)
        Weight of each class, the same for all problems.
    sizes : ndarray of shape (c,)
        Number of rows of each class.

    Returns
    -------
    mixing : ndarray of shape (..., c, c)
        ``W @ mixing`` has the columns ``bₖ gₖ Σ⁻¹aₖ`` of :func:`~faast_sklearn.readout.discriminant_readout`, up to a
        factor that equal classes share.
    offset : ndarray of shape (..., c)
        The scores are ``(x − m)ᵀ W @ mixing + offset``, up to the temperature and the log-shares. Costs O(c³).
    """
    directions = Between(fitted, counts, float(sizes.sum())).directions(sizes, np.zeros(len(sizes)))
    return directions.mixing, directions.offset


@dataclass(frozen=True)
class Directions:
    """Discriminant scores ``(x − m)ᵀ W @ mixing + offset``, and how much better they are for learnt rows.

    Parameters
    ----------
    mixing : ndarray of shape (..., c, c)
    offset : ndarray of shape (..., c)
    optimism : ndarray of shape (..., c, c)
        Mean scores of the learnt rows of each class minus those of rows that were not learnt.
    """

    mixing: np.ndarray
    offset: np.ndarray
    optimism: np.ndarray


class Between:
    """The scatter between the classes of one or many problems, in the metric of the scatter within them.

    Parameters
    ----------
    fitted, counts
        As in :func:`discriminant_mixing`.
    n_samples : float
        N. The share ``c / 5N`` of the scatter between classes counts as within: means of few rows are noisy.
    """

    def __init__(self, fitted: Any, counts: Any, n_samples: float) -> None:
        self.fitted, self.counts = fitted, counts
        root = np.sqrt(counts)
        values, vectors = np.linalg.eigh(_symmetric(root[:, None] * fitted / root))
        # In exact arithmetic the eigenvalues lie in [0, 1); one means that no within-class spread is left.
        self._doubt = len(counts) / (5.0 * max(n_samples, 1.0))
        kept = np.maximum(1.0 - (1.0 - self._doubt) * values, 1e-5)
        self._inverse = (vectors / kept[..., None, :]) @ np.swapaxes(vectors, -1, -2) / np.outer(root, root)
        self._doubted = self._doubt * (values / kept).sum(-1)

    def leverage(self, df: float, total: np.ndarray, n_spare: float, n_rows: float) -> float:
        """Return the mean leverage of a row in the scatter within classes, ``tr S(S + λ)⁻¹`` per row beyond c.

        Parameters
        ----------
        df : float
            ``tr T(T + λ)⁻¹``, from the solve.
        total : ndarray of shape (c, c)
            ``Wᵀ T W``.
        n_spare : float
            ``N − c``.
        n_rows : float
            ``n − c``, with n the number of rows.

        Returns
        -------
        float
        """
        # λ WᵀW, since (T + λ) W is the cross-moment.
        penalised = _symmetric(self.fitted.T * self.counts) - total
        within = df - (1.0 - self._doubt) * (self._inverse * penalised).sum() - self._doubted
        return 1.0 - residual_share(within, max(n_spare, 1.0), max(n_rows, 1.0), least=_LEAST_SHARE)

    def directions(self, sizes: np.ndarray, noise: np.ndarray) -> "Directions":
        """Shrink class means towards each other as far as they are noise.

        Parameters
        ----------
        sizes : ndarray of shape (c,)
            Number of rows of each class.
        noise : ndarray of shape (c,)
            Expected squared distance of each sample mean from the true one, vₖ.

        Returns
        -------
        Directions
        """
        mixing = self.counts.sum() * self._inverse
        gram = _symmetric(self.fitted @ mixing)
        signal = _signal(gram, sizes, noise)
        variance = signal + noise
        least = variance.min(-1, keepdims=True)
        share = np.divide(least, variance, out=np.ones_like(variance), where=variance > 0)
        share /= share.sum(-1, keepdims=True)
        drawn = np.divide(signal, variance, out=np.ones_like(variance), where=signal > 0)  # bₖ
        norms = _squared_norms(gram, share)
        shrunk, expected = _shrunk_norms(norms, variance * (1.0 - share), sizes)
        scale = drawn * np.sqrt(np.divide(shrunk, norms, out=np.ones_like(norms), where=norms > 0))
        mixing = (mixing - mixing @ share[..., None]) * scale[..., None, :]
        # Half the squared norm: bₖ² times what is expected, but bₖ times the deviation from it, as with equal classes.
        offset = -0.5 * drawn * (shrunk - (1.0 - drawn) * expected)
        offset -= (share[..., None, :] @ self.fitted @ mixing)[..., 0, :]
        # Scores of learnt rows of class k contain the noise of their own mean; the part of it in m₀ is in all scores.
        own = np.eye(len(sizes)) - share[..., None]
        return Directions(mixing, offset, noise[:, None] * own * scale[..., None, :])


def _symmetric(matrix):
    return 0.5 * (matrix + np.swapaxes(matrix, -1, -2))


def _squared_norms(gram, share):
    """Return ``(mₖ − m₀)ᵀΣ⁻¹(mₖ − m₀)`` from the products of the means; m₀ is their mean weighted by ``share``."""
    along = (gram @ share[..., None])[..., 0]
    around = (share * along).sum(-1, keepdims=True)
    return np.maximum(np.diagonal(gram, axis1=-2, axis2=-1) - 2.0 * along + around, 0.0)


def _signal(gram, sizes, noise):
    """Return the expected squared distance of the true class means from their mean, s, of shape (..., 1).

    By DerSimonian and Laird (1986): the squared spread of the sample means minus the part due to noise.
    """
    share = sizes / sizes.sum()
    spread = _squared_norms(gram, share) @ sizes
    free = sizes @ (1.0 - share)
    signal = np.maximum(spread - sizes @ (noise * (1.0 - share)), _LEAST_SIGNAL * spread) / free
    return np.asarray(signal)[..., None]


def _shrunk_norms(norms, expected, sizes):
    """Return squared norms shrunk towards the expected ones by the reliability ``(n − 1) / (n + 5)``, and these."""
    total, foretold = norms.sum(-1, keepdims=True), expected.sum(-1, keepdims=True)
    expected = expected * np.divide(total, foretold, out=np.zeros_like(total), where=foretold > 0)
    sizes = np.maximum(sizes, 1.0)
    reliability = (sizes - 1.0) / (sizes + 5.0)
    return expected ** (1.0 - reliability) * norms**reliability, expected
