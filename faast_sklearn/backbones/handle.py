"""A reference to a backbone: what estimators keep, clone and pickle instead of weights."""

import contextlib
import copy
import difflib
import json
import os
from pathlib import Path
from typing import Any

import torch

from faast_sklearn.backbones.base import Backbone
from faast_sklearn.backbones.device import resolve_device, resolve_dtype
from faast_sklearn.backbones.modules import module_dtype, module_version, open_module, place_module, unwrapped
from faast_sklearn.backbones.open_backbones import open_once
from faast_sklearn.backbones.registry import (
    is_built_in,
    language_opener_of,
    list_backbones,
    opener_of,
    options_of,
    prefixes,
)
from faast_sklearn.backbones.tensors_only import tensors_only
from faast_sklearn.backbones.transformers.language_model import language_model_in_memory
from faast_sklearn.backbones.transformers.loading import adapter_hint
from faast_sklearn.errors import BackboneError, FaastError, UnknownBackboneError
from faast_sklearn.optional import explain_imports

__all__ = ["BackboneHandle", "as_handle", "backbone"]

_MODULE_OPTIONS = ("modality", "pooling", "max_length", "truncation", "layer", "tower")


class BackboneHandle:
    """Names a backbone without opening it. Make a handle with :func:`faast_sklearn.backbone`.

    Immutable and hashable. Handles are equal if spec and options are equal and module and preprocess are the same
    objects. ``clone``, ``copy`` and ``deepcopy`` return the handle itself, so that every clone of an estimator shares
    one open module. Pickling stores spec and options, never weights or a device; only a handle of an in-memory module
    also stores that module, moved to the CPU, and refers to a copy of it after unpickling.

    Attributes
    ----------
    spec : str or None
        ``"prefix:name"``; ``None`` for an in-memory module.
    options : dict
        A copy of the options.
    module : torch.nn.Module or None
    preprocess : object or None
    """

    __slots__ = ("_options", "module", "preprocess", "spec")
    _options: tuple
    module: Any
    preprocess: Any
    spec: str | None

    def __init__(self, spec: Any = None, options: Any = (), module: Any = None, preprocess: Any = None) -> None:
        for name, value in zip(self.__slots__, (tuple(options), module, preprocess, spec), strict=True):
            object.__setattr__(self, name, value)

    @property
    def options(self) -> dict[str, Any]:
        """Options as a dict."""
        return dict(self._options)

    def open(self, device: Any = None, dtype: Any = "auto") -> "Backbone":
        """Return the open backbone, shared by this process.

        Parameters
        ----------
        device : None, "auto", str or torch.device, default=None
            ``None`` takes the best available device.
        dtype : "auto", str or torch.dtype, default="auto"
            "auto" is bfloat16 on GPUs that support it, else float32; an in-memory module keeps its own dtype.

        Returns
        -------
        Backbone

        Raises
        ------
        BackboneError, UnknownBackboneError, MissingDependencyError, DeviceError
        """
        return self._open(device, dtype, open_module, opener_of)

    def open_language_model(self, device: Any = None, dtype: Any = "auto") -> Any:
        """Return the open language model with its head, shared by this process.

        Parameters
        ----------
        device : None, "auto", str or torch.device, default=None
        dtype : "auto", str or torch.dtype, default="auto"
            Both as in :meth:`open`.

        Returns
        -------
        LanguageModel

        Raises
        ------
        BackboneError
            Also if the backbone is not a causal or encoder-decoder language model, or its output matrix cannot be used.
        TypeError
            If an option applies to features only.
        UnknownBackboneError, MissingDependencyError, DeviceError
        """
        return self._open(device, dtype, _language_model_of_module, language_opener_of)

    def _open(self, device, dtype, open_in_memory, opener_of_prefix):
        device = resolve_device(device)
        if self.module is not None and isinstance(dtype, str) and dtype == "auto":
            dtype = module_dtype(self.module)
        dtype = resolve_dtype(dtype, device)
        if self.module is not None:
            # A module that was trained since it was opened is opened again.
            key = (open_in_memory, self._key(), device, dtype, module_version(self.module))
            return open_once(key, lambda: self._open_module(open_in_memory, device, dtype), in_memory=True)
        prefix, _, name = self.spec.partition(":")
        if prefix not in prefixes():
            raise UnknownBackboneError(f"prefix {prefix!r} is not registered in this process; see register_backbone.")
        opener = opener_of_prefix(prefix)
        where = os.path.realpath(name) if os.path.exists(name) else name
        key = (prefix, where, opener, self._options, device, dtype)

        def opened():
            # Registered openers may unpickle other objects from their own files.
            with tensors_only() if is_built_in(prefix) else contextlib.nullcontext():
                return opener(name, device=device, dtype=dtype, **self.options)

        return open_once(key, opened)

    def _open_module(self, open_in_memory, device, dtype):
        opened = open_in_memory(self.module, self.preprocess, device=device, dtype=dtype, **self.options)
        opened.source = self  # keeps the caller's module alive, so that no other object gets its id
        return opened

    def _key(self):
        return (self.spec, self._options, id(self.module), id(self.preprocess))

    def __eq__(self, other):
        return isinstance(other, BackboneHandle) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __setattr__(self, name, value):
        raise AttributeError("a handle is immutable; make another with backbone(...).")

    def __delattr__(self, name):
        raise AttributeError("a handle is immutable.")

    def __repr__(self):
        shown = repr(self.spec) if self.module is None else type(self.module).__name__
        return f"backbone({', '.join([shown, *(f'{k}={v!r}' for k, v in self._options)])})"

    def __sklearn_clone__(self, *_):
        return self

    __copy__ = __deepcopy__ = __sklearn_clone__

    def __reduce__(self):
        module = self.module
        if module is not None and any(t.device.type != "cpu" for t in [*module.parameters(), *module.buffers()]):
            module = copy.deepcopy(module).cpu()
        return BackboneHandle, (self.spec, self._options, module, self.preprocess)


def _language_model_of_module(module, preprocess, *, device, dtype, **options):
    return language_model_in_memory(
        place_module(module, device, dtype), preprocess, device=device, dtype=dtype, **options
    )


def backbone(spec: Any, **options: Any) -> "BackboneHandle":
    """Name a frozen pretrained model, with options, to pass to an estimator.

    Parameters
    ----------
    spec : str, path, nn.Module or (nn.Module, preprocess)
        ``"timm:NAME"``, ``"hf:NAME_OR_PATH"``, ``"bundled:NAME"``, ``"PREFIX:NAME"`` with a registered prefix,
        a local folder or GGUF file, or a module in memory. If a path exists, nothing is looked up on a hub.
        Without ``preprocess`` a module takes arrays and tensors, which are stacked; with it, images (or what
        ``modality=`` says). timm models and ``SentenceTransformer`` need no ``preprocess``; pass a transformers
        model with its tokenizer or image processor. Wrappers (``torch.compile``, ``DataParallel``, PEFT) are removed.
    **options
        timm: ``weights``, ``pretrained``, ``image_size``, ``pooling``. hf: ``pooling``,
        ``max_length``, ``truncation``, ``layer``, ``tower``, ``revision``, ``local_files_only``,
        ``gguf_file``, ``trust_remote_code``, ``base_config``. In-memory modules: ``modality``; transformers ones
        with their tokenizer or processor also ``pooling``, ``max_length``, ``truncation``,
        ``layer``, ``tower``.

    Returns
    -------
    BackboneHandle

    Raises
    ------
    UnknownBackboneError
        No such prefix, path or bundled name; the message lists similar names. Names on a hub and in
        timm are looked up when the handle is opened.
    TypeError
        Unknown option; the message lists the allowed ones.

    Notes
    -----
    A module in memory is never moved or cast, and its mode is restored: on its own device and dtype the module itself
    runs, in eval mode during a pass; otherwise a deep copy runs. If you train it further, the next call sees the new
    weights.

    Examples
    --------
    >>> from faast_sklearn.backbones import backbone
    >>> backbone("bundled:minilm-l6", max_length=64)
    backbone('bundled:minilm-l6', max_length=64)
    >>> backbone("bundled:minilm")
    Traceback (most recent call last):
    ...
    faast_sklearn.errors.UnknownBackboneError: no bundled backbone 'minilm'; did you mean bundled:minilm-l6?
    """
    if isinstance(spec, BackboneHandle):
        return BackboneHandle(spec.spec, _options({**spec.options, **options}), spec.module, spec.preprocess)
    module, preprocess = spec if isinstance(spec, tuple) and len(spec) == 2 else (spec, None)
    if isinstance(module, torch.nn.Module):
        module = unwrapped(module)
        _check_options(options, _MODULE_OPTIONS, type(module).__name__)
        return BackboneHandle(None, _options(options), module, preprocess)
    if not isinstance(spec, (str, os.PathLike)):
        raise UnknownBackboneError(
            f"backbone={spec!r} is {type(spec).__name__}; pass a spec such as 'timm:NAME', a path, a handle, an "
            "nn.Module or (module, preprocess)."
        )
    spec, found = _resolve(os.fspath(spec))
    options = {**found, **options}
    prefix, _, name = spec.partition(":")
    _check_options(options, options_of(prefix, name), f"'{prefix}:'")
    return BackboneHandle(spec, _options(options))


def as_handle(thing: Any) -> "BackboneHandle":
    """Turn the value of an estimator's ``backbone`` parameter into a handle.

    Parameters
    ----------
    thing : BackboneHandle, str, path, nn.Module or (nn.Module, preprocess)

    Returns
    -------
    BackboneHandle
        ``thing`` itself if it is one.

    Examples
    --------
    >>> from faast_sklearn.backbones.handle import as_handle
    >>> as_handle("hf:org/name").spec
    'hf:org/name'
    """
    return thing if isinstance(thing, BackboneHandle) else backbone(thing)


def _options(options):
    """Make options hashable and portable."""

    def plain(value):
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value

    return tuple(sorted((name, plain(value)) for name, value in options.items()))


def _check_options(options, allowed, what):
    unknown = [] if allowed is None else sorted(set(options) - set(allowed))
    if unknown:
        raise TypeError(f"{what} takes no option {unknown[0]!r}; allowed: {', '.join(allowed) or 'none'}.")


def _resolve(text):
    """Turn what users write into "prefix:name" and the options that a path implies."""
    prefix, colon, name = text.partition(":")
    if colon and prefix in prefixes():
        if not name:
            raise UnknownBackboneError(f"{text!r} has no name after the prefix; see list_backbones('{prefix}:*').")
        path = Path(name)
        if prefix == "hf" and path.suffix == ".gguf" and path.is_file():
            return f"hf:{path.parent}", {"gguf_file": path.name}
        return text, {}
    path = Path(text).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return f"{'timm' if _is_of_timm(path / 'config.json') else 'hf'}:{path}", {}
        gguf = sorted(path.glob("*.gguf"))
        if len(gguf) == 1:
            return f"hf:{path}", {"gguf_file": gguf[0].name}
        raise BackboneError(f"folder {text!r} has no config.json, so its model is unknown.{adapter_hint(path)}")
    if path.is_file():
        if path.suffix == ".gguf":
            return f"hf:{path.parent}", {"gguf_file": path.name}
        raise BackboneError(
            f"file {text!r} holds weights but not their architecture; use backbone('timm:NAME', weights={text!r})."
        )
    raise UnknownBackboneError(f"backbone {text!r} is neither a known prefix nor an existing path. {_suggest(text)}")


def _is_of_timm(path):
    """Whether timm wrote a configuration; transformers' wrapper of timm names an architecture too."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(config, dict) and "architecture" in config and "model_type" not in config


def _suggest(text):
    name = text.rsplit(":", 1)[-1].rsplit("/", 1)[-1]
    known = {}
    # A broken timm must not hide the misspelt name.
    try:
        with explain_imports("timm"):
            known = {spec.partition(":")[2]: spec for spec in list_backbones(available_only=False)}
    except FaastError:
        known = {spec.partition(":")[2]: spec for spec in list_backbones("bundled:*", available_only=False)}
    near = [known[n] for n in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)]
    near += [spec for n, spec in known.items() if n.split(".")[0] == name and spec not in near][:2]
    if "/" in text and not os.path.isabs(text):
        near.append(f"hf:{text}")
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}Prefixes: {', '.join(f'{p}:' for p in prefixes())}; see list_backbones()."
