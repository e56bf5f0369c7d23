"""A backbone around another one, which reads more of the same model."""

from typing import Any

from faast_sklearn.backbones.base import Backbone

__all__ = ["WrappedBackbone"]


class WrappedBackbone(Backbone):
    """A backbone that reads and collates as the one inside does, and gives more or other features of it.

    Parameters
    ----------
    inner : Backbone
    what : str
        What is different; part of the fingerprint.
    """

    def __init__(self, inner: Backbone, what: str) -> None:
        self.inner, self._what = inner, what
        names = ("modality", "device", "dtype", "truncation", "default_batch_size", "license", "module", "remedy")
        for name in names:
            setattr(self, name, getattr(inner, name))

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
        """Return a digest of the backbone inside and of what is different."""
        return f"{self.inner.fingerprint()} {self._what}"
