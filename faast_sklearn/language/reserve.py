"""A bounded sample of learnt tokens: some are held out to choose the strength of steps, the others take them."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch

from faast_sklearn.persistence.arrays import Stacked
from faast_sklearn.persistence.fields import Listed, Raw
from faast_sklearn.persistence.state import Stateful, require

__all__ = ["Reserve", "Sample", "digest"]

# 75 MB in float32 at d = 576. Beyond, further steps see a sample of the tokens.
MOST_TOKENS = 2**15
# Enough to choose strengths to within 0.01 nats of loss.
HELD_OUT = 1024
_MOST_TOKENS_A_SAMPLE = 256
_FOLDS = 4
_NEVER = b"\xff" * 9  # sorts after every digest


@dataclass(frozen=True)
class Sample:
    """The learnt tokens of one sample.

    Parameters
    ----------
    digest : bytes
        Of its token ids, see :func:`digest`; it decides whether the sample is kept, in any order of the data.
    keys : torch.Tensor of shape (t, d)
        In the dtype of the pass.
    targets : torch.Tensor of shape (t,), int64
    """

    digest: bytes
    keys: torch.Tensor
    targets: torch.Tensor


def digest(*rows: Any) -> Any:
    """Return an eight-byte hash of rows of token ids.

    Examples
    --------
    >>> from faast_sklearn.language.reserve import digest
    >>> digest([1, 2], [3]) == digest([1, 2], [3]) != digest([1], [2, 3])
    True
    """
    hashed = hashlib.blake2b(digest_size=8)
    for row in rows:
        hashed.update(len(row).to_bytes(4, "little") + np.asarray(row, np.int32).tobytes())
    return hashed.digest()


class Reserve(Stateful):
    """The samples with the smallest digests, at most 32,768 tokens; with less data, all samples.

    Which samples are kept depends on which were learnt, not on their order or split, so ``+`` is exact: the sum of two
    reserves is the reserve of both data sets. ``−`` removes samples. Samples dropped earlier do not come back, so a
    reserve may be smaller after ``−`` than one learnt afresh. Immutable.

    Parameters
    ----------
    samples : tuple of Sample
        Sorted by digest.
    bound : bytes
        Samples of greater digests have been dropped, and perhaps some of this digest.

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.language.reserve import Reserve, Sample, digest
    >>> one, two = (Reserve.of([Sample(digest([i]), torch.ones(3, 2), torch.zeros(3))]) for i in (1, 2))
    >>> both = one + two
    >>> len(both), both.n_tokens, len(both - two), both.folds() == (two + one).folds()
    (2, 6, 1, True)
    """

    __slots__ = ("bound", "samples")
    _state: ClassVar = {
        "keys": Stacked("td", (torch.float32, torch.float64, torch.bfloat16, torch.float16)),
        "targets": Stacked("t", (torch.int64,)),
        "digests": Listed(Raw()),
        "bound": Raw(),
    }

    def __init__(self, samples: Sequence = (), bound: bytes = _NEVER) -> None:
        self.samples = tuple(samples)
        self.bound = bound

    @classmethod
    def of_tokens(cls, digests: Sequence, keys: torch.Tensor, targets: torch.Tensor, lengths: Sequence) -> Any:
        """Return the reserve of a batch.

        Parameters
        ----------
        digests : sequence of n bytes
        keys : torch.Tensor of shape (t, d)
            Keys of all samples, one sample after the other.
        targets : torch.Tensor of shape (t,), int64
        lengths : sequence of n int
            Number of tokens of each sample. Of more than 256 tokens, evenly spaced ones are kept.
        """
        samples, start = [], 0
        for key, length in zip(digests, lengths, strict=True):
            step = -(-length // _MOST_TOKENS_A_SAMPLE)
            rows = slice(start, start + length, max(1, step))
            samples.append(Sample(key, keys[rows], targets[rows]))
            start += length
        return cls.of(samples)._each(torch.clone)  # views would keep the whole batch in memory

    @classmethod
    def of(cls, samples: Any, bound: Any = _NEVER) -> Any:
        """Return the reserve of samples in any order."""
        kept, tokens = [], 0
        for sample in sorted(samples, key=lambda s: s.digest):
            tokens += len(sample.targets)
            # Samples at the bound are copies of one sample; as many stay as fit, in any order of merging.
            if sample.digest > bound or tokens > MOST_TOKENS:
                # Stop at the first that does not fit; otherwise the result would depend on the order of merging.
                bound = min(bound, sample.digest)
                break
            kept.append(sample)
        return cls(kept, bound)

    def __len__(self):
        return len(self.samples)

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return sum(len(sample.targets) for sample in self.samples)

    def folds(self, n_learnt: float | None = None) -> list:
        """Split the first samples, at most 1,024 tokens, into folds; each is left out of the statistics it validates.

        Parameters
        ----------
        n_learnt : float, default=None
            Number of tokens learnt. If the first samples have at most a quarter of them, they are one fold.

        Returns
        -------
        list of list of int
            Positions in ``samples`` of those with tokens; empty if there are fewer than two to split.
        """
        ends = itertools.accumulate(len(sample.targets) for sample in self.samples)
        n_first = next((i for i, end in enumerate(ends) if end > HELD_OUT), len(self))
        # A sample without learnt tokens would add nothing to a fold.
        told = [i for i, sample in enumerate(self.samples[:n_first]) if len(sample.targets)]
        if n_learnt is not None and sum(len(self.samples[i].targets) for i in told) <= n_learnt / _FOLDS:
            return [told] if told else []
        k = min(_FOLDS, len(told))
        return [] if k < 2 else [told[i::k] for i in range(k)]

    def rows(self, which: Any) -> Any:
        """Return keys (t, d), targets (t,) and the sample number (t,) of the tokens of samples ``which``."""
        some = [self.samples[i] for i in which]
        lengths = torch.tensor([len(s.targets) for s in some])
        numbers = torch.arange(len(some)).repeat_interleave(lengths)
        return torch.cat([s.keys for s in some]), torch.cat([s.targets for s in some]), numbers

    def to(self, device: Any) -> Any:
        """Return the same samples on ``device``."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change):
        return Reserve([Sample(s.digest, change(s.keys), change(s.targets)) for s in self.samples], self.bound)

    def __add__(self, other):
        if not isinstance(other, Reserve):
            return NotImplemented
        if not other.samples and other.bound == _NEVER:
            return self
        return Reserve.of([*self.samples, *other.samples], min(self.bound, other.bound))

    def __sub__(self, other):
        if not isinstance(other, Reserve):
            return NotImplemented
        left = list(self.samples)
        for sample in other.samples:
            at = next((i for i, mine in enumerate(left) if mine.digest == sample.digest), None)
            if at is not None:
                del left[at]
        return Reserve(left, self.bound)

    def missing(self, other: Any) -> Any:
        """Return how many samples of ``other`` would be here if they had been learnt, but are not."""
        mine = {}
        for sample in self.samples:
            mine[sample.digest] = mine.get(sample.digest, 0) + 1
        lacking = 0
        for sample in other.samples:
            mine[sample.digest] = mine.get(sample.digest, 0) - 1
            lacking += sample.digest < self.bound and mine[sample.digest] < 0
        return lacking

    def _stated(self):
        return SimpleNamespace(
            keys=tuple(s.keys for s in self.samples),
            targets=tuple(s.targets for s in self.samples),
            digests=tuple(s.digest for s in self.samples),
            bound=self.bound,
        )

    @classmethod
    def _from_state(cls, keys, targets, digests, bound):
        require(len(keys) == len(targets) == len(digests), "the reserve's keys, targets and digests differ in number")
        samples = [Sample(*parts) for parts in zip(digests, keys, targets, strict=True)]
        require(all(len(s.keys) == len(s.targets) for s in samples), "a sample's keys and targets differ in number")
        require(list(digests) == sorted(digests), "the reserve is not sorted")
        return cls(samples, bound)

    def summed(self, ranks: Any, width: int) -> Any:
        """Return the reserve of all ranks' samples; each rank sends its own.

        Parameters
        ----------
        ranks : Ranks
        width : int
            Of the keys, since a rank may have none.
        """
        told = ranks.gathered(lambda: ([(s.digest, len(s.targets)) for s in self.samples], self.bound))
        keys, targets = torch.zeros((0, width)), torch.zeros(0, dtype=torch.int64)
        if self.samples:
            # float32 holds all narrower types exactly, and all ranks need one type.
            keys = torch.cat([s.keys.float() for s in self.samples])
            targets = torch.cat([s.targets for s in self.samples])
        keys, targets = ranks.joined(keys), ranks.joined(targets)
        digests = [digest for some, _ in told for digest, _ in some]
        lengths = [length for some, _ in told for _, length in some]
        parts = zip(digests, keys.split(lengths), targets.split(lengths), strict=True) if lengths else ()
        kept = Reserve.of([Sample(*part) for part in parts], min(bound for _, bound in told))
        return kept._each(torch.clone)  # views would keep all ranks' tokens in memory
