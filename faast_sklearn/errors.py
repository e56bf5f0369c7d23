"""Typed errors and warnings.

Each error is also the built-in type that scikit-learn users already catch (``ValueError``,
``ImportError``, ``RuntimeError``), so ``except ValueError`` keeps working.
"""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "BackboneError",
    "ConditionWarning",
    "DeviceError",
    "FaastError",
    "ForgetError",
    "InputError",
    "MissingDependencyError",
    "NonFiniteError",
    "NotFittedWarning",
    "OutOfMemoryError",
    "SavedFileError",
    "SavedFileWarning",
    "TruncationWarning",
    "UnknownBackboneError",
]


class FaastError(Exception):
    """Base class of every error that this library raises on purpose."""


_LONGEST = 500


def shortened(value: Any, most: int = 60, *, quoted: bool = True) -> str:
    """Return a user's value as messages show it: on one line, and shortened in the middle.

    Parameters
    ----------
    value : object
    most : int, default=60
        The most characters.
    quoted : bool, default=True
        Whether to show the value's ``repr``; False for text that is a message itself.

    Examples
    --------
    >>> from faast_sklearn.errors import shortened
    >>> shortened("a" * 100, most=20)
    "'aaaaaaaaaa...aaaa'"
    """
    if isinstance(value, (str, bytes)) and len(value) > 4 * most:
        value = value[: 2 * most] + value[-2 * most :]  # type: ignore[operator] # its repr would be as long
    text: str = (repr(value) if quoted else str(value)).replace("\n", " ")
    if len(text) <= most:
        return text
    end = (most - 3) // 3
    return f"{text[: most - 3 - end]}...{text[-end:]}"


def listed(names: Sequence[str], most: int) -> str:
    """Return the first names as a comma-separated list, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def nearest(value: Any, known: Iterable, cutoff: float = 0.6) -> Any:
    """Return the known value that equals a given one but for case and outer spaces, or else is spelt most like it.

    Returns
    -------
    object or None
        None if none is similar.

    Examples
    --------
    >>> from faast_sklearn.errors import nearest
    >>> nearest("True", [False, True]), nearest("cta", ["cat", "dog"]), nearest("x", ["cat", "dog"])
    (True, 'cat', None)
    """
    names = {str(one): one for one in known}
    for name, one in names.items():
        if name.strip().casefold() == str(value).strip().casefold():
            return one
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=cutoff)
    return names[near[0]] if near else None


def refuse_missing_parent(path: Any) -> None:
    """Raise FileNotFoundError if the folder in which ``path`` is to be made does not exist."""
    parent = Path(path).absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"the folder {str(parent)!r} does not exist; make it first, or choose another.")


class InputError(FaastError, ValueError):
    """A sample, a label or a weight cannot be used; the message names it and the remedy.

    A message of more than 500 characters is shortened in the middle, since the culprit and the remedy are at its ends.
    """

    def __init__(self, message: Any = "", *more: Any) -> None:
        super().__init__(shortened(message, most=_LONGEST, quoted=False) if len(message) > _LONGEST else message, *more)


class NonFiniteError(InputError):
    """Features are NaN or infinite; the message names the first such row."""


class ForgetError(FaastError, ValueError):
    """``forget`` was given samples that were never learnt."""


class BackboneError(FaastError, RuntimeError):
    """A backbone cannot be opened or run; the message says what was tried."""


class UnknownBackboneError(BackboneError, ValueError):
    """There is no backbone of that name; the message lists similar names."""


class MissingDependencyError(FaastError, ImportError):
    """An optional package is missing or broken; the message gives the pip command."""


class DeviceError(FaastError, RuntimeError):
    """The device or dtype that was asked for is not available here."""


class OutOfMemoryError(FaastError, MemoryError):
    """Not even one sample fits into the device's memory."""


class SavedFileError(FaastError, ValueError):
    """A file cannot be written or read as a saved estimator; the message says what is wrong with it."""


class SavedFileWarning(UserWarning):
    """The library versions or the backbone differ from those with which an estimator was saved."""


class ConditionWarning(UserWarning):
    """Rounding may reach the scores; the message names the condition number, the likely reason and the remedy."""


class TruncationWarning(UserWarning):
    """Texts were longer than the backbone reads; the message says how many and how long."""


class NotFittedWarning(UserWarning):
    """An estimator that has learnt nothing was asked to predict; the prediction is the frozen model's."""
