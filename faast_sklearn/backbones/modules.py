"""An ``nn.Module`` that the caller already has, with or without its preprocessing."""

import copy
import itertools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from faast_sklearn.backbones.base import Backbone, Batch, as_features, frozen, random_state, refuse_random
from faast_sklearn.backbones.image_reading import open_image, read_image, rounded
from faast_sklearn.backbones.timm import TimmBackbone
from faast_sklearn.backbones.transformers.kinds import HuggingFaceBackbone
from faast_sklearn.errors import BackboneError, InputError

__all__ = ["ModuleBackbone", "module_dtype", "module_version", "open_module", "place_module", "unwrapped"]

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


def unwrapped(module: Any) -> Any:
    """Return the module inside a wrapper of ``torch.compile``, ``DataParallel``, DDP, FSDP or PEFT.

    Raises
    ------
    BackboneError
        If the wrapper adds learnt prompts (PEFT), which the module inside lacks.
    """
    while True:
        if type(module).__name__ in _WRAPPERS and isinstance(getattr(module, "module", None), torch.nn.Module):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), torch.nn.Module):
            module = module._orig_mod
        elif hasattr(module, "peft_config") and hasattr(module, "get_base_model"):
            if getattr(module.active_peft_config, "is_prompt_learning", False):
                raise BackboneError(
                    f"{type(module).__name__} puts learnt prompts before each input, and they are not part of "
                    "the model; pass the base model, or an adapter that changes weights (LoRA)."
                )
            module = module.get_base_model()  # which contains the adapter's layers
        else:
            return module


def module_dtype(module: Any) -> Any:
    """Return the dtype of a module's first floating tensor (float32 if it has none)."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def module_version(module: Any) -> Any:
    """Return a tuple that changes when a module's tensors are replaced or written to."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def place_module(module: torch.nn.Module, device: Any, dtype: Any) -> torch.nn.Module:
    """Return the module itself if all of it is on ``device`` in ``dtype``, else a deep copy that is.

    Parameters
    ----------
    module : torch.nn.Module
        Never changed.
    device : torch.device
    dtype : torch.dtype

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    BackboneError
        If it must be copied but cannot be.
    """
    tensors = itertools.chain(module.parameters(), module.buffers())
    if all(t.device == device and (t.dtype == dtype or not t.is_floating_point()) for t in tensors):
        return module
    try:
        return copy.deepcopy(module).to(device=device, dtype=dtype).eval()
    except Exception as error:
        raise BackboneError(
            f"{type(module).__name__} cannot be copied to {device} as {dtype}: {error}. Move it there yourself and "
            f"pass device={str(device)!r}, dtype={str(dtype).removeprefix('torch.')!r}."
        ) from error


def open_module(
    module: torch.nn.Module,
    preprocess: Any = None,
    *,
    device: Any,
    dtype: Any,
    modality: Literal["image", "text", "tensor"] | None = None,
    **options: Any,
) -> "Backbone":
    """Open the caller's module without changing it.

    On its own device and dtype the module itself runs, in eval mode during a pass; on another
    device or in another dtype a deep copy runs.

    Parameters
    ----------
    module : torch.nn.Module
    preprocess : callable, tokenizer or image processor, default=None
        With a transformers model: its tokenizer or processor. Otherwise a function from one sample
        (a PIL image for ``modality="image"``) to a tensor.
    device : torch.device
    dtype : torch.dtype
    modality : {"image", "text", "tensor"}, default=None
        By default "image" with a ``preprocess`` or for a timm model, else "tensor".
    **options
        For transformers models, as in ``"hf:"``.

    Returns
    -------
    Backbone

    Raises
    ------
    BackboneError
        If it must be copied but cannot be.
    """
    module = place_module(module, device, dtype)
    if _is_of("sentence_transformers", module):
        if preprocess is not None:
            raise BackboneError(f"{type(module).__name__} reads texts by itself; pass it alone.")
        return HuggingFaceBackbone.from_sentence_transformer(module, device=device, dtype=dtype, **options)
    if _is_of("transformers", module) and _is_of("transformers", preprocess):
        return HuggingFaceBackbone.from_memory(module, preprocess, device=device, dtype=dtype, **options)
    if options:
        raise TypeError(f"option {next(iter(options))!r} is for transformers models with their tokenizer or processor.")
    if (
        _is_of("timm", module)
        and preprocess is None
        and modality in (None, "image")
        and hasattr(module, "pretrained_cfg")
    ):
        return TimmBackbone.wrap(module, device=device, dtype=dtype, in_memory=True)
    if _is_of("transformers", preprocess):
        raise BackboneError(
            f"{type(preprocess).__name__} belongs to a transformers model, and {type(module).__name__} is not one; "
            "pass (module, preprocess) with a function from one sample to a tensor, and modality='text' for texts."
        )
    return ModuleBackbone(module, preprocess, device, dtype, modality)


def _is_of(library, thing):
    return any(base.__module__.split(".")[0] == library for base in type(thing).__mro__)


class ModuleBackbone(Backbone):
    """A module and a function from one sample to a tensor.

    The module's output may be a tensor, a tuple (its first entry is used), or a dict or transformers
    output (``pooler_output``, ``last_hidden_state``, else the first entry). (n, d, h, w) is averaged
    over space, (n, t, d) over t; other shapes are flattened to (n, d).

    Parameters
    ----------
    module : torch.nn.Module
        On ``device``, in ``dtype``.
    preprocess : callable or None
    device : torch.device
    dtype : torch.dtype
    modality : {"image", "text", "tensor"}, default=None
    """

    def __init__(
        self,
        module: torch.nn.Module,
        preprocess: Callable[..., Any] | None,
        device: Any,
        dtype: Any,
        modality: Literal["image", "text", "tensor"] | None = None,
    ) -> None:
        modality = modality or ("tensor" if preprocess is None else "image")
        if modality not in ("image", "text", "tensor"):
            raise BackboneError(f"modality={modality!r} is not one of 'image', 'text', 'tensor'.")
        if preprocess is None and modality == "text":
            raise BackboneError("a module that reads texts needs a preprocess: backbone((module, preprocess)).")
        self.module = module
        self.preprocess = preprocess
        self.device = device
        self.dtype = dtype
        self.modality = modality
        self.n_features = None  # a bare module does not say what it reads, so the first batch decides
        self.default_batch_size = 32 if device.type == "cpu" else 256
        self.settings = (type(module).__qualname__, repr(preprocess))
        self.remedy = _what_to_pass(module)
        self._probed = False

    def any_sample(self) -> Any:
        """Return None: a bare module does not say what it reads."""
        return None

    def read(self, sample: Any) -> Any:
        """Turn one sample into a tensor; without ``preprocess`` images are scaled to [0, 1]."""
        if self.modality == "image":
            if self.preprocess is None:
                image = read_image(sample)
                return image.expand(3, -1, -1).float() / 255
            sample = _pil(sample)
        item = sample if self.preprocess is None else self.preprocess(sample)
        if isinstance(item, np.ndarray):
            item = np.array(item)  # never aliases the caller's array, which may be read-only
        try:
            return torch.as_tensor(item)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"sample of type {type(item).__name__} is not a tensor: {error}") from error

    def collate(self, items: Any) -> Any:
        """Stack tensors of equal shape."""
        shapes = {tuple(item.shape) for item in items}
        if len(shapes) > 1:
            raise InputError(f"samples of different shapes {sorted(shapes)[:3]} cannot be stacked; use a preprocess.")
        stacked = torch.stack(list(items))
        return Batch(stacked.to(self.dtype) if stacked.is_floating_point() else stacked, len(items))

    def forward(self, batch: Any) -> Any:
        """Run the module and reduce its output to one vector per sample."""
        with frozen(self.module):
            inputs = batch.inputs.to(self.device, non_blocking=True)
            before = None if self._probed else random_state(self.device)
            features = self._pass(inputs, batch.size)
            if before is not None and not torch.equal(before, random_state(self.device)):
                refuse_random(type(self.module).__name__, self.dtype, lambda: self._pass(inputs, batch.size).float())
            self._probed = True
        self.n_features = features.shape[1]
        return as_features(features)

    def _pass(self, inputs, size):
        output = _tensor(self.module(inputs))
        if output.shape[:1] != (size,) or not output.is_floating_point():
            raise BackboneError(
                f"{type(self.module).__name__} returned {output.dtype} of shape {tuple(output.shape)} for {size} "
                "samples; expected one floating vector for each."
            )
        return _pool(output)


def _what_to_pass(module):
    """Say what to pass with a module so that it can read images or texts."""
    name = type(module).__name__
    if _is_of("transformers", module):
        return f"backbone=({name}, tokenizer) for texts, ({name}, image_processor) for images"
    return f"backbone=({name}, preprocess) with a function from one sample to a tensor"


def _pil(sample):
    """Return the RGB PIL image that torchvision and timm transforms take."""
    from PIL import Image

    if isinstance(sample, (np.ndarray, torch.Tensor)):
        return Image.fromarray(rounded(read_image(sample)).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    return open_image(sample).convert("RGB")


def _tensor(output):
    if isinstance(output, torch.Tensor):
        return output
    if hasattr(output, "keys"):
        for key in ("pooler_output", "last_hidden_state", *output.keys()):
            if output.get(key) is not None:
                return _tensor(output[key])
    elif isinstance(output, (tuple, list)) and output:
        return _tensor(output[0])
    raise BackboneError(
        f"the module returned {type(output).__name__}; expected a tensor, a tuple or a dict of tensors."
    )


def _pool(output):
    if output.ndim == 4:
        return output.float().mean((2, 3))
    if output.ndim == 3:
        return output.float().mean(1)
    return output if output.ndim == 2 else output.reshape(len(output), -1)
