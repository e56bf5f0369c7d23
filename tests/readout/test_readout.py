"""Readouts: a linear discriminant whose probabilities are probabilities, also where the data say little."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split

from faast_sklearn import FaastClassifier
from faast_sklearn.errors import ConditionWarning
from faast_sklearn.moments import ClassMoments
from faast_sklearn.readout import LinearReadout, discriminant_readout, score_readout
from faast_sklearn.solvers import fast_weights

OPTIONS = [{}, {"alpha": 0.3}, {"fit_intercept": False}, {"solver": "pinv", "alpha": 0.8}, {"solver": "pinv"}]


def blobs(counts, d=6, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(counts), d))
    y = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return centres[y] + rng.normal(size=(len(y), d)) * rng.uniform(0.5, 2.0, d), y


@pytest.fixture(scope="module")
def digits():
    return train_test_split(*load_digits(return_X_y=True), random_state=0, stratify=load_digits().target)


@pytest.mark.parametrize("counts", [(50, 50), (40, 40, 40), (90, 20, 5, 60)])
@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 0.9])
def test_the_discriminant_is_scikit_learns_up_to_one_temperature(counts, shrinkage):
    X, y = blobs(counts)
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X, y)
    peer_coef = np.linalg.solve(peer.covariance_, peer.means_.T).T
    peer_scores = X @ peer_coef.T - 0.5 * np.einsum("kd,kd->k", peer.means_, peer_coef)
    # Its ridge is relative to the within-class scatter, ours to the total.
    within, total = X.shape[0] * peer.covariance_.trace(), np.square(X - X.mean(0)).sum()
    alpha = shrinkage / (1 - shrinkage) * within / total
    # So many copies that class means are as good as known: nothing is corrected for their noise.
    moments = ClassMoments.from_rows(X, y)
    for _ in range(30):
        moments = moments + moments
    readout = discriminant_readout(fast_weights(moments, alpha=alpha), moments)

    def contrasts(rows):
        return rows - rows.mean(-1, keepdims=True)

    ours = contrasts(readout.scores(X) - np.log(peer.priors_))
    theirs = contrasts(peer_scores)
    factor = (ours * theirs).sum() / np.square(theirs).sum()
    assert factor > 0
    np.testing.assert_allclose(ours, factor * theirs, rtol=0, atol=1e-7 * np.abs(ours).max())
    np.testing.assert_allclose(contrasts(readout.coef.T), factor * contrasts(peer_coef.T), rtol=1e-6, atol=1e-9)


def test_scores_are_the_weights_own_without_the_discriminant():
    X, y = blobs((30, 20, 10))
    for intercept in (True, False):
        for solver in ("ridge", "pinv"):
            moments = ClassMoments.from_rows(X, y)
            solution = fast_weights(moments, solver=solver, alpha=0.5, intercept=intercept)
            readout = score_readout(solution, moments, intercept)
            W, V = solution.weights.numpy(), np.eye(3)[y]
            expected = (X - X.mean(0)) @ W + V.mean(0) if intercept else X @ W
            np.testing.assert_allclose(readout.scores(X), expected, atol=1e-12)
            assert readout.temperature > 0


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("counts", [(20, 20), (3, 30, 12), (1, 1, 1, 1), (60, 1)])
def test_probabilities_sum_to_one_and_agree_with_predict(options, counts):
    X, y = blobs(counts)
    clf = FaastClassifier(**options).fit(X, np.array(["w", "x", "y", "z"])[y])
    test = np.random.default_rng(1).normal(size=(200, X.shape[1])) * 3
    P, log_P, scores = clf.predict_proba(test), clf.predict_log_proba(test), clf.decision_function(test)
    assert P.shape == (200, len(counts))
    assert (P >= 0).all()
    np.testing.assert_allclose(P.sum(1), 1.0, atol=1e-12)
    np.testing.assert_allclose(np.exp(log_P), P)
    assert np.array_equal(clf.classes_[P.argmax(1)], clf.predict(test))
    np.testing.assert_allclose(scores, (test @ clf.coef_.T + clf.intercept_).squeeze(), atol=1e-10)
    if len(counts) == 2:
        assert scores.shape == (200,)
        assert np.array_equal(clf.classes_[(scores > 0).astype(int)], clf.predict(test))
    else:
        assert np.array_equal(clf.classes_[scores.argmax(1)], clf.predict(test))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shots", [5, 20, None])
def test_probabilities_are_nearly_as_good_as_the_best_temperature(digits, options, shots):
    X, X_test, y, y_test = digits
    chosen = np.concatenate([np.flatnonzero(y == k)[:shots] for k in range(10)])
    log_P = FaastClassifier(**options).fit(X[chosen], y[chosen]).predict_log_proba(X_test)

    def loss(log_t):
        scaled = np.exp(log_t) * log_P
        return -np.mean(scaled[np.arange(len(y_test)), y_test] - np.logaddexp.reduce(scaled, axis=1))

    best = scipy.optimize.minimize_scalar(loss, bounds=(-4, 4), method="bounded").fun
    # The paper's fixed cut is at its worst where there are as many rows as features, which its scores do not tell.
    paper = options == {"solver": "pinv", "alpha": 0.8}
    assert loss(0.0) <= best + (0.25 * best if paper else 0.03 if not options else 0.04)
    assert loss(0.0) == pytest.approx(log_loss(y_test, np.exp(log_P)), rel=1e-6)


def test_the_discriminant_is_better_on_digits_than_the_scores(digits):
    X, X_test, y, y_test = digits
    by_class = FaastClassifier().fit(X, y)
    by_score = FaastClassifier(fit_intercept=False).fit(X, y)
    assert accuracy_score(y_test, by_class.predict(X_test)) >= accuracy_score(y_test, by_score.predict(X_test))
    assert log_loss(y_test, by_class.predict_proba(X_test)) < log_loss(y_test, by_score.predict_proba(X_test))


def test_rare_classes_are_rare_in_probability():
    rng = np.random.default_rng(0)
    y = (rng.uniform(size=4000) < 0.05).astype(int)
    X = rng.normal(size=(4000, 3))  # the features say nothing, so the shares are all there is to know
    P = FaastClassifier().fit(X, y).predict_proba(X)
    np.testing.assert_allclose(P.mean(0), [1 - y.mean(), y.mean()], atol=0.01)
    assert log_loss(y, P) <= log_loss(y, np.full(4000, y.mean())) + 0.005


DEGENERATE = {
    "constant features": (np.ones((9, 4)), np.arange(9) % 3),
    "zero features": (np.zeros((9, 4)), np.arange(9) % 3),
    "duplicate rows": (np.repeat(np.eye(3), 4, axis=0), np.repeat(np.arange(3), 4)),
    "duplicates of two labels": (np.repeat(np.eye(3), 4, axis=0), np.arange(12) % 2),
    "duplicate columns": (np.repeat(blobs((5, 5))[0], 3, axis=1), blobs((5, 5))[1]),
    "one example a class": (np.random.default_rng(0).normal(size=(5, 40)), np.arange(5)),
    "one example of one class": (np.random.default_rng(0).normal(size=(8, 3)), np.r_[np.zeros(7, int), 1]),
    "one feature": (np.arange(10.0)[:, None], np.arange(10) // 5),
    "one row": (np.ones((1, 3)), np.array([0])),
    "one row of zeros": (np.zeros((1, 3)), np.array([0])),
    "one class": (np.random.default_rng(0).normal(size=(7, 3)), np.full(7, 4)),
    "two rows": (np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1])),
    "perfectly separated": (np.repeat([[1.0, 0.0], [0.0, 1.0]], 50, axis=0), np.repeat([0, 1], 50)),
    "huge": (blobs((20, 20))[0] * 1e140, blobs((20, 20))[1]),
    "tiny": (blobs((20, 20))[0] * 1e-140, blobs((20, 20))[1]),
    "far from zero": (blobs((20, 20))[0] + 1e12, blobs((20, 20))[1]),
    "one huge feature": (blobs((20, 20))[0] * np.r_[1e12, np.ones(5)], blobs((20, 20))[1]),
    "many classes": (np.random.default_rng(0).normal(size=(300, 4)), np.arange(300) // 2),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("options", [*OPTIONS, {"alpha": 0.0}, {"normalize": True}])
def test_degenerate_data_give_finite_numbers(name, options):
    X, y = DEGENERATE[name]
    clf = FaastClassifier(**options).fit(X, y)
    if name == "one huge feature" and options == {"alpha": 0.0}:
        with pytest.warns(ConditionWarning, match="5 features are ignored"):
            clf.predict(X)
    assert np.isfinite(clf.coef_).all()
    assert np.isfinite(clf.intercept_).all()
    assert np.isfinite(clf.alpha_)
    P = clf.predict_proba(X)
    np.testing.assert_allclose(P.sum(1), 1.0, atol=1e-9)
    assert np.isin(clf.predict(X), y).all()


def test_one_class_is_always_predicted():
    clf = FaastClassifier().fit(np.random.default_rng(0).normal(size=(5, 3)), ["only"] * 5)
    assert clf.predict(np.ones((2, 3))).tolist() == ["only", "only"]
    assert np.array_equal(clf.predict_proba(np.ones((2, 3))), np.ones((2, 1)))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 8), st.integers(1, 6), st.floats(-6, 6))
def test_whatever_the_data_predictions_are_labels(seed, n, d, c, exponent):
    rng = np.random.default_rng(seed)
    X, y = np.round(rng.normal(size=(n, d)) * 2) * 10.0**exponent, rng.integers(0, c, n)
    clf = FaastClassifier().fit(X, y, sample_weight=rng.gamma(0.3, size=n) + 1e-6)
    P = clf.predict_proba(X)
    assert np.isfinite(P).all()
    np.testing.assert_allclose(P.sum(1), 1.0, atol=1e-9)
    assert np.isin(clf.predict(X), y).all()


def test_arrays_and_tensors_of_any_precision_score_alike():
    rng = np.random.default_rng(0)
    readout = LinearReadout(rng.normal(size=(3, 4)), rng.normal(size=3))
    X = rng.normal(size=(5, 4)).astype(np.float32)
    expected = readout.scores(X)
    assert expected.dtype == np.float64
    tensor = readout.scores(torch.from_numpy(X))
    assert tensor.dtype == torch.float64
    np.testing.assert_allclose(tensor, expected, rtol=1e-12)
    np.testing.assert_allclose(readout.scores(torch.from_numpy(X).bfloat16()), expected, atol=0.1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scores_are_the_float64_product_however_rows_lie_in_memory(dtype, monkeypatch):
    rng = np.random.default_rng(0)
    readout = LinearReadout(rng.standard_normal((3, 7)), np.array([0.5, -np.inf, 2.0]))
    X = rng.standard_normal((2500, 7)).astype(dtype)
    wanted = X.astype(np.float64) @ readout.coef.T + readout.intercept
    frozen = X.copy()
    frozen.setflags(write=False)
    wide = np.zeros((2500, 14), dtype)
    wide[:, ::2] = X
    for rows in (X, frozen, np.asfortranarray(X), wide[:, ::2], X[::-1].copy()[::-1], torch.from_numpy(X)):
        scores = np.asarray(readout.scores(rows))
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores, wanted, rtol=1e-12, atol=1e-12)
    assert np.array_equal(readout.scores(X), readout.scores(frozen))
    monkeypatch.setattr("faast_sklearn.readout.linear._FEW_ROWS", 0)
    assert np.array_equal(readout.scores(X[2499:2498:-1]), readout.scores(X[2499:]))  # one row, of a negative stride
    np.testing.assert_allclose(readout.scores(X[:256]), wanted[:256], rtol=1e-12, atol=1e-12)
    assert readout.scores(X[:0]).shape == (0, 3)
