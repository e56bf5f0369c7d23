"""Sufficient statistics of labelled rows: immutable, centred, float64, exact under ``+`` and ``−``.

Everything that the solvers and readouts need follows from them; no example is kept.
The module ``faast_sklearn.moments.scatter`` says how precision is kept.
"""

from faast_sklearn.moments.class_moments import ClassMoments
from faast_sklearn.moments.scatter import Scatter

__all__ = [
    "ClassMoments",
    "Scatter",
]
