"""The base class of backbones that wrap another one."""

from typing import Any

from faast_sklearn.backbones.base import Backbone

__all__ = ["WrappedBackbone"]


class WrappedBackbone(Backbone):
    """A backbone that reads and collates as the wrapped one does, and returns more or other features.

    Parameters
    ----------
    inner : Backbone
        The wrapped one.
    what : str
        What differs from it; part of the fingerprint.
    """

    def __init__(self, inner: Backbone, what: str) -> None:
        self.inner, self._what = inner, what
        names = ("modality", "device", "dtype", "truncation", "default_batch_size", "license", "module", "remedy")
        for name in names:
            setattr(self, name, getattr(inner, name))

    def read(self, sample: Any) -> Any:
        """Read one sample as the wrapped backbone does."""
        return self.inner.read(sample)

    def collate(self, items: Any) -> Any:
        """Collate samples as the wrapped backbone does."""
        return self.inner.collate(items)

    def sort_key(self, item: Any) -> int:
        """Return the wrapped backbone's proxy for the cost of a sample."""
        return self.inner.sort_key(item)

    def fingerprint(self) -> str:
        """Return a digest of the wrapped backbone and of what differs from it."""
        return f"{self.inner.fingerprint()} {self._what}"
