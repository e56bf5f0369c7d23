"""What a frozen model knows before its last layer: inner layers, pooled in the pass that gives the features."""

import numbers
from collections.abc import Sequence
from typing import Any, Literal

import torch

from faast_sklearn.backbones.base import Backbone, alike
from faast_sklearn.backbones.hooks import hooked
from faast_sklearn.backbones.inner import first_tensor
from faast_sklearn.backbones.memo import remembered
from faast_sklearn.errors import BackboneError, shortened

__all__ = ["LayeredBackbone", "check_layers", "with_layers"]

# Inner layers that "auto" reads. More of them bring little more, and the solve costs the cube of the width.
_MOST_LAYERS = 3
# Features that "auto" reads at most, with those of the last layer: statistics then take 134 MB.
_MOST_FEATURES = 4096
# Of mean, maximum and deviation the deviation tells more beside the mean.
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
    """Return a backbone that reads inner layers too; the same one whenever it is asked for.

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
    return remembered(opened, ("layers", layers), lambda: _layered(opened, layers))


def _layered(opened, layers):
    modules = opened.inner_layers()
    if not modules and layers == "auto":
        return opened
    found = LayeredBackbone(opened, modules, layers)
    return opened if found.n_layers == 0 else found


class LayeredBackbone(Backbone):
    """A backbone that gives the pooled outputs of its last inner layers after its own features, from one pass.

    Hooks pool on the device, so that nothing as large as a feature map is kept. What is the same as the features
    themselves is left out.

    Parameters
    ----------
    inner : Backbone
    modules : sequence of torch.nn.Module
        Inner layers of it, first to last.
    layers : "auto" or int
        How many of them to read: the last ones that run once in a pass.

    Attributes
    ----------
    n_layers : int or None
        How many are read; None until the first batch of a module in memory.
    blocks : tuple of int or None
        Widths of the features and of each statistic of each inner layer, which scale as one.
    settled : bool
        Whether inner layers are feature maps, which count in full from the first example on.
    """

    def __init__(self, inner: Backbone, modules: Sequence[torch.nn.Module], layers: int | Literal["auto"]) -> None:
        self.inner, self.layers = inner, layers
        self._modules = list(modules)
        for name in ("modality", "device", "dtype", "truncation", "default_batch_size", "license", "module"):
            setattr(self, name, getattr(inner, name))
        self.settings = (*inner.settings, "layers", layers)
        self.n_features = self.n_layers = self.blocks = None
        self.settled = True
        self.remedy = getattr(inner, "remedy", "a backbone that reads such")
        self._kept: list = []  # for each layer that is read the statistics that are kept
        sample = inner.any_sample()
        if sample is not None:
            self.forward(self.collate([self.read(sample)]))

    def read(self, sample: Any) -> Any:
        """Read one sample as the backbone inside does."""
        return self.inner.read(sample)

    def collate(self, items: Any) -> Any:
        """Collate samples as the backbone inside does."""
        return self.inner.collate(items)

    def sort_key(self, item: Any) -> int:
        """Return the cost proxy of the backbone inside."""
        return self.inner.sort_key(item)

    def fingerprint(self) -> str:
        """Return a digest of the backbone inside and of what is read of it."""
        return f"{self.inner.fingerprint()} layers {self.layers}"

    def forward(self, batch: Any) -> Any:
        """Run the backbone once; return its features and after them the statistics of its inner layers."""
        found: list[list] = [[] for _ in self._modules]

        def reads(i):
            def pool(_, output):
                found[i].append(self.inner.pool_layer(first_tensor(output), batch))

            return pool

        with hooked(after=[(module, reads(i)) for i, module in enumerate(self._modules)]):
            features = self.inner.forward(batch)
        if self.blocks is None:
            self._choose(features, found)
            found = [parts for parts, read in zip(found, self._read_of, strict=True) if read]
        if any(len(passes) != 1 for passes in found):
            raise BackboneError(
                f"{type(self.module).__name__} does not run each inner layer once in each pass; use layers='last'."
            )
        more = [passes[0][k] for passes, kept in zip(found, self._kept, strict=True) for k in kept]
        return torch.cat([features, *(part.to(features.dtype) for part in more)], 1)

    def _choose(self, features, found):
        """Fix, at the first batch, which layers and which of their statistics are read."""
        usable = []
        for i, passes in enumerate(found):
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
        usable = usable[-wanted:]
        widths = {(i, k): found[i][0][k].shape[1] for i, new in usable for k in new}
        if self.layers == "auto":
            widths = _that_fit(widths, features.shape[1])
        read = sorted({i for i, _ in widths})
        self._read_of = [i in read for i in range(len(found))]
        self._kept = [[k for j, k in sorted(widths) if j == i] for i in read]
        self.settled = all(len(found[i][0]) > 1 for i in read)
        self.blocks = (features.shape[1], *(widths[at] for at in sorted(widths)))
        self._modules = [self._modules[i] for i in read]
        self.n_layers = len(read)
        self.n_features = sum(self.blocks)


def _that_fit(widths, n_features):
    """Keep statistics while all features are no more than ``_MOST_FEATURES``: means first, then what spreads them."""
    kept, total = {}, n_features
    for i, k in sorted(widths, key=lambda at: (_ORDER.get(at[1], at[1]), -at[0])):
        if total + widths[i, k] <= _MOST_FEATURES:
            kept[i, k] = widths[i, k]
            total += widths[i, k]
    return kept


def _same_direction(part, features, dtype):
    """Whether rows are the features again but for their scale."""
    if part.shape != features.shape:
        return False
    one, other = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-30) for x in (part.float(), features.float()))
    return alike(one, other, dtype)
