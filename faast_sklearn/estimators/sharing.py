"""Learning from distributed samples: each process computes the statistics of its part, and the parts are added up."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone

from faast_sklearn.errors import InputError
from faast_sklearn.estimators.base import LearningMixin
from faast_sklearn.estimators.turns import changing
from faast_sklearn.inputs.labels import balanced_factors, check_labels, row_weights
from faast_sklearn.inputs.samples import count_samples

__all__ = ["LocalLearner", "adopt", "balanced_weights", "known_statistics", "label_counts", "predictor"]


@dataclass(frozen=True)
class LocalLearner:
    """An estimator without statistics, to send to the processes that hold the samples.

    Parameters
    ----------
    estimator : FaastClassifier or FaastSeq2Seq
    facts : dict
        Facts about the samples learnt before, which new samples have to match; empty for a new start.
    """

    estimator: LearningMixin
    facts: dict

    @classmethod
    def of(cls, estimator: Any, *, reset: bool, class_weight: dict | None = None) -> "LocalLearner":
        """Return a learner that reads samples as ``estimator`` does.

        Parameters
        ----------
        estimator : FaastClassifier or FaastSeq2Seq
        reset : bool
            If False, new samples have to match those that ``estimator`` has learnt.
        class_weight : dict, default=None
            Replaces ``"balanced"``, which depends on the labels of all parts.

        Returns
        -------
        LocalLearner
            Without a progress bar, because several processes would each show one.

        Raises
        ------
        ValueError
            If a parameter is invalid, or needs all samples in one process.
        InputError
            If a parameter has changed since the samples were learnt.
        """
        estimator._check_params(partial=not reset)
        facts = {} if reset else estimator._known().facts
        twin = clone(estimator).set_params(verbose=0)
        if class_weight is not None:
            twin.set_params(class_weight=class_weight)
        return cls(twin, facts)

    def learn(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Return the statistics of samples; nothing is solved. Several threads may call it.

        Parameters
        ----------
        X, y, sample_weight
            As in ``fit``.

        Returns
        -------
        Statistics or None
            None if X is empty.
        """
        if count_samples(X) == 0:
            return None
        return copy.copy(self.estimator)._read(X, y, sample_weight, "fit", self.facts, stream=True)


def known_statistics(estimator: Any) -> Any:
    """Check the parameters as ``partial_fit`` does; return the statistics of everything learnt, or None if nothing."""
    estimator._check_params(partial=True)
    return estimator._known() if estimator.__sklearn_is_fitted__() else None


def predictor(estimator: Any) -> Any:
    """Return a copy of a fitted estimator that predicts alike and holds only what prediction needs."""
    return estimator._without_moments()


def adopt(estimator: Any, total: Any, *, reset: bool, partial: bool = False, classes: Any = None) -> Any:
    """Add the sum of all parts to the statistics of an estimator, or replace them; after an error it is unchanged.

    Parameters
    ----------
    estimator : FaastClassifier or FaastSeq2Seq
    total : Statistics or None
        Sum of the statistics of all parts; None if all were empty.
    reset : bool
        Replace the statistics. With ``partial``, they are still added if the estimator has learnt in the meantime.
    partial : bool, default=False
        Whether more samples may follow. If so, samples of weight zero alone are accepted.
    classes : array-like, default=None
        More labels to list in ``classes_``.

    Returns
    -------
    FaastClassifier or FaastSeq2Seq
        The same object.

    Raises
    ------
    InputError
        If there is nothing to learn from, or the numbers or names of features differ from those learnt before.
    """
    with changing(estimator):
        # Another thread may have learnt the first samples in the meantime.
        anew = reset and not (partial and estimator.__sklearn_is_fitted__())
        if anew:
            if total is None:
                raise InputError("X has 0 samples in all; there is nothing to learn from.")
            if not partial:
                estimator._refuse_nothing(total)
        else:
            known = estimator._known()
            total = known if total is None else known + total
        estimator._publish(total if classes is None else total.declaring(classes), anew=anew)
    return estimator


def label_counts(y: Any, sample_weight: Any = None) -> Any:
    """Return a dict with the total weight of each label."""
    if y is not None and not len(y):
        return {}
    classes, codes = np.unique(check_labels(y, "y"), return_inverse=True)
    weight = row_weights(sample_weight, len(codes), None, classes, codes)
    return dict(zip(classes.tolist(), np.bincount(codes, weights=weight).tolist(), strict=True))


def balanced_weights(counts: Sequence) -> dict:
    """Return the weights of ``class_weight="balanced"`` from the counts of all parts.

    Parameters
    ----------
    counts : sequence of dict
        As :func:`label_counts` returns them.

    Returns
    -------
    dict

    Examples
    --------
    >>> from faast_sklearn.estimators.sharing import balanced_weights
    >>> balanced_weights([{"cat": 1.0}, {"dog": 2.0, "cat": 1.0}, {"dog": 4.0}])
    {'cat': 2.0, 'dog': 0.666...}
    """
    totals = {}
    for part in counts:
        for label, weight in part.items():
            totals[label] = totals.get(label, 0.0) + weight
    factors = balanced_factors(np.array(list(totals.values())))
    return dict(zip(totals, factors.tolist(), strict=True))
