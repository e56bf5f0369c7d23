"""Saving and loading estimators: one file that holds what was learnt, and nothing that could run."""

import importlib.metadata
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from faast_sklearn.errors import SavedFileError, SavedFileWarning, refuse_missing_parent
from faast_sklearn.persistence.archive import read_archive, write_archive
from faast_sklearn.persistence.estimators import pack_estimator, register, unpack_estimator
from faast_sklearn.persistence.stored_weights import remove_others
from faast_sklearn.persistence.tensors import TensorReader, TensorWriter

__all__ = ["Persistent", "load", "save"]

_NAME = "faast.safetensors"
_LIBRARIES = ("torch", "numpy", "scikit-learn")
_OF_BACKBONES = {"timm": "timm", "transformers": "transformers", "open_clip_torch": "open_clip"}


def save(estimator: Any, path: str | os.PathLike, *, moments: bool = True, backbone: Any = False) -> None:
    """Write an estimator to a file, or a folder, that :func:`load` reads anywhere.

    The file holds parameters, classes, moments and solved weights, versions, and the name of the backbone with a
    fingerprint of its weights; never a module, a device, code or a local path. An existing file
    is replaced in one step, so that a crash leaves it unchanged.

    Parameters
    ----------
    estimator : FaastClassifier, FaastSeq2Seq, BackboneFeatures, or Pipeline that contains them
        Fitted or not. Other steps of a pipeline are written with skops, where that is installed.
    path : str or path
        A file, or a folder if it is one, ends in a separator or ``backbone=True``; the folder above must exist.
    moments : bool, default=True
        Whether to save the moments. Without them the file is smaller; the estimator predicts but cannot learn more.
    backbone : bool, default=False
        Store the weights of the backbone too, in a folder with the file; for ``"bundled:"``, ``"hf:"`` and ``"timm:"``.

    Raises
    ------
    SavedFileError
        If something cannot be saved; the message says what it is and what to do.
    MissingDependencyError
        If a step of a pipeline needs skops.
    OSError
        If the disk is full, or the folder does not exist.

    Notes
    -----
    The file takes about ``4 d²`` bytes for d features, or ``8 n d`` for fewer rows n; ``8 c d`` without moments.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_digits
    >>> from faast_sklearn import FaastClassifier, load, save
    >>> X, y = load_digits(return_X_y=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "digits.safetensors")
    ...     save(FaastClassifier().fit(X[:1000], y[:1000]), path)
    ...     clf = load(path)
    >>> clf.partial_fit(X[1000:], y[1000:]).n_samples_seen_
    1797
    """
    text = os.fspath(path)
    folder = Path(text) if backbone or text.endswith(("/", os.sep)) or os.path.isdir(text) else None
    if folder is not None:
        if folder.is_file():
            raise SavedFileError(f"{text!r} is a file, expected a folder.")
        refuse_missing_parent(folder)
        folder.mkdir(exist_ok=True)
    out = TensorWriter(moments, folder if backbone else None)
    node = pack_estimator(estimator, out)
    manifest = {"versions": _versions(out.backbones), "estimator": node}
    write_archive(Path(text) if folder is None else folder / _NAME, manifest, out.tensors)
    if folder is not None:
        remove_others(folder, out.weights)


def load(path: str | os.PathLike, **parameters: Any) -> Any:
    """Read an estimator that :func:`save` wrote.

    No code is run, nothing is downloaded or put on a GPU, and nothing outside the file's folder is opened. Every shape,
    dtype and number and a checksum of the whole file are checked. The backbone is opened when it is first needed, with
    a warning if its weights differ from those that the estimator learnt with.

    Parameters
    ----------
    path : str or path
        The file or folder.
    **parameters
        Parameters that replace those in the file, such as ``device="cuda"``; ``step__name`` for a step of a pipeline.
        A backbone in memory, a local folder and a function must be passed, since no file holds them.

    Returns
    -------
    estimator
        As it was saved, with ``device=None``.

    Raises
    ------
    SavedFileError
        If the file is damaged, cut short, foreign or of another format, or a parameter must be passed.
    TypeError
        If a parameter does not exist.
    OSError
        If the file does not exist.

    Warns
    -----
    SavedFileWarning
        If the first two numbers of a library's version differ from those that the file was saved with.
    """
    return _load(path, parameters)


def _load(path, parameters, cls=None):
    path = Path(path)
    if path.is_dir():
        if not (path / _NAME).is_file():
            raise SavedFileError(f"there is no {_NAME} in the folder {str(path)!r}, so save did not write it.")
        path = path / _NAME
    manifest, tensors = read_archive(path)
    source = TensorReader(tensors, path.resolve().parent)
    if not isinstance(manifest, dict) or manifest.keys() != {"versions", "estimator"}:
        raise source.wrong("has no estimator")
    try:
        estimator = unpack_estimator(manifest["estimator"], source, parameters, cls)
    except (RecursionError, AttributeError, IndexError, KeyError, OverflowError) as error:
        # A forged file with a valid checksum.
        raise SavedFileError(f"{str(path)!r} is not valid: {type(error).__name__}: {error}.") from error
    if source.left:
        raise source.wrong(f"has tensors that it does not use, {source.left[:3]}")
    _warn_of_versions(manifest["versions"], source)
    return estimator


class Persistent:
    """Base class of all estimators that can be saved."""

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "_saved_state" in vars(cls):
            register(cls)

    def save_pretrained(self, folder: str | os.PathLike, *, moments: bool = True, backbone: Any = False) -> None:
        """Write the estimator into a folder, created if it does not exist; see :func:`~faast_sklearn.save`.

        Parameters
        ----------
        folder : str or path
        moments : bool, default=True
        backbone : bool, default=False
        """
        save(self, os.path.join(os.fspath(folder), ""), moments=moments, backbone=backbone)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, **parameters: Any) -> Any:
        """Read an estimator of this class from a file or folder; see :func:`~faast_sklearn.load`.

        Parameters
        ----------
        path : str or path
        **parameters
            Parameters that replace those in the file.

        Returns
        -------
        estimator
        """
        return _load(path, parameters, cls)

    def _ready_to_save(self, moments):
        """Solve before saving; if the file is to hold no moments, the solve must succeed."""

    def _restore_state(self, attributes):
        """Set attributes that were read from a file and checked one by one; raise ValueError if they do not fit."""
        self.__dict__.update(attributes)


def _versions(of_backbones):
    names = [*_LIBRARIES]
    if of_backbones:
        names += [name for name, module in _OF_BACKBONES.items() if module in sys.modules]
    return {"faast_sklearn": _own_version(), **{name: importlib.metadata.version(name) for name in names}}


def _own_version():
    return sys.modules[__name__.partition(".")[0]].__version__


def _warn_of_versions(saved, source):
    if not isinstance(saved, dict) or not all(isinstance(version, str) for version in saved.values()):
        raise source.wrong("has no versions")
    changed = []
    for name, version in saved.items():
        if name == "faast_sklearn":
            here = _own_version()
        elif name in _LIBRARIES or name in _OF_BACKBONES:
            try:
                here = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                here = "not installed"
        else:
            continue
        if version.split(".")[:2] != here.split(".")[:2]:
            changed.append(f"{name} {version[:20]}, here {here}")
    if changed:
        warnings.warn(
            f"saved with {'; '.join(changed)}. Features of a backbone may differ in their last digits; compare a few "
            "predictions before you rely on it.",
            SavedFileWarning,
            stacklevel=4,
        )
