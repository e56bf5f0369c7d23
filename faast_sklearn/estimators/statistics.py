"""What an estimator knows: moments and facts about the samples. Learning adds statistics, forgetting subtracts them."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from faast_sklearn.errors import InputError
from faast_sklearn.inputs.labels import check_labels, union_of_labels

__all__ = ["FACTS", "Statistics"]

# Attributes of an estimator that reading samples gives, beside the moments.
FACTS = ("n_features_in_", "feature_names_in_", "_n_features", "_blocks", "_feature_maps", "device_")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of some samples and facts about them; ``a + b`` equals the statistics of both sets of samples.

    Parameters
    ----------
    moments : ClassMoments or LanguageMoments
    facts : dict
        Attributes of the estimator that say what its samples are like, by the names in ``FACTS``.
    declared : ndarray, default=[]
        Sorted labels to list whether they were seen or not.
    """

    moments: Any
    facts: dict
    declared: np.ndarray = field(default_factory=lambda: np.array([]))

    def __add__(self, other):
        if not isinstance(other, Statistics):
            return NotImplemented
        _refuse_different(self.facts, other.facts)
        # The same but for the device, of which the last one counts.
        facts = {**self.facts, **other.facts}
        return Statistics(self.moments + other.moments, facts, union_of_labels(self.declared, other.declared))

    def without(self, removed: Any) -> Any:
        """Return the statistics without some of the samples; raise ForgetError if these cannot be a part of them."""
        return replace(self, moments=self.moments.without(removed.moments))

    def declaring(self, classes: Any) -> Any:
        """Return the same with more labels to list."""
        more = np.unique(check_labels(classes, "classes"))
        return replace(self, declared=union_of_labels(self.declared, more))


def _refuse_different(mine, yours):
    """Raise InputError if samples of two parts have other numbers or names of features."""
    for name in ("n_features_in_", "_n_features"):
        if mine.get(name) != yours.get(name):
            raise InputError(
                f"parts have other numbers of features, {mine.get(name)} and {yours.get(name)}; make them equal."
            )
    names = [facts.get("feature_names_in_") for facts in (mine, yours)]
    if (names[0] is None) != (names[1] is None) or (names[0] is not None and not np.array_equal(*names)):
        raise InputError("parts have other feature names, or the same in another order; make them equal.")
