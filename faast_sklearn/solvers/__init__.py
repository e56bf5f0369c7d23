"""From statistics to fast weights, by pure functions: the fourth of five rooms."""

from faast_sklearn.solvers.closed_form import (
    Solution,
    Spectrum,
    above_rounding,
    condition_of,
    decompose,
    fast_weights,
    gcv_error,
    gcv_pinv,
    gcv_ridge,
    pinv_filter,
    residual_share,
    ridge_filter,
    solve_cholesky,
    solve_pinv,
    solve_ridge,
    solve_spectrum,
)

__all__ = [
    "Solution",
    "Spectrum",
    "above_rounding",
    "condition_of",
    "decompose",
    "fast_weights",
    "gcv_error",
    "gcv_pinv",
    "gcv_ridge",
    "pinv_filter",
    "residual_share",
    "ridge_filter",
    "solve_cholesky",
    "solve_pinv",
    "solve_ridge",
    "solve_spectrum",
]
