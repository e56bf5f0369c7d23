"""Values in place of one-hot codes, the zero-shot prior, and a tiny CLIP and SigLIP that exercise both."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from faast_sklearn import FaastClassifier, backbone, merge
from faast_sklearn.errors import InputError
from faast_sklearn.readout.class_vectors import class_values
from faast_sklearn.readout.zero_shot import prior_weight

PAPER = {
    "layers": "last",
    "device": "cpu",
    "solver": "pinv",
    "alpha": 0.8,
    "normalize": True,
    "fit_intercept": False,
    "values": "text",
}
NAMES = np.array(["cat", "dog", "fish"])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]])
    y = np.arange(36) % 3
    pixels = colours[y][:, None, None] + rng.integers(-30, 30, (36, 40, 40, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8), NAMES[y]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def dual(request, tiny_folder):
    return tiny_folder(request.param)


def towers(spec, X, texts):
    """Image features, text features and the logit scale, from transformers' model itself."""
    opened = backbone(spec).open("cpu")
    features = opened.forward(opened.collate([opened.read(x) for x in X])).double().numpy()
    scale = float(torch.exp(opened.module.logit_scale.detach().double()))
    return unit(features), unit(opened.embed_text(list(texts)).double().numpy()), scale


def paper_scores(K, V, labels, X, E, alpha, n0):
    """Cosines of y = (1 - r) x + r x W, W = pinv(K; rtol = N ** -alpha) V, as the paper writes it."""
    N = len(K)
    W = np.linalg.pinv(K, rcond=float(N) ** -alpha) @ V[labels]
    r = N / (n0 + N)
    return unit((1 - r) * X + r * (X @ W)) @ E.T


@pytest.mark.parametrize("n0", [0.0, 1.0, 40.0, 400.0])
def test_the_papers_classifier_is_reproduced(dual, images, n0):
    X, y = images
    prompts = [f"A photo of a {name}." for name in NAMES]
    features, E, _ = towers(dual, X, prompts)
    labels = np.searchsorted(NAMES, y)
    clf = FaastClassifier(dual, prior_strength=n0, **PAPER).fit(X[:24], y[:24])
    expected = paper_scores(features[:24], E, labels[:24], features[24:], E, 0.8, n0)
    # The scores are the paper's before y is scaled to unit length, which is common to all classes.
    ours = clf.decision_function(X[24:])
    np.testing.assert_allclose(unit(ours), unit(expected), atol=1e-6)
    assert (clf.predict(X[24:]) == NAMES[expected.argmax(1)]).all()


def test_the_weight_of_what_was_learnt_is_the_papers(images, tiny_folder):
    """r = N / (N0 + N), read back from the coefficients: they are a mixture of the prior's and of those without it."""
    X, y = images
    features, E, _ = towers(tiny_folder("clip"), X, [f"A photo of a {name}." for name in NAMES])
    V = E[np.searchsorted(NAMES, y)]
    learnt = (np.linalg.pinv(features, rcond=len(X) ** -0.8) @ V @ E.T).T
    for n0 in (1.0, 36.0, 400.0):
        clf = FaastClassifier(tiny_folder("clip"), prior_strength=n0, **PAPER).fit(X, y)
        parts = np.stack([E.ravel(), learnt.ravel()], axis=1)
        (a, b), *_ = np.linalg.lstsq(parts, clf.coef_.ravel(), rcond=None)
        assert b / (a + b) == pytest.approx(len(X) / (n0 + len(X)), abs=1e-6)
        assert 1 - prior_weight(len(X), n0) == pytest.approx(len(X) / (n0 + len(X)), abs=1e-12)


def test_class_names_alone_predict_zero_shot(dual, images):
    X, _ = images
    features, E, scale = towers(dual, X, [f"A photo of a {name}." for name in NAMES])
    clf = FaastClassifier(dual, device="cpu", values="text").fit(None, list(NAMES[::-1]))
    assert clf.classes_.tolist() == NAMES.tolist()
    logits = scale * features @ E.T
    expected = np.exp(logits - np.logaddexp.reduce(logits, 1)[:, None])
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-5)
    assert (clf.n_samples_seen_, clf.alpha_, clf.solver_, clf.prior_strength_) == (0, None, None, np.inf)


def test_examples_may_follow_class_names(dual, images):
    X, y = images
    params = {"values": "text", "prior_strength": 10.0}
    later = FaastClassifier(dual, device="cpu", **params).fit(None, NAMES).partial_fit(X, y)
    at_once = FaastClassifier(dual, device="cpu", **params).fit(X, y)
    np.testing.assert_allclose(later.predict_proba(X), at_once.predict_proba(X), atol=1e-9)
    gone = later.forget(X, y)
    zero_shot = FaastClassifier(dual, device="cpu", **params).fit(None, NAMES)
    np.testing.assert_allclose(gone.predict_proba(X), zero_shot.predict_proba(X), atol=1e-12)


def test_a_class_without_examples_is_predicted_by_its_name():
    rng = np.random.default_rng(0)
    E = np.eye(3, 8)
    y = rng.integers(0, 3, 90)
    X = E[y] + 0.3 * rng.standard_normal((90, 8))
    known = y < 2
    for solver in ("ridge", "pinv"):
        clf = FaastClassifier(solver=solver, values=E, prior_strength=100.0)
        clf.partial_fit(X[known], y[known], classes=[0, 1, 2])
        assert clf.score(X[~known], y[~known]) > 0.7
        assert clf.score(X, y) > 0.7


def test_text_values_are_their_embeddings(dual, images):
    X, y = images
    templates = ["A photo of a {label}.", "a drawing of the {label}"]
    opened = backbone(dual).open("cpu")
    vectors = [unit(opened.embed_text([t.format(label=n) for n in NAMES]).double().numpy()) for t in templates]
    settings = {"device": "cpu", "prior_strength": 5.0}
    expected = FaastClassifier(dual, values=unit(vectors[0] + vectors[1]), **settings).fit(X, y)
    prompts = {n: [t.format(label=n) for t in templates] for n in NAMES.tolist()}
    as_text = FaastClassifier(dual, values=prompts, **settings).fit(X, y)
    # Embeddings are float32, so their rounding is relative to the size of what is made of them.
    np.testing.assert_allclose(as_text.coef_, expected.coef_, atol=1e-6 * np.abs(expected.coef_).max())
    numbers = np.searchsorted(NAMES, y)
    names = dict(enumerate(NAMES.tolist()))
    named = FaastClassifier(dual, values=names, **settings).fit(X, numbers)
    captioned = FaastClassifier(dual, values="text", **settings).fit(X, y)
    np.testing.assert_allclose(named.coef_, captioned.coef_, atol=1e-9)
    whole = {n: [templates[0].format(label=n)] for n in NAMES.tolist()}  # the caption of the paper, written out
    np.testing.assert_allclose(
        FaastClassifier(dual, values=whole, **settings).fit(X, y).coef_, captioned.coef_, atol=1e-9
    )
    assert named.predict(X).dtype == numbers.dtype


def test_text_encoders_read_class_names_too(tiny_folder):
    texts, y = ["red apple", "blue sea", "red rose", "blue sky"], np.array(["red", "blue", "red", "blue"])
    clf = FaastClassifier(tiny_folder("bert"), values="text", prior_strength=3.0).fit(texts, y)
    opened = backbone(tiny_folder("bert")).open("cpu")
    E = unit(opened.embed_text(["blue", "red"]).double().numpy())
    np.testing.assert_allclose(class_values("text", clf.classes_, opened).vectors, E, atol=1e-6)
    assert clf.predict_proba(texts).shape == (4, 2)


def test_label_embeddings_share_strength_between_likes():
    """With one-hot parents beside the classes, mistakes stay within the parent."""
    rng = np.random.default_rng(0)
    parent = np.array([0, 0, 1, 1])
    centres = 3.0 * np.eye(2, 20)[parent] + 0.4 * rng.standard_normal((4, 20))
    y = np.arange(24) % 4
    y_test = rng.integers(0, 4, 2000)
    X, X_test = (centres[k] + rng.standard_normal((len(k), 20)) for k in (y, y_test))
    values = np.hstack([np.eye(4), np.eye(2)[parent]])
    flat = FaastClassifier(values=np.eye(4)).fit(X, y).predict(X_test)
    tree = FaastClassifier(values=values).fit(X, y).predict(X_test)
    assert (parent[tree] != parent[y_test]).mean() < (parent[flat] != parent[y_test]).mean()


def test_one_hot_vectors_are_one_hot_values(images):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 5)), np.arange(60) % 3
    a = FaastClassifier(solver="pinv", values=np.eye(3)).fit(X, y)
    b = FaastClassifier(solver="pinv").fit(X, y)
    assert (a.predict(X) == b.predict(X)).all()


@pytest.fixture(scope="module")
def space():
    """Features, labels and class vectors of which the prior says much, and others of which it says nothing."""
    rng = np.random.default_rng(0)
    E = unit(rng.standard_normal((6, 32)))
    y = np.arange(600) % 6
    X = unit(E[y] + 0.25 * rng.standard_normal((600, 32)))
    return X, y, E, unit(rng.standard_normal((6, 32)))


def test_automatic_prior_strength_follows_the_data(space):
    X, y, E, noise = space
    few = slice(0, 36)
    right = FaastClassifier(values=E, prior_strength="auto").fit(X[few], y[few])
    wrong = FaastClassifier(values=noise, prior_strength="auto").fit(X[few], y[few])
    assert right.prior_strength_ > wrong.prior_strength_
    test = slice(36, None)
    alone = FaastClassifier().fit(X[few], y[few])
    assert right.score(X[test], y[test]) > alone.score(X[test], y[test])
    assert wrong.score(X[test], y[test]) > alone.score(X[test], y[test]) - 0.02


def test_names_are_examples_of_their_classes(space):
    """With a given strength: as if each vector, moved to where the features are, had been learnt with a weight."""
    X, y, E, _ = space
    X, y = X[:60], y[:60]
    clf = FaastClassifier(values=E, prior_strength=12.0).fit(X, y)
    moved = E - E.mean(0) + np.stack([X[y == k].mean(0) for k in range(6)]).mean(0)
    rows, labels = np.concatenate([X, moved]), np.concatenate([y, np.arange(6)])
    own = FaastClassifier().fit(rows, labels, sample_weight=np.concatenate([np.ones(60), np.full(6, 2.0)]))
    assert (clf.alpha_, clf.prior_strength_, clf.n_samples_seen_) == (own.alpha_, 12.0, 60)
    np.testing.assert_allclose(clf.predict_proba(X), own.predict_proba(X), atol=1e-9)
    weighted = FaastClassifier(values=E, prior_strength=12.0).fit(X, y, sample_weight=np.full(60, 3.0))
    np.testing.assert_allclose(weighted.predict_proba(X), clf.predict_proba(X), atol=1e-6)
    assert (clf.moments_.rows == 10).all()


def test_automatic_prior_strength_does_not_depend_on_the_split(space):
    X, y, E, _ = space
    whole = FaastClassifier(values=E, prior_strength="auto").fit(X, y)
    parts = FaastClassifier(values=E, prior_strength="auto")
    for part in np.array_split(np.random.default_rng(0).permutation(600), 7):
        parts.partial_fit(X[part], y[part], classes=range(6))
    merged = merge([FaastClassifier(values=E, prior_strength="auto").fit(X[i::5], y[i::5]) for i in range(5)])
    for other in (parts, merged):
        assert other.prior_strength_ == pytest.approx(whole.prior_strength_, rel=1e-9)
        np.testing.assert_allclose(other.predict_proba(X), whole.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("solver", ["ridge", "pinv"])
def test_probabilities_with_values_are_those_of_the_scores(space, solver):
    X, y, E, _ = space
    clf = FaastClassifier(solver=solver, values=E, prior_strength=50.0).fit(X[:60], y[:60])
    p = clf.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1.0)
    assert (clf.classes_[p.argmax(1)] == clf.predict(X)).all()
    np.testing.assert_allclose(clf.decision_function(X), X @ clf.coef_.T + clf.intercept_)
    copy = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(copy.predict_proba(X), p)


def test_a_grid_searches_values_and_strengths(space):
    X, y, E, _ = space
    vectors = dict(enumerate(E))
    grid = [{"values": [vectors], "prior_strength": [0.0, 30.0, "auto"]}, {"values": ["onehot"]}]
    search = GridSearchCV(FaastClassifier(), grid, cv=3).fit(X[:60], y[:60])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert clone(search.best_estimator_).values is not None


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"values": "words"}, ValueError, "values must be"),
        ({"values": 3}, ValueError, "values must be"),
        ({"values": "text"}, InputError, "backbone=None cannot embed texts"),
        ({"values": np.eye(2)}, InputError, "2 rows and there are 3 classes"),
        ({"values": np.full((3, 3), np.nan)}, InputError, "finite"),
        ({"values": {"cat": [1, 0], "dog": [0, 1]}}, InputError, "no entry for the labels \\['fish'\\]"),
        ({"values": {"cat": [1, 0], "dog": [0], "fish": [1, 1]}}, InputError, "equal length"),
        ({"values": np.eye(3), "prior_strength": 1.0}, InputError, "in the space of the features"),
        ({"values": np.eye(3), "prior_strength": -1.0}, ValueError, "prior_strength must be"),
        ({"values": np.eye(3), "prior_strength": "much"}, ValueError, "prior_strength must be"),
    ],
    ids=str,
)
def test_values_that_do_not_fit_are_refused(params, error, message):
    X = np.random.default_rng(0).standard_normal((9, 5))
    clf = FaastClassifier(**params)
    with pytest.raises(error, match=message):
        clf.fit(X, np.repeat(NAMES, 3))
    assert not hasattr(clf, "classes_")


def test_numbers_are_no_names(tiny_folder, images):
    with pytest.raises(InputError, match="'its name'"):
        FaastClassifier(tiny_folder("clip"), values="text").fit(images[0], np.arange(36) % 3)
    for spec in (None, tiny_folder("clip")):
        with pytest.raises(InputError, match="X is None; pass samples, or values='text'"):
            FaastClassifier(spec).fit(None, NAMES)
    with pytest.raises(InputError, match="y is empty"):
        FaastClassifier(tiny_folder("clip"), values="text").fit(None, [])
