"""A digest of everything that decides what a module, a function or an object computes, as far as Python can tell.

In doubt two digests differ: that costs a cache only a miss, while a digest shared by different things would give wrong
features. Digests are the same in every process with the same libraries, also for copies and unpickled modules.
"""

import contextlib
import dis
import enum
import functools
import hashlib
import logging
import os
import pickle
import re
import sys
import sysconfig
import threading
import types
import weakref
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch

__all__ = ["fingerprint"]

_PLAIN = (type(None), type(...), bool, int, float, complex, str, bytes, slice, range, enum.Enum, re.Pattern)
_TORCH_PLAIN = (torch.dtype, torch.Size, torch.memory_format, torch.layout)
# Devices, generators, loggers and locks are taken not to affect results.
_IRRELEVANT = (torch.device, torch.Generator, logging.Logger, type(threading.Lock()), type(threading.RLock()))
_INTERNAL = frozenset(vars(torch.nn.Module()))  # training flags, hooks and the dicts of parts and tensors
# Attributes that record where something was loaded from, or that libraries write while they run.
_NOTES = {"_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "warnings_issued"}
# What a generation configuration was loaded as, in a hash that differs between processes.
_NOTES |= {"_original_object_hash"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_SLICES = 1024


def fingerprint(*things: Any) -> str:
    """Return a digest of what decides what ``things`` compute.

    Modules: types, code, plain attributes and tensors of all parts. Functions: code, defaults, closure and the globals
    they use. Other objects: their type and attributes. Code of installed packages counts by name and version. Large
    tensors count by the sums of about 1,024 slices and one entry of each, so that large models cost little.

    Parameters
    ----------
    *things : object

    Returns
    -------
    str

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.backbones.fingerprints import fingerprint
    >>> one, same, other = torch.nn.LeakyReLU(0.1), torch.nn.LeakyReLU(0.1), torch.nn.LeakyReLU(0.2)
    >>> fingerprint(one) == fingerprint(same), fingerprint(one) == fingerprint(other)
    (True, False)
    """
    walk = _Walk()
    with torch.inference_mode():
        for thing in things:
            walk.add(thing)
    return walk.hexdigest()


class _Walk:
    """Feeds everything reachable into a digest."""

    def __init__(self):
        self._hash = hashlib.blake2b(digest_size=16)
        self._seen = {}  # id -> (number, object); holding the object keeps its id from being reused
        self._open = set()  # containers being walked

    def hexdigest(self):
        return self._hash.hexdigest()

    def add(self, thing):
        kind = type(thing)
        if isinstance(thing, _IRRELEVANT):
            self._put("irrelevant")
        elif isinstance(thing, (*_PLAIN, *_TORCH_PLAIN)):
            self._put(kind.__qualname__, repr(thing))
        elif isinstance(thing, os.PathLike):
            self._put("path", os.fspath(thing))
        elif isinstance(thing, torch.Tensor):
            self._tensor(thing)
        elif isinstance(thing, (np.ndarray, np.generic)):
            self._array(np.asarray(thing))
        elif isinstance(thing, (list, tuple, Mapping, Set)):
            self._container(thing)
        elif isinstance(thing, types.ModuleType):
            self._put("module", thing.__name__)
        elif self._first_time(thing):
            self._thing(thing)

    def _thing(self, thing):
        if isinstance(thing, types.CodeType):
            self._code(thing)
        elif isinstance(thing, types.FunctionType):
            self._function(thing)
        elif isinstance(thing, types.MethodType):
            self.add(thing.__func__)
            self.add(thing.__self__)
        elif isinstance(thing, functools.partial):
            self.add((thing.func, thing.args, thing.keywords))
        elif isinstance(thing, (staticmethod, classmethod)):
            self.add(thing.__func__)
        elif isinstance(thing, property):
            self.add((thing.fget, thing.fset))
        elif isinstance(thing, type):
            self._class(thing)
        elif isinstance(thing, torch.nn.Module):
            self._module(thing)
        elif hasattr(thing, "get_vocab") and hasattr(thing, "special_tokens_map"):
            self._tokenizer(thing)
        elif callable(thing) and hasattr(thing, "__qualname__"):  # written in C
            self._put("builtin", str(getattr(thing, "__module__", None)), thing.__qualname__)
            self.add(getattr(thing, "__wrapped__", None))  # of a cached function
        else:
            self._object(thing)

    def _put(self, *texts):
        for text in texts:
            # Lengths come first, so that no two sequences of texts feed the same bytes.
            encoded = text.encode("utf-8", "surrogatepass")
            self._hash.update(b"%d:" % len(encoded))
            self._hash.update(encoded)

    def _first_time(self, thing):
        if id(thing) not in self._seen:
            self._seen[id(thing)] = (len(self._seen), thing)
            return True
        self._put("again", str(self._seen[id(thing)][0]))
        return False

    def _container(self, thing):
        self._put(type(thing).__qualname__, str(len(thing)))
        if id(thing) in self._open:
            self._put("cycle")
            return
        self._open.add(id(thing))
        if isinstance(thing, Mapping):
            for key, value in thing.items():
                if not (isinstance(key, str) and key in _NOTES):
                    self.add(key)
                    self.add(value)
        elif isinstance(thing, Set):
            # The order of a set differs between processes.
            self._put(*sorted(fingerprint(part) for part in thing))
        else:
            for part in thing:
                self.add(part)
        self._open.discard(id(thing))

    def _tensor(self, tensor):
        tensor = tensor.detach()
        self._put("tensor", str(tensor.dtype), repr(tuple(tensor.shape)))
        if tensor.is_meta or tensor.numel() == 0:
            return
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        elif tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        # Integer sums of bit patterns do not depend on the order in which threads add; float sums do.
        bits = tensor.contiguous().reshape(-1).view(_BITS[tensor.element_size()])
        step = max(1, len(bits) // _SLICES)
        whole = len(bits) // step * step
        sums = bits[:whole].reshape(-1, step).sum(1, dtype=torch.int64)
        for part in (sums, bits[whole:], bits[::step]):
            self._hash.update(part.cpu().numpy().tobytes())

    def _array(self, array):
        self._put("array", str(array.dtype), repr(array.shape))
        if array.dtype.hasobject:
            self.add(array.tolist())
        else:
            self._hash.update(np.ascontiguousarray(array).tobytes())

    def _code(self, code):
        self._put("code", code.co_name, repr(code.co_names), repr(code.co_freevars), str(code.co_argcount))
        self._hash.update(code.co_code)
        self.add(code.co_consts)

    def _function(self, function):
        code = function.__code__
        if _is_library(function.__module__):
            self._put("function", _version(function.__module__), str(function.__module__), function.__qualname__)
        self._code(code)
        self.add((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty cell
                self.add(cell.cell_contents)
        if not _is_library(function.__module__):
            for name in _globals_of(code):
                if name in function.__globals__:
                    self._put(name)
                    self.add(function.__globals__[name])

    def _class(self, cls):
        for base in cls.__mro__:
            if _is_library(base.__module__):
                self._put("class", _version(base.__module__), base.__module__, base.__qualname__)
                continue
            self._put("class", base.__qualname__)
            for name, value in vars(base).items():
                dunder = name.startswith("__") and name.endswith("__")
                written = isinstance(value, types.FunctionType) and not name.startswith("__annotate")
                if written or not (dunder or name.startswith("_abc_")):
                    self._put(name)
                    self.add(value)

    def _module(self, module):
        for name, part in module.named_modules(remove_duplicate=False):
            self._put("part", name)
            if part is not module and not self._first_time(part):
                continue
            self.add(type(part))
            # Scripted and traced modules keep their code outside their type.
            with contextlib.suppress(Exception):
                self._put(part.extra_repr())
            with contextlib.suppress(Exception):
                self._put(getattr(part, "code", ""))
            for attribute, value in vars(part).items():
                if attribute not in _INTERNAL and attribute not in _NOTES:
                    self._put(attribute)
                    self.add(value)
            for hooks in _HOOKS:
                self.add(list(vars(part).get(hooks, {}).values()))
        for name, tensor in {**dict(module.named_buffers()), **module.state_dict()}.items():
            self._put(name)
            self.add(tensor)

    def _tokenizer(self, tokenizer):
        self.add(type(tokenizer))
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._put(repr(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str())
        if backend is None:
            flags = {k: v for k, v in tokenizer.init_kwargs.items() if isinstance(v, (bool, int, float))}
            self._put(repr(sorted(flags.items())))
        specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        self._put(repr(sorted(specials.items())), str(getattr(tokenizer, "truncation_side", "")))

    def _object(self, thing):
        kind = type(thing)
        self.add(kind)
        if isinstance(thing, (weakref.ref, types.GeneratorType)):
            return
        shown = _repr(thing)
        self._put(shown)
        state = dict(getattr(thing, "__dict__", {}))
        for cls in kind.__mro__:
            slots = vars(cls).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(thing, name):
                    state[name] = getattr(thing, name)
        for name, value in state.items():
            if name not in _NOTES and name not in ("__dict__", "__weakref__"):
                self._put(name)
                self.add(value)
        if not state and not shown:
            # Its state is hidden from Python; the pickle is the best substitute.
            with contextlib.suppress(Exception):
                self._hash.update(pickle.dumps(thing, protocol=4))


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _repr(thing):
    """Return the repr of an object, or "" if it holds an address or a name in ``_NOTES``."""
    if type(thing).__repr__ is object.__repr__:
        return ""
    with contextlib.suppress(Exception):
        shown = repr(thing)
        return "" if " at 0x" in shown or any(note in shown for note in _NOTES) else shown
    return ""


def _globals_of(code):
    """Name the globals that code uses, nested functions included."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(_globals_of(constant))
    return sorted(names)


@functools.cache
def _is_library(name):
    """Whether a module is installed, rather than the user's script, notebook or checkout."""
    top = str(name).partition(".")[0]
    if top == "__main__" or name is None:
        return False
    if top in sys.stdlib_module_names or top in ("faast_sklearn", "torch"):
        return True
    file = getattr(sys.modules.get(name) or sys.modules.get(top), "__file__", None)
    if file is None:
        return top in sys.builtin_module_names
    folders = {sysconfig.get_path(key) for key in ("purelib", "platlib", "stdlib")}
    return any(os.path.abspath(file).startswith(os.path.abspath(folder) + os.sep) for folder in folders) or bool(
        {"site-packages", "dist-packages"} & set(file.split(os.sep))
    )


def _version(name):
    top = str(name).partition(".")[0]
    return str(getattr(sys.modules.get(top), "__version__", ""))
