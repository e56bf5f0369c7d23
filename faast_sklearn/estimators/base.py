"""Samples to features: what every estimator with a frozen backbone shares in front of the moments."""

import copy
import hashlib
import os
import warnings
from contextlib import closing

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils.validation import validate_data

from faast_sklearn.backbones import Backbone, as_handle
from faast_sklearn.backbones.device import moments_device, resolve_device, resolve_dtype
from faast_sklearn.backbones.fingerprints import fingerprint
from faast_sklearn.backbones.identity import same_weights, weight_summary
from faast_sklearn.errors import FaastError, InputError, NonFiniteError, SavedFileWarning, shortened
from faast_sklearn.features.cache import as_cache
from faast_sklearn.features.cache.sample_keys import backbone_fingerprint, digest_of_rows, sample_keys
from faast_sklearn.features.cache.stream import stream_cached
from faast_sklearn.features.loop import check_batch_size, stream_features
from faast_sklearn.features.progress import Report, check_verbosity
from faast_sklearn.inputs.columns import vectors_in, without_arrow
from faast_sklearn.inputs.datasets import is_dataset
from faast_sklearn.inputs.samples import as_samples, count_samples, is_pil, refuse_single

__all__ = ["FrozenBackboneMixin"]

# Rows of ready features handled at once, where X is far larger than what is computed from it.
_SLICE_ROWS = 16384

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class _PlainSource:
    """Rows that are features already, as scikit-learn passes them."""

    def __init__(self, estimator, reset):
        self.estimator, self.reset = estimator, reset
        device = estimator.device
        automatic = device is None or (isinstance(device, str) and device == "auto")
        self.device = resolve_device("cpu" if automatic else device)
        # Refused also where there is no backbone to run in it.
        resolve_dtype(getattr(estimator, "dtype", "auto"), self.device)

    def samples(self, X):
        """Return X as a finite two-dimensional array or tensor."""
        refuse_single(X, "tensor")
        if isinstance(X, torch.Tensor):
            X = self._tensor(X)
        elif is_dataset(X):
            raise InputError(
                f"X is a {type(X).__name__}, whose items a backbone reads; ready features are one array of shape "
                "(n_samples, d), such as np.stack([x for x in as_indexable(X)])."
            )
        elif hasattr(X, "__iter__") and not any(hasattr(X, name) for name in ("__getitem__", "__array__", "shape")):
            raise InputError(
                f"X is a {type(X).__name__}, read once and in its own order, so it works in fit and partial_fit "
                "but not here; pass an array of shape (n_samples, d)."
            )
        else:
            X = _validated_table(self.estimator, X, self.reset, (np.float64, np.float32, np.float16))
        _refuse_non_finite(X, type(self.estimator).__name__)
        self.reset = False
        return X

    def _tensor(self, X):
        if X.ndim != 2 or X.dtype not in _FLOATS or not len(X):
            raise InputError(
                f"X is a {X.dtype} tensor of shape {tuple(X.shape)}; expected floating features (n_samples, d)."
            )
        _check_columns(self.estimator, X.shape[1], self.reset)
        X = X.detach()
        return X.to(moments_device(X.device))

    def stream(self, samples, report):
        """Yield indices and features of consecutive rows, on the device where moments are kept."""
        device = moments_device(self.device)
        for start in range(0, len(samples), _SLICE_ROWS):
            rows = samples[start : start + _SLICE_ROWS]
            if isinstance(rows, np.ndarray) and device.type != "cpu":
                rows = torch.tensor(np.ascontiguousarray(rows), device=device)
            report.add(len(rows))
            yield np.arange(start, start + len(rows)), rows

    def check_width(self, n_features):
        """Accept the width: that of X was checked with its columns."""

    def digest(self, samples):
        """Return a digest of the rows; equal ones are the same rows in the same order."""
        return digest_of_rows(samples)


class _BackboneSource:
    """Raw samples that a frozen backbone turns into features."""

    def __init__(self, estimator, reset):
        handle = as_handle(estimator.backbone)
        if reset:
            estimator._forget_saved_backbone()
        self.backbone = estimator._open_as_saved()
        self.device = self.backbone.device
        # A module in memory may give another width for other samples, so only its own batches tell.
        self.n_features = self.backbone.n_features if handle.module is None else None
        self.estimator, self.reset = estimator, reset
        self.cache = as_cache(getattr(estimator, "cache", None))
        self._in_memory = handle.module is not None
        self._keys = (None, None)  # samples and their keys
        if reset and "n_features_in_" in estimator.__dict__:
            del estimator.n_features_in_
        self.check_width(self.n_features)

    def check_width(self, n_features):
        """Hold the number of features against what was learnt; a module in memory tells it with its first batch.

        To be called by whoever learns from what is remembered of the same samples, instead of streaming them.
        """
        estimator = self.estimator
        if n_features is None:
            return
        if self.reset:
            estimator._n_features = n_features
            # Where X is a table its own columns count, as everywhere in scikit-learn.
            estimator.__dict__.setdefault("n_features_in_", n_features)
        elif n_features != estimator._n_features:
            raise InputError(
                f"the backbone now gives {n_features} features, but {type(estimator).__name__} learnt from "
                f"{estimator._n_features}; use the backbone it was fitted with."
            )

    def samples(self, X):
        """Return X as indexable samples of what the backbone reads."""
        if self.backbone.modality == "tensor":
            _refuse_unread(X, self.backbone)
        if self.backbone.modality == "tensor" and _is_table(X):
            X = _validated_table(self.estimator, X, self.reset, "numeric")
            _refuse_non_finite(X, type(self.estimator).__name__)
        elif self.backbone.modality == "tensor" and isinstance(X, torch.Tensor) and X.ndim == 2:
            _check_columns(self.estimator, X.shape[1], self.reset)
        return as_samples(X, self.backbone.modality)

    def stream(self, samples, report):
        """Yield indices and features batch by batch, on the device where moments are kept."""
        device = moments_device(self.device)
        size = self.estimator.batch_size
        if self.cache is None:
            stream = stream_features(self.backbone, samples, batch_size=size, report=report)
        else:
            keys = self.keys(samples)
            stream = stream_cached(self.cache, keys, self.backbone, samples, batch_size=size, report=report)
        with closing(stream):
            for indices, features in stream:
                self.check_width(features.shape[1])
                self.reset = False
                yield indices, features.to(device)

    def keys(self, samples):
        """Return the cache key of each sample; each sample is read for it."""
        if self._keys[0] is not samples:
            fingerprint = backbone_fingerprint(self.backbone, self._in_memory)
            self._keys = (samples, sample_keys(samples, self.backbone, fingerprint))
        return self._keys[1]

    def digest(self, samples):
        """Return a digest of samples and backbone; equal ones have the same features in the same order."""
        return hashlib.sha256(b"".join(self.keys(samples))).hexdigest()

    def probe(self, samples):
        """Return the number of features, from the first sample if the backbone cannot say."""
        if self.n_features is None:
            with Report() as report:
                ((_, features),) = self.stream(_First(samples), report)
            self.n_features = features.shape[1]
        return self.n_features


def _refuse_unread(X, backbone):
    """Raise InputError if X holds texts, paths or images, and the backbone is a module that reads arrays."""
    known = isinstance(X, (list, tuple, np.ndarray)) or any(hasattr(X, name) for name in ("to_numpy", "column_names"))
    if not known or getattr(X, "shape", None) == () or is_dataset(X):
        return
    first = without_arrow(X[:1])
    first = first.to_numpy() if hasattr(first, "to_numpy") else first
    if not isinstance(first, (list, tuple, np.ndarray)) or not len(first):
        return
    sample = first[0]
    if isinstance(first, np.ndarray) and first.shape[1:] == (1,):  # a table of one column
        sample = sample[0]
    if isinstance(sample, (str, bytes, os.PathLike)) or is_pil(sample):
        kind = "PIL image" if is_pil(sample) else type(sample).__name__
        remedy = getattr(backbone, "remedy", "a backbone that reads such")
        raise InputError(f"X holds {kind}s, and {type(backbone.module).__name__} reads arrays; pass {remedy}.")


class _First:
    """The first of some samples, alone."""

    def __init__(self, samples):
        self._samples = samples

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return self._samples[0]


def _is_table(X):
    """Whether X can only be rows of numbers: it has at most two axes and is no list of arrays or tensors."""
    if isinstance(X, torch.Tensor) or is_dataset(X):
        return False
    if hasattr(X, "shape"):
        return len(X.shape) <= 2
    return hasattr(X, "__array__") or (isinstance(X, (list, tuple)) and not (len(X) and hasattr(X[0], "shape")))


def _check_columns(estimator, n_columns, reset):
    """Do for a tensor what scikit-learn does for a table."""
    if reset:
        estimator.n_features_in_ = n_columns
        estimator.__dict__.pop("feature_names_in_", None)
    elif n_columns != estimator.n_features_in_:
        raise InputError(
            f"X has {n_columns} features, but {type(estimator).__name__} is expecting {estimator.n_features_in_} "
            "features as input."
        )


def _validated_table(estimator, X, reset, dtype):
    """Check a table as scikit-learn does, with its messages; finiteness apart, which names the row."""
    refuse_single(X, "tensor")
    X = vectors_in(X)
    _refuse_kinds(X)
    try:
        return validate_data(estimator, X, reset=reset, dtype=dtype, ensure_all_finite=False)
    except (ValueError, OverflowError) as error:
        # What is no number at all stays scikit-learn's TypeError, as it demands of its estimators.
        message = str(error)
        raise InputError(message.partition("\n")[0] + "." if "Complex data" in message else message) from error


def _refuse_kinds(X):
    """Raise InputError for columns that numpy would turn into numbers without a word, or that it cannot."""
    if isinstance(X, np.matrix):
        raise InputError("X is a np.matrix; pass np.asarray(X).")
    dtypes = list(X.dtypes) if hasattr(X, "columns") else [getattr(X, "dtype", None)]
    kinds = {getattr(dtype, "kind", "") for dtype in dtypes}
    if kinds & {"m", "M"}:
        raise InputError("X holds dates or times; say what they should count, such as (X - X.min()) / one day.")
    if "V" in kinds:
        raise InputError(f"X is a structured array of dtype {X.dtype}; pass one array of numbers, (n_samples, d).")


def _refuse_non_finite(X, name):
    # A sum is finite only if all terms are, and it is one pass that allocates nothing.
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = X.dtype in (np.float16, torch.float16, torch.bfloat16)
        total = X.sum(dtype=(np.float32 if isinstance(X, np.ndarray) else torch.float32) if narrow else None)
    if np.isfinite(float(total)):
        return
    bad = ~(np.isfinite(X) if isinstance(X, np.ndarray) else torch.isfinite(X).cpu().numpy())
    if not bad.any():
        return
    row, column = (int(i[0]) for i in np.nonzero(bad))
    value = "NaN" if np.isnan(float(X[row, column])) else "infinity"
    raise NonFiniteError(
        f"Input X contains {value}: {name} found it in row {row}, column {column} "
        f"({int(bad.any(axis=1).sum())} of {len(bad)} rows are not finite). Drop or impute such rows."
    )


def _computes(opened):
    """Return a digest of what an open backbone or language model computes."""
    if isinstance(opened, Backbone):
        return opened.fingerprint()
    return fingerprint(opened.module, opened.tokenizer)


class FrozenBackboneMixin:
    """What every estimator with a ``backbone`` parameter shares.

    The estimator keeps what it was given, opens it when there is work, and shares it with its copies: neither
    ``clone`` nor ``copy.deepcopy`` ever copies a module.
    """

    def _open_source(self, reset):
        # Refused also where there is no backbone to use them.
        as_cache(getattr(self, "cache", None))
        check_batch_size(getattr(self, "batch_size", "auto"))
        check_verbosity(getattr(self, "verbose", 0))
        if self.backbone is None:
            return _PlainSource(self, reset)
        return _BackboneSource(self, reset)

    def _open_backbone(self):
        return as_handle(self.backbone).open(self.device, self.dtype)

    def _open_as_saved(self):
        """Open the backbone; warn, once, if its weights are not those that a saved file was learnt with."""
        opened = self._open_backbone()
        saved = self.__dict__.get("_saved_backbone")
        if saved is not None and "_compared_backbone" not in self.__dict__:
            self._compared_backbone = True
            found = weight_summary(opened)
            if found is not None and not same_weights(saved, found):
                warnings.warn(
                    f"the weights of this backbone are not those that the {type(self).__name__} was saved with, so its "
                    "answers mean nothing; use the same backbone and revision, or fit again.",
                    SavedFileWarning,
                    stacklevel=4,
                )
        return opened

    # Parameters that decide what samples are turned into, so that statistics of different values do not add up.
    _decides_statistics = ("backbone", "dtype")

    def _settings_of_statistics(self):
        return {name: getattr(self, name) for name in self._decides_statistics}

    def _refuse_changes(self, *names):
        """Raise InputError if a parameter is not what it was when something was learnt, by default any of them."""
        before, now = self.__dict__.get("_learnt_with", {}), self._settings_of_statistics()
        for name in names or before:
            if name in before and not self._is_as_before(name, before[name], now[name]):
                raise InputError(
                    f"{name} was {shortened(before[name], 120)} when this {type(self).__name__} learnt and is "
                    f"{shortened(now[name], 120)} now, so that what was learnt does not fit; set it back "
                    "with set_params, or call fit."
                )

    def _is_as_before(self, name, before, now):
        if before is now:
            return True
        if name == "dtype":
            device = resolve_device(self.device)
            return resolve_dtype(before, device) == resolve_dtype(now, device)
        if name != "backbone" or before is None or now is None:
            return before == now
        if as_handle(before) == as_handle(now):
            return True
        there = copy.copy(self)
        there.backbone = before
        try:
            return _computes(self._open_backbone()) == _computes(there._open_backbone())
        except FaastError:
            return False  # one of them is not there any more

    def _forget_saved_backbone(self):
        for name in ("_saved_backbone", "_compared_backbone"):
            self.__dict__.pop(name, None)

    def _reads_rows(self):
        """Whether X may be a plain two-dimensional array: without a backbone, or with a module that takes arrays."""
        # A handle of a named model has no module.
        return self.backbone is None or isinstance(getattr(self.backbone, "module", self.backbone), torch.nn.Module)

    def _report(self, X, description):
        return Report(verbose=self.verbose, description=description, total=count_samples(X))

    def __sklearn_clone__(self):
        params = {
            name: value if name == "backbone" else clone(value, safe=False)
            for name, value in self.get_params(deep=False).items()
        }
        twin = type(self)(**params)
        for name in ("_metadata_request", "_sklearn_output_config"):
            if name in self.__dict__:
                setattr(twin, name, copy.deepcopy(self.__dict__[name]))
        return twin

    def __deepcopy__(self, memo):
        twin = copy.copy(self)
        memo[id(self)] = twin
        for shared in (self.backbone, self.__dict__.get("_learnt_with", {}).get("backbone")):
            memo[id(shared)] = shared
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin
