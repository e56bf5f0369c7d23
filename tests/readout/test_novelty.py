"""Scores of samples that belong to no learnt class."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score

from faast_sklearn import FaastClassifier
from faast_sklearn.moments import ClassMoments
from faast_sklearn.readout.novelty import ClassDirections

X, Y = load_digits(return_X_y=True)
ORDER = np.random.default_rng(0).permutation(len(X))
X, Y = X[ORDER], Y[ORDER]


@pytest.mark.parametrize("shots", [1, 5, 16, 64])
def test_unseen_classes_are_told_better_than_by_the_largest_probability(shots):
    known = np.concatenate([np.flatnonzero(Y[:1000] == k)[:shots] for k in range(6)])
    clf = FaastClassifier().fit(X[known], Y[known])
    test = slice(1000, None)
    new = Y[test] > 5
    ours = roc_auc_score(new, clf.novelty_score(X[test]))
    probability = roc_auc_score(new, 1 - clf.predict_proba(X[test]).max(1))
    assert ours > probability
    assert ours > 0.75


def test_scores_are_those_of_their_definition():
    rows, y = X[:200], Y[:200]
    directions = ClassDirections(ClassMoments.from_rows(rows, y), alpha=0.3)
    mean = rows.mean(0)
    means = np.stack([rows[y == k].mean(0) for k in range(10)])
    T = (rows - mean).T @ (rows - mean)
    B = ((means - mean).T * np.bincount(y)) @ (means - mean)
    S = T - (1 - 10 / (5 * 200)) * B + 0.3 * np.trace(T) / 64 * np.eye(64)
    P = np.linalg.inv(S)
    z, a = X[200:250] - mean, means - mean
    cosines = (z @ P @ a.T) / np.sqrt(np.einsum("ij,jk,ik->i", z, P, z))[:, None]
    cosines /= np.sqrt(np.einsum("ij,jk,ik->i", a, P, a))
    np.testing.assert_allclose(directions.novelty(X[200:250]), 1 - cosines.max(1), atol=1e-8)
    as_tensor = directions.novelty(torch.from_numpy(X[200:250]))
    np.testing.assert_allclose(as_tensor.numpy(), 1 - cosines.max(1), atol=1e-8)


def test_scores_do_not_depend_on_units_or_on_the_split_of_the_data():
    clf = FaastClassifier().fit(X[:300], Y[:300])
    expected = clf.novelty_score(X[300:400])
    assert expected.shape == (100,)
    assert (expected >= 0).all()
    assert (expected <= 2).all()
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0]
    turned = FaastClassifier().fit(1000 * X[:300] @ rotation + 7, Y[:300])
    np.testing.assert_allclose(turned.novelty_score(1000 * X[300:400] @ rotation + 7), expected, atol=1e-6)
    parts = FaastClassifier().partial_fit(X[:100], Y[:100]).partial_fit(X[100:300], Y[100:300])
    np.testing.assert_allclose(parts.novelty_score(X[300:400]), expected, atol=1e-8)


def test_scores_survive_copies_and_follow_changes():
    clf = FaastClassifier(solver="pinv").fit(X[:300], Y[:300])
    before = clf.novelty_score(X[:20])
    for twin in (pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf)):
        np.testing.assert_array_equal(twin.novelty_score(X[:20]), before)
    clf.partial_fit(X[300:600], Y[300:600])
    assert not np.allclose(clf.novelty_score(X[:20]), before)


def test_duplicated_features_and_few_rows_are_no_obstacle():
    rows = np.hstack([X[:20], X[:20], np.zeros((20, 300))])
    clf = FaastClassifier(normalize=True).fit(rows, Y[:20])
    assert np.isfinite(clf.novelty_score(rows)).all()


def test_one_class_has_nothing_to_compare_with():
    with pytest.raises(NotFittedError, match="two classes"):
        FaastClassifier().fit(X[:5], np.zeros(5, int)).novelty_score(X[:2])
    with pytest.raises(NotFittedError):
        FaastClassifier().novelty_score(X[:2])
