"""Samples with their labels and weights, read as batches of features."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from faast_sklearn.errors import InputError
from faast_sklearn.features.readers import FeatureReader
from faast_sklearn.inputs.datasets import is_dataset
from faast_sklearn.inputs.labels import check_labels, row_weights
from faast_sklearn.inputs.samples import count_samples, iter_chunks

__all__ = ["LabelledRows", "LabelledSamples", "labelled_samples"]


class LabelledRows(NamedTuple):
    """Features, labels and weights of some samples: what moments are computed from.

    Parameters
    ----------
    rows : ndarray or torch.Tensor of shape (b, d)
        Features, on the device where moments are kept.
    codes : ndarray of int, shape (b,)
        Positions of the labels in ``classes``.
    classes : ndarray of shape (c,)
        Sorted labels of all samples; some may have no row here.
    weight : ndarray of shape (b,), or None
        Not negative; None if all are 1.
    positions : ndarray of int, shape (b,)
        Positions of the rows among the samples.
    """

    rows: Any
    codes: np.ndarray
    classes: np.ndarray
    weight: np.ndarray | None
    positions: np.ndarray


@dataclass(frozen=True, eq=False)
class LabelledSamples:
    """Samples, labels and weights, checked; nothing has been read yet.

    Parameters
    ----------
    reader : FeatureReader
    samples : sequence of n samples
        As the reader's ``samples`` returned them.
    codes, classes, weight
        As in :class:`LabelledRows`, of all samples.
    again : bool
        Whether another call may read the same samples again; False for those of a stream.
    """

    reader: FeatureReader
    samples: Any
    codes: np.ndarray
    classes: np.ndarray
    weight: np.ndarray | None
    again: bool

    def __len__(self):
        return len(self.samples)

    def batches(self) -> Iterator[LabelledRows]:
        """Yield :class:`LabelledRows` with each sample once, in the order in which the backbone runs them."""
        with closing(self.reader.stream(self.samples)) as stream:
            for positions, rows in stream:
                weight = None if self.weight is None else self.weight[positions]
                yield LabelledRows(rows, self.codes[positions], self.classes, weight, positions)

    def key(self) -> bytes:
        """Return a key that is equal only for the same rows with the same labels and weights."""
        key = hashlib.blake2b(digest_size=16)
        told = (self.reader.digest(self.samples), self.classes.dtype.str, self.classes.tolist(), self.weight is None)
        key.update(repr(told).encode())
        key.update(np.ascontiguousarray(self.codes, dtype=np.int64).data)
        if self.weight is not None:
            key.update(np.ascontiguousarray(self.weight).data)
        return key.digest()


def labelled_samples(
    reader: FeatureReader,
    X: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    class_weight: dict | Literal["balanced"] | None = None,
    stream: bool = False,
) -> Iterator[LabelledSamples]:
    """Yield labelled samples: all at once if X is sized, batch by batch if it can be read only once.

    Parameters
    ----------
    reader : FeatureReader
    X, y, sample_weight
        As estimators take them.
    class_weight : dict, "balanced" or None, default=None
    stream : bool, default=False
        Whether samples of other classes may follow or have come before.

    Yields
    ------
    LabelledSamples

    Raises
    ------
    InputError
        If samples, labels and weights differ in number, or any of them is invalid; the message says which.
    """
    once = count_samples(X) is None
    if once and class_weight == "balanced" and y is None:
        raise InputError(
            "class_weight='balanced' needs all labels at once, and X yields them batch by batch; pass a dict of "
            "weights, or let it yield (X, y, sample_weight)."
        )
    stream = stream or (once and not is_dataset(X))
    for chunk, labels, weight in iter_chunks(X, y, sample_weight):
        samples = reader.samples(chunk)
        labels = check_labels(labels, "y")
        if len(labels) != len(samples):
            raise InputError(f"X has {len(samples)} samples and y has {len(labels)}; pass one label for each.")
        classes, codes = np.unique(labels, return_inverse=True)
        weight = row_weights(weight, len(samples), class_weight, classes, codes, stream)
        yield LabelledSamples(reader, samples, codes, classes, weight, not once)
