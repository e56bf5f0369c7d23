"""Features in a directory: one SQLite file that threads and processes share."""

import contextlib
import errno
import logging
import os
import sqlite3
import threading
import time
import weakref
import zlib
from pathlib import Path
from typing import Any

from faast_sklearn.errors import InputError
from faast_sklearn.features.cache.processes import exclusively, forsake, is_alive, process_owner

__all__ = ["DirectoryStore"]

_logger = logging.getLogger("faast_sklearn")

_FILE = "features-1.sqlite"  # a new layout gets a new number, so that versions do not share a file
_PATIENCE = 30.0  # seconds to wait for another process; its transactions take milliseconds
_REST = 60.0  # seconds without the cache after its file could not be used
# Errors of a full disk and of too many open files: they may pass, unlike a wrong path.
_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EMFILE", "ENFILE") if hasattr(errno, name)}
_AT_ONCE = 500  # keys per statement; older versions of SQLite take 999 parameters
_SLACK = 0.1  # share of max_bytes that is freed at a time
_UNCHECKED = 0.01  # share of max_bytes that may be written between two checks of the total
_TABLES = """
CREATE TABLE IF NOT EXISTS entries(key BLOB PRIMARY KEY, id INTEGER, used INTEGER, size INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blobs(id INTEGER PRIMARY KEY, dtype TEXT, checksum INTEGER, data BLOB);
CREATE TABLE IF NOT EXISTS claims(key BLOB PRIMARY KEY, owner TEXT) WITHOUT ROWID;
"""
_READ = "SELECT {} FROM entries JOIN blobs ON blobs.id = entries.id WHERE key IN ({})"

_stores = weakref.WeakSet()
_forking = []  # stores whose locks the forking thread holds


class DirectoryStore:
    """Rows in one SQLite file, with the methods of :class:`~faast_sklearn.features.cache.memory_store.MemoryStore`.

    Each row is committed by itself, with a checksum. A damaged row is removed, a damaged file is renamed and replaced
    by an empty one, both with a logged warning. If the file cannot be used (the disk is full, another process locks
    it), features are computed but not stored for a minute.

    Parameters
    ----------
    directory : str
        Created on first use, if it does not exist.
    max_bytes : int
        Maximum bytes of features; the file is about a tenth larger. Each process that writes at the same time may
        exceed the maximum by one hundredth.
    """

    def __init__(self, directory: str, max_bytes: int) -> None:
        self.directory = Path(directory)
        self.max_bytes = max_bytes
        self._path = self.directory / _FILE
        self._lock = threading.RLock()
        self._connection = None
        self._inode = None
        self._rests_until = 0.0
        self._unchecked = max_bytes  # so that the first row also checks the rows of earlier processes
        _stores.add(self)

    def get(self, keys: Any) -> Any:
        """Return the stored, undamaged rows by key."""
        found = {}
        for start in range(0, len(keys), _AT_ONCE):
            found.update(self._run(_get, keys[start : start + _AT_ONCE], default={}))
        if found:
            self._run(_touch, list(found))
        return found

    def claim(self, keys: Any) -> Any:
        """Claim the keys that are neither stored nor claimed by others, like ``MemoryStore``."""
        won, theirs = [], []
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            # Without a usable file this process computes everything.
            new, others = self._run(_claim, part, self._owner, self.directory, default=(part, []))
            won += new
            theirs += others
        return won, theirs

    def put(self, key: Any, dtype: Any, data: Any) -> None:
        """Store a row and end its claim, in one transaction."""
        if len(data) > self.max_bytes:
            self.release([key])
            return
        self._run(_put, key, dtype, data)
        with self._lock:
            self._unchecked += len(data)
            if self._unchecked >= _UNCHECKED * self.max_bytes:
                self._unchecked = 0
                self._run(_evict, self.max_bytes)

    def release(self, keys: Any) -> None:
        """Give back claims for which nothing was stored."""
        if not self._run(_release, keys, default=False):
            forsake(self.directory)  # otherwise others would wait forever

    def clear(self) -> None:
        """Remove all rows and free their disk space."""
        self._run(_clear)

    def __len__(self):
        return self._run(lambda connection: connection.execute("SELECT COUNT(*) FROM entries").fetchone()[0], default=0)

    @property
    def n_bytes(self) -> Any:
        """Bytes of stored features."""
        return self._run(_total, default=0)

    def _owner(self):
        return f"{process_owner(self.directory)}:{threading.get_ident()}"

    def _run(self, action, *args, default=None):
        """Run an action on the open connection, or on a new file if the present one is damaged."""
        with self._lock:
            if time.monotonic() < self._rests_until:
                return default
            try:
                try:
                    return action(self._open(), *args)
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        raise
                    self._renew(error)
                return action(self._open(), *args)
            except sqlite3.Error as error:
                _logger.warning("the cache %s cannot be used and is skipped for a minute: %s", self._path, error)
                self._rests_until = time.monotonic() + _REST
                self._close()
                return default

    def _open(self):
        # Another process may have put a damaged file aside, or a user may have deleted it.
        if self._connection is not None and _inode(self._path) == self._inode:
            return self._connection
        self._close()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab"):
                pass
        except OSError as error:
            if error.errno in _FULL:
                raise sqlite3.OperationalError(error.strerror) from error
            raise InputError(
                f"cache={str(self.directory)!r} cannot be written ({error.strerror or error}); name a writable "
                "directory, or use cache='memory'."
            ) from error
        # A switch to a write-ahead log fails, without waiting, while another process does the same.
        with exclusively(self.directory / "setup.lock", _PATIENCE):
            self._inode = _inode(self._path)
            # This store's lock makes threads take turns.
            connection = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.executescript(_TABLES)
            except sqlite3.Error:
                connection.close()
                raise
        self._connection = connection
        return connection

    def _close(self):
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _renew(self, error):
        """Rename a damaged file, only once if several processes find it damaged."""
        self._close()
        with exclusively(self.directory / "setup.lock", _PATIENCE):
            if _inode(self._path) != self._inode:
                return  # another process was first
            _logger.warning("the cache %s is damaged (%s); it is renamed and a new one begun", self._path, error)
            with contextlib.suppress(OSError):
                os.replace(self._path, self._path.with_suffix(".damaged"))
            for suffix in ("-wal", "-shm"):
                with contextlib.suppress(OSError):
                    os.remove(f"{self._path}{suffix}")

    def __del__(self):
        if hasattr(self, "_connection"):
            self._close()


@contextlib.contextmanager
def _transaction(connection):
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _get(connection, keys):
    found, damaged = {}, []
    for key, dtype, checksum, data in connection.execute(
        _READ.format("key, dtype, checksum, data", _marks(keys)), keys
    ):
        if isinstance(data, bytes) and checksum == _checksum(key, dtype, data):
            found[key] = (dtype, data)
        else:
            damaged.append(key)
    if damaged:
        _logger.warning("%d damaged rows in the cache are removed and computed again", len(damaged))
        with _transaction(connection):
            _remove(connection, damaged)
    return found


def _touch(connection, keys):
    now = time.time_ns()
    with _transaction(connection):
        connection.executemany("UPDATE entries SET used = ? WHERE key = ?", [(now, key) for key in keys])


def _claim(connection, keys, owner, directory):
    owner = owner()  # makes a lock file, for which the disk may be too full
    process = owner.partition(":")[0]
    won, theirs, gone = [], [], {}
    with _transaction(connection):
        stored = {key for (key,) in connection.execute(_READ.format("key", _marks(keys)), keys)}
        claims = dict(connection.execute(f"SELECT key, owner FROM claims WHERE key IN ({_marks(keys)})", keys))
        for key in keys:
            if key in stored:
                continue
            other = claims.get(key, owner)
            name = other.partition(":")[0]
            if name != process and name not in gone:
                gone[name] = not is_alive(directory, name)
            if other == owner or gone.get(name):
                won.append(key)
            else:
                theirs.append(key)
        connection.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?)", [(key, owner) for key in won])
    return won, theirs


def _put(connection, key, dtype, data):
    with _transaction(connection):
        if connection.execute(_READ.format("1", "?"), (key,)).fetchone() is None:
            row = (dtype, _checksum(key, dtype, data), data)
            number = connection.execute("INSERT INTO blobs(dtype, checksum, data) VALUES (?, ?, ?)", row).lastrowid
            connection.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", (key, number, time.time_ns(), len(data))
            )
        connection.execute("DELETE FROM claims WHERE key = ?", (key,))


def _release(connection, keys):
    with _transaction(connection):
        connection.executemany("DELETE FROM claims WHERE key = ?", [(key,) for key in keys])
    return True


def _clear(connection):
    with _transaction(connection):
        connection.execute("DELETE FROM entries")
        connection.execute("DELETE FROM blobs")
    connection.execute("VACUUM")


def _evict(connection, max_bytes):
    total = _total(connection)
    if total <= max_bytes:
        return
    with _transaction(connection):
        excess = _total(connection) - (1 - _SLACK) * max_bytes
        oldest = []
        for key, size in connection.execute("SELECT key, size FROM entries ORDER BY used, id"):
            if excess <= 0:
                break
            oldest.append(key)
            excess -= size
        _remove(connection, oldest)


def _remove(connection, keys):
    parameters = [(key,) for key in keys]
    connection.executemany("DELETE FROM blobs WHERE id = (SELECT id FROM entries WHERE key = ?)", parameters)
    connection.executemany("DELETE FROM entries WHERE key = ?", parameters)


def _total(connection):
    return connection.execute("SELECT COALESCE(SUM(size), 0) FROM entries").fetchone()[0]


def _marks(keys):
    return ",".join("?" * len(keys))


def _checksum(key, dtype, data):
    return zlib.crc32(data, zlib.crc32(key + str(dtype).encode()))


def _inode(path):
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _is_damage(error):
    # sqlite3 has error codes only since Python 3.11.
    return any(sign in str(error) for sign in ("malformed", "not a database", "no such table", "no such column"))


def _before_fork():
    """Close all connections: SQLite does not allow one to be open in both processes after a fork."""
    _forking.extend(_stores)
    for store in _forking:
        store._lock.acquire()
        store._close()


def _after_fork():
    while _forking:
        _forking.pop()._lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
