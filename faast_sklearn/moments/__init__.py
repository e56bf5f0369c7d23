"""Sufficient statistics of labelled rows: immutable, centred, float64, exact under ``+`` and ``−``.

Everything that the solvers and readouts need follows from them; the examples themselves are gone.
:class:`~faast_sklearn.moments.Scatter` says how precision is kept.
"""

from faast_sklearn.moments.class_moments import ClassMoments
from faast_sklearn.moments.scatter import Scatter

__all__ = [
    "ClassMoments",
    "Scatter",
]
