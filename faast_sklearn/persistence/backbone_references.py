"""How a saved file names the backbone of an estimator: only by a public name and options.

A file from elsewhere must not make this machine read local folders, run code of a repository, or open a path that its
author chose. So a file never names a local folder, a module, or a repository whose code would run; users pass these to
``load``. Weights that are stored beside the file are found by their digest within its folder.
"""

import os
import re
from typing import Any

import torch

from faast_sklearn.backbones import backbone
from faast_sklearn.backbones.handle import as_handle
from faast_sklearn.errors import FaastError, SavedFileError, shortened
from faast_sklearn.persistence.fields import Options
from faast_sklearn.persistence.stored_weights import STORED, open_stored, store_weights

__all__ = ["pack_backbone", "unpack_backbone"]

# A name in an index or on a hub: no drive, no root, no parent folder, at most "prefix:owner/name".
_PUBLIC = re.compile(r"[a-z][a-z0-9_-]+:(hf[-_]hub:)?[A-Za-z0-9][\w.+-]*(/[A-Za-z0-9][\w.+-]*)?\Z", re.ASCII)
# Options whose strings name files.
_FILES = ("weights", "base_config")


def pack_backbone(estimator: Any, out: Any) -> str | dict | None:
    """Return how a file names the backbone of an estimator; store its weights too if ``out`` has a folder for them.

    Parameters
    ----------
    estimator : estimator
        With a parameter ``backbone``.
    out : TensorWriter

    Returns
    -------
    None, str or dict
        ``{"missing": why}`` for a backbone that a file must not name.
    """
    value = estimator.backbone
    if value is None:
        return None
    out.backbones = True
    if out.weights_folder is not None:
        stored = store_weights(value, out.weights_folder)
        out.weights.add(stored[STORED]["folder"])
        return stored
    try:
        handle = as_handle(value)
    except FaastError:
        return {"missing": "an unknown backbone"}
    if handle.module is not None:
        return {"missing": f"a {type(handle.module).__name__} in memory"}
    reason = _why_not(handle.spec, handle.options)
    if reason is not None:
        return {"missing": reason}
    if isinstance(value, str) and not handle.options:
        return value
    return {"spec": handle.spec, "options": Options().pack(handle.options, out)}


def unpack_backbone(node: Any, source: Any) -> Any:
    """Return the backbone parameter that a file names; nothing is opened or looked up.

    Parameters
    ----------
    node : None, str or dict
    source : TensorReader

    Raises
    ------
    SavedFileError
        If it is a path, has options that name files or run code, or is the name of a local folder.
    """
    if node is None:
        return None
    if isinstance(node, dict) and node.keys() == {STORED, "spec", "options"}:
        return open_stored(node, source)
    plain = isinstance(node, str)
    if not plain and not (isinstance(node, dict) and node.keys() == {"spec", "options"} and type(node["spec"]) is str):
        raise source.wrong(f"is {shortened(node)}, expected the name of a backbone")
    spec, options = (node, {}) if plain else (node["spec"], Options().unpack(node["options"], source))
    reason = _why_not(spec, options)
    if reason is not None:
        raise SavedFileError(
            f"the saved file asks for {reason} as its backbone, {shortened(spec, 80)}, which load does not open: pass "
            "the backbone, load(path, backbone=...)."
        )
    try:
        return spec if plain else backbone(spec, **options)
    except (FaastError, TypeError) as error:
        raise SavedFileError(f"the saved file's backbone is not known here: {error}") from error


def _why_not(spec, options):
    """Return which part of a backbone's name or options no file may hold, or None."""
    prefix, _, name = spec.partition(":")
    if prefix != "bundled" and os.path.exists(name):
        return "a local folder or file"
    if not _PUBLIC.match(spec) or ".." in spec:
        return "a path or address"
    if options.get("trust_remote_code"):
        return "a repository whose code would run"
    for option, value in options.items():
        if option in _FILES and value is not None:
            return f"a local file, {option}="
        if isinstance(value, torch.dtype) or not _plain(value):
            return f"an option that is not a number or string, {option}="
        if isinstance(value, str) and (os.sep in value or "/" in value or "\\" in value or ".." in value):
            return f"a path or address, {option}="
    return None


def _plain(value):
    each = value if isinstance(value, tuple) else (value,)
    return all(one is None or isinstance(one, (bool, int, float, str)) for one in each)
