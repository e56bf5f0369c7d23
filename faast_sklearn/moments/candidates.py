"""Moments of the same rows through each feature map that the data may choose from."""

import threading

import numpy as np

from faast_sklearn.errors import InputError
from faast_sklearn.features.feature_map import EXPANSION, FeatureMap
from faast_sklearn.moments.class_moments import ClassMoments
from faast_sklearn.solvers.closed_form import decompose

__all__ = ["CandidateMoments", "candidate_maps"]


def candidate_maps(normalize, expansion):
    """Return the feature maps to stream rows through; parts of them are candidates too.

    Parameters
    ----------
    normalize : {False, True, "sqrt", "auto"}
    expansion : None, int or "auto"

    Returns
    -------
    tuple of FeatureMap

    Examples
    --------
    >>> from faast_sklearn.moments.candidates import candidate_maps
    >>> [g.normalize for g in candidate_maps("auto", None)]
    [False, True, 'sqrt']
    """
    width = EXPANSION if expansion == "auto" else int(expansion or 0)
    return tuple(FeatureMap(g, width) for g in ((False, True, "sqrt") if normalize == "auto" else (normalize,)))


class CandidateMoments:
    """One :class:`~faast_sklearn.moments.ClassMoments` for each feature map, of the same rows.

    They add and subtract together. A map that is not defined for some row (a square root of a negative number) leaves
    the candidates, and stays away in every sum.

    Parameters
    ----------
    moments : dict of FeatureMap to ClassMoments
        Not empty.

    Attributes
    ----------
    keep_spectra : bool
        Whether decompositions stay, for others who solve the same moments.
    """

    def __init__(self, moments):
        self.moments = moments
        self.keep_spectra = False
        self._spectra = {}
        self._lock = threading.Lock()

    @classmethod
    def from_codes(cls, rows, codes, classes, sample_weight, maps):
        """Compute the moments of labelled rows; see :meth:`~faast_sklearn.moments.ClassMoments.from_codes`."""
        # Where only one map may be taken, it raises its own error.
        fitting = [g for g in maps if g.accepts(rows)] if len(maps) > 1 else maps
        return cls({g: ClassMoments.from_codes(g(rows), codes, classes, sample_weight) for g in fitting})

    @classmethod
    def empty(cls, n_features, maps):
        """Return the moments of no rows, for features (n, d) before they are mapped."""
        return cls({g: ClassMoments.empty(n_features + g.expansion) for g in maps})

    @property
    def first(self):
        """The moments of the first map; labels and counts are those of every map."""
        return next(iter(self.moments.values()))

    @property
    def n_features(self):
        """Number of features d, before they are mapped."""
        g, moments = next(iter(self.moments.items()))
        return moments.n_features - g.expansion

    def choices(self, expansion):
        """List what the solve may choose from, simplest first.

        Parameters
        ----------
        expansion : None, int or "auto"
            "auto" offers the features without their expansion too: their moments are a part of the others.

        Returns
        -------
        list of (FeatureMap, ClassMoments)
        """
        if expansion != "auto":
            return list(self.moments.items())
        plain = {}
        for g, moments in self.moments.items():
            plain[g.without_expansion()] = moments.leading(moments.n_features - g.expansion)
        return [*plain.items(), *self.moments.items()]

    def spectrum(self, key, scatter):
        """Return the eigendecomposition of ``scatter``, which ``key`` tells from other parts of the same moments."""
        if not self.keep_spectra:
            return decompose(scatter)
        with self._lock:  # so that others wait for it instead of making it again
            if key not in self._spectra:
                self._spectra[key] = decompose(scatter)
            return self._spectra[key]

    def _combined(self, other, operation):
        shared = [g for g in self.moments if g in other.moments]
        if not shared:
            raise InputError(
                f"what was learnt went through {list(self.moments)} and this through {list(other.moments)}; normalize "
                "and expansion stay as they are between fit, partial_fit, forget and merge."
            )
        return CandidateMoments({g: operation(self.moments[g], other.moments[g]) for g in shared})

    def __add__(self, other):
        return self._combined(other, ClassMoments.__add__)

    def __sub__(self, other):
        # A map that left when the other rows came does not come back when they go.
        return self._combined(other, ClassMoments.__sub__)

    def nbytes(self):
        """Return about how many bytes the moments and decompositions take."""
        d = np.array([moments.n_features for moments in self.moments.values()], dtype=float)
        rows = np.array([moments.n_rows for moments in self.moments.values()], dtype=float)
        return int(16 * (np.minimum(d, rows) * d).sum())

    def __getstate__(self):
        return list(self.moments.items())  # skops writes no dict with such keys

    def __setstate__(self, pairs):
        self.__init__(dict(pairs))
