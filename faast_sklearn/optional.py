"""Import optional packages only when they are used, and say what to install if one is missing."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch

from faast_sklearn.errors import MissingDependencyError

__all__ = ["explain_imports", "require"]


@contextlib.contextmanager
def explain_imports(package: str, pip: str | None = None) -> Iterator[Any]:
    """Turn an import that fails inside the block into an error that names the remedy.

    Parameters
    ----------
    package : str
        Name of the imported package, for the message.
    pip : str, default=None
        What to put after ``pip install``; the package's name by default.

    Raises
    ------
    MissingDependencyError
    """
    try:
        yield
    except (ImportError, RuntimeError) as error:
        # Libraries that import lazily wrap the original error in another one.
        chain, cause = str(error), error.__cause__ or error.__context__
        while cause is not None:
            chain, cause = f"{chain} {cause}", cause.__cause__ or cause.__context__
        if "torchvision::" in chain or "torchvision/_C" in chain:
            raise MissingDependencyError(
                f"{package} cannot be imported: torchvision was built for another torch than the installed "
                f"{torch.__version__} (typically a CPU-only torch beside a CUDA torchvision). Reinstall both from "
                "the same index: pip install --force-reinstall torch torchvision"
            ) from error
        if isinstance(error, ImportError):
            raise MissingDependencyError(f"{error}\nInstall what is missing: pip install {pip or package}") from error
        raise


def require(package: str, pip: str | None = None) -> Any:
    """Import ``package``, or raise an error with the pip command.

    Parameters
    ----------
    package : str
    pip : str, default=None
        What to put after ``pip install``; the package's name by default.

    Returns
    -------
    module

    Raises
    ------
    MissingDependencyError
        If the package is missing, or present but broken.

    Examples
    --------
    >>> from faast_sklearn.optional import require
    >>> require("json").dumps([1])
    '[1]'
    """
    with explain_imports(package, pip):
        return importlib.import_module(package)
