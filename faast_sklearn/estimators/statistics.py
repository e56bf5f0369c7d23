"""Statistics of samples: moments and facts. Learning adds statistics, forgetting subtracts them."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from faast_sklearn.errors import InputError
from faast_sklearn.inputs.labels import check_labels, union_of_labels

__all__ = ["FACTS", "Statistics"]

# Attributes of an estimator that describe the samples read, other than the moments.
FACTS = ("n_features_in_", "feature_names_in_", "_n_features", "_blocks", "_feature_maps", "device_")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of some samples and facts about them; ``a + b`` equals the statistics of both sets of samples.

    Parameters
    ----------
    moments : ClassMoments or LanguageMoments
    facts : dict
        Attributes of an estimator that describe the samples, by the names in ``FACTS``.
    declared : ndarray, default=[]
        Sorted labels that ``classes_`` lists even if no sample has them.
    """

    moments: Any
    facts: dict
    declared: np.ndarray = field(default_factory=lambda: np.array([]))

    def __add__(self, other):
        if not isinstance(other, Statistics):
            return NotImplemented
        _refuse_different(self.facts, other.facts)
        # Only the device may differ; the last one is kept.
        facts = {**self.facts, **other.facts}
        return Statistics(self.moments + other.moments, facts, union_of_labels(self.declared, other.declared))

    def without(self, removed: Any) -> Any:
        """Return the statistics without those of ``removed``; raise ForgetError if these cannot be a part of them."""
        return replace(self, moments=self.moments.without(removed.moments))

    def declaring(self, classes: Any) -> Any:
        """Return the same statistics with more declared labels."""
        more = np.unique(check_labels(classes, "classes"))
        return replace(self, declared=union_of_labels(self.declared, more))


def _refuse_different(mine, yours):
    """Raise InputError if two parts differ in the number or the names of their features."""
    for name in ("n_features_in_", "_n_features"):
        if mine.get(name) != yours.get(name):
            raise InputError(
                f"parts have different numbers of features, {mine.get(name)} and {yours.get(name)}; make them equal."
            )
    names = [facts.get("feature_names_in_") for facts in (mine, yours)]
    if (names[0] is None) != (names[1] is None) or (names[0] is not None and not np.array_equal(*names)):
        raise InputError("parts have different feature names, or the same names in another order; make them equal.")
