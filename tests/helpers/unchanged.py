"""Whether a call left everything as it was."""

import logging
import os
import random
import signal
import sys
import threading
import warnings
from contextlib import contextmanager

import numpy as np
import torch
from helpers.language import hook_count

from faast_sklearn import FeatureCache
from faast_sklearn.backbones.base import Backbone


def surroundings():
    """All that a call shares with the rest of the process."""
    kind, keys, *position = np.random.get_state()  # noqa: NPY002
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "matmul": torch.get_float32_matmul_precision(),
        "torch random": torch.get_rng_state().numpy().tobytes(),
        "numpy random": (kind, keys.tobytes(), tuple(position)),
        "python random": random.getstate(),
        "our threads": sorted(t.name for t in threading.enumerate() if t.name.startswith("faast")),
        "warnings": (warnings.showwarning, tuple(map(repr, warnings.filters))),
        "errors of numpy": np.geterr(),
        "logging": {name: logging.getLogger(name).level for name in ("", "faast_sklearn", "transformers", "timm")},
        "logging at all": logging.root.manager.disable,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "interrupts": signal.getsignal(signal.SIGINT),
        "streams": (sys.stdout, sys.stderr),
        "switching": sys.getswitchinterval(),
    }


def of_module(module):
    """Flags, hooks and weights of a module that is only lent to us."""
    flags = tuple(part.training for part in module.modules())
    weights = tuple((tensor.data_ptr(), tensor._version) for tensor in module.state_dict(keep_vars=True).values())
    gradients = tuple((p.requires_grad, p.grad is None) for p in module.parameters())
    return flags, hook_count(module), weights, gradients


def of_estimator(estimator):
    """Its attributes as they are, and the bytes of what was learnt, without asking it to solve anything."""
    return {name: (id(value), contents(value)) for name, value in vars(estimator).items()}


def contents(value, seen=()):
    """What a value holds, through containers and objects of this library; lazy solutions and locks apart."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tolist() if value.dtype.hasobject else value.tobytes()
    if isinstance(value, dict):
        return {repr(key): contents(part, seen) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [contents(part, seen) for part in value]
    ours = type(value).__module__.startswith("faast_sklearn") and not isinstance(value, (Backbone, FeatureCache))
    if not ours or id(value) in seen:
        return repr(value) if isinstance(value, (int, float, str, bytes, bool, type(None))) else id(value)
    slots = [name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())]
    state = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    lazy = ("_lock", "_fitted", "_solved", "_directions", "_kept", "_carried")
    return {name: contents(part, (*seen, id(value))) for name, part in state.items() if name not in lazy}


@contextmanager
def everything_as_before(estimator, *modules):
    """Assert that a block changes neither the estimator nor the modules nor the rest of the process."""
    before = of_estimator(estimator), [of_module(m) for m in modules], surroundings()
    yield
    after = of_estimator(estimator), [of_module(m) for m in modules], surroundings()
    assert after[0].keys() == before[0].keys()
    for name, value in before[0].items():
        assert after[0][name] == value, name
    assert after[1] == before[1]
    for name, value in before[2].items():
        assert after[2][name] == value, name
