"""open_clip's models as backbones: a tiny one, written here, with random weights."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from faast_sklearn import FaastClassifier, backbone, list_backbones
from faast_sklearn.errors import BackboneError, MissingDependencyError, UnknownBackboneError

open_clip = pytest.importorskip("open_clip")


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (32, 32), (48, 64), (80, 40)]
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


def test_features_of_both_towers_are_open_clips(tiny_open_clip, photos):
    name, weights = tiny_open_clip
    opened = backbone(f"open_clip:{name}", weights=str(weights)).open("cpu")
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(weights))
    texts = ["a photo of a cat", "dog"]
    with torch.inference_mode():
        images = model.eval().encode_image(torch.stack([preprocess(photo) for photo in photos]))
        words = model.encode_text(open_clip.get_tokenizer(name)(texts))
    ours = opened.forward(opened.collate([opened.read(photo) for photo in photos]))
    assert torch.allclose(ours[:2], images[:2], atol=1e-4)
    assert torch.allclose(ours, images, atol=3e-2)  # two implementations of a resize that round to eight bits
    assert torch.allclose(opened.embed_text(texts), words, atol=1e-5)
    assert opened.logit_scale == pytest.approx(model.logit_scale.exp().item())


def test_class_names_and_examples_go_together(tiny_open_clip, photos):
    name, weights = tiny_open_clip
    handle = backbone(f"open_clip:{name}", weights=str(weights))
    y = ["cat", "dog", "cat", "dog"]
    zero_shot = FaastClassifier(handle, values="text").fit(None, ["cat", "dog"])
    assert zero_shot.predict_proba(photos).shape == (4, 2)
    learnt = FaastClassifier(handle, values="text", prior_strength=2.0).fit(photos, y)
    assert learnt.predict(photos).tolist() == y


def test_names_are_listed_and_misspellings_answered():
    assert "open_clip:RN50/openai" in list_backbones("open_clip:RN50*")
    with pytest.raises(UnknownBackboneError, match="RN50/openai"):
        backbone("open_clip:RN50/openia").open("cpu")
    with pytest.raises(UnknownBackboneError, match="has no"):
        backbone("open_clip:nothing-like-it").open("cpu")
    with pytest.raises(BackboneError, match="does not exist"):
        backbone("open_clip:RN50", weights="no such file").open("cpu")


def test_weights_run_with_the_activation_they_were_trained_with(tiny_open_clip, monkeypatch):
    name, weights = tiny_open_clip
    tags = {tag: {"url": "", "quick_gelu": quick} for tag, quick in (("quick", True), ("plain", False))}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)
    found = {}
    for tag in tags:
        opened = backbone(f"open_clip:{name}/{tag}", weights=str(weights)).open("cpu")
        found[tag] = {type(layer).__name__ for layer in opened.module.modules()}
    assert "QuickGELU" in found["quick"]
    assert "QuickGELU" not in found["plain"]


def test_a_model_without_weights_is_refused(tiny_open_clip):
    with pytest.raises(BackboneError, match="no pretrained weights"):
        backbone(f"open_clip:{tiny_open_clip[0]}").open("cpu")


def test_the_package_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert list_backbones("open_clip:*") == []
    with pytest.raises(MissingDependencyError, match="pip install open_clip_torch"):
        backbone("open_clip:RN50/openai").open("cpu")
