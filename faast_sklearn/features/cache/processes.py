"""Which processes are alive, known from locks that the operating system drops when their process ends.

The locks are those of SQLite on empty files. They work on every platform, need no timeouts, and are not inherited by a
fork; a lock of ``flock`` would be, and a child would keep that of its dead parent.
"""

import atexit
import contextlib
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["exclusively", "forsake", "is_alive", "process_owner"]

_OLD = 3600.0  # seconds after which a lock file that nobody holds cannot be one just created

_held = {}  # directory -> (name, connection)
_inherited = {}  # name -> (process id of a parent, its connection, which a child may neither use nor close)
_process = os.getpid()
_lock = threading.Lock()


def process_owner(directory: os.PathLike) -> str:
    """Return this process's name in a directory; the first call takes its lock there.

    Parameters
    ----------
    directory : Path
        Must exist.

    Returns
    -------
    str
    """
    key = os.path.realpath(directory)
    with _lock:
        if key not in _held:
            _sweep(directory)
            name = uuid.uuid4().hex
            _held[key] = (name, _hold(_path(directory, name), timeout=5.0))
        return _held[key][0]


def forsake(directory: os.PathLike) -> None:
    """Give up this process's name in a directory: others may take over its claims there.

    Parameters
    ----------
    directory : Path
    """
    with _lock:
        name, connection = _held.pop(os.path.realpath(directory), (None, None))
    if name is not None:
        with contextlib.suppress(OSError):
            os.remove(_path(directory, name))
        connection.close()


def is_alive(directory: os.PathLike, name: str) -> bool:
    """Tell whether the process of that name still runs; if not, remove its lock file.

    Parameters
    ----------
    directory : Path
    name : str

    Returns
    -------
    bool
    """
    with _lock:
        if _held.get(os.path.realpath(directory), (None,))[0] == name:
            return True
        if name in _inherited:
            # After a fork, SQLite takes a parent's lock for this process's own.
            try:
                os.kill(_inherited[name][0], 0)
            except ProcessLookupError:
                return False
            return True
    path = _path(directory, name)
    return path.exists() and _is_held(path)


@contextlib.contextmanager
def exclusively(path: os.PathLike, timeout: float) -> Iterator[Any]:
    """Let only one process at a time run the body.

    Parameters
    ----------
    path : Path
        Lock file, which is not removed.
    timeout : float
        Seconds to wait for another process.

    Raises
    ------
    sqlite3.OperationalError
        If another process holds the lock for longer.
    """
    connection = _hold(path, timeout)
    try:
        yield
    finally:
        connection.close()


def _path(directory, name):
    return Path(directory) / f"owner-{name}.lock"


def _hold(path, timeout):
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _is_held(path):
    """Whether a process holds the lock of a file; if not, the file is removed."""
    try:
        connection = _hold(path, timeout=0.0)
    except sqlite3.OperationalError:
        return True
    with contextlib.suppress(OSError):
        os.remove(path)
    connection.close()
    return False


def _sweep(directory):
    """Remove the lock files of processes that were killed."""
    for path in Path(directory).glob("owner-*.lock"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _OLD:
                _is_held(path)


def _after_fork():
    global _lock, _process
    _lock = threading.Lock()
    _inherited.update({name: (_process, connection) for name, connection in _held.values()})
    _held.clear()
    _process = os.getpid()


def _leave():
    for directory in list(_held):
        forsake(directory)


atexit.register(_leave)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
