"""Log-probabilities that a language model gives to each of several answers."""

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch

from faast_sklearn.backbones.base import Batch, as_features, frozen
from faast_sklearn.errors import BackboneError, InputError, nearest, shortened
from faast_sklearn.language.padding import decoder_inputs, pad_rows
from faast_sklearn.language.passes import ExchangePass

__all__ = ["ChoiceScorer", "deciding_tokens", "refuse_other_targets"]

# Most logits and most cached tokens that may exist at once, for a batch of the default size.
_MOST_LOGITS = 2**26
_MOST_TOKENS = 2**16


class ChoiceScorer(ExchangePass):
    """Runs a language model over prompts and returns the log-probability of each of k whole answers.

    Drive it with :func:`~faast_sklearn.features.loop.stream_features`, over ``prompts.questions(X, room=scorer.room)``.
    The end token of an answer counts too, which tells it from a longer answer with the same beginning. The prompt
    runs once; answers are scored from its key-value cache (for encoder-decoders, from the encoder's output), in chunks
    if there are many. ``forward`` returns natural logarithms, shape (n, k), float32 or better.

    Parameters
    ----------
    lm : LanguageModel
        Hooks on its module stay active.
    prompts : Prompts
        Of the same model.
    choices : sequence of k str

    Raises
    ------
    ValueError
        If there are no choices, or one is not a string, is empty, occurs twice or (from the first batch of prompts on)
        is too long for the model; the message names it.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> from faast_sklearn.language.choices import ChoiceScorer
    >>> ChoiceScorer(SimpleNamespace(), None, ["yes", "no", "yes"])
    Traceback (most recent call last):
    ...
    faast_sklearn.errors.InputError: choices[2] is 'yes' again; list each choice once.
    """

    def __init__(self, lm: Any, prompts: Any, choices: Sequence) -> None:
        self.choices = _checked(choices)
        super().__init__(lm)
        self.prompts = prompts
        self._ids = {}  # tokens of the answers, by turn: a callable template may use several turns
        self._options = set(inspect.signature(type(lm.module).forward).parameters)
        # transformers 5.24 renamed the key-value cache and warns about the old name.
        self._cache = "cache" if "cache" in self._options else "past_key_values"

    def room(self, turn: Any) -> Any:
        """Return the number of tokens of the longest choice in a turn, with its end token."""
        return max(map(len, self._answers(turn)))

    def collate(self, items: Any) -> Any:
        """Group prompts by the text around their answers, which is nearly always the same."""
        groups = {}
        for k, item in enumerate(items):
            groups.setdefault(item.turn, []).append(k)
        side = "right" if self.lm.encoder_decoder else "left"
        inputs = [
            (rows, self._answers(turn), *pad_rows([items[k].prompt for k in rows], self.lm.pad_id, side))
            for turn, rows in groups.items()
        ]
        return Batch(inputs, len(items), np.array([item.length for item in items]), self.lm.limit)

    def forward(self, batch: Any) -> Any:
        """Return the log-probabilities, shape (batch.size, k)."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        scores = torch.empty(batch.size, len(self.choices), dtype=wide, device=self.device)
        score = self._encoder_decoder if self.lm.encoder_decoder else self._decoder
        with frozen(self.module):
            for rows, answers, ids, mask in batch.inputs:
                scores[rows] = score(answers, ids.to(self.device), mask.to(self.device))
        return as_features(scores)

    def _decoder(self, answers, ids, mask):
        n = len(ids)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        # Only the last position predicts a token of an answer; padding is on the left.
        seen = self._call(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
        first = torch.tensor([answer[0] for answer in answers], device=self.device)
        scores = _wide(seen.logits[:, -1]).log_softmax(-1)[:, first]
        filled = getattr(seen, self._cache, None)
        # Caches of recurrent models have layers that cannot be repeated.
        repeated = [filled, *getattr(filled, "layers", ())]
        if not all(hasattr(part, "batch_repeat_interleave") for part in repeated):
            raise BackboneError(f"{type(self.module).__name__} has no key-value cache, which scoring choices needs.")
        later = [k for k, answer in enumerate(answers) if len(answer) > 1]
        width = ids.shape[1]
        chunks = self._chunks(later, answers, width)
        for some in chunks:
            # Inputs and targets are padded on the right, where causal attention does not look.
            given, given_mask = (t.to(self.device) for t in pad_rows([answers[k][:-1] for k in some], self.lm.pad_id))
            wanted, _ = pad_rows([answers[k][1:] for k in some], self.lm.pad_id)
            # The pass below writes into the cache, so every chunk but the last gets a copy.
            cache = filled if some is chunks[-1] else copy.deepcopy(filled)
            cache.batch_repeat_interleave(len(some))
            logits = self._call(
                input_ids=given.repeat(n, 1),
                attention_mask=torch.cat([mask.repeat_interleave(len(some), 0), given_mask.repeat(n, 1)], 1),
                position_ids=positions[:, -1:].repeat_interleave(len(some), 0)
                + torch.arange(1, given.shape[1] + 1, device=self.device),
                **{self._cache: cache},
                use_cache=True,
            ).logits
            scores[:, some] += _summed(logits, wanted.to(self.device), given_mask)
        return scores

    def _encoder_decoder(self, answers, ids, mask):
        from transformers.modeling_outputs import BaseModelOutput

        n, encoded, parts = len(ids), None, {}
        chunks = self._chunks(list(range(1, len(answers))), answers, ids.shape[1])
        # The first answer runs with the encoder; the others reuse the encoder's output.
        for some in [[0], *chunks]:
            wanted, wanted_mask = (t.to(self.device) for t in pad_rows([answers[k] for k in some], self.lm.pad_id))
            given = decoder_inputs(self.lm, [answers[k] for k in some]).to(self.device)
            source = {"input_ids": ids}
            if encoded is not None:
                source = {"encoder_outputs": BaseModelOutput(encoded.repeat_interleave(len(some), 0))}
            output = self._call(
                **source,
                attention_mask=mask.repeat_interleave(len(some), 0),
                decoder_input_ids=given.repeat(n, 1),
                use_cache=False,
            )
            encoded = output.encoder_last_hidden_state if encoded is None else encoded
            parts.update(zip(some, _summed(output.logits, wanted, wanted_mask).T, strict=True))
        return torch.stack([parts[k] for k in range(len(answers))], 1)

    def _call(self, **inputs):
        # Not every model takes position_ids or logits_to_keep.
        return self.module(**{k: v for k, v in inputs.items() if k not in _OPTIONAL or k in self._options})

    def _chunks(self, chosen, answers, width):
        """Split answers into chunks, so that memory is bounded for any number of answers."""
        if not chosen:
            return []
        # Answers of similar length go together, so that there is little padding.
        chosen = sorted(chosen, key=lambda k: -len(answers[k]))
        longest = len(answers[chosen[0]])
        vocabulary = self.lm.head.weight.shape[0]
        most = min(_MOST_LOGITS // (longest * vocabulary), _MOST_TOKENS // (width + longest))
        size = max(1, most // self.default_batch_size)
        return [chosen[i : i + size] for i in range(0, len(chosen), size)]

    def _answers(self, turn):
        if turn not in self._ids:
            answers = self.prompts.answers(self.choices, turn)
            for k, answer in enumerate(answers):
                if not answer:
                    raise InputError(f"choices[{k}], {self.choices[k]!r}, has no tokens; leave it out.")
                self.prompts.refuse_long(answer, f"choices[{k}]")
            self._ids[turn] = answers
        return self._ids[turn]


_OPTIONAL = ("position_ids", "logits_to_keep")


def _summed(logits, wanted, mask):
    """Sum the log-probabilities of the wanted tokens of each answer to each prompt: shape (n, answers)."""
    k, scores = len(wanted), []
    # One prompt at a time, since the float32 copy of bfloat16 logits takes twice their memory.
    for rows in logits.split(k):
        rows = _wide(rows)
        chosen = rows.gather(-1, wanted[..., None])[..., 0] - rows.logsumexp(-1)
        scores.append((chosen * mask).sum(-1))
    return torch.stack(scores)


def _wide(logits):
    return logits if logits.dtype == torch.float64 else logits.float()


def _checked(choices):
    # A set has no stable order.
    if isinstance(choices, (str, bytes, Mapping, Set)) or not isinstance(choices, Iterable):
        raise InputError(f"choices must be a list of strings, got {choices!r}.")
    choices = list(choices)
    if not choices:
        raise InputError("choices is empty; pass at least one string.")
    seen = set()
    for k, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise InputError(f"choices[{k}] is {choice!r} ({type(choice).__name__}), expected str; convert it first.")
        if not choice.strip():
            raise InputError(f"choices[{k}] is empty; leave it out.")
        if choice in seen:
            raise InputError(f"choices[{k}] is {choice!r} again; list each choice once.")
        seen.add(choice)
    return [str(choice) for choice in choices]


def refuse_other_targets(targets: Sequence, choices: Sequence) -> None:
    """Raise InputError for the first target that is not among the choices; the message names the nearest choice.

    Parameters
    ----------
    targets : sequence of str
    choices : sequence of str

    Examples
    --------
    >>> from faast_sklearn.language.choices import refuse_other_targets
    >>> refuse_other_targets(["good", "Bad"], ["good", "bad"])
    Traceback (most recent call last):
    ...
    faast_sklearn.errors.InputError: y[1] is 'Bad', which is not one of choices; the nearest is 'bad'.
    """
    choices = _checked(choices)
    known = set(choices)
    for i, target in enumerate(targets):
        if target not in known:
            near = shortened(nearest(target, choices, cutoff=0.0))
            raise InputError(f"y[{i}] is {shortened(target)}, which is not one of choices; the nearest is {near}.")


def deciding_tokens(prompts: Any, choices: Sequence) -> set:
    """Return the tokens at which choices begin to differ.

    Parameters
    ----------
    prompts : Prompts
    choices : sequence of str

    Returns
    -------
    set of int
        The different next tokens of answers that begin alike.
    """
    turn = prompts.questions(["a"])[0].turn
    following = {}
    for answer in prompts.answers(_checked(choices), turn):
        for k, token in enumerate(answer):
            following.setdefault(tuple(answer[:k]), set()).add(token)
    return set().union(*(tokens for tokens in following.values() if len(tokens) > 1))
