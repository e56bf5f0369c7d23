"""Normalisation and random expansion in front of the moments, and the choice between them."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from faast_sklearn import FaastClassifier, merge
from faast_sklearn.errors import InputError
from faast_sklearn.features.feature_map import FeatureMap
from faast_sklearn.moments import ClassMoments
from faast_sklearn.moments.candidates import CandidateMoments, candidate_maps

X, Y = load_digits(return_X_y=True)
MAPS = [FeatureMap(), FeatureMap(True), FeatureMap("sqrt"), FeatureMap(False, 7), FeatureMap("sqrt", 30)]


@pytest.mark.parametrize("g", MAPS, ids=str)
def test_rows_do_not_depend_on_their_batch_or_kind(g):
    whole = g(X[:50])
    assert np.allclose(np.concatenate([g(X[i : min(i + 7, 50)]) for i in range(0, 50, 7)]), whole, rtol=0, atol=1e-13)
    assert np.allclose(g(torch.from_numpy(X[:50])).numpy(), whole, rtol=0, atol=1e-13)
    assert whole.shape == (50, 64 + g.expansion)


def test_rows_have_unit_length_and_zeros_stay():
    for g in (FeatureMap(True), FeatureMap("sqrt")):
        rows = g(np.vstack([X[:20], np.zeros(64)]))
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1.0] * 20 + [0.0])


def test_hidden_features_have_the_arc_cosine_kernel():
    """In the limit of many: |x||z| (sin t + (pi - t) cos t) / 2 pi, Cho and Saul (2009), of degree one in each."""
    rows = np.random.default_rng(1).standard_normal((12, 16)) * np.arange(1, 13)[:, None]
    hidden = FeatureMap(False, 60_000)(rows)[:, 16:]
    norms = np.linalg.norm(rows, axis=1)
    t = np.arccos(np.clip(rows @ rows.T / np.outer(norms, norms), -1, 1))
    expected = np.outer(norms, norms) * (np.sin(t) + (np.pi - t) * np.cos(t)) / (2 * np.pi)
    np.testing.assert_allclose(hidden @ hidden.T / np.outer(norms, norms), expected / np.outer(norms, norms), atol=0.02)


def test_more_hidden_features_begin_with_the_same():
    few, many = (FeatureMap(True, M)(X[:5])[:, 64:] * M**0.5 for M in (10, 25))
    np.testing.assert_allclose(many[:, :10], few, atol=1e-12)


def test_leading_moments_are_those_of_the_leading_features():
    for n in (30, 1700):  # as factor rows and as a dense matrix
        whole = ClassMoments.from_rows(X[:n], Y[:n])
        part, expected = whole.leading(20), ClassMoments.from_rows(X[:n, :20], Y[:n])
        np.testing.assert_allclose(part.scatter.matrix(), expected.scatter.matrix(), atol=1e-8)
        np.testing.assert_allclose(part.means, expected.means)
        assert part.scatter.is_small == expected.scatter.is_small


@pytest.mark.parametrize("params", [{"normalize": "sqrt"}, {"expansion": 40}, {"normalize": True, "expansion": 40}])
def test_estimators_learn_from_mapped_rows(params):
    clf = FaastClassifier(**params).fit(X[:300], Y[:300])
    rows = clf.feature_map_(X)
    plain = FaastClassifier().fit(rows[:300], Y[:300])
    np.testing.assert_allclose(clf.predict_proba(X), plain.predict_proba(rows), atol=1e-9)
    np.testing.assert_allclose(clf.decision_function(X), rows @ clf.coef_.T + clf.intercept_)
    assert clf.n_features_in_ == 64


@pytest.mark.parametrize(
    "params", [{"normalize": "auto"}, {"expansion": "auto"}, {"normalize": "auto", "expansion": 30}]
)
def test_split_merged_and_forgotten_are_the_same_with_candidates(params):
    whole = FaastClassifier(**params).fit(X[:400], Y[:400])
    parts = FaastClassifier(**params)
    for part in np.array_split(np.random.default_rng(0).permutation(500), 5):
        parts.partial_fit(X[part], Y[part])
    parts.forget(X[400:500], Y[400:500])
    merged = merge([FaastClassifier(**params).fit(X[i:400:2], Y[i:400:2]) for i in range(2)])
    for other in (parts, merged):
        assert other.feature_map_ == whole.feature_map_
        np.testing.assert_allclose(other.predict_proba(X), whole.predict_proba(X), atol=1e-6)


def test_expansion_is_taken_where_it_helps_and_only_there():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((600, 6))
    linear = np.arange(600) % 2
    blobs = rows + 0.5 * linear[:, None]
    ring = (np.linalg.norm(rows, axis=1) > 2.3).astype(int)
    straight = FaastClassifier(expansion="auto").fit(blobs[:400], linear[:400])
    bent = FaastClassifier(expansion="auto").fit(rows[:400], ring[:400])
    assert straight.feature_map_.expansion == 0
    np.testing.assert_allclose(straight.coef_, FaastClassifier().fit(blobs[:400], linear[:400]).coef_)
    assert bent.feature_map_.expansion > 0
    assert bent.score(rows[400:], ring[400:]) > FaastClassifier().fit(rows[:400], ring[:400]).score(
        rows[400:], ring[400:]
    )


def test_a_negative_feature_refuses_the_square_root():
    rows = X - 1.0
    with pytest.raises(InputError, match="Negative values in data"):
        FaastClassifier(normalize="sqrt").fit(rows, Y)
    clf = FaastClassifier(normalize="auto").fit(X[:300], Y[:300])
    assert len(clf._compiled.learnt.moments) == 3
    clf.partial_fit(rows[:10], Y[:10]).forget(rows[:10], Y[:10])  # it stays away when the row has gone
    assert {g.normalize for g in clf._compiled.learnt.moments} == {False, True}
    assert clf.predict(X).shape == Y.shape


def test_probabilities_stay_finite_where_classes_are_separated():
    """Random features separate the digits; without doubt the temperature ran away and one error cost nats."""
    order = np.random.default_rng(0).permutation(len(X))
    train, test = order[:1100], order[1100:]
    clf = FaastClassifier(normalize=True, expansion=1500).fit(X[train], Y[train])
    log_p = clf.predict_log_proba(X[test])[np.arange(len(test)), Y[test]]
    assert clf.score(X[test], Y[test]) > 0.97
    assert -log_p.mean() < 0.1


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"normalize": "l2"}, "normalize must be"),
        ({"normalize": 2}, "normalize must be"),
        ({"expansion": 0}, "expansion must be"),
        ({"expansion": 2.5}, "expansion must be"),
        ({"expansion": "many"}, "expansion must be"),
        ({"expansion": True}, "expansion must be"),
    ],
    ids=str,
)
def test_other_settings_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        FaastClassifier(**params).fit(X, Y)


def test_maps_may_not_change_between_calls():
    clf = FaastClassifier().fit(X[:50], Y[:50])
    before = clf.predict_proba(X)
    for params in ({"normalize": True}, {"normalize": False, "expansion": 5}):
        clf.set_params(**params)
        for call in (clf.partial_fit, clf.forget):
            with pytest.raises(InputError, match="normalize and expansion stay"):
                call(X[:20], Y[:20])
        np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_candidates_add_up():
    maps = candidate_maps("auto", 5)
    codes, classes = np.unique(Y[:80], return_inverse=True)[::-1]
    whole = CandidateMoments.from_codes(X[:80], codes, classes, None, maps)
    parts = [CandidateMoments.from_codes(X[i:80:2], codes[i::2], classes, None, maps) for i in range(2)]
    total = parts[0] + parts[1]
    for g, moments in whole.moments.items():
        np.testing.assert_allclose(total.moments[g].scatter.matrix(), moments.scatter.matrix(), atol=1e-9)
        back = (total - parts[1]).moments[g]
        np.testing.assert_allclose(back.scatter.matrix(), parts[0].moments[g].scatter.matrix(), atol=1e-9)
