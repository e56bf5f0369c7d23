"""Pad rows of token ids to one tensor, on the side that the model needs."""

from collections.abc import Sequence
from typing import Any

import torch

from faast_sklearn.backbones.transformers.text import pad_rows

__all__ = ["IGNORED", "decoder_inputs", "pad_rows"]

IGNORED = -100  # label that transformers ignores


def decoder_inputs(lm: Any, answers: Sequence) -> torch.Tensor:
    """Return the tokens that a decoder reads to predict each token of the answers.

    Parameters
    ----------
    lm : LanguageModel
        An encoder-decoder.
    answers : sequence of n sequences of int

    Returns
    -------
    ids : tensor of shape (n, t), int64
        The answers shifted by one, as the model itself shifts them, with its start token first; padded on the right,
        where a causal decoder does not look.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from faast_sklearn.language.padding import decoder_inputs
    >>> config = SimpleNamespace(decoder_start_token_id=2, pad_token_id=None)
    >>> lm = SimpleNamespace(module=SimpleNamespace(config=config), pad_id=0)
    >>> decoder_inputs(lm, [[5, 6, 3], [7, 3]])
    tensor([[2, 5, 6],
            [2, 7, 0]])
    """
    config = lm.module.config
    shift = getattr(lm.module, "prepare_decoder_input_ids_from_labels", None)
    if shift is not None and config.pad_token_id is not None:
        # Prefer the model's own shift: mBART, for example, starts with the answer's last token.
        labels, _ = pad_rows(answers, IGNORED)
        ids = shift(labels=labels)
        ids[ids == IGNORED] = lm.pad_id
        return ids
    start = getattr(config, "decoder_start_token_id", None)
    start = config.bos_token_id if start is None else start
    return pad_rows([[start, *answer[:-1]] for answer in answers], lm.pad_id)[0]
