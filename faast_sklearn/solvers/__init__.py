"""Closed-form fast weights from moments: pure functions, usable without an estimator.

All of them minimise, over ``W`` of shape (d, m), a spectrally filtered least-squares problem

    ‖K W − V‖²  with  W = U f(Λ) Uᵀ KᵀV,   KᵀK = U Λ Uᵀ,

and differ in the filter f alone (module ``faast_sklearn.solvers.filters``): that of ridge is Tikhonov's
``1 / (λ + penalty)``, that of pinv truncates, which is the pseudo-inverse of Bao et al. (arXiv 2605.04651, section 3).
``KᵀK`` comes as a :class:`~faast_sklearn.moments.Scatter`, ``KᵀV`` as an array: no example is needed.

Everything from a :class:`Spectrum` on takes many problems of one size at once: tensors with leading axes, written
``...`` below. Numbers that one problem has one of (a strength, a mean eigenvalue) are floats without leading axes and
arrays of shape ``(...)`` with them.
"""

from faast_sklearn.solvers.filters import Solution, solve_pinv, solve_ridge
from faast_sklearn.solvers.solve import fast_weights
from faast_sklearn.solvers.spectrum import Spectrum, decompose

__all__ = ["Solution", "Spectrum", "decompose", "fast_weights", "solve_pinv", "solve_ridge"]
