"""Plots show the numbers they are given, and nothing is imported before they are drawn."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier

from faast_sklearn import FaastClassifier
from faast_sklearn.display import AlphaPathDisplay, FewShotCurveDisplay
from faast_sklearn.errors import InputError, MissingDependencyError
from faast_sklearn.few_shot import few_shot_score

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


def test_the_curve_shows_the_means_and_their_intervals(digits):
    sizes = {"n_way": 3, "n_query": 5, "n_episodes": 12, "random_state": 0}
    estimators = {"ours": FaastClassifier(), "nearest": KNeighborsClassifier(1)}
    display = FewShotCurveDisplay.from_estimator(estimators, *digits, shots=(4, 1, 2), **sizes)
    assert list(display.lines_) == list(estimators)
    for name in estimators:
        x, means = display.lines_[name].get_data()
        assert list(x) == [1, 2, 4]
        results = [display.results[name][shot] for shot in (1, 2, 4)]
        assert list(means) == [result.mean for result in results]
        points = {tuple(point) for path in display.bands_[name].get_paths() for point in path.vertices}
        for shot, result in zip((1, 2, 4), results, strict=True):
            assert {(shot, max(result.interval[0], 0)), (shot, min(result.interval[1], 1))} <= points
    assert display.ax_.get_xscale() == "log"
    assert [tick.get_text() for tick in display.ax_.get_xticklabels()] == ["1", "2", "4"]
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == ["ours", "nearest"]
    assert display.figure_ is display.ax_.figure


def test_curves_are_paired(digits):
    twice = FewShotCurveDisplay.from_estimator(
        [FaastClassifier(), FaastClassifier()], *digits, shots=(1, 2), n_episodes=5
    )
    assert list(twice.results) == ["FaastClassifier", "FaastClassifier 2"]
    first, second = twice.results.values()
    assert all(np.array_equal(first[shot].scores, second[shot].scores) for shot in (1, 2))


def test_results_are_drawn_into_given_axes_and_one_at_a_time(digits):
    results = {name: {2: few_shot_score(FaastClassifier(), *digits, n_shot=2, n_episodes=3)} for name in "ab"}
    _, ax = plt.subplots()
    display = FewShotCurveDisplay.from_results(results, ax=ax, linestyle=":")
    assert display.ax_ is ax
    assert all(line.get_linestyle() == ":" for line in display.lines_.values())
    assert list(display.plot(name="b").lines_) == ["b"]
    assert display.ax_ is not ax
    with pytest.raises(InputError, match="no curve 'c'"):
        display.plot(name="c")
    assert list(FewShotCurveDisplay.from_estimator(FaastClassifier(), *digits, n_episodes=2).lines_) == [
        "FaastClassifier"
    ]


def test_the_path_shows_scores_spread_and_the_best_alpha(digits):
    search = GridSearchCV(FaastClassifier(), {"alpha": [10.0, 0.1, 1.0]}, cv=3).fit(*digits)
    display = AlphaPathDisplay.from_results(search.cv_results_, score_name="accuracy", name="search")
    alphas, mean = display.lines_["search"].get_data()
    order = np.argsort([10.0, 0.1, 1.0])
    assert list(alphas) == [0.1, 1.0, 10.0]
    np.testing.assert_allclose(mean, search.cv_results_["mean_test_score"][order])
    low = (search.cv_results_["mean_test_score"] - search.cv_results_["std_test_score"]).min()
    assert display.bands_["search"].get_paths()[0].vertices[:, 1].min() == pytest.approx(low)
    assert display.marks_["search"].get_xdata()[0] == search.best_params_["alpha"]
    assert (display.ax_.get_xscale(), display.ax_.get_ylabel()) == ("log", "accuracy")
    marked = AlphaPathDisplay.from_results(search.cv_results_, chosen=10.0, ax=display.ax_)
    assert marked.marks_["validation"].get_xdata()[0] == 10.0
    assert marked.ax_ is display.ax_
    with pytest.raises(InputError, match="no curve 'other'"):
        display.plot(name="other")


def test_the_path_of_an_estimator_is_its_cross_validation(digits):
    from faast_sklearn.selection import alpha_path

    alphas, clf = [0.01, 0.1, 1.0], FaastClassifier()
    display = AlphaPathDisplay.from_estimator(clf, *digits, alphas=alphas, cv=3, scoring="accuracy")
    path = alpha_path(clf, *digits, alphas=alphas, cv=3, scoring="accuracy")
    x, mean = display.lines_["FaastClassifier"].get_data()
    assert list(x) == alphas
    np.testing.assert_allclose(mean, path.cv_results_["mean_test_score"])
    assert display.marks_["FaastClassifier"].get_xdata()[0] == path.best_alpha_
    assert display.ax_.get_ylabel() == "accuracy"


def test_an_exponent_of_zero_is_shown(digits):
    results = {"param_alpha": [0.0, 0.5], "mean_test_score": [0.1, 0.2], "std_test_score": [0.0, 0.0]}
    assert AlphaPathDisplay.from_results(results).ax_.get_xscale() == "linear"


def test_what_is_no_path_is_refused():
    with pytest.raises(InputError, match="no param_alpha, std_test_score"):
        AlphaPathDisplay.from_results({"mean_test_score": [1.0]})
    twice = {"param_alpha": [1.0, 1.0], "mean_test_score": [0.1, 0.2], "std_test_score": [0.0, 0.0]}
    with pytest.raises(InputError, match="several rows for one alpha"):
        AlphaPathDisplay.from_results(twice)


def test_without_matplotlib_the_remedy_comes_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for display in (FewShotCurveDisplay, AlphaPathDisplay):
        with pytest.raises(MissingDependencyError, match="pip install matplotlib"):
            display.from_estimator(FaastClassifier(), None, None)
