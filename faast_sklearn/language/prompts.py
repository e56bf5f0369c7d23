"""Turn texts into token ids: prompts that a language model reads, and answers that it should write.

Prompt and answer are tokenised separately, so a prompt has the same ids in learning and in generation.
"""

import re
import threading
from collections.abc import Callable
from typing import Any

from faast_sklearn.backbones.transformers.text import (
    n_known_tokens,
    refuse_unknown_tokens,
    special_tokens,
    token_rows,
)
from faast_sklearn.errors import BackboneError, InputError
from faast_sklearn.inputs.samples import as_samples
from faast_sklearn.language.exchanges import Exchange, Exchanges
from faast_sklearn.language.templates import Turn, chat_turn, renderer

__all__ = ["Exchange", "Exchanges", "Prompts", "targets_of"]

# Fast tokenizers keep padding and truncation as state, and several models may share one; each call is short.
_lock = threading.Lock()
_TEXTS_A_CALL = 1024


class Prompts:
    """Write prompts and answers for a language model.

    Parameters
    ----------
    lm : LanguageModel
    template : None, str or callable, default=None
        ``None``: for encoder-decoders, source and target unchanged; else the tokenizer's chat template if it has one
        (source: user's turn, target: assistant's), or source and target on one line each. A format string has
        ``{source}``, then ``{target}`` once; text after the target is learnt with it; literal braces are doubled. A
        callable gets the source and returns the prompt, or a list of chat messages.

    Attributes
    ----------
    stop_ids : tuple of int
        Tokens at which an answer ends.

    Raises
    ------
    InputError
        If the template lacks a field, has an unknown one, or is of another type.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from faast_sklearn.language.prompts import Prompts
    >>> class Letters:  # stands for a Hugging Face tokenizer
    ...     chat_template, bos_token_id, eos_token_id, all_special_ids = None, None, 0, [0]
    ...     def __call__(self, texts, **options):
    ...         return {"input_ids": [[ord(letter) for letter in text] for text in texts]}
    ...     def convert_ids_to_tokens(self, ids):
    ...         return [chr(i) for i in ids]
    >>> lm = SimpleNamespace(tokenizer=Letters(), encoder_decoder=False, limit=8, eos_ids=(0,), pad_id=0)
    >>> prompts = Prompts(lm, "{source} = {target}")
    >>> exchange = prompts.pairs(["a"], ["b"])[0]
    >>> "".join(map(chr, exchange.prompt)), exchange.answer
    ('a =', (32, 98, 0))
    """

    def __init__(self, lm: Any, template: str | Callable[..., Any] | None = None) -> None:
        self.lm = lm
        if lm.tokenizer is None:
            name = type(lm.module).__name__
            raise BackboneError(f"a language model needs its tokenizer: backbone(({name}, tokenizer)).")
        self._known = n_known_tokens(getattr(lm, "module", None))
        self._render = renderer(lm, template)
        eos = getattr(lm.tokenizer, "eos_token_id", None)
        self._eos = eos if eos is not None else next(iter(lm.eos_ids), None)
        self._start = getattr(lm.tokenizer, "bos_token_id", None)
        if self._start is None:
            self._start = lm.pad_id if self._eos is None else self._eos
        self._prefix = [] if lm.encoder_decoder else special_tokens(self._tokenize)[0]
        self._joins_space = not lm.encoder_decoder and self._adds_space()
        ends = [*lm.eos_ids, *([] if self._eos is None else [self._eos]), *self._turn_end(template)]
        self.stop_ids = tuple(dict.fromkeys(ends))

    def pairs(self, X: Any, y: Any) -> "Exchanges":
        """Tokenise sources and targets to learn from.

        Parameters
        ----------
        X, y : sequence of n str
            Sources may be empty, targets may not.

        Returns
        -------
        Exchanges
            If both together are too long for the model, the end of the source is cut.

        Raises
        ------
        InputError
            If texts are not strings, X and y differ in length, a target is empty or too long by itself, or the
            template leaves no room.
        """
        sources, targets = as_samples(X, "text"), targets_of(y)
        if len(sources) != len(targets):
            raise InputError(f"X has {len(sources)} samples and y has {len(targets)}; pass one target for each source.")
        for i, target in enumerate(targets):
            if not target.strip():
                raise InputError(f"y[{i}] is empty, so there is nothing to learn; drop the sample.")
        exchanges = Exchanges()
        for start in range(0, len(sources), _TEXTS_A_CALL):
            some = sources[start : start + _TEXTS_A_CALL]
            rendered, prompts = self._prompts(some, start)
            turns = [prompt.turn for prompt in rendered]
            answers = self._answers(targets[start : start + _TEXTS_A_CALL], turns)
            for k, (source, prompt, answer, turn) in enumerate(zip(some, prompts, answers, turns, strict=True)):
                i = start + k
                self.refuse_long(answer, f"y[{i}]")
                prompt, length = self._fit(source, prompt, len(answer), i)
                exchanges.append(prompt, answer, length, turn)
        return exchanges

    def questions(self, X: Any, room: int | Callable[..., Any] = 1) -> "Exchanges":
        """Tokenise prompts whose answers are to be predicted.

        Parameters
        ----------
        X : sequence of n str
        room : int or callable, default=1
            Tokens to keep for the answer in a decoder's context, or a function from a :class:`Turn` to that number.

        Returns
        -------
        Exchanges
            With empty answers.

        Raises
        ------
        InputError
            If texts are not strings, or the template leaves no room.
        """
        sources = as_samples(X, "text")
        exchanges = Exchanges()
        for start in range(0, len(sources), _TEXTS_A_CALL):
            some = sources[start : start + _TEXTS_A_CALL]
            rendered, prompts = self._prompts(some, start)
            for k, (source, prompt, how) in enumerate(zip(some, prompts, rendered, strict=True)):
                kept = room(how.turn) if callable(room) else room
                prompt, length = self._fit(source, prompt, kept, start + k)
                exchanges.append(prompt, (), length, how.turn)
        return exchanges

    def texts(self, X: Any) -> "Exchanges":
        """Tokenise plain texts to learn from: every token after the first is a target.

        Parameters
        ----------
        X : sequence of n str

        Returns
        -------
        Exchanges
            The prompt is the special tokens that the tokenizer writes before a text, else the text's first token. A
            text that is too long is cut; its end token is then not learnt.

        Raises
        ------
        InputError
            If texts are not strings, a text is empty, or the model is an encoder-decoder, which learns from pairs.
        """
        if self.lm.encoder_decoder:
            raise InputError("an encoder-decoder model learns from sources and targets; pass y as well.")
        samples = as_samples(X, "text")
        limit = self.lm.limit
        end = [] if self._eos is None else [self._eos]
        exchanges = Exchanges()
        for start in range(0, len(samples), _TEXTS_A_CALL):
            for k, ids in enumerate(self._tokenize(samples[start : start + _TEXTS_A_CALL])):
                if not ids:
                    raise InputError(f"X[{start + k}] is empty, so there is nothing to learn; drop the sample.")
                ids = [*self._with_prefix(ids), *end]
                first = max(len(self._prefix), 1)
                exchanges.append(ids[:first], ids[first:limit], len(ids), Turn())
        return exchanges

    def answers(self, texts: list, turn: "Turn | None" = None) -> list:
        """Tokenise answers as written in one turn, with their end token.

        Parameters
        ----------
        texts : list of k str
        turn : Turn, default=None
            The ``turn`` of the prompt's :class:`Exchange`.

        Returns
        -------
        list of k lists of int
        """
        return self._answers(texts, [turn or Turn()] * len(texts))

    def _prompts(self, sources, start):
        rendered = []
        for k, source in enumerate(sources):
            try:
                rendered.append(self._render(source))
            except InputError as error:
                raise InputError(f"X[{start + k}]: {error}") from error
        return rendered, self._prompt_ids(rendered)

    def _prompt_ids(self, rendered):
        rows = self._tokenize([prompt.text for prompt in rendered], special=self.lm.encoder_decoder)
        rows = [ids if prompt.complete else self._with_prefix(ids) for ids, prompt in zip(rows, rendered, strict=True)]
        # The first token of an answer needs a token before it.
        return [ids or [self._start] for ids in rows]

    def _answers(self, targets, turns):
        texts = [turn.before + target + turn.after for target, turn in zip(targets, turns, strict=True)]
        if self.lm.encoder_decoder:
            with _lock:
                rows = self.lm.tokenizer(text_target=texts, padding=False, truncation=False, verbose=False)["input_ids"]
            self._refuse_unknown(rows)
            # Tokenizers like mBART's write the language code after the end token.
            ended = [any(token in self.stop_ids for token in ids[-2:]) for ids in rows]
        else:
            # Some tokenizers write a space before a text themselves; avoid a second one.
            rows = self._tokenize([text[1:] if self._joins_space and text[:1] == " " else text for text in texts])
            ended = [bool(ids) and ids[-1] in self.stop_ids for ids in rows]
        return [
            list(ids) if done or self._eos is None else [*ids, self._eos] for ids, done in zip(rows, ended, strict=True)
        ]

    def _fit(self, source, prompt, room, i):
        """Return the prompt's ids, with the source shortened if needed, and their number before that plus the room."""
        room = 0 if self.lm.encoder_decoder else room
        length = len(prompt) + room
        if self.lm.limit is None or length <= self.lm.limit:
            return prompt, length
        most = self.lm.limit - room
        ids, fits = prompt, None
        low, high = -1, len(source)  # source[:high] is too long
        while high - low > 1:
            middle = (low + high) // 2
            ids = self._prompt_ids([self._render(source[:middle])])[0]
            if len(ids) <= most:
                fits, low = ids, middle
            else:
                high = middle
        if fits is None:
            raise InputError(
                f"X[{i}]: even without the source, the template and the answer take {len(ids) + room} tokens, "
                f"and the model reads {self.lm.limit}; shorten the template or the answer."
            )
        return fits, length

    def refuse_long(self, answer: list, name: str) -> None:
        """Raise InputError for an answer that the model cannot read, whatever is left of the prompt."""
        limit = self.lm.limit
        if limit is not None and len(answer) > limit - (not self.lm.encoder_decoder):
            raise InputError(
                f"{name} has {len(answer)} tokens with its end, and the model reads {limit}"
                f"{'' if self.lm.encoder_decoder else ', prompt and answer together'}; shorten it or split it."
            )

    def _tokenize(self, texts, special=False):
        with _lock:
            rows = token_rows(self.lm.tokenizer, texts, special)
        self._refuse_unknown(rows)
        return rows

    def _refuse_unknown(self, rows):
        refuse_unknown_tokens(rows, self._known, type(getattr(self.lm, "module", None)).__name__)

    def _with_prefix(self, ids):
        n = len(self._prefix)
        return ids if ids[:n] == self._prefix else [*self._prefix, *ids]

    def _adds_space(self):
        (ids,) = self._tokenize(["a"])
        return bool(ids) and self.lm.tokenizer.convert_ids_to_tokens(ids)[0][:1] in ("▁", "Ġ")

    def _turn_end(self, template):
        """Find the token that ends a turn of the chat template, if that template may be used."""
        try:
            turn = chat_turn(self.lm) if template is None or callable(template) else None
        except InputError:
            if template is None:
                raise
            turn = None  # the function may never return chat messages
        return self._tokenize([turn.after])[0][-1:] if turn is not None and turn.after else []


def targets_of(y: Any) -> Any:
    """Return targets as a sequence of strings; errors name them y.

    Raises
    ------
    InputError
        As :func:`~faast_sklearn.inputs.as_samples`.

    Examples
    --------
    >>> from faast_sklearn.language.prompts import targets_of
    >>> targets_of(["chat", 3])
    Traceback (most recent call last):
    ...
    faast_sklearn.errors.InputError: y[1] is 3 (int), expected str; convert it first, str(x).
    """
    try:
        return as_samples(y, "text")
    except InputError as error:
        raise InputError(re.sub(r"\bX(?=[\[.]| is a?| has )", "y", str(error))) from error
