"""Render source texts as prompts, and find the text around the answers."""

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from faast_sklearn.errors import InputError, shortened

__all__ = ["Rendered", "Turn", "chat_turn", "renderer"]

_PLAIN = "{source}\n{target}"
_SLOT = "faast-answer-slot"  # placeholder for an answer while a chat template is examined


@dataclass(frozen=True)
class Turn:
    """Text right before and right after an answer; both are learnt with it.

    Parameters
    ----------
    before : str, default=""
        Spaces at the end of the prompt, which most tokenizers join to the answer's first word.
    after : str, default=""
        Text of the template after the answer, up to and including the token that ends a turn.
    """

    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Rendered:
    """The text of one prompt.

    Parameters
    ----------
    text : str
    turn : Turn
    complete : bool
        Whether the text already has its special tokens, as the text of chat templates does.
    """

    text: str
    turn: Turn
    complete: bool


def renderer(lm: Any, template: str | Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Turn ``template`` into a function from a source text to a :class:`Rendered` prompt.

    Parameters
    ----------
    lm : LanguageModel
        Its tokenizer may have a chat template.
    template : None, str or callable, default=None
        As :class:`~faast_sklearn.language.prompts.Prompts` describes.

    Returns
    -------
    callable

    Raises
    ------
    InputError
        If the template is of another type, or a format string lacks a field or has others.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from faast_sklearn.language.templates import renderer
    >>> lm = SimpleNamespace(tokenizer=None, encoder_decoder=False)
    >>> renderer(lm, "English: {source} French: {target}.")("a cat")
    Rendered(text='English: a cat French:', turn=Turn(before=' ', after='.'), complete=False)
    """
    if template is None and lm.encoder_decoder:
        return lambda source: Rendered(source, Turn(), False)
    if template is None and getattr(lm.tokenizer, "chat_template", None):
        chat = _Chat(lm.tokenizer)
        return lambda source: chat.render([{"role": "user", "content": source}])
    if template is None or isinstance(template, str):
        return _format(_PLAIN if template is None else template, lm.encoder_decoder)
    if callable(template):
        return _custom(template, lm)
    raise InputError(
        f"template={template!r} is {type(template).__name__}; pass None, a format string with {{source}} and "
        "{target}, or a function from a source to a prompt."
    )


def chat_turn(lm: Any) -> "Turn | None":
    """Return what a tokenizer's chat template writes around an answer; None without one or for encoder-decoders.

    Parameters
    ----------
    lm : LanguageModel

    Returns
    -------
    Turn or None

    Raises
    ------
    InputError
        If the template cannot write one question and its answer.
    """
    chat = not lm.encoder_decoder and getattr(lm.tokenizer, "chat_template", None)
    return _Chat(lm.tokenizer).turn if chat else None


def _format(template, encoder_decoder):
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(
            f"template={template!r} is not a format string ({error}); write literal braces as {{{{ and }}}}."
        ) from error
    fields = [field for _, field, _, _ in parts if field is not None]
    unknown = [field for field in fields if field not in ("source", "target")]
    if unknown:
        raise InputError(
            f"template={template!r} has the field {{{unknown[0]}}}; the only fields are {{source}} and {{target}}, "
            "and literal braces are written {{ and }}."
        )
    for name in ("source", "target"):
        if name not in fields:
            raise InputError(f"template={template!r} lacks {{{name}}}, which says where the {name} goes.")
    if fields.count("target") > 1 or fields[-1] != "target":
        raise InputError(
            f"template={template!r} must have {{target}} once, after {{source}}: the answer is learnt last."
        )
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise InputError(f"template={template!r} formats a field; write plain {{source}} and {{target}}.")
    last = next(i for i, part in enumerate(parts) if part[1] == "target")
    after = "".join(literal for literal, _, _, _ in parts[last + 1 :])

    def render(source):
        # Joined by hand, up to {target}; braces in the source are text.
        text = "".join(literal + (source if field == "source" else "") for literal, field, _, _ in parts[: last + 1])
        return _open_end(text, after, encoder_decoder)

    return render


def _open_end(text, after, encoder_decoder):
    """Move spaces at the prompt's end to the answer; drop them for an encoder-decoder, which reads both separately."""
    core = text.rstrip(" ")
    return Rendered(core, Turn("" if encoder_decoder else text[len(core) :], after), False)


def _custom(template, lm):
    chat = []  # made at the first list of messages

    def render(source):
        result = template(source)
        if isinstance(result, str):
            return _open_end(str(result), "", lm.encoder_decoder)
        if not isinstance(result, list) or not all(
            isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in result
        ):
            raise InputError(
                f"template returned {type(result).__name__} {shortened(str(result))}, expected a str or a list of "
                "messages {'role': ..., 'content': ...}."
            )
        if not chat:
            if lm.encoder_decoder or not getattr(lm.tokenizer, "chat_template", None):
                raise InputError("template returned messages, but the tokenizer has no chat template; return a str.")
            chat.append(_Chat(lm.tokenizer))
        return chat[0].render(result)

    return render


class _Chat:
    """A tokenizer's chat template, and what it writes around the assistant's answer."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        asked = [{"role": "user", "content": "a"}]
        prompt = self._apply(asked, add_generation_prompt=True)
        whole = self._apply([*asked, {"role": "assistant", "content": _SLOT}])
        head, slot, tail = whole.rpartition(_SLOT)
        # Some templates open the answer with more than the generation prompt, such as an empty block of thought.
        opening = head if slot and head.startswith(prompt) else prompt
        core = opening.rstrip(" ")
        self.suffix = core[len(prompt) :]
        self.turn = Turn(opening[len(core) :], self._ending(tail))

    def render(self, messages):
        text = self._apply(messages, add_generation_prompt=True) + self.suffix
        return Rendered(text.rstrip(" "), self.turn, True)

    def _ending(self, tail):
        """Return the text after an answer, up to its first special token."""
        tokenizer = self.tokenizer
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special.update(tokenizer.all_special_ids)
        for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
            if token in special:
                before, content, _ = tail.partition(tokenizer.convert_ids_to_tokens(token))
                return before + content
        return ""

    def _apply(self, messages, **options):
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except Exception as error:  # templates are programs and may raise anything
            raise InputError(
                f"the tokenizer's chat template cannot write {shortened(messages, 80)}: {type(error).__name__}: {error}"
                ". Pass a format string or a function as template."
            ) from error
