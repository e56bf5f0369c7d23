"""open_clip's models as backbones: a tiny one, written here, with random weights."""

import json
import logging
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from faast_sklearn import FaastClassifier, backbone, list_backbones
from faast_sklearn.errors import BackboneError, MissingDependencyError, UnknownBackboneError

open_clip = pytest.importorskip("open_clip")

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Name of the model and a file with its weights."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "faast-tiny.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    torch.save(open_clip.create_model("faast-tiny").state_dict(), folder / "weights.pt")
    logging.disable(logging.NOTSET)
    return "faast-tiny", folder / "weights.pt"


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (32, 32), (48, 64), (80, 40)]
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


def test_features_of_both_towers_are_open_clips(tiny, photos):
    name, weights = tiny
    opened = backbone(f"open_clip:{name}", weights=str(weights)).open("cpu")
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(weights))
    texts = ["a photo of a cat", "dog"]
    with torch.inference_mode():
        images = model.eval().encode_image(torch.stack([preprocess(photo) for photo in photos]))
        words = model.encode_text(open_clip.get_tokenizer(name)(texts))
    ours = opened.forward(opened.collate([opened.load(photo) for photo in photos]))
    assert torch.allclose(ours[:2], images[:2], atol=1e-4)
    assert torch.allclose(ours, images, atol=3e-2)  # two implementations of a resize that round to eight bits
    assert torch.allclose(opened.embed_text(texts), words, atol=1e-5)
    assert opened.logit_scale == pytest.approx(model.logit_scale.exp().item())


def test_class_names_and_examples_go_together(tiny, photos):
    name, weights = tiny
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


def test_a_model_without_weights_is_refused(tiny):
    with pytest.raises(BackboneError, match="no pretrained weights"):
        backbone(f"open_clip:{tiny[0]}").open("cpu")


def test_the_package_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert list_backbones("open_clip:*") == []
    with pytest.raises(MissingDependencyError, match="pip install open_clip_torch"):
        backbone("open_clip:RN50/openai").open("cpu")
