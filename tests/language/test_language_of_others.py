"""Language models as others hold them: compiled, adapted, with tokens added, folded into plain checkpoints."""

import warnings

import numpy as np
import pytest
import torch
import transformers as tr
from helpers.families import TEXT, made
from helpers.releases import before
from helpers.tiny import tiny_model, tiny_tokenizer

from faast_sklearn import FaastSeq2Seq
from faast_sklearn.errors import BackboneError
from faast_sklearn.language import FastWeightLM

X, Y = ["the cat", "a dog ran"] * 4, ["mat", "on"] * 4
IDS = torch.tensor([[5, 6, 7]])
STRONG = {"alpha": 1.0, "memory_weight": 1.0, "device": "cpu"}


def logits(model):
    with torch.no_grad():
        return model(IDS, **({"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {})).logits


# Compiled by torch 2.6, decoders of transformers lose their states without this library too: BaseModelOutputWithPast.
COMPILES_DECODERS = pytest.mark.skipif(before("torch", "2.7"), reason="torch 2.6 cannot compile such a model")


@pytest.mark.parametrize("name", [pytest.param("llama", marks=COMPILES_DECODERS), "t5"])
def test_compiled_models_have_the_weights_within_the_block_and_not_after_it(name):
    model, tokenizer = tiny_model(name), tiny_tokenizer("t5" if name == "t5" else "decoder")
    seq2seq = FaastSeq2Seq((model, tokenizer), **STRONG).fit(X, Y)
    compiled = torch.compile(model, backend="eager")
    frozen = logits(compiled)
    with seq2seq.attached() as attached:
        changed = logits(attached)
        assert torch.equal(logits(compiled), changed)
        later = torch.compile(model, backend="eager")
        assert torch.equal(logits(later), changed)
    assert (changed - frozen).abs().max() > 0.1
    for one in (compiled, later, model):
        assert torch.allclose(logits(one), frozen, atol=1e-5)
    model.compile(backend="eager")
    scores = seq2seq.token_scores(X, Y)
    again = FaastSeq2Seq((model, tokenizer), **STRONG).fit(X, Y)
    assert again.token_scores(X, Y) == pytest.approx(scores, abs=1e-5)
    with again.attached() as attached:
        assert torch.allclose(logits(attached), changed, atol=1e-5)
    assert torch.allclose(logits(model), frozen, atol=1e-5)


T5 = {"vocab_size": 25, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
T5 |= {"decoder_start_token_id": 0}
G = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
FOLDED = {
    "switch": lambda: tr.SwitchTransformersForConditionalGeneration(
        tr.SwitchTransformersConfig(**T5, num_experts=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1)
    ),
    "t5": lambda: tr.T5ForConditionalGeneration(tr.T5Config(**T5)),
    "t5, not tied": lambda: tr.T5ForConditionalGeneration(tr.T5Config(**T5, tie_word_embeddings=False)),
    "umt5": lambda: tr.UMT5ForConditionalGeneration(tr.UMT5Config(**T5)),
    "gemma2": lambda: tr.Gemma2ForCausalLM(tr.Gemma2Config(**G)),
    "cohere": lambda: tr.CohereForCausalLM(tr.CohereConfig(**G)),
    "granite": lambda: tr.GraniteForCausalLM(tr.GraniteConfig(**G, logits_scaling=4.0, embedding_multiplier=3.0)),
    "phi": lambda: tr.PhiForCausalLM(tr.PhiConfig(**TEXT)),
}


def folds(model, tokenizer, folder):
    seq2seq = FaastSeq2Seq((model, tokenizer), **{**STRONG, "memory_weight": 0.5}).fit(X, Y)
    seq2seq.save_folded(folder)
    read = FaastSeq2Seq(str(folder), memory_weight=0, device="cpu").fit(X, Y)
    assert read.token_scores(X, Y) == pytest.approx(seq2seq.token_scores(X, Y), abs=1e-4)


@pytest.mark.parametrize("name", FOLDED)
def test_a_folded_checkpoint_has_the_logits_of_the_attached_model(name, tmp_path):
    model = made(FOLDED[name])
    tokenizer = tiny_tokenizer("t5" if model.config.is_encoder_decoder else "decoder")
    folds(model, tokenizer, tmp_path / "folded")
    assert [path.name for path in tmp_path.iterdir()] == ["folded"]


class Forgetful(tr.LlamaForCausalLM):
    """Its forward scales by something that no checkpoint holds."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * getattr(self, "scale", 1.0)
        return output


def test_a_checkpoint_that_would_answer_otherwise_is_not_left(tmp_path):
    model = Forgetful(tiny_model("llama").config).eval()
    model.load_state_dict(tiny_model("llama").state_dict())
    seq2seq = FaastSeq2Seq((model, tiny_tokenizer("decoder")), **STRONG).fit(X, Y)
    lm = seq2seq._open_backbone()
    lm.module.scale = 3.0
    with pytest.raises(BackboneError, match="written and read again, gives other logits"):
        seq2seq.save_folded(tmp_path / "folded")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        seq2seq.save_folded(tmp_path / "no" / "where")


def adapted():
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        return get_peft_model(tiny_model("llama"), config)


def test_adapters_are_folded_too_and_a_folder_of_one_says_what_to_pass(tmp_path):
    model = adapted()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folds(model, tiny_tokenizer("decoder"), tmp_path / "folded")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path / "adapter")
    for spec in (str(tmp_path / "adapter"), f"hf:{tmp_path / 'adapter'}"):
        with pytest.raises(BackboneError, match=r"holds a PEFT adapter of .*PeftModel\.from_pretrained\(model,"):
            FaastSeq2Seq(spec).fit(X, Y)


def test_tokens_that_a_language_model_does_not_know_are_refused():
    for name, kind in (("llama", "decoder"), ("t5", "t5")):
        tokenizer = tiny_tokenizer(kind)
        tokenizer.add_tokens(["zebra"])
        seq2seq = FaastSeq2Seq((tiny_model(name), tokenizer), device="cpu", max_new_tokens=2)
        told = r"gives token 25, but \w+ has 25 embeddings.*resize_token_embeddings"
        for learn in (lambda s=seq2seq: s.fit(["a zebra"], ["cat"]), lambda s=seq2seq: s.fit(["a cat"], ["zebra"])):
            with pytest.raises(BackboneError, match=told):
                learn()
        with pytest.raises(BackboneError, match=told):
            seq2seq.fit(X, Y).predict(["a zebra"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"solver": "typo"}, "solver must be one of 'ridge', 'pinv'"),
        ({"target": "typo"}, "target must be one of"),
        ({"alpha": -1.0}, "alpha must be 'auto' or a finite number of at least 0"),
        ({"alpha": np.nan}, "alpha must be"),
        ({"alpha": True}, "alpha must be"),
        ({"memory_weight": -0.1}, "memory_weight must be"),
        ({"memory_weight": np.nan}, "memory_weight must be"),
        ({"memory_weight": np.inf}, "memory_weight must be"),
        ({"memory_weight": "strong"}, "memory_weight must be"),
    ],
)
def test_settings_are_checked_at_once_as_the_estimator_checks_them(options, told):
    model = (tiny_model("llama"), tiny_tokenizer("decoder"))
    with pytest.raises(ValueError, match=told):
        FastWeightLM(model, device="cpu", **options)
    with pytest.raises(ValueError, match=told):
        FaastSeq2Seq(model, device="cpu", **options).fit(X, Y)


@pytest.mark.parametrize("target", ["embedding", "residual"])
def test_nanochat_whose_norm_is_used_twice_learns(target):
    model = made(lambda: tr.NanoChatForCausalLM(tr.NanoChatConfig(**G)))
    seq2seq = FaastSeq2Seq(
        (model, tiny_tokenizer("decoder")), target=target, alpha=1.0, memory_weight=0.5, device="cpu"
    )
    if target == "embedding":
        with pytest.raises(BackboneError, match="norm"):
            seq2seq.fit(X, Y)
    else:
        assert seq2seq.fit(X, Y).n_samples_seen_ == 8
