"""Estimators of scikit-learn, written by skops; estimators of this library inside them are taken out and put back.

skops trusts scikit-learn's estimators and arrays. Each estimator of this library in a ``ColumnTransformer`` or a fitted
search is replaced by a mark that skops knows, so that skops need not trust this library.
"""

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import Bunch

from faast_sklearn.errors import SavedFileError
from faast_sklearn.optional import require
from faast_sklearn.persistence.arrays import Array

__all__ = ["read_foreign", "write_foreign"]

_MARK = "faast_sklearn"
# Types in searches and calibrated classifiers that skops does not list: plain containers, whose content it checks.
_HOLDERS = [
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.calibration._TemperatureScaling",
    "sklearn.compose._column_transformer._RemainderColsList",
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.model_selection._split.KFold",
    "sklearn.model_selection._split.StratifiedKFold",
    "sklearn.utils._metadata_requests.MetadataRequest",
    "sklearn.utils._metadata_requests.MethodMetadataRequest",
]


def write_foreign(estimator: Any, out: Any, is_ours: Callable[..., Any]) -> tuple:
    """Write an estimator with skops.

    Parameters
    ----------
    estimator : estimator
        Of scikit-learn.
    out : TensorWriter
    is_ours : callable
        Returns whether a part is to be taken out.

    Returns
    -------
    name : str
        Name of the tensor that holds its bytes.
    parts : list of estimator
        The parts that were taken out.

    Raises
    ------
    SavedFileError
        If skops cannot write the rest, or does not know that it is safe.
    MissingDependencyError
        If skops is not installed.
    """
    skops = require("skops.io", "skops")
    parts = []

    def mark(part):
        parts.append(part)
        return FunctionTransformer(kw_args={_MARK: len(parts) - 1})

    marked = _exchanged(estimator, is_ours, mark, {})
    try:
        data = skops.dumps(marked)
        unknown = [name for name in skops.get_untrusted_types(data=data) if name not in _HOLDERS]
    except Exception as error:  # the state of an estimator may raise anything
        raise SavedFileError(f"{type(estimator).__name__} cannot be saved with skops: {error}") from error
    if unknown:
        raise SavedFileError(
            f"{type(estimator).__name__} holds types that skops does not list as safe, {unknown[:3]}; save it with "
            "skops.io.dump, and name them as trusted when you load it."
        )
    return out.put(torch.from_numpy(np.frombuffer(data, np.uint8).copy())), parts


def read_foreign(name: str, source: Any, parts: list) -> Any:
    """Read an estimator that :func:`write_foreign` wrote.

    Parameters
    ----------
    name : str
    source : TensorReader
    parts : list of estimator
        The parts to put back.

    Raises
    ------
    SavedFileError
    MissingDependencyError
        If skops is not installed.
    """
    skops = require("skops.io", "skops")
    data = Array("n", (torch.uint8,)).unpack(name, source)
    try:
        marked = skops.load(io.BytesIO(data.numpy().tobytes()), trusted=_HOLDERS)
        return _exchanged(marked, _is_mark, lambda mark: parts[mark.kw_args[_MARK]], {})
    except Exception as error:  # a forged file may raise anything
        raise SavedFileError(f"a step that skops wrote cannot be read: {error}") from error


def _is_mark(thing):
    return type(thing) is FunctionTransformer and isinstance(thing.kw_args, dict) and _MARK in thing.kw_args


def _exchanged(thing, chosen, exchange, done):
    """Return an object with all chosen parts exchanged, each once; if it has none, return the object itself."""
    if id(thing) in done:
        return done[id(thing)][0]
    found = thing

    def inner(part):
        return _exchanged(part, chosen, exchange, done)

    if chosen(thing):
        found = exchange(thing)
    elif isinstance(thing, BaseEstimator) or (_of_scikit_learn(thing) and hasattr(thing, "__dict__")):
        state = {name: inner(part) for name, part in vars(thing).items()}
        if any(state[name] is not part for name, part in vars(thing).items()):
            found = copy.copy(thing)
            found.__dict__.update(state)
    elif type(thing) in (dict, Bunch):
        parts = {key: inner(part) for key, part in thing.items()}
        if any(parts[key] is not part for key, part in thing.items()):
            found = parts if type(thing) is dict else Bunch(**parts)
    elif type(thing) in (list, tuple):
        parts = [inner(part) for part in thing]
        if any(new is not part for new, part in zip(parts, thing, strict=True)):
            found = type(thing)(parts)
    elif isinstance(thing, np.ndarray) and thing.dtype == object:
        parts = [inner(part) for part in thing.ravel()]
        if any(new is not part for new, part in zip(parts, thing.ravel(), strict=True)):
            found = np.empty(thing.shape, dtype=object)
            found.ravel()[:] = parts
    done[id(thing)] = (found, thing)  # keeps thing alive, so that its id is not reused
    return found


def _of_scikit_learn(thing):
    # Some objects that hold estimators are not estimators, such as the pairs of a calibrated classifier.
    return type(thing).__module__.startswith("sklearn.") and not isinstance(thing, (type, Bunch))
