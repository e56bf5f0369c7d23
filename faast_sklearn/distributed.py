"""Learning in all processes of a ``torch.distributed`` group: each reads its samples, moments are summed by all-reduce.

Moments are tensors that add up, so one ``all_reduce`` of each takes the place of gathering them, and leaves every rank
with the same ones, bit for bit. Only labels, shapes, digests and messages travel as pickled objects, and only between
the processes of the group.
"""

import functools
import inspect

import torch
import torch.distributed

from faast_sklearn.errors import FaastError, InputError
from faast_sklearn.estimators.parts import Part, Student, adopt_part, balanced_weights, known_part, label_counts
from faast_sklearn.inputs.labels import union_of_labels
from faast_sklearn.language.moments import LanguageMoments, TokenMoments
from faast_sklearn.language.reserve import Reserve, Sample
from faast_sklearn.moments.class_moments import ClassMoments
from faast_sklearn.moments.cross_moments import CrossMoments
from faast_sklearn.moments.scatter import PENDING_ROWS, Scatter, mirror

__all__ = ["all_reduce", "fit", "partial_fit"]

# Parameters that may differ from rank to rank: they say how to run, not what is learnt.
_OWN = ("batch_size", "device", "dtype", "cache", "verbose", "backbone")
_ACCELERATORS = {"nccl": "cuda", "xccl": "xpu"}


def fit(estimator, X, y=None, sample_weight=None, *, group=None):
    """Forget everything and learn from the samples of all ranks.

    Every rank of the group calls it, with its own samples and an estimator of equal parameters. Afterwards each has
    learnt all of them, the same bit for bit, and equal to one ``fit`` of all samples to rounding.

    Parameters
    ----------
    estimator : FaastClassifier or FaastSeq2Seq
        Fitted in place. Its backbone runs on the device that ``device`` says, by default the current one.
    X, y, sample_weight
        Those of this rank, as the estimator's ``fit`` takes them; there may be none (``[]``), and classes may be
        missing.
    group : torch.distributed.ProcessGroup, default=None
        The default group. Where none has been initialised, this is the estimator's own ``fit``.

    Returns
    -------
    estimator
        The same object.

    Raises
    ------
    InputError, NonFiniteError, BackboneError, ...
        On the rank whose samples are at fault, as its ``fit`` would.
    FaastError
        On all others, at once, naming that rank. All estimators are then as they were before the call.

    Notes
    -----
    Ranks exchange ``8 d²`` bytes, or rows while there are fewer of them in all than features or 2,048, and ``8 c d``
    for the classes; language models ``24 d²`` and three numbers a word. With a GPU backend and a backbone on the GPU
    moments stay there.

    Examples
    --------
    Without a group it is an ordinary fit; under ``torchrun`` each rank takes its share:

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


def partial_fit(estimator, X, y=None, sample_weight=None, *, group=None):
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
        As in :func:`fit`; also if some ranks' estimators are fitted and others are not.
    """
    if not _is_up():
        return _alone(estimator.partial_fit, X, y, sample_weight)
    reset = not estimator.__sklearn_is_fitted__()
    return _learn(_Ranks(group), estimator, X, y, sample_weight, reset, partial=True)


def all_reduce(estimator, *, group=None):
    """Make each rank's estimator the one that has learnt what those of all ranks have.

    For estimators that learn for themselves for a while. Calling it twice counts everything twice: what is common to
    all ranks is learnt once a rank.

    Parameters
    ----------
    estimator : FaastClassifier or FaastSeq2Seq
        Fitted, or not where a rank had no samples.
    group : torch.distributed.ProcessGroup, default=None
        The default group. Where none has been initialised, nothing happens.

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

    def known():
        estimator._check_params(partial=True)
        return known_part(estimator) if estimator.__sklearn_is_fitted__() else None

    _same_on_all(ranks, estimator, True)
    total = _total(ranks, known)
    return adopt_part(estimator, total, reset=True)


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
    total = _total(ranks, lambda: Student.of(estimator, reset=reset, class_weight=weights).learn(X, y, sample_weight))
    return adopt_part(estimator, total, reset=reset, partial=partial)


def _same_on_all(ranks, estimator, reset):
    """Refuse ranks that would go different ways, and wait for one another for ever."""

    def settings():
        params = estimator.get_params(deep=False)
        return {
            "class": type(estimator).__name__,
            "fitted": not reset,
            # The address in the name of a function is another in each process.
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
        return Part(_shape_of(part.learnt), facts, part.declared)

    found = [one for one in ranks.gathered(header) if one is not None]
    if not found:
        return None
    # A shape adds as the moments do, and refuses what does not belong together on every rank alike.
    whole = functools.reduce(lambda a, b: a + b, found)
    learnt = whole.learnt.summed(ranks, None if part is None else part.learnt)
    own = {"device_": "cpu"} if part is None else {"device_": part.facts["device_"]}
    return Part(learnt, {**whole.facts, **own}, whole.declared)


class _Ranks:
    """The processes of a group, and what they can do together: every method is called by all of them."""

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
        """Return what ``make`` returns on each rank, in their order; if it raises on one, all raise."""
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
        """Return the sum of the ranks' tensors, on the device of this one's."""
        total = tensor.to(self._device, copy=True).contiguous()
        torch.distributed.all_reduce(total, group=self._group)
        return total.to(tensor.device)

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
        # Everything but a row's own rank adds zero: exact, and one operation that all backends have.
        return self.sum(table)


def _shape_of(learnt):
    if isinstance(learnt, ClassMoments):
        return _ClassShape(learnt.n_features, learnt.classes)
    return _LanguageShape.of(learnt)


class _ClassShape:
    """Width and labels of a classifier's moments: what every rank must know before they are summed."""

    def __init__(self, n_features, classes):
        self.n_features, self.classes = n_features, classes

    def __add__(self, other):
        return _ClassShape(self.n_features, union_of_labels(self.classes, other.classes))

    def summed(self, ranks, learnt):
        if learnt is None:
            learnt = ClassMoments.empty(self.n_features)
        return _sum_classes(ranks, learnt, self.classes)


class _LanguageShape:
    """Widths of a language model's moments; None where there is no such part."""

    def __init__(self, memory, expected, vocabulary, middle):
        self.memory, self.expected, self.vocabulary, self.middle = memory, expected, vocabulary, middle

    @classmethod
    def of(cls, learnt):
        output = learnt.output
        return cls(
            tuple(output.memory.cross.shape),
            None if output.expected is None else output.expected.n_features,
            None if output.counts is None else len(output.counts),
            [tuple(part.cross.shape) for part in learnt.middle],
        )

    def __add__(self, other):
        if vars(self) != vars(other):
            raise InputError("ranks have learnt from other language models, or to other targets; make them equal.")
        return self

    def summed(self, ranks, learnt):
        learnt = self._empty() if learnt is None else learnt
        output = learnt.output
        tokens = TokenMoments(
            _sum_cross(ranks, output.memory),
            None if output.expected is None else _sum_scatter(ranks, output.expected),
            *(None if v is None else ranks.sum(v) for v in (output.counts, output.probability, output.curvature)),
            _sum_number(ranks, output.loss),
        )
        middle = [_sum_cross(ranks, part) for part in learnt.middle]
        reserve = _sum_reserve(ranks, learnt.reserve, self.memory[0])
        return LanguageMoments(tokens, middle, reserve, int(ranks.each(learnt.n_samples).sum()))

    def _empty(self):
        vectors = [None] * 3
        if self.vocabulary is not None:
            vectors = [torch.zeros(self.vocabulary, dtype=torch.float64) for _ in vectors]
        expected = None if self.expected is None else Scatter.empty(self.expected)
        output = TokenMoments(CrossMoments.empty(*self.memory), expected, *vectors)
        return LanguageMoments(output, [CrossMoments.empty(*shape) for shape in self.middle])


def _sum_number(ranks, number):
    return float(ranks.sum(torch.tensor([number], dtype=torch.float64)))


def _sum_scatter(ranks, scatter):
    """Sum scatters about the mean of all: each rank adds how far its own mean is from that, as Chan's update does."""
    weight = _sum_number(ranks, scatter.weight)
    if not weight:
        return scatter
    mean = ranks.sum(scatter.mean * (scatter.weight / weight))
    rows = scatter.factor_rows()
    if scatter.weight:
        between = (scatter.mean - mean) * scatter.weight**0.5
        rows = torch.cat([rows, between[None]])
    pending, factored = ranks.each(len(rows), scatter.is_factored).T
    if factored.all() and pending.sum() <= max(PENDING_ROWS, scatter.n_features):
        return Scatter(weight, mean, None, (ranks.joined(rows),))
    dense = scatter.matrix()
    if scatter.weight:
        dense += torch.outer(between, between)
    # Two entries across the diagonal may have been added up in another order.
    return Scatter(weight, mean, mirror(ranks.sum(dense)))


def _sum_classes(ranks, moments, classes):
    moments = moments.reindexed(classes)
    scatter = _sum_scatter(ranks, moments.scatter)
    counts = torch.as_tensor(moments.counts, device=scatter.device)
    sums = ranks.sum(moments.class_sums(centred=False) - counts[:, None] * scatter.mean)
    own, counts = counts, ranks.sum(counts)
    whole = torch.where(counts > 0, counts, 1.0)
    mean_weights = ranks.sum(torch.as_tensor(moments.mean_weights, device=scatter.device) * (own / whole))
    means = scatter.mean + sums / whole[:, None]
    rows = ranks.sum(torch.as_tensor(moments.rows))
    counts, mean_weights = counts.cpu().numpy(), mean_weights.cpu().numpy()
    return ClassMoments(classes, counts, rows.numpy(), mean_weights, means, scatter)._compact()


def _sum_cross(ranks, moments):
    power = _sum_number(ranks, moments.power)
    return CrossMoments(_sum_scatter(ranks, moments.keys), ranks.sum(moments.cross), power)


def _sum_reserve(ranks, reserve, width):
    """Gather the samples of all reserves, at most 1,024 tokens each, and keep those that one reserve of all would."""
    samples = reserve.samples
    told = ranks.gathered(lambda: ([(s.digest, len(s.targets)) for s in samples], reserve.bound))
    keys, targets = torch.zeros((0, width)), torch.zeros(0, dtype=torch.int64)
    if samples:
        # float32 holds what narrower types do, and is what a reserve is saved in.
        keys, targets = torch.cat([s.keys.float() for s in samples]), torch.cat([s.targets for s in samples])
    keys, targets = ranks.joined(keys), ranks.joined(targets)
    digests = [digest for some, _ in told for digest, _ in some]
    lengths = [length for some, _ in told for _, length in some]
    parts = zip(digests, keys.split(lengths), targets.split(lengths), strict=True) if lengths else ()
    kept = Reserve.of([Sample(*part) for part in parts], min(bound for _, bound in told))
    # Views would keep all that is not.
    return Reserve([Sample(s.digest, s.keys.clone(), s.targets.clone()) for s in kept.samples], kept.bound)
