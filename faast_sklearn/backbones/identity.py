"""Whether an open backbone has the weights that something was learnt with, also in another precision."""

import hashlib
from typing import Any

import torch

from faast_sklearn.backbones.fingerprints import fingerprint
from faast_sklearn.backbones.memo import remembered
from faast_sklearn.backbones.modules import module_version

__all__ = ["same_weights", "weight_summary"]

# Entries that are compared where the precision differs, and how far apart rounding to bfloat16 leaves them.
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
        Of what JSON knows: ``"structure"``, a digest of names and shapes; ``"dtype"``; ``"digest"``, of all values in
        that precision; ``"sample"``, 256 entries from all over. None for a backbone without a module. Reads all
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
    # float16 has nothing between its smallest numbers.
    return a.shape == b.shape and bool(((a - b).abs() <= _ROUNDING * torch.maximum(a.abs(), b.abs()) + 1e-7).all())


def _summary(module, dtype):
    state = {name: tensor.detach() for name, tensor in sorted(module.state_dict().items())}
    structure = hashlib.sha256(repr([(name, tuple(tensor.shape)) for name, tensor in state.items()]).encode())
    floating = [tensor for tensor in state.values() if tensor.is_floating_point() and tensor.numel()]
    each = -(-_SAMPLES // max(1, len(floating)))
    # As many from the start, the middle and the end of the module, and of each tensor.
    entries = [tensor.reshape(-1)[:: max(1, tensor.numel() // each)][:each].double().cpu() for tensor in floating]
    entries = torch.cat(entries) if entries else torch.zeros(0, dtype=torch.float64)
    return {
        "structure": structure.hexdigest(),
        "dtype": str(dtype).removeprefix("torch."),
        "digest": fingerprint(state),
        "sample": entries[:: max(1, len(entries) // _SAMPLES)][:_SAMPLES].tolist(),
    }
