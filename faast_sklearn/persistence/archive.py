"""One file of tensors and a JSON manifest: written whole or not at all, read only if every byte is as it was written.

The file is a plain safetensors file, which any reader of that format opens. Its metadata hold the manifest and a
SHA-256 checksum of the whole file, computed with zeros in place of the checksum itself.
"""

import contextlib
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from faast_sklearn.errors import SavedFileError, refuse_missing_parent

__all__ = ["ABANDONED", "digest_of_file", "read_archive", "replaced", "sync_file", "sync_folder", "write_archive"]

_FORMAT = "faast_sklearn"
_VERSION = 2
_BLANK = b"0" * 64
# Never matches within the manifest: it is a string in a JSON document, where every quote follows a backslash.
_CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{64})"')
ABANDONED = 3600.0  # seconds without a write after which a temporary file is taken as left by a killed process
_BLOCK = 1 << 20


def write_archive(path: os.PathLike, manifest: dict, tensors: dict) -> None:
    """Write a manifest and tensors to a file; after any failure the old file is unchanged.

    Parameters
    ----------
    path : Path
        Its folder must exist.
    manifest : dict
        Of JSON values; numbers must be finite.
    tensors : dict of str to torch.Tensor
        On any device.

    Raises
    ------
    OSError
        If the disk is full or the folder cannot be written.
    """
    metadata = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "manifest": json.dumps(manifest, allow_nan=False, separators=(",", ":")),
        "checksum": _BLANK.decode(),
    }
    with replaced(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata)
        except safetensors.SafetensorError as error:
            # safetensors raises one error for everything that can fail; here only the disk can.
            raise OSError(f"cannot write {str(path)!r}: {error}") from error
        checksum = digest_of_file(temporary)
        with open(temporary, "r+b") as file:
            header = file.read(8 + int.from_bytes(file.read(8), "little"))
            file.seek(8 + _CHECKSUM.search(header).start(1))
            file.write(checksum.encode())


def read_archive(path: os.PathLike) -> tuple:
    """Read what :func:`write_archive` wrote.

    No code runs, no path is followed, and all tensors are on the CPU.

    Parameters
    ----------
    path : Path

    Returns
    -------
    manifest : dict
    tensors : dict of str to torch.Tensor

    Raises
    ------
    SavedFileError
        If the file is foreign, damaged, cut short, or of another format; the message says which.
    OSError
        If it cannot be read.
    """
    data = Path(path).read_bytes()
    metadata = _verified_metadata(data, path)
    if metadata.get("version") != str(_VERSION):
        raise SavedFileError(
            f"{str(path)!r} has format {metadata.get('version')!r}, and this version of faast_sklearn reads format "
            f"{_VERSION}; install the version that wrote it."
        )
    try:
        return json.loads(metadata["manifest"], parse_constant=_no_constant), safetensors.torch.load(data)
    except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise SavedFileError(f"{str(path)!r} is not a file that faast_sklearn wrote: {error}.") from error


def _verified_metadata(data, path):
    """Check the checksum and return the metadata in the header."""
    where = repr(str(path))
    # Files of this library start with a length of eight bytes, which may look like these; the ninth opens the header.
    foreign = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b", b"BZ", b"x\x9c")
    if data[:2] in foreign and data[8:9] != b"{":
        raise SavedFileError(
            f"{where} is a pickle or a compressed archive, which load never opens: unpickling runs code. Write the "
            "file with faast_sklearn.save."
        )
    end = 8 + int.from_bytes(data[:8], "little")
    if len(data) < 8 or (data[8:9] == b"{" and end > len(data)):
        raise SavedFileError(f"{where} is cut short: it has only {len(data)} bytes. Copy it again.")
    header = data[8:end]
    found = _CHECKSUM.findall(header)
    if data[8:9] != b"{" or len(found) != 1:
        raise SavedFileError(f"{where} was not written by faast_sklearn.save, or its first bytes are damaged.")
    blank = header.replace(found[0], _BLANK)
    digest = hashlib.sha256(data[:8])
    digest.update(blank)
    digest.update(memoryview(data)[end:])
    if digest.hexdigest().encode() != found[0]:
        raise SavedFileError(
            f"{where} is damaged or cut short: its checksum does not match its {len(data)} bytes. Copy it again, or "
            "save the estimator again."
        )
    try:
        metadata = json.loads(header)["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SavedFileError(f"{where} was not written by faast_sklearn.save: {error}.") from error
    if metadata.get("format") != _FORMAT:
        raise SavedFileError(f"{where} holds {metadata.get('format')!r}, not an estimator of faast_sklearn.")
    return metadata


def _no_constant(name):
    raise ValueError(f"{name} is not a number")


def digest_of_file(path: Any) -> Any:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def replaced(path: os.PathLike) -> Iterator[Any]:
    """Yield the name of a temporary file that replaces ``path`` in one step when the body succeeds.

    Its content is on the disk before it is renamed. An error removes it. A kill leaves it beside the old file, and
    the first call after an hour or more removes it.

    Parameters
    ----------
    path : Path

    Yields
    ------
    Path
    """
    path = Path(os.path.realpath(path))
    refuse_missing_parent(path)
    for left in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.part"
    try:
        temporary.touch(exist_ok=False)
        mode = (path if path.exists() else temporary).stat().st_mode & 0o777
        yield temporary
        os.chmod(temporary, mode)
        sync_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_file(path: Any) -> None:
    """Write what the system holds of a file to the disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Any) -> None:
    """Make the names in a folder survive a crash, if the platform can."""
    with contextlib.suppress(OSError):  # Windows cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
