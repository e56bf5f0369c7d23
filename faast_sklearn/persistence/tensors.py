"""Writer and reader of a file's tensors, named by their place in the file; errors name the place, too."""

import os
from collections.abc import Callable
from typing import Any

from faast_sklearn.errors import SavedFileError

__all__ = ["TensorReader", "TensorWriter"]


class _Placed:
    """Knows the place in the file of what is being written or read."""

    def __init__(self):
        self._place = []

    def at(self, name: Any) -> Any:
        """Return a context manager that appends ``name`` to the place."""
        return _Place(self._place, name)

    def each(self, values: Any, handle: Callable[[Any], Any]) -> list:
        """Return what ``handle`` makes of each value, at the place of its number."""
        made = []
        for i, value in enumerate(values):
            with self.at(i):
                made.append(handle(value))
        return made


class TensorWriter(_Placed):
    """Collects the tensors of a file that is being written.

    Parameters
    ----------
    moments : bool
        Whether the file holds moments.
    weights_folder : Path, optional
        Where to store the weights of backbones; by default they are not stored.

    Attributes
    ----------
    tensors : dict of str to torch.Tensor
    weights : set of str
        Folders of weights that the file refers to.
    backbones : bool
        Whether the file names a backbone.
    """

    def __init__(self, moments: bool = True, weights_folder: os.PathLike | None = None) -> None:
        super().__init__()
        self.moments = moments
        self.weights_folder = weights_folder
        self.tensors, self.weights, self.backbones = {}, set(), False

    def put(self, tensor: Any) -> Any:
        """Add a tensor under the name of the current place; return the name."""
        name = ".".join(self._place)
        # A copy: a view would be written with all of its storage.
        self.tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return name


class TensorReader(_Placed):
    """Gives out the tensors of a file that is being read, each once; errors say which value is wrong.

    Parameters
    ----------
    tensors : dict of str to torch.Tensor
    folder : Path
        Folder of the file; nothing outside it is read.
    """

    def __init__(self, tensors: dict, folder: os.PathLike) -> None:
        super().__init__()
        self._tensors = dict(tensors)
        self.folder = folder

    @property
    def left(self) -> Any:
        """Names of the tensors that were not used."""
        return sorted(self._tensors)

    def take(self, name: Any) -> Any:
        """Return the tensor of that name."""
        if not isinstance(name, str) or name not in self._tensors:
            raise self.wrong(f"names no tensor of the file: {name!r}")
        return self._tensors.pop(name)

    def wrong(self, what: Any) -> Any:
        """Return an error that says what is wrong with the current value."""
        return SavedFileError(f"the saved file is not valid: {'.'.join(self._place) or 'it'} {what}.")


class _Place:
    def __init__(self, place, name):
        self._stack, self._name = place, str(name)

    def __enter__(self):
        self._stack.append(self._name)

    def __exit__(self, *error):
        if error[0] is None or not issubclass(error[0], SavedFileError):
            self._stack.pop()  # otherwise the place stays that of the error
