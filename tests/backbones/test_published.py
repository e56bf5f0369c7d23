import json
import shutil

import pytest
import torch
import transformers as tr
from helpers.published import base_model, readouts, write
from helpers.tiny import encode, tiny_tokenizer
from safetensors.torch import load_file, save_file

from faast_sklearn.backbones import backbone
from faast_sklearn.errors import BackboneError


@pytest.fixture(params=["gpt2", "qwen2"])
def base(request, tmp_path):
    """Name, base model, and a folder with nothing but its configuration."""
    model = base_model(request.param)
    model.config.save_pretrained(tmp_path / "base")
    return model, tmp_path / "base"


@pytest.mark.parametrize("shards", [1, 3])
def test_base_model_and_readouts_are_read(base, tmp_path, shards):
    model, config = base
    folder = write(tmp_path / "faast", model, shards=shards)
    ids = torch.tensor([[5, 9, 7, 4]])
    with torch.inference_mode():
        expected = model(ids).logits
    for spec in (folder, f"hf:{folder}"):
        for base_config in (config, config / "config.json", str(config)):
            lm = backbone(spec, base_config=base_config, trust_remote_code=True).open_language_model("cpu")
            with torch.inference_mode():
                assert torch.equal(lm.module(ids).logits, expected)
    assert type(lm.module) is type(model)
    assert not lm.module.training
    assert not any(parameter.requires_grad for parameter in lm.module.parameters())
    assert lm.tokenizer("the cat")["input_ids"] == tiny_tokenizer("decoder")("the cat")["input_ids"]
    assert lm.readouts.layer_indices == (1, 3)  # int(5 / 3), int(10 / 3)
    assert (lm.readouts.alpha, lm.readouts.weight) == (0.7, 0.9)
    written = readouts(2)
    for i in range(2):
        assert torch.equal(lm.readouts.scorers[i], written[f"external.layers.{i}.memory_reader.scorer.weight"])
        assert torch.equal(lm.readouts.out_projs[i], written[f"external.layers.{i}.interpreter.out_proj.weight"])


def test_readouts_follow_the_dtype(base, tmp_path):
    model, config = base
    folder = write(tmp_path / "faast", model, n=1)
    lm = backbone(folder, base_config=config).open_language_model("cpu", "bfloat16")
    assert lm.head.weight.dtype == lm.readouts.scorers[0].dtype == lm.readouts.out_projs[0].dtype == torch.bfloat16
    assert lm.readouts.layer_indices == (2,)


def test_features_are_those_of_the_base_model(base, tmp_path):
    model, config = base
    folder = write(tmp_path / "faast", model)
    texts = ["the cat sat", "a dog"]
    plain = encode(backbone((model, tiny_tokenizer("decoder"))).open("cpu"), texts)
    assert torch.equal(encode(backbone(folder, base_config=config).open("cpu"), texts), plain)


def test_a_checkpoint_without_middle_memories(base, tmp_path):
    model, config = base
    folder = write(tmp_path / "faast", model, n=0)
    readouts_ = backbone(folder, base_config=config).open_language_model("cpu").readouts
    assert readouts_.scorers == readouts_.out_projs == readouts_.layer_indices == ()


def test_tied_heads_may_be_present_or_absent(tmp_path):
    for name, tied in (("gpt2", True), ("qwen2", True), ("qwen2", False)):
        model = base_model(name, tie_word_embeddings=tied)
        config = tmp_path / f"base-{name}-{tied}"
        model.config.save_pretrained(config)
        folder = write(tmp_path / f"{name}-{tied}", model)
        lm = backbone(folder, base_config=config).open_language_model("cpu")
        assert (lm.head.weight is lm.embedding.weight) == tied
        assert torch.equal(lm.head.weight, model.lm_head.weight)
        state = load_file(folder / "model.safetensors")
        state["model.lm_head.weight"] = model.lm_head.weight.detach().clone()
        # Older checkpoints of GPT-2 hold the causal masks too.
        state |= {"model.transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4)} if name == "gpt2" else {}
        again = shutil.copytree(folder, tmp_path / f"{name}-{tied}-again")
        save_file(state, again / "model.safetensors")
        lm = backbone(again, base_config=config).open_language_model("cpu")
        assert torch.equal(lm.head.weight, model.lm_head.weight)
        state["model.lm_head.weight"] += 1
        other = shutil.copytree(again, tmp_path / f"{name}-{tied}-other")
        save_file(state, other / "model.safetensors")
        handle = backbone(other, base_config=config)
        if tied:
            with pytest.raises(BackboneError, match=r"model\.lm_head\.weight differs from"):
                handle.open_language_model("cpu")
        else:
            assert torch.equal(handle.open_language_model("cpu").head.weight, model.lm_head.weight + 1)


def cut(name):
    return lambda state: state.pop(name)


def put(name, *shape):
    return lambda state: state.update({name: torch.zeros(shape)})


SCORER, OUT = "external.layers.{}.memory_reader.scorer.weight", "external.layers.{}.interpreter.out_proj.weight"
NORM = "model.model.norm.weight"
FAULTS = {
    "missing scorer": (cut(SCORER.format(1)), f"{SCORER.format(1)} is missing"),
    "missing projection": (cut(OUT.format(0)), f"{OUT.format(0)} is missing"),
    "extra scorer": (put(SCORER.format(2), 1, 32), f"{SCORER.format(2)} is unexpected"),
    "extra thing": (put("elsewhere.weight", 3), "elsewhere.weight is unexpected"),
    "scorer's shape": (put(SCORER.format(0), 1, 31), rf"{SCORER.format(0)} has shape (1, 31) instead of (1, 32)"),
    "projection's shape": (put(OUT.format(1), 16, 8), rf"{OUT.format(1)} has shape (16, 8) instead of (16, 16)"),
    "missing base tensor": (cut(NORM), f"{NORM} is missing"),
    "extra base tensor": (put("model.model.mystery", 2), "model.model.mystery is unexpected"),
    "base tensor's shape": (put(NORM, 15), f"{NORM} has shape (15,) instead of (16,)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_tensor_is_named(fault, tmp_path):
    model = base_model("qwen2")
    model.config.save_pretrained(tmp_path / "base")
    folder = write(tmp_path / "faast", model)
    state = load_file(folder / "model.safetensors")
    change, message = FAULTS[fault]
    change(state)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(BackboneError) as error:
        backbone(folder, base_config=tmp_path / "base").open_language_model("cpu")
    assert message in str(error.value)
    assert str(error.value).count(" is ") + str(error.value).count(" has ") == 1  # and nothing else


def test_several_faults_are_named_at_once(tmp_path):
    model = base_model("qwen2")
    model.config.save_pretrained(tmp_path / "base")
    folder = write(tmp_path / "faast", model, n=1)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_layers": 2}))
    with pytest.raises(
        BackboneError, match=r"layers\.1\.interpreter.* is missing; .*layers\.1\.memory_reader.* is missing"
    ):
        backbone(folder, base_config=tmp_path / "base").open_language_model("cpu")
    (folder / "config.json").write_text(json.dumps({**settings, "num_layers": 5}))
    with pytest.raises(BackboneError, match="num_layers=5, but the base model has 5 blocks"):
        backbone(folder, base_config=tmp_path / "base").open_language_model("cpu")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reader_type", "attention"),
        ("extractor_type", "all"),
        ("interpreter_type", "gated"),
        ("num_layers", -1),
        ("num_layers", "two"),
        ("reader_update_alpha", 0),
        ("memory_weight", 2),
    ],
)
def test_settings_that_are_not_supported_are_refused(name, value, tmp_path):
    folder = write(
        tmp_path / "faast", base_model("gpt2"), **{"n": 1, name: value} if name != "num_layers" else {"n": 1}
    )
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, name: value}))
    with pytest.raises(BackboneError, match=f"{name}={value!r}"):
        backbone(folder, base_config="unused").open_language_model("cpu")


def test_the_base_configuration_must_be_found(tmp_path):
    folder = write(tmp_path / "faast", base_model("gpt2"), base_model="Qwen2.5-3B-Instruct")
    with pytest.raises(
        BackboneError, match=r"(?s)made from 'Qwen2.5-3B-Instruct'.*'Qwen/Qwen2.5-3B-Instruct' cannot.*base_config=PATH"
    ):
        backbone(folder).open_language_model("cpu")
    with pytest.raises(BackboneError, match="nowhere' cannot be loaded"):
        backbone(folder, base_config=tmp_path / "nowhere").open_language_model("cpu")
    with pytest.raises(BackboneError, match="faast' cannot be loaded"):
        backbone(folder, base_config=folder).open_language_model("cpu")
    tr.ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(BackboneError, match="a 'vit' model, is not a causal language model"):
        backbone(folder, base_config=tmp_path / "vit").open_language_model("cpu")


def test_a_base_configuration_is_for_published_checkpoints_that_are_there(tiny_folder, tmp_path):
    folder = tiny_folder("gpt2")
    with pytest.raises(TypeError, match="base_config= is for published FAAST checkpoints"):
        backbone(folder, base_config=folder).open_language_model("cpu")
    with pytest.raises(BackboneError, match="cannot load the configuration of 'nobody/nothing'"):
        backbone("hf:nobody/nothing", base_config=folder).open_language_model("cpu")


def test_base_model_may_be_a_path(base, tmp_path):
    model, config = base
    folder = write(tmp_path / "faast", model, base_model=str(config))
    assert backbone(folder).open_language_model("cpu").readouts is not None


def test_tokenizer_and_generation_settings_come_from_either_folder(base, tmp_path):
    model, config = base
    folder = write(tmp_path / "faast", model, tokenizer=False)
    with pytest.raises(BackboneError, match=r"has a tokenizer \(tokenizer\.json"):
        backbone(folder, base_config=config).open_language_model("cpu")
    tiny_tokenizer("decoder").save_pretrained(config)
    (config / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    lm = backbone(folder, base_config=config).open_language_model("cpu")
    assert lm.eos_ids == (5, 6, 3)
    # transformers puts its own class on a folder that says qwen2; that is what anyone gets from there.
    expected = tr.AutoTokenizer.from_pretrained(config)
    assert lm.tokenizer("the cat")["input_ids"] == expected("the cat")["input_ids"]


def test_only_safetensors_inside_the_folder_are_read(base, tmp_path):
    model, config = base
    folder = write(tmp_path / "faast", model)
    shutil.move(folder / "model.safetensors", tmp_path / "model.safetensors")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"no file 'model\.safetensors'; its weights must be safetensors"):
        backbone(folder, base_config=config).open_language_model("cpu")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.x": "../model.safetensors"}}))
    with pytest.raises(BackboneError, match=r"no file '\.\./model\.safetensors'"):
        backbone(folder, base_config=config).open_language_model("cpu")
    shutil.move(tmp_path / "model.safetensors", folder / "part.safetensors")
    index.write_text(json.dumps({"weight_map": {"model.x": "part.safetensors"}}))
    with pytest.raises(BackboneError, match=r"lists 1 tensors that its files lack: model\.x"):
        backbone(folder, base_config=config).open_language_model("cpu")
    index.unlink()
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(BackboneError, match=r"model\.safetensors' cannot be read"):
        backbone(folder, base_config=config).open_language_model("cpu")
