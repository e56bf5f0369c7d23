"""Read one image, in any common form, as pixels from 0 to 255 on the host."""

import base64
import binascii
import io
import os
import re
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from faast_sklearn.errors import InputError, shortened
from faast_sklearn.optional import require

__all__ = ["encoded_image", "load_pixels", "open_image", "read_image", "rounded", "says_its_scale"]

_CHANNELS = (1, 3, 4)
_KEEP = 3  # reducing to 2 times the target size changes a feature's cosine by up to 0.007, to 3 times by 0.0001
_TRANSPOSES = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> Image.Transpose
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII | re.IGNORECASE)
# How the base64 of JPEG, PNG, GIF, WebP, BMP and TIFF begins; no path does.
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A")
_LEAST_BASE64 = 64
_LONGEST_PATH = 1024
_file_lock = threading.Lock()


def open_image(sample: Any) -> Any:
    """Open an image as an upright 8-bit PIL image, mode "L" or "RGB", as pipelines of pretrained models expect.

    Parameters
    ----------
    sample : str, path, bytes, file, dict or PIL.Image.Image
        As in :func:`read_image`, except arrays and tensors. A PIL image is not modified.

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    InputError
        If it cannot be read; the message names the path.
    """
    from PIL import Image

    image = _opened(sample, None)
    if _is_deep(image):
        image = Image.fromarray(np.rint(_scaled(np.asarray(image), image)).astype(np.uint8))
    return image


def read_image(sample: Any, shrink_to: Any = None) -> torch.Tensor:
    """Read one image in any common form.

    Parameters
    ----------
    sample : str, path, bytes, file, dict, PIL image, ndarray or tensor
        A string is a path, a ``data:`` URL or base64; a file is open in binary mode; a dict has ``"bytes"`` or
        ``"path"``, like undecoded images of Hugging Face datasets. The EXIF orientation is applied and alpha
        dropped, as in the pipelines that pretrained models were trained with.
        Arrays may be (h, w), (h, w, c) or (c, h, w) with 1, 3 or 4 channels; a shape that fits
        both is read as (h, w, c) for arrays and (c, h, w) for tensors. White is 1 for floats and bool, 65535 for
        uint16 and for PIL mode "I", else 255.
    shrink_to : (height, width), default=None
        Larger encoded 8-bit images may be reduced by an integer factor to no less than three times this size.

    Returns
    -------
    torch.Tensor of shape (1 or 3, h, w)
        From 0 to 255: uint8, or float32 where 8 bits would lose precision. A pixel's value depends on the type of
        the image, not on its other pixels.

    Raises
    ------
    InputError

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.backbones.image_reading import read_image
    >>> read_image(np.eye(8)).shape
    torch.Size([1, 8, 8])
    >>> read_image(np.zeros((5, 6, 4), dtype=np.uint8)).shape
    torch.Size([3, 5, 6])
    >>> read_image(np.full((1, 1), 1000, dtype=np.uint16)).item()
    3.89...
    """
    channels_first, image = isinstance(sample, torch.Tensor), None
    if channels_first:
        if sample.layout != torch.strided or sample.device.type == "meta" or sample.is_quantized:
            raise InputError(f"a {sample.layout} tensor on {sample.device} is not an image; pass its values, dense.")
        array = sample.detach().cpu()
        array = (array.float() if array.is_floating_point() and array.dtype != torch.float64 else array).numpy()
    elif isinstance(sample, np.ndarray):
        array = sample
    else:
        image = _opened(sample, shrink_to)
        array = np.asarray(image)
    array = _scaled(_channels_last(array, channels_first), image)
    if array.shape[2] == 4:
        array = array[:, :, :3]
    # Copied, so that the result never shares memory with the user's sample.
    return torch.from_numpy(np.array(array, copy=True, order="C")).permute(2, 0, 1)


def rounded(image: Any) -> Any:
    """Round what :func:`read_image` returned to 8 bits, for preprocessing that takes no more."""
    return image if image.dtype == torch.uint8 else image.round().to(torch.uint8)


def encoded_image(sample: Any) -> Any:
    """Return the bytes of an encoded image (None if the sample is not encoded) and a name for messages.

    Parameters
    ----------
    sample : str, path, bytes, bytearray, memoryview, file or dict
        See :func:`read_image`. A file is read from its beginning, and its position is restored.

    Raises
    ------
    OSError, ValueError
        If a file cannot be read.
    InputError
        If a string is neither a path nor base64 nor a ``data:`` URL, or a dict holds neither bytes nor a path.
    """
    if isinstance(sample, Mapping):
        found = next((sample[key] for key in ("bytes", "path") if sample.get(key) is not None), None)
        if not isinstance(found, (bytes, bytearray, memoryview, str, os.PathLike)):
            raise InputError(
                f"a dict with keys {shortened(list(sample))} is not an image; it needs 'bytes' or a 'path', as "
                "undecoded images of datasets have."
            )
        return encoded_image(found)
    if isinstance(sample, (bytes, bytearray, memoryview)):
        return bytes(sample), "encoded image"
    if hasattr(sample, "read"):
        return _bytes_of_file(sample), "file"
    if not isinstance(sample, (str, os.PathLike)):
        return None, type(sample).__name__
    path = os.fspath(sample)
    text = path if isinstance(path, str) else os.fsdecode(path)
    data = _decoded(text)
    if data is not None:
        return data, "base64 image"
    with open(os.path.expanduser(text) if not os.path.exists(text) else text, "rb") as file:
        return file.read(), shortened(text, most=300)


def _decoded(text):
    """Return the bytes of a ``data:`` URL or of base64; None for a path."""
    if text[:5].lower() == "data:":
        scheme = _DATA_URL.match(text)
        if scheme is None:
            raise InputError(f"{shortened(text)} is not a data URL of an image in base64, data:image/TYPE;base64,DATA.")
        text = text[scheme.end() :]
    elif "://" in text[:12]:
        raise InputError(f"{shortened(text)} is an address; download the image and pass its path or bytes.")
    elif len(text) < _LEAST_BASE64 or not text.startswith(_BASE64) or os.path.exists(text):
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        if "\n" not in text and len(text) < _LONGEST_PATH:
            return None
        raise InputError(f"{shortened(text)} is neither a path nor an image in base64.") from None


def _bytes_of_file(file):
    with _file_lock:  # X may hold the same file twice, and two threads may read it
        try:
            place = file.tell()
            file.seek(0)
            data = file.read()
            file.seek(place)
        except (AttributeError, OSError, ValueError) as error:
            raise InputError(f"cannot read a file from its beginning ({error}); pass its bytes or its path.") from error
    if not isinstance(data, bytes):
        raise InputError("a file in text mode is not an image; open it with open(path, 'rb').")
    return data


def load_pixels(image: Any) -> None:
    """Decode a PIL image in place; ``getexif()`` then holds the orientation that is still to be applied.

    Raises
    ------
    InputError
        If it was closed, or its file cannot be decoded.
    """
    # Pillow rotates TIFFs while decoding them, but wrongly if it maps the file, which needs the file's name.
    name = getattr(image, "filename", None)
    mapped = image.format == "TIFF" and bool(name)
    if mapped:
        image.filename = ""
    try:
        image.load()
    except (AttributeError, ValueError, AssertionError) as error:
        raise InputError(f"a PIL image that is closed or broken ({error}); open it again, or pass its path.") from error
    finally:
        if mapped:
            image.filename = name


def _opened(sample, shrink_to):
    """Return the sample as an upright PIL image, in mode "L", "RGB" or a mode of more than 8 bits."""
    image_module = require("PIL.Image", "pillow")
    name = "PIL image"
    try:
        if isinstance(sample, image_module.Image):
            return _upright(sample, shrink_to)
        data, name = encoded_image(sample)
        if data is None:
            raise InputError(
                f"{name} is not an image; pass a path, encoded bytes, a file, a PIL image, an array or a tensor."
            )
        with image_module.open(io.BytesIO(data)) as image:
            if shrink_to is not None:
                image.draft(None, (_KEEP * shrink_to[1], _KEEP * shrink_to[0]))
            return _upright(image, shrink_to)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"image {shortened(error.filename, most=300)} does not exist.") from error
    except IsADirectoryError as error:
        raise InputError(
            f"image {shortened(error.filename, most=300)} is a folder; pass its files, e.g. with image_folder."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, image_module.DecompressionBombError) as error:
        reason = shortened(str(error), most=150, quoted=False)
        raise InputError(f"cannot read image {name}: {reason}. Re-save it or leave it out.") from error


def _upright(image, shrink_to):
    from PIL import Image

    load_pixels(image)
    turn = _TRANSPOSES.get(image.getexif().get(0x0112))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("1", "LA", "La"):
        image = image.convert("L")
    elif not _is_deep(image) and image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    if shrink_to is not None and not _is_deep(image):
        factor = min(image.height // (_KEEP * shrink_to[0]), image.width // (_KEEP * shrink_to[1]))
        if factor >= 2:
            image = image.reduce(factor)
    return image if turn is None else image.transpose(Image.Transpose(turn))


def says_its_scale(image: Any) -> bool:
    """Whether a PIL image of mode "I" comes from a 16-bit file; other images of that mode may have any scale."""
    return image.format in ("PNG", "PPM")


def _is_deep(image):
    return image.mode.startswith(("I", "F"))


def _channels_last(array, channels_first):
    """View an array as (h, w, c)."""
    if array.ndim == 2:
        array = array[:, :, None]
    elif array.ndim == 3:
        first, last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
        if first and (channels_first or not last):
            array = array.transpose(1, 2, 0)
        elif not last:
            raise InputError(f"array of shape {array.shape} is not an image: needs 1, 3 or 4 channels first or last.")
    else:
        raise InputError(f"array of shape {array.shape} is not an image: expected (h, w), (h, w, c) or (c, h, w).")
    if array.size == 0:
        raise InputError(f"image of shape {array.shape} has no pixels.")
    return array


def _scaled(array, image=None):
    """Scale pixels to 0 to 255 by their type alone: 8 bits where that is exact, else float32.

    ``image`` is the PIL image that the array comes from, if any.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "uif":
        raise InputError(f"image of dtype {array.dtype}; pass uint8, uint16, or floats in [0, 1].")
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        # The negation also catches NaN.
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"float image with values from {low:.4g} to {high:.4g}; floats must lie in [0, 1]. "
                "Divide by the largest possible value, or pass uint8. For pixels that are already normalised, "
                "pass the module itself with arrays as input (a timm model: backbone(module, modality='tensor'))."
            )
        array = array * 255.0 if array.dtype.itemsize == 8 else array.astype(np.float32) * np.float32(255)
        # Floats that were made from 8 bits become the same 8 bits again, up to rounding.
        return _eight_bits_if(array, 255 * 2 * np.finfo(array.dtype).eps)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _eight_bits_if(array.astype(np.float64) / 257, 0.0)
    if image is not None:
        if low < 0 or high > 65535 or (0 < high < 256 and not says_its_scale(image)):
            raise InputError(
                f"PIL image of mode 'I' with values from {low} to {high}, whose scale is unknown; "
                "pass image.convert('L') for 8 bits, np.asarray(image).astype(np.uint16) for 16."
            )
        return _eight_bits_if(array.astype(np.float64) / 257, 0.0)
    if low < 0 or high > 255:
        raise InputError(
            f"integer image of dtype {array.dtype} with values from {low} to {high}: 8 or 16 bits? Pass "
            "image.astype(np.uint8) for 8 bits, image.astype(np.uint16) for 16, or floats in [0, 1]."
        )
    return array.astype(np.uint8)


def _eight_bits_if(array, tolerance):
    whole = np.rint(array)
    if (np.abs(array - whole) <= tolerance).all():
        return whole.astype(np.uint8)
    return array.astype(np.float32)
