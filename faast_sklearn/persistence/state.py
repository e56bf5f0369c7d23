"""The state of an object, declared once beside its class: files and pickles follow from it."""

from typing import Any, ClassVar

from faast_sklearn.persistence.fields import Record

__all__ = ["Stateful", "require"]


class Stateful:
    """An object made of named parts, which its class lists once.

    A subclass lists ``_state``, its parts by name as fields of :mod:`faast_sklearn.persistence.fields`: what its
    constructor takes, and what its attributes (or the same with an underscore) are. Where the parts in a file are
    others, it overrides :meth:`_stated` and :meth:`_from_state`, which also checks how the parts fit together.
    """

    __slots__ = ()
    _state: ClassVar = {}

    @classmethod
    def record(cls) -> Any:
        """Return the field that files hold such an object by."""
        return Record(cls._from_state, view=cls._stated, **cls._state)

    @classmethod
    def _from_state(cls, **parts):
        """Make the object of its parts; raise ValueError if they do not fit together."""
        return cls(**parts)

    def _stated(self):
        """Return an object that has the parts as attributes."""
        return self

    def __getstate__(self):
        # On the host and without torch where NumPy will do, so that what was learnt on a GPU loads anywhere.
        parts = self.record().parts_of(self._stated())
        return {name: self._state[name].to_host(part) for name, part in parts.items()}

    def __setstate__(self, state):
        parts = {name: field.from_host(state[name]) for name, field in self._state.items()}
        twin = self._from_state(**parts)
        names = vars(twin) if hasattr(twin, "__dict__") else type(twin).__slots__
        for name in names:
            object.__setattr__(self, name, getattr(twin, name))  # some are frozen


def require(fits: Any, what: Any) -> None:
    """Raise ValueError, with ``what`` is wrong, unless parts of a file fit together."""
    if not fits:
        raise ValueError(what)
