"""One change of an estimator at a time: threads that change the same estimator take turns."""

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["changing"]

# Estimators do not hold their own locks, because locks can be neither copied nor pickled.
_locks = weakref.WeakKeyDictionary()
_guard = threading.Lock()


@contextmanager
def changing(estimator: Any) -> Iterator[Any]:
    """Let one thread at a time change an estimator, and restore its attributes if the change fails.

    Parameters
    ----------
    estimator : object
        Hashable, and compared by identity.

    Examples
    --------
    >>> from faast_sklearn.estimators.turns import changing
    >>> class Sum:
    ...     total = 0
    >>> one = Sum()
    >>> with changing(one):
    ...     one.total = one.total + 1
    >>> one.total
    1
    """
    with _guard:
        lock = _locks.setdefault(estimator, threading.RLock())
    with lock:
        before = dict(estimator.__dict__)
        try:
            yield
        except BaseException:  # includes KeyboardInterrupt
            for name in estimator.__dict__.keys() - before.keys():
                del estimator.__dict__[name]
            estimator.__dict__.update(before)
            raise


def _forget_threads():
    """Make new locks in a forked process: the threads that held the old ones do not exist there."""
    global _guard
    _guard = threading.Lock()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
