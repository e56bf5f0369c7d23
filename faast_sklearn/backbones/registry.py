"""The known prefixes, their names and options, and how to add your own."""

import fnmatch
import inspect
import re
from typing import Any

from faast_sklearn.backbones.bundled import BundledBackbone
from faast_sklearn.backbones.open_clip import OpenClipBackbone
from faast_sklearn.backbones.timm import TimmBackbone
from faast_sklearn.backbones.transformers.kinds import HuggingFaceBackbone
from faast_sklearn.errors import BackboneError

__all__ = [
    "is_built_in",
    "language_opener_of",
    "list_backbones",
    "opener_of",
    "options_of",
    "prefixes",
    "register_backbone",
]

_BUILT_IN = {
    "bundled": BundledBackbone,
    "hf": HuggingFaceBackbone,
    "open_clip": OpenClipBackbone,
    "timm": TimmBackbone,
}
_registered = dict(_BUILT_IN)


def register_backbone(prefix: str, cls) -> None:
    """Make ``"prefix:NAME"`` a backbone in this process.

    Parameters
    ----------
    prefix : str
        Two or more lower-case letters, digits, "-" or "_".
    cls : class or callable
        A :class:`~faast_sklearn.backbones.Backbone` with a classmethod
        ``open(name, *, device, dtype, **options)``, or a function like ``open``. An optional classmethod
        ``names()`` feeds :func:`list_backbones`. For use with ``n_jobs``, register it in a
        module that the workers import.

    Raises
    ------
    BackboneError
        If the prefix is built in or malformed, or ``cls`` has no ``open``.

    Examples
    --------
    See :class:`~faast_sklearn.backbones.Backbone`.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]+", prefix) or prefix in _BUILT_IN:
        raise BackboneError(
            f"prefix {prefix!r} must be two or more of a-z, 0-9, '-', '_' and none of {', '.join(_BUILT_IN)}."
        )
    if not callable(getattr(cls, "open", None if isinstance(cls, type) else cls)):
        raise BackboneError(f"{cls!r} needs a classmethod open(name, *, device, dtype, **options).")
    _registered[prefix] = cls


def prefixes() -> Any:
    """Return the known prefixes."""
    return list(_registered)


def is_built_in(prefix: Any) -> bool:
    """Whether a prefix is built into this library."""
    return prefix in _BUILT_IN


def opener_of(prefix: Any) -> Any:
    """Return the function ``(name, *, device, dtype, **options) -> Backbone`` of a prefix."""
    target = _registered[prefix]
    return getattr(target, "open", target)


def language_opener_of(prefix: Any) -> Any:
    """Return the function ``(name, *, device, dtype, **options) -> LanguageModel`` of a prefix, or raise."""
    opener = getattr(_registered[prefix], "open_language_model", None)
    if opener is None:
        raise BackboneError(
            f"'{prefix}:' has no language models; use 'hf:NAME_OR_PATH', 'bundled:smollm2-135m', a local folder or "
            "(model, tokenizer)."
        )
    return opener


def options_of(prefix: Any, name: Any) -> Any:
    """Return the option names that a backbone takes, or ``None`` if it takes any."""
    options = getattr(_registered[prefix], "options", None)
    if callable(options):
        return tuple(options(name))
    parameters = inspect.signature(opener_of(prefix)).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("device", "dtype"))


def list_backbones(pattern: str = "*", *, available_only: bool = True) -> list:
    """List the known spec strings.

    Parameters
    ----------
    pattern : str, default="*"
        Shell-style pattern over whole specs, such as ``"timm:*resnet*"``; a pattern without a
        prefix matches every prefix.
    available_only : bool, default=True
        ``False`` also lists bundled weights whose package is not installed.

    Returns
    -------
    list of str
        Bundled weights; models of timm and open_clip, where installed, with pretrained weights (downloaded when
        opened); and the names that registered backbones offer. ``"hf:NAME_OR_PATH"`` cannot be enumerated.

    Examples
    --------
    >>> from faast_sklearn.backbones import list_backbones
    >>> list_backbones("bundled:*", available_only=False)
    ['bundled:efficientnet-lite0', 'bundled:minilm-l6', 'bundled:smollm2-135m']
    """
    wanted, _, rest = pattern.rpartition(":") if ":" in pattern else ("*", "", pattern)
    found = []
    for prefix in fnmatch.filter(prefixes(), wanted):
        names = getattr(_registered[prefix], "names", list)
        names = names(available_only) if prefix == "bundled" else names()
        found += [f"{prefix}:{name}" for name in fnmatch.filter(names, rest)]
    return found
