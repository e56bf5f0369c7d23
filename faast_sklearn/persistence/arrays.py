"""Kinds of arrays that a saved file may hold: tensors of known dtype and number of axes, and labels."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from faast_sklearn.errors import SavedFileError, shortened
from faast_sklearn.persistence.fields import Field

__all__ = ["Array", "Labels", "Stacked"]


class Array(Field):
    """A tensor, or with ``numpy`` an ndarray, of one of ``dtypes`` and a given number of axes.

    Parameters
    ----------
    shape : str
        One letter per axis, such as "cd". Axes of the same letter have the same length within a :class:`Record`.
    dtypes : tuple of torch.dtype
    numpy : bool, default=False
    finite : bool, default=True
        Whether infinities are refused; NaN always is.
    least : float, optional
        Smallest allowed value.
    symmetric : bool, default=False
        Write only one triangle of a square matrix if the other has the same numbers.
    """

    def __init__(
        self,
        shape: str,
        dtypes: tuple = (torch.float64,),
        *,
        numpy: bool = False,
        finite: bool = True,
        least: float | None = None,
        symmetric: bool = False,
    ) -> None:
        self.shape, self.dtypes, self.numpy = shape, dtypes, numpy
        self.finite, self.least, self.symmetric = finite, least, symmetric

    def pack(self, value: Any, out: Any) -> Any:
        """Write the tensor; return its name, for a triangle also its size."""
        tensor = torch.from_numpy(np.ascontiguousarray(value)) if self.numpy else value.detach().cpu()
        if self.symmetric and torch.equal(tensor, tensor.T):
            rows = [tensor[i, : i + 1] for i in range(len(tensor))]
            return {"triangle": out.put(torch.cat(rows)), "size": len(tensor)}
        return out.put(tensor)

    def unpack(self, node: Any, source: Any) -> Any:
        """Read and check the tensor; its :class:`Record` checks the lengths of its axes."""
        size = None
        if self.symmetric and isinstance(node, dict):
            node, size = node.get("triangle"), node.get("size")
        return self.check(source.take(node), source, size)

    def check(self, tensor: Any, source: Any, size: Any = None) -> Any:
        """Return the tensor as this field describes it, or raise SavedFileError."""
        if tensor.dtype not in self.dtypes:
            raise source.wrong(f"is {tensor.dtype}, expected {' or '.join(map(str, self.dtypes))}")
        if size is not None:
            tensor = self._square(tensor, size, source)
        if tensor.ndim != len(self.shape):
            raise source.wrong(f"has shape {tuple(tensor.shape)}, expected {len(self.shape)} axes")
        if tensor.dtype.is_floating_point:
            bad = ~torch.isfinite(tensor) if self.finite else torch.isnan(tensor)
            if bool(bad.any()):
                raise source.wrong("has values that are not finite")
        if self.least is not None and tensor.numel() and bool((tensor < self.least).any()):
            raise source.wrong(f"has values below {self.least}")
        return tensor.numpy() if self.numpy else tensor

    @staticmethod
    def _square(packed, size, source):
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 31:
            raise source.wrong(f"has size {shortened(size)}")
        if packed.shape != (size * (size + 1) // 2,):
            raise source.wrong(f"has shape {tuple(packed.shape)}, expected a triangle of {size} rows")
        square = packed.new_empty((size, size))
        start = 0
        for i in range(size):
            square[i, : i + 1] = packed[start : start + i + 1]
            square[:i, i] = square[i, :i]
            start += i + 1
        return square

    def to_host(self, value: Any) -> Any:
        """Return an ndarray; bfloat16, which NumPy does not have, as float32."""
        if self.numpy:
            return value
        return (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()

    def from_host(self, value: Any) -> Any:
        """Return a tensor, or with ``numpy`` the ndarray."""
        return value if self.numpy else torch.from_numpy(np.array(value))

    def lengths(self, value: Any) -> Any:
        """Yield the letter and the length of each axis."""
        return zip(self.shape, value.shape, strict=True)


class Stacked(Field):
    """A tuple of tensors whose shapes differ only in the first axis, written as one tensor.

    Parameters
    ----------
    shape, dtypes
        Of each tensor, as in :class:`Array`.
    """

    def __init__(self, shape: Any, dtypes: Any = (torch.float64,)) -> None:
        self.whole = Array(shape, dtypes)

    def pack(self, value: Any, out: Any) -> Any:
        """Write the tensors one after the other."""
        if not value:
            return None
        return {"rows": self.whole.pack(torch.cat(list(value)), out), "lengths": [len(one) for one in value]}

    def unpack(self, node: Any, source: Any) -> Any:
        """Read the tensors."""
        if node is None:
            return ()
        if not isinstance(node, dict) or not isinstance(node.get("lengths"), list):
            raise source.wrong(f"is {shortened(node)}, expected stacked tensors")
        whole, lengths = self.whole.unpack(node.get("rows"), source), node["lengths"]
        if not all(type(length) is int and length >= 0 for length in lengths) or sum(lengths) != len(whole):
            raise source.wrong(f"has {len(whole)} rows, which do not match the lengths of its parts")
        return torch.split(whole, lengths)

    def to_host(self, value: Any) -> Any:
        """Return ndarrays."""
        return tuple(map(self.whole.to_host, value))

    def from_host(self, value: Any) -> Any:
        """Return tensors."""
        return tuple(map(self.whole.from_host, value))

    def lengths(self, value: Any) -> Any:
        """Yield the letter and the length of each axis but the first."""
        return zip(self.whole.shape[1:], value[0].shape[1:], strict=True) if value else ()


class Labels(Field):
    """A one-dimensional ndarray of class labels, with its dtype: booleans, integers, floats or strings.

    Parameters
    ----------
    sorted : bool, default=True
        Whether they must be in strictly ascending order.
    """

    shape = "c"
    _KINDS = "biufUO"

    def __init__(self, sorted: bool = True) -> None:
        self.sorted = sorted

    def pack(self, value: Any, out: Any) -> Any:
        """Write the labels as a list."""
        kinds = {type(label) for label in value.tolist()}
        if value.dtype.kind not in self._KINDS or not kinds <= {bool, int, float, str}:
            raise SavedFileError(
                f"labels of dtype {value.dtype} and types {sorted(kind.__name__ for kind in kinds)} cannot be saved; "
                "use strings, integers, floats or booleans."
            )
        return {"dtype": value.dtype.str, "labels": value.tolist()}

    def unpack(self, node: Any, source: Any) -> Any:
        """Read the labels."""
        if not isinstance(node, dict) or not isinstance(node.get("labels"), list):
            raise source.wrong(f"is {shortened(node)}, expected labels")
        labels, dtype = node["labels"], node.get("dtype")
        if not all(isinstance(label, (bool, int, float, str)) for label in labels):
            raise source.wrong("has labels that are neither numbers nor strings")
        try:
            dtype = np.dtype(dtype)
            if dtype.kind not in self._KINDS or (dtype.kind == "U" and dtype.itemsize > 1 << 20):
                raise TypeError(dtype)
            array = np.array(labels, dtype=dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise source.wrong(f"has labels that are not {dtype}: {error}") from None
        if array.shape != (len(labels),) or array.tolist() != labels:
            raise source.wrong(f"has labels that are not {dtype}")
        if self.sorted and len(array) > 1:
            try:
                ascending = bool(np.all(array[1:] > array[:-1]))
            except TypeError:
                ascending = False
            if not ascending:
                raise source.wrong("has labels that are not sorted")
        return array

    def lengths(self, value: Any) -> Iterator[Any]:
        """Yield the letter and the length of the axis."""
        yield "c", len(value)
