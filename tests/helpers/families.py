"""Shapes of tiny models, and a maker of them."""

import torch

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


TEXT = {**SMALL, "vocab_size": 25, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 3}


def made(make):
    """A random model that tells its inputs apart, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    return model
