"""scikit-learn's own contract, without an expected failure or a skip of ours."""

import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from faast_sklearn import BackboneFeatures, FaastClassifier


@parametrize_with_checks([FaastClassifier(), FaastClassifier(solver="pinv", alpha=0.8)])
def test_classifier_meets_scikit_learn(estimator, check):
    check(estimator)


class Rows(torch.nn.Module):
    """A backbone of rows: their squares."""

    def forward(self, x):
        return x.float() ** 2


@parametrize_with_checks([BackboneFeatures(Rows(), device="cpu")])
def test_features_meet_scikit_learn(estimator, check):
    check(estimator)
