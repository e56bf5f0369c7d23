"""Sums over labelled rows, all that is kept of them: the third of five rooms."""

from faast_sklearn.moments.class_moments import ClassMoments
from faast_sklearn.moments.scatter import Scatter

__all__ = [
    "ClassMoments",
    "Scatter",
]
