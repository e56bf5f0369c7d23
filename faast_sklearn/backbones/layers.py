"""Inner layers of a frozen model, pooled in the same pass that gives the features of its last layer."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from faast_sklearn.backbones.base import Backbone, alike
from faast_sklearn.backbones.hooks import hooked
from faast_sklearn.backbones.inner import first_tensor
from faast_sklearn.backbones.open_backbones import derived
from faast_sklearn.backbones.wrapped import WrappedBackbone
from faast_sklearn.errors import BackboneError, shortened

__all__ = ["LayeredBackbone", "check_layers", "with_layers"]

# Inner layers that "auto" reads. More of them gain little, and the solve costs the cube of the number of features.
_MOST_LAYERS = 3
# The most features that "auto" reads, with those of the last layer: statistics then take 134 MB.
_MOST_FEATURES = 4096
# Order in which mean, maximum and deviation are kept: beside the mean, the deviation adds more than the maximum.
_ORDER = {0: 0, 2: 1, 1: 2}


def check_layers(layers: Any) -> None:
    """Raise ValueError if ``layers`` is neither "auto" nor "last" nor a positive integer.

    Examples
    --------
    >>> from faast_sklearn.backbones.layers import check_layers
    >>> check_layers(0)
    Traceback (most recent call last):
    ...
    ValueError: layers must be 'auto', 'last' or a positive integer, got 0.
    """
    number = isinstance(layers, numbers.Integral) and not isinstance(layers, bool) and layers > 0
    if not number and not (isinstance(layers, str) and layers in ("auto", "last")):
        raise ValueError(f"layers must be 'auto', 'last' or a positive integer, got {shortened(layers)}.")


def with_layers(opened: Backbone, layers: int | Literal["auto", "last"]) -> Backbone:
    """Return a backbone that reads inner layers too; equal arguments return the same object.

    Parameters
    ----------
    opened : Backbone
    layers : "auto", "last" or int
        How many inner layers to read: ``"auto"`` up to three, ``"last"`` none.

    Returns
    -------
    Backbone
        ``opened`` itself if there is nothing more to read.

    Raises
    ------
    BackboneError
        If the model has fewer inner layers than a number asks for.
    """
    if layers == "last":
        return opened
    return derived(opened, ("layers", layers), lambda: _layered(opened, layers))


def _layered(opened, layers):
    modules = opened.inner_layers()
    if not modules and layers == "auto":
        return opened
    found = LayeredBackbone(opened, modules, layers)
    return opened if found.n_layers == 0 else found


@dataclass(frozen=True)
class _Choice:
    """What is read: the statistics of each inner layer by its index, all widths, and whether all are feature maps."""

    kept: dict[int, list[int]]
    widths: tuple[int, ...]
    feature_maps: bool


class LayeredBackbone(WrappedBackbone):
    """A backbone that returns its own features and after them the pooled outputs of inner layers, from one pass.

    Hooks pool on the device, so that no feature map is kept. A statistic that equals the features, up to a factor per
    row, is left out.

    Parameters
    ----------
    inner : Backbone
    modules : sequence of torch.nn.Module
        Its inner layers, first to last.
    layers : "auto" or int
        How many to read: the last of those that run once in a pass. "auto" is at most three.

    Attributes
    ----------
    n_layers : int or None
        How many are read; for a module in memory None until its first batch.
    blocks : tuple of int or None
        Widths of the features and of each statistic that is read.
    feature_maps : bool
        Whether inner layers are feature maps; others are scaled down before the solve.
    """

    def __init__(self, inner: Backbone, modules: Sequence[torch.nn.Module], layers: int | Literal["auto"]) -> None:
        super().__init__(inner, f"layers {layers}")
        self.layers, self._modules = layers, list(modules)
        self._choice: _Choice | None = None
        sample = inner.any_sample()
        if sample is not None:
            self.forward(self.collate([self.read(sample)]))

    @property
    def blocks(self) -> tuple[int, ...] | None:  # type: ignore[override]
        """Widths of the features and of each statistic; for a module in memory None until its first batch."""
        return None if self._choice is None else self._choice.widths

    @property
    def n_features(self) -> int | None:  # type: ignore[override]
        """Number of all features; for a module in memory None until its first batch."""
        return None if self._choice is None else sum(self._choice.widths)

    @property
    def n_layers(self) -> int | None:
        """Number of inner layers that are read; for a module in memory None until its first batch."""
        return None if self._choice is None else len(self._choice.kept)

    @property
    def feature_maps(self) -> bool:  # type: ignore[override]
        """Whether inner layers are feature maps."""
        return self._choice is None or self._choice.feature_maps

    def forward(self, batch: Any) -> Any:
        """Run the backbone once; return its features and after them the statistics of its inner layers."""
        choice = self._choice  # read once, since another thread may set it meanwhile
        read = range(len(self._modules)) if choice is None else choice.kept
        found: dict[int, list] = {i: [] for i in read}

        def pools(i):
            def pool(_, output):
                output = first_tensor(output)
                found[i].append([] if output is None else self.inner.pool_layer(output, batch))

            return pool

        with hooked(after=[(self._modules[i], pools(i)) for i in read]):
            features = self.inner.forward(batch)
        if choice is None:
            choice = self._choice = self._choose(features, found)
        if any(len(found[i]) != 1 for i in choice.kept):
            raise BackboneError(
                f"{type(self.module).__name__} does not run each inner layer once in each pass; use layers='last'."
            )
        more = [found[i][0][k].to(features.dtype) for i, kept in choice.kept.items() for k in kept]
        return torch.cat([features, *more], 1)

    def _choose(self, features, found):
        """Choose from the first batch which layers and which of their statistics are read."""
        usable = []
        for i, passes in found.items():
            parts = passes[0] if len(passes) == 1 else []
            if all(part.ndim == 2 and len(part) == len(features) for part in parts):
                new = [k for k, part in enumerate(parts) if not _same_direction(part, features, self.dtype)]
                usable += [(i, new)] if new else []
        wanted = _MOST_LAYERS if self.layers == "auto" else int(self.layers)
        if self.layers != "auto" and len(usable) < wanted:
            raise BackboneError(
                f"layers={wanted}, but {type(self.module).__name__} has {len(usable)} inner layers that can be read; "
                "use a smaller number, 'auto' or 'last'."
            )
        widths = {(i, k): found[i][0][k].shape[1] for i, new in usable[-wanted:] for k in new}
        if self.layers == "auto":
            widths = _that_fit(widths, features.shape[1])
        kept: dict[int, list[int]] = {}
        for i, k in sorted(widths):
            kept.setdefault(i, []).append(k)
        feature_maps = all(len(found[i][0]) > 1 for i in kept)
        return _Choice(kept, (features.shape[1], *(widths[at] for at in sorted(widths))), feature_maps)


def _that_fit(widths, n_features):
    """Keep statistics up to ``_MOST_FEATURES`` in all: means before deviations and maxima, later layers first."""
    kept, total = {}, n_features
    for i, k in sorted(widths, key=lambda at: (_ORDER.get(at[1], at[1]), -at[0])):
        if total + widths[i, k] <= _MOST_FEATURES:
            kept[i, k] = widths[i, k]
            total += widths[i, k]
    return kept


def _same_direction(part, features, dtype):
    """Whether each row is a multiple of the row of features."""
    if part.shape != features.shape:
        return False
    one, other = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-30) for x in (part.float(), features.float()))
    return alike(one, other, dtype)
