"""Searches over the same rows share moments and decompositions where a cache is asked for."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from faast_sklearn import FaastClassifier
from faast_sklearn.estimators import classifier
from faast_sklearn.moments import ClassMoments
from faast_sklearn.moments.collect import _Recent
from faast_sklearn.solvers import solve as closed_form

X, Y = load_digits(return_X_y=True)
X, Y = X[:600], Y[:600]


@pytest.fixture
def counted(monkeypatch):
    """Counts of passes over rows and of decompositions, with nothing remembered from elsewhere."""
    counts = {"passes": 0, "decompositions": 0}
    from_codes, decompose = ClassMoments.from_codes.__func__, closed_form.decompose

    def counting_moments(cls, *args):
        counts["passes"] += 1
        return from_codes(cls, *args)

    def counting_decompositions(scatter):
        counts["decompositions"] += 1
        return decompose(scatter)

    monkeypatch.setattr(classifier, "recent", _Recent(1 << 30))
    monkeypatch.setattr(ClassMoments, "from_codes", classmethod(counting_moments))
    monkeypatch.setattr(closed_form, "decompose", counting_decompositions)
    return counts


def test_a_search_passes_and_decomposes_once_a_fold(counted):
    grid = [{"alpha": ["auto", 0.1, 1.0, 10.0]}, {"solver": ["pinv"], "alpha": [0.5, 0.8]}]
    search = GridSearchCV(FaastClassifier(cache="memory"), grid, cv=5).fit(X, Y)
    assert counted == {"passes": 6, "decompositions": 5}  # the refit is solved when first asked
    plain = GridSearchCV(FaastClassifier(), grid, cv=5).fit(X, Y)
    assert counted["passes"] == 6 + 31
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"])
    np.testing.assert_allclose(search.best_estimator_.coef_, plain.best_estimator_.coef_, atol=1e-9)


def test_values_and_strengths_share_what_unit_rows_gave(counted):
    vectors = dict(enumerate(np.random.default_rng(0).standard_normal((10, 64))))
    grid = {"prior_strength": [1.0, 10.0, 100.0], "values": [vectors]}
    paper = FaastClassifier(solver="pinv", alpha=0.8, fit_intercept=False, cache="memory")
    GridSearchCV(paper, grid, cv=3, refit=False).fit(X, Y)
    assert counted == {"passes": 3, "decompositions": 3}


def test_alphas_share_what_names_gave(counted):
    few, y = X[:60], Y[:60]  # fewer rows than features, so that each alpha would decompose on its own
    vectors = dict(enumerate(np.random.default_rng(0).standard_normal((10, 64))))
    for strength in (20.0, "auto"):
        counted["decompositions"] = 0
        clf = FaastClassifier(values=vectors, prior_strength=strength, cache="memory")
        search = GridSearchCV(clf, {"alpha": [0.1, 1.0, 10.0, "auto"]}, cv=3, refit=False).fit(few, y)
        assert counted["decompositions"] == 3
        plain = GridSearchCV(clone(clf).set_params(cache=None), {"alpha": [0.1, 1.0]}, cv=3, refit=False).fit(few, y)
        found, wanted = (s.cv_results_["mean_test_score"][:2] for s in (search, plain))
        np.testing.assert_allclose(found, wanted)


@pytest.mark.parametrize(
    "change",
    [
        lambda X, y, w: (X + 1e-12, y, w),
        lambda X, y, w: (X[::-1].copy(), y, w),
        lambda X, y, w: (X, (y + 1) % 10, w),
        lambda X, y, w: (X, y + 10, w),
        lambda X, y, w: (X, y, np.r_[2.0, w[1:]]),
        lambda X, y, w: (X, y, None),
        lambda X, y, w: (X.astype(np.float32), y, w),
    ],
    ids=["values", "order", "labels", "names", "weights", "no weights", "dtype"],
)
def test_other_rows_are_never_taken_for_the_same(counted, change):
    weight = np.ones(len(X))
    FaastClassifier(cache="memory").fit(X, Y, weight)
    FaastClassifier(cache="memory").fit(X.copy(), Y.copy(), weight.copy())
    assert counted["passes"] == 1
    other = FaastClassifier(cache="memory").fit(*change(X, Y, weight))
    assert counted["passes"] == 2
    fresh = FaastClassifier().fit(*change(X, Y, weight))
    np.testing.assert_array_equal(other.coef_, fresh.coef_)


def test_rows_of_unit_length_are_other_moments(counted):
    for params in ({}, {"normalize": True}):
        FaastClassifier(cache="memory", **params).fit(X, Y)
    assert counted["passes"] == 2


def test_what_is_shared_does_not_change_when_one_learns_more(counted):
    first = FaastClassifier(cache="memory").fit(X, Y)
    second = FaastClassifier(cache="memory").fit(X, Y)
    before = first.coef_.copy()
    second.partial_fit(X[:50], (Y[:50] + 1) % 10).forget(X[:20], Y[:20])
    np.testing.assert_array_equal(first.coef_, before)
    np.testing.assert_array_equal(FaastClassifier(cache="memory").fit(X, Y).coef_, before)


def test_streams_of_batches_are_not_remembered(counted):
    for _ in range(2):
        FaastClassifier(cache="memory").fit(iter([(X[:300], Y[:300]), (X[300:], Y[300:])]))
    assert counted["passes"] == 4


def test_memory_is_bounded():
    recent = _Recent(max_bytes=1)
    for key in (b"a", b"b"):
        recent.get(key, lambda: ClassMoments.from_codes(X, Y, np.arange(10), None))
    recent.get(b"b", lambda: pytest.fail("it is still there"))
    made = []
    recent.get(b"a", lambda: made.append(1) or ClassMoments.from_codes(X, Y, np.arange(10), None))
    assert made == [1]
