"""Learning in all processes of a ``torch.distributed`` group: each reads its samples, moments are summed by all-reduce.

Moments are tensors that add up, so one ``all_reduce`` of each replaces gathering them and leaves every rank with the
same moments, bit for bit. Only labels, shapes, settings, digests and messages travel as pickled objects, and only
between the processes of the group.
"""

import functools
import inspect
from typing import Any

import torch
import torch.distributed

from faast_sklearn.errors import FaastError, InputError
from faast_sklearn.estimators.base import RUN_PARAMETERS
from faast_sklearn.estimators.sharing import LocalLearner, adopt, balanced_weights, known_statistics, label_counts
from faast_sklearn.estimators.statistics import Statistics

__all__ = ["all_reduce", "fit", "partial_fit"]

# Parameters that may differ from rank to rank: they say how to run, not what is learnt.
_OWN = (*RUN_PARAMETERS, "backbone")
_ACCELERATORS = {"nccl": "cuda", "xccl": "xpu"}


def fit(estimator: Any, X: Any, y: Any = None, sample_weight: Any = None, *, group: Any = None) -> Any:
    """Forget everything and learn from the samples of all ranks.

    Every rank of the group calls it, with its own samples and an estimator that has the same parameters. Afterwards
    all ranks have learnt all samples: their estimators are equal bit for bit, and equal up to rounding to one ``fit``
    of all samples.

    Parameters
    ----------
    estimator : FaastClassifier or FaastSeq2Seq
        Fitted in place. Its backbone runs on its ``device``, by default the current device of this process.
    X, y, sample_weight
        Those of this rank, as the estimator's ``fit`` takes them. A rank may have no samples (``[]``), or samples of
        some classes only.
    group : torch.distributed.ProcessGroup, default=None
        None is the default group. If no group has been initialised, this function is the estimator's own ``fit``.

    Returns
    -------
    estimator
        The same object.

    Raises
    ------
    InputError, NonFiniteError, BackboneError, ...
        On the rank whose samples are at fault, as its ``fit`` would raise it.
    FaastError
        On all other ranks, at once; the message names the rank at fault. All estimators are then as they were before
        the call.

    Notes
    -----
    Ranks exchange ``8 d²`` bytes, or the rows themselves if all ranks together have no more of them than d or 2,048,
    and ``8 c d`` bytes for the classes. Language models exchange ``24 d²`` bytes and three numbers per token of the
    vocabulary. With a GPU backend and a backbone on the GPU, moments stay there.

    Examples
    --------
    Without a group this is an ordinary fit; under ``torchrun`` each rank learns its share:

    >>> import torch.distributed as dist
    >>> from sklearn.datasets import load_digits
    >>> from faast_sklearn import FaastClassifier, distributed
    >>> rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    >>> X, y = load_digits(return_X_y=True)
    >>> distributed.fit(FaastClassifier(), X[rank::size], y[rank::size]).n_samples_seen_
    1797
    """
    if not _is_up():
        return _alone(estimator.fit, X, y, sample_weight)
    return _learn(_Ranks(group), estimator, X, y, sample_weight, True)


def partial_fit(estimator: Any, X: Any, y: Any = None, sample_weight: Any = None, *, group: Any = None) -> Any:
    """Add the samples of all ranks to what every rank's estimator has learnt.

    Parameters
    ----------
    estimator, X, y, sample_weight, group
        As in :func:`fit`. What was learnt before must be the same on all ranks, as it is after :func:`fit`.

    Returns
    -------
    estimator
        The same object.

    Raises
    ------
    FaastError
        As in :func:`fit`; also if the estimators of some ranks are fitted and those of others are not.
    """
    if not _is_up():
        return _alone(estimator.partial_fit, X, y, sample_weight)
    reset = not estimator.__sklearn_is_fitted__()
    return _learn(_Ranks(group), estimator, X, y, sample_weight, reset, partial=True)


def all_reduce(estimator: Any, *, group: Any = None) -> Any:
    """Let each rank's estimator know what the estimators of all ranks have learnt.

    It is for estimators that have learnt separately. Do not call it twice: the second call adds up estimators that are
    equal already, so that it counts every sample once per rank.

    Parameters
    ----------
    estimator : FaastClassifier or FaastSeq2Seq
        Fitted, except on ranks that had no samples.
    group : torch.distributed.ProcessGroup, default=None
        None is the default group. If no group has been initialised, nothing happens.

    Returns
    -------
    estimator
        The same object.

    Raises
    ------
    FaastError
        As in :func:`fit`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from faast_sklearn import FaastClassifier, distributed
    >>> clf = FaastClassifier().fit(*load_digits(return_X_y=True))
    >>> distributed.all_reduce(clf).n_samples_seen_
    1797
    """
    if not _is_up():
        return estimator
    ranks = _Ranks(group)

    _same_on_all(ranks, estimator, True)
    total = _total(ranks, lambda: known_statistics(estimator))
    return adopt(estimator, total, reset=True)


def _is_up():
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _alone(method, X, y, sample_weight):
    return method(X, y) if sample_weight is None else method(X, y, sample_weight=sample_weight)


def _learn(ranks, estimator, X, y, sample_weight, reset, partial=False):
    balanced = isinstance(getattr(estimator, "class_weight", None), str) and estimator.class_weight == "balanced"
    _same_on_all(ranks, estimator, reset)
    weights = None
    if balanced and reset:
        weights = balanced_weights(ranks.gathered(lambda: label_counts(y, sample_weight)))
    total = _total(
        ranks, lambda: LocalLearner.of(estimator, reset=reset, class_weight=weights).learn(X, y, sample_weight)
    )
    return adopt(estimator, total, reset=reset, partial=partial)


def _same_on_all(ranks, estimator, reset):
    """Raise an error on every rank if their estimators differ, since ranks that do different things deadlock."""

    def settings():
        params = estimator.get_params(deep=False)
        return {
            "class": type(estimator).__name__,
            "fitted": not reset,
            # The repr of a function contains its address, which differs between processes.
            **{
                name: value.__qualname__ if inspect.isfunction(value) else repr(value)
                for name, value in params.items()
                if name not in _OWN
            },
        }

    first, *others = ranks.gathered(settings)
    for rank, other in enumerate(others, 1):
        for name, value in first.items():
            if other.get(name) != value:
                raise InputError(f"rank {rank} has {name}={other.get(name)} and rank 0 {value}; they must be equal.")


def _total(ranks, make):
    """Return the sum of the parts that ``make`` returns on each rank, some of which may be None."""
    part = None

    def header():
        nonlocal part
        part = make()
        if part is None:
            return None
        facts = {name: value for name, value in part.facts.items() if name != "device_"}
        return Statistics(part.moments.outline(), facts, part.declared)

    found = [one for one in ranks.gathered(header) if one is not None]
    if not found:
        return None
    # Outlines are added as moments are, so that moments that do not fit together raise the same error on every rank.
    whole = functools.reduce(lambda a, b: a + b, found)
    moments = whole.moments.summed(ranks, None if part is None else part.moments)
    own = {"device_": "cpu"} if part is None else {"device_": part.facts["device_"]}
    return Statistics(moments, {**whole.facts, **own}, whole.declared)


class _Ranks:
    """The processes of a group and their collective operations: all processes call each method."""

    def __init__(self, group):
        self._group = group
        self.rank = torch.distributed.get_rank(group)
        self.size = torch.distributed.get_world_size(group)
        if self.rank < 0:
            raise InputError("this process is not in the group; call it in those that are.")
        kind = _ACCELERATORS.get(torch.distributed.get_backend(group), "cpu")
        self._device = torch.device(kind)
        if kind != "cpu":
            self._device = torch.device(kind, getattr(torch, kind).current_device())

    def gathered(self, make):
        """Return what ``make`` returns on each rank, in the order of the ranks; if it raises on one, all raise."""
        error, value = None, None
        try:
            value = make()
        except Exception as caught:
            error = caught
        told = None if error is None else f"{type(error).__name__}: {error}"
        answers = [None] * self.size
        torch.distributed.all_gather_object(answers, (told, value), group=self._group)
        if error is not None:
            raise error
        for rank, (message, _) in enumerate(answers):
            if message is not None:
                raise FaastError(f"rank {rank} could not learn its samples, so no rank has learnt any. {message}")
        return [value for _, value in answers]

    def sum(self, tensor):
        """Return the sum of the ranks' tensors, on the device of this rank's tensor."""
        total = tensor.to(self._device, copy=True).contiguous()
        torch.distributed.all_reduce(total, group=self._group)
        return total.to(tensor.device)

    def sum_number(self, number):
        """Return the sum of the ranks' numbers."""
        return float(self.sum(torch.tensor([number], dtype=torch.float64)))

    def each(self, *numbers):
        """Return the whole numbers of each rank, an ndarray of shape (ranks, len(numbers))."""
        table = torch.zeros((self.size, len(numbers)), dtype=torch.int64)
        table[self.rank] = torch.tensor(numbers)
        return self.sum(table).numpy()

    def joined(self, rows):
        """Return the rows of all ranks, one rank after the other."""
        counts = self.each(len(rows))[:, 0]
        start = int(counts[: self.rank].sum())
        table = rows.new_zeros((int(counts.sum()), *rows.shape[1:]))
        table[start : start + len(rows)] = rows
        # Each row is zero on all ranks but its own, so the sum is exact, and every backend has this operation.
        return self.sum(table)
