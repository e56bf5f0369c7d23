"""Learning from Dask collections: workers compute moments of their partitions; one sum of them is solved once.

It needs the extra ``[dask]``. Tasks run where ``compute`` would run them: on the active distributed client or, without
one, on the scheduler that ``dask.config.set(scheduler=...)`` names.
"""

import contextlib
import functools
import threading
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from faast_sklearn.errors import FaastError, InputError
from faast_sklearn.estimators.sharing import (
    LocalLearner,
    adopt,
    balanced_weights,
    known_statistics,
    label_counts,
    predictor,
)
from faast_sklearn.optional import explain_imports

with explain_imports("dask", "faast-sklearn[dask]"):
    import dask
    import dask.array
    import dask.bag
    from dask.base import get_scheduler
    from dask.diagnostics import ProgressBar
    from dask.system import CPU_COUNT

__all__ = ["decision_function", "fit", "partial_fit", "predict", "predict_proba"]

# Number of moments that one task adds up.
_SPLIT_EVERY = 8


def fit(estimator: Any, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
    """Forget everything and learn from labelled samples in the partitions of Dask collections.

    Each worker computes the moments of its partitions and adds them up. These sums are added across workers, and only
    the total returns to this process. The solve, on first use, gives the same result as ``estimator.fit`` on the same
    features in one process, up to rounding and for any partitions.

    Parameters
    ----------
    estimator : FaastClassifier or FaastSeq2Seq
        Fitted in place. Name its backbone by a spec, so that each worker process opens its own, once.
    X : dask array, dataframe, series or bag of samples
        Its partitions may be anything that ``estimator.fit`` takes: features (n, d), also in several chunks of columns;
        images (n, h, w, c); a series, one-column frame or bag of texts or of paths that workers can read; a bag of
        arrays.
    y : dask array, series or bag, or array-like, default=None
        Labels or target texts, with the partitions of X. If X is an array of known chunks, y may also be an array-like
        or a dask array in other chunks. None if X is a bag of ``(x, y)`` or ``(x, y, sample_weight)`` or, for
        FaastSeq2Seq, holds plain texts.
    sample_weight : like y, default=None
        Weight of each sample, for FaastClassifier only.

    Returns
    -------
    estimator
        The same object, in the state that ``fit`` gives, for any scheduler.

    Raises
    ------
    InputError, NonFiniteError, BackboneError, MissingDependencyError, DeviceError, OutOfMemoryError
        As in ``fit``; if a sample is to blame, the message names its partition, counted from 0. The estimator is then
        as it was before the call.
    ValueError
        If a parameter is invalid.

    Notes
    -----
    A partition may be empty, have a single class, or have only samples of weight zero. ``class_weight="balanced"``
    takes a first pass to count labels, which computes the partitions of X only if these hold the labels. ``verbose=1``
    shows Dask's progress bar over partitions.

    Each partition costs as much as ``partial_fit`` on it. Its moments take ``8 d²`` bytes, or 8 d bytes per row if it
    has fewer than d rows. At any time, workers hold about one sum per worker and one result per thread. Sums move
    between workers only after all partitions are done, so that after the loss of a worker, only its own partitions are
    learnt again.

    Examples
    --------
    >>> import dask, numpy as np
    >>> import dask.array as da
    >>> from sklearn.datasets import load_digits
    >>> import faast_sklearn.dask
    >>> from faast_sklearn import FaastClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> with dask.config.set(scheduler="synchronous"):
    ...     clf = faast_sklearn.dask.fit(FaastClassifier(), da.from_array(X, chunks=(500, 32)), y)
    >>> bool(np.allclose(clf.coef_, FaastClassifier().fit(X, y).coef_, rtol=1e-9))
    True
    """
    return _learn(estimator, X, y, sample_weight, reset=True)


def partial_fit(estimator: Any, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None) -> Any:
    """Learn more labelled samples in the partitions of Dask collections.

    Parameters
    ----------
    estimator, X, y, sample_weight
        As in :func:`fit`; the estimator may be fitted, with or without Dask, or not fitted.
    classes : array-like, default=None
        Labels to list in ``classes_`` from now on, even if no sample has them.

    Returns
    -------
    estimator
        The same object.

    Raises
    ------
    ValueError
        Also for ``class_weight="balanced"``, which needs all labels at once.
    InputError, NonFiniteError, BackboneError, MissingDependencyError, DeviceError, OutOfMemoryError
        As in :func:`fit`.

    Examples
    --------
    >>> import dask.array as da
    >>> from sklearn.datasets import load_digits
    >>> import faast_sklearn.dask
    >>> from faast_sklearn import FaastClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = FaastClassifier().fit(X[:997], y[:997])
    >>> faast_sklearn.dask.partial_fit(clf, da.from_array(X[997:], chunks=400), y[997:]).n_samples_seen_
    1797
    """
    reset = not estimator.__sklearn_is_fitted__()
    known_statistics(estimator)  # raises its errors before any sample is read
    return _learn(estimator, X, y, sample_weight, reset=reset, partial=True, classes=classes)


def predict(estimator: Any, X: Any) -> Any:
    """Predict lazily, partition by partition.

    Parameters
    ----------
    estimator : FaastClassifier or FaastSeq2Seq
        Fitted, with or without Dask. It is solved in this call; workers receive a copy without moments, which holds
        only what prediction needs.
    X : dask array, dataframe, series or bag of samples
        As in :func:`fit`.

    Returns
    -------
    dask array of shape (n,), series with the index of X, or bag
        Lazy, of the kind of X and with its partitions.

    Examples
    --------
    >>> import dask.array as da
    >>> from sklearn.datasets import load_digits
    >>> import faast_sklearn.dask
    >>> from faast_sklearn import FaastClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = FaastClassifier().fit(X, y)
    >>> found = faast_sklearn.dask.predict(clf, da.from_array(X, chunks=(500, 64)))
    >>> found.numblocks, round(float((found == y).mean().compute()), 2)
    ((4,), 0.96)
    """
    return _answers(estimator, X, "predict")


def predict_proba(estimator: Any, X: Any) -> Any:
    """Return the calibrated probability of each class, lazily.

    Parameters
    ----------
    estimator : FaastClassifier
    X : as in :func:`predict`

    Returns
    -------
    dask array of shape (n, n_classes), dataframe with a column for each of ``classes_``, or bag of arrays
    """
    return _answers(estimator, X, "predict_proba")


def decision_function(estimator: Any, X: Any) -> Any:
    """Return the score of each class, lazily.

    Parameters
    ----------
    estimator : FaastClassifier
    X : as in :func:`predict`

    Returns
    -------
    dask array of shape (n, n_classes), dataframe with a column for each of ``classes_``, or bag of arrays
        When binary, of shape (n,), a series or a bag of numbers, as the estimator's method returns them.
    """
    return _answers(estimator, X, "decision_function")


def _learn(estimator, X, y, sample_weight, *, reset, partial=False, classes=None):
    partitions = _partitions(X, y, sample_weight)
    weights = None
    if reset and isinstance(getattr(estimator, "class_weight", None), str) and estimator.class_weight == "balanced":
        # Samples are computed only where they hold the labels.
        of_labels = partitions if y is None else [(None, *rest) for _, *rest in partitions]
        counted = [dask.delayed(counts_of_partition, pure=False)(i, *part) for i, part in enumerate(of_labels)]
        weights = balanced_weights(dask.compute(*counted))
    # As a task of its own, the learner is sent to each worker once, and its partitions share a module in memory.
    learner = dask.delayed(LocalLearner.of(estimator, reset=reset, class_weight=weights), pure=False)
    parts = [dask.delayed(moments_of_partition, pure=False)(learner, i, *part) for i, part in enumerate(partitions)]
    client = getattr(get_scheduler(), "__self__", None)
    total = _total(parts, estimator.verbose) if client is None else _total_of_workers(client, parts, estimator.verbose)
    return adopt(estimator, total, reset=reset, partial=partial, classes=classes)


def _total(parts, verbose):
    """Add moments up in a tree, for Dask's local schedulers, which lose no workers."""
    while len(parts) > 1:
        groups = [parts[i : i + _SPLIT_EVERY] for i in range(0, len(parts), _SPLIT_EVERY)]
        parts = [dask.delayed(sum_of_moments, pure=False)(group) for group in groups]
    with ProgressBar() if verbose else contextlib.nullcontext():
        return parts[0].compute()


def _total_of_workers(client, parts, verbose):
    """Add the moments of each worker on that worker as they arrive, and the sums across workers at the end.

    A fixed tree would soon mix moments of several workers, and the loss of one worker would lose work of the others.
    """
    from distributed import as_completed

    futures = client.compute(parts)
    bar = _Bar(futures) if verbose else contextlib.nullcontext()
    finished = as_completed(futures)
    del futures, parts  # a worker keeps a result in memory as long as a future refers to it
    sums, adrift = {}, []
    with bar:
        for batch in finished.batches():
            where, arrived = client.who_has(batch), {}
            while batch:
                future = batch.pop()
                if future.status == "error":
                    future.result()  # raises the worker's error
                worker = next(iter(where.get(future.key, ())), None)
                # If its worker was just lost, Dask computes the result again elsewhere; it is added at the end.
                (adrift if worker is None else arrived.setdefault(worker, [])).append(future)
                del future
            for worker, some in arrived.items():
                if worker in sums:
                    some.append(sums.pop(worker))
                sums[worker] = some[0] if len(some) == 1 else _added(client, some, worker)
            del arrived, some
    level = held = [*sums.values(), *adrift]  # kept until the end, so that losing a worker loses only its own sum
    while len(level) > 1:
        level = [_added(client, level[i : i + _SPLIT_EVERY]) for i in range(0, len(level), _SPLIT_EVERY)]
    total = level[0].result()
    del held
    return total


def _added(client, futures, worker=None):
    where = {} if worker is None else {"workers": [worker], "allow_other_workers": True}
    # These tasks run before others, because they free the memory of the moments that they add up.
    return client.submit(sum_of_moments, futures, pure=False, priority=1, **where)


class _Bar:
    """Dask's text progress bar over futures, in a thread of its own, because the bar blocks its thread."""

    def __init__(self, futures):
        from distributed import progress

        self._thread = threading.Thread(
            target=progress, args=(list(futures),), kwargs={"notebook": False}, name="faast-progress", daemon=True
        )

    def __enter__(self):
        self._thread.start()

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self._thread.join()


def moments_of_partition(learner: Any, number: Any, X: Any, y: Any, sample_weight: Any) -> Any:
    with _told_of(number), _turns():
        return learner.learn(*_unzipped(X, y, sample_weight))


def sum_of_moments(parts: Any) -> Any:
    parts = [part for part in parts if part is not None]
    return functools.reduce(lambda a, b: a + b, parts) if parts else None


def counts_of_partition(number: Any, X: Any, y: Any, sample_weight: Any) -> Any:
    with _told_of(number):
        _, y, sample_weight = _unzipped(X, y, sample_weight)
        return label_counts(y, sample_weight)


@contextlib.contextmanager
def _told_of(number):
    """Add the number of the partition to the messages of the library's errors."""
    try:
        yield
    except FaastError as error:
        raise type(error)(f"Partition {number}: {error}") from error


@functools.cache
def _turns():
    """Return a semaphore for as many threads as can run torch at once without sharing cores."""
    return threading.BoundedSemaphore(max(1, CPU_COUNT // torch.get_num_threads()))


def _unzipped(X, y, sample_weight):
    """Split the partition of a bag of pairs or triples into X, y and weights; return any other unchanged."""
    if y is None and isinstance(X, list) and X and isinstance(X[0], tuple):
        width = len(X[0])
        if width not in (2, 3) or any(not isinstance(item, tuple) or len(item) != width for item in X):
            raise InputError("X holds tuples of other forms; expected (x, y) or (x, y, sample_weight) throughout.")
        X, y, *rest = (list(column) for column in zip(*X, strict=True))
        sample_weight = rest[0] if rest else sample_weight
    return X, y, sample_weight


def _partitions(X, y, sample_weight):
    """Return (X, y, sample_weight) for each partition as delayed objects; None for what was not given."""
    X = _whole_rows(X, "X")
    given = [X, _as_partitioned(y, X, "y"), _as_partitioned(sample_weight, X, "sample_weight")]
    for name, values in zip(("y", "sample_weight"), given[1:], strict=True):
        if values is not None and values.npartitions != X.npartitions:
            raise InputError(
                f"X has {X.npartitions} partitions and {name} has {values.npartitions}; give both the same partitions."
            )
    # They are optimised together: otherwise a task that loads both samples and labels would be fused into the graph of
    # each and run twice.
    kinds = {i: values for i, values in enumerate(given) if isinstance(values, (dask.array.Array, dask.bag.Bag))}
    for i, values in zip(kinds, dask.optimize(*kinds.values()), strict=True):
        given[i] = values
    columns = [None if values is None else _delayed(values) for values in given]
    return list(zip(*([None] * X.npartitions if column is None else column for column in columns), strict=True))


def _delayed(values):
    return np.ravel(values.to_delayed(optimize_graph=False)).tolist()


def _whole_rows(values, name):
    """Return the collection with chunks along the first axis only, so that partitions hold whole samples."""
    if isinstance(values, dask.array.Array):
        if values.ndim == 0:
            raise InputError(f"{name} is a dask array without axes; expected samples along the first axis.")
        return (
            values
            if values.numblocks[1:] == (1,) * (values.ndim - 1)
            else values.rechunk(dict.fromkeys(range(1, values.ndim), -1))
        )
    if isinstance(values, dask.bag.Bag):
        return values.map_partitions(list)  # the partitions of some bags are iterators
    if _is_frame(values):
        return values
    raise InputError(
        f"{name} is a {type(values).__name__}, expected a dask array, dataframe, series or bag; for data in this "
        "process, use the estimator's own methods."
    )


def _is_frame(values):
    return dask.is_dask_collection(values) and hasattr(values, "divisions") and hasattr(values, "map_partitions")


def _as_partitioned(values, X, name):
    """Return labels or weights with the partitions of X, as far as these are known without computing them."""
    if values is None:
        return None
    if not dask.is_dask_collection(values):
        if not isinstance(X, dask.array.Array) or np.isnan(X.shape[0]):
            raise InputError(
                f"{name} is a {type(values).__name__}, but the number of samples in each partition of X is not known; "
                f"pass {name} as a dask collection with the partitions of X (a column of the same dataframe, a bag of "
                "(x, y)), or call X.compute_chunk_sizes() on an array."
            )
        values = np.asarray(values)
        _refuse_other_length(values, X, name)
        return dask.array.from_array(values, chunks=(X.chunks[0], *((size,) for size in values.shape[1:])))
    values = _whole_rows(values, name)
    arrays = isinstance(X, dask.array.Array) and isinstance(values, dask.array.Array)
    if arrays and not np.isnan(X.shape[0]) and not np.isnan(values.shape[0]):
        _refuse_other_length(values, X, name)
        return values.rechunk({0: X.chunks[0]})
    return values


def _refuse_other_length(values, X, name):
    if values.shape[:1] != X.shape[:1]:
        raise InputError(f"X has {X.shape[0]} samples and {name} has {values.shape[:1]}; pass one value for each.")


def _answers(estimator, X, method):
    check_is_fitted(estimator)
    X = _whole_rows(X, "X")
    # A method name and not a bound method, so that a worker has one copy of the estimator for all partitions.
    small = dask.delayed(predictor(estimator), pure=False)
    classes = getattr(estimator, "classes_", None)
    wide = method == "predict_proba" or (method == "decision_function" and len(classes) > 2)
    dtype = np.dtype(float)
    if method == "predict":
        dtype = np.dtype(object) if classes is None else classes.dtype
    empty = np.empty((0, len(classes)) if wide else 0, dtype)
    if isinstance(X, dask.array.Array):
        return X.map_blocks(
            answers_of_partition,
            small,
            method,
            empty,
            dtype=dtype,
            drop_axis=list(range(1, X.ndim)),
            new_axis=1 if wide else None,
            chunks=(X.chunks[0], (len(classes),)) if wide else (X.chunks[0],),
            meta=empty,
        )
    if isinstance(X, dask.bag.Bag):
        return X.map_partitions(answers_of_bag, small, method, empty)
    meta = _framed(empty, classes if wide else None, X._meta.index[:0])
    return X.map_partitions(answers_of_frame, small, method, empty, meta=meta)


def answers_of_partition(X: Any, estimator: Any, method: Any, empty: Any) -> Any:
    if not len(X):
        return empty
    with _turns():
        return getattr(estimator, method)(X)


def answers_of_bag(X: Any, estimator: Any, method: Any, empty: Any) -> Any:
    return list(answers_of_partition(X, estimator, method, empty))


def answers_of_frame(X: Any, estimator: Any, method: Any, empty: Any) -> Any:
    answers = answers_of_partition(X, estimator, method, empty)
    return _framed(answers, estimator.classes_ if answers.ndim == 2 else None, X.index)


def _framed(answers, classes, index):
    import pandas as pd

    return pd.Series(answers, index) if classes is None else pd.DataFrame(answers, index, classes)
