"""What happens to features between the backbone and the moments: normalisation and random expansion.

A map is fixed before the first sample is seen, so that statistics of different shards, folds and days always speak of
the same coordinates.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from faast_sklearn.errors import InputError

__all__ = ["EXPANSION", "FeatureMap", "unit_rows"]

# Random features that expansion="auto" offers. Of 5,000 first sentences of docstrings in ten classes 1,000, 2,000 and
# 4,000 gain 2.2, 3.2 and 4.1 points, and the solve grows with the cube; on photographs more than 1,000 gain nothing.
EXPANSION = 1000


def unit_rows(X):
    """Scale rows to unit L2 norm in float64; zero rows stay zero.

    Parameters
    ----------
    X : ndarray or torch.Tensor of shape (n, d)

    Returns
    -------
    ndarray or torch.Tensor of shape (n, d), float64

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.features.feature_map import unit_rows
    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    X = _float64(X)
    largest = abs(X).max(1) if isinstance(X, np.ndarray) else abs(X).amax(1)
    X = X / (largest + (largest == 0))[:, None]  # squares neither overflow nor vanish
    norm = (X * X).sum(1) ** 0.5
    return X / (norm + (norm == 0))[:, None]


@dataclass(frozen=True)
class FeatureMap:
    """Map ``x ↦ [g(x), relu(g(x) R) / √M]`` from features to what is learnt from.

    ``g`` is the identity, the scaling to unit length, or the square root of ``x / Σx`` (the Hellinger map of
    non-negative features, such as pooled activations, of unit length too). R has M columns of standard normal numbers
    from a fixed seed. The hidden features are positively homogeneous, so that they share the scale of ``g(x)``,
    whatever it is; in the limit of many, their inner product is the arc-cosine kernel of order one (Cho and Saul,
    2009).

    Parameters
    ----------
    normalize : {False, True, "sqrt"}, default=False
    expansion : int, default=0
        M; 0 leaves the second part out.

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.features.feature_map import FeatureMap
    >>> FeatureMap("sqrt")(np.array([[1.0, 3.0]])).round(3).tolist()
    [[0.5, 0.866]]
    >>> FeatureMap(expansion=10)(np.ones((4, 3))).shape
    (4, 13)
    """

    normalize: bool | str = False
    expansion: int = 0

    @property
    def is_identity(self):
        """Whether rows stay as they are."""
        return not self.normalize and not self.expansion

    def __call__(self, X):
        """Map rows.

        Parameters
        ----------
        X : ndarray or torch.Tensor of shape (n, d)

        Returns
        -------
        ndarray or torch.Tensor of shape (n, d + M)
            X itself if there is nothing to do, else float64 where X is: rounding to less would make results depend
            on how rows were batched. O(n d M).

        Raises
        ------
        InputError
            If ``normalize="sqrt"`` and a feature is negative; :meth:`accepts` says so beforehand.
        """
        if self.normalize == "sqrt":
            if not self.accepts(X):
                raise InputError(
                    "Negative values in data: normalize='sqrt' takes square roots of features; use normalize=True or "
                    "'auto'."
                )
            X = unit_rows(_float64(X) ** 0.5)
        elif self.normalize:
            X = unit_rows(X)
        if not self.expansion:
            return X
        X = _float64(X)
        if isinstance(X, np.ndarray):
            return np.concatenate([X, np.maximum(X @ _directions(X.shape[1], self.expansion), 0.0)], axis=1)
        return torch.cat([X, (X @ _directions(X.shape[1], self.expansion, X.device)).clamp_(min=0.0)], dim=1)

    def accepts(self, X):
        """Whether the map is defined for these rows."""
        return self.normalize != "sqrt" or not bool((X < 0).any())

    def without_expansion(self):
        """Return the map that gives the first part alone."""
        return FeatureMap(self.normalize)


def _float64(X):
    return X.astype(np.float64, copy=False) if isinstance(X, np.ndarray) else X.to(torch.float64)


@lru_cache(maxsize=8)
def _directions(d, expansion, device=None):
    """Return ``R / √M``, of shape (d, M), as a tensor where there is a device; nobody writes to it."""
    if device is not None:
        return torch.from_numpy(_directions(d, expansion)).to(device)
    return np.ascontiguousarray(np.random.default_rng(0).standard_normal((expansion, d)).T) / expansion**0.5
