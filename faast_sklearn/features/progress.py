"""What one call reports to its user: a progress bar, and a warning about texts that were cut."""

import numbers
import warnings

import numpy as np

from faast_sklearn.errors import MissingDependencyError, TruncationWarning

__all__ = ["Report"]


class Report:
    """Progress and truncation of one call of the user, over all streams that it runs.

    A context manager: on exit it closes the bar and, unless there was an error, warns once about texts that
    were cut.

    Parameters
    ----------
    verbose : int, default=0
        From 1 on, show a progress bar over samples on stderr.
    description : str, default=""
        Text in front of the bar.
    total : int, default=None
        Expected number of samples; if None, the bar shows no remaining time.
    unit : str, default="samples"
        What the bar counts.

    Attributes
    ----------
    n_samples, n_truncated, longest : int
        Samples run so far, how many of them were truncated, and the number of tokens of the longest.
    limit : int or None
        The most tokens that the backbone reads.

    Raises
    ------
    ValueError
        If ``verbose`` is not a number of at least 0.
    MissingDependencyError
        If ``verbose`` asks for a bar and tqdm is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.features.progress import Report
    >>> with Report() as report:
    ...     report.add(2, lengths=np.array([5, 9]), limit=16)
    >>> report.n_samples, report.n_truncated, report.longest
    (2, 0, 9)
    """

    def __init__(
        self, *, verbose: int = 0, description: str = "", total: int | None = None, unit: str = "samples"
    ) -> None:
        if not isinstance(verbose, numbers.Real | np.bool_) or not verbose >= 0:
            raise ValueError(f"verbose must be 0, 1 or another number of at least 0, got {verbose!r}.")
        self.n_samples = 0
        self.n_truncated = 0
        self.longest = 0
        self.limit: int | None = None
        self._bar = _bar(description, total, unit) if verbose else None

    def add(self, n_samples: int, lengths: np.ndarray | None = None, limit: int | None = None) -> None:
        """Count a batch that has been run.

        Parameters
        ----------
        n_samples : int
        lengths : ndarray of shape (n_samples,), default=None
            Tokens of each text before truncation.
        limit : int, default=None
            The most tokens that the backbone reads.
        """
        self.n_samples += n_samples
        if lengths is not None and len(lengths):
            self.longest = max(self.longest, int(np.max(lengths)))
            if limit is not None:
                self.limit = limit
                self.n_truncated += int(np.count_nonzero(np.asarray(lengths) > limit))
        if self._bar is not None:
            self._bar.update(n_samples)

    def show(self, **figures: float) -> None:
        """Show figures at the end of the bar."""
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if self._bar is not None:
            self._bar.close()
        if kind is None and self.n_truncated:
            warnings.warn(
                f"{self.n_truncated} of {self.n_samples} texts were cut: the longest has {self.longest} tokens and the "
                f"backbone reads {self.limit}. Split long texts, or open the backbone with truncation='error'.",
                TruncationWarning,
                stacklevel=2,
            )


def _bar(description, total, unit):
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise MissingDependencyError("verbose=1 shows a progress bar with tqdm: pip install tqdm") from error

    class Bar(tqdm):
        monitor_interval = 0  # tqdm's monitor thread would outlive the call

    return Bar(desc=description or None, total=total, unit=f" {unit}", miniters=1)
