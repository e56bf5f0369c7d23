"""From pixels to features: resizing, cropping and normalising on the device, for all images of a size at once."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from faast_sklearn.backbones.base import Backbone, Batch, as_features, frozen, refuse_random, run_on_probe
from faast_sklearn.backbones.image_reading import read_image
from faast_sklearn.errors import InputError

__all__ = ["ImageBackbone", "ImageTransform"]


@dataclass(frozen=True)
class ImageTransform:
    """A model's preprocessing, run on the device in batches.

    Parameters
    ----------
    resize : (height, width) or None
        Target of the antialiased resize.
    keep_ratio : bool
        Resize to cover the target (a square target: resize the shorter side) instead of stretching.
    crop : (height, width) or None
        Centre crop after the resize, padded with black if the image is smaller.
    interpolation : {"bilinear", "bicubic", "nearest"}
    mean, std : tuple of 3 floats
        Of pixels after ``scale``.
    scale : float, default=1/255
        Pixels are multiplied by it first.
    crop_down : bool, default=False
        Round the crop's corner down, as transformers does, rather than to the nearest pixel, as
        torchvision and timm do.
    """

    resize: tuple | None
    keep_ratio: bool
    crop: tuple | None
    interpolation: str
    mean: tuple
    std: tuple
    scale: float = 1 / 255
    crop_down: bool = False

    @property
    def shrink_to(self) -> Any:
        """``shrink_to`` for reading images; ``None`` for "nearest", where reducing would change the result."""
        return self.resize if self.interpolation != "nearest" else None

    def __call__(self, groups, size, device):
        """Return float32 pixels of shape (size, 3, h, w) on ``device``.

        Parameters
        ----------
        groups : list of (positions, tensor of shape (n, c, h, w))
            uint8, or float32 from 0 to 255.
        size : int
            Number of images in all groups.
        device : torch.device
        """
        scale = torch.tensor([self.scale / s for s in self.std], device=device).view(1, 3, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=device)
        out = None
        for positions, images in groups:
            # MPS has no antialiased bicubic resize, so images are resized on the host.
            if device.type != "mps":
                images = images.to(device, non_blocking=True)
            images = self._crop(self._resize(images)).to(device)
            pixels = torch.addcmul(shift.view(1, 3, 1, 1), images.float(), scale)
            if len(groups) == 1:
                return pixels
            if out is None:
                out = pixels.new_empty((size, *pixels.shape[1:]))
            if pixels.shape[1:] != out.shape[1:]:
                raise InputError(
                    f"images have different sizes ({tuple(pixels.shape[2:])} and {tuple(out.shape[2:])}), which the "
                    "preprocessing does not resize; resize them first."
                )
            out[torch.as_tensor(positions, device=device)] = pixels
        return out

    def _resize(self, images):
        h, w = images.shape[-2:]
        if self.resize is None:
            return images
        H, W = self.resize
        if self.keep_ratio:
            H, W = (int(W * h / w), W) if w * H <= h * W else (H, int(H * w / h))
        if (h, w) == (H, W):
            return images
        if self.interpolation == "nearest":
            return interpolate(images, size=(H, W), mode="nearest-exact")
        eight_bits = images.dtype == torch.uint8
        if eight_bits and images.device.type == "cpu":  # its kernels for bytes are several times as fast as for floats
            return interpolate(images, size=(H, W), mode=self.interpolation, antialias=True)
        images = interpolate(images.float(), size=(H, W), mode=self.interpolation, antialias=True)
        return (images.round_() if eight_bits else images).clamp_(0, 255)  # as the resize of bytes does

    def _crop(self, images):
        if self.crop is None:
            return images
        h, w = images.shape[-2:]
        H, W = self.crop
        top, left = max(H - h, 0), max(W - w, 0)
        if top or left:
            images = pad(images, (left // 2, left - left // 2, top // 2, top - top // 2))
            h, w = images.shape[-2:]
        to_pixel = math.floor if self.crop_down else round
        top, left = to_pixel((h - H) / 2), to_pixel((w - W) / 2)
        return images[..., top : top + H, left : left + W]


class ImageBackbone(Backbone):
    """A frozen image model behind an :class:`ImageTransform`.

    Subclasses implement ``encode(pixels) -> (n, n_features)``, called in eval and inference mode.

    Parameters
    ----------
    module : torch.nn.Module
        On ``device``, in ``dtype``.
    transform : ImageTransform
    device : torch.device
    dtype : torch.dtype
    """

    modality = "image"

    def __init__(self, module: torch.nn.Module, transform: "ImageTransform", device: Any, dtype: Any) -> None:
        self.module = module
        self.transform = transform
        self.device = device
        self.dtype = dtype
        size = transform.crop or transform.resize or (224, 224)
        if device.type == "cpu":
            self.default_batch_size = 32
        else:
            self.default_batch_size = int(min(512, max(8, 128 * 224 * 224 // (size[0] * size[1]))))
        self.settings = (transform,)
        self.n_features = self._probe(size)

    def _probe(self, size):
        """Return the width of the features; refuse a model without features, or with random ones."""
        stripes = np.arange(size[0] * size[1] * 3, dtype=np.uint32).reshape(*size, 3) % 251
        batch = self.collate([self.read(stripes.astype(np.uint8))])
        name = type(self.module).__name__

        def twice():
            return refuse_random(name, self.dtype, lambda: self.forward(batch))

        return run_on_probe(name, "images", twice).shape[1]

    def read(self, sample: Any) -> Any:
        """Read one image as a tensor of shape (1 or 3, h, w), uint8 or float32, from 0 to 255."""
        image = read_image(sample, self.transform.shrink_to)
        if self.transform.keep_ratio and self.transform.crop is not None:
            # A strip of 1 x 5000 pixels would grow to a million columns only to be cropped again.
            _, h, w = image.shape
            keep = 4 * min(h, w) * max(self.transform.crop) // min(self.transform.crop)
            if max(h, w) > keep:
                top, left = max(h - keep, 0) // 2, max(w - keep, 0) // 2
                image = image[:, top : top + keep, left : left + keep]
        return image

    def collate(self, items: Any) -> Any:
        """Stack images of equal size and type."""
        groups = {}
        for position, item in enumerate(items):
            groups.setdefault((item.dtype, *item.shape), []).append(position)
        stacked = []
        for positions in groups.values():
            # Channels last in memory, as decoded images are and as the resize is fastest.
            images = torch.stack([items[p].permute(1, 2, 0) for p in positions])
            if self.device.type == "cuda":
                images = images.pin_memory()
            stacked.append((positions, images.permute(0, 3, 1, 2)))
        return Batch(stacked, len(items))

    def encode(self, pixels: Any) -> Any:
        """Return features of preprocessed pixels, of shape (n, n_features)."""
        raise NotImplementedError

    def forward(self, batch: Any) -> Any:
        """Preprocess on the device and encode."""
        with frozen(self.module):
            features = self.encode(self._inputs(batch))
        return as_features(features)

    def _inputs(self, batch):
        return self.transform(batch.inputs, batch.size, self.device).to(self.dtype)
