"""Logits and probabilities of choices, the plain way."""

import numpy as np
import torch

from faast_sklearn.language.padding import decoder_inputs


def next_logits(lm, prompt, answer):
    """Logits after a prompt and a begun answer, the plain way: one sample, no cache, no padding."""
    with torch.no_grad():
        if not lm.encoder_decoder:
            return lm.module(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 :]
        start = decoder_inputs(lm, [[*answer, lm.eos_ids[0]]])
        return lm.module(input_ids=torch.tensor([prompt]), decoder_input_ids=start).logits[0]


def one_by_one(lm, prompts, choices, X):
    """The product of each answer's probabilities, each among the tokens with which an answer may go on."""
    found = np.zeros((len(X), len(choices)))
    for i, source in enumerate(X):
        exchanges = [prompts.pairs([source], [choice])[0] for choice in choices]
        answers = [list(exchange.answer) for exchange in exchanges]
        for k, answer in enumerate(answers):
            logits = next_logits(lm, exchanges[k].prompt, answer[:-1]).double()
            for at, token in enumerate(answer):
                rivals = {other[at] for other in answers if len(other) > at and other[:at] == answer[:at]}
                found[i, k] += logits[at, token] - logits[at, list(rivals)].logsumexp(0)
    return found
