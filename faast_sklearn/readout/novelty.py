"""How unlike every learnt class a row is, from the moments alone."""

from typing import Any

import numpy as np
import torch

from faast_sklearn.solvers.condition import LEAST_SPREAD, regular_factor
from faast_sklearn.solvers.solve import fast_weights

__all__ = ["ClassDirections"]


class ClassDirections:
    """Directions of the class means in the metric of the spread within classes.

    The novelty of a row x is ``1 − maxₖ cos(x − m, mₖ − m)``, with the inner product ``⟨a, b⟩ = aᵀ (S + λ)⁻¹ b``: S is
    the pooled within-class scatter, m the mean of all rows, λ the ridge penalty. It is 0 for a row in the direction of
    a class mean, and at most 2. Unlike the distance to the nearest class mean it does not take a row for new because it
    is long, nor for known because it is short.

    Parameters
    ----------
    moments : ClassMoments
        At least two classes.
    alpha : float, optional
        ``λ = alpha · trace(T) / d``; by default the one that generalised cross-validation takes for the ridge solve.

    Notes
    -----
    O(d³ / 3) once and O(d²) a row.

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.moments import ClassMoments
    >>> from faast_sklearn.readout.novelty import ClassDirections
    >>> X = np.array([[5.0, 0.1], [5.0, -0.1], [-5.0, 0.1], [-5.0, -0.1]])
    >>> directions = ClassDirections(ClassMoments.from_rows(X, np.array([0, 0, 1, 1])), alpha=1e-3)
    >>> directions.novelty(np.array([[4.0, 0.0], [0.0, 4.0]])).round(2).tolist()
    [0.0, 1.0]
    """

    def __init__(self, moments: Any, alpha: float | None = None) -> None:
        if alpha is None:
            alpha = fast_weights(moments).alpha
        scatter, n = moments.scatter.significant(), moments.n_samples
        matrix, counts = scatter.matrix(), torch.as_tensor(moments.counts, device=scatter.device)
        sums = moments.class_sums()
        offsets = sums / counts[:, None]
        trace = float(matrix.diagonal().sum())
        if trace > LEAST_SPREAD:
            matrix /= trace
        else:
            offsets = torch.zeros_like(offsets)  # nothing has a direction
        # A share of the scatter between classes counts as within, as in the discriminant: means of few rows are noisy.
        kept = 1.0 - min(len(counts) / (5.0 * n), 1.0)
        root = offsets * (counts[:, None] ** 0.5 / max(trace, LEAST_SPREAD) ** 0.5)
        matrix -= kept * root.T @ root
        matrix.diagonal().add_(alpha / scatter.n_features + 1e-12 * float(matrix.diagonal().sum()))
        self._factor = regular_factor(matrix)
        self._directions = self._whiten(offsets)
        self._mean = scatter.mean

    def _whiten(self, rows):
        """Return rows in coordinates of the metric, scaled to unit length; zero rows stay zero."""
        # So that squares neither overflow nor underflow.
        rows = rows / rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        rows = torch.linalg.solve_triangular(self._factor, rows.T, upper=False).T
        return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)

    def novelty(self, X: Any) -> Any:
        """Return the novelty of rows X of shape (n, d): an array or tensor, like X, of shape (n,)."""
        rows = torch.as_tensor(X, dtype=torch.float64, device=self._mean.device) - self._mean
        scores = 1.0 - (self._whiten(rows) @ self._directions.T).amax(1)
        return scores.numpy() if isinstance(X, np.ndarray) else scores
