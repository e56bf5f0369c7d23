"""The key of a sample in a cache: made from its content, never from its name, its position or its container."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from faast_sklearn.backbones.image_reading import encoded_image, load_pixels, says_its_scale
from faast_sklearn.backbones.memo import remembered
from faast_sklearn.errors import InputError
from faast_sklearn.features.loader import Loader
from faast_sklearn.inputs.samples import is_pil

__all__ = ["backbone_fingerprint", "digest_of_rows", "sample_keys"]

# Part of every key: raise the number when features change but no backbone does, as with a new way to resize.
_FORMAT = "faast_sklearn features 1"
_KEY_BYTES = 20
_BLOCK = 512  # samples that are read and hashed as one batch
_ROW_BYTES = 8 << 20  # bytes of a table that are hashed at a time


def backbone_fingerprint(backbone: Any, in_memory: bool) -> str:
    """Return the fingerprint of an open backbone, computed once unless its module is the caller's.

    Parameters
    ----------
    backbone : Backbone
    in_memory : bool
        Whether the caller holds the module too and may change it between calls.

    Returns
    -------
    str
    """
    if in_memory:
        return backbone.fingerprint()
    return remembered(backbone, "fingerprint", backbone.fingerprint)


def sample_keys(samples: Sequence, backbone: Any, fingerprint: str) -> list:
    """Return the key of each sample's features.

    The key of a text, array, tensor, image or encoded image depends on its content, that of a path on the bytes of its
    file. Anything else is read by the backbone, and its key depends on the result. Several threads read.

    Parameters
    ----------
    samples : sequence of n_samples
        As :func:`~faast_sklearn.inputs.as_samples` returns.
    backbone : Backbone
    fingerprint : str
        Of the backbone.

    Returns
    -------
    list of bytes
        Equal for equal content and fingerprint, and different otherwise.

    Raises
    ------
    InputError
        If a sample cannot be read, or its content is of an unknown type.

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.backbones import backbone
    >>> from faast_sklearn.features.cache.sample_keys import sample_keys
    >>> opened = backbone(torch.nn.Identity()).open("cpu")
    >>> one, other, again = sample_keys([torch.ones(2), torch.zeros(2), torch.ones(2)], opened, "identity")
    >>> one == again, one == other
    (True, False)
    """
    hasher = _SampleHasher(backbone, fingerprint)
    keys = []
    with Loader(hasher, samples, single=len(samples) <= _BLOCK) as loader:
        ahead = []
        for start in range(0, len(samples), _BLOCK):
            ahead.append(loader.submit(np.arange(start, min(start + _BLOCK, len(samples)))))
            if len(ahead) > 2:
                keys += ahead.pop(0).result()
        for pending in ahead:
            keys += pending.result()
    return keys


class _SampleHasher:
    """Takes the place of a backbone in a Loader, to use its threads and its errors, which name the sample."""

    def __init__(self, backbone, fingerprint):
        self.backbone = backbone
        self.modality = backbone.modality
        self._start = hashlib.sha256(f"{_FORMAT}\0{fingerprint}\0".encode())

    def read(self, sample):
        digest = self._start.copy()
        if not self._known(digest, sample):
            _update(digest, self.backbone.read(sample))
        return digest.digest()[:_KEY_BYTES]

    def collate(self, keys):
        return keys

    def _known(self, digest, sample):
        """Hash a sample's content if its type and the modality say what that is; return whether they do."""
        if isinstance(sample, (np.ndarray, torch.Tensor)):
            if isinstance(sample, np.ndarray) and sample.dtype.hasobject:
                return False
            _update(digest, sample)
        elif self.modality == "text" and isinstance(sample, str):
            _update(digest, str(sample))
        elif self.modality == "image" and is_pil(sample):
            _update_image(digest, sample)
        elif self.modality == "image":
            data, _ = encoded_image(sample)
            if data is None:
                return False
            _update(digest, data)
        else:
            return False
        return True


def _update_image(digest, image):
    """Update a digest with everything that reading uses of an image in memory."""
    load_pixels(image)
    _update(digest, ("image", image.mode, says_its_scale(image), image.size, image.tobytes()))
    palette = image.getpalette("RGBA") if image.mode in ("P", "PA") else None
    _update(digest, (palette, repr(image.info.get("transparency")), image.getexif().get(0x0112)))


def _update(digest, item):
    """Update a digest with content, so that different contents or types give different bytes."""
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu()
        digest.update(f"tensor {item.dtype} {tuple(item.shape)}\0".encode())
        digest.update(item.contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(item, np.ndarray) and not item.dtype.hasobject:
        digest.update(f"array {item.dtype.str} {item.shape}\0".encode())
        digest.update(np.ascontiguousarray(item).reshape(-1).view(np.uint8))
    elif isinstance(item, (str, bytes)):
        data = item.encode("utf-8", "surrogatepass") if isinstance(item, str) else item
        digest.update(f"{'text' if isinstance(item, str) else 'bytes'} {len(data)}\0".encode())
        digest.update(data)
    elif item is None or isinstance(item, (bool, int, float, complex, np.generic)):
        digest.update(f"{type(item).__name__} {item!r}\0".encode())
    elif isinstance(item, Mapping):
        digest.update(f"mapping {len(item)}\0".encode())
        for name, part in item.items():
            _update(digest, name)
            _update(digest, part)
    elif isinstance(item, (list, tuple)):
        digest.update(f"sequence {len(item)}\0".encode())
        for part in item:
            _update(digest, part)
    elif is_pil(item):
        _update_image(digest, item)
    else:
        raise InputError(
            f"a cache compares samples by content, which is unknown for {type(item).__name__}; let the backbone's "
            "read (or preprocess) return tensors, arrays or strings, or use cache=None."
        )


def digest_of_rows(X: Any, threads: int | None = None) -> str:
    """Return a digest of the dtype, shape and values of a table.

    Costs one pass over its bytes, shared by the cores.

    Parameters
    ----------
    X : ndarray or torch.Tensor of shape (n, d)
        A tensor on a device is copied to the host block by block.
    threads : int, default=None
        By default one per core, but at most 8.

    Returns
    -------
    str

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.features.cache.sample_keys import digest_of_rows
    >>> X = np.arange(6.0).reshape(3, 2)
    >>> digest_of_rows(X) == digest_of_rows(np.asfortranarray(X)), digest_of_rows(X) == digest_of_rows(X[::-1])
    (True, False)
    """
    row = X.shape[1] * (X.element_size() if isinstance(X, torch.Tensor) else X.itemsize)
    step = max(1, _ROW_BYTES // max(row, 1))

    def block(start):
        digest = hashlib.sha256()
        _update(digest, X[start : start + step])
        return digest.digest()

    starts = range(0, len(X), step)
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        # One block of a table is not worth a thread.
        parts = list((pool.map if len(starts) > 1 else map)(block, starts))
    whole = hashlib.sha256(f"{type(X).__name__} {X.dtype} {tuple(X.shape)}\0".encode())
    whole.update(b"".join(parts))
    return whole.hexdigest()
