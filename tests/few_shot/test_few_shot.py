"""Few-shot evaluation: episodes that are episodes, and all of them at once as good as one by one."""

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from faast_sklearn import BackboneFeatures, FaastClassifier, FeatureCache
from faast_sklearn.errors import InputError, NonFiniteError
from faast_sklearn.few_shot import FewShotResult, episodes, few_shot_score, sample_episodes
from faast_sklearn.solvers import Spectrum, decompose
from faast_sklearn.solvers.solve import solve_spectrum

PAPER = {"solver": "pinv", "alpha": 0.8, "normalize": True, "fit_intercept": False}
SETTINGS = {
    "defaults": {},
    "fixed": {"alpha": 0.3},
    "no penalty": {"alpha": 0.0},
    "pinv": {"solver": "pinv"},
    "paper": PAPER,
    "no intercept": {"fit_intercept": False},
    "unit rows": {"normalize": True},
}


def problem(n=400, d=60, c=8, seed=0, spread=0.45, dtype=np.float32):
    """Blobs that overlap, so that many queries lie near a border."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % c)
    return (1.5 + spread * rng.standard_normal((c, d))[y] + rng.standard_normal((n, d))).astype(dtype), y


def one_by_one(estimator, X, y, drawn):
    tasks = zip(drawn.support.reshape(len(drawn.support), -1), drawn.query.reshape(len(drawn.query), -1), strict=True)
    return [clone(estimator).fit(X[s], y[s]).score(X[q], y[q]) for s, q in tasks]


class CountingBackbone(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return x.float().flatten(1)


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("n_way", "n_shot"), [(5, 5), (2, 1), (2, 3), (5, 1), (3, 2), (8, 10)])
def test_all_episodes_at_once_equal_the_loop(options, n_way, n_shot):
    if options is PAPER and (n_way, n_shot) == (2, 1):
        pytest.skip("of two unit rows the cut leaves their sum alone, on which both classes score the same")
    X, y = problem()
    sizes = {"n_way": n_way, "n_shot": n_shot, "n_query": 7, "n_episodes": 15, "random_state": 1}
    result = few_shot_score(FaastClassifier(**options), X, y, **sizes)
    expected = one_by_one(FaastClassifier(**options), X, y, sample_episodes(y, **sizes))
    assert np.array_equal(result.scores, expected)
    assert 0.2 < result.mean < 1.0


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("options", [{}, PAPER], ids=["defaults", "paper"])
def test_more_rows_than_features_and_other_precisions(options, dtype):
    X, y = problem(d=9, spread=1.0, dtype=dtype)
    sizes = {"n_shot": 12, "n_episodes": 10, "random_state": 0}
    result = few_shot_score(FaastClassifier(**options), X, y, **sizes)
    assert np.array_equal(result.scores, one_by_one(FaastClassifier(**options), X, y, sample_episodes(y, **sizes)))


def test_features_far_from_zero_and_degenerate_rows_equal_the_loop():
    X, y = problem(dtype=np.float64)
    copies = X.copy()
    for k in range(8):
        copies[y == k] = np.where(np.arange((y == k).sum())[:, None] % 3, copies[y == k], copies[y == k][0])
    for data in (X + 1e7, X * 1e-120, copies, np.ones_like(X)):
        sizes = {"n_shot": 2, "n_episodes": 10, "random_state": 0}
        result = few_shot_score(FaastClassifier(), data, y, **sizes)
        assert np.array_equal(result.scores, one_by_one(FaastClassifier(), data, y, sample_episodes(y, **sizes)))


def test_accuracies_do_not_depend_on_how_many_are_solved_at_once(monkeypatch):
    X, y = problem()
    sizes = {"n_episodes": 30, "random_state": 0}
    whole = few_shot_score(FaastClassifier(), X, y, **sizes).scores
    monkeypatch.setattr(episodes, "_FILTER_VALUES", (4 * 201 * 25, 1))
    monkeypatch.setattr(episodes, "_BLOCK_VALUES", (3 * 75 * 60, 1))
    assert np.array_equal(few_shot_score(FaastClassifier(), X, y, **sizes).scores, whole)
    monkeypatch.setattr(episodes, "_BLOCK_VALUES", (1, 1))
    assert np.array_equal(few_shot_score(FaastClassifier(), X, y, **sizes).scores, whole)


def test_arrays_tensors_lists_and_read_only_rows_are_the_same():
    X, y = problem(n=160)
    sizes = {"n_shot": 2, "n_query": 5, "n_episodes": 10, "random_state": 0}
    frozen = X.copy()
    frozen.flags.writeable = False
    before = X.copy()
    scores = [
        few_shot_score(FaastClassifier(), rows, labels, **sizes).scores
        for rows, labels in ((X, y), (torch.from_numpy(X), y.tolist()), (frozen, np.array(list("abcdefgh"))[y]))
    ]
    assert np.array_equal(X, before)
    assert np.array_equal(scores[0], scores[1])
    assert np.array_equal(scores[0], scores[2])


OTHERS = [
    FaastClassifier(class_weight={0: 2.0, **dict.fromkeys(range(1, 8), 1.0)}),
    FaastClassifier(prior_strength=0),
    KNeighborsClassifier(1),
    make_pipeline(StandardScaler(), FaastClassifier()),
    make_pipeline(StandardScaler(), LogisticRegression()),
]


@pytest.mark.parametrize("estimator", OTHERS, ids=lambda e: type(e).__name__)
def test_any_classifier_is_fitted_and_scored(estimator, monkeypatch):
    X, y = np.abs(problem(n=160)[0]), problem(n=160)[1]
    sizes = {"n_shot": 2, "n_query": 5, "n_episodes": 6, "random_state": 0}
    # What the batch does not know must not reach it.
    monkeypatch.setattr("faast_sklearn.few_shot.score.solve_episodes", None)
    result = few_shot_score(estimator, X, y, **sizes)
    assert np.array_equal(result.scores, one_by_one(estimator, X, y, sample_episodes(y, **sizes)))
    assert not hasattr(estimator, "classes_")


def test_a_subclass_is_asked_itself():
    class Stubborn(FaastClassifier):
        def predict(self, X):
            return np.full(len(X), self.classes_[0])

    X, y = problem(n=160)
    result = few_shot_score(Stubborn(), X, y, n_way=4, n_query=5, n_episodes=5, random_state=0)
    assert result.scores.tolist() == [0.25] * 5


def test_a_wrong_parameter_is_refused_as_fit_does():
    X, y = problem(n=160)
    for options, error in (({"solver": "svd"}, "solver"), ({"alpha": -1.0}, "alpha")):
        with pytest.raises(ValueError, match=error):
            few_shot_score(FaastClassifier(**options), X, y, n_query=5, n_episodes=2)


@pytest.mark.parametrize("options", [{}, {"class_weight": {0: 2.0}}], ids=["at once", "loop"])
def test_a_backbone_sees_each_sample_once(options):
    X, y = problem(n=160)
    images = X.reshape(160, 3, 4, 5)
    sizes = {"n_shot": 2, "n_query": 5, "n_episodes": 10, "random_state": 0}
    expected = few_shot_score(FaastClassifier(**options), X, y, **sizes).scores
    scaled = few_shot_score(FaastClassifier(normalize=True, **options), X, y, **sizes).scores
    alone, first = CountingBackbone(), CountingBackbone()
    result = few_shot_score(FaastClassifier(alone, device="cpu", **options), images, y, **sizes)
    pipeline = make_pipeline(BackboneFeatures(first, device="cpu"), FaastClassifier(**options))
    piped = few_shot_score(pipeline, images, y, **sizes)
    assert np.array_equal(result.scores, scaled)  # the features of a backbone are scaled
    assert np.array_equal(piped.scores, expected)
    assert not np.array_equal(scaled, expected)
    assert alone.seen == 160
    assert first.seen <= 161  # one more to see how many features there are


class Recorder(ClassifierMixin, BaseEstimator):
    """Remembers which rows it saw, under a parameter that survives clone."""

    def __init__(self, rows=None):
        self.rows = rows

    def __sklearn_clone__(self):
        return self

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.rows.append((X[:, 0], y))
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[0])


def test_all_estimators_see_the_same_episodes():
    y = np.arange(60) % 6
    X = np.arange(60.0)[:, None]
    seen = []
    sizes = {"n_way": 3, "n_shot": 2, "n_query": 4, "n_episodes": 4, "random_state": 7}
    few_shot_score(Recorder(seen), X, y, **sizes)
    drawn = sample_episodes(y, **sizes)
    for (rows, labels), support in zip(seen, drawn.support, strict=True):
        assert np.array_equal(rows, support.ravel())
        assert np.array_equal(labels, y[support.ravel()])


def test_episodes_draw_distinct_rows_of_distinct_classes():
    y = np.array(["b", "a", "c", "d"])[np.random.default_rng(0).integers(0, 4, 300)]
    drawn = sample_episodes(y, n_way=3, n_shot=4, n_query=6, n_episodes=200, random_state=0)
    support, query, classes = drawn
    assert support.shape == (200, 3, 4)
    assert query.shape == (200, 3, 6)
    assert all(len(set(row)) == 3 for row in classes.tolist())
    rows = np.concatenate([support, query], axis=2).reshape(200, -1)
    assert all(len(set(row)) == 30 for row in rows.tolist())
    assert (y[support] == classes[:, :, None]).all()
    assert (y[query] == classes[:, :, None]).all()


def test_episodes_are_uniform():
    y = np.repeat(np.arange(4), [6, 7, 8, 9])
    drawn = sample_episodes(y, n_way=2, n_shot=2, n_query=3, n_episodes=6000, random_state=0)
    pairs = np.unique(drawn.classes, axis=0, return_counts=True)[1]
    assert len(pairs) == 6
    assert scipy.stats.chisquare(pairs).pvalue > 1e-3
    for k in range(4):
        chosen = (drawn.classes == k).ravel()
        for part in (drawn.support, drawn.query):
            # Each position within a draw on its own, so that no order is favoured either.
            for column in part.reshape(-1, part.shape[2])[chosen].T:
                assert scipy.stats.chisquare(np.bincount(column, minlength=30)[y == k]).pvalue > 1e-4


def test_a_whole_class_may_be_drawn():
    y = np.repeat([0, 1], 5)
    drawn = sample_episodes(y, n_way=2, n_shot=2, n_query=3, n_episodes=20, random_state=0)
    rows = np.sort(np.concatenate([drawn.support, drawn.query], 2), axis=2)
    assert (rows == np.arange(10).reshape(2, 5)).all()


def test_more_shots_extend_the_same_episodes():
    y = np.random.default_rng(0).integers(0, 7, 300)
    one, five = (sample_episodes(y, n_shot=shots, n_episodes=50, random_state=3) for shots in (1, 5))
    assert np.array_equal(one.classes, five.classes)
    assert np.array_equal(one.query, five.query)
    assert np.array_equal(one.support, five.support[:, :, :1])


def test_the_same_seed_gives_the_same_episodes_and_another_one_others():
    y = np.arange(200) % 5
    a, b, c = (sample_episodes(y, n_episodes=10, random_state=seed).support for seed in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_what_cannot_be_drawn_is_named():
    X, y = np.zeros((60, 2)), np.repeat(["cat", "dog", "owl"], [30, 20, 10])
    with pytest.raises(InputError, match="y has 3 classes, fewer than n_way=5"):
        few_shot_score(FaastClassifier(), X, y)
    with pytest.raises(InputError, match=r"'owl'.* has 10 rows, but .* = 12 rows per class; lower n_query"):
        few_shot_score(FaastClassifier(), X, y, n_way=2, n_shot=2, n_query=10)
    with pytest.raises(InputError, match="2 classes have too few"):
        few_shot_score(FaastClassifier(), X, y, n_way=2, n_shot=2, n_query=20)
    for name, value in (("n_way", 1), ("n_shot", 0), ("n_query", 2.5), ("n_episodes", True)):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least"):
            few_shot_score(FaastClassifier(), X, y, **{name: value})
    with pytest.raises(InputError, match="X is 59 samples, and y has 60 labels"):
        few_shot_score(FaastClassifier(), X[1:], y)
    with pytest.raises(InputError, match="no length"):
        few_shot_score(FaastClassifier(), iter(X), y)


def test_rows_that_are_not_numbers_are_refused():
    X, y = problem(n=160, dtype=np.float64)
    sizes = {"n_query": 5, "n_episodes": 3, "random_state": 0}
    with pytest.raises(NonFiniteError, match="overflow"):
        few_shot_score(FaastClassifier(), X * 1e200, y, **sizes)
    X[7, 3] = np.nan
    with pytest.raises(NonFiniteError, match="row 7, column 3"):
        few_shot_score(FaastClassifier(), X, y, **sizes)


def test_the_interval_is_students():
    scores = np.random.default_rng(0).uniform(size=12)
    result = FewShotResult(scores, n_way=5, n_shot=1, n_query=15)
    expected = scipy.stats.t.interval(0.95, 11, loc=scores.mean(), scale=scipy.stats.sem(scores))
    np.testing.assert_allclose(result.interval, expected)
    assert result.n_episodes == 12
    assert "5-way 1-shot, 12 episodes" in repr(result)
    assert np.isnan(FewShotResult(scores[:1], 5, 1, 15).interval).all()


def test_the_interval_covers_the_mean_of_many_episodes():
    X, y = load_digits(return_X_y=True)
    truth = few_shot_score(FaastClassifier(), X, y, n_episodes=2000, random_state=0).mean
    intervals = [
        few_shot_score(FaastClassifier(), X, y, n_episodes=40, random_state=seed).interval for seed in range(1, 41)
    ]
    covered = sum(low <= truth <= high for low, high in intervals)
    assert 34 <= covered <= 40


@pytest.mark.parametrize("solver", ["ridge", "pinv"])
@pytest.mark.parametrize("alpha", ["auto", 0.7])
def test_problems_solved_together_are_solved_as_each_alone(solver, alpha):
    from faast_sklearn.moments import ClassMoments

    problems = [ClassMoments.from_rows(*problem(n=24, d=40, c=4, seed=seed, dtype=np.float64)) for seed in range(5)]
    spectra = [decompose(moments.scatter) for moments in problems]
    crosses = [moments.class_sums().T for moments in problems]
    counts = problems[0].counts
    alone = [
        solve_spectrum(spectrum, cross, counts, solver=solver, alpha=alpha)
        for spectrum, cross in zip(spectra, crosses, strict=True)
    ]
    together = solve_spectrum(
        Spectrum(torch.stack([s.values for s in spectra]), torch.stack([s.vectors for s in spectra])),
        torch.stack(crosses),
        counts,
        solver=solver,
        alpha=alpha,
    )
    np.testing.assert_allclose(together.weights, torch.stack([s.weights for s in alone]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(together.df, [s.df for s in alone])
    np.testing.assert_allclose(np.broadcast_to(together.alpha, 5), [s.alpha for s in alone])


@pytest.mark.parametrize("kind", ["text", "dict", "array"])
def test_class_values_keep_the_backbone_and_encode_once(kind, tiny_folder):
    rng = np.random.default_rng(["text", "dict", "array"].index(kind))  # moments of the same rows are remembered
    names = np.array(["cat", "dog", "sat"])
    y = names[np.arange(24) % 3]
    X = rng.integers(0, 255, (24, 32, 32, 3), dtype=np.uint8)
    values = {"text": "text", "dict": dict(zip(names, names, strict=True)), "array": rng.standard_normal((3, 16))}[kind]
    cache = FeatureCache()
    clf = FaastClassifier(tiny_folder("clip"), values=values, prior_strength=3.0, cache=cache)
    if kind == "array":
        width = BackboneFeatures(tiny_folder("clip")).fit(X).n_features_out_
        clf.set_params(values=rng.standard_normal((3, width)))
    result = few_shot_score(clf, X, y, n_way=3, n_shot=2, n_query=3, n_episodes=4, random_state=0)
    drawn = sample_episodes(y, n_way=3, n_shot=2, n_query=3, n_episodes=4, random_state=0)
    assert cache.misses == len(np.unique(np.concatenate([drawn.support.ravel(), drawn.query.ravel()])))
    support, query = (part.reshape(4, -1) for part in drawn[:2])
    for score, learnt, asked in zip(result.scores, support, query, strict=True):
        assert score == clone(clf).fit(X[learnt], y[learnt]).score(X[asked], y[asked])
