"""Blocks of features, the last layer's first, and how they are scaled relative to each other."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from faast_sklearn.persistence.fields import Boolean, Integer, Listed
from faast_sklearn.persistence.state import Stateful

__all__ = ["Blocks"]


@dataclass(frozen=True)
class Blocks(Stateful):
    """Widths of the blocks: the last layer's features, then each statistic of the inner layers.

    Parameters
    ----------
    widths : tuple of int
        Their sum is the number of features d; a single width if no inner layer is read.
    settled : bool, default=True
        Whether inner layers count in full from the first example on; those of transformers do not.

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.moments import ClassMoments
    >>> from faast_sklearn.moments.blocks import Blocks
    >>> X = np.array([[0.0, 0.0], [2.0, 20.0], [1.0, 10.0]])
    >>> Blocks((1, 1)).scales(ClassMoments.from_rows(X, np.array([0, 1, 1]))).tolist()
    [1.0, 0.1]
    """

    widths: tuple = ()
    settled: bool = True

    _state: ClassVar = {"widths": Listed(Integer(1)), "settled": Boolean()}

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))

    @property
    def n_last(self) -> int:
        """Number of features of the last layer."""
        return self.widths[0]

    def scales(self, moments: Any) -> torch.Tensor:
        """Return the factor of each feature, from the moments alone: a tensor of shape (d,).

        All blocks get the mean variance of the last layer's. Unless settled, inner ones are also multiplied by
        ``√(n / (c + n))`` with ``n = N − c``: the last layer of a sentence encoder was trained to compare two texts,
        while inner layers need examples to show which features matter.

        Parameters
        ----------
        moments : ClassMoments
        """
        variances = moments.scatter.variances()
        means = torch.stack([part.mean() for part in variances.split(list(self.widths))])
        factors = torch.where(means > 0, (means[0] / means).sqrt(), 0.0)
        if not self.settled:
            c, spare = len(moments.classes), moments.n_spare
            factors = factors * (spare / max(c + spare, 1.0)) ** 0.5
        factors[0] = 1.0
        return factors.repeat_interleave(torch.tensor(self.widths, device=factors.device))
