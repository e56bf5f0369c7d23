"""Placeholder for moments that a file does not hold."""

from collections.abc import Callable
from typing import Any

from faast_sklearn.errors import SavedFileError
from faast_sklearn.persistence.fields import Field, Integer

__all__ = ["NotSaved", "OrNotSaved"]


class NotSaved:
    """Placeholder for moments that were not saved: any use of it raises an error that says so.

    Parameters
    ----------
    n_samples : int
        Number of samples that were learnt.
    """

    def __init__(self, n_samples: int) -> None:
        self.n_samples = n_samples

    def refuse(self, *_: Any) -> Any:
        """Raise the error that says so."""
        raise SavedFileError(
            "this estimator was saved with moments=False: it predicts, but it cannot learn more, forget, be merged, or "
            "tell what is new. Save it with its moments for that."
        )

    __add__ = __radd__ = __sub__ = __rsub__ = refuse

    def __getattr__(self, name):
        if name.startswith("__") or name == "n_samples":
            raise AttributeError(name)
        return self.refuse()

    def __repr__(self):
        return f"NotSaved(n_samples={self.n_samples})"


class OrNotSaved(Field):
    """Field of moments or, if they are left out, of their number of samples.

    Parameters
    ----------
    field : Field
        Field of the moments.
    count : callable
        Returns the number of samples of moments.
    """

    def __init__(self, field: "Field", count: Callable[..., Any]) -> None:
        self.field, self.count = field, count

    def pack(self, value: Any, out: Any) -> Any:
        """Write the moments, or their number of samples."""
        if isinstance(value, NotSaved):
            return {"n_samples": value.n_samples}
        n_samples = self.count(value)
        # If nothing was learnt, the moments are empty, and there are no weights to predict with instead.
        return self.field.pack(value, out) if out.moments or not n_samples else {"n_samples": n_samples}

    def unpack(self, node: Any, source: Any) -> Any:
        """Read the moments, or their number of samples."""
        if isinstance(node, dict) and node.keys() == {"n_samples"}:
            return NotSaved(Integer().unpack(node["n_samples"], source))
        return self.field.unpack(node, source)
