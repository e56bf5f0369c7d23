"""The backbones that are open in this process: one for each name, options, device and dtype."""

import collections
import gc
import threading
from collections.abc import Callable
from typing import Any

from faast_sklearn.backbones.device import available_devices, empty_cache

__all__ = ["derived", "open_count", "open_once", "release_backbones"]

# Reentrant, because a registered backbone may open another one. One thread at a time loads, because loading changes the
# verbosity of libraries.
_lock = threading.RLock()
_named = {}
_in_memory = collections.OrderedDict()
_IN_MEMORY_SLOTS = 4  # a grid over bare modules deep-copies them for each fit, and not all copies should stay in memory
_count = 0


def open_once(key: Any, opener: Callable[..., Any], *, in_memory: bool = False) -> Any:
    """Return the open backbone of ``key``; the first request opens it.

    Parameters
    ----------
    key : hashable
    opener : callable
        Called without arguments at most once while the entry lives.
    in_memory : bool, default=False
        Whether it wraps the caller's module; only the four most recently used of these are kept.

    Returns
    -------
    Backbone
    """
    global _count
    entries: Any = _in_memory if in_memory else _named
    with _lock:
        if key not in entries:
            entries[key] = opener()
            _count += 1
        if in_memory:
            entries.move_to_end(key)
            while len(entries) > _IN_MEMORY_SLOTS:
                _, oldest = entries.popitem(last=False)
                # Derived backbones refer back to it; breaking the cycle frees their memory at once.
                vars(oldest).pop("_derived", None)
        return entries[key]


def derived(opened: Any, key: Any, make: Callable[[], Any]) -> Any:
    """Return ``make()``, a backbone that wraps an open one; it is made once per key and kept on the wrapped one.

    Parameters
    ----------
    opened : Backbone
    key : hashable
    make : callable

    Returns
    -------
    Backbone
    """
    with _lock:
        known = vars(opened).setdefault("_derived", {})
        if key not in known:
            known[key] = make()
        return known[key]


def open_count() -> int:
    """Return how many backbones this process has opened; clones of an estimator open none.

    Returns
    -------
    int

    Examples
    --------
    >>> from faast_sklearn.backbones.open_backbones import open_count
    >>> before = open_count()
    >>> before >= 0
    True
    """
    return _count


def release_backbones() -> None:
    """Close every open backbone and free its memory.

    Estimators keep working: their next call opens the backbone again. Memory is freed as soon as no running call uses
    the backbone.

    Examples
    --------
    >>> from faast_sklearn.backbones import release_backbones
    >>> release_backbones()
    """
    with _lock:
        _named.clear()
        _in_memory.clear()
    gc.collect()
    for kind in available_devices():
        empty_cache(kind)
