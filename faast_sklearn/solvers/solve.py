"""From moments to fast weights: choose the strength if it is "auto", then solve once."""

import functools
from typing import Any, Literal

from faast_sklearn.solvers.filters import Solution, solve_cholesky, solve_pinv, solve_ridge
from faast_sklearn.solvers.gcv import gcv_pinv, gcv_ridge, gcv_tridiagonal, targets_square
from faast_sklearn.solvers.spectrum import decompose
from faast_sklearn.solvers.tridiagonal import reduced_ridge

__all__ = ["fast_weights", "solve_spectrum"]

# Prior of alpha for one-hot targets: median, and spread in decades; see gcv_ridge.
_ALPHA_PRIOR = (10.0, 0.3)


def fast_weights(
    moments: Any,
    *,
    solver: Literal["ridge", "pinv"] = "ridge",
    alpha: float | Literal["auto"] = "auto",
    intercept: bool = True,
) -> Solution:
    """Solve for the weights that map features to one-hot targets.

    Parameters
    ----------
    moments : ClassMoments
        What was learnt.
    solver : {"ridge", "pinv"}, default="ridge"
        The spectral filter.
    alpha : float or "auto", default="auto"
        Its strength, see :func:`solve_ridge` and :func:`solve_pinv`; "auto" minimises generalised
        cross-validation along a path of strengths.
    intercept : bool, default=True
        Centre keys and values first.

    Returns
    -------
    Solution
        ``weights`` has one column for each class.

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.moments import ClassMoments
    >>> from faast_sklearn.solvers import fast_weights
    >>> K, y = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
    >>> solution = fast_weights(ClassMoments.from_rows(K, y), solver="pinv", alpha=2.0, intercept=False)
    >>> np.allclose(solution.weights, np.linalg.pinv(K) @ np.eye(2))
    True
    """
    scatter = moments.scatter.significant() if intercept else moments.scatter.about_origin()
    cross = moments.class_sums(centred=intercept).T
    if solver == "ridge" and alpha != "auto" and alpha > 0 and not scatter.is_small and not moments.keeps:
        solution = solve_cholesky(scatter, cross, alpha, moments.n_samples)
        if solution is not None:
            return solution
    if solver == "ridge" and (alpha == "auto" or alpha > 0):
        ridge = moments.once(("tridiagonal", intercept), lambda: reduced_ridge(scatter, cross))
        solution = None if ridge is None else _solve_reduced(ridge, moments, alpha, intercept)
        if solution is not None:
            return solution
    spectrum = moments.once(("spectrum", intercept), lambda: decompose(scatter))
    return solve_spectrum(
        spectrum,
        cross,
        moments.counts,
        solver=solver,
        alpha=alpha,
        intercept=intercept,
        n_samples=moments.n_samples,
        n_rows=moments.n_rows,
    )


def _solve_reduced(ridge, moments, alpha, intercept):
    """Return the solution from a tridiagonal form; None if eigenvectors are needed."""
    form, n = ridge.form, moments.n_samples
    # A rank less than N may be due to copies of rows, and without T's inverse only eigenvectors show an exact fit.
    if not form.is_regular and len(form.values) + intercept < n:
        return None
    if alpha == "auto":
        total = targets_square(moments.counts, intercept)
        alpha = gcv_tridiagonal(ridge, total, n, n_rows=moments.n_rows, intercept=intercept, prior=_ALPHA_PRIOR)
    return ridge.solution(alpha)


def solve_spectrum(
    spectrum: Any,
    cross: Any,
    counts: Any,
    *,
    solver: Any = "ridge",
    alpha: Any = "auto",
    intercept: bool = True,
    n_samples: float | None = None,
    n_rows: float | None = None,
) -> Solution:
    """Solve for the weights that map features to one-hot targets, from a decomposition.

    Parameters
    ----------
    spectrum : Spectrum
        Decomposition of the keys' scatter, centred if ``intercept``.
    cross : torch.Tensor of shape (..., p, c)
        Class sums of the keys.
    counts : ndarray of shape (c,)
        Weight of each class, the same for all problems.
    solver, alpha, intercept
        As in :func:`fast_weights`.
    n_samples, n_rows : float, optional
        N and the number of rows, as in :func:`gcv_ridge`; the sum of the weights and N by default.

    Returns
    -------
    Solution
    """
    n_samples = counts.sum() if n_samples is None else n_samples
    if alpha == "auto":
        total = targets_square(counts, intercept)
        if solver == "ridge":
            choose: Any = functools.partial(gcv_ridge, prior=_ALPHA_PRIOR)
        else:
            choose = gcv_pinv
        alpha, _ = choose(spectrum, cross, total, n_samples, n_rows=n_rows, intercept=intercept)
    if solver == "ridge":
        return solve_ridge(spectrum, cross, alpha)
    return solve_pinv(spectrum, cross, alpha, n_samples)
