"""Linear discriminants from ridge scores, in the space of the classes alone, right for classes of unequal size.

The ridge weights of centred one-hot labels hold the inverse of the spread within classes (Woodbury), so that class
means, and how far each of them is noise, can be compared in its metric by c×c matrices: of one problem or of many.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from faast_sklearn.solvers.gcv import residual_share

__all__ = ["Between", "Directions", "discriminant_mixing"]

# Share of the spread of the class means that is taken for signal where the estimate says there is less.
_LEAST_SIGNAL = 0.1
# A leverage of one would leave nothing out of sample.
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
        ``W @ mixing`` holds the ``Σ⁻¹âₖ`` of :func:`~faast_sklearn.readout.discriminant_readout` as columns, up to a
        factor that equal classes share.
    offset : ndarray of shape (..., c)
        The scores are ``(x − m)ᵀ W @ mixing + offset``, up to the temperature and the log-shares. Costs O(c³).
    """
    directions = Between(fitted, counts, float(sizes.sum())).directions(sizes, np.zeros(len(sizes)))
    return directions.mixing, directions.offset


@dataclass(frozen=True)
class Directions:
    """Discriminant scores ``(x − m)ᵀ W @ mixing + offset``, and what is too good about those of learnt rows.

    Parameters
    ----------
    mixing : ndarray of shape (..., c, c)
    offset : ndarray of shape (..., c)
    optimism : ndarray of shape (..., c, c)
        Mean scores of the rows of each class less those of rows that were not learnt.
    """

    mixing: np.ndarray
    offset: np.ndarray
    optimism: np.ndarray


class Between:
    """How the classes of one or many problems lie to one another, in the metric of the spread within them.

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
        """Return the mean leverage of a row in the spread within classes, ``tr S(S + λ)⁻¹`` for each spare row.

        Parameters
        ----------
        df : float
            ``tr T(T + λ)⁻¹``, of the solve.
        total : ndarray of shape (c, c)
            ``Wᵀ T W``.
        n_spare : float
            Rows beside one for the mean of each class, as they count.
        n_rows : float
            The same, as they are.

        Returns
        -------
        float
        """
        # λ WᵀW, since (T + λ) W is the cross-moment.
        penalised = _symmetric(self.fitted.T * self.counts) - total
        within = df - (1.0 - self._doubt) * (self._inverse * penalised).sum() - self._doubted
        return 1.0 - residual_share(within, max(n_spare, 1.0), max(n_rows, 1.0), least=_LEAST_SHARE)

    def directions(self, sizes: np.ndarray, noise: np.ndarray) -> "Directions":
        """Draw class means together as far as they are noise.

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
        # Half the squared norm; of its deviation from what is expected bₖ once, which is what equal classes have.
        offset = -0.5 * drawn * (shrunk - (1.0 - drawn) * expected)
        offset -= (share[..., None, :] @ self.fitted @ mixing)[..., 0, :]
        # Rows of class k go with the noise of their own mean; what m₀ has of it is in all scores.
        own = np.eye(len(sizes)) - share[..., None]
        return Directions(mixing, offset, noise[:, None] * own * scale[..., None, :])


def _symmetric(matrix):
    return 0.5 * (matrix + np.swapaxes(matrix, -1, -2))


def _squared_norms(gram, share):
    """Return ``(mₖ − m₀)ᵀΣ⁻¹(mₖ − m₀)`` for m₀ the mean of the means by ``share``, from their products."""
    along = (gram @ share[..., None])[..., 0]
    around = (share * along).sum(-1, keepdims=True)
    return np.maximum(np.diagonal(gram, axis1=-2, axis2=-1) - 2.0 * along + around, 0.0)


def _signal(gram, sizes, noise):
    """Return the expected squared distance of the true class means from their mean, s, of shape (..., 1).

    By the moments of DerSimonian and Laird (1986): what the sample means are apart, less what noise would put them.
    """
    share = sizes / sizes.sum()
    spread = _squared_norms(gram, share) @ sizes
    free = sizes @ (1.0 - share)
    signal = np.maximum(spread - sizes @ (noise * (1.0 - share)), _LEAST_SIGNAL * spread) / free
    return np.asarray(signal)[..., None]


def _shrunk_norms(norms, expected, sizes):
    """Return squared norms drawn towards what is expected by the reliability ``(n − 1) / (n + 5)``, and the latter."""
    total, foretold = norms.sum(-1, keepdims=True), expected.sum(-1, keepdims=True)
    expected = expected * np.divide(total, foretold, out=np.zeros_like(total), where=foretold > 0)
    sizes = np.maximum(sizes, 1.0)
    reliability = (sizes - 1.0) / (sizes + 5.0)
    return expected ** (1.0 - reliability) * norms**reliability, expected
