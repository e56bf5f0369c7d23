"""Solvers: each equals the textbook formula it stands for, on whichever side and by whichever factorisation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from faast_sklearn import FaastClassifier
from faast_sklearn.moments import ClassMoments
from faast_sklearn.moments.scatter import Scatter
from faast_sklearn.solvers import decompose, fast_weights, solve_ridge
from faast_sklearn.solvers.filters import pinv_filter, ridge_filter, solve_cholesky
from faast_sklearn.solvers.gcv import gcv_pinv, gcv_ridge, targets_square
from faast_sklearn.solvers.solve import solve_spectrum
from faast_sklearn.solvers.tridiagonal import ReducedRidge, tridiagonalise

SHAPES = [(12, 40, 3), (39, 40, 3), (40, 40, 3), (41, 40, 3), (300, 10, 2), (300, 10, 5)]


def problem(n, d, c, seed=0, weighted=False):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * rng.uniform(0.3, 3.0, d) + rng.normal(size=d)
    y = rng.permutation(np.arange(n) % c)
    X[np.arange(n), y] += 1.0
    return X, y, rng.uniform(0.1, 3.0, n) if weighted else None


def keys(X, y, w, intercept):
    """Weighted and, with an intercept, centred keys and one-hot values."""
    w = np.ones(len(y)) if w is None else w
    V = np.eye(y.max() + 1)[y]
    if intercept:
        X, V = X - np.average(X, axis=0, weights=w), V - np.average(V, axis=0, weights=w)
    return X * np.sqrt(w)[:, None], V * np.sqrt(w)[:, None]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_is_scikit_learns(shape, alpha, weighted, intercept):
    X, y, w = problem(*shape, weighted=weighted)
    solution = fast_weights(ClassMoments.from_rows(X, y, w), alpha=alpha, intercept=intercept)
    K, _ = keys(X, y, w, intercept)
    penalty = alpha * np.square(K).sum() / K.shape[1]
    peer = Ridge(penalty, fit_intercept=intercept, solver="svd").fit(X, np.eye(shape[2])[y], sample_weight=w)
    np.testing.assert_allclose(solution.weights.T, peer.coef_, rtol=0, atol=1e-9 * np.abs(peer.coef_).max())
    assert solution.alpha == alpha


@pytest.mark.parametrize("alpha", [1e-2, 10.0])
@pytest.mark.parametrize("shape", SHAPES[2:])
def test_cholesky_and_eigendecomposition_agree(shape, alpha):
    X, y, _ = problem(*shape)
    moments = ClassMoments.from_rows(X, y)
    cross = moments.class_sums().T
    by_cholesky = solve_cholesky(moments.scatter, cross, alpha)
    by_eigh = solve_ridge(decompose(moments.scatter), cross, alpha)
    assert (by_cholesky.method, by_eigh.method) == ("cholesky", "eigh")
    np.testing.assert_allclose(by_cholesky.weights, by_eigh.weights, rtol=0, atol=1e-11)
    assert by_cholesky.df == pytest.approx(by_eigh.df, rel=1e-9)
    K, _ = keys(X, y, None, True)
    hat = K @ np.linalg.solve(K.T @ K + alpha * np.square(K).sum() / K.shape[1] * np.eye(K.shape[1]), K.T)
    assert by_eigh.df == pytest.approx(np.trace(hat), rel=1e-9)


def test_which_factorisation_was_used_is_told():
    X, y, _ = problem(100, 8, 3)
    assert FaastClassifier(alpha=0.1).fit(X, y).solver_ == "cholesky"
    assert FaastClassifier(alpha="auto").fit(X, y).solver_ == "eigh"
    wide = np.random.default_rng(0).normal(size=(2100, 128))
    assert FaastClassifier(alpha="auto").fit(wide, y[np.arange(2100) % 100]).solver_ == "tridiagonal"
    assert FaastClassifier(alpha=0.1).fit(X[:6], y[:6]).solver_ == "eigh"
    singular = np.repeat(X, 2, axis=1)
    tiny = FaastClassifier(alpha=1e-14).fit(singular, y)
    assert tiny.solver_ == "eigh"
    assert np.isfinite(tiny.coef_).all()


def by_eigenvectors(moments, alpha, intercept):
    """The solution that a full eigendecomposition gives."""
    scatter = moments.scatter if intercept else moments.scatter.about_origin()
    sizes = {"n_samples": moments.n_samples, "n_rows": moments.n_rows}
    cross = moments.class_sums(centred=intercept).T
    return solve_spectrum(decompose(scatter), cross, moments.counts, alpha=alpha, intercept=intercept, **sizes)


@pytest.mark.parametrize("factor", [1e-150, 1.0, 1e140])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("c", [2, 40])
@pytest.mark.parametrize("shape", [(2500, 150), (200, 500)])
def test_tridiagonal_form_and_eigenvectors_agree(shape, c, intercept, weighted, factor):
    X, y, w = problem(*shape, c, weighted=weighted)
    X *= np.logspace(0, -2, shape[1]) * factor
    moments = ClassMoments.from_rows(X, y, w)
    reduced, eigen = fast_weights(moments, intercept=intercept), by_eigenvectors(moments, "auto", intercept)
    assert (reduced.method, eigen.method) == ("tridiagonal", "eigh")
    assert reduced.alpha == eigen.alpha
    scale = float(eigen.weights.abs().max())
    np.testing.assert_allclose(reduced.weights, eigen.weights, rtol=0, atol=1e-10 * scale)
    assert (reduced.df, reduced.condition) == pytest.approx((eigen.df, eigen.condition), rel=1e-9)
    moments.keep()
    for alpha in (1e-9, 1e-3, 1.0):  # one reduction serves all strengths
        kept, eigen = fast_weights(moments, alpha=alpha), by_eigenvectors(moments, alpha, True)
        # The rows' side divides by the penalty, which must not be tiny.
        assert kept.method == ("eigh" if shape[0] < shape[1] and alpha < 1e-6 else "tridiagonal")
        scale = float(eigen.weights.abs().max())
        np.testing.assert_allclose(kept.weights, eigen.weights, rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("copies", [1, 20])
def test_tridiagonal_form_chooses_the_strength_of_the_whole_path(copies, noise):
    X, y, _ = problem(150 * copies if copies > 1 else 2200, 150, 5)
    if copies > 1:  # rows that were learnt twenty times count once
        X, y = np.tile(X[:150], (copies, 1)), np.tile(y[:150], copies)
    X += noise * np.random.default_rng(1).normal(size=(150, 150))[np.arange(len(X)) % 150]
    moments = ClassMoments.from_rows(X, y)
    intercept = copies == 1  # with one, 150 rows have 149 dimensions
    solution = fast_weights(moments, intercept=intercept)
    assert solution.method == "tridiagonal"
    assert solution.alpha == by_eigenvectors(moments, "auto", intercept).alpha


@pytest.mark.parametrize("intercept", [True, False])
def test_a_matrix_of_fewer_rows_than_features_is_reduced_as_it_is(intercept):
    X, y, _ = problem(300, 320, 4)
    moments = ClassMoments.from_rows(X, y) - ClassMoments.from_rows(X[:80], y[:80])  # a matrix, no longer rows
    assert not moments.scatter.is_small
    solution, eigen = fast_weights(moments, intercept=intercept), by_eigenvectors(moments, "auto", intercept)
    assert (solution.method, solution.alpha) == ("tridiagonal", eigen.alpha)
    np.testing.assert_allclose(solution.weights, eigen.weights, rtol=0, atol=1e-9 * float(eigen.weights.abs().max()))
    assert (solution.df, solution.condition) == pytest.approx((eigen.df, eigen.condition), rel=1e-7)


def test_eigenvectors_are_used_where_copies_or_rounding_decide():
    X, y, _ = problem(2500, 150, 3)
    X[:, 7] = X[:, 8]
    moments = ClassMoments.from_rows(X, y)
    assert fast_weights(moments).method == "eigh"
    assert fast_weights(moments, solver="pinv").method == "eigh"
    assert fast_weights(moments, alpha=0.0).method == "eigh"
    X, y, _ = problem(140, 400, 3)
    copies = ClassMoments.from_rows(np.tile(X, (2, 1)), np.tile(y, 2))
    assert fast_weights(copies).method == "eigh"
    assert fast_weights(ClassMoments.from_rows(X, y)).method == "tridiagonal"


@pytest.mark.parametrize("shape", [(2500, 150), (200, 500)])
def test_tridiagonal_solves_equal_a_solve_with_the_matrix(shape):
    X, y, _ = problem(*shape, 3)
    moments, d = ClassMoments.from_rows(X, y), shape[1]
    cross, alpha = moments.class_sums().T, 0.3
    penalty = alpha * moments.scatter.trace() / d
    expected = torch.linalg.solve(moments.scatter.matrix() + penalty * torch.eye(d, dtype=torch.float64), cross)
    ridge = ReducedRidge(tridiagonalise(moments.scatter), cross)
    np.testing.assert_allclose(ridge.solution(alpha).weights, expected, rtol=0, atol=1e-12)
    explained, shrinkage = ridge.sums(penalty)
    assert explained == pytest.approx(float((cross * expected).sum()), rel=1e-10)
    assert shrinkage == pytest.approx(penalty * float(expected.square().sum()), rel=1e-10)
    K, V = keys(X, y, None, True)
    rss = targets_square(moments.counts, True) - explained - shrinkage
    assert rss == pytest.approx(np.square(V - K @ expected.numpy()).sum(), rel=1e-9)


def test_cholesky_declines_a_singular_matrix():
    rows = torch.ones(5, 4, dtype=torch.float64)
    scatter = Scatter(5.0, torch.zeros(4, dtype=torch.float64), rows.T @ rows)
    assert solve_cholesky(scatter, rows.T @ rows[:, :1], 0.0) is None
    assert solve_cholesky(scatter, rows.T @ rows[:, :1], 1e-16) is None
    assert solve_cholesky(scatter, rows.T @ rows[:, :1], 1e-3) is not None


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_penalty_is_least_squares_of_least_norm(shape, intercept):
    X, y, w = problem(*shape, weighted=True)
    K, V = keys(X, y, w, intercept)
    expected = np.linalg.pinv(K, rcond=1e-7) @ V
    weights = fast_weights(ClassMoments.from_rows(X, y, w), alpha=0.0, intercept=intercept).weights
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(20, 60), (59, 60), (61, 60)])
def test_either_side_gives_one_spectrum(shape):
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(size=shape))
    small = Scatter(float(len(rows)), torch.zeros(60, dtype=torch.float64), None, (rows,))
    large = Scatter(float(len(rows)), torch.zeros(60, dtype=torch.float64), rows.T @ rows)
    a, b = decompose(small), decompose(large)
    assert small.is_small == (shape[0] < 60)
    assert not large.is_small
    assert len(a.values) == len(b.values) == min(shape)
    np.testing.assert_allclose(a.values, b.values, rtol=1e-9)
    np.testing.assert_allclose(a.vectors.T @ a.vectors, np.eye(min(shape)), atol=1e-10)
    projector = a.vectors @ a.vectors.T
    np.testing.assert_allclose(projector, b.vectors @ b.vectors.T, atol=1e-9)
    assert a.mean_value == pytest.approx(float(rows.square().sum()) / 60)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", [*SHAPES, (2500, 30, 4)])
def test_the_papers_setting_is_the_truncated_pseudo_inverse(shape, dtype):
    X, y, _ = problem(*shape)
    X = X.astype(dtype)
    n = len(X)
    K = torch.nn.functional.normalize(torch.from_numpy(X).double(), dim=1)
    V = torch.eye(shape[2], dtype=torch.float64)[y]
    W = (torch.linalg.pinv(K, rtol=n**-0.8) @ V).numpy()
    clf = FaastClassifier(solver="pinv", alpha=0.8, normalize=True, fit_intercept=False).fit(X, y)
    expected = W.T if shape[2] > 2 else (W[:, 1] - W[:, 0])[None]
    assert np.abs(clf.coef_ - expected).max() <= 1e-8 * np.abs(expected).max()
    assert np.abs(clf.intercept_).max() == 0.0
    assert np.array_equal(clf.predict(X), (K.numpy() @ W).argmax(1))


@pytest.mark.parametrize("solver", ["ridge", "pinv"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", [(25, 40, 3), (41, 40, 3), (300, 10, 3)])
def test_generalised_cross_validation_is_the_one_with_the_hat_matrix(shape, intercept, solver):
    X, y, _ = problem(*shape)
    n, d = X.shape
    K, V = keys(X, y, None, intercept)
    left, sigma, _ = np.linalg.svd(K, full_matrices=False)
    kept = sigma > 1e-8 * sigma[0]
    left, sigma = left[:, kept], sigma[kept]
    alphas = np.logspace(-4, 2, 13) if solver == "ridge" else np.linspace(0.1, 1.5, 13)
    expected = []
    for alpha in alphas:
        if solver == "ridge":
            shrink = sigma**2 / (sigma**2 + alpha * np.square(K).sum() / d)
        else:
            shrink = (sigma > sigma[0] * n**-alpha).astype(float)
        residual = V - (left * shrink) @ (left.T @ V)
        room = 1 - (shrink.sum() + intercept) / n
        # Close to interpolation the criterion is not to be trusted, so such candidates are refused.
        expected.append(np.square(residual).sum() / n / room**2 if shrink.sum() <= 0.6 * n else np.inf)
    moments = ClassMoments.from_rows(X, y)
    scatter = moments.scatter if intercept else moments.scatter.about_origin()
    choose = gcv_ridge if solver == "ridge" else gcv_pinv
    total = np.square(V).sum()
    cross = moments.class_sums(centred=intercept).T
    best, scores = choose(decompose(scatter), cross, total, n, intercept=intercept, alphas=alphas)
    finite = np.isfinite(expected)
    assert np.array_equal(np.isfinite(scores), finite)
    np.testing.assert_allclose(scores[finite], np.array(expected)[finite], rtol=1e-7)
    assert best in alphas
    assert min(expected) == pytest.approx(expected[list(alphas).index(best)], rel=1e-8)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(1, 30), st.floats(1e-8, 1e8))
def test_automatic_strength_does_not_depend_on_the_scale_of_features(seed, n, d, factor):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(n, d)), np.r_[0, 1, rng.integers(0, 3, n - 2)]
    a, b = (fast_weights(ClassMoments.from_rows(rows, y)) for rows in (X, X * factor))
    assert b.alpha == pytest.approx(a.alpha, rel=1e-12)
    np.testing.assert_allclose(b.weights * factor, a.weights, rtol=1e-6, atol=1e-9)


def test_filters_shrink_and_truncate():
    values = torch.tensor([1e-6, 0.25, 1.0, 4.0], dtype=torch.float64)
    assert torch.all(ridge_filter(values, 0.5) * values < 1)
    assert torch.equal(pinv_filter(values, 0.25) > 0, torch.tensor([False, False, True, True]))
    assert torch.equal(pinv_filter(values, 0.0), 1 / values)
    many = ridge_filter(values, torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert torch.equal(many[1], ridge_filter(values, 1.0))


def test_nothing_to_learn_from_is_solved_by_zero():
    for X in (np.ones((4, 3)), np.zeros((4, 3)), np.ones((1, 3))):
        moments = ClassMoments.from_rows(X, np.arange(len(X)) % 2)
        for solver in ("ridge", "pinv"):
            for alpha in ("auto", 0.0, 1.0):
                assert torch.equal(
                    fast_weights(moments, solver=solver, alpha=alpha).weights.abs().sum(), torch.tensor(0.0).double()
                )
