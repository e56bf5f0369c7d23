"""Generate answers token by token, for many prompts at once."""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from faast_sklearn.backbones.base import Batch, frozen
from faast_sklearn.errors import BackboneError
from faast_sklearn.language.padding import pad_rows
from faast_sklearn.language.passes import ExchangePass

__all__ = ["Generator"]

# Defaults in place of the model's own sampling settings, which contradict do_sample=False.
_GREEDY = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


class Generator(ExchangePass):
    """Runs a language model over prompts and returns the texts that it generates.

    Drive it with :func:`~faast_sklearn.features.loop.stream_features`, over
    ``Prompts.questions(X, room=generator.room)``; ``forward`` returns one string per prompt.

    Parameters
    ----------
    lm : LanguageModel
        Hooks on its module stay active.
    max_new_tokens : int, default=64
        Maximum number of tokens of an answer; fewer if the context is full sooner.
    num_beams : int, default=1
        1 is greedy search. Nothing is sampled. All other settings are the model's own generation settings, which are
        not changed.
    stop_ids : sequence of int, default=None
        Tokens at which an answer ends; the model's end tokens by default.

    Attributes
    ----------
    room : int
        Tokens that a decoder's prompt leaves to the answer: ``max_new_tokens``, but at most half of the context.

    Raises
    ------
    ValueError
        If a number is not a positive integer.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> from faast_sklearn.language.generation import Generator
    >>> lm = SimpleNamespace(module=None, limit=100, encoder_decoder=False, eos_ids=(2,), pad_id=0, dtype=torch.float32,
    ...                      device=torch.device("cpu"), default_batch_size=16, reads_mask=True)
    >>> Generator(lm, max_new_tokens=80, num_beams=4).room
    50
    >>> Generator(lm, num_beams=0)
    Traceback (most recent call last):
    ...
    ValueError: num_beams must be a positive integer, got 0.
    """

    def __init__(
        self, lm: Any, *, max_new_tokens: int = 64, num_beams: int = 1, stop_ids: Sequence | None = None
    ) -> None:
        super().__init__(lm)
        for name, value in (("max_new_tokens", max_new_tokens), ("num_beams", num_beams)):
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
        stops = list(lm.eos_ids if stop_ids is None else stop_ids)
        self.settings = {
            **_GREEDY,
            "max_new_tokens": max_new_tokens,
            "num_beams": num_beams,
            "do_sample": False,
            # With static caches generate compiles the model, and the code would keep the hooks of this pass.
            "disable_compile": True,
            "pad_token_id": lm.pad_id,
            "eos_token_id": stops or None,
        }
        self.max_new_tokens = int(max_new_tokens)
        self.room = self.max_new_tokens if lm.limit is None else min(self.max_new_tokens, max(1, lm.limit // 2))
        self.default_batch_size = max(1, lm.default_batch_size // int(num_beams))
        self._reads_mask = lm.reads_mask  # computed here, not in the threads that collate
        self._stops = set(stops)

    def collate(self, items: Any) -> Any:
        """Group prompts by the maximum length of their answers, so that no answer depends on its batch."""
        groups = {}
        for k, item in enumerate(items):
            # A model that reads padding as text (RWKV) also mixes up the states of a batch: one prompt at a time.
            alone = None if self._reads_mask else k
            groups.setdefault((self._most(item), alone), []).append(k)
        side = "right" if self.lm.encoder_decoder else "left"
        inputs = [
            (
                most,
                [(k, items[k].turn.after.strip()) for k in rows],
                *pad_rows([items[k].prompt for k in rows], self.lm.pad_id, side),
            )
            for (most, _), rows in sorted(groups.items())
        ]
        return Batch(inputs, len(items), np.array([item.length for item in items]), self.lm.limit)

    def forward(self, batch: Any) -> Any:
        """Generate texts, without the prompt, special tokens, the end of the template and surrounding spaces."""
        texts = [""] * batch.size
        for most, rows, ids, mask in batch.inputs:
            # The output of an encoder-decoder begins with a start token, which is not part of the text.
            first = 1 if self.lm.encoder_decoder else ids.shape[1]
            with frozen(self.module):
                output = self.module.generate(
                    input_ids=ids.to(self.device),
                    attention_mask=mask.to(self.device),
                    generation_config=self._config(most, first),
                )
            for (k, after), row in zip(rows, output[:, first:].tolist(), strict=True):
                # The end of the template was learnt with the answers, but is not part of them.
                texts[k] = self._decode(row).removesuffix(after).rstrip()
        return texts

    def check(self, output: Any, n: Any) -> None:
        """Raise BackboneError unless there is one text per prompt."""
        if len(output) != n:
            raise BackboneError(f"generation gave {len(output)} texts for {n} prompts.")

    def finite(self, output: Any) -> None:
        """Return None: texts are always finite."""
        return None

    def _most(self, item):
        limit = self.lm.limit
        if limit is None:
            return self.max_new_tokens
        # The context also holds the prompt of a decoder, or the start token of an encoder-decoder.
        taken = 1 if self.lm.encoder_decoder else len(item.prompt)
        return max(1, min(self.max_new_tokens, limit - taken))

    def _config(self, most, taken):
        from transformers import GenerationConfig

        # Checkpoints set one of the two bounds, and transformers warns if the other one is set too.
        if self.module.generation_config.max_new_tokens is None:
            length = {"max_new_tokens": None, "max_length": taken + most}
        else:
            length = {"max_new_tokens": most}
        return GenerationConfig(**{**self.settings, **length})

    def _decode(self, row):
        # Cut at the end token: the token that pads a batch may be an ordinary one.
        stop = next((i for i, token in enumerate(row) if token in self._stops), len(row))
        return self.lm.tokenizer.decode(row[:stop], skip_special_tokens=True).strip()
