"""The state of an object, declared once in its class, from which files and pickles are made."""

from typing import Any, ClassVar

from faast_sklearn.persistence.fields import Record

__all__ = ["Stateful", "require"]


class Stateful:
    """An object made of named parts, which its class lists once.

    ``_state`` of a subclass lists the parts by name, as fields of :mod:`faast_sklearn.persistence.fields`. Each name is
    a parameter of the constructor and an attribute, perhaps with an underscore in front. If the parts in a file differ,
    it overrides :meth:`_stated` and :meth:`_from_state`, which also checks how the parts fit together.
    """

    __slots__ = ()
    _state: ClassVar = {}

    @classmethod
    def record(cls) -> Any:
        """Return the field that writes and reads such an object."""
        return Record(cls._from_state, view=cls._stated, **cls._state)

    @classmethod
    def _from_state(cls, **parts):
        """Make the object from its parts; raise ValueError if they do not fit together."""
        return cls(**parts)

    def _stated(self):
        """Return an object that has the parts as attributes."""
        return self

    def __getstate__(self):
        # On the host, and as NumPy arrays if possible, so that what was learnt on a GPU loads anywhere.
        parts = self.record().parts_of(self._stated())
        return {name: self._state[name].to_host(part) for name, part in parts.items()}

    def __setstate__(self, state):
        parts = {name: field.from_host(state[name]) for name, field in self._state.items()}
        twin = self._from_state(**parts)
        names = vars(twin) if hasattr(twin, "__dict__") else type(twin).__slots__
        for name in names:
            object.__setattr__(self, name, getattr(twin, name))  # some classes are frozen


def require(fits: Any, what: Any) -> None:
    """Raise ValueError with the message ``what`` unless ``fits``."""
    if not fits:
        raise ValueError(what)
