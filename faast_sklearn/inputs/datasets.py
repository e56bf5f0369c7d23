"""Sources of labelled samples: image folders, and datasets that scikit-learn can slice."""

import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faast_sklearn.errors import InputError, listed, shortened

__all__ = [
    "IndexableDataset",
    "as_indexable",
    "image_folder",
    "is_class_label",
    "is_dataset",
    "labelled_batches",
    "refuse_unlabelled",
]

_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"}
_MOST_NAMED = 8


def image_folder(path: Any, extensions: Sequence | None = None) -> tuple:
    """List the images of a folder that holds one folder per class.

    Parameters
    ----------
    path : str or path-like
        Each folder directly inside is one class, with the name of the folder; its images may lie at any depth.
        Hidden files and folders are left out. Links to folders are followed, each folder once per class.
    extensions : sequence of str, default=None
        File name endings of images, in upper or lower case; by default all that Pillow can open.

    Returns
    -------
    paths : ndarray of str objects, shape (n_images,)
        Sorted by class, then by name, so the order is the same on every machine.
    labels : ndarray of str, shape (n_images,)
        The class of each image.

    Raises
    ------
    InputError
        If the folder does not exist or has no class folders, a class folder has no images, or the folders inside are
        splits (train, test, ...).

    Warns
    -----
    UserWarning
        If ``extensions`` is None and files with other endings were left out.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from faast_sklearn.inputs.datasets import image_folder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
    ...         file = pathlib.Path(folder, name)
    ...         file.parent.mkdir(exist_ok=True)
    ...         file.touch()
    ...     paths, labels = image_folder(folder)
    >>> [pathlib.Path(path).name for path in paths], labels.tolist()
    (['1.png', '2.png', '1.png'], ['cat', 'cat', 'dog'])
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        reason = "is a file" if root.exists() else "does not exist"
        raise InputError(f"Image folder {str(root)!r} {reason}; pass a folder that holds one folder per class.")
    endings = _endings(extensions)
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise InputError(
            f"Image folder {str(root)!r} has no class folders; move the images of each class into a folder of its own."
        )
    _refuse_splits(root, classes)
    paths, labels, others = [], [], []
    for name in classes:
        files = _files(root / name)
        found = [file for file in files if file.lower().endswith(endings)]
        if not found:
            raise InputError(
                f"Class folder {str(root / name)!r} holds no images ending in {listed(endings, _MOST_NAMED)}; "
                "remove the folder or name its endings with extensions=."
            )
        others += [file for file in files if not file.lower().endswith(endings)]
        paths += found
        labels += [name] * len(found)
    if extensions is None and others:
        kinds = sorted({os.path.splitext(file)[1].lower() or "no ending" for file in others})
        warnings.warn(
            f"{len(others)} files in {shortened(str(root), most=200)} do not have the ending of an image "
            f"({listed(kinds, _MOST_NAMED)}) and were left out; choose endings with extensions=.",
            stacklevel=2,
        )
    return np.array(paths, dtype=object), np.array(labels)


def _endings(extensions):
    if extensions is not None:
        return tuple(str(extension).lower() for extension in extensions)
    from PIL import Image

    registered = Image.registered_extensions()  # of all formats, including those not used yet
    return tuple(sorted(ending for ending, kind in registered.items() if kind in Image.OPEN))


def _refuse_splits(root, classes):
    splits = [name for name in classes if name.lower() in _SPLITS]
    nested = [name for name in splits if any(entry.is_dir() for entry in (root / name).iterdir())]
    if splits == classes or len(nested) > 1:
        one = nested[0] if nested else splits[0]
        raise InputError(
            f"Image folder {str(root)!r} holds {listed(splits, _MOST_NAMED)}, which are parts of a data set and not "
            f"classes; list one of them, image_folder({str(root / one)!r}), with one folder per class inside."
        )


def _files(folder):
    """List the files below a folder, sorted, without hidden files and folders and without any folder twice."""
    found, seen = [], {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(parent, name))
            # A link to a parent folder would add the files of other classes, and those of this one again.
            loop = os.path.realpath(parent).startswith(os.path.join(real, ""))
            if not name.startswith(".") and real not in seen and not loop:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        found += [Path(parent, n) for n in names if not n.startswith(".")]
    return [str(file) for file in sorted(found)]


def as_indexable(dataset: Any, column: str | None = None, label: str | None = None) -> "IndexableDataset":
    """Wrap a dataset so that scikit-learn can split it without reading its samples.

    Parameters
    ----------
    dataset : torch map-style ``Dataset``, Hugging Face ``Dataset``, or any object with ``len`` and ``[int]``
        Items are samples, ``(sample, label)`` tuples, or dicts.
    column : str, default=None
        For dict items, the key of the sample. By default, for a Hugging Face dataset, the only column besides the
        label, else the only image column, else the only text column.
    label : str, default=None
        For dict items, the key of the label. By default ``"label"``, ``"labels"`` or the only ``ClassLabel``
        column of a Hugging Face dataset.

    Returns
    -------
    IndexableDataset
        One-dimensional: slices, integer arrays and masks give a view, an integer gives the sample.

    Raises
    ------
    InputError
        If the dataset cannot be indexed, or a column does not exist or is ambiguous.

    Examples
    --------
    >>> from faast_sklearn.inputs.datasets import as_indexable
    >>> pairs = [("good", 1), ("bad", 0), ("fine", 1)]
    >>> X = as_indexable(pairs)
    >>> X[[2, 0]][0], X.labels().tolist()
    ('fine', [1, 0, 1])
    """
    if isinstance(dataset, IndexableDataset):
        return dataset
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")) or isinstance(dataset, Mapping):
        raise InputError(
            f"{type(dataset).__name__} cannot be indexed by position; "
            + ("choose one split of it, such as dataset['train']." if isinstance(dataset, Mapping) else _READ_ONCE)
        )
    if is_hf_dataset(dataset):
        column, label = _hf_columns(dataset, column, label)
    return IndexableDataset(dataset, np.arange(len(dataset)), column, label)


_READ_ONCE = (
    "an iterator can be read only once and in its own order, so it works in fit and partial_fit but not where "
    "samples are counted or sliced (predict, score, cross-validation). Pass a list, an array or a map-style dataset."
)


def is_hf_dataset(X: Any) -> bool:
    """Whether X is a Hugging Face dataset, map-style or streaming, without importing that library."""
    return hasattr(X, "column_names") and hasattr(X, "features") and hasattr(X, "select_columns")


def is_dataset(X: Any) -> bool:
    """Whether X is a dataset that gives samples, possibly with labels, by position."""
    if is_hf_dataset(X):
        return hasattr(type(X), "__len__")  # a streaming one has none
    return isinstance(X, IndexableDataset) or (
        isinstance(X, torch.utils.data.Dataset) and hasattr(type(X), "__len__") and not isinstance(X, Mapping)
    )


def is_class_label(dataset: Any, name: Any) -> bool:
    """Whether a column of a Hugging Face dataset is a ``ClassLabel``, which holds class numbers."""
    return type((dataset.features or {}).get(name)).__name__ == "ClassLabel"


def refuse_unlabelled(labels: Any, name: Any) -> None:
    """Raise InputError for -1, which means "no label" in a ``ClassLabel`` column of a Hugging Face dataset."""
    without = np.flatnonzero(np.asarray(labels) == -1)
    if len(without):
        raise InputError(
            f"{name}[{without[0]}] is -1, which means 'unlabelled' in a ClassLabel column ({len(without)} samples); "
            f"drop such samples, as in dataset.filter(lambda row: row[{name!r}] >= 0)."
        )


def labelled_batches(stream: Any) -> Iterator[Any]:
    """Yield batches of samples and labels from a streaming Hugging Face dataset.

    Raises
    ------
    InputError
        If the column of the samples or of the labels is unknown, or a label is missing.
    """
    features = stream.features
    if features is None:
        raise InputError(
            f"X is a {type(stream).__name__} that does not say what its columns are; pass batches of two of them, "
            "((rows['text'], rows['label']) for rows in X.iter(256))."
        )
    column, label = _hf_columns(stream, None, None)
    if label is None:
        raise InputError(
            f"X has no label column among {list(features)}; pass batches, ((rows[{column!r}], rows['LABEL']) for rows "
            "in X.iter(256))."
        )
    for rows in stream.iter(256):
        if is_class_label(stream, label):
            refuse_unlabelled(rows[label], label)
        if isinstance(rows[label][0], (list, np.ndarray)):  # it streams batches already
            yield from zip(rows[column], rows[label], strict=True)
        else:
            yield rows[column], rows[label]


def _hf_columns(dataset, column, label):
    names, features = list(dataset.column_names), dataset.features
    for name in (column, label):
        if name is not None and name not in names:
            raise InputError(f"The dataset has no column {name!r}; its columns are {names}.")
    if label is None:
        classes = [n for n in names if is_class_label(dataset, n) and n != column]
        usual = [n for n in ("label", "labels") if n in names and n != column]
        label = usual[0] if usual else classes[0] if len(classes) == 1 else None
    if column is None:
        rest = [n for n in names if n != label]
        images = [n for n in rest if type(features[n]).__name__ == "Image"]
        texts = [n for n in rest if getattr(features[n], "dtype", None) in ("string", "large_string")]
        column = next((kind[0] for kind in (rest, images, texts) if len(kind) == 1), None)
        if column is None:
            raise InputError(
                f"Which column holds the samples? The dataset has {names}; "
                "pass dataset['NAME'], or as_indexable(dataset, column='NAME')."
            )
    return column, label


def _narrowed(dataset, column):
    # Leave the other columns of a Hugging Face dataset undecoded; a custom transform may need them all.
    if is_hf_dataset(dataset) and dataset.format["type"] != "custom":
        return dataset.select_columns([column])
    return dataset


class IndexableDataset:
    """A one-dimensional, lazy view of a dataset; made by :func:`as_indexable`.

    A slice selects positions and reads nothing. An integer reads one sample. Threads take turns to read,
    because datasets are written for worker processes and may not be thread-safe.
    """

    ndim = 1

    def __init__(self, dataset: Any, positions: Any, column: Any = None, label: Any = None, lock: Any = None) -> None:
        self.dataset = dataset
        self.positions = positions
        self.column = column
        self.label = label
        self._lock = threading.Lock() if lock is None else lock
        self._reader = _narrowed(dataset, column)

    @property
    def shape(self) -> tuple:
        """``(n_samples,)``, so that scikit-learn slices by array and not item by item."""
        return (len(self.positions),)

    def __len__(self):
        return len(self.positions)

    def __repr__(self):
        return f"IndexableDataset({type(self.dataset).__name__}, n_samples={len(self)}, column={self.column!r})"

    def __getstate__(self):
        return {**self.__dict__, "_lock": None, "_reader": None}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock(), _reader=_narrowed(state["dataset"], state["column"]))

    def __getitem__(self, key):
        if isinstance(key, tuple):  # scikit-learn asks for X[rows, ...]
            if len(key) != 2 or key[1] is not Ellipsis:
                raise IndexError("an IndexableDataset has one axis")
            key = key[0]
        if isinstance(key, (list, tuple)) and len(key) == 0:
            key = slice(0, 0)
        positions = self.positions[key]
        if np.ndim(positions):
            return IndexableDataset(self.dataset, positions, self.column, self.label, self._lock)
        with self._lock:
            item = self._reader[int(positions)]
        if self.column is not None:
            return item[self.column]
        if isinstance(item, Mapping):
            raise InputError(
                f"Items of the dataset are dicts with keys {list(item)}; say which is the sample and which the label: "
                "as_indexable(dataset, column='KEY', label='KEY')."
            )
        return item[0] if isinstance(item, tuple) else item

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def labels(self) -> np.ndarray:
        """Read the labels of the samples in view.

        Returns
        -------
        ndarray, shape (n_samples,)
            From the label column or the dataset's ``targets``, if there are any, without reading the
            samples; otherwise every item is read once.

        Raises
        ------
        InputError
            If the dataset has no labels.
        """
        known = self._known_labels(self.dataset)
        if known is not None:
            return np.asarray(known)[self.positions]
        return np.asarray([self._label_of(position) for position in self.positions.tolist()])

    def _known_labels(self, dataset):
        if is_hf_dataset(dataset):
            if self.label is None:
                raise InputError(
                    f"The dataset has no label column among {list(dataset.column_names)}; "
                    "pass y, or as_indexable(dataset, label='NAME')."
                )
            found = dataset.with_format("numpy", columns=[self.label])[self.label][:]
            if is_class_label(dataset, self.label):
                refuse_unlabelled(found[self.positions], self.label)
            return found
        if isinstance(dataset, torch.utils.data.TensorDataset) and len(dataset.tensors) == 2:
            return dataset.tensors[1].cpu()
        if isinstance(dataset, torch.utils.data.Subset):
            whole = self._known_labels(dataset.dataset)
            return None if whole is None else np.asarray(whole)[list(dataset.indices)]
        targets = getattr(dataset, "targets", None)
        # With a target transform, items yield other labels than those in targets.
        if targets is None or getattr(dataset, "target_transform", None) is not None or len(targets) != len(dataset):
            return None
        return targets

    def _label_of(self, position):
        with self._lock:
            item = self.dataset[position]
        if isinstance(item, Mapping) and self.label is not None:
            found = item[self.label]
        elif isinstance(item, tuple) and len(item) >= 2:
            found = item[1]
        else:
            raise InputError(
                "The dataset yields samples without labels, so pass y (or as_indexable(dataset, label='KEY') "
                "for a dataset of dicts)."
            )
        return found.item() if isinstance(found, (torch.Tensor, np.generic)) and np.ndim(found) == 0 else found
