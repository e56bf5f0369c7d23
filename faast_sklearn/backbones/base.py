"""The class of all backbones, which is the one class to write for a backbone of your own.

A backbone is an *opened*, frozen pretrained module: its weights are on a device, and its preprocessing is part of it.
Estimators never hold one; they hold a :class:`~faast_sklearn.backbones.handle.BackboneHandle`, which opens it when it
is needed.
"""

import contextlib
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from faast_sklearn.backbones.fingerprints import fingerprint
from faast_sklearn.backbones.inner import repeated_blocks, statistics_of_maps, unit_length
from faast_sklearn.errors import BackboneError, FaastError, shortened

__all__ = [
    "Backbone",
    "Batch",
    "ForwardPass",
    "alike",
    "as_features",
    "frozen",
    "in_eval_mode",
    "random_state",
    "refuse_random",
    "run_on_probe",
    "uncompiled",
]

# Attributes that do not change a backbone's features, or that change while it runs.
_DECIDE_NOTHING = ("_derived", "_probed", "default_batch_size", "device", "license", "n_features", "source")


@dataclass(frozen=True)
class Batch:
    """Samples on the host, ready for :meth:`Backbone.forward`.

    Parameters
    ----------
    inputs : object
        Whatever ``forward`` takes; host tensors.
    size : int
        Number of samples.
    lengths : ndarray of shape (size,), default=None
        Texts: token counts *before* truncation, special tokens included. ``None`` otherwise.
    limit : int, default=None
        Texts: the most tokens that the backbone reads. ``None`` otherwise.
    """

    inputs: Any
    size: int
    lengths: np.ndarray | None = None
    limit: int | None = None


class ForwardPass(ABC):
    """What the loop over data runs: samples are read and collated on the host, then go through it batch by batch.

    ``read`` and ``collate`` run on the host in several threads at once; ``forward`` runs in the caller's thread.

    Attributes
    ----------
    modality : {"image", "text", "tensor"}
        What samples are; texts are run longest first.
    device : torch.device
        The device of the module.
    dtype : torch.dtype
        Precision in which the module computes.
    truncation : {"warn", "error"}, default="warn"
        What to do with texts longer than ``Batch.limit``; the loop over the data does it.
    default_batch_size : int, default=32
        Where ``batch_size="auto"`` starts.
    """

    modality: str
    device: torch.device
    dtype: torch.dtype
    truncation: str = "warn"
    default_batch_size: int = 32

    @abstractmethod
    def read(self, sample: Any) -> Any:
        """Read one sample on the host (thread-safe)."""

    @abstractmethod
    def collate(self, items: Any) -> Batch:
        """Turn samples that were read into a :class:`Batch` on the host (thread-safe)."""

    @abstractmethod
    def forward(self, batch: Any) -> Any:
        """Return one result per sample, in the order of the items."""

    @property
    def shares_memory_with(self) -> Any:
        """The object for which the batch size that fits into memory is remembered; by default this one."""
        return self

    def sort_key(self, item: Any) -> int:
        """Return a proxy for the cost of a sample that was read; samples of similar cost go into one batch."""
        return 0

    def check(self, output: Any, n: Any) -> None:  # noqa: B027 - what needs no check has none
        """Raise BackboneError unless what ``forward`` returned for ``n`` samples has the right form."""

    def finite(self, output: Any) -> torch.Tensor | None:
        """Return one flag per sample: whether ``forward`` returned only finite numbers for it; None skips the check."""
        return torch.isfinite(output).all(dim=1)


class Backbone(ForwardPass):
    """An opened, frozen feature extractor. Subclass it and call ``register_backbone`` to add yours.

    A subclass sets the attributes below, implements the three abstract methods and, to be opened
    from a spec string ``"prefix:NAME"``, a classmethod ``open(name, *, device, dtype, **options)``
    that returns an instance; its keyword arguments are the options that users may give.

    ``read`` and ``collate`` run on the host in several threads at once; ``forward`` runs in the
    caller's thread.

    Attributes
    ----------
    modality : {"image", "text", "tensor"}
        What samples are: images, strings, or rows of an array.
    n_features : int or None
        Number of features. ``None`` only if the first batch determines it (a bare module).
    device : torch.device
        Device of the module and of the features.
    dtype : torch.dtype
        Precision in which the module computes.
    truncation : {"warn", "error"}, default="warn"
        What to do with texts longer than ``Batch.limit``; the loop over the data does it.
    default_batch_size : int, default=32
        Where ``batch_size="auto"`` starts.
    license : str, default="unknown"
        Licence of the weights, if it is known.
    module : torch.nn.Module or None
        The module itself.
    settings : tuple
        What else determines the features (preprocessing, pooling, length); part of :meth:`fingerprint`, as all
        attributes are.
    blocks : tuple of int or None, default=()
        Widths of the last layer's features and of each statistic of inner layers after them; empty without inner
        layers, ``None`` if the first batch determines them.
    feature_maps : bool, default=True
        Whether inner layers are feature maps, as those of convolutional networks are; other inner layers are scaled
        down before the solve.
    remedy : str
        What to pass instead, for the message about samples that the backbone cannot read.

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.backbones import Backbone, Batch, backbone, register_backbone
    >>> class Halves(Backbone):
    ...     modality, n_features, dtype = "tensor", 2, torch.float32
    ...
    ...     @classmethod
    ...     def open(cls, name, *, device, dtype):
    ...         self = cls()
    ...         self.device = device
    ...         return self
    ...
    ...     def read(self, sample):
    ...         return torch.as_tensor(sample, dtype=torch.float32)
    ...
    ...     def collate(self, items):
    ...         return Batch(torch.stack(items), len(items))
    ...
    ...     def forward(self, batch):
    ...         return batch.inputs.to(self.device)[:, :2] / 2
    >>> register_backbone("halves", Halves)
    >>> module = backbone("halves:any").open("cpu")
    >>> module.forward(module.collate([module.read([2.0, 4.0, 6.0])]))
    tensor([[1., 2.]])
    """

    n_features: int | None
    license: str = "unknown"
    module: Any = None
    settings: tuple = ()
    blocks: tuple[int, ...] | None = ()
    feature_maps: bool = True
    remedy: str = "a backbone that reads such samples"

    @abstractmethod
    def forward(self, batch: Any) -> Any:
        """Return features of shape (batch.size, n_features) on ``self.device``, in the order of the items."""

    def inner_layers(self) -> list[torch.nn.Module]:
        """Return the inner layers that may be read beside the features, first to last.

        By default these are the blocks or stages of ``module``, if it has any. Override it if another choice is better;
        an empty list means that there are no inner layers to read.

        Returns
        -------
        list of torch.nn.Module
            Layers that do not run exactly once in a pass of ``forward`` are left out.
        """
        return repeated_blocks(self.module)

    def pool_layer(self, output: torch.Tensor, batch: Any) -> list[torch.Tensor]:
        """Reduce the output of an inner layer for a batch to vectors.

        By default these are mean, maximum and standard deviation over the positions of a feature map (n, c, h, w), or
        the mean over the tokens of (n, t, d), scaled to unit length; (n, d) is taken as it is.

        Parameters
        ----------
        output : tensor of shape (n, ...)
        batch : Batch
            The argument of ``forward``.

        Returns
        -------
        list of tensors of shape (n, d)
            Statistics, each of which is scaled by itself; an empty list if there is nothing to read.
        """
        if output.ndim == 4:
            return statistics_of_maps(output)
        if output.ndim == 3:
            return [unit_length((output if output.dtype == torch.float64 else output.float()).mean(1))]
        return [output] if output.ndim == 2 else []

    def any_sample(self) -> Any:
        """Return a sample to find the widths of inner layers with; None if only real samples can show them."""
        if self.modality == "tensor" or self.n_features is None:
            return None
        return "a text of a few words" if self.modality == "text" else np.full((64, 64, 3), 128, np.uint8)

    def check(self, output: Any, n: Any) -> None:
        """Raise BackboneError unless what ``forward`` returned for ``n`` samples has the right form."""
        # A bare module has no width until its first batch.
        if output.ndim != 2 or len(output) != n or self.n_features not in (None, output.shape[1]):
            width = "n_features" if self.n_features is None else self.n_features
            raise BackboneError(
                f"{type(self).__name__}.forward returned shape {tuple(output.shape)}, expected ({n}, {width})."
            )

    def fingerprint(self) -> str:
        """Return a digest of everything that determines the features, for caches.

        It covers the class, its attributes (settings, preprocessing, tokeniser), the precision, the module's code and
        its weights, but not the device. The module ``faast_sklearn.backbones.fingerprints`` says how.

        Returns
        -------
        str
        """
        state = {name: value for name, value in vars(self).items() if name not in _DECIDE_NOTHING}
        return fingerprint(type(self), self.modality, self.truncation, self.settings, self.dtype, state)


_stance_lock = threading.Lock()
_stance, _blocks = None, 0


@contextlib.contextmanager
def uncompiled(module: torch.nn.Module, *, everywhere: bool) -> Iterator[Any]:
    """Run compiled code eagerly within a block, since code that was compiled without hooks does not call them.

    Parameters
    ----------
    module : torch.nn.Module
    everywhere : bool
        True: always, since other compiled code may contain the module. False: only if the module or a part of it was
        compiled in place, or its ``forward`` was.
    """
    global _blocks, _stance
    if not everywhere and not any(map(_is_compiled, module.modules())):
        yield
        return
    with _stance_lock:  # all threads share the stance, so the last block to end restores it
        if not _blocks:
            _stance = torch.compiler.set_stance("force_eager")
            _stance.__enter__()
        _blocks += 1
    try:
        yield
    finally:
        with _stance_lock:
            _blocks -= 1
            if not _blocks:
                _stance.__exit__(None, None, None)


def _is_compiled(part):
    # Parts that torch.compile wrapped have a compiled forward, as those with ``part.forward = torch.compile(...)``.
    forward = getattr(part, "forward", None)
    return getattr(part, "_compiled_call_impl", None) or hasattr(forward, "_torchdynamo_orig_callable")


_flags_lock = threading.Lock()
_flags = weakref.WeakKeyDictionary()  # module -> [passes under way, submodules to put back in training mode]


@contextlib.contextmanager
def frozen(module: torch.nn.Module) -> Iterator[Any]:
    """Run a pass in eval and inference mode, then restore the module's training flags.

    Parameters
    ----------
    module : torch.nn.Module
    """
    with in_eval_mode(module), torch.inference_mode():
        yield


@contextlib.contextmanager
def in_eval_mode(module: torch.nn.Module) -> Iterator[Any]:
    """Run a pass in eval mode, with gradients where they are asked for, then restore the module's training flags.

    Several threads may use one module: the flags are restored when the last pass ends.

    Parameters
    ----------
    module : torch.nn.Module
    """
    with _flags_lock:
        state = _flags.setdefault(module, [0, []])
        if state[0] == 0:
            state[1] = [part for part in module.modules() if part.training]
            for part in state[1]:
                part.training = False
        state[0] += 1
    try:
        with uncompiled(module, everywhere=False):
            yield
    finally:
        with _flags_lock:
            state[0] -= 1
            if state[0] == 0:
                for part in state[1]:
                    part.training = True
                state[1] = []


def run_on_probe(name: Any, what: Any, run: Any) -> Any:
    """Return the output of a model for a first sample; raise BackboneError, with the reason, if the model fails."""
    try:
        return run()
    except (FaastError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        reason = shortened(f"{type(error).__name__}: {error}", most=200, quoted=False)
        raise BackboneError(
            f"{name} gives no features of {what} by itself ({reason}); use another model, or pass (module, preprocess) "
            "with a module that does."
        ) from error


def refuse_random(name: str, dtype: Any, run: Callable[..., Any]) -> torch.Tensor:
    """Raise BackboneError if two passes over the same sample differ by more than rounding.

    Parameters
    ----------
    name : str
        Name of the model.
    dtype : torch.dtype
        Precision in which it computes.
    run : callable
        Returns the features of one pass, a tensor.

    Returns
    -------
    torch.Tensor
        The features of the first pass.
    """
    one, other = run(), run()
    if one.shape != other.shape or not alike(one, other, dtype):
        raise BackboneError(
            f"{name} draws at random also in eval mode (masks, noise, dropout), so that its features are noise: two "
            "passes over one sample differ. Use a model without it; masked autoencoders of transformers mask nothing "
            "with model.config.mask_ratio = 0 (or in config.json)."
        )
    return one


def random_state(device: Any) -> Any:
    """Return the state of torch's random generators, which changes when a pass on ``device`` draws a number."""
    state = [torch.get_rng_state()]
    module = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(module, "get_rng_state"):
        state.append(module.get_rng_state(device) if device.type != "mps" else module.get_rng_state())
    return torch.cat([part.cpu() for part in state])


def alike(one: Any, other: Any, dtype: Any) -> bool:
    """Whether two tensors of features, computed in a dtype, are equal up to rounding."""
    scale = max(float(one.norm()), float(other.norm()))
    return not scale or not float((one - other).norm()) > (1e-4 if dtype.itemsize > 2 else 0.02) * scale


def as_features(features: torch.Tensor) -> torch.Tensor:
    """Turn a pass's output into float32 features that may be used outside inference mode.

    Parameters
    ----------
    features : torch.Tensor
        Of any floating dtype; float64 stays float64.

    Returns
    -------
    torch.Tensor
        A copy, since inference tensors refuse in-place updates outside inference mode.
    """
    target = torch.float64 if features.dtype == torch.float64 else torch.float32
    return features.to(target, copy=True)
