"""BackboneFeatures: what the backbone gives, in the order of the samples, and nothing learnt."""

import pickle

import numpy as np
import pytest
import torch
from helpers.tiny import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline

from faast_sklearn import BackboneFeatures, FaastClassifier, backbone
from faast_sklearn.backbones import release_backbones
from faast_sklearn.backbones.open_backbones import open_count
from faast_sklearn.errors import InputError, TruncationWarning
from faast_sklearn.features.normalize import unit_rows

TEXTS = ["a cat sat on the mat", "", "the red house", "one two three " * 9, "green", "far away from the blue tree"]


IMAGES = backbone("bundled:efficientnet-lite0", image_size=64)  # real weights at a quarter of the cost


class Pixels(torch.nn.Module):
    def forward(self, x):
        return x.float().flatten(1)[:, ::7]


@pytest.fixture(scope="module")
def images():
    return (load_digits().images[:12] * 15).astype(np.uint8)


@pytest.mark.parametrize("batch_size", ["auto", 5])
def test_real_images_become_the_features_of_the_backbone(images, batch_size):
    features = BackboneFeatures(IMAGES, device="cpu", batch_size=batch_size)
    out = features.fit(images).transform(images)
    expected = encode(IMAGES.open("cpu"), list(images))
    assert out.shape == (12, 1280)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    assert features.n_features_out_ == 1280
    assert features.device_ == "cpu"


def test_texts_come_back_in_their_own_order():
    features = BackboneFeatures("bundled:minilm-l6", device="cpu", batch_size=2).fit()
    out = features.transform(TEXTS)
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose(out[i], features.transform([text])[0], atol=2e-6)
    assert np.isfinite(out).all()


def test_cut_texts_are_told_once_a_call():
    handle = backbone("bundled:minilm-l6", max_length=6)
    with pytest.warns(TruncationWarning, match="3 of 6 texts") as caught:
        BackboneFeatures(handle, device="cpu", batch_size=1).fit().transform(TEXTS)
    assert len(caught) == 1
    with pytest.warns(TruncationWarning, match="6 of 12 texts") as caught:
        FaastClassifier(handle, device="cpu").fit((TEXTS, [0, 1, 0, 1, 0, 1]) for _ in range(2))
    assert len(caught) == 1
    with pytest.raises(InputError, match=r"X\[0\] has 8 tokens"):
        BackboneFeatures(backbone(handle, truncation="error"), device="cpu").fit().transform(TEXTS)


def test_normalized_features_have_unit_norm():
    plain = BackboneFeatures("bundled:minilm-l6", device="cpu").fit().transform(TEXTS)
    unit = BackboneFeatures("bundled:minilm-l6", device="cpu", normalize=True).fit().transform(TEXTS)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_classifier_with_a_backbone_is_a_pipeline_of_both(images, normalize):
    y = np.arange(12) % 3
    one = FaastClassifier(IMAGES, device="cpu", layers="last", alpha=1.0, normalize=normalize).fit(images, y)
    two = make_pipeline(BackboneFeatures(IMAGES, device="cpu", normalize=normalize), FaastClassifier(alpha=1.0))
    two.fit(images, y)
    np.testing.assert_allclose(one.coef_, two[-1].coef_, rtol=0, atol=1e-5 * np.abs(one.coef_).max())
    np.testing.assert_allclose(one.predict_proba(images), two.predict_proba(images), atol=1e-5)
    assert one.n_features_in_ == 1280


def test_float64_backbones_give_float64():
    rows = np.random.default_rng(0).normal(size=(4, 7, 2))

    class Double(torch.nn.Module):
        def forward(self, x):
            return x.double().flatten(1)

    out = BackboneFeatures(Double(), device="cpu", dtype="float64").fit_transform(rows)
    assert out.dtype == np.float64
    assert np.array_equal(out, rows.reshape(4, -1))


def test_fit_opens_the_backbone_and_only_a_bare_module_needs_samples(images):
    release_backbones()
    before = open_count()
    BackboneFeatures("bundled:minilm-l6")
    assert open_count() == before
    assert BackboneFeatures("bundled:minilm-l6", device="cpu").fit().n_features_out_ == 384
    assert open_count() == before + 1
    with pytest.raises(InputError, match="pass samples to fit"):
        BackboneFeatures(Pixels()).fit()
    assert BackboneFeatures(Pixels(), device="cpu").fit(images[:2]).n_features_out_ == 10


def test_another_width_than_at_fit_is_refused(images):
    features = BackboneFeatures(Pixels(), device="cpu").fit(images)
    with pytest.raises(InputError, match=r"now gives 5 features, .* learnt from 10"):
        features.transform(images[:, :4])
    classifier = FaastClassifier(Pixels(), device="cpu").fit(images, np.arange(12) % 2)
    for call in (classifier.predict, lambda X: classifier.partial_fit(X, np.arange(12) % 2)):
        with pytest.raises(InputError, match=r"now gives 5 features, .* learnt from 10"):
            call(images[:, :4])
    assert classifier.fit(images[:, :4], np.arange(12) % 2).n_features_in_ == 5


def test_names_and_containers_of_the_output():
    features = BackboneFeatures("bundled:minilm-l6", device="cpu").fit()
    names = features.get_feature_names_out()
    assert (names[0], len(names)) == ("backbonefeatures0", 384)
    frame = features.set_output(transform="pandas").transform(TEXTS)
    assert list(frame.columns) == list(names)
    assert clone(features).fit().transform(TEXTS).shape == (6, 384)
    assert hasattr(clone(features).fit().transform(TEXTS), "columns")


def test_pickles_hold_no_weights_and_run_again():
    features = BackboneFeatures("bundled:minilm-l6", device="cpu").fit()
    data = pickle.dumps(features)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data).transform(TEXTS), features.transform(TEXTS))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(-300, 300), st.sampled_from([np.float64, np.float32, torch.float64]))
def test_unit_rows_have_unit_norm_at_any_scale(seed, exponent, kind):
    X = np.random.default_rng(seed).normal(size=(4, 3))
    X[1] = 0.0
    X = X * 10.0 ** (exponent if kind is not np.float32 else exponent / 9)
    before = X.copy()
    rows = X.astype(kind) if kind is not torch.float64 else torch.from_numpy(X)
    unit = np.asarray(unit_rows(rows))
    assert unit.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1, 0, 1, 1], atol=1e-12)
    assert np.array_equal(X, before)
