"""Further passes: steps on the log-likelihood that are taken while they help."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from faast_sklearn import FaastClassifier, merge
from faast_sklearn.errors import InputError
from faast_sklearn.moments import ClassMoments
from faast_sklearn.readout import LinearReadout, discriminant_readout
from faast_sklearn.readout.refinement import held_out_rows, refine
from faast_sklearn.solvers import fast_weights

DIGITS = load_digits(return_X_y=True)
ORDER = np.random.default_rng(0).permutation(len(DIGITS[0]))
X, Y = DIGITS[0][ORDER], DIGITS[1][ORDER]
N = 1200


def log_loss(clf):
    return -clf.predict_log_proba(X[N:])[np.arange(len(X) - N), Y[N:]].mean()


def test_every_fifth_row_of_each_class_is_held_out():
    codes = np.random.default_rng(0).integers(0, 4, 203)
    mask = held_out_rows(codes)
    for k in range(4):
        assert np.flatnonzero(mask[codes == k]).tolist() == list(range(4, (codes == k).sum(), 5))


def test_a_step_is_the_one_that_it_says():
    """Against autograd's gradient of the log-likelihood and matrices formed the long way."""
    rows, codes = X[:400] / 16.0, Y[:400]
    weight = 1.0 + np.arange(400) % 2
    moments = ClassMoments.from_rows(rows, codes, weight)
    start = discriminant_readout(fast_weights(moments, alpha=0.5), moments)
    (_, after), losses = refine(start, moments, 0.5, lambda at: rows[at], codes, weight, 1)
    assert losses == []
    W = torch.tensor(start.coef, requires_grad=True)
    b = torch.tensor(start.intercept, requires_grad=True)
    log_p = torch.log_softmax(torch.tensor(rows) @ W.T + b, dim=1)
    w = torch.tensor(weight)
    (w * log_p[torch.arange(400), torch.tensor(codes)]).sum().backward()
    p = log_p.exp().detach().numpy()
    mean = np.average(rows, axis=0, weights=weight)
    T = ((rows - mean) * weight[:, None]).T @ (rows - mean)
    T += 3 * 0.5 * np.trace(T) / 64 * np.eye(64)
    F = np.diag(weight @ p) / weight.sum() - (p * weight[:, None]).T @ p / weight.sum()
    F += np.trace(F) / 10 * np.eye(10)
    gradient = W.grad.numpy().T - np.outer(mean, b.grad.numpy())
    move = 0.5 * np.linalg.solve(T, gradient) @ np.linalg.inv(F)
    np.testing.assert_allclose(after.coef, start.coef + move.T, atol=1e-9)
    offset = 0.5 * b.grad.numpy() / weight.sum() @ np.linalg.inv(F) - mean @ move
    np.testing.assert_allclose(after.intercept, start.intercept + offset, atol=1e-9)


def test_no_step_is_left_at_the_maximum_of_the_likelihood():
    rng = np.random.default_rng(0)
    rows, codes = rng.standard_normal((300, 2)), rng.integers(0, 3, 300)
    moments = ClassMoments.from_rows(rows, codes)
    readout = discriminant_readout(fast_weights(moments, alpha=1e-6), moments)
    *_, last = refine(readout, moments, 1e-6, lambda at: rows[at], codes, None, 200)[0]
    (_, after), _ = refine(last, moments, 1e-6, lambda at: rows[at], codes, None, 1)
    np.testing.assert_allclose(after.coef, last.coef, atol=1e-6)


def test_held_out_rows_judge_and_do_not_teach():
    rows, codes = X[:500], Y[:500]
    held_out = held_out_rows(codes)
    moments = ClassMoments.from_rows(rows[~held_out], codes[~held_out])
    start = discriminant_readout(fast_weights(moments, alpha=0.1), moments)
    readouts, losses = refine(start, moments, 0.1, lambda at: rows[at], codes, None, 2, held_out)
    assert len(readouts) == len(losses) == 3
    for readout, loss in zip(readouts, losses, strict=True):
        log_p = readout.log_probabilities(readout.scores(rows[held_out]))
        np.testing.assert_allclose(loss, -log_p[np.arange(held_out.sum()), codes[held_out]])
    other = np.where(held_out, (codes + 1) % 10, codes)
    again, _ = refine(start, moments, 0.1, lambda at: rows[at], other, None, 2, held_out)
    np.testing.assert_array_equal(again[-1].coef, readouts[-1].coef)


def test_passes_help_where_there_are_many_examples():
    once = FaastClassifier().fit(X[:N], Y[:N])
    more = FaastClassifier(n_passes=5).fit(X[:N], Y[:N])
    assert 1 < more.n_passes_ <= 5
    assert log_loss(more) < 0.9 * log_loss(once)
    assert more.score(X[N:], Y[N:]) >= once.score(X[N:], Y[N:]) - 0.005
    assert (once.n_passes_, more.moments_.n_rows) == (1, N)


def test_passes_are_refused_by_data_that_they_do_not_help():
    """Rows of pure noise: every step only fits them."""
    rng = np.random.default_rng(0)
    rows, y = rng.standard_normal((900, 40)), np.arange(900) % 3
    clf = FaastClassifier(n_passes=4).fit(rows, y)
    assert clf.n_passes_ == 1
    np.testing.assert_allclose(clf.coef_, FaastClassifier().fit(rows, y).coef_, atol=1e-9)


def test_few_rows_take_no_pass():
    clf = FaastClassifier(n_passes=4).fit(X[:400], Y[:400])
    assert clf.n_passes_ == 1
    np.testing.assert_allclose(clf.coef_, FaastClassifier().fit(X[:400], Y[:400]).coef_, atol=1e-9)
    assert FaastClassifier(n_passes=4).fit(X[:3], np.zeros(3, int)).predict(X[:2]).tolist() == [0, 0]


def test_weights_count_as_copies_in_the_steps():
    n = 1200
    rows, codes = X[:n], Y[:n]
    weight = (np.arange(n) % 3).astype(float)
    copies = np.repeat(np.arange(n), weight.astype(int))
    moments = ClassMoments.from_rows(rows[copies], codes[copies])
    start = discriminant_readout(fast_weights(moments, alpha=1.0), moments)
    (_, a), _ = refine(start, moments, 1.0, lambda at: rows[at], codes, weight, 1)
    (_, b), _ = refine(start, moments, 1.0, lambda at: rows[copies][at], codes[copies], None, 1)
    np.testing.assert_allclose(a.coef, b.coef, atol=1e-9)
    weight = (np.arange(len(X)) % 3).astype(float)
    zero = FaastClassifier(n_passes=3).fit(X, Y, weight)
    assert zero.n_passes_ > 1
    kept = weight > 0
    same = FaastClassifier(n_passes=3).fit(X[kept], Y[kept], weight[kept])
    np.testing.assert_allclose(zero.coef_, same.coef_, atol=1e-9)


def test_passes_go_with_expansion_and_normalisation():
    clf = FaastClassifier(n_passes=3, normalize="auto", expansion="auto").fit(X[:N], Y[:N])
    rows = clf.feature_map_(X[N:])
    np.testing.assert_allclose(clf.decision_function(X[N:]), rows @ clf.coef_.T + clf.intercept_)
    assert clf.score(X[N:], Y[N:]) > 0.96


def test_more_passes_need_all_samples_at_once():
    clf = FaastClassifier(n_passes=2).fit(X[:N], Y[:N])
    for call in (clf.partial_fit, clf.forget):
        with pytest.raises(ValueError, match="n_passes=1"):
            call(X[:5], Y[:5])
    with pytest.raises(ValueError, match="n_passes=1"):
        merge([clf, clf])
    with pytest.raises(InputError, match="read only once"):
        FaastClassifier(n_passes=2).fit(iter([(X, Y)]))
    for bad in ({"n_passes": 0}, {"n_passes": 1.5}, {"n_passes": 2, "solver": "pinv"}):
        with pytest.raises(ValueError, match="n_passes"):
            FaastClassifier(**bad).fit(X, Y)


def test_readouts_keep_their_form():
    readout = LinearReadout(np.eye(2), np.zeros(2))
    moments = ClassMoments.from_rows(np.eye(2).repeat(5, 0), np.arange(2).repeat(5))
    (same,), _ = refine(readout, moments, 1.0, lambda at: np.eye(2).repeat(5, 0)[at], np.arange(2).repeat(5), None, 0)
    assert same is readout
