"""Cross-validation from the statistics of the folds: the same as refitting, and of use to scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GroupKFold, KFold, ShuffleSplit, StratifiedKFold

from faast_sklearn import FaastClassifier
from faast_sklearn.errors import InputError
from faast_sklearn.moments import ClassMoments
from faast_sklearn.selection import alpha_path, kfold_errors

X, Y = load_digits(return_X_y=True)
X, Y = X[:400] / 16.0, Y[:400]


def refitted_errors(X, y, weight, splits, alphas, solver, intercept):
    """Weighted squared error of held-out one-hot rows, from rows, by another route than the library's."""
    classes = np.unique(y)
    V = (y[:, None] == classes).astype(float)
    result = []
    for train, test in splits:
        w = weight[train][:, None]
        n_samples = sum(w[y[train] == k].sum() ** 2 / np.square(w[y[train] == k]).sum() for k in classes)
        shift, share = (w * X[train]).sum(0) / w.sum(), (w * V[train]).sum(0) / w.sum()
        shift, share = shift * intercept, share * intercept
        K, T = X[train] - shift, V[train] - share
        row = []
        for alpha in alphas:
            root = np.sqrt(w)
            if solver == "ridge":
                gram = (root * K).T @ (root * K)
                penalty = alpha * np.trace(gram) / len(gram)
                W = np.linalg.solve(gram + penalty * np.eye(len(gram)), (w * K).T @ T)
            else:
                W = np.linalg.pinv(root * K, rcond=n_samples**-alpha) @ (root * T)
            residual = V[test] - share - (X[test] - shift) @ W
            row.append((weight[test] * (residual**2).sum(1)).sum() / weight[test].sum())
        result.append(row)
    return np.array(result)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("solver", ["ridge", "pinv"])
@pytest.mark.parametrize("n_alphas", [3, 60])  # on either side of the choice between two ways to sum
def test_errors_are_those_of_refitting(solver, intercept, n_alphas):
    alphas = np.logspace(-3, 1, n_alphas) if solver == "ridge" else np.linspace(0.2, 0.9, n_alphas)
    weight = 1.0 + np.arange(len(X)) % 3
    splits = list(StratifiedKFold(5).split(X, Y))
    folds = [ClassMoments.from_rows(X[test], Y[test], weight[test]) for _, test in splits]
    ours = kfold_errors(folds, alphas, solver=solver, intercept=intercept)
    np.testing.assert_allclose(ours, refitted_errors(X, Y, weight, splits, alphas, solver, intercept), rtol=1e-8)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10_000), st.integers(1, 40))
def test_errors_of_any_folds_are_those_of_refitting(k, seed, d):
    rng = np.random.default_rng(seed)
    rows, y = rng.standard_normal((60, d)), rng.integers(0, 4, 60)
    fold_of = rng.permutation(np.arange(60) % k)  # a class may be missing from a fold, or from all others
    splits = [(np.flatnonzero(fold_of != i), np.flatnonzero(fold_of == i)) for i in range(k)]
    folds = [ClassMoments.from_rows(rows[test], y[test]) for _, test in splits]
    expected = refitted_errors(rows, y, np.ones(60), splits, [0.1, 10.0], "ridge", True)
    np.testing.assert_allclose(kfold_errors(folds, [0.1, 10.0]), expected, rtol=1e-8)


@pytest.mark.parametrize("params", [{}, {"solver": "pinv"}, {"normalize": True}], ids=str)
@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss"])
def test_scores_of_held_out_rows_are_those_of_refitting(params, scoring):
    alphas = [0.3, 0.7]
    path = alpha_path(FaastClassifier(**params), X, Y, alphas=alphas, cv=KFold(3), scoring=scoring)
    for i, (train, test) in enumerate(KFold(3).split(X)):
        for alpha, score in zip(path.cv_results_["param_alpha"], path.cv_results_[f"split{i}_test_score"], strict=True):
            clf = FaastClassifier(alpha=alpha, **params).fit(X[train], Y[train])
            if scoring == "accuracy":
                assert score == pytest.approx(clf.score(X[test], Y[test]), abs=1e-12)
            else:
                log_p = clf.predict_log_proba(X[test])[np.arange(len(test)), Y[test]]
                assert score == pytest.approx(log_p.mean(), rel=1e-6)


@pytest.mark.parametrize("strength", [20.0, "auto"])
def test_errors_with_names_are_those_of_refitting(strength):
    vectors = np.random.default_rng(0).standard_normal((10, X.shape[1]))
    clf = FaastClassifier(values=vectors, prior_strength=strength)
    folds = list(StratifiedKFold(3).split(X, Y))
    path = alpha_path(clf, X, Y, alphas=[0.1, 10.0], cv=folds)
    rows = X / np.linalg.norm(X, axis=1, keepdims=True)
    for k, (train, test) in enumerate(folds):
        for a, alpha in enumerate((0.1, 10.0)):
            problem = clone(clf).set_params(alpha=alpha).fit(X[train], Y[train])._problem
            learnt, weights = problem.examples, problem.solved.solution.weights.numpy()
            guess = (rows[test] - learnt.mean) @ weights + learnt.counts / learnt.weight
            error = ((guess - np.eye(10)[Y[test]]) ** 2).sum(1).mean()
            assert -path.cv_results_[f"split{k}_test_score"][a] == pytest.approx(error, rel=1e-9)


def test_results_have_the_form_of_a_grid_search():
    path = alpha_path(FaastClassifier(), X, Y, alphas=[1.0, 0.01, 100.0], cv=4)
    results = path.cv_results_
    assert results["param_alpha"].tolist() == [0.01, 1.0, 100.0] == [p["alpha"] for p in results["params"]]
    splits = np.array([results[f"split{i}_test_score"] for i in range(4)])
    np.testing.assert_allclose(results["mean_test_score"], splits.mean(0))
    np.testing.assert_allclose(results["std_test_score"], splits.std(0))
    assert results["rank_test_score"].dtype == np.int32
    assert results["rank_test_score"][path.best_index_] == 1
    assert path.best_score_ == results["mean_test_score"].max()
    assert (path.n_splits_, path.scoring) == (4, "neg_squared_error")


def test_ties_go_to_the_strongest_regulariser():
    rows, y = np.array([[0.0], [1.0], [0.0], [1.0]]), np.array([0, 1, 0, 1])
    path = alpha_path(FaastClassifier(), rows, y, alphas=[0.1, 0.2], cv=KFold(2), scoring="accuracy")
    assert path.best_alpha_ == 0.2
    path = alpha_path(FaastClassifier(solver="pinv"), rows, y, alphas=[0.5, 0.6], cv=KFold(2), scoring="accuracy")
    assert path.best_alpha_ == 0.5


def test_groups_stay_together():
    groups = np.arange(len(X)) % 7
    path = alpha_path(FaastClassifier(), X, Y, alphas=[0.1], cv=GroupKFold(7), groups=groups)
    assert path.n_splits_ == 7
    folds = [ClassMoments.from_rows(X[groups == k], Y[groups == k]) for k in range(7)]
    assert path.best_score_ == pytest.approx(-kfold_errors(folds, [0.1]).mean(), rel=1e-9)


def test_the_estimator_stays_as_it_was():
    clf = FaastClassifier(alpha=3.0)
    alpha_path(clf, X, Y, alphas=[0.1, 1.0])
    assert clf.alpha == 3.0
    assert not hasattr(clf, "classes_")


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"cv": ShuffleSplit(3)}, InputError, "overlap|leave out"),
        ({"cv": [(np.arange(0), np.arange(len(X)))]}, InputError, "fewer than two folds"),
        ({"scoring": "f1"}, ValueError, "scoring must be one of"),
        ({"alphas": [-1.0]}, ValueError, "at least 0"),
        ({"alphas": []}, ValueError, "at least 0"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        alpha_path(FaastClassifier(), X, Y, **kwargs)


def test_an_iterator_cannot_be_split():
    with pytest.raises(InputError, match="read only once"):
        alpha_path(FaastClassifier(), iter([(X, Y)]), None)
