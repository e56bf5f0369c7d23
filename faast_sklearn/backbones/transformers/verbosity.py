"""Silence transformers while a model loads, then restore its verbosity."""

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["quiet_transformers"]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[Any]:
    """Silence load reports and weight-loading bars inside the block.

    Callers hold the lock of :mod:`~faast_sklearn.backbones.open_backbones`, so two threads never change
    the verbosity at once.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # The GGUF reader has its own progress bar, without a switch.
    gguf = sys.modules.get("transformers.modeling_gguf_pytorch_utils")
    bar = getattr(gguf, "tqdm", None)
    logging.set_verbosity_error()
    if bars:
        logging.disable_progress_bar()
    if bar is not None:
        gguf.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if bar is not None:
            gguf.tqdm = bar
