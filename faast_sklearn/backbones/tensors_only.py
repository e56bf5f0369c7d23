"""Unpickle only tensors while a model is opened, by whichever library."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

__all__ = ["tensors_only"]

_FORCE, _NEVER = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextlib.contextmanager
def tensors_only() -> Iterator[Any]:
    """Make ``torch.load`` refuse everything but tensors and plain containers, even with ``weights_only=False``.

    Older releases of timm and open_clip do not request this everywhere. torch reads the environment variables at each
    call; only one thread at a time opens a model.
    """
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _NEVER)}
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
