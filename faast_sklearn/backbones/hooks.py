"""Temporary hooks on a frozen model that run only in the passes they are meant for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["hooked"]

_passes = threading.local()


def _innermost():
    stack = getattr(_passes, "stack", None)
    return stack[-1] if stack else None


@contextmanager
def hooked(before: Any = (), after: Any = (), *, private: bool = True) -> Iterator[Any]:
    """Register hooks for the time of the block; they are removed even if it raises.

    The library's own passes are private: only their own hooks run in them, not those that a user has attached, and
    private hooks never run in other threads that use the same module.

    Parameters
    ----------
    before : iterable of (torch.nn.Module, callable)
        Called with the module's first input; a result other than ``None`` replaces it.
    after : iterable of (torch.nn.Module, callable)
        Called with the first input and the output; a result other than ``None`` replaces the output.
    private : bool, default=True
        ``False``: run in all passes of all threads, except private ones.

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.backbones.hooks import hooked
    >>> double = torch.nn.Identity()
    >>> with hooked([(double, lambda x: 2 * x)]):
    ...     double(torch.ones(1))
    tensor([2.])
    >>> double(torch.ones(1))
    tensor([1.])
    """
    token = object()

    def runs():
        innermost = _innermost()
        return innermost is token if private else innermost is None

    # torch stores separately whether a hook takes kwargs. While one thread registers or removes a hook, a pass in
    # another thread may call it without kwargs; it does not belong to that pass.

    def first(function):
        def hook(module, args, kwargs=None):
            if kwargs is None or not runs():
                return None
            if not args:  # some models pass hidden states by keyword
                name, value = next(iter(kwargs.items()))
                changed = function(value)
                return None if changed is None else (args, {**kwargs, name: changed})
            changed = function(args[0])
            return None if changed is None else ((changed, *args[1:]), kwargs)

        return hook

    def last(function):
        def hook(module, args, *rest):
            if len(rest) < 2 or not runs():
                return None
            kwargs, output = rest
            return function(args[0] if args else next(iter(kwargs.values())), output)

        return hook

    handles = []
    try:
        for module, function in before:
            handles.append(module.register_forward_pre_hook(first(function), with_kwargs=True))
        for module, function in after:
            handles.append(module.register_forward_hook(last(function), with_kwargs=True))
        if private:
            _passes.stack = [*getattr(_passes, "stack", []), token]
        try:
            yield
        finally:
            if private:
                _passes.stack = _passes.stack[:-1]
    finally:
        for handle in handles:
            handle.remove()
