"""The tokens of prompts and answers, sample by sample."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from faast_sklearn.language.templates import Turn

__all__ = ["Exchange", "Exchanges"]

_PLAIN = Turn()


@dataclass(frozen=True)
class Exchange:
    """The tokens of one prompt and of its answer.

    Parameters
    ----------
    prompt : tuple of int
        Never empty. For encoder-decoders, what the encoder reads.
    answer : tuple of int, default=()
        Includes its end token; empty if the answer is to be predicted.
    length : int, default=0
        Number of tokens before the source was shortened, including the answer or the room reserved for it; for
        encoder-decoders of the prompt only. If it exceeds the model's limit, the text was cut.
    turn : Turn, default=Turn()
        Text around the answer to this prompt.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()
    length: int = 0
    turn: Turn = _PLAIN


class Exchanges(Sequence):
    """Exchanges of many samples, as a sequence.

    Token ids take 32 bits each, so exchanges take about as much memory as the texts.

    Examples
    --------
    >>> from faast_sklearn.language.exchanges import Exchanges
    >>> exchanges = Exchanges()
    >>> exchanges.append([5, 6], [7, 2], length=4)
    >>> len(exchanges), exchanges[0].answer
    (1, (7, 2))
    """

    def __init__(self) -> None:
        self._rows = []

    def append(self, prompt: Any, answer: Any, length: Any, turn: Any = _PLAIN) -> None:
        """Add the exchange of the next sample, with the parameters of :class:`Exchange`."""
        self._rows.append((array("i", prompt), array("i", answer), length, turn))

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, i):
        prompt, answer, length, turn = self._rows[i]
        return Exchange(tuple(prompt), tuple(answer), length, turn)
