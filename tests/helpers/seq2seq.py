"""Pairs of texts to learn, models to learn them with, and what these then make of a probe."""

import numpy as np
import torch
from helpers.language import make
from helpers.tiny import WORDS, tiny_model, tiny_tokenizer

LEXICON = WORDS.split()


PROBE = torch.tensor([[5, 9, 7, 4, 11], [20, 8, 6, 6, 13]])


def opened(name, **options):
    """A model in memory with its tokenizer, as users pass it; a new one at each call."""
    # transformers' cache fails where T5 has more decoder blocks than encoder blocks.
    model = tiny_model("t5") if name == "t5" else make(name)
    kind = "t5" if model.config.is_encoder_decoder else "decoder"
    return model, tiny_tokenizer(kind, **options)


def chosen(data, choices):
    """The same sources, with targets among choices."""
    return data[0], [choices[i % len(choices)] for i in range(len(data[0]))]


def pairs(n, seed=0, *, noise=0.2, ragged=False):
    """Sources of words, and targets of which the last word mostly follows from the last one of the source."""
    rng = np.random.default_rng(seed)
    length = (lambda low, high: rng.integers(low, high + 1)) if ragged else (lambda low, high: high)
    sources = [rng.integers(len(LEXICON), size=length(1, 4)) for _ in range(n)]
    last = [
        rng.integers(len(LEXICON)) if rng.random() < noise else (source[-1] + 5) % len(LEXICON) for source in sources
    ]
    targets = [[word, *rng.integers(len(LEXICON), size=length(0, 1))] for word in last]
    return words(sources), words(targets)


def words(rows):
    return [" ".join(LEXICON[i] for i in row) for row in rows]


def inputs(seq2seq):
    more = {"decoder_input_ids": PROBE.flip(1)} if seq2seq.backbone[0].config.is_encoder_decoder else {}
    return {"input_ids": PROBE, **more}


def logits(seq2seq):
    with seq2seq.attached() as model, torch.no_grad():
        return model(**inputs(seq2seq)).logits


def bare_logits(seq2seq):
    with torch.no_grad():
        return seq2seq.backbone[0](**inputs(seq2seq)).logits


def some(data, which):
    return [data[0][i] for i in which], [data[1][i] for i in which]
