"""Tiny language models of many families, and what tests ask of them."""

import torch
import transformers as tr
from helpers.tiny import SPECIAL, WORDS

VOCABULARY = len(SPECIAL) + len(WORDS.split())


SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


GROUPED = {**SHAPE, "num_key_value_heads": 1, "head_dim": 8}


TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


SEQ2SEQ = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 3,
}


T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}


# Name: configuration, and the name of the final norm (None where nothing stands right before the output matrix).
MODELS = {
    "llama": (lambda: tr.LlamaConfig(**SHAPE, **TOKENS), "model.norm"),
    "llama-tied": (lambda: tr.LlamaConfig(**SHAPE, **TOKENS, tie_word_embeddings=True), "model.norm"),
    "qwen2": (lambda: tr.Qwen2Config(**SHAPE, **TOKENS, num_key_value_heads=1), "model.norm"),
    "qwen3": (lambda: tr.Qwen3Config(**GROUPED, **TOKENS), "model.norm"),
    "mistral": (lambda: tr.MistralConfig(**GROUPED, **TOKENS), "model.norm"),
    "gemma": (lambda: tr.GemmaConfig(**GROUPED, **TOKENS), "model.norm"),
    "gemma2": (lambda: tr.Gemma2Config(**GROUPED, **TOKENS, final_logit_softcapping=7.0), "model.norm"),
    "gemma3": (lambda: tr.Gemma3TextConfig(**GROUPED, **TOKENS), "model.norm"),
    "gpt2": (lambda: tr.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, **TOKENS), "transformer.ln_f"),
    "gpt-neox": (lambda: tr.GPTNeoXConfig(**SHAPE, **TOKENS), "gpt_neox.final_layer_norm"),
    "opt": (
        lambda: tr.OPTConfig(hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, **TOKENS),
        "model.decoder.final_layer_norm",
    ),
    "opt-post-norm": (
        lambda: tr.OPTConfig(
            hidden_size=16,
            word_embed_proj_dim=8,
            do_layer_norm_before=False,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            **TOKENS,
        ),
        None,
    ),
    "phi": (lambda: tr.PhiConfig(**SHAPE, **TOKENS), "model.final_layernorm"),
    "cohere": (lambda: tr.CohereConfig(**SHAPE, **TOKENS, logit_scale=0.0625), "model.norm"),
    "granite": (lambda: tr.GraniteConfig(**SHAPE, **TOKENS, logits_scaling=8.0), "model.norm"),
    "falcon": (
        lambda: tr.FalconConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, **TOKENS),
        "transformer.ln_f",
    ),
    "mpt": (lambda: tr.MptConfig(d_model=16, n_layers=2, n_heads=2, max_seq_len=32, **TOKENS), "transformer.norm_f"),
    "t5": (lambda: tr.T5Config(**T5), "decoder.final_layer_norm"),
    "t5-untied": (
        lambda: tr.T5Config(**T5, tie_word_embeddings=False, feed_forward_proj="gated-gelu"),
        "decoder.final_layer_norm",
    ),
    "marian": (lambda: tr.MarianConfig(**SEQ2SEQ, **TOKENS), None),
    "bart": (lambda: tr.BartConfig(**SEQ2SEQ, **TOKENS), None),
    "mbart": (lambda: tr.MBartConfig(**SEQ2SEQ, **TOKENS), "model.decoder.layer_norm"),
}


def make(name):
    """A random model whose norms, biases and weights are all far from their defaults."""
    config = MODELS[name][0]()
    auto = tr.AutoModelForSeq2SeqLM if config.is_encoder_decoder else tr.AutoModelForCausalLM
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = auto.from_config(config).eval()
    with torch.no_grad():
        for key, tensor in [
            *model.named_parameters(),
            ("final_logits_bias", getattr(model, "final_logits_bias", None)),
        ]:
            if tensor is not None:
                shift = 1.0 if tensor.ndim == 1 and "norm" in key and "bias" not in key else 0.0
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3 + shift)
    return model


def hook_count(model):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def numbers(moments):
    """Every number of LanguageMoments, but for those of the reserve."""
    output = moments.output
    memories = [output.memory, *moments.middle]
    found = [m for memory in memories for m in (memory.keys.about_origin().matrix(), memory.cross, memory.power)]
    found += [output.n_tokens, output.loss, moments.n_samples]
    if output.expected is not None:
        found += [output.expected.about_origin().matrix(), output.counts, output.probability, output.curvature]
    return [torch.as_tensor(x, dtype=torch.float64) for x in found]
