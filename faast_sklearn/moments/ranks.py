"""The operations between processes that summing moments needs: all processes call each, and get the same result."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

__all__ = ["Ranks"]


class Ranks(Protocol):
    """Processes that act together; :mod:`faast_sklearn.distributed` has those of a process group."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of the ranks' tensors, on this tensor's device."""

    def sum_number(self, number: float) -> float:
        """Return the sum of the ranks' numbers."""

    def each(self, *numbers: int) -> np.ndarray:
        """Return the integers of each rank, of shape (ranks, len(numbers))."""

    def joined(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all ranks, one rank after the other."""

    def gathered(self, make: Callable[[], Any]) -> list:
        """Return the results of ``make`` on all ranks, in order; if it raises on one rank, all raise."""
