"""Rows of unit length in front of the moments."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from faast_sklearn import FaastClassifier, load, merge, save
from faast_sklearn.errors import InputError
from faast_sklearn.features.normalize import unit_rows
from faast_sklearn.moments import ClassMoments

X, Y = load_digits(return_X_y=True)


def test_rows_have_unit_length_whatever_their_batch_or_kind_and_zeros_stay():
    rows = unit_rows(np.vstack([X[:20], np.zeros(64)]))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1.0] * 20 + [0.0])
    np.testing.assert_allclose(np.concatenate([unit_rows(X[i : i + 7]) for i in range(0, 49, 7)]), unit_rows(X[:49]))
    np.testing.assert_allclose(unit_rows(torch.from_numpy(X[:49])).numpy(), unit_rows(X[:49]), rtol=0, atol=1e-13)


def test_leading_moments_are_those_of_the_leading_features():
    for n in (30, 1700):  # as factor rows and as a dense matrix
        whole = ClassMoments.from_rows(X[:n], Y[:n])
        part, expected = whole.leading(20), ClassMoments.from_rows(X[:n, :20], Y[:n])
        np.testing.assert_allclose(part.scatter.matrix(), expected.scatter.matrix(), atol=1e-8)
        np.testing.assert_allclose(part.means, expected.means)
        assert part.scatter.is_small == expected.scatter.is_small


def test_estimators_learn_from_rows_of_unit_length_in_any_split():
    whole = FaastClassifier(normalize=True).fit(X[:400], Y[:400])
    rows = unit_rows(X)
    plain = FaastClassifier().fit(rows[:400], Y[:400])
    np.testing.assert_allclose(whole.predict_proba(X), plain.predict_proba(rows), atol=1e-9)
    np.testing.assert_allclose(whole.decision_function(X), rows @ whole.coef_.T + whole.intercept_)
    parts = FaastClassifier(normalize=True)
    for part in np.array_split(np.random.default_rng(0).permutation(500), 5):
        parts.partial_fit(X[part], Y[part])
    parts.forget(X[400:500], Y[400:500])
    merged = merge([FaastClassifier(normalize=True).fit(X[i:400:2], Y[i:400:2]) for i in range(2)])
    for other in (parts, merged):
        np.testing.assert_allclose(other.predict_proba(X), whole.predict_proba(X), atol=1e-6)


def test_features_of_a_backbone_are_scaled_and_ready_ones_are_not(tmp_path):
    rows = X.astype(np.float32)
    scaled, plain = FaastClassifier(normalize=True).fit(rows, Y), FaastClassifier(normalize=False).fit(rows, Y)
    np.testing.assert_array_equal(FaastClassifier().fit(rows, Y).coef_, plain.coef_)
    module = torch.nn.Flatten()  # on one device, so that all see the same rows
    clf = FaastClassifier(module, device="cpu").fit(rows, Y)
    np.testing.assert_allclose(clf.coef_, scaled.coef_, rtol=1e-6, atol=1e-6)
    kept = FaastClassifier(module, normalize=False, device="cpu").fit(rows, Y)
    np.testing.assert_allclose(kept.coef_, plain.coef_, rtol=1e-6, atol=1e-6)
    save(clf, tmp_path / "clf.faast")
    loaded = load(tmp_path / "clf.faast", backbone=module, device="cpu")
    assert loaded.normalize == "auto"
    np.testing.assert_array_equal(loaded.predict_proba(rows), clf.predict_proba(rows))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"normalize": True}),
        ({"normalize": True}, {"normalize": False}),
        ({"values": np.eye(10, 64)}, {"prior_strength": 3.0}),  # cosines need rows of unit length
    ],
    ids=str,
)
def test_rows_of_unit_length_and_others_do_not_add_up(before, after):
    clf = FaastClassifier(**before).fit(X[:50], Y[:50])
    answers = clf.predict_proba(X)
    clf.set_params(**after)
    for call in (clf.partial_fit, clf.forget):
        with pytest.raises(InputError, match="normalize was"):
            call(X[:20], Y[:20])
    np.testing.assert_array_equal(clf.predict_proba(X), answers)
