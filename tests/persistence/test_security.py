"""Nothing that comes from elsewhere runs: weights that are pickles with code in them, repositories, files."""

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import faast_sklearn
from faast_sklearn import backbone, register_backbone
from faast_sklearn.backbones import registry
from faast_sklearn.backbones.tensors_only import tensors_only
from faast_sklearn.errors import BackboneError, FaastError


class Runs:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "ran").exists()


def poison(path):
    torch.save({"weight": torch.ones(2), "more": Runs()}, path)


def test_pickled_weights_with_code_in_them_are_refused(here, tiny_folder):
    poison("weights.pth")
    with pytest.raises(BackboneError, match=r"cannot read weights='weights\.pth'"):
        backbone("timm:resnet18", weights="weights.pth").open("cpu")
    Path("timm").mkdir()
    poison("timm/pytorch_model.bin")
    Path("timm/config.json").write_text(json.dumps({"architecture": "resnet18"}))
    with pytest.raises(BackboneError, match="cannot read weights"):
        backbone("timm").open("cpu")
    shutil.copytree(tiny_folder("bert"), "hf")
    for file in Path("hf").glob("*.safetensors"):
        file.unlink()
    poison("hf/pytorch_model.bin")
    with pytest.raises(BackboneError):
        backbone("hf").open("cpu")


def test_a_pickled_layer_of_a_sentence_encoder_is_refused(here, tiny_folder):
    folder = Path(shutil.copytree(tiny_folder("bert"), "sentences"))
    for name, config in (
        ("1_Pooling", {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}),
        ("2_Dense", {"in_features": 16, "out_features": 4, "activation_function": "torch.nn.modules.linear.Identity"}),
    ):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    poison(folder / "2_Dense" / "pytorch_model.bin")
    kinds = ("Transformer", "Pooling", "Dense")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises((BackboneError, pickle.UnpicklingError)):
        backbone(str(folder)).open("cpu")


def test_libraries_that_would_unpickle_cannot_while_a_model_is_opened(here, monkeypatch):
    poison("weights.pth")

    class Careless:
        @staticmethod
        def open(name, *, device, dtype):
            return torch.load("weights.pth", weights_only=False)

    monkeypatch.setitem(registry._BUILT_IN, "careless", Careless)
    monkeypatch.setitem(registry._registered, "careless", Careless)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(pickle.UnpicklingError):
        backbone("careless:any").open("cpu")
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@tensors_only()
def interrupted():
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    raise KeyboardInterrupt


def test_the_environment_is_as_before_also_after_an_error(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    before = dict(os.environ)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert dict(os.environ) == before


def test_a_registered_backbone_reads_its_own_files_in_its_own_way(here, monkeypatch):
    torch.save({"size": 3, "kind": slice(0, 3)}, "own.pth")  # more than tensors

    def open_own(name, *, device, dtype):
        raise BackboneError(f"{torch.load('own.pth', weights_only=False)['kind']}")

    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    register_backbone("own", open_own)
    with pytest.raises(BackboneError, match=r"slice\(0, 3"):
        backbone("own:any").open("cpu")


def test_code_of_a_repository_needs_its_name(here, tiny_folder):
    folder = Path(shutil.copytree(tiny_folder("bert"), "code"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("open('ran', 'w')\n")
    with pytest.raises(FaastError, match="trust_remote_code=True"):
        backbone(str(folder)).open("cpu")


def calls(tree, *names):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in names or called.rpartition(".")[2] in names:
                yield called, node


SOURCES = sorted(Path(faast_sklearn.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_source_reads_no_pickles_and_evaluates_no_text(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for called, node in calls(tree, "torch.load"):
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        assert isinstance(keywords.get("weights_only"), ast.Constant), called
        assert keywords["weights_only"].value is True
    for called, _ in calls(tree, "eval", "exec", "__import__", "system", "Popen"):
        # torch.nn.Module.eval() takes the same name.
        assert called.endswith(".eval"), f"{path.name} calls {called}"
    for called, _ in calls(tree, "pickle.load", "pickle.loads", "joblib.load"):
        raise AssertionError(f"{path.name} calls {called}")
    for called, node in calls(tree, "from_pretrained", "create_model", "AutoModel"):
        for keyword in node.keywords:
            if keyword.arg == "trust_remote_code":
                assert isinstance(keyword.value, ast.Constant), f"{path.name}: {called}"
                assert keyword.value.value is False
