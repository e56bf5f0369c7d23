"""What one process learns of a part of the samples, to be added up with what others learn of theirs."""

import copy
from dataclasses import dataclass

import numpy as np
from sklearn.base import clone

from faast_sklearn.errors import InputError
from faast_sklearn.estimators.turns import changing
from faast_sklearn.inputs.labels import balanced_factors, check_labels, row_weights, union_of_labels
from faast_sklearn.inputs.samples import count_samples

__all__ = ["Part", "Student", "adopt_part", "balanced_weights", "known_part", "label_counts"]

# What reading samples tells of them, beside the moments.
_FACTS = ("n_features_in_", "feature_names_in_", "_n_features", "device_")


@dataclass(frozen=True)
class Part:
    """Moments of some of the samples, and what else was seen of them; ``+`` is what both together would have given.

    Parameters
    ----------
    learnt : ClassMoments or LanguageMoments
    facts : dict
        Attributes of the estimator that say what its samples are like.
    declared : ndarray
        Sorted labels to list whether they were seen or not.
    """

    learnt: object
    facts: dict
    declared: np.ndarray

    def __add__(self, other):
        if not isinstance(other, Part):
            return NotImplemented
        _refuse_different_facts(self.facts, other.facts)
        return Part(self.learnt + other.learnt, self.facts, union_of_labels(self.declared, other.declared))


def _refuse_different_facts(mine, yours):
    """Raise InputError if samples of two parts have other numbers or names of features."""
    for name, what in (("n_features_in_", "numbers of features"), ("_n_features", "numbers of features")):
        if mine.get(name) != yours.get(name):
            raise InputError(f"parts have other {what}, {mine.get(name)} and {yours.get(name)}; make them equal.")
    names = [facts.get("feature_names_in_") for facts in (mine, yours)]
    if (names[0] is None) != (names[1] is None) or (names[0] is not None and not np.array_equal(*names)):
        raise InputError("parts have other feature names, or the same in another order; make them equal.")


@dataclass(frozen=True)
class Student:
    """An estimator that has learnt nothing, to send to where samples are.

    Parameters
    ----------
    estimator : FaastClassifier or FaastSeq2Seq
    reset : bool
        False: samples must be as those that it knows of already.
    """

    estimator: object
    reset: bool

    @classmethod
    def of(cls, estimator, *, reset, class_weight=None):
        """Return one that reads samples as ``estimator`` does.

        Parameters
        ----------
        estimator : FaastClassifier or FaastSeq2Seq
        reset : bool
        class_weight : dict, default=None
            In the place of ``"balanced"``, which one part cannot know.

        Returns
        -------
        Student
            Without a progress bar: several at once would be of no use.

        Raises
        ------
        ValueError, InputError
            If a parameter is bad, or needs all samples in one place.
        """
        estimator._check_params(partial=not reset)
        if not reset:
            estimator._refuse_changes()
        twin = clone(estimator).set_params(verbose=0)
        if class_weight is not None:
            twin.set_params(class_weight=class_weight)
        if not reset:
            twin.__dict__.update(_facts_of(estimator))
        return cls(twin, reset)

    def learn(self, X, y=None, sample_weight=None):
        """Return what samples teach; nothing is solved. Several threads may call it.

        Parameters
        ----------
        X, y, sample_weight
            As ``fit`` takes them.

        Returns
        -------
        Part or None
            None where there are no samples.
        """
        if count_samples(X) == 0:
            return None
        mine = copy.copy(self.estimator)
        return _part_of(mine, mine._moments_of_part(X, y, sample_weight, self.reset))


def known_part(estimator):
    """Return what a fitted estimator knows."""
    return _part_of(estimator, estimator._known_moments())


def _part_of(estimator, learnt):
    return Part(learnt, _facts_of(estimator), estimator.__dict__.get("_declared", np.array([])))


def _facts_of(estimator):
    return {name: estimator.__dict__[name] for name in _FACTS if name in estimator.__dict__}


def adopt_part(estimator, part, *, reset, partial=False, classes=None):
    """Make the sum of all parts what an estimator knows, or add it to that; unchanged if that fails.

    Parameters
    ----------
    estimator : FaastClassifier or FaastSeq2Seq
    part : Part or None
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
        if reset and not (partial and estimator.__sklearn_is_fitted__()):
            if part is None:
                raise InputError("X has 0 samples in all; there is nothing to learn from.")
            if not partial:
                estimator._refuse_nothing(part.learnt)
            estimator._forget_saved_backbone()
            for name in _FACTS:
                estimator.__dict__.pop(name, None)
        else:
            known = known_part(estimator)
            part = known if part is None else known + part
        declared = part.declared
        if classes is not None:
            declared = union_of_labels(declared, np.unique(check_labels(classes, "classes")))
        estimator.__dict__.update(part.facts)
        estimator._adopt_moments(part.learnt, declared)
    return estimator


def label_counts(y, sample_weight=None):
    """Return the total weight of each label, a dict."""
    if y is not None and not len(y):
        return {}
    classes, codes = np.unique(check_labels(y, "y"), return_inverse=True)
    weight = row_weights(sample_weight, len(codes), None, classes, codes)
    return dict(zip(classes.tolist(), np.bincount(codes, weights=weight).tolist(), strict=True))


def balanced_weights(counts):
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
    >>> from faast_sklearn.estimators.parts import balanced_weights
    >>> balanced_weights([{"cat": 1.0}, {"dog": 2.0, "cat": 1.0}, {"dog": 4.0}])
    {'cat': 2.0, 'dog': 0.666...}
    """
    totals = {}
    for part in counts:
        for label, weight in part.items():
            totals[label] = totals.get(label, 0.0) + weight
    factors = balanced_factors(np.array(list(totals.values())))
    return dict(zip(totals, factors.tolist(), strict=True))
