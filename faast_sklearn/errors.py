"""Typed errors and warnings.

Each error is also the built-in type that scikit-learn users already catch (``ValueError``,
``ImportError``, ``RuntimeError``), so ``except ValueError`` keeps working.
"""

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


class InputError(FaastError, ValueError):
    """A sample, a label or a weight cannot be used; the message names which one and the remedy."""


class NonFiniteError(InputError):
    """NaN or infinite features; the message names the first such row."""


class ForgetError(FaastError, ValueError):
    """``forget`` was asked to take away what was never learnt."""


class BackboneError(FaastError, RuntimeError):
    """A backbone cannot be opened or run; the message says what was tried."""


class UnknownBackboneError(BackboneError, ValueError):
    """No backbone of that name; the message lists near names."""


class MissingDependencyError(FaastError, ImportError):
    """An optional package is missing or broken; the message gives the pip line."""


class DeviceError(FaastError, RuntimeError):
    """The device or dtype that was asked for is not available here."""


class OutOfMemoryError(FaastError, MemoryError):
    """Not even one sample fits into the device's memory."""


class SavedFileError(FaastError, ValueError):
    """A file cannot be written or read as a saved estimator; the message says what is wrong with it."""


class SavedFileWarning(UserWarning):
    """A saved estimator meets other library versions or another backbone than it was saved with."""


class ConditionWarning(UserWarning):
    """Rounding may reach the scores; the message names the condition number, the likely reason and the remedy."""


class TruncationWarning(UserWarning):
    """Texts were longer than the backbone reads; the message says how many and how long."""


class NotFittedWarning(UserWarning):
    """An estimator that has learnt nothing was asked to predict; the answer is the frozen model's."""
