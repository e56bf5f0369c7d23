"""Learning where the samples are: each process computes the statistics of its part, and these are added up."""

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
    """An estimator that has learnt nothing, to send to where samples are.

    Parameters
    ----------
    estimator : FaastClassifier or FaastSeq2Seq
    facts : dict
        What samples have to agree with; empty to begin anew.
    """

    estimator: LearningMixin
    facts: dict

    @classmethod
    def of(cls, estimator: Any, *, reset: bool, class_weight: dict | None = None) -> "LocalLearner":
        """Return one that reads samples as ``estimator`` does.

        Parameters
        ----------
        estimator : FaastClassifier or FaastSeq2Seq
        reset : bool
            False: samples must be as those that it knows of already.
        class_weight : dict, default=None
            In the place of ``"balanced"``, which one part cannot know.

        Returns
        -------
        LocalLearner
            Without a progress bar: several at once would be of no use.

        Raises
        ------
        ValueError, InputError
            If a parameter is bad, or needs all samples in one place.
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
            As ``fit`` takes them.

        Returns
        -------
        Statistics or None
            None where there are no samples.
        """
        if count_samples(X) == 0:
            return None
        return copy.copy(self.estimator)._read(X, y, sample_weight, "fit", self.facts, stream=True)


def known_statistics(estimator: Any) -> Any:
    """Return what an estimator knows; None if it has learnt nothing."""
    estimator._check_params(partial=True)
    return estimator._known() if estimator.__sklearn_is_fitted__() else None


def predictor(estimator: Any) -> Any:
    """Return a copy of a fitted estimator that predicts as it does, and is as small as what that takes."""
    return estimator._without_moments()


def adopt(estimator: Any, total: Any, *, reset: bool, partial: bool = False, classes: Any = None) -> Any:
    """Let an estimator know the sum of all parts, alone or beside what it knew; if that fails, it is unchanged.

    Parameters
    ----------
    estimator : FaastClassifier or FaastSeq2Seq
    total : Statistics or None
    reset : bool
        Forget what was known before.
    partial : bool, default=False
        Whether more may come, so that there may be nothing yet.
    classes : array-like, default=None
        More labels to list in ``classes_``.

    Raises
    ------
    InputError
        If there is nothing to learn from, or the part is of other samples than what is known.
    """
    with changing(estimator):
        # Another thread may have begun in the meantime.
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
    """Return the total weight of each label, a dict."""
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
