"""Checkpoints in the form of the published FAAST ones."""

import json

import torch
import transformers as tr
from helpers.tiny import SPECIAL, WORDS, tiny_tokenizer
from safetensors.torch import save_file

VOCABULARY = len(SPECIAL) + len(WORDS.split())


TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 2, "eos_token_id": 3}


DEPTH, WIDTH = 5, 16


BASES = {
    "gpt2": lambda: tr.GPT2Config(n_embd=WIDTH, n_layer=DEPTH, n_head=2, n_positions=16, **TOKENS),
    "qwen2": lambda: tr.Qwen2Config(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=32,
        **TOKENS,
    ),
}


def base_model(name, **changes):
    config = BASES[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tr.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    return model


def readouts(n):
    generator = torch.Generator().manual_seed(1)
    return {
        f"external.layers.{i}.{name}.weight": torch.randn(shape, generator=generator)
        for i in range(n)
        for name, shape in (("memory_reader.scorer", (1, 2 * WIDTH)), ("interpreter.out_proj", (WIDTH, WIDTH)))
    }


def write(folder, model, n=2, shards=1, tokenizer=True, **settings):
    """Write a checkpoint of the published layout."""
    folder.mkdir(exist_ok=True)
    settings = {
        "base_model": "gpt2-xl",
        "num_layers": n,
        "reader_type": "inverse",
        "extractor_type": "next-token",
        "interpreter_type": "projection",
        "max_memory_size": 65536,
        "reader_update_size": 8192,
        "reader_update_discount": 0.9,
        "reader_update_alpha": 0.7,
        "auto_map": {"AutoConfig": "model.MemoryConfig", "AutoModelForCausalLM": "model.MemoryCausalLM"},
        "architectures": ["MemoryCausalLM"],
        **settings,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "model.py").write_text("raise SystemExit('remote code ran')")
    state = {f"model.{name}": value.clone() for name, value in model.state_dict().items()} | readouts(n)
    if model.config.tie_word_embeddings:
        del state["model.lm_head.weight"]
    if shards == 1:
        save_file(state, folder / "model.safetensors")
    else:
        where = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(state)}
        for file in sorted(set(where.values())):
            save_file({name: state[name] for name, place in where.items() if place == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    if tokenizer:
        tiny_tokenizer("decoder").save_pretrained(folder)
    return folder
