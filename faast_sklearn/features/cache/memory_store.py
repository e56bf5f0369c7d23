"""Where a cache keeps features: in this process, or in a directory that processes share.

Both stores have the same methods. A row is ``(dtype name, bytes)``. Before features are computed, their keys are
*claimed*, so that no two threads or processes compute the same ones. Storing a row ends its claim. Others may take
over the claims of a process that has ended.
"""

import os
import threading
from collections import OrderedDict
from typing import Any

__all__ = ["MemoryStore"]


class MemoryStore:
    """Rows in memory; the least recently used are dropped first.

    Parameters
    ----------
    max_bytes : int
        Maximum bytes of features.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._rows = OrderedDict()
        self._begin()

    def _begin(self):
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._claims = {}  # key -> thread
        self._n_bytes = sum(len(data) for _, data in self._rows.values())

    def _locked(self):
        if self._process != os.getpid():
            self._begin()  # after a fork: threads that held the lock or a claim do not exist here
        return self._lock

    def get(self, keys: Any) -> Any:
        """Return the stored rows by key."""
        with self._locked():
            found = {}
            for key in keys:
                row = self._rows.get(key)
                if row is not None:
                    self._rows.move_to_end(key)
                    found[key] = row
            return found

    def claim(self, keys: list) -> tuple:
        """Claim the keys that are neither stored nor claimed by others.

        Parameters
        ----------
        keys : list of bytes

        Returns
        -------
        won : list of bytes
            The caller must compute and store, or release, each.
        theirs : list of bytes
            Being computed by another thread or process. All other keys are stored.
        """
        me = threading.get_ident()
        won, theirs = [], []
        with self._locked():
            for key in keys:
                if key in self._rows:
                    continue
                # A thread gets its own claims again: it must not wait for itself.
                if self._claims.setdefault(key, me) == me:
                    won.append(key)
                else:
                    theirs.append(key)
        return won, theirs

    def put(self, key: Any, dtype: Any, data: Any) -> None:
        """Store a row and end its claim."""
        with self._locked():
            self._claims.pop(key, None)
            if key in self._rows or len(data) > self.max_bytes:
                return
            self._rows[key] = (dtype, data)
            self._n_bytes += len(data)
            while self._n_bytes > self.max_bytes:
                _, (_, old) = self._rows.popitem(last=False)
                self._n_bytes -= len(old)

    def release(self, keys: Any) -> None:
        """Give back claims for which nothing was stored."""
        with self._locked():
            for key in keys:
                self._claims.pop(key, None)

    def clear(self) -> None:
        """Remove all rows."""
        with self._locked():
            self._rows.clear()
            self._n_bytes = 0

    def __len__(self):
        with self._locked():
            return len(self._rows)

    @property
    def n_bytes(self) -> Any:
        """Bytes of stored features."""
        with self._locked():
            return self._n_bytes
