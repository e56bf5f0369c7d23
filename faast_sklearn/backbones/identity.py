"""Recognise the weights of an open backbone, also in another precision."""

import hashlib
from typing import Any

import torch

from faast_sklearn.backbones.fingerprints import fingerprint
from faast_sklearn.backbones.memo import remembered
from faast_sklearn.backbones.modules import module_version

__all__ = ["same_weights", "weight_summary"]

# Number of entries compared if the precision differs, and the relative difference after rounding to bfloat16.
_SAMPLES = 256
_ROUNDING = 2.0**-7


def weight_summary(opened: Any) -> dict | None:
    """Return a summary by which the weights of an open backbone or language model are recognised.

    Parameters
    ----------
    opened : Backbone or LanguageModel

    Returns
    -------
    dict or None
        JSON types only: ``"structure"``, a digest of names and shapes; ``"dtype"``; ``"digest"``, of the values in that
        precision; ``"sample"``, at most 256 entries from all tensors. None for a backbone without a module. Reads all
        weights once.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> from faast_sklearn.backbones.identity import same_weights, weight_summary
    >>> one = SimpleNamespace(module=torch.nn.Linear(4, 3), dtype=torch.float32)
    >>> half = SimpleNamespace(module=torch.nn.Linear(4, 3).half(), dtype=torch.float16)
    >>> _ = half.module.load_state_dict(one.module.state_dict())
    >>> same_weights(weight_summary(one), weight_summary(half))
    True
    """
    module = getattr(opened, "module", None)
    if module is None:
        return None
    return remembered(module, "summary", lambda: _summary(module, opened.dtype), module_version(module))


def same_weights(one: Any, other: Any) -> bool:
    """Whether two summaries are of the same weights, as far as their precision can tell."""
    if one["structure"] != other["structure"]:
        return False
    if one["dtype"] == other["dtype"]:
        return one["digest"] == other["digest"]
    a, b = (torch.tensor(summary["sample"], dtype=torch.float64) for summary in (one, other))
    # 1e-7 is about the distance between the smallest float16 numbers.
    return a.shape == b.shape and bool(((a - b).abs() <= _ROUNDING * torch.maximum(a.abs(), b.abs()) + 1e-7).all())


def _summary(module, dtype):
    state = {name: tensor.detach() for name, tensor in sorted(module.state_dict().items())}
    structure = hashlib.sha256(repr([(name, tuple(tensor.shape)) for name, tensor in state.items()]).encode())
    floating = [tensor for tensor in state.values() if tensor.is_floating_point() and tensor.numel()]
    each = -(-_SAMPLES // max(1, len(floating)))
    # The same number from each tensor, evenly spread over it.
    entries = [tensor.reshape(-1)[:: max(1, tensor.numel() // each)][:each].double().cpu() for tensor in floating]
    entries = torch.cat(entries) if entries else torch.zeros(0, dtype=torch.float64)
    return {
        "structure": structure.hexdigest(),
        "dtype": str(dtype).removeprefix("torch."),
        "digest": fingerprint(state),
        "sample": entries[:: max(1, len(entries) // _SAMPLES)][:_SAMPLES].tolist(),
    }
