"""Numbers: finite and right on data that are hard on arithmetic, repeatable, and with a warning where they are not."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from faast_sklearn import BackboneFeatures, FaastClassifier, FaastSeq2Seq, backbone
from faast_sklearn.errors import ConditionWarning, NonFiniteError
from faast_sklearn.moments import ClassMoments
from faast_sklearn.solvers import fast_weights
from faast_sklearn.solvers.condition import condition_estimate, regular_factor, safe_condition, score_error

SHAPES = {"tall": (60, 8), "wide": (12, 20)}
ALPHAS = ("auto", 0.0, 1e-12, 1.0, 1e6)
SETTINGS = [
    {"solver": solver, "alpha": alpha, "fit_intercept": intercept, "normalize": normalize}
    for solver in ("ridge", "pinv")
    for alpha in ALPHAS
    for intercept in (True, False)
    for normalize in (False, True)
]


def blobs(n, d, c=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % c)
    X = rng.normal(size=(n, d))
    X[np.arange(n), y % d] += 6.0
    return X, y


def _replace(X, column, values):
    X = X.copy()
    X[:, column] = values
    return X


def _with_huge_row(X):
    X = X.copy()
    X[0] *= 1e140
    return X


# From rows X of shape (n, d) and labels y to what is hard on arithmetic.
NASTY = {
    "columns over 16 decades": lambda X, y: (X * np.logspace(-8, 8, X.shape[1]), y),
    "Hilbert matrix": lambda X, y: (X @ (1 / (1.0 + np.add.outer(*[np.arange(X.shape[1])] * 2))), y),
    "duplicate columns": lambda X, y: (np.tile(X[:, : X.shape[1] // 2], (1, 2)), y),
    "linear combination": lambda X, y: (_replace(X, -1, X[:, 0] - 2 * X[:, 1]), y),
    "all constant": lambda X, y: (np.full_like(X, 3.7), y),
    "all zero": lambda X, y: (np.zeros_like(X), y),
    "one constant column": lambda X, y: (_replace(X, 2, 1e6), y),
    "one row again and again": lambda X, y: (np.tile(X[:1], (len(X), 1)), y),
    "rows twice, another label each": lambda X, y: (np.repeat(X[: len(X) // 2], 2, axis=0), np.arange(len(X)) % 2),
    "huge": lambda X, y: (X * 1e140, y),
    "tiny": lambda X, y: (X * 1e-140, y),
    "squares vanish": lambda X, y: (X * 1e-160, y),
    "subnormal": lambda X, y: (X * 1e-310, y),
    "huge and tiny columns": lambda X, y: (X * np.where(np.arange(X.shape[1]) % 2, 1e140, 1e-140), y),
    "one huge row": lambda X, y: (_with_huge_row(X), y),
    "float16 extremes": lambda X, y: (np.where(X > 4, 65504, np.where(X < 0, 6e-8, X)).astype(np.float16), y),
    "uint8": lambda X, y: (np.clip(X * 20, 0, 255).astype(np.uint8), y),
    "int64": lambda X, y: ((X * 1e15).astype(np.int64), y),
    "bool": lambda X, y: (X > 1, y),
    "rows of zeros": lambda X, y: (X * (np.arange(len(X)) % 2)[:, None], y),
    "far from zero": lambda X, y: (X + 1e8, y),
    "one row per class": lambda X, y: (X[:8], np.arange(8)),
    "one class": lambda X, y: (X, np.zeros(len(X), int)),
    "one row": lambda X, y: (X[:1], y[:1]),
    "a class of one row": lambda X, y: (X, np.r_[1, np.zeros(len(X) - 1, int)]),
}
WEIGHTS = {
    "12 decades": lambda n: np.logspace(-6, 6, n),
    "300 decades": lambda n: np.logspace(-150, 150, n),
    "all 1e-300": lambda n: np.full(n, 1e-300),
    "all 1e290": lambda n: np.full(n, 1e290),
    "subnormal": lambda n: np.full(n, 1e-310),
}


def check_all_outputs(X, y, weight=None, **settings):
    """Fit and look at every output; returns the classifier. What is ill-conditioned may say so, nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)
        clf = FaastClassifier(**settings).fit(X, y, sample_weight=weight)
        P, log_P, scores = clf.predict_proba(X), clf.predict_log_proba(X), clf.decision_function(X)
        for what in (P, log_P, scores, clf.coef_, clf.intercept_, clf.condition_):
            assert np.isfinite(what).all(), settings
        assert clf.condition_ >= 1
        np.testing.assert_allclose(P.sum(1), 1.0, atol=1e-12)
        # The same class but for ties: scores of no temperature may differ by less than their probabilities can tell.
        chosen = P[np.arange(len(P)), np.searchsorted(clf.classes_, clf.predict(X))]
        np.testing.assert_allclose(chosen, P.max(1), rtol=1e-12)
        if len(clf.classes_) > 1:
            novelty = clf.novelty_score(X)
            assert ((novelty > -1e-9) & (novelty < 2 + 1e-9)).all(), settings
    return clf


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NASTY)
def test_every_output_is_finite_on_hard_data(name, shape):
    X, y = NASTY[name](*blobs(*SHAPES[shape]))
    for settings in SETTINGS[list(NASTY).index(name) % 8 :: 8]:
        check_all_outputs(X, y, **settings)
    check_all_outputs(X, y, WEIGHTS["12 decades"](len(y)) if "1e140" not in name else None)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NASTY)
def test_every_output_is_finite_on_hard_data_at_all_other_settings(name, shape):
    X, y = NASTY[name](*blobs(*SHAPES[shape]))
    for i, settings in enumerate(SETTINGS):
        if (i - list(NASTY).index(name)) % 8 in (3, 5):  # each setting on two or three kinds of data, beside the above
            check_all_outputs(X, y, WEIGHTS["12 decades"](len(y)) if i % 2 else None, **settings)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_every_output_is_finite_for_weights_of_any_size(name, shape):
    X, y = blobs(*SHAPES[shape])
    for settings in SETTINGS[::7]:
        check_all_outputs(X, y, WEIGHTS[name](len(y)), **settings)


@pytest.mark.parametrize("factor", [1e-300, 1e-100, 1e-12, 1e12, 1e100, 1e290])
def test_only_the_ratios_of_weights_tell(factor):
    X, y = blobs(60, 8)
    weight = np.random.default_rng(1).uniform(0.5, 2.0, 60)
    for settings in ({"alpha": 0.1}, {"alpha": 0.1, "fit_intercept": False}, {"solver": "pinv", "alpha": 100.0}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConditionWarning)
            plain, other = (FaastClassifier(**settings).fit(X, y, w) for w in (weight, weight * factor))
            assert np.array_equal(plain.predict(X), other.predict(X))
            np.testing.assert_allclose(other.predict_proba(X), plain.predict_proba(X), rtol=0, atol=1e-9)


def test_weights_that_sum_to_one_leave_the_pseudo_inverse_its_rank():
    X, y = blobs(60, 8)
    plain = FaastClassifier(solver="pinv", alpha=0.8).fit(X, y)
    normalised = FaastClassifier(solver="pinv", alpha=0.8).fit(X, y, np.full(60, 1 / 60))
    np.testing.assert_allclose(normalised.coef_, plain.coef_, atol=1e-12)
    np.testing.assert_allclose(normalised.predict_proba(X), plain.predict_proba(X), atol=1e-9)


@pytest.mark.parametrize(
    "settings", [{}, {"alpha": 1e-3}, {"fit_intercept": False}, {"solver": "pinv"}, {"alpha": 0.0}]
)
@pytest.mark.parametrize("factor", [1e-140, 1e-100, 2.0**-300, 2.0**300, 1e100, 1e140])
def test_predictions_do_not_depend_on_the_unit_of_features(factor, settings):
    for shape in SHAPES.values():
        X, y = blobs(*shape)
        plain, other = (FaastClassifier(**settings).fit(X * c, y) for c in (1.0, factor))
        assert other.alpha_ == plain.alpha_
        assert other.condition_ == pytest.approx(plain.condition_, rel=1e-9)
        np.testing.assert_allclose(other.predict_proba(X * factor), plain.predict_proba(X), atol=1e-9)
        np.testing.assert_allclose(other.novelty_score(X * factor), plain.novelty_score(X), atol=1e-6)
        assert (other.predict(X * factor) == y).mean() >= 0.95


@pytest.mark.parametrize("mean", [1e4, 1e6, 1e8])
def test_predictions_do_not_depend_on_where_zero_is(mean):
    # The input itself is rounded to mean · 2**-53, so a tolerance in those units, a hundredfold.
    X, y = blobs(200, 6)
    for settings in ({"alpha": 0.1}, {"alpha": 1e-6}, {"solver": "pinv", "alpha": 1.0}):
        plain, moved = (FaastClassifier(**settings).fit(X + m, y) for m in (0.0, mean))
        difference = np.abs(moved.decision_function(X + mean) - plain.decision_function(X))
        assert difference.max() <= 1e3 * mean * 2.0**-53 * np.abs(plain.decision_function(X)).max()


@pytest.mark.parametrize("settings", [{}, {"alpha": 1e-3}, {"fit_intercept": False}, {"solver": "pinv", "alpha": 0.8}])
@pytest.mark.parametrize("shape", [(60, 8), (12, 20), (2500, 8)])
def test_the_order_of_columns_and_rows_is_of_no_account(shape, settings):
    X, y = blobs(*shape)
    rng = np.random.default_rng(1)
    columns, rows = rng.permutation(shape[1]), rng.permutation(shape[0])
    plain = FaastClassifier(**settings).fit(X, y)
    by_column = FaastClassifier(**settings).fit(X[:, columns], y)
    np.testing.assert_allclose(by_column.coef_, plain.coef_[:, columns], rtol=0, atol=1e-10 * np.abs(plain.coef_).max())
    by_row = FaastClassifier(**settings).fit(X[rows], y[rows])
    np.testing.assert_allclose(by_row.predict_proba(X), plain.predict_proba(X), rtol=0, atol=1e-10)


@pytest.mark.parametrize("splits", [1, 7, 60])
@pytest.mark.parametrize("settings", [{}, {"alpha": 0.1}, {"solver": "pinv"}])
def test_pieces_give_what_the_whole_gives(splits, settings):
    X, y = blobs(60, 8)
    whole, pieces = FaastClassifier(**settings).fit(X, y), FaastClassifier(**settings)
    for part in np.array_split(np.arange(60), splits):
        pieces.partial_fit(X[part], y[part])
    np.testing.assert_allclose(pieces.predict_proba(X), whole.predict_proba(X), rtol=0, atol=1e-12)


def test_squares_that_overflow_are_refused_and_change_nothing():
    X, y = blobs(60, 8)
    clf = FaastClassifier().fit(X, y)
    before = clf.predict_proba(X)
    for call in (clf.partial_fit, clf.fit):
        with pytest.raises(NonFiniteError, match=r"squares overflow float64; divide .* normalize=True"):
            call(X * 1e160, y)
        assert np.array_equal(clf.predict_proba(X), before)
    assert (FaastClassifier(normalize=True).fit(X * 1e160, y).predict(X * 1e160) == y).all()


def test_scores_that_overflow_are_refused_by_row():
    X, y = blobs(60, 8)
    clf = FaastClassifier(alpha=0.1).fit(X * 1e-100, y)
    rows = np.vstack([X[:3] * 1e-100, X[:1] * 1e290])
    with pytest.raises(NonFiniteError, match=r"row 3 .* scores overflow float64 \(1 of 4 rows\)"):
        clf.predict(rows)
    far = FaastClassifier().fit(X, y)
    assert np.isfinite(far.predict_log_proba(X * 1e290)).all()
    np.testing.assert_allclose(far.novelty_score(X * 1e300), far.novelty_score(X * 1e100), atol=1e-9)


def test_a_class_that_was_declared_and_never_seen_has_probability_zero():
    X, y = blobs(60, 8)
    clf = FaastClassifier().partial_fit(X, y, classes=[0, 1, 2, 3])
    assert (clf.predict_log_proba(X)[:, 3] == -np.inf).all()
    assert (clf.predict_proba(X)[:, 3] == 0).all()
    assert np.isfinite(clf.predict_log_proba(X)[:, :3]).all()


@pytest.mark.parametrize("name", ["all constant", "one row again and again"])
@pytest.mark.parametrize("settings", [{}, {"alpha": 0.0}, {"alpha": 1.0}, {"solver": "pinv"}])
def test_rounding_of_constant_features_is_not_learnt_from(name, settings):
    X, y = NASTY[name](*blobs(60, 8))
    y = np.where(y == 2, 1, y)
    for n in (60, 57, 31):
        clf = FaastClassifier(**settings)
        for part in np.array_split(np.arange(n), 4):
            clf.partial_fit(X[part], y[part])
        assert not clf.coef_.any()
        assert (clf.predict(X + 0.1) == 1).all()  # the class of most rows


def test_a_thousand_classes_and_classes_of_very_unequal_size():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(1000, 64)) * 5
    X = np.repeat(centres, 2, axis=0) + rng.normal(size=(2000, 64)) * 0.5
    clf = check_all_outputs(X, np.repeat(np.arange(1000), 2))
    assert (clf.predict(X) == np.repeat(np.arange(1000), 2)).mean() > 0.99
    for rare in (1, 5, 50):
        X = rng.normal(size=(100_000 + rare, 4))
        X[:rare] = 20.0 + 0.1 * X[:rare]
        y = np.r_[np.ones(rare, int), np.zeros(100_000, int)]
        clf = FaastClassifier().fit(X, y)
        assert np.array_equal(clf.predict(X), y)
        assert np.isfinite(clf.predict_log_proba(X)).all()


# Higher precision


def exact_weights(X, y, alpha, intercept):
    """Ridge weights in long double, by Gaussian elimination on the moments."""
    X, V = X.astype(np.longdouble), np.eye(y.max() + 1, dtype=np.longdouble)[y]
    if intercept:
        X, V = X - X.mean(0), V - V.mean(0)
    T, C = np.tensordot(X, X, (0, 0)), np.tensordot(X, V, (0, 0))
    A = T + np.eye(len(T), dtype=np.longdouble) * np.longdouble(alpha) * np.trace(T) / len(T)
    A = np.concatenate([A, C], axis=1)
    for k in range(len(A)):
        pivot = k + int(np.abs(A[k:, k]).argmax())
        A[[k, pivot]] = A[[pivot, k]]
        A[k] /= A[k, k]
        others = np.arange(len(A)) != k
        A[others] -= np.outer(A[others, k], A[k])
    return A[:, len(T) :], X, T


PROBLEMS = {
    "plain": lambda X, y: (X, y),
    "columns over 4 decades": lambda X, y: (X * np.logspace(-2, 2, X.shape[1]), y),
    "columns over 16 decades": NASTY["columns over 16 decades"],
    "Hilbert matrix": NASTY["Hilbert matrix"],
    "duplicate columns": NASTY["duplicate columns"],
    "mean of 1e4": lambda X, y: (X + 1e4, y),
}


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="long double is no longer than double here")
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alpha", [1e-10, 1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("name", PROBLEMS)
def test_errors_stay_within_the_bound_of_the_condition_number(name, alpha, intercept):
    X, y = PROBLEMS[name](*blobs(60, 8))
    moments = ClassMoments.from_rows(X, y)
    exact, centred, T = exact_weights(X, y, alpha, intercept)
    T = T.astype(float) + alpha * float(np.trace(T)) / len(T) * np.eye(len(T))
    for solution in (
        fast_weights(moments, alpha=alpha, intercept=intercept),  # Cholesky where it may
        fast_weights(moments.to("cpu").keep(), alpha=alpha, intercept=intercept),
    ):
        error = centred @ (solution.weights.numpy() - exact)
        # Class means are kept to 2**-53 of their size, as the features themselves are.
        spread = np.sqrt(np.linalg.eigvalsh(T)[0] / len(X))
        kept = 2.0**-53 * np.linalg.norm(X.mean(0)) / spread
        assert np.abs(error).max() <= score_error(np.linalg.cond(T), len(X)) + kept


@pytest.mark.parametrize("weights", [None, "12 decades"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_million_rows_far_from_zero_keep_ten_digits(dtype, weights):
    n, size, d = 1_000_000, 100_000, 16
    rng = np.random.default_rng(0)
    blocks = [(rng.normal(size=(size, d)) + 1e4).astype(dtype) for _ in range(n // size)]
    labels = np.arange(size) % 3
    weight = None if weights is None else 10.0 ** rng.uniform(-6, 6, size)
    clf = FaastClassifier()
    for X in blocks:
        clf.partial_fit(X, labels, sample_weight=weight)
    moments = clf.moments_
    # Two passes in long double; the second is a difference from the mean, so float64 products lose nothing more.
    w = np.ones(size) if weight is None else weight
    total = w.astype(np.longdouble).sum() * len(blocks)
    mean = sum((X * w[:, None].astype(np.longdouble)).sum(0) for X in blocks) / total
    scatter = np.zeros((d, d), np.longdouble)
    for X in blocks:
        centred = (X - mean).astype(float) * np.sqrt(w)[:, None]
        scatter += sum(part.T @ part for part in np.array_split(centred, 100))
    root = np.sqrt(np.diag(scatter))
    assert float(np.abs(moments.scatter.matrix().numpy() - scatter).max() / root.max() ** 2) < 1e-10
    assert float(np.abs(moments.mean - mean).max()) < 1e-10  # of a spread of one
    whole = ClassMoments.from_rows(
        np.concatenate(blocks), np.tile(labels, 10), None if weight is None else np.tile(w, 10)
    )
    np.testing.assert_allclose(
        whole.scatter.matrix() / root.max() ** 2, scatter.astype(float) / root.max() ** 2, atol=1e-10
    )
    np.testing.assert_allclose(whole.means, moments.means, rtol=0, atol=1e-10)
    np.testing.assert_allclose(whole.counts, moments.counts, rtol=1e-12)


# The condition number


@pytest.mark.parametrize("alpha", [1e-8, 1e-4, 1.0, 100.0])
@pytest.mark.parametrize("name", ["plain", "columns over 4 decades", "Hilbert matrix"])
def test_the_condition_number_is_that_of_the_regularised_problem(name, alpha):
    X, y = PROBLEMS[name](*blobs(200, 8))
    T = np.cov(X.T, bias=True) * 200
    expected = np.linalg.cond(T + alpha * np.trace(T) / 8 * np.eye(8))
    clf = FaastClassifier(alpha=alpha).fit(X, y)
    assert clf.solver_ == "cholesky"
    # A power iteration from below.
    assert 0.7 * expected <= clf.condition_ <= expected * (1 + 1e-6)
    by_spectrum = fast_weights(clf.moments_.to("cpu").keep(), alpha=alpha)  # what is kept is a spectrum
    # An eigenvalue that cannot be told from rounding does not count, as the last one of the Hilbert matrix.
    assert by_spectrum.condition == pytest.approx(expected, rel=1e-3)


def test_the_condition_number_of_a_pseudo_inverse_counts_what_is_kept():
    X, y = blobs(200, 8)
    X = X * np.logspace(-3, 3, 8)
    values = np.linalg.svd(X - X.mean(0), compute_uv=False)
    for alpha in (0.3, 0.8, 2.0):
        kept = values[values > values[0] * 200.0**-alpha]
        clf = FaastClassifier(solver="pinv", alpha=alpha).fit(X, y)
        assert clf.condition_ == pytest.approx((kept[0] / kept[-1]) ** 2, rel=1e-6)


@pytest.mark.parametrize("d", [1, 2, 30, 300])
def test_the_estimate_of_a_condition_number_is_close_and_not_too_large(d):
    rng = np.random.default_rng(d)
    for decades in (0.0, 3.0, 9.0):
        Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
        matrix = torch.from_numpy((Q * np.logspace(0, decades, d)) @ Q.T)
        factor = torch.linalg.cholesky(matrix)
        inverse = torch.linalg.inv(factor)
        expected = np.linalg.cond(matrix.numpy())
        for scale in (1.0, 1e280, 1e-280):
            found = condition_estimate(matrix * scale, inverse / scale**0.5)
            assert 0.5 * expected <= found <= 1.01 * expected


def test_ordinary_data_do_not_warn(tiny_folder):
    X, y = load_digits(return_X_y=True)  # three pixels are constant
    for settings in (
        {},
        {"alpha": 1e-6},
        {"alpha": 1e-12},
        {"alpha": 0.0},
        {"solver": "pinv", "alpha": 0.8},
        {"normalize": True},
        {"fit_intercept": False},
    ):
        for n in (20, 100, 1797):
            FaastClassifier(**settings).fit(X[:n], y[:n]).predict(X[:5])
    texts = ["the cat sat", "a dog ran far", "red tree", "blue house", "one two three"]
    FaastClassifier(f"hf:{tiny_folder('bert')}", device="cpu").fit(texts, list("aabba")).predict(texts)


WARNED = {
    "tiny alpha": ("Hilbert matrix", {"alpha": 1e-14}, r"condition number .* alpha=1e-14.* larger alpha"),
    "no alpha": ("Hilbert matrix", {"alpha": 0.0}, r"condition number .* alpha=0.* alpha='auto'"),
    "nothing is cut": ("Hilbert matrix", {"solver": "pinv", "alpha": 20.0}, r"solver='pinv'.* smaller alpha"),
    "scales": (
        "columns over 16 decades",
        {"alpha": 0.0},
        r"scales of features differ by .*largest column 7, 6, 5, \.\.\., smallest column 0, 1.*StandardScaler",
    ),
    "squares vanish": ("squares vanish", {}, r"squares vanish in float64 .*multiply them by a constant"),
    "squares are zero": ("subnormal", {}, r"squares vanish in float64 .*multiply them by a constant"),
}


@pytest.mark.parametrize("case", WARNED)
def test_a_solve_that_rounding_reaches_says_why_and_what_to_do(case):
    name, settings, message = WARNED[case]
    X, y = NASTY[name](*blobs(60, 8))
    clf = FaastClassifier(**settings).fit(X, y)
    with pytest.warns(ConditionWarning, match=message) as caught:
        clf.predict(X)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # where the user called
    clf.predict(X)  # once a solve: warnings are errors here
    assert clf.condition_ >= 1


def test_the_warning_names_constant_and_duplicate_columns():
    X, y = NASTY["Hilbert matrix"](*blobs(60, 8))
    X = np.c_[X, X[:, 2] * -3.0, np.full(60, 5.0)]
    with pytest.warns(ConditionWarning, match=r"constant: column 9; equal up to scale: 2 and 8"):
        FaastClassifier(alpha=0.0).fit(X, y).predict(X)


def test_the_remedies_remedy():
    X, y = NASTY["columns over 16 decades"](*blobs(60, 8))
    scaled = StandardScaler().fit_transform(X)
    assert (FaastClassifier(alpha=0.0).fit(scaled, y).predict(scaled) == y).mean() > 0.95
    FaastClassifier(alpha="auto").fit(X, y).predict(X)
    tiny = NASTY["subnormal"](*blobs(60, 8))[0]
    assert (FaastClassifier(normalize=True).fit(tiny, y).predict(tiny) == y).mean() > 0.9


@pytest.mark.parametrize("name", ["duplicate columns", "linear combination", "one constant column"])
@pytest.mark.parametrize("n", [60, 5000])
def test_a_singular_problem_without_penalty_has_the_solution_of_least_norm(name, n):
    X, y = NASTY[name](*blobs(n, 8))
    if name == "one constant column":
        X[:, 2] = 7.0
    K, V = X - X.mean(0), np.eye(3)[y] - np.eye(3)[y].mean(0)
    expected = np.linalg.lstsq(K, V, rcond=1e-10)[0]
    for settings in ({"alpha": 0.0}, {"alpha": 1e-15}, {"solver": "pinv", "alpha": 100.0}):
        found = fast_weights(ClassMoments.from_rows(X, y), **settings)
        np.testing.assert_allclose(found.weights, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
        assert found.condition < safe_condition(n)


@pytest.mark.parametrize(("scale", "tolerance"), [(1.0, 1e-9), (1e3, 1e-6), (1e5, 1e-2)])
def test_rounding_that_forgetting_leaves_is_not_learnt_from(scale, tolerance):
    # Of 4,000 rows five stay, of less spread than those that went: what is left of the others is rounding of either
    # sign, about ten million times that of the five rows at the last scale.
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(4000, 10)), np.arange(4000) % 2
    X[5:] *= scale
    left = FaastClassifier(alpha=0.0).fit(X, y).forget(X[5:], y[5:]).moments_
    expected = fast_weights(ClassMoments.from_rows(X[:5], y[:5]), alpha=0.0).weights
    found = fast_weights(left, alpha=0.0).weights
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_a_singular_matrix_is_made_regular_by_the_least_share_that_will_do():
    ones = torch.ones(4, 4, dtype=torch.float64)
    factor = regular_factor(ones.clone())
    np.testing.assert_allclose(factor @ factor.T, ones, atol=1e-7)
    assert torch.equal(regular_factor(torch.zeros(3, 3, dtype=torch.float64)), torch.eye(3, dtype=torch.float64))
    whole = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert torch.equal(regular_factor(whole.clone()), torch.linalg.cholesky(whole))


# The same again

TEXTS = ["the cat sat on the mat", "dogs", "red houses and blue trees far away from the two dogs", "I ran", "two"] * 7
PAIRS = ["the cat sat", "dog ran far", "red green", "one two three", "a house"] * 7
ANSWERS = ["the mat", "away", "blue tree", "one", "green house"] * 7
CHOICES = ["cat", "dog ran", "house"]
CHOSEN = [CHOICES[i % 5 % 3] for i in range(35)]


def classifier_bits(options=None):
    X, y = blobs(400, 30)
    clf = FaastClassifier(normalize=True, **(options or {})).fit(X, y)
    return np.concatenate([clf.predict_proba(X).ravel(), clf.novelty_score(X), clf.coef_.ravel()]).tobytes().hex()


def text_bits():
    clf = FaastClassifier("bundled:minilm-l6", device="cpu").fit(TEXTS, np.arange(len(TEXTS)) % 5)
    return clf.predict_proba(TEXTS).tobytes().hex()


def answer_bits(folder):
    seq2seq = FaastSeq2Seq(f"hf:{folder}", device="cpu", choices=CHOICES).fit(PAIRS, CHOSEN)
    return seq2seq.choice_log_probabilities(PAIRS[:5]).tobytes().hex()


_FRESH = """
import torch
torch.set_num_threads({threads})
from test_numbers import answer_bits, classifier_bits, text_bits
print("BITS", classifier_bits(), text_bits(), answer_bits({folder!r}))
"""


@pytest.mark.slow
def test_the_same_again_is_the_same_to_the_bit_also_in_another_process(tiny_folder):
    folder = tiny_folder("llama")
    here = [classifier_bits(), text_bits(), answer_bits(folder)]
    assert here == [classifier_bits(), text_bits(), answer_bits(folder)]
    tests = os.path.dirname(__file__)
    paths = [tests, os.path.dirname(tests), os.path.dirname(os.path.dirname(tests)), os.environ.get("PYTHONPATH", "")]
    code = _FRESH.format(threads=torch.get_num_threads(), folder=folder)
    fresh = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        timeout=300,
    )
    assert fresh.returncode == 0, fresh.stderr[-2000:]
    assert next(line for line in fresh.stdout.splitlines() if line.startswith("BITS")).split()[1:] == here


def _images():
    return list(np.random.default_rng(0).uniform(0, 255, (35, 64, 64, 3)).astype(np.uint8))


@pytest.mark.parametrize("name", ["minilm", pytest.param("efficientnet", marks=pytest.mark.slow)])
def test_batches_of_any_size_give_the_features_of_one_at_a_time(name):
    X = TEXTS if name == "minilm" else _images()
    model = "bundled:minilm-l6" if name == "minilm" else backbone("bundled:efficientnet-lite0", image_size=64)
    y, found = np.arange(len(X)) % 5, {}
    for size in (1, 2, 7, 32):
        features = BackboneFeatures(model, batch_size=size, device="cpu").fit_transform(X)
        # The classifier's part, on what this size of batch gave: as if it had run with it.
        found[size] = features, FaastClassifier(alpha=1.0).fit(features, y).predict_proba(features)
    for size in (2, 7, 32):
        off = np.abs(found[size][0] - found[1][0]).max(1) / np.linalg.norm(found[1][0], axis=1)
        assert off.max() < 1e-5
        np.testing.assert_allclose(found[size][1], found[1][1], rtol=0, atol=1e-4)


def test_batches_of_any_size_give_one_language_model(tiny_folder):
    found = []
    for size in (1, 2, 7, 32):
        seq2seq = FaastSeq2Seq(f"hf:{tiny_folder('llama')}", device="cpu", batch_size=size, choices=CHOICES).fit(
            PAIRS, CHOSEN
        )
        found.append(seq2seq.choice_log_probabilities(PAIRS[:5]))
        assert seq2seq.condition_ == pytest.approx(1.48, rel=0.1)
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=1e-4)


def test_a_language_model_tells_its_condition_number_and_warns(tiny_folder):
    model = f"hf:{tiny_folder('llama')}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)
        for settings in (
            {"alpha": 1.0},
            {"solver": "pinv", "alpha": 0.5},
            {"target": "embedding", "alpha": 0.1},
        ):
            seq2seq = FaastSeq2Seq(model, device="cpu", memory_weight=0.5, **settings).fit(PAIRS, ANSWERS)
            keys, prompts = seq2seq.moments_.output.memory.keys.about_origin(), seq2seq.moments_.output.prompts
            scatter = keys.matrix().numpy()
            trace = scatter.trace()
            if prompts is not None:
                # As many states of prompts as learnt ones.
                scatter = scatter + keys.weight / prompts.weight * prompts.about_origin().matrix().numpy()
            values = np.linalg.eigvalsh(scatter)
            values = values[values > 1e-12 * values[-1]]
            if settings.get("solver") == "pinv":
                values, penalty = values[values > values[-1] / keys.weight ** (2 * settings["alpha"])], 0.0
            else:
                penalty = settings["alpha"] * trace / keys.n_features
            expected = (values[-1] + penalty) / (values[0] + penalty)
            assert seq2seq.condition_ == pytest.approx(expected, rel=1e-6)
        assert FaastSeq2Seq(model, device="cpu", memory_weight=0.0).fit(PAIRS, ANSWERS).condition_ is None
