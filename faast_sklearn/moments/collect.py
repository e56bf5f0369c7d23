"""Labelled samples to moments: the one place where labels, weights and features meet."""

import hashlib
import threading
from collections import OrderedDict
from contextlib import closing

import numpy as np

from faast_sklearn.errors import InputError, NonFiniteError
from faast_sklearn.features.normalize import unit_rows
from faast_sklearn.inputs.datasets import is_dataset
from faast_sklearn.inputs.labels import check_labels, row_weights
from faast_sklearn.inputs.samples import count_samples, iter_chunks
from faast_sklearn.moments.class_moments import ClassMoments

__all__ = ["accumulate", "accumulate_folds"]


def accumulate(source, X, y, sample_weight, *, normalize, class_weight, report, shared=False, stream=False):
    """Stream labelled samples into moments.

    Parameters
    ----------
    source : source of features
        As ``FrozenBackboneMixin._open_source`` returns.
    X, y, sample_weight
        As ``fit`` takes them.
    normalize : bool
        Scale features to unit length.
    class_weight : dict, "balanced" or None
    report : Report
    shared : bool, default=False
        Recognise the same samples, labels and weights by their content and return the moments that they gave before,
        together with the decompositions that others have made of them.
    stream : bool, default=False
        Other samples, of other classes, may follow or have come before.

    Returns
    -------
    ClassMoments
    """
    if class_weight == "balanced" and y is None and count_samples(X) is None:
        raise InputError(
            "class_weight='balanced' needs all labels at once, and X yields them batch by batch; pass a dict of "
            "weights, or let it yield (X, y, sample_weight)."
        )
    once = count_samples(X) is None
    shared = shared and not once  # batches of a stream do not come again
    stream = stream or (once and not is_dataset(X))
    moments = None
    for chunk, labels, weight in iter_chunks(X, y, sample_weight):
        part = _of_chunk(source, chunk, labels, weight, normalize, class_weight, report, shared, stream)
        moments = part if moments is None else moments + part
    _refuse_overflow(moments)  # once, since it waits for the device
    return moments


def accumulate_folds(source, X, y, sample_weight, fold_of, n_folds, *, normalize, class_weight, report):
    """Stream labelled samples into the moments of each fold, in one pass.

    Parameters
    ----------
    fold_of : ndarray of int, shape (n,)
    n_folds : int

    Returns
    -------
    list of ClassMoments
    """
    ((chunk, labels, weight),) = iter_chunks(X, y, sample_weight)
    samples, classes, codes, weight = _labelled(source, chunk, labels, weight, class_weight)
    folds = [None] * n_folds
    with closing(source.stream(samples, report)) as stream:
        for indices, features in stream:
            for k in np.unique(fold_of[indices]):
                at = np.flatnonzero(fold_of[indices] == k)
                rows = indices[at]
                part = _moments_of(
                    features[at], codes[rows], classes, None if weight is None else weight[rows], normalize
                )
                folds[k] = part if folds[k] is None else folds[k] + part
    return folds


def _of_chunk(source, chunk, labels, weight, normalize, class_weight, report, shared, stream):
    samples, classes, codes, weight = _labelled(source, chunk, labels, weight, class_weight, stream)
    key = None
    if shared:
        key = _same_rows((source.digest(samples), str(source.device)), classes, codes, weight, normalize)
    found = _recent.get(key)
    if found is not None:
        source.check_width(found.n_features)
        report.add(len(samples))
        return found
    moments = None
    with closing(source.stream(samples, report)) as stream:
        for indices, features in stream:
            row_weight = None if weight is None else weight[indices]
            with np.errstate(over="ignore", invalid="ignore"):
                part = _moments_of(features, codes[indices], classes, row_weight, normalize)
                moments = part if moments is None else moments + part
    _recent.put(key, moments)
    return moments


def _labelled(source, chunk, labels, weight, class_weight, stream=False):
    """Return samples, sorted classes, the code of each sample, and its weight."""
    samples = source.samples(chunk)
    labels = check_labels(labels, "y")
    if len(labels) != len(samples):
        raise InputError(f"X has {len(samples)} samples and y has {len(labels)}; pass one label for each.")
    classes, codes = np.unique(labels, return_inverse=True)
    return samples, classes, codes, row_weights(weight, len(samples), class_weight, classes, codes, stream)


def _moments_of(features, codes, classes, weight, normalize):
    return ClassMoments.from_codes(unit_rows(features) if normalize else features, codes, classes, weight)


def _refuse_overflow(part):
    """Raise NonFiniteError if features are finite but their squares are not."""
    if not part.scatter.trace() + part.weight * float(part.scatter.mean.square().sum()) < 1e300:
        raise NonFiniteError(
            "features (or weights) are so large that their squares overflow float64; divide them by a constant, "
            "or use normalize=True."
        )


def _same_rows(digest, classes, codes, weight, normalize):
    """Return a key that is equal for the same labelled rows and for them alone."""
    key = hashlib.blake2b(digest_size=16)
    key.update(repr((digest, classes.dtype.str, classes.tolist(), normalize, weight is None)).encode())
    key.update(np.ascontiguousarray(codes, dtype=np.int64))
    if weight is not None:
        key.update(np.ascontiguousarray(weight))
    return key.digest()


class _Recent:
    """The moments that were computed last, within a bound of memory: a process-wide memory of this process only.

    A search over ``alpha``, ``solver``, ``values`` or ``prior_strength`` fits the same rows again and again, once for
    each candidate; with moments come the decompositions that earlier candidates have made of them.
    """

    def __init__(self, max_bytes):
        self._entries = OrderedDict()
        self._lock = threading.Lock()
        self._max_bytes = max_bytes

    def get(self, key):
        if key is None:
            return None
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key, moments):
        if key is None:
            return
        moments.keep()
        with self._lock:
            self._entries[key] = moments
            while len(self._entries) > 1 and sum(m.nbytes() for m in self._entries.values()) > self._max_bytes:
                self._entries.popitem(last=False)


# Ten folds of 1,280 features, with their decompositions, take a quarter of it.
_recent = _Recent(max_bytes=1 << 30)
