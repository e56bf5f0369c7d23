"""Moments: the same whatever the order and the split of the rows, to the last few digits, and never changed."""

import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faast_sklearn import FaastClassifier
from faast_sklearn.backbones.device import available_devices
from faast_sklearn.moments import class_moments, scatter
from faast_sklearn.moments.class_moments import _BLOCK_ROWS, ClassMoments
from faast_sklearn.moments.scatter import PENDING_ROWS, Scatter

quick = settings(derandomize=True, deadline=None, max_examples=40)
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def features(rng, n, d, condition=1.0, mean=0.0):
    """Rows whose population covariance has a square root of the given condition number."""
    left, right = (np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(2))
    return rng.normal(size=(n, d)) @ (left * np.geomspace(1.0, 1.0 / condition, d)) @ right + mean


def pieces(rng, n, n_pieces):
    """Cut a random order of n rows at random places."""
    return np.split(rng.permutation(n), np.sort(rng.integers(0, n + 1, n_pieces - 1)))


def learnt(X, y, w=None, parts=None):
    if parts is None:
        return ClassMoments.from_rows(X, y, w)
    total = ClassMoments.empty(X.shape[1])
    for part in parts:
        total = total + ClassMoments.from_rows(X[part], y[part], None if w is None else w[part])
    return total


def assert_same(a, b, rtol=1e-11, beside=None):
    """Compare up to rounding, which is relative to the largest statistics that took part (``beside`` included)."""
    assert np.array_equal(a.classes, b.classes)
    assert np.array_equal(a.rows, b.rows)
    np.testing.assert_allclose(a.mean_weights, b.mean_weights, rtol=1e-12)
    np.testing.assert_allclose(a.counts, b.counts, rtol=1e-12)
    largest = [m for m in (a, beside) if m is not None]
    spread = max(m.scatter.trace() + m.weight * 1e-4 * np.square(m.mean).max() for m in largest)
    reach = max(np.abs(m.means).max(initial=1e-9) for m in largest)
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=rtol * reach)
    np.testing.assert_allclose(a.means, b.means, rtol=0, atol=rtol * reach)
    np.testing.assert_allclose(a.scatter.matrix(), b.scatter.matrix(), rtol=0, atol=rtol * spread)


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d, c = draw(st.integers(2, 80)), draw(st.integers(1, 24)), draw(st.integers(1, 5))
    X = features(rng, n, d, 10.0 ** draw(st.integers(0, 4)), draw(st.sampled_from([0.0, 1.0, 30.0])))
    X = torch.from_numpy(X).to(DTYPES[draw(st.sampled_from(sorted(DTYPES)))])
    w = draw(st.sampled_from(["none", "whole", "real"]))
    w = {"none": None, "whole": rng.integers(0, 4, n).astype(float), "real": rng.gamma(1.0, size=n)}[w]
    if w is not None:
        w[0] = 1.0
    return X, rng.integers(0, c, n), w, pieces(rng, n, draw(st.integers(1, 12)))


@quick
@given(problems())
def test_any_split_and_order_gives_the_same_moments(problem):
    X, y, w, parts = problem
    assert_same(learnt(X, y, w), learnt(X, y, w, parts))


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float64", 1e-9), ("float32", 1e-6), ("float16", 1e-6), ("bfloat16", 1e-6)]
)
@pytest.mark.parametrize(
    "options", [{}, {"alpha": 1e-4}, {"normalize": True}, {"fit_intercept": False}, {"solver": "pinv", "alpha": 0.8}]
)
@settings(derandomize=True, deadline=None, max_examples=12)
@given(data=st.data())
def test_any_split_and_order_gives_the_same_coefficients(dtype, bound, options, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n, d, c = data.draw(st.sampled_from([(9, 30, 3), (40, 40, 4), (300, 20, 2), (300, 20, 5)]))
    # Without an intercept the mean is one more direction, whose size would raise the condition number.
    mean = data.draw(st.sampled_from([0.0, 10.0])) if options.get("fit_intercept", True) else 0.0
    X = features(rng, n, d, 10.0 ** data.draw(st.integers(0, 4)), mean)
    score = X @ rng.normal(size=d)
    y = np.argsort(np.argsort(score + score.std() * rng.normal(size=n))) * c // n
    X = torch.from_numpy(X).to(DTYPES[dtype])
    w = data.draw(st.sampled_from([None, rng.uniform(0.1, 3.0, n)]))
    whole, pieced = FaastClassifier(**options).fit(X, y, w), FaastClassifier(**options)
    for part in pieces(rng, n, data.draw(st.integers(2, 30))):
        if len(part):
            pieced.partial_fit(X[part], y[part], sample_weight=None if w is None else w[part])
    assert np.linalg.norm(pieced.coef_ - whole.coef_) <= bound * np.linalg.norm(whole.coef_)
    assert np.abs(pieced.intercept_ - whole.intercept_).max() <= bound * (
        np.abs(whole.intercept_).max() + np.abs(whole.coef_).sum(1).max() * float(X.abs().max())
    )


@quick
@given(problems())
def test_adding_and_taking_away_form_a_group(problem):
    X, y, w, _ = problem
    a, b = learnt(X, y, w), learnt(X, y + 2, w)
    rng = np.random.default_rng(0)
    c = ClassMoments.from_rows(features(rng, 7, X.shape[1]), rng.integers(0, 9, 7))
    assert_same(a + b, b + a)
    assert_same((a + b) + c, a + (b + c))
    assert_same((a + b) - b, a, rtol=1e-9, beside=b)
    assert_same((a + c) - c, a, rtol=1e-9, beside=c)
    empty = ClassMoments.empty(X.shape[1])
    assert_same(a + empty, a)
    assert_same(empty + a, a)
    assert_same(a - empty, a)
    nothing = a - a
    assert nothing.n_rows == 0
    assert nothing.weight == 0
    assert len(nothing.classes) == 0
    assert_same(nothing + b, b)


@quick
@given(problems())
def test_weight_two_is_twice_and_weight_zero_is_absent(problem):
    X, y, _, _ = problem
    w = np.random.default_rng(1).integers(0, 4, len(y))
    w[0] = 2
    repeated = np.repeat(np.arange(len(y)), w)
    weighted, copied = learnt(X, y, w), learnt(X[repeated], y[repeated])
    assert weighted.n_rows == np.count_nonzero(w)
    assert copied.n_rows == w.sum()
    np.testing.assert_allclose(weighted.counts, copied.counts)
    np.testing.assert_allclose(weighted.means, copied.means, rtol=1e-10, atol=1e-10)
    assert weighted.scatter.trace() == pytest.approx(copied.scatter.trace(), rel=1e-10, abs=1e-12)
    np.testing.assert_allclose(
        weighted.scatter.matrix(), copied.scatter.matrix(), atol=1e-11 * (1e-3 + copied.scatter.trace())
    )
    assert_same(weighted, learnt(X[w > 0], y[w > 0], w[w > 0]))
    np.testing.assert_allclose((weighted + weighted).scatter.matrix(), weighted.scale(2.0).scatter.matrix(), atol=1e-9)


def test_a_new_class_is_a_new_row_and_leaves_the_others_bit_for_bit():
    rng = np.random.default_rng(0)
    a = ClassMoments.from_rows(rng.normal(size=(20, 3)), np.array(["b", "d"] * 10))
    grown = a + ClassMoments.from_rows(rng.normal(size=(5, 3)), np.array(["c"] * 5))
    assert grown.classes.tolist() == ["b", "c", "d"]
    assert np.array_equal(grown.means[[0, 2]], a.means)
    assert np.array_equal(grown.class_sums(centred=False)[[0, 2]], a.class_sums(centred=False))
    wide = grown + ClassMoments.from_rows(rng.normal(size=(1, 3)), np.array(["a much longer label"]))
    assert "a much longer label" in wide.classes


def snapshot(moments):
    scatter = moments.scatter
    arrays = [
        moments.classes,
        moments.counts,
        moments.rows,
        moments.mean_weights,
        moments.means,
        moments.mean,
        scatter.matrix().numpy(),
    ]
    return [a.copy() for a in arrays] + [f.numpy().copy() for f in scatter._factors]


@pytest.mark.parametrize("n", [5, 3000])
def test_operations_leave_their_operands_alone(n):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(n, 4)), np.arange(n) % 3
    kept = X.copy(), y.copy()
    a, b = ClassMoments.from_rows(X, y), ClassMoments.from_rows(X[: n // 2] + 1, y[: n // 2] + 1)
    before = snapshot(a), snapshot(b)
    _ = (a + b, b + a, (a + b) - b, a.scale(3.0), a.to("cpu"), a.reindexed(np.arange(5)), a.class_sums())
    _ = (a.scatter.about_origin(), a.scatter.variances(), a.scatter.quadratic(torch.ones(4, 2, dtype=torch.float64)))
    a.scatter.matrix().zero_()
    X += 100.0
    for moments, old in zip((a, b), before, strict=True):
        for now, then in zip(snapshot(moments), old, strict=True):
            assert np.array_equal(now, then)
    X -= 100.0
    assert np.allclose(X, kept[0])
    assert np.array_equal(y, kept[1])


@pytest.mark.parametrize("n", [300, PENDING_ROWS + 50])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unit_spread_about_a_mean_of_ten_thousand_loses_no_digits(n, dtype):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(n, 3)) + 1e4).astype(dtype)
    moments = learnt(torch.from_numpy(X), np.arange(n) % 2, None, pieces(rng, n, 7))
    rows = [[Fraction(float(v)) for v in row] for row in X]
    mean = [sum(column) / n for column in zip(*rows, strict=True)]
    exact = np.array(
        [[float(sum((r[i] - mean[i]) * (r[j] - mean[j]) for r in rows)) for j in range(3)] for i in range(3)]
    )
    # Means carry a relative 1e-16 of 1e4, so the scatter is known to about 1e-12 of its trace.
    assert np.abs(moments.scatter.matrix().numpy() - exact).max() <= 1e-12 * np.trace(exact)
    assert np.abs(moments.mean - np.array([float(m) for m in mean])).max() <= 1e-11


def test_products_of_narrow_floats_are_not_rounded():
    rng = np.random.default_rng(0)
    for name, dtype in DTYPES.items():
        X = torch.from_numpy(rng.normal(size=(500, 6))).to(dtype)
        centred = X.double().numpy().astype(np.longdouble)
        centred = centred - centred.mean(0)
        T = ClassMoments.from_rows(X, np.zeros(500, int)).scatter.matrix().numpy()
        assert np.abs(T - centred.T @ centred).max() <= 1e-13 * np.trace(T), name


@pytest.mark.parametrize(("n", "d"), [(30, 50), (200, 8), (PENDING_ROWS + 1, 8), (2 * _BLOCK_ROWS + 17, 8)])
def test_factors_and_squares_are_the_same_scatter(n, d):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(n, d)).astype(np.float32), np.arange(n) % 4
    whole = ClassMoments.from_rows(X, y)
    assert whole.scatter.is_small == (n <= d)
    centred = X.astype(np.float64) - X.astype(np.float64).mean(0)
    expected = centred.T @ centred
    np.testing.assert_allclose(whole.scatter.matrix(), expected, atol=1e-12 * np.trace(expected))
    np.testing.assert_allclose(whole.scatter.variances(), np.diag(expected), rtol=1e-10)
    W = rng.normal(size=(d, 3))
    np.testing.assert_allclose(whole.scatter.quadratic(torch.from_numpy(W)), W.T @ expected @ W, rtol=1e-9, atol=1e-7)
    uncentred = X.astype(np.float64).T @ X.astype(np.float64)
    np.testing.assert_allclose(whole.scatter.about_origin().matrix(), uncentred, atol=1e-12 * np.trace(uncentred))
    assert_same(whole, learnt(X, y, None, np.array_split(np.arange(n), 3)))


@pytest.mark.parametrize("rows_each", [1, 50])
def test_many_tiny_updates_keep_a_bounded_buffer(rows_each, monkeypatch):
    most = 300  # what is true of 2,048 rows is true of fewer
    for module in (scatter, class_moments):
        monkeypatch.setattr(module, "PENDING_ROWS", most)
    rng = np.random.default_rng(0)
    n, d = most + 100, 6
    X, y = rng.normal(size=(n, d)) + 5.0, rng.integers(0, 3, n)
    parts = [np.arange(i, min(i + rows_each, n)) for i in range(0, n, rows_each)]
    total = ClassMoments.empty(d)
    for part in parts:
        total = total + ClassMoments.from_rows(X[part], y[part])
        assert sum(map(len, total.scatter._factors)) <= most + rows_each + 1
    assert total.scatter._dense is not None
    assert_same(total, ClassMoments.from_rows(X, y))


@pytest.mark.parametrize("n", [12, 5000])
def test_pickling_keeps_every_bit(n):
    rng = np.random.default_rng(0)
    a = ClassMoments.from_rows(rng.normal(size=(n, 5)), np.arange(n) % 3)
    for now, then in zip(snapshot(pickle.loads(pickle.dumps(a))), snapshot(a), strict=True):
        assert np.array_equal(now, then)
    assert_same(pickle.loads(pickle.dumps(a)) + a, a + a)


@pytest.mark.parametrize("n", [10, 5000])
def test_memory_layout_does_not_matter(n):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(n, 4)), np.arange(n) % 2
    expected = ClassMoments.from_rows(X, y)
    frozen = X.copy()
    frozen.flags.writeable = False
    wide = np.zeros((n, 8))
    wide[:, ::2] = X
    views = [frozen, np.asfortranarray(X), X[::-1][::-1], wide[:, ::2], X.byteswap().view(X.dtype.newbyteorder())]
    for view in views:
        assert_same(ClassMoments.from_rows(view, y), expected)
    assert_same(ClassMoments.from_rows(X[::-1], y[::-1]), expected)
    assert_same(ClassMoments.from_rows(torch.from_numpy(X).T.contiguous().T, y), expected)


def test_weight_that_is_left_of_a_row_stays():
    X, y = np.random.default_rng(0).normal(size=(6, 2)), np.array([0, 0, 1, 1, 2, 2])
    left = ClassMoments.from_rows(X, y, np.full(6, 2.0)) - ClassMoments.from_rows(X[:2], y[:2])
    expected = ClassMoments.from_rows(X, y, np.array([1.0, 1, 2, 2, 2, 2]))
    np.testing.assert_allclose(left.counts, expected.counts)
    np.testing.assert_allclose(left.means, expected.means)
    np.testing.assert_allclose(left.scatter.matrix(), expected.scatter.matrix(), atol=1e-12)
    assert left.weight == expected.weight
    assert left.rows.tolist() == [2, 2, 2]
    np.testing.assert_allclose(left.mean_weights, expected.mean_weights)


def test_statistics_of_other_kinds_do_not_add():
    a = ClassMoments.from_rows(np.eye(2), np.array([0, 1]))
    for operation in (lambda: a + 1, lambda: a - 1, lambda: a.scatter + a, lambda: a.scatter - 1):
        with pytest.raises(TypeError):
            operation()
    assert isinstance(a.scatter, Scatter)


@pytest.mark.parametrize("device", [d for d in available_devices() if d in ("cuda", "xpu")] or ["none"])
def test_moments_on_a_device_are_those_of_the_host(device):
    if device == "none":
        pytest.skip("no accelerator with float64")
    rng = np.random.default_rng(0)
    for n in (20, 5000):
        X, y, w = rng.normal(size=(n, 30)) + 3, rng.integers(0, 4, n), rng.uniform(size=n)
        there = ClassMoments.from_rows(torch.from_numpy(X).to(device), y, w)
        assert there.scatter.device.type == device
        assert_same(there.to("cpu"), ClassMoments.from_rows(X, y, w))
        assert_same((there + ClassMoments.from_rows(X, y, w)).to("cpu"), learnt(np.r_[X, X], np.r_[y, y], np.r_[w, w]))
