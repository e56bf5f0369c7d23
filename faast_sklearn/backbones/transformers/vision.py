"""Image encoders and the two towers of dual encoders (CLIP, SigLIP) of transformers."""

import math
from typing import Any, Literal

import torch

from faast_sklearn.backbones.base import Batch
from faast_sklearn.backbones.image_reading import read_image, rounded
from faast_sklearn.backbones.images import ImageBackbone, ImageTransform
from faast_sklearn.backbones.inner import repeated_blocks
from faast_sklearn.backbones.timm import transform_from_config
from faast_sklearn.backbones.transformers.text import TextBackbone, hidden_state
from faast_sklearn.errors import BackboneError

__all__ = ["DualBackbone", "TextTower", "VisionBackbone", "image_reader"]

# Processors that only resize, crop, scale and normalise. All others run unchanged on the host.
_MODELLED = {
    f"{name}ImageProcessor"
    for name in ("Bit", "CLIP", "ChineseCLIP", "ConvNext", "DINOv3ViT", "DeiT", "MobileNetV2", "Siglip", "ViT")
}
_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def image_reader(processor: Any) -> Any:
    """Turn a transformers image processor into a batched transform, if that is exact.

    Parameters
    ----------
    processor : transformers image processor

    Returns
    -------
    ImageTransform or the processor
        The processor itself if it does anything that :class:`ImageTransform` does not.
    """
    name = type(processor).__name__
    if name == "TimmWrapperImageProcessor":
        return transform_from_config(processor.data_config)
    for suffix in ("Fast", "Pil"):
        name = name.removesuffix(suffix)

    def get(key, default=None):
        value = getattr(processor, key, None)
        return default if value is None else value

    size, crop = _sides(get("size")), _sides(get("crop_size"))
    interpolation = _INTERPOLATIONS.get(int(get("resample", 2)))
    if name not in _MODELLED or interpolation is None or not get("do_rescale", True) or get("do_pad", False):
        return processor
    if not get("do_resize", True) or size is None:
        return processor
    target, keep_ratio = size
    crop = crop[0] if get("do_center_crop", False) and crop else None
    if name == "ConvNextImageProcessor":
        side = target[0]
        keep_ratio = side < 384
        if keep_ratio:
            target, crop = (int(side / get("crop_pct", 224 / 256)),) * 2, (side, side)
    normalise = get("do_normalize", True)
    return ImageTransform(
        resize=target,
        keep_ratio=keep_ratio,
        crop=crop,
        interpolation=interpolation,
        mean=tuple(get("image_mean")) if normalise else (0.0, 0.0, 0.0),
        std=tuple(get("image_std")) if normalise else (1.0, 1.0, 1.0),
        scale=float(get("rescale_factor", 1 / 255)),
        crop_down=True,
    )


def _sides(size):
    """Return ((height, width), keep_ratio) of a processor's size entry, or None if the entry has another form."""
    if size is None:
        return None
    if isinstance(size, int):
        return (size, size), True
    values = {key: size[key] for key in ("height", "width", "shortest_edge", "longest_edge") if _has(size, key)}
    if set(values) == {"height", "width"}:
        return (values["height"], values["width"]), False
    if set(values) == {"shortest_edge"}:
        return (values["shortest_edge"],) * 2, True
    return None


def _has(size, key):
    try:
        return size[key] is not None
    except (KeyError, AttributeError):
        return False


class _EitherReader(ImageBackbone):
    """An image backbone that preprocesses with a transform on the device, or else with the processor on the host."""

    def __init__(self, module, reader, device, dtype):
        if isinstance(reader, ImageTransform):
            self.processor = None
            super().__init__(module, reader, device, dtype)
            return
        self.processor = reader
        self.module, self.device, self.dtype = module, device, dtype
        self.default_batch_size = 16 if device.type == "cpu" else 128
        self.settings = (str(reader.to_dict()),)
        self.n_features = self._probe((32, 32))

    def read(self, sample):
        return super().read(sample) if self.processor is None else rounded(read_image(sample))  # processors take bytes

    def collate(self, items):
        if self.processor is None:
            return super().collate(items)
        images = [item.expand(3, -1, -1).permute(1, 2, 0).numpy() for item in items]
        inputs = self.processor(images, return_tensors="pt", input_data_format="channels_last")
        return Batch({key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}, len(items))

    def _inputs(self, batch):
        if self.processor is None:
            return {"pixel_values": super()._inputs(batch)}
        return {
            key: value.to(self.device, self.dtype if value.is_floating_point() else None, non_blocking=True)
            for key, value in batch.inputs.items()
        }


class VisionBackbone(_EitherReader):
    """An image encoder of transformers.

    Parameters
    ----------
    module : transformers.PreTrainedModel
    reader : ImageTransform or image processor
    device : torch.device
    dtype : torch.dtype
    pooling : {"auto", "cls", "mean", "pooler"}, default="auto"
    layer : int, default=None
    """

    def __init__(
        self,
        module: Any,
        reader: Any,
        device: Any,
        dtype: Any,
        pooling: Literal["auto", "cls", "mean", "pooler"] = "auto",
        layer: int | None = None,
    ) -> None:
        if pooling not in ("auto", "cls", "mean", "pooler"):
            raise BackboneError(f"pooling={pooling!r} is not one of 'auto', 'cls', 'mean', 'pooler'.")
        # ViT's pooler is a dense layer that fine-tuned checkpoints lack, so its output would be random.
        self._dense_pooler = hasattr(getattr(module, "pooler", None), "dense")
        self.pooling = pooling
        self.layer = layer
        super().__init__(module, reader, device, dtype)
        self.settings = (*self.settings, pooling, layer)

    def encode(self, inputs: Any) -> Any:
        """Return pooled features of shape (n, d)."""
        more = {} if self.layer is None else {"output_hidden_states": True}
        output = self.module(**inputs, **more)
        pooled = getattr(output, "pooler_output", None)
        learned = self.pooling == "auto" and not self._dense_pooler
        if self.layer is None and pooled is not None and (self.pooling == "pooler" or learned):
            return pooled.flatten(1)  # convolutional models give (n, d, 1, 1)
        if self.pooling == "pooler":
            raise BackboneError("this model or layer has no pooled output; use pooling='mean' or 'cls'.")
        hidden = output.last_hidden_state if self.layer is None else hidden_state(output, self.layer)
        if hidden.ndim == 4:
            return hidden.float().mean((2, 3))
        return hidden.float().mean(1) if self.pooling == "mean" else hidden[:, 0]


def _projected(output):
    """Dual encoders return the projected features as a tensor or, since transformers 5, as the pooled output."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


class TextTower(TextBackbone):
    """The text tower of a dual encoder: projected features of short texts."""

    def inner_layers(self) -> list[torch.nn.Module]:
        """Return the blocks of the text tower."""
        return repeated_blocks(getattr(self.module, "text_model", self.module))

    def encode(self, inputs: Any) -> Any:
        """Return the projected features of shape (n, d)."""
        if "siglip" in self.module.config.model_type:
            inputs = {"input_ids": inputs["input_ids"]}
        return _projected(self.module.get_text_features(**inputs))

    def _pad_rows(self, rows):
        inputs = super()._pad_rows(rows)
        if "siglip" in self.module.config.model_type:
            # SigLIP was trained on texts padded to the full length without a mask, and reads the last position.
            ids = inputs["input_ids"]
            inputs["input_ids"] = torch.nn.functional.pad(ids, (0, self.limit - ids.shape[1]), value=self._pad)
        return inputs


class DualBackbone(_EitherReader):
    """The image tower of a dual encoder, which also embeds texts.

    Parameters
    ----------
    module : transformers.PreTrainedModel
        With both towers.
    reader : ImageTransform or image processor
    device : torch.device
    dtype : torch.dtype
    text : TextTower or None
        Of the same module.
    missing : BackboneError, default=None
        Why ``text`` is None.
    """

    def __init__(
        self,
        module: Any,
        reader: Any,
        device: Any,
        dtype: Any,
        text: "TextTower | None",
        missing: "BackboneError | None" = None,
    ) -> None:
        self.text = text
        self.missing = None if missing is None else str(missing)
        super().__init__(module, reader, device, dtype)

    @property
    def logit_scale(self) -> Any:
        """Factor between cosine similarities and logits, or ``None`` if the model has none."""
        scale = getattr(self.module, "logit_scale", None)
        return None if scale is None else math.exp(float(scale.detach()))

    def encode(self, inputs: Any) -> Any:
        """Return the projected features of shape (n, d)."""
        return _projected(self.module.get_image_features(**inputs))

    def inner_layers(self) -> list[torch.nn.Module]:
        """Return the blocks of the image tower."""
        return repeated_blocks(getattr(self.module, "vision_model", self.module))

    def embed_text(self, texts: list) -> torch.Tensor:
        """Encode a short list of texts, such as class names, into the space of the image features.

        Parameters
        ----------
        texts : list of str

        Returns
        -------
        tensor of shape (len(texts), n_features)
        """
        if self.text is None:
            raise BackboneError(f"class names cannot be read: {self.missing}")
        return self.text.embed_text(texts)
