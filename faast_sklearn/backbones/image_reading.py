"""Read one image, in any form that users have, as 8-bit pixels on the host."""

import io
import os

import numpy as np
import torch

from faast_sklearn.backbones.optional import require
from faast_sklearn.errors import InputError

__all__ = ["open_image", "read_image"]

_CHANNELS = (1, 3, 4)
_KEEP = 3  # reducing to 2 times the target costs up to 0.007 in a feature's cosine, to 3 times 0.0001


def open_image(sample, shrink_to=None):
    """Open a path, encoded bytes or PIL image as an upright 8-bit PIL image, mode "L" or "RGB".

    The EXIF orientation is applied. Alpha is dropped, as in the pipelines that pretrained models
    were trained with. 16-bit grey is scaled to 8 bits.

    Parameters
    ----------
    sample : str, path, bytes or PIL.Image.Image
        A PIL image is not modified.
    shrink_to : (height, width), default=None
        Larger images may be reduced by an integer factor to no less than three times this size,
        which saves most of the decoding of a camera's photograph.

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    InputError
        If it cannot be read; the message has the path.
    """
    image_module = require("PIL.Image", "pillow")
    if isinstance(sample, image_module.Image):
        name, image = "PIL image", sample
    elif isinstance(sample, bytes):
        name, image = "encoded image", None
    elif isinstance(sample, (str, os.PathLike)):
        name, image = os.fspath(sample), None
    else:
        raise InputError(
            f"{type(sample).__name__} is no image; pass a path, encoded bytes, a PIL image, an array or a tensor."
        )
    try:
        if image is not None:
            return _upright(image, shrink_to)
        # Closed again by the with block: thousands of paths must not leave thousands of open files.
        with image_module.open(io.BytesIO(sample) if isinstance(sample, bytes) else name) as image:
            if shrink_to is not None:
                image.draft(None, (_KEEP * shrink_to[1], _KEEP * shrink_to[0]))
            return _upright(image, shrink_to)
    except FileNotFoundError as error:
        raise InputError(f"image {name!r} does not exist.") from error
    except IsADirectoryError as error:
        raise InputError(f"image {name!r} is a folder; pass its files, e.g. with image_folder.") from error
    except (OSError, SyntaxError, ValueError, EOFError, image_module.DecompressionBombError) as error:
        raise InputError(f"cannot read image {name!r}: {error}. Re-save it or leave it out.") from error


def _upright(image, shrink_to):
    from PIL import Image

    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(image.getexif().get(0x0112))  # EXIF -> Image.Transpose
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_uint8(np.asarray(image)))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("1", "LA", "La"):
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    if shrink_to is not None:
        factor = min(image.height // (_KEEP * shrink_to[0]), image.width // (_KEEP * shrink_to[1]))
        if factor >= 2:
            image = image.reduce(factor)
    image.load()
    return image if turn is None else image.transpose(Image.Transpose(turn))


def _to_uint8(array):
    """Scale an array of pixels to 8 bits by its dtype, refusing values whose scale is a guess."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "f":
        # The negation also catches NaN.
        if not (array.min() >= 0 and array.max() <= 1):
            raise InputError(
                f"float image with values from {array.min():.4g} to {array.max():.4g}; floats must lie in [0, 1]. "
                "Divide by the largest possible value, or pass uint8. For pixels that are already normalised "
                "pass the module itself with arrays as input."
            )
        return np.rint(array * 255).astype(np.uint8)
    if array.dtype.kind not in "ui":
        raise InputError(f"image of dtype {array.dtype}; pass uint8, uint16, or floats in [0, 1].")
    # 16-bit grey files arrive as int32 ("I") in some versions of Pillow.
    sixteen = array.dtype.itemsize == 2 and array.dtype.kind == "u"
    low, high = array.min(), array.max()
    if low < 0 or high > 65535:
        raise InputError(f"integer image with values from {low} to {high}; pass 8 or 16 bits.")
    if sixteen or high > 255:
        return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return array.astype(np.uint8)


def read_image(sample, shrink_to=None):
    """Read one image in any form that users have.

    Parameters
    ----------
    sample : str, path, bytes, PIL image, ndarray or tensor
        Arrays may be (h, w), (h, w, c) or (c, h, w) with 1, 3 or 4 channels; a shape that fits
        both is read as (h, w, c) for arrays and (c, h, w) for tensors. uint8, uint16, bool, or
        floats in [0, 1].
    shrink_to : (height, width), default=None
        See :func:`open_image`.

    Returns
    -------
    torch.Tensor of shape (1 or 3, h, w) and dtype uint8

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
    """
    channels_first = isinstance(sample, torch.Tensor)
    if channels_first:
        if sample.layout != torch.strided or sample.device.type == "meta" or sample.is_quantized:
            raise InputError(f"a {sample.layout} tensor on {sample.device} is no image; pass its values, dense.")
        array = sample.detach().cpu()
        array = (array.float() if array.is_floating_point() and array.dtype != torch.float64 else array).numpy()
    elif isinstance(sample, np.ndarray):
        array = sample
    else:
        array = np.asarray(open_image(sample, shrink_to))
    if array.ndim == 2:
        array = array[:, :, None]
    elif array.ndim == 3:
        first, last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
        if first and (channels_first or not last):
            array = array.transpose(1, 2, 0)
        elif not last:
            raise InputError(f"array of shape {array.shape} is no image: 1, 3 or 4 channels first or last.")
    else:
        raise InputError(f"array of shape {array.shape} is no image: expected (h, w), (h, w, c) or (c, h, w).")
    if array.size == 0:
        raise InputError(f"image of shape {array.shape} has no pixels.")
    array = _to_uint8(array)
    if array.shape[2] == 4:
        array = array[:, :, :3]
    # Copied where it is not ours or not writable, so that no sample of the user's is aliased.
    return torch.from_numpy(np.array(array, copy=True, order="C")).permute(2, 0, 1)
