"""Kinds of values that a saved file may hold; each kind writes its values, and checks them when it reads.

A field has ``pack(value, out)``, which returns JSON values and hands tensors to ``out``, and ``unpack(node, source)``,
its inverse. A file can hold only values that have a field: no class, no module, no path of code.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

from faast_sklearn.errors import shortened

__all__ = [
    "Boolean",
    "Field",
    "Integer",
    "Listed",
    "Maybe",
    "Number",
    "OneOf",
    "Options",
    "Raw",
    "Record",
    "Text",
]


class Field:
    """A kind of value."""

    def pack(self, value: Any, out: Any) -> Any:
        """Return ``value`` as JSON values; tensors go to ``out``."""
        raise NotImplementedError

    def unpack(self, node: Any, source: Any) -> Any:
        """Return the value, or raise SavedFileError."""
        raise NotImplementedError

    def to_host(self, value: Any) -> Any:
        """Return the value as a pickle holds it: without a device."""
        return value

    def from_host(self, value: Any) -> Any:
        """Return the value from what ``to_host`` returned."""
        return value


class Number(Field):
    """A float of at least ``least``; infinite only if ``infinite``."""

    def __init__(self, least: Any = -math.inf, infinite: bool = False) -> None:
        self.least, self.infinite = least, infinite

    def pack(self, value: Any, out: Any) -> Any:
        """Write a number; infinity by name, since JSON has no number for it."""
        value = float(value)
        return value if math.isfinite(value) else repr(value)

    def unpack(self, node: Any, source: Any) -> Any:
        """Read a number."""
        if self.infinite and node in ("inf", "-inf"):
            node = float(node)
        elif isinstance(node, bool) or not isinstance(node, (int, float)) or not abs(node) <= sys.float_info.max:
            raise source.wrong(f"is {shortened(node)}, expected a number")
        if node < self.least:
            raise source.wrong(f"is {node!r}, expected at least {self.least}")
        return float(node)


class Integer(Field):
    """An int of at least ``least``."""

    def __init__(self, least: Any = 0) -> None:
        self.least = least

    def pack(self, value: Any, out: Any) -> Any:
        """Write an integer of any library."""
        return int(value)

    def unpack(self, node: Any, source: Any) -> Any:
        """Read an integer."""
        if isinstance(node, bool) or not isinstance(node, int) or not self.least <= node < 1 << 63:
            raise source.wrong(f"is {shortened(node)}, expected an integer of at least {self.least}")
        return node


class Boolean(Field):
    """True or False."""

    def pack(self, value: Any, out: Any) -> Any:
        """Write a truth value of any library."""
        return bool(value)

    def unpack(self, node: Any, source: Any) -> Any:
        """Read a truth value."""
        if not isinstance(node, bool):
            raise source.wrong(f"is {shortened(node)}, expected true or false")
        return node


class Text(Field):
    """A string."""

    def pack(self, value: Any, out: Any) -> Any:
        """Write a string."""
        return str(value)

    def unpack(self, node: Any, source: Any) -> Any:
        """Read a string."""
        if not isinstance(node, str):
            raise source.wrong(f"is {shortened(node)}, expected a string")
        return node


class OneOf(Field):
    """One of a few JSON values, or a value of ``field``."""

    def __init__(self, *values: Any, field: Any = None) -> None:
        self.values, self.field = values, field

    def pack(self, value: Any, out: Any) -> Any:
        """Write one of the values as it is, anything else by the field."""
        return value if self._holds(value) else self.field.pack(value, out)

    def unpack(self, node: Any, source: Any) -> Any:
        """Read it."""
        if self._holds(node):
            return node
        if self.field is None:
            raise source.wrong(f"is {shortened(node)}, expected one of {', '.join(map(repr, self.values))}")
        return self.field.unpack(node, source)

    def _holds(self, value):
        return any(type(value) is type(known) and value == known for known in self.values)


class Maybe(Field):
    """A value or None."""

    def __init__(self, field: Any) -> None:
        self.field = field

    def pack(self, value: Any, out: Any) -> Any:
        """Write it."""
        return None if value is None else self.field.pack(value, out)

    def unpack(self, node: Any, source: Any) -> Any:
        """Read it."""
        return None if node is None else self.field.unpack(node, source)

    def to_host(self, value: Any) -> Any:
        """Return None or what the field makes of it."""
        return None if value is None else self.field.to_host(value)

    def from_host(self, value: Any) -> Any:
        """Return None or what the field makes of it."""
        return None if value is None else self.field.from_host(value)


class Raw(Field):
    """Bytes, in hexadecimal."""

    def pack(self, value: Any, out: Any) -> Any:
        """Write bytes."""
        return value.hex()

    def unpack(self, node: Any, source: Any) -> Any:
        """Read bytes."""
        try:
            return bytes.fromhex(node)
        except (TypeError, ValueError):
            raise source.wrong(f"is {shortened(node)}, expected bytes") from None


class Listed(Field):
    """A tuple of values of one kind."""

    def __init__(self, field: Any) -> None:
        self.field = field

    def pack(self, value: Any, out: Any) -> Any:
        """Write them in order."""
        return out.each(value, lambda one: self.field.pack(one, out))

    def unpack(self, node: Any, source: Any) -> Any:
        """Read them in order."""
        if not isinstance(node, list):
            raise source.wrong(f"is {shortened(node)}, expected a list")
        return tuple(source.each(node, lambda one: self.field.unpack(one, source)))

    def to_host(self, value: Any) -> Any:
        """Return what the field makes of each."""
        return tuple(map(self.field.to_host, value))

    def from_host(self, value: Any) -> Any:
        """Return what the field makes of each."""
        return tuple(map(self.field.from_host, value))


class Options(Field):
    """A dict of names to numbers, strings, truth values, None, and tuples of them."""

    def pack(self, value: Any, out: Any) -> Any:
        """Write it as pairs."""
        return [[name, list(one) if isinstance(one, tuple) else one] for name, one in value.items()]

    def unpack(self, node: Any, source: Any) -> Any:
        """Read it."""
        options = {}
        for pair in node if isinstance(node, list) else [node]:
            name, value = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
            values = value if isinstance(value, list) else [value]
            if not isinstance(name, str) or not all(
                v is None or isinstance(v, (bool, int, float, str)) for v in values
            ):
                raise source.wrong(f"is {shortened(pair)}, expected an option")
            options[name] = tuple(value) if isinstance(value, list) else value
        return options


class Record(Field):
    """An object of one class, made of named parts.

    Parameters
    ----------
    make : callable
        A class, or a function that first checks how the parts fit; called with them by name. May raise ValueError.
    view : callable, optional
        Returns an object that has the parts as attributes; by default the value itself.
    **parts : Field
        Part ``p`` is the attribute ``p`` or, if there is none, ``_p``.
    """

    def __init__(self, make: Callable[..., Any], *, view: Callable[..., Any] | None = None, **parts: Any) -> None:
        self.make, self.view, self.parts = make, view, parts

    def pack(self, value: Any, out: Any) -> Any:
        """Write the parts."""
        packed = {}
        for name, part in self.parts_of(value if self.view is None else self.view(value)).items():
            with out.at(name):
                packed[name] = self.parts[name].pack(part, out)
        return packed

    def parts_of(self, view: Any) -> Any:
        """Return the parts of an object by name."""
        return {n: getattr(view, n) if hasattr(view, n) else getattr(view, f"_{n}") for n in self.parts}

    def unpack(self, node: Any, source: Any) -> Any:
        """Read the parts, check that their shapes match, and make the object."""
        if not isinstance(node, dict) or node.keys() != self.parts.keys():
            found = sorted(node) if isinstance(node, dict) else shortened(node)
            raise source.wrong(f"is {found}, expected {sorted(self.parts)}")
        values, lengths = {}, {}
        for name, field in self.parts.items():
            with source.at(name):
                value = values[name] = field.unpack(node[name], source)
                inner = field.field if isinstance(field, (Maybe, Listed)) else field
                each = value if isinstance(field, Listed) else () if value is None else (value,)
                if hasattr(inner, "lengths"):
                    for one in each:
                        for letter, length in inner.lengths(one):
                            if lengths.setdefault(letter, length) != length:
                                raise source.wrong(f"has an axis of length {length}, expected {lengths[letter]}")
        try:
            return self.make(**values)
        except ValueError as error:
            raise source.wrong(f"does not fit together: {error}") from error
