"""Values that are remembered for an open backbone or its module, as long as it exists."""

import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["remember", "remembered"]

_lock = threading.Lock()
_memos = weakref.WeakKeyDictionary()  # owner -> _Memo


class _Memo:
    def __init__(self):
        self.values = {}
        self.lock = threading.RLock()


def _of(owner):
    with _lock:
        return _memos.setdefault(owner, _Memo())


def remembered(owner: Any, key: Any, make: Callable[..., Any], version: Any = None) -> Any:
    """Return ``make()``, called once for each owner, key and version; other threads wait for it.

    Parameters
    ----------
    owner : object
        It is referenced weakly, and its values are dropped with it.
    key : hashable
    make : callable
    version : object, default=None
        Version of the owner. If it differs from the remembered version, ``make`` is called again.

    Examples
    --------
    >>> from faast_sklearn.backbones.memo import remember, remembered
    >>> class Model:
    ...     pass
    >>> model = Model()
    >>> remembered(model, "size", lambda: 3), remembered(model, "size", lambda: 4)
    (3, 3)
    >>> remember(model, "size", 5, better=max)
    >>> remembered(model, "size", lambda: 4)
    5
    """
    memo = _of(owner)
    with memo.lock:
        known = memo.values.get(key)
        if known is None or known[0] != version:
            known = memo.values[key] = (version, make())
        return known[1]


def remember(owner: Any, key: Any, value: Any, *, better: Any) -> None:
    """Remember a value; if there is one already, remember ``better(known, value)``."""
    memo = _of(owner)
    with memo.lock:
        version, known = memo.values.get(key, (None, value))
        memo.values[key] = (version, better(known, value))
