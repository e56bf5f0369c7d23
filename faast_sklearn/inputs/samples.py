"""What users pass as X, turned into samples that can be counted, indexed and named; and labelled batches."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Literal

import numpy as np
import torch

from faast_sklearn.errors import InputError, shortened
from faast_sklearn.inputs.columns import without_arrow
from faast_sklearn.inputs.datasets import as_indexable, is_dataset, is_hf_dataset, labelled_batches

__all__ = ["as_samples", "count_samples", "iter_chunks", "name_sample", "refuse_single"]

_EXPECTED = {
    "image": "a list or array of images or of paths",
    "text": "a list or array of strings",
    "tensor": "an array or tensor whose first axis counts the samples",
}
_CHANNELS = (1, 3, 4)
_NUMBERS = (bool, int, float, complex, np.generic)


def as_samples(X: Any, modality: Literal["image", "text", "tensor"]) -> Any:
    """View X as a sequence of samples, each checked as far as possible without reading it.

    Parameters
    ----------
    X : list, tuple, array, tensor, Series, one-column DataFrame or dataset of n_samples
        ``"image"``: PIL images, paths, HWC or HW arrays and CHW tensors (mixed as you like), one (n, h, w, c) or
        (n, h, w) array, or one (n, c, h, w) array or tensor. ``"text"``: strings, all of which are checked.
        ``"tensor"``: anything whose first axis counts samples. Datasets as in
        :func:`~faast_sklearn.as_indexable`. pandas objects are read by position, never by label.
    modality : {"image", "text", "tensor"}
        What the backbone reads.

    Returns
    -------
    samples
        Has ``len(samples)`` and ``samples[int]``. Images and dataset items are read when indexed.

    Raises
    ------
    InputError
        If X is empty, a single sample, something that cannot be indexed, or of the wrong kind. The message
        names the first bad sample and the remedy.

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.inputs import as_samples
    >>> samples = as_samples(np.zeros((5, 8, 8), dtype=np.uint8), "image")
    >>> len(samples), samples[0].shape
    (5, (8, 8))
    >>> as_samples(["fine", None], "text")
    Traceback (most recent call last):
    ...
    faast_sklearn.errors.InputError: X[1] is None, expected str; drop such samples or fill them with ''.
    """
    refuse_single(X, modality)
    X = without_arrow(X)
    samples: Any
    if is_dataset(X):
        samples = as_indexable(X)
    elif hasattr(X, "columns") and np.ndim(X) == 2:
        samples = _from_frame(X, modality)
    elif hasattr(X, "to_numpy"):
        samples = X.to_numpy()
    elif isinstance(X, (list, tuple, np.ndarray, torch.Tensor)):
        samples = X
    else:
        samples = as_indexable(X)
    if isinstance(samples, np.ndarray) and modality != "tensor":
        samples = _one_axis(samples)
    if len(samples) == 0:
        raise InputError(f"X has 0 samples; pass {_EXPECTED[modality]} with at least one.")
    if modality == "text":
        return _texts(samples)
    if modality == "image":
        return _images(samples)
    return samples


def refuse_single(X: Any, modality: Literal["image", "text", "tensor"]) -> None:
    """Raise InputError if X is not a collection of samples: one sample, a mapping, a set or None.

    Parameters
    ----------
    X : object
    modality : {"image", "text", "tensor"}

    Examples
    --------
    >>> from faast_sklearn.inputs.samples import refuse_single
    >>> refuse_single({3, 5}, "tensor")
    Traceback (most recent call last):
    ...
    faast_sklearn.errors.InputError: X is a set, expected an array ... samples; a set has no order, so pass a list.
    """
    expected = f"expected {_EXPECTED[modality]}"
    if X is None:
        raise InputError(f"X is None; {expected}.")
    if isinstance(X, (str, bytes, os.PathLike)):
        remedy = "put it into a list, [x]"
        if modality == "image":
            remedy += ", or list a folder with image_folder(path)"
        raise InputError(f"X is one {type(X).__name__}, {expected}; {remedy}.")
    if isinstance(X, Set):
        raise InputError(f"X is a {type(X).__name__}, {expected}; a set has no order, so pass a list.")
    if isinstance(X, Mapping) and not hasattr(X, "toarray"):  # SciPy's dok_array is a dict
        raise InputError(
            f"X is a {type(X).__name__} with keys {shortened(list(X)[:8], 120)}, {expected}; choose one, "
            "as in X['KEY']."
        )
    if is_pil(X):
        raise InputError(f"X is one image, {expected}; put it into a list, [image].")
    if getattr(X, "shape", None) == ():
        raise InputError(f"X is a single value, {expected}.")
    if not any(hasattr(X, name) for name in ("__iter__", "__getitem__", "__array__")) or isinstance(X, type):
        raise InputError(f"X is a {type(X).__name__}, {expected}.")
    if hasattr(X, "toarray"):
        raise InputError(
            f"X is sparse, {expected}; pass X.toarray(), or reduce it, as TruncatedSVD(100) does in a Pipeline."
        )
    if isinstance(X, torch.Tensor) and X.layout != torch.strided:
        raise InputError(f"X is a sparse tensor, {expected}; pass X.to_dense().")
    if isinstance(X, torch.Tensor) and X.device.type == "meta":
        raise InputError(f"X is a tensor on the device 'meta', which holds no values; {expected}.")
    if isinstance(X, (np.ndarray, torch.Tensor)) and modality == "image":
        _check_image_block(X)


def is_pil(X: Any) -> bool:
    """Whether X is an image of Pillow."""
    # If X is such an image, its package is imported already.
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(X, pil.Image)


def _check_image_block(X):
    shape = tuple(X.shape)
    if isinstance(X, torch.Tensor) and X.ndim == 3:
        raise InputError(
            f"X is a tensor of shape {shape}, which may be one image or many grey ones; "
            "pass X[None] for one image, X[:, None] for grey images."
        )
    if isinstance(X, np.ndarray) and X.ndim == 3 and shape[2] in _CHANNELS:
        raise InputError(f"X has shape {shape}, one image; pass X[None], or a list of images.")
    if X.ndim == 4 and shape[3] not in _CHANNELS and shape[1] not in _CHANNELS:
        raise InputError(f"X has shape {shape}; images have 1, 3 or 4 channels, on axis 1 or on the last.")
    numbers = isinstance(X, torch.Tensor) or X.dtype.kind in "biufc"
    if X.ndim > 4 or (numbers and X.ndim < 3):
        raise InputError(
            f"X has shape {shape}; expected (n, h, w), (n, h, w, c) or (n, c, h, w) for images. Reshape flat pixels "
            "with X.reshape(n, h, w); for ready features use backbone=None."
        )


def _from_frame(X, modality):
    if modality == "tensor":
        return X.to_numpy()
    if X.shape[1] == 1:
        return X.to_numpy()[:, 0]
    raise InputError(
        f"X is a DataFrame with {X.shape[1]} columns ({', '.join(map(str, list(X.columns)[:8]))}); this backbone reads "
        "one, so pass X['NAME'], or choose it in a ColumnTransformer."
    )


def _one_axis(samples):
    """Turn an (n, 1) array of objects or strings, in which scikit-learn passes a single column, into (n,)."""
    if samples.dtype.kind in "OUST" and samples.ndim == 2 and samples.shape[1] == 1:
        return samples[:, 0]
    if samples.dtype.kind in "OUST" and samples.ndim > 1:
        raise InputError(f"X has shape {samples.shape}; this backbone reads one column, so pass X[:, j].")
    return samples


def _texts(samples):
    if isinstance(samples, (np.ndarray, torch.Tensor)) and samples.ndim > 1:
        raise InputError(
            f"X has shape {tuple(samples.shape)} and dtype {samples.dtype}, expected {_EXPECTED['text']}; "
            "for ready features use backbone=None."
        )
    # Strings are small compared to tokens and features, and all must be valid before anything is learnt.
    texts = samples if isinstance(samples, list) else samples[:] if isinstance(samples, tuple) else list(samples)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(_wrong_sample(i, text, "str", "''"))
        if not text.isascii():
            _refuse_half_characters(i, text)
    return texts


def _refuse_half_characters(i, text):
    """Raise InputError for a string that cannot be encoded in UTF-8, which tokenizers read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"X[{i}] has an unpaired surrogate, {text[error.start]!r}, at position {error.start}, which no "
            "tokenizer reads; replace it with x.encode('utf-8', 'replace').decode('utf-8')."
        ) from error


def _images(samples):
    if isinstance(samples, (np.ndarray, torch.Tensor)) and samples.ndim > 1:
        return _channels_as_read(samples)
    if isinstance(samples, (list, tuple, np.ndarray)):
        for i, image in enumerate(samples):
            if image is None or (isinstance(image, _NUMBERS) and not isinstance(image, str)):
                raise InputError(_wrong_sample(i, image, "an image or a path", "a blank image"))
    return samples


def _channels_as_read(images):
    """Put channels last in arrays and first in tensors, as in single images, without copying."""
    if images.ndim < 4:
        return images
    if isinstance(images, torch.Tensor):
        return images.movedim(3, 1) if images.shape[1] not in _CHANNELS else images
    return np.moveaxis(images, 1, 3) if images.shape[3] not in _CHANNELS else images


def _wrong_sample(i, sample, expected, filler):
    if sample is None:
        found, missing = "None", True
    else:
        found, missing = f"{shortened(sample)} ({type(sample).__name__})", _is_missing(sample)
    if missing:
        remedy = f"drop such samples or fill them with {filler}"
    elif isinstance(sample, bytes):
        remedy = "decode it first, x.decode('utf-8')"
    elif expected == "str":
        remedy = "convert it first, str(x)"
    else:
        remedy = "pass PIL images, paths, arrays or tensors"
    return f"X[{i}] is {found}, expected {expected}; {remedy}."


def _is_missing(sample):
    # pandas.NA and NaT cannot be compared without importing pandas; their type names are stable.
    return type(sample).__name__ in ("NAType", "NaTType") or (
        isinstance(sample, (float, np.floating)) and bool(np.isnan(sample))
    )


def name_sample(i: Any, sample: Any) -> str:
    """Name a sample in a message by its index and, if it has one, its path (for a text, its start).

    Examples
    --------
    >>> from faast_sklearn.inputs.samples import name_sample
    >>> name_sample(17, "cat.jpg"), name_sample(3, 0.5)
    ("X[17] ('cat.jpg')", 'X[3]')
    """
    path = sample if isinstance(sample, (str, os.PathLike)) else getattr(sample, "filename", None)
    return f"X[{i}] ({shortened(os.fspath(path), most=300)})" if path else f"X[{i}]"


def count_samples(X: Any) -> int | None:
    """Return the number of samples of X, or None if X is read only once (an iterator or DataLoader) or has no samples.

    Examples
    --------
    >>> from faast_sklearn.inputs.samples import count_samples
    >>> count_samples(["a", "b"]), count_samples(iter("ab"))
    (2, None)
    """
    if isinstance(X, (str, bytes, Mapping)) and not hasattr(X, "toarray"):
        return None  # letters, bytes and columns are not samples
    shape = getattr(X, "shape", None)
    if shape is None and hasattr(X, "__array__"):
        shape = np.asarray(X).shape
    if shape is not None:
        return int(shape[0]) if len(shape) else None
    if hasattr(X, "__len__") and hasattr(X, "__getitem__"):
        return len(X)
    return None


def with_labels(X: Any, y: Any) -> Any:
    """Return X and its labels: y or, if that is None, those of a dataset."""
    if y is not None or not is_dataset(X):
        return X, y
    X = as_indexable(X)
    return X, X.labels()


def iter_chunks(X: Any, y: Any = None, sample_weight: Any = None) -> Iterator[Any]:
    """Iterate over labelled data: all at once if it is sized, batch by batch if it streams.

    Parameters
    ----------
    X : sized data, dataset with labels, or iterable of batches
        An iterator, generator or DataLoader yields ``(X, y)`` or ``(X, y, sample_weight)`` and is read lazily.
    y : array-like of shape (n_samples,), default=None
        Must be None for iterables of batches, and may be None for datasets with labels.
    sample_weight : array-like of shape (n_samples,), default=None
        Must be None for iterables.

    Yields
    ------
    X, y, sample_weight
        One chunk. Labels and weights in tensors are converted to arrays.

    Raises
    ------
    InputError
        If lengths differ, labels are missing, or a batch has the wrong form.

    Examples
    --------
    >>> from faast_sklearn.inputs.samples import iter_chunks
    >>> list(iter_chunks(["a", "b"], [0, 1]))
    [(['a', 'b'], [0, 1], None)]
    >>> [len(X) for X, y, weight in iter_chunks(batch for batch in [(["a", "b"], [0, 1]), (["c"], [0])])]
    [2, 1]
    """
    X, y = with_labels(X, y)
    # X that cannot hold samples is left to the caller, which knows what is expected.
    no_batches = (str, bytes, os.PathLike, Mapping, Set)
    single = X is None or isinstance(X, no_batches) or getattr(X, "shape", None) == () or is_pil(X)
    if single or count_samples(X) is not None:
        if y is None:
            if isinstance(X, Mapping) and X:
                raise InputError(
                    f"X is a {type(X).__name__} with keys {shortened(list(X)[:8], 120)}; pass one of them, as in "
                    f"X[{shortened(next(iter(X)))}], and y where it has no labels of its own."
                )
            raise InputError("This estimator requires y to be passed, but the target y is None.")
        yield _checked_chunk(X, y, sample_weight)
        return
    if is_hf_dataset(X) and y is None and sample_weight is None:
        X = labelled_batches(X)
    if not isinstance(X, Iterable):
        raise InputError(f"X is a {type(X).__name__}; expected samples or an iterable of (X, y) batches.")
    if y is not None or sample_weight is not None:
        raise InputError(
            f"X is a {type(X).__name__} of batches, so y and sample_weight must be None; "
            "let it yield (X, y) or (X, y, sample_weight)."
        )
    number = -1
    for number, batch in enumerate(X):
        yield _batch_chunk(batch, number)
    if number < 0:
        raise InputError(f"X is a {type(X).__name__} that yielded no batches; it may have been read already.")


def _batch_chunk(batch, number):
    form = "expected (X, y) or (X, y, sample_weight)"
    if isinstance(batch, Mapping):
        raise InputError(
            f"Batch {number} is a dict with keys {list(batch)[:8]}, {form}; pass for instance "
            "((batch['text'], batch['label']) for batch in loader)."
        )
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise InputError(f"Batch {number} is a {type(batch).__name__}, {form}.")
    X, y, *weight = batch
    if isinstance(y, str) or np.ndim(y) == 0:
        raise InputError(
            f"Batch {number} is a single labelled sample, {form} of many samples; "
            "group them, for instance with DataLoader(dataset, batch_size=256)."
        )
    try:
        return _checked_chunk(X, y, weight[0] if weight else None)
    except InputError as error:
        raise InputError(f"Batch {number}: {error}") from error


def _checked_chunk(X, y, sample_weight):
    n = count_samples(X)
    for name, values in (("y", y), ("sample_weight", sample_weight)):
        other = n if values is None else count_samples(values)
        if n is not None and other is not None and n != other:
            raise InputError(f"X has {n} samples and {name} has {other}; pass one value for each sample.")
    return X, _on_host(y), _on_host(sample_weight)


def _on_host(values):
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
