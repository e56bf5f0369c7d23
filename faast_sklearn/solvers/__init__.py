"""Closed-form fast weights from moments: pure functions, usable without an estimator.

All of them solve a spectrally filtered least-squares problem for ``W`` of shape (d, m),

    ‖K W − V‖²  with  W = U f(Λ) Uᵀ KᵀV,   KᵀK = U Λ Uᵀ,

and differ only in the filter f (module ``faast_sklearn.solvers.filters``): ridge has Tikhonov's ``1 / (λ + penalty)``,
pinv truncates, which gives the pseudo-inverse of Bao et al. (arXiv 2605.04651, section 3).
``KᵀK`` comes as a :class:`~faast_sklearn.moments.Scatter`, ``KᵀV`` as an array: no example is needed.

All functions of a :class:`Spectrum` take many problems of one size at once, as tensors with leading axes, written
``...`` below. A quantity with one value per problem (a strength, a mean eigenvalue) is a float without leading axes and
an array of shape ``(...)`` with them.
"""

from faast_sklearn.solvers.filters import Solution, solve_pinv, solve_ridge
from faast_sklearn.solvers.solve import fast_weights
from faast_sklearn.solvers.spectrum import Spectrum, decompose

__all__ = ["Solution", "Spectrum", "decompose", "fast_weights", "solve_pinv", "solve_ridge"]
