import json

import numpy as np
import pytest
import torch
from helpers.tiny import encode, tiny_model, tiny_tokenizer

from faast_sklearn.backbones import backbone
from faast_sklearn.backbones.transformers.text import pool
from faast_sklearn.errors import BackboneError, InputError

TEXTS = ["the cat sat", "a", "", "one two three red green blue house", "unknownword dog"]
MODELS = ["bert", "roberta", "gpt2", "llama", "t5"]


@pytest.mark.parametrize("how", ["mean", "last", "cls", "max", "mean_sqrt_len", "weighted_mean"])
def test_pooling_ignores_padding_on_either_side(how):
    states = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    junk = torch.full((2, 4), 1e6)
    right = pool(torch.cat([states, junk])[None], torch.tensor([[1, 1, 1, 0, 0]]), how)
    left = pool(torch.cat([junk, states])[None], torch.tensor([[0, 0, 1, 1, 1]]), how)
    alone = pool(states[None], torch.ones(1, 3, dtype=torch.long), how)
    assert torch.allclose(right, alone)
    assert torch.allclose(left, alone)


def test_poolings_are_what_their_names_say():
    states = torch.tensor([[[1.0], [2.0], [6.0]]])
    mask = torch.ones(1, 3, dtype=torch.long)
    expected = {"mean": 3, "last": 6, "cls": 1, "max": 6, "mean_sqrt_len": 9 / 3**0.5, "weighted_mean": 23 / 6}
    for how, value in expected.items():
        assert pool(states, mask, how).item() == pytest.approx(value)


@pytest.mark.parametrize("name", MODELS)
def test_features_do_not_depend_on_batch_mates(name, tiny_folder):
    opened = backbone(tiny_folder(name)).open("cpu")
    together, alone = encode(opened, TEXTS), encode(opened, TEXTS, batch_size=1)
    assert together.shape == (len(TEXTS), 16)
    assert torch.isfinite(together).all()
    assert torch.allclose(together, alone, atol=1e-5)
    assert (together[0] - together[3]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_features_do_not_depend_on_the_padding_side(name):
    kind = "encoder" if name == "bert" else "decoder"
    features = [
        encode(backbone((tiny_model(name), tiny_tokenizer(kind, padding_side=side))).open("cpu"), TEXTS)
        for side in ("left", "right")
    ]
    assert torch.equal(*features)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_decoder_features_are_the_last_token_after_the_final_norm(name, tiny_folder):
    model, tokens = tiny_model(name), tiny_tokenizer("decoder")
    with torch.inference_mode():
        output = model(**tokens("the cat sat", return_tensors="pt"), output_hidden_states=True)
    features = encode(backbone(tiny_folder(name)).open("cpu"), ["the cat sat", TEXTS[3]])
    assert torch.allclose(features[0], output.hidden_states[-1][0, -1], atol=1e-5)


def test_encoder_features_are_the_masked_mean(tiny_folder):
    model, tokens = tiny_model("bert"), tiny_tokenizer()
    with torch.inference_mode():
        output = model(**tokens(["the cat sat"], return_tensors="pt"), output_hidden_states=True)
    opened = backbone(tiny_folder("bert")).open("cpu")
    assert torch.allclose(encode(opened, TEXTS)[0], output.last_hidden_state[0].mean(0), atol=1e-5)
    layer = backbone(tiny_folder("bert"), layer=1, pooling="cls").open("cpu")
    assert torch.allclose(encode(layer, TEXTS)[0], output.hidden_states[1][0, 0], atol=1e-5)
    with pytest.raises(BackboneError, match="3 hidden states"):
        backbone(tiny_folder("bert"), layer=7).open("cpu")


def test_encoder_decoder_uses_the_encoder(tiny_folder):
    model, tokens = tiny_model("t5"), tiny_tokenizer("t5")
    with torch.inference_mode():
        states = model.get_encoder()(**tokens("the cat sat", return_tensors="pt")).last_hidden_state
    features = encode(backbone(tiny_folder("t5")).open("cpu"), TEXTS)
    assert torch.allclose(features[0], states[0].mean(0), atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), [("bert", "encoder"), ("t5", "t5"), ("gpt2", "decoder")])
def test_cutting_equals_the_tokenizers_own_truncation(name, kind, tiny_folder):
    opened = backbone(tiny_folder(name), max_length=5).open("cpu")
    tokens = tiny_tokenizer(kind)
    batch = opened.collate(TEXTS)
    for i, text in enumerate(TEXTS):
        kept = batch.inputs["input_ids"][i][batch.inputs["attention_mask"][i] == 1].tolist()
        own = tokens(text, truncation=True, max_length=5)["input_ids"]
        assert kept == (own or [3])  # a decoder's empty text becomes its end token
        assert batch.lengths[i] == len(tokens(text)["input_ids"])
    assert batch.limit == 5
    assert (batch.lengths > batch.limit).sum() == 1


def test_truncation_side_is_the_tokenizers():
    model, tokens = tiny_model("bert"), tiny_tokenizer(truncation_side="left")
    opened = backbone((model, tokens), max_length=4).open("cpu")
    assert opened.collate(["one two three red"]).inputs["input_ids"].tolist() == [
        tokens("three red")["input_ids"],
    ]


def test_limits_come_from_the_model_when_the_tokenizer_has_none(tiny_folder):
    limits = {name: backbone(tiny_folder(name)).open("cpu").limit for name in MODELS}
    # RoBERTa starts counting positions behind its padding index; T5 has no positions to run out of.
    assert limits == {"bert": 16, "roberta": 16, "gpt2": 16, "llama": 64, "t5": 512}
    long = " ".join(["cat"] * 40)
    for name in ("bert", "roberta", "gpt2"):
        assert torch.isfinite(encode(backbone(tiny_folder(name)).open("cpu"), [long])).all()
    with pytest.raises(BackboneError, match="positions for 16"):
        backbone(tiny_folder("bert"), max_length=17).open("cpu")
    with pytest.raises(BackboneError, match="no room"):
        backbone(tiny_folder("bert"), max_length=2).open("cpu")


def test_options_that_cannot_apply_are_refused(tiny_folder):
    with pytest.raises(TypeError, match="does not apply to image models"):
        backbone(tiny_folder("vit"), max_length=8).open("cpu")
    with pytest.raises(TypeError, match="does not apply to encoder models"):
        backbone(tiny_folder("bert"), tower="text").open("cpu")
    with pytest.raises(BackboneError, match="pooling='median'"):
        backbone(tiny_folder("bert"), pooling="median").open("cpu")
    with pytest.raises(BackboneError, match="truncation='maybe'"):
        backbone(tiny_folder("bert"), truncation="maybe").open("cpu")
    assert backbone(tiny_folder("bert"), truncation="error").open("cpu").truncation == "error"


def test_load_refuses_what_is_no_text(tiny_folder):
    opened = backbone(tiny_folder("bert")).open("cpu")
    with pytest.raises(InputError, match="nan is float"):
        opened.read(float("nan"))
    assert opened.read(np.str_("cat")) == "cat"
    assert opened.sort_key("four") == 4


def test_half_precision_runs_and_returns_float32(tiny_folder):
    exact = encode(backbone(tiny_folder("bert")).open("cpu"), TEXTS)
    half = encode(backbone(tiny_folder("bert")).open("cpu", "bfloat16"), TEXTS)
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.2


def test_sentence_transformers_settings_are_honoured(tmp_path):
    model, tokens = tiny_model("bert"), tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokens.save_pretrained(tmp_path)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 6, "do_lower_case": true}')
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (tmp_path / "2_Dense").mkdir()
    dense = {"in_features": 16, "out_features": 5, "bias": True, "activation_function": "torch.nn.modules.Tanh"}
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps(dense))
    linear = torch.nn.Linear(16, 5)
    state = {f"linear.{key}": value for key, value in linear.state_dict().items()}
    torch.save(state, tmp_path / "2_Dense" / "pytorch_model.bin")
    opened = backbone(tmp_path).open("cpu")
    with torch.inference_mode():
        state = model(**tokens("the cat sat", return_tensors="pt")).last_hidden_state[:, 0]
        expected = torch.nn.functional.normalize(linear(state).tanh(), dim=1)
    assert opened.limit == 6
    assert opened.n_features == 5
    assert torch.allclose(encode(opened, ["The CAT sat"]), expected, atol=1e-5)
    assert backbone(tmp_path, pooling="mean").open("cpu").n_features == 16
    modules.append({"path": "4", "type": "sentence_transformers.models.WeirdThing"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(BackboneError, match="WeirdThing"):
        backbone(tmp_path, max_length=6).open("cpu")


def test_collate_is_thread_safe(tiny_folder):
    from concurrent.futures import ThreadPoolExecutor

    opened = backbone(tiny_folder("bert")).open("cpu")
    expected = opened.collate(TEXTS).inputs["input_ids"]
    with ThreadPoolExecutor(8) as threads:
        for batch in threads.map(opened.collate, [TEXTS] * 200):
            assert torch.equal(batch.inputs["input_ids"], expected)


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_model("bert").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[next(key for key in state if "layer.1.output.dense.weight" in key)]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match="lack 1 tensors"):
        backbone(tmp_path).open("cpu")


def test_loading_leaves_the_verbosity_alone(tiny_folder, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    backbone(tiny_folder("llama"), max_length=11).open("cpu")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")
