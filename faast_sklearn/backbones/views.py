"""Features averaged over views of an image: the image, its mirror image, and small shifts of both."""

import numbers
from typing import Any

import torch

from faast_sklearn.backbones.base import Backbone, Batch
from faast_sklearn.backbones.open_backbones import derived
from faast_sklearn.backbones.wrapped import WrappedBackbone
from faast_sklearn.errors import BackboneError, InputError, shortened

__all__ = ["ViewedBackbone", "check_views", "view", "with_views"]

# For each view: whether it is mirrored, and its shift to the right and down in eighths of the sides.
_VIEWS = ((False, 0, 0), (True, 0, 0), (False, 1, 1), (True, -1, 1), (False, -1, -1), (True, 1, -1))


def check_views(views: Any) -> None:
    """Raise ValueError unless ``views`` is an integer from 1 to 6.

    Examples
    --------
    >>> from faast_sklearn.backbones.views import check_views
    >>> check_views(7)
    Traceback (most recent call last):
    ...
    ValueError: views must be an integer from 1 to 6, got 7.
    """
    number = isinstance(views, numbers.Integral) and not isinstance(views, bool)
    if not number or not 1 <= views <= len(_VIEWS):
        raise ValueError(f"views must be an integer from 1 to {len(_VIEWS)}, got {shortened(views)}.")


def view(image: torch.Tensor, which: int) -> torch.Tensor:
    """Return one view of an image.

    Parameters
    ----------
    image : tensor of shape (..., h, w)
    which : int
        0 is the image itself, 1 its mirror image; 2 to 5 are, in turn, the image and its mirror image shifted by an
        eighth of both sides. Pixels at the edge are repeated.

    Returns
    -------
    tensor of shape (..., h, w)

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.backbones.views import view
    >>> view(torch.arange(8.0).reshape(1, 1, 8), 1).flatten().tolist()
    [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    >>> view(torch.arange(8.0).reshape(1, 1, 8), 2).flatten().tolist()
    [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    """
    mirrored, right, down = _VIEWS[which]
    if mirrored:
        image = image.flip(-1)
    for axis, eighths in ((-1, right), (-2, down)):
        size = image.shape[axis]
        # The size is divided before the sign is applied: -7 // 8 is -1, which would shift narrow images.
        shift = (size // 8) * eighths
        if shift:
            at = (torch.arange(size, device=image.device) - shift).clamp(0, size - 1)
            image = image.index_select(axis, at)
    return image


def with_views(opened: Backbone, views: int) -> Backbone:
    """Return a backbone that averages over views; equal arguments return the same object.

    Parameters
    ----------
    opened : Backbone
    views : int
        Number of views; 1 returns ``opened`` itself.

    Returns
    -------
    Backbone

    Raises
    ------
    BackboneError
        If ``opened`` does not read images.
    """
    if views == 1:
        return opened
    if opened.modality != "image":
        raise BackboneError(f"views={views} is for images, and this backbone reads {opened.modality}s; use views=1.")
    return derived(opened, ("views", views), lambda: ViewedBackbone(opened, views))


class ViewedBackbone(WrappedBackbone):
    """A backbone whose features are means over views of each image, at the cost of one pass per view.

    Parameters
    ----------
    inner : Backbone
        It reads images, and its ``read`` returns a tensor of shape (..., h, w).
    views : int
    """

    def __init__(self, inner: Backbone, views: int) -> None:
        super().__init__(inner, f"views {views}")
        self.views = int(views)

    @property
    def n_features(self) -> int | None:  # type: ignore[override]
        """Number of features."""
        return self.inner.n_features

    @property
    def blocks(self) -> tuple[int, ...] | None:  # type: ignore[override]
        """Widths of the last layer's features and of each statistic, if inner layers are read."""
        return self.inner.blocks

    @property
    def feature_maps(self) -> bool:  # type: ignore[override]
        """Whether inner layers are feature maps."""
        return self.inner.feature_maps

    def read(self, sample: Any) -> Any:
        """Read one sample as the wrapped backbone does."""
        item = self.inner.read(sample)
        if not isinstance(item, torch.Tensor) or item.ndim < 2:
            raise InputError(f"views={self.views} need images as tensors (..., h, w), got {type(item).__name__}.")
        return item

    def collate(self, items: Any) -> Any:
        """Collate each view of the samples."""
        batches = [self.inner.collate([view(item, i) for item in items]) for i in range(self.views)]
        return Batch(batches, len(items))

    def forward(self, batch: Any) -> Any:
        """Run the backbone on each view; return the means of the features."""
        total = self.inner.forward(batch.inputs[0])
        for one in batch.inputs[1:]:
            total = total + self.inner.forward(one)
        return total / self.views
