"""scikit-learn's tools around the classifier, on ready features and on real frozen backbones."""

import copy
import io
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
import sklearn
import torch
from helpers.data import DIGITS, IMAGES, ROWS, SMALL_IMAGES, TEXTS, TOPICS
from helpers.seq2seq import pairs
from joblib.externals.loky import get_reusable_executor
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score, cross_validate
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from faast_sklearn import BackboneFeatures, FaastClassifier, FaastSeq2Seq, backbone
from faast_sklearn.backbones import release_backbones
from faast_sklearn.backbones.open_backbones import open_count

KINDS = {
    "rows": ({}, ROWS, DIGITS, 0.8),
    "images": ({"backbone": SMALL_IMAGES, "device": "cpu"}, IMAGES, DIGITS, 0.6),
    "texts": ({"backbone": "bundled:minilm-l6", "device": "cpu"}, TEXTS, TOPICS, 0.8),
}


@pytest.fixture(params=KINDS)
def kind(request):
    options, X, y, floor = KINDS[request.param]
    return FaastClassifier(**options), X, y, floor


class Bright(torch.nn.Module):
    """A module in memory that counts how often it is copied."""

    copies = 0

    def forward(self, x):
        return x.float().flatten(1)

    def __deepcopy__(self, memo):
        type(self).copies += 1
        return type(self)()


def openings(estimator, X, y):
    """Score by how many backbones this process has opened."""
    estimator.predict(X)
    return float(open_count())


def test_cross_validation_learns_from_what_was_passed(kind):
    clf, X, y, floor = kind
    scores = cross_val_score(clf, X, y, cv=3, error_score="raise")
    assert scores.mean() >= floor
    proba = cross_val_predict(clf, X, y, cv=3, method="predict_proba")
    assert proba.shape == (len(y), len(set(y)))
    np.testing.assert_allclose(proba.sum(1), 1.0)


def test_pipelines_predict_what_the_classifier_alone_does(kind):
    clf, X, y, _ = kind
    pipe = Pipeline([("same", FunctionTransformer()), ("clf", clone(clf))]).fit(X, y)
    alone = clone(clf).fit(X, y)
    assert np.array_equal(pipe.predict(X), alone.predict(X))
    np.testing.assert_allclose(pipe.predict_proba(X), alone.predict_proba(X), atol=1e-6)
    assert pipe.score(X, y) == alone.score(X, y)
    assert list(pipe.classes_) == list(alone.classes_)
    assert "FaastClassifier" in repr(pipe)
    assert "FaastClassifier" in pipe._repr_html_()


def test_features_in_front_of_other_estimators():
    features = BackboneFeatures("bundled:minilm-l6", device="cpu")
    pipe = make_pipeline(features, StandardScaler(), PCA(5, random_state=0), LogisticRegression())
    assert cross_val_score(pipe, TEXTS, TOPICS, cv=2, error_score="raise").mean() >= 0.8
    pipe = (
        make_pipeline(features, StandardScaler(), FaastClassifier()).set_output(transform="pandas").fit(TEXTS, TOPICS)
    )
    assert pipe[-1].feature_names_in_[0] == "backbonefeatures0"
    assert pipe.score(TEXTS, TOPICS) == 1.0
    assert pipe[:-1].transform(TEXTS).shape == (24, 384)


def test_a_search_opens_the_backbone_once():
    release_backbones()
    before = open_count()
    search = GridSearchCV(
        FaastClassifier(SMALL_IMAGES, device="cpu"), {"alpha": [0.1, "auto"]}, cv=2, error_score="raise"
    )
    search.fit(IMAGES, DIGITS)
    assert open_count() == before + 1
    assert search.best_estimator_.backbone is SMALL_IMAGES
    assert search.score(IMAGES, DIGITS) >= 0.9


@pytest.mark.parametrize("how", ["module", "handle", "pipeline"])
def test_a_search_never_copies_a_module(how):
    module = Bright()
    release_backbones()
    Bright.copies, before = 0, open_count()
    clf = FaastClassifier(backbone(module) if how == "handle" else module, device="cpu")
    clf = Pipeline([("clf", clf)]) if how == "pipeline" else clf
    grid = {"clf__alpha" if how == "pipeline" else "alpha": [0.01, 0.1, 1.0, "auto"]}
    search = GridSearchCV(clf, grid, cv=5, error_score="raise").fit(IMAGES, DIGITS)
    copy.deepcopy(search)
    clone(search)
    assert Bright.copies == 0
    assert open_count() == before + 1


@pytest.mark.slow  # starts two interpreters, for all three kinds
def test_a_parallel_search_equals_a_serial_one_and_opens_once_a_worker(tiny_folder):
    get_reusable_executor().shutdown(wait=True)  # workers of other tests have opened what those needed
    learner = FaastSeq2Seq(f"hf:{tiny_folder('llama')}", scoring="negative_perplexity", device="cpu")
    X, y = (np.array(part, dtype=object) for part in pairs(60))
    for n_opened, estimator, grid, data in (
        (0, FaastClassifier(), {"alpha": [0.1, 1.0, "auto"]}, (ROWS, DIGITS)),
        (1, FaastClassifier("bundled:minilm-l6", device="cpu"), {"alpha": [0.1, 1.0, "auto"]}, (TEXTS, TOPICS)),
        (2, learner, {"memory_weight": [0, 0.5]}, (X, y)),
    ):
        scoring = {"score": lambda estimator, X, y: estimator.score(X, y), "openings": openings}
        search = GridSearchCV(estimator, grid, cv=2, n_jobs=2, scoring=scoring, refit="score", error_score="raise")
        serial = GridSearchCV(estimator, grid, cv=2, error_score="raise").fit(*data)
        found, alone = search.fit(*data).cv_results_["mean_test_score"], serial.cv_results_["mean_test_score"]
        np.testing.assert_allclose(found, alone, rtol=1e-5 if estimator is learner else 0)
        assert max(search.cv_results_[f"split{i}_test_openings"].max() for i in range(2)) <= n_opened


@pytest.mark.parametrize("ensemble", [True, False])
def test_calibration_wraps_it(kind, ensemble):
    clf, X, y, floor = kind
    calibrated = CalibratedClassifierCV(clf, cv=2, ensemble=ensemble).fit(X, y)
    assert calibrated.predict_proba(X).shape == (len(y), len(set(y)))
    assert calibrated.score(X, y) >= floor


def test_votes_are_counted(kind):
    clf, X, y, floor = kind
    ensemble = VotingClassifier([("a", clf), ("b", clone(clf).set_params(solver="pinv", alpha=0.8))], voting="soft")
    ensemble.fit(X, y)
    mean = np.mean([member.predict_proba(X) for member in ensemble.estimators_], axis=0)
    np.testing.assert_allclose(ensemble.predict_proba(X), mean, atol=1e-6)
    assert ensemble.set_params(voting="hard").score(X, y) >= floor


def test_stacks_are_built():
    for clf, X, y in ((FaastClassifier(), ROWS, DIGITS), (FaastClassifier("bundled:minilm-l6"), TEXTS, TOPICS)):
        assert StackingClassifier([("a", clf)], cv=2).fit(X, y).score(X, y) >= 0.8


def test_one_against_the_rest():
    assert OneVsRestClassifier(FaastClassifier()).fit(ROWS, DIGITS).score(ROWS, DIGITS) >= 0.9


def test_clones_are_unfitted_and_share_the_backbone(kind):
    clf, X, y, _ = kind
    fitted = clone(clf).fit(X, y)
    again = clone(fitted)
    assert not hasattr(again, "classes_")
    assert again.backbone is fitted.backbone
    assert again.get_params() == clf.get_params()
    again.class_weight = {0: 1.0}
    assert clone(again).class_weight is not again.class_weight


def by_pickle(clf):
    return pickle.loads(pickle.dumps(clf))


def by_joblib(clf):
    stream = io.BytesIO()
    joblib.dump(clf, stream)
    stream.seek(0)
    return joblib.load(stream)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda clf: pickle.loads(pickle.dumps(clf)), by_joblib]
)
@pytest.mark.parametrize("solved", [False, True])
def test_copies_predict_the_same_and_go_their_own_way(duplicate, solved):
    for options, X, y, _ in (KINDS["rows"], KINDS["texts"]):
        clf = FaastClassifier(**options).fit(X[:-4], y[:-4])
        if solved:
            clf.predict(X[:1])
        twin = duplicate(clf)
        expected = clf.predict_proba(X)
        assert np.array_equal(twin.predict_proba(X), expected)
        twin.partial_fit(X[-4:], y[-4:])
        assert (twin.n_samples_seen_, clf.n_samples_seen_) == (len(y), len(y) - 4)
        assert np.array_equal(clf.predict_proba(X), expected)
        assert not np.array_equal(twin.predict_proba(X), expected)


def test_pickles_hold_statistics_and_no_weights(kind):
    clf, X, y, _ = kind
    fitted = clone(clf).fit(X, y)
    fitted.predict(X[:1])
    d, c = fitted.moments_.n_features, len(fitted.classes_)
    assert len(pickle.dumps(fitted)) <= 8 * d * (min(d, len(y)) + 4 * c + 4) + 10_000
    assert len(pickle.dumps(clf)) < 2000


@pytest.mark.slow  # starts an interpreter
def test_importing_and_unpickling_load_no_model_library_and_open_nothing(tmp_path):
    path = tmp_path / "clf.pkl"
    path.write_bytes(pickle.dumps(FaastClassifier("bundled:minilm-l6", device="cpu").fit(TEXTS, TOPICS)))
    # torch itself may import tqdm and PIL.
    code = """
import pickle, sys, torch, sklearn.base
before = set(sys.modules)
import faast_sklearn, faast_sklearn.display, faast_sklearn.backbones as b
from faast_sklearn.backbones.open_backbones import open_count
b.list_backbones("bundled:*")
repr(faast_sklearn.BackboneFeatures("hf:x/y"))
clf = pickle.load(open(sys.argv[1], "rb"))
print(clf.classes_.tolist(), clf.coef_.shape, clf.n_samples_seen_, open_count())
heavy = {"timm", "torchvision", "transformers", "PIL", "tqdm", "pandas", "matplotlib"}
print(sorted(heavy & (set(sys.modules) - before)))
print(clf.predict(["a mouse hides"])[0], open_count())
"""
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["['animals', 'money'] (1, 1536) 24 0", "[]", "animals 1"]


def test_sample_weights_are_routed():
    weights = np.random.default_rng(0).uniform(0.1, 2.0, len(DIGITS))
    with sklearn.config_context(enable_metadata_routing=True):
        clf = FaastClassifier(alpha=1.0).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        pipe = Pipeline([("scale", StandardScaler().set_fit_request(sample_weight=False)), ("clf", clf)])
        pipe.fit(ROWS, DIGITS, sample_weight=weights)
        scaled = StandardScaler().fit_transform(ROWS)
        assert np.array_equal(pipe[-1].coef_, FaastClassifier(alpha=1.0).fit(scaled, DIGITS, weights).coef_)
        result = cross_validate(clf, ROWS, DIGITS, cv=2, params={"sample_weight": weights}, return_estimator=True)
        assert all(estimator.moments_.weight != estimator.n_samples_seen_ for estimator in result["estimator"])
        search = GridSearchCV(clf, {"alpha": [0.1, 1.0]}, cv=2).fit(ROWS, DIGITS, sample_weight=weights)
        assert search.best_estimator_.moments_.weight == pytest.approx(weights.sum())
        assert clone(clf)._metadata_request.fit.requests["sample_weight"] is True


def test_nested_parameters_and_names_of_columns():
    import pandas as pd

    clf = FaastClassifier(alpha=0.5)
    assert clf.get_params()["alpha"] == 0.5
    assert clf.set_params(solver="pinv").solver == "pinv"
    frame = pd.DataFrame(ROWS[:, :6], columns=list("abcdef"))
    clf = FaastClassifier().fit(frame, DIGITS)
    assert list(clf.feature_names_in_) == list("abcdef")
    with pytest.raises(ValueError, match="feature names"):
        clf.predict(frame[list("fedcba")])
    shuffled = pd.Series(TEXTS, index=range(100, 124)).sample(frac=1.0, random_state=0)
    topics = pd.Series(TOPICS, index=range(100, 124))[shuffled.index]
    text = FaastClassifier("bundled:minilm-l6", device="cpu")
    by_series = text.fit(shuffled, topics).predict_proba(TEXTS)
    by_frame = clone(text).fit(shuffled.to_frame("text"), topics).predict_proba(TEXTS)
    np.testing.assert_allclose(by_series, clone(text).fit(TEXTS, TOPICS).predict_proba(TEXTS), atol=1e-5)
    np.testing.assert_allclose(by_series, by_frame, atol=1e-7)
