"""Token ids that users prepared themselves, as the library's passes read them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from faast_sklearn.backbones.base import Batch
from faast_sklearn.backbones.transformers.text import n_known_tokens
from faast_sklearn.errors import InputError, shortened
from faast_sklearn.language.exchanges import Exchanges
from faast_sklearn.language.padding import IGNORED, pad_rows
from faast_sklearn.language.reserve import digest

__all__ = ["exchanges_of", "refuse_text", "token_batch"]


def refuse_text(value: Any, name: str) -> None:
    """Raise InputError if ``value`` is a text, or a sequence that begins with one.

    Examples
    --------
    >>> from faast_sklearn.language.token_ids import refuse_text
    >>> refuse_text(["a cat"], "input_ids")
    Traceback (most recent call last):
    ...
    faast_sklearn.errors.InputError: input_ids is text, 'a cat'; FastWeightLM takes token ids. Pass what the model's \
tokenizer makes of it, tokenizer(texts, return_tensors='pt'), or use FaastSeq2Seq, which takes texts.
    """
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    if isinstance(first, (str, bytes)):
        raise InputError(
            f"{name} is text, {shortened(first)}; FastWeightLM takes token ids. Pass what the model's tokenizer makes "
            "of it, tokenizer(texts, return_tensors='pt'), or use FaastSeq2Seq, which takes texts."
        )


def exchanges_of(lm: Any, input_ids: Any, answers: Any = None, attention_mask: Any = None) -> Exchanges:
    """Return samples of token ids as exchanges.

    Parameters
    ----------
    lm : LanguageModel
    input_ids : sequence of n sequences of int
        Prompts; without ``answers`` whole texts, whose tokens after the first are the answer.
    answers : sequence of n sequences of int, default=None
        Required for encoder-decoders. Nothing is added, not even an end token.
    attention_mask : sequence of n sequences of int, default=None
        0 for padding in ``input_ids``, which is dropped.

    Returns
    -------
    Exchanges

    Raises
    ------
    InputError
        If something is not token ids of this model, is empty or too long, or the lengths differ; it names the sample.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from faast_sklearn.language.token_ids import exchanges_of
    >>> lm = SimpleNamespace(module=None, limit=8, encoder_decoder=False)
    >>> exchanges_of(lm, [[5, 6], [7]], [[8, 3], [9, 3]])[1]
    Exchange(prompt=(7,), answer=(9, 3), length=3, turn=Turn(before='', after=''))
    """
    if answers is None and lm.encoder_decoder:
        raise InputError("an encoder-decoder model learns answers; pass their tokens as answers= or labels=.")
    prompts = _rows(lm, input_ids, "input_ids")
    if attention_mask is not None:
        masks = [_plain(row) for row in attention_mask]
        if [*map(len, masks)] != [*map(len, prompts)]:
            raise InputError("attention_mask and input_ids differ in shape.")
        prompts = [
            [token for token, kept in zip(*pair, strict=True) if kept] for pair in zip(prompts, masks, strict=True)
        ]
    targets = [None] * len(prompts) if answers is None else _rows(lm, answers, "answers")
    if len(targets) != len(prompts):
        raise InputError(f"input_ids has {len(prompts)} samples and answers has {len(targets)}; pass one for each.")
    exchanges = Exchanges()
    for i, (prompt, answer) in enumerate(zip(prompts, targets, strict=True)):
        for row, name in ((prompt, "input_ids"), (answer, "answers")):
            if row is not None and not row:
                raise InputError(f"{name}[{i}] has no token; drop the sample.")
        if answer is None:
            prompt, answer = prompt[:1], prompt[1:]
        together = len(prompt) if lm.encoder_decoder else len(prompt) + len(answer)
        _refuse_long(lm, f"sample {i}", max(together, len(answer)))
        exchanges.append(prompt, answer, together)
    return exchanges


def token_batch(lm: Any, input_ids: Any, attention_mask: Any, labels: Any, inputs: dict) -> Batch:
    """Return a batch of token ids as the passes over given answers collate theirs.

    Parameters
    ----------
    lm : LanguageModel
    input_ids, attention_mask, labels
        As :meth:`FastWeightLM.learn <faast_sklearn.language.FastWeightLM.learn>` takes them.
    inputs : dict
        What else the module takes: tensors, or rows that are padded with 0.

    Returns
    -------
    Batch

    Raises
    ------
    InputError
        If ids are not token ids of this model, shapes differ, or an encoder-decoder has no labels.
    """
    rows = _rows(lm, input_ids, "input_ids")
    ids, mask = _padded(input_ids, lm.pad_id)
    mask = mask if attention_mask is None else _padded(attention_mask, 0)[0]
    labels = None if labels is None else _padded(labels, IGNORED)[0]
    if labels is not None:
        _rows(lm, labels.clamp_min(0), "labels")
    if mask.shape != ids.shape or (labels is not None and not lm.encoder_decoder and labels.shape != ids.shape):
        raise InputError("attention_mask and labels need the shape of input_ids.")
    # Padding counts too, since most models number its positions.
    _refuse_long(lm, "a row of input_ids", ids.shape[1])
    _refuse_long(lm, "a row of labels", 0 if labels is None else labels.shape[1])
    more = {name: _padded(value, 0)[0] for name, value in inputs.items()}
    if lm.encoder_decoder:
        if labels is None:
            raise InputError("an encoder-decoder model learns answers; pass their tokens as answers= or labels=.")
        targets, where = labels.clamp_min(0), labels >= 0
        more["decoder_input_ids"] = lm.module.prepare_decoder_input_ids_from_labels(labels=labels)
    else:
        targets, where = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        targets[:, :-1] = ids[:, 1:]
        where[:, :-1] = (mask[:, 1:] > 0) & (mask[:, :-1] > 0)
        if labels is not None:
            where[:, :-1] &= labels[:, 1:] >= 0
    digests = [
        _digest(row[kept > 0].tolist(), target[learnt].tolist(), lm.encoder_decoder)
        for row, kept, target, learnt in zip(ids.cpu(), mask.cpu(), targets.cpu(), where.cpu(), strict=True)
    ]
    return Batch(({"input_ids": ids, "attention_mask": mask, **more}, where, targets, digests), len(rows))


def _refuse_long(lm, what, length):
    if lm.limit is not None and length > lm.limit:
        raise InputError(f"{what} has {length} tokens, and the model reads {lm.limit}; shorten or split it.")


def _digest(row, learnt, encoder_decoder):
    """Return the digest of a sample: that of its exchange, if what is learnt is the end of the row."""
    start = len(row) - len(learnt)
    prompt = row[:start] if not encoder_decoder and row[start:] == learnt else row
    return digest(prompt, learnt)


def _padded(rows, fill):
    """Return rows as one tensor, padded on the right, and a mask of what is not padding."""
    if torch.is_tensor(rows):
        return rows, torch.ones_like(rows)
    return pad_rows([_plain(row) for row in rows], fill)


def _rows(lm, rows, name):
    """Return rows of token ids as lists of int, after checks."""
    refuse_text(rows, name)
    if isinstance(rows, Mapping):
        raise InputError(f"{name} is {type(rows).__name__}; unpack it, learn(**encoding).")
    if not hasattr(rows, "__len__") or not len(rows):
        raise InputError(f"{name} is {shortened(rows)}; pass rows of token ids, or a tensor of shape (n, t).")
    rows = [_plain(row) for row in _plain(rows)]
    known = n_known_tokens(lm.module)
    for i, row in enumerate(rows):
        if not isinstance(row, Sequence) or isinstance(row, str) or not all(type(token) is int for token in row):
            raise InputError(f"{name}[{i}] is {shortened(row)}, expected a row of token ids, integers.")
        if row and (min(row) < 0 or (known is not None and max(row) >= known)):
            wrong = min(row) if min(row) < 0 else max(row)
            raise InputError(
                f"{name}[{i}] has token {wrong}, and {type(lm.module).__name__} has {known} embeddings, from 0 on. "
                "Pass ids of the model's own tokenizer."
            )
    return rows


def _plain(row):
    return row.tolist() if hasattr(row, "tolist") else list(row) if isinstance(row, (tuple, range)) else row
