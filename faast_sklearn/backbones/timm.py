"""``timm:NAME``: image models of the timm library; features are pooled, before the classifier."""

import contextlib
import difflib
import importlib.util
import json
import math
import numbers
import os
import sys
from pathlib import Path
from typing import Any

import torch

from faast_sklearn.backbones.images import ImageBackbone, ImageTransform
from faast_sklearn.errors import BackboneError, UnknownBackboneError, shortened
from faast_sklearn.optional import explain_imports, require

__all__ = ["TimmBackbone"]

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class TimmBackbone(ImageBackbone):
    """Pooled features before the classifier of a timm model, with the model's own preprocessing."""

    @classmethod
    def open(
        cls,
        name: str,
        *,
        device: Any,
        dtype: Any,
        pretrained: bool = True,
        weights: os.PathLike | None = None,
        image_size: Any = None,
        pooling: str | None = None,
    ) -> "TimmBackbone":
        """Open a timm model.

        Parameters
        ----------
        name : str
            A name of ``timm.list_models()``, with or without a tag; ``"hf-hub:ORG/NAME"``; or a
            folder that timm saved (``config.json`` beside the weights).
        device : torch.device
        dtype : torch.dtype
        pretrained : bool, default=True
            ``False`` gives random weights, for tests.
        weights : path, default=None
            A ``.pth`` or ``.safetensors`` file with a state dict of this architecture; nothing is
            downloaded.
        image_size : int or (height, width), default=None
            Of the input image; the model's own by default.
        pooling : str, default=None
            timm's ``global_pool`` ("avg", "max", "token", "map", ...); the model's own by default.

        Returns
        -------
        TimmBackbone

        Raises
        ------
        UnknownBackboneError
            No such model; the message lists similar names.
        BackboneError
            The weights cannot be found or do not fit.
        MissingDependencyError
            timm is missing or broken.
        """
        timm = require("timm")
        if image_size is not None:
            _height_and_width(image_size)
        options = {}
        folder = Path(name)
        if (folder / "config.json").is_file():
            config = json.loads((folder / "config.json").read_text())
            if "architecture" not in config:
                raise BackboneError(f"{folder / 'config.json'} names no timm architecture; for Hugging Face use 'hf:'.")
            name = config["architecture"]
            options["pretrained_cfg_overlay"] = config.get("pretrained_cfg", {})
            found = [folder / file for file in _WEIGHT_FILES if (folder / file).is_file()]
            if weights is None and not found:
                raise BackboneError(f"no weights in {folder}: looked for {', '.join(_WEIGHT_FILES)}.")
            weights = weights or found[0]
        elif not name.startswith(("hf-hub:", "hf_hub:")):
            _check_name(timm, name, pretrained and weights is None)
        if weights is not None and not Path(weights).is_file():
            raise BackboneError(f"weights={str(weights)!r} does not exist.")
        if pooling is not None:
            options["global_pool"] = pooling
        module = _create(timm, name, pretrained and weights is None, image_size, options)
        if weights is not None:
            _load_file(timm, module, weights)
        return cls.wrap(module, device=device, dtype=dtype, image_size=image_size)

    @classmethod
    def wrap(
        cls, module: torch.nn.Module, *, device: Any, dtype: Any, image_size: Any = None, in_memory: bool = False
    ) -> "TimmBackbone":
        """Turn a timm module into a backbone on ``device``.

        Parameters
        ----------
        module : torch.nn.Module
            Moved to ``device`` and ``dtype`` in place, unless ``in_memory``.
        device : torch.device
        dtype : torch.dtype
        image_size : int or (height, width), default=None
        in_memory : bool, default=False
            The module is the caller's: it is not changed. Its classifier, if any, is skipped in a pass.

        Returns
        -------
        TimmBackbone
        """
        from timm.data import resolve_data_config

        args = {} if image_size is None else {"input_size": (3, *_height_and_width(image_size))}
        transform = transform_from_config(resolve_data_config(args, model=module))
        if not in_memory:
            module = module.to(device=device, dtype=dtype, memory_format=torch.channels_last)
            module = module.eval().requires_grad_(False)
        self = cls(module, transform, device, dtype)
        self.license = (getattr(module, "pretrained_cfg", None) or {}).get("license") or "unknown"
        return self

    @staticmethod
    def names() -> list:
        """Return the names of models with pretrained weights."""
        return require("timm").list_models(pretrained=True) if importlib.util.find_spec("timm") else []

    def inner_layers(self) -> list[torch.nn.Module]:
        """Return the stages in timm's ``feature_info``, or all stages of the sequence that holds them."""
        names = self._feature_info("module")
        try:
            stages = [self.module.get_submodule(str(name)) for name in names]
        except AttributeError:
            stages = []
        parent = self.module.get_submodule(str(names[-1]).rpartition(".")[0]) if stages else None
        if isinstance(parent, torch.nn.Sequential) and all(isinstance(one, torch.nn.Sequential) for one in parent):
            return list(parent)
        return stages or super().inner_layers()

    def pool_layer(self, output: torch.Tensor, batch: Any) -> list[torch.Tensor]:
        """Reduce an inner layer's output; some transformers put the channels of their maps last."""
        if (
            output.ndim == 4
            and output.shape[1] not in (widths := self._feature_info("num_chs"))
            and (output.shape[3] in widths)
        ):
            output = output.permute(0, 3, 1, 2)
        return super().pool_layer(output, batch)

    def _feature_info(self, what):
        infos = getattr(self.module, "feature_info", None)
        infos = infos.get_dicts() if hasattr(infos, "get_dicts") else infos
        return [info[what] for info in infos or () if isinstance(info, dict) and what in info]

    def encode(self, pixels: Any) -> Any:
        """Return the pooled features of shape (n, n_features)."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if not getattr(self.module, "num_classes", 0):
            return self.module(pixels)
        return self.module.forward_head(self.module.forward_features(pixels), pre_logits=True)


def transform_from_config(config: dict) -> "ImageTransform":
    """Build the evaluation transform of a timm data config.

    Parameters
    ----------
    config : dict
        As ``timm.data.resolve_data_config`` returns it.

    Returns
    -------
    ImageTransform
    """
    size = tuple(config["input_size"][-2:])
    crop_pct = config.get("crop_pct") or 1.0
    mode = config.get("crop_mode") or "center"
    if mode == "border" or config["input_size"][0] != 3:
        raise BackboneError(f"preprocessing {config} is not supported; pass (module, preprocess) instead.")
    interpolation = config["interpolation"]
    return ImageTransform(
        resize=tuple(math.floor(side / crop_pct) for side in size),
        keep_ratio=mode == "center",
        crop=size,
        # "random" is a training augmentation; timm evaluates with bilinear then.
        interpolation=interpolation if interpolation in ("bicubic", "nearest") else "bilinear",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _check_name(timm, name, needs_weights):
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(pretrained=True) + timm.list_models(), n=5, cutoff=0.5)
        hint = f" Similar names: {', '.join('timm:' + n for n in near)}." if near else ""
        raise UnknownBackboneError(
            f"timm has no model {name!r}.{hint} See list_backbones('timm:*{name.split('_')[0]}*')."
        )
    if needs_weights and not timm.models.is_model_pretrained(name):
        # timm would warn and go on with random weights.
        raise BackboneError(
            f"timm has no pretrained weights for {name!r}; pass weights=FILE, or choose one of "
            "list_backbones('timm:*')."
        )


def _height_and_width(image_size):
    sides = (image_size, image_size) if isinstance(image_size, numbers.Integral) else image_size
    if (
        not isinstance(sides, (tuple, list))
        or len(sides) != 2
        or not all(isinstance(side, numbers.Integral) and not isinstance(side, bool) and side > 0 for side in sides)
    ):
        raise BackboneError(f"image_size must be a positive integer or (height, width), got {shortened(image_size)}.")
    return tuple(int(side) for side in sides)


def _create(timm, name, pretrained, image_size, options):
    def create(**more):
        with explain_imports("timm"):
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **options, **more)

    try:
        if image_size is not None:
            with contextlib.suppress(TypeError):  # vision transformers need the size; convolutional models refuse it
                return create(img_size=_height_and_width(image_size))
        return create()
    except ImportError:
        raise
    except Exception as error:
        if not pretrained:
            raise BackboneError(f"timm cannot build {name!r} with {options}: {error}") from error
        cache = os.path.join(torch.hub.get_dir(), "checkpoints")
        raise BackboneError(
            f"cannot open the weights of 'timm:{name}': {type(error).__name__}: {error}\n"
            f"Tried: the Hugging Face cache, {cache}, and a download. Without a network: copy the weights file here "
            f"and use backbone('timm:{name}', weights='FILE.safetensors'), or use bundled weights "
            "(list_backbones('bundled:*'))."
        ) from error


def _load_file(timm, module, weights):
    """Load a state dict; only tensors of the left-out classifier may be in excess."""
    try:
        state = timm.models.load_state_dict(str(weights), weights_only=True)
    except Exception as error:
        raise BackboneError(f"cannot read weights={str(weights)!r}: {type(error).__name__}: {error}") from error
    expected = module.state_dict()
    if not set(expected) <= set(state):
        # Official checkpoints often use other names; timm keeps a converter beside the model.
        convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
        with contextlib.suppress(Exception):
            state = convert(state, module)
    head = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = tuple(f"{name}." for name in ([head] if isinstance(head, str) else head))
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected and not key.startswith(heads or ("\0",))]
    shapes = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if missing or unexpected or shapes:
        raise BackboneError(
            f"weights={str(weights)!r} belong to another architecture: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}, {len(shapes)} of another shape {shapes[:3]}."
        )
    module.load_state_dict({key: state[key] for key in expected})
