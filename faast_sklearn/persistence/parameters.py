"""Constructor parameters as JSON values; code, devices and local paths are left out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from faast_sklearn.errors import SavedFileError, shortened
from faast_sklearn.persistence.arrays import Array, Labels
from faast_sklearn.persistence.backbone_references import pack_backbone, unpack_backbone

__all__ = ["pack_parameters", "unpack_parameters"]

_NUMBERS = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64),
)


def pack_parameters(estimator: Any, out: Any) -> dict:
    """Return the parameters of an estimator by name.

    Parameters
    ----------
    estimator : estimator
        Of this library.
    out : TensorWriter

    Returns
    -------
    dict
        The device, and any cache but "memory", is saved as None: they belong to a machine. Functions, modules, local
        folders and whatever else a file must not name are marked as missing; users pass them to ``load``.
    """
    packed = {}
    for name, value in estimator.get_params(deep=False).items():
        with out.at(name):
            if name == "backbone":
                packed[name] = pack_backbone(estimator, out)
            elif name == "device" or (name == "cache" and not isinstance(value, str)):
                packed[name] = None
            elif name == "cache":
                packed[name] = value if value == "memory" else None
            else:
                try:
                    packed[name] = _pack(value, out)
                except _Missing as missing:
                    packed[name] = {"missing": str(missing)}
    return packed


def unpack_parameters(node: Any, given: dict, names: list, source: Any) -> Any:
    """Return parameters by name.

    Parameters
    ----------
    node : dict
        As :func:`pack_parameters` returned it.
    given : dict
        Parameters that the caller passed, by name; they replace those in the file.
    names : list of str
        Names of the estimator's parameters.
    source : TensorReader

    Raises
    ------
    SavedFileError
        If a parameter that no file can hold was not passed, or a parameter is not known.
    """
    if not isinstance(node, dict) or not node.keys() <= set(names):
        raise source.wrong(f"has parameters other than {names}")
    values = {}
    for name, value in node.items():
        if name in given:
            values[name] = given[name]
            continue
        with source.at(name):
            missing = value.get("missing") if isinstance(value, dict) else None
            if missing is not None:
                raise SavedFileError(
                    f"{name} was {missing} when this was saved, which no file holds: pass it, load(path, {name}=...)."
                )
            values[name] = unpack_backbone(value, source) if name == "backbone" else _unpack(value, source)
    return values


class _Missing(Exception):  # noqa: N818 - never leaves this file
    """A part of the value cannot be saved."""


def _pack(value, out):
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else {"float": repr(value)}
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": out.each(value, lambda one: _pack(one, out))}
    if hasattr(value, "to_diff_dict"):  # transformers' GenerationConfig; a dict of its settings does the same
        return _pack(value.to_diff_dict(), out)
    if isinstance(value, Mapping):
        values = out.each(value.values(), lambda one: _pack(one, out))
        return {"dict": [[_pack(key, out), one] for key, one in zip(value, values, strict=True)]}
    if isinstance(value, torch.Tensor) or hasattr(value, "__array__"):
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if array.dtype.kind in "biuf":
            return {"array": out.put(torch.from_numpy(np.ascontiguousarray(array)))}
        if array.ndim == 1 and array.dtype.kind in "UO":
            return {"labels": Labels(sorted=False).pack(array, out)}
    raise _Missing("a function" if callable(value) else f"a {type(value).__name__}")


def _unpack(node, source):
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    if not isinstance(node, dict) or len(node) != 1:
        raise source.wrong(f"is {shortened(node)}, expected a parameter")
    ((kind, value),) = node.items()
    if kind == "float" and value in ("inf", "-inf", "nan"):
        return float(value)
    if kind == "array":
        tensor = source.take(value)
        return Array("x" * tensor.ndim, _NUMBERS, numpy=True).check(tensor, source)
    if kind == "labels":
        return Labels(sorted=False).unpack(value, source)
    if kind in ("list", "tuple") and isinstance(value, list):
        values = [_unpack(one, source) for one in value]
        return values if kind == "list" else tuple(values)
    if kind == "dict" and isinstance(value, list) and all(isinstance(p, list) and len(p) == 2 for p in value):
        try:
            return {_unpack(key, source): _unpack(one, source) for key, one in value}
        except TypeError:
            raise source.wrong("has a key that no dict can have") from None
    raise source.wrong(f"is {shortened(node)}, expected a parameter")
