"""What moments need of the processes that sum them: all call each method, and all get the same result."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

__all__ = ["Ranks"]


class Ranks(Protocol):
    """Processes that do the same together; :mod:`faast_sklearn.distributed` has those of a process group."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of the ranks' tensors, on the device of this one's."""

    def sum_number(self, number: float) -> float:
        """Return the sum of the ranks' numbers."""

    def each(self, *numbers: int) -> np.ndarray:
        """Return the whole numbers of each rank, of shape (ranks, len(numbers))."""

    def joined(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all ranks, one rank after the other."""

    def gathered(self, make: Callable[[], Any]) -> list:
        """Return what ``make`` returns on each rank, in their order; if it raises on one, all raise."""
