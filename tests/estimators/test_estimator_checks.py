"""scikit-learn's own contract; one check asks for what a scale of weights that is of no account rules out."""

import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from faast_sklearn import BackboneFeatures, FaastClassifier

TWICE = "A row twice is two samples to the regulariser, the cut and the probabilities, as to RidgeClassifierCV."
BEYOND = {
    # With every weight twice as large nothing may change, and then a copy of every row cannot be that weight; what
    # holds is in test_a_row_twice_is_a_row_of_weight_two_at_a_given_alpha.
    "check_sample_weight_equivalence_on_dense_data": TWICE,
    # scikit-learn 1.6 gives sparse rows to what takes none as well, and expects a TypeError.
    "check_sample_weight_equivalence_on_sparse_data": "It takes no sparse rows, and says so.",
}


@parametrize_with_checks(
    [FaastClassifier(), FaastClassifier(solver="pinv", alpha=0.8)], expected_failed_checks=lambda estimator: BEYOND
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
