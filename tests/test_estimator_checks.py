"""scikit-learn's own contract; one check asks for what a scale of weights that is of no account rules out."""

import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from faast_sklearn import BackboneFeatures, FaastClassifier


def beyond_the_contract(estimator):
    """A row twice is two samples to the regulariser, the cut and the probabilities, as to RidgeClassifierCV.

    With every weight twice as large nothing may change, and then a copy of every row cannot be that weight: for what
    holds see ``test_a_row_twice_is_a_row_of_weight_two_at_a_given_alpha``.
    """
    beyond = {"check_sample_weight_equivalence_on_dense_data": beyond_the_contract.__doc__.splitlines()[0]}
    if getattr(estimator, "normalize", None) == "sqrt":
        beyond["check_classifiers_train"] = "Rows of unit sum lose the scale in which the classes of this check differ."
        negative = "The data of this check are negative whatever the tags say."
        beyond |= dict.fromkeys(("check_class_weight_classifiers", "check_decision_proba_consistency"), negative)
    return beyond


@parametrize_with_checks(
    [FaastClassifier(), FaastClassifier(solver="pinv", alpha=0.8), FaastClassifier(normalize="sqrt")],
    expected_failed_checks=beyond_the_contract,
)
def test_classifier_meets_scikit_learn(estimator, check):
    check(estimator)


class Rows(torch.nn.Module):
    """A backbone of rows: their squares."""

    def forward(self, x):
        return x.float() ** 2


@parametrize_with_checks([BackboneFeatures(Rows(), device="cpu")])
def test_features_meet_scikit_learn(estimator, check):
    check(estimator)
