"""``open_clip:NAME/TAG``: dual encoders of the open_clip library, among them the paper's RN50."""

import difflib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from faast_sklearn.backbones.base import as_features, frozen
from faast_sklearn.backbones.images import ImageBackbone, ImageTransform
from faast_sklearn.backbones.inner import repeated_blocks
from faast_sklearn.errors import BackboneError, UnknownBackboneError
from faast_sklearn.optional import explain_imports, require

__all__ = ["OpenClipBackbone"]

_PIP = "open_clip_torch"


class OpenClipBackbone(ImageBackbone):
    """Projected image features of an open_clip model, which also embeds texts.

    Parameters
    ----------
    module : torch.nn.Module
        With ``encode_image`` and ``encode_text``.
    transform : ImageTransform
    device : torch.device
    dtype : torch.dtype
    tokenizer : callable
        Turns a list of strings into token ids (n, length).
    """

    def __init__(
        self,
        module: torch.nn.Module,
        transform: "ImageTransform",
        device: Any,
        dtype: Any,
        tokenizer: Callable[..., Any],
    ) -> None:
        self.tokenizer = tokenizer
        super().__init__(module, transform, device, dtype)

    @classmethod
    def open(
        cls, name: str, *, device: Any, dtype: Any, weights: os.PathLike | None = None, pretrained: bool = True
    ) -> "OpenClipBackbone":
        """Open an open_clip model.

        Parameters
        ----------
        name : str
            ``"RN50/openai"``: a model of ``open_clip.list_models()`` and one of its tags; by default the first tag
            that open_clip lists.
        device : torch.device
        dtype : torch.dtype
        weights : path, default=None
            A file with a state dict of this model; nothing is downloaded.
        pretrained : bool, default=True
            ``False`` gives random weights, for tests.

        Returns
        -------
        OpenClipBackbone

        Raises
        ------
        UnknownBackboneError
            No such model or tag; the message lists similar names.
        BackboneError
            The weights cannot be found, or the preprocessing is not supported.
        MissingDependencyError
            open_clip is missing or broken.
        """
        open_clip = require("open_clip", _PIP)
        model, _, tag = name.partition("/")
        if weights is not None and not Path(weights).is_file():
            raise BackboneError(f"weights={str(weights)!r} does not exist.")
        known = open_clip.list_pretrained_tags_by_model(model)
        if model not in open_clip.list_models() or (tag and tag not in known):
            near = difflib.get_close_matches(name, cls.names(), n=5, cutoff=0.4)
            raise UnknownBackboneError(
                f"open_clip has no {name!r}. Similar names: {', '.join('open_clip:' + n for n in near) or 'none'}."
            )
        if weights is None and pretrained and not known:
            raise BackboneError(f"open_clip has no pretrained weights for {model!r}; pass weights=FILE.")
        tag = tag or (known[0] if weights is None and pretrained else "")
        source = str(weights) if weights is not None else tag if pretrained else None
        # OpenAI's weights, and some others, were trained with QuickGELU, which the plain model names do not imply.
        quick = bool(tag and open_clip.get_pretrained_cfg(model, tag).get("quick_gelu"))
        try:
            with explain_imports("open_clip", _PIP):
                module = open_clip.create_model(model, pretrained=source, device="cpu", force_quick_gelu=quick)
                tokenizer = open_clip.get_tokenizer(model)
        except ImportError:
            raise
        except Exception as error:
            raise BackboneError(
                f"cannot open 'open_clip:{name}': {type(error).__name__}: {error}\nWithout a network: copy the weights "
                f"file here and use backbone('open_clip:{model}', weights='FILE')."
            ) from error
        transform = _transform(open_clip.get_model_preprocess_cfg(module))
        module = module.to(device=device, dtype=dtype).eval().requires_grad_(False)
        return cls(module, transform, device, dtype, tokenizer)

    @staticmethod
    def names() -> Any:
        """Return the models with pretrained weights, with their tags, if open_clip is installed."""
        try:
            open_clip = require("open_clip", _PIP)
        except ImportError:
            return []
        return ["/".join(pair) for pair in open_clip.list_pretrained()]

    @property
    def logit_scale(self) -> Any:
        """Factor between cosine similarities and logits."""
        return math.exp(float(self.module.logit_scale))

    def inner_layers(self) -> list[torch.nn.Module]:
        """Return the blocks of the image tower."""
        return repeated_blocks(self.module.visual)

    def encode(self, pixels: Any) -> Any:
        """Return the projected features of shape (n, d)."""
        return self.module.encode_image(pixels)

    def embed_text(self, texts: list) -> torch.Tensor:
        """Encode a short list of texts, such as class names, into the space of the image features.

        Parameters
        ----------
        texts : list of str

        Returns
        -------
        tensor of shape (len(texts), n_features)
        """
        parts = [texts[i : i + 256] for i in range(0, len(texts), 256)]
        with frozen(self.module):
            return as_features(torch.cat([self.module.encode_text(self.tokenizer(p).to(self.device)) for p in parts]))


def _transform(config):
    """Build the evaluation transform of an open_clip preprocessing config."""
    size = config["size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    mode = config.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash") or config.get("mode", "RGB") != "RGB":
        raise BackboneError(f"preprocessing {config} is not supported; pass (module, preprocess) instead.")
    return ImageTransform(
        resize=size,
        keep_ratio=mode == "shortest",
        crop=size if mode == "shortest" else None,
        interpolation=config.get("interpolation", "bicubic"),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
