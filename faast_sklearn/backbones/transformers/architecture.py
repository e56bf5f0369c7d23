"""Find a language model's blocks, final norm and output matrix, and check them by one small pass."""

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from faast_sklearn.backbones.base import frozen
from faast_sklearn.errors import BackboneError

__all__ = ["Architecture", "Finish", "find_architecture"]

# Configuration fields that may scale or cap the result of the output matrix. A pass shows whether the model uses them,
# and whether it multiplies or divides by a scale.
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
_CAPS = ("final_logit_softcapping", "output_logit_soft_cap")
_PROBE_RANGE = 60.0  # beyond every soft cap in use, and within float16


@dataclass(frozen=True)
class Finish:
    """What a model does to the output matrix's result: scale it, cap it softly, add a bias.

    Parameters
    ----------
    scale : float, default=1.0
    cap : float, default=None
        ``cap * tanh(scale * raw / cap)``.
    bias : torch.Tensor of shape (vocabulary,), default=None

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.backbones.transformers.architecture import Finish
    >>> Finish(scale=0.5)(torch.tensor([4.0])), Finish(cap=1.0).slope(torch.tensor([0.0]))
    (tensor([2.]), tensor([1.]))
    """

    scale: float = 1.0
    cap: float | None = None
    bias: torch.Tensor | None = None

    def __call__(self, raw, tokens=None):
        """Return the logits of ``raw``, whose last axis is the vocabulary or the given ``tokens`` only."""
        if self.scale != 1.0:
            raw = raw * self.scale
        if self.cap is not None:
            raw = torch.tanh(raw / self.cap) * self.cap
        if self.bias is None:
            return raw
        return raw + (self.bias if tokens is None else self.bias[tokens])

    def slope(self, raw: Any) -> Any:
        """Return the elementwise derivative of the logits: a tensor like ``raw`` with a cap, else a float."""
        if self.cap is None:
            return self.scale
        return (1 - torch.tanh(raw * (self.scale / self.cap)) ** 2) * self.scale


@dataclass(frozen=True)
class Architecture:
    """The parts of a language model that fast weights touch.

    Parameters
    ----------
    embedding : torch.nn.Module
        Input embedding; in an encoder-decoder, that of the decoder.
    head : torch.nn.Linear
        The output matrix.
    final_norm : torch.nn.Module or None
        The module whose output, times ``norm_factor``, is the output matrix's input.
    norm_factor : float
        1, except ``d ** -0.5`` for T5 with tied embeddings.
    layers : torch.nn.ModuleList
        The decoder's blocks.
    finish : Finish
        Turns the output matrix's result into the logits.
    """

    embedding: nn.Module
    head: nn.Linear
    final_norm: nn.Module | None
    norm_factor: float
    layers: nn.ModuleList
    finish: Finish


def find_architecture(module: Any) -> "Architecture":
    """Find the parts of a language model, and check by a pass over five tokens that they do what is expected.

    Blocks and norm are recognised by when they run and what they return, not by their names, so a new model needs no
    code here. In this pass, numbers far beyond any soft cap replace the output matrix's result, so that a scale or cap
    shows whatever the weights are.

    Parameters
    ----------
    module : transformers.PreTrainedModel
        With a language-model head; causal or encoder-decoder. Not changed.

    Returns
    -------
    Architecture

    Raises
    ------
    BackboneError
        If output matrix or blocks are not found, or the logits do not follow from the output matrix and the
        configuration's scalings; the message names the model, what was tried and the difference.
    """
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    if head is None:
        raise _cannot(module, "it has no language-model head; open a ...ForCausalLM or ...ForConditionalGeneration")
    if not isinstance(head, nn.Linear) or not head.weight.is_floating_point():
        raise _cannot(module, f"its head is a {type(head).__name__}, not a torch.nn.Linear with floating weights")
    both = bool(getattr(module.config, "is_encoder_decoder", False))
    decoder = module.get_decoder() if both else module
    pass_ = _Pass(module, decoder, head)
    hidden, raw, logits, calls = pass_.run(both)
    if hidden is None:
        raise _cannot(module, "a pass does not call its head")
    if logits is None or logits.shape != raw.shape:
        raise _cannot(module, f"its logits are not of the head's shape {tuple(raw.shape)}")
    _check_head(module, head, hidden, pass_.product)
    layers, owner = _find_layers(module, decoder, calls)
    final_norm, norm_factor = _find_norm(owner, calls, hidden)
    return Architecture(
        embedding=(decoder.get_input_embeddings() if both else None) or module.get_input_embeddings(),
        head=head,
        final_norm=final_norm,
        norm_factor=norm_factor,
        layers=layers,
        finish=_find_finish(module, raw, logits),
    )


class _Pass:
    """One pass over five tokens with temporary hooks."""

    def __init__(self, module, decoder, head):
        self.module, self.decoder, self.head = module, decoder, head
        self.hidden = self.product = self.raw = None
        self.calls = {}  # module of the decoder -> its last output, in the order of the calls
        self.thread = threading.get_ident()  # other threads may run the same module

    def run(self, both):
        vocabulary, device = self.head.out_features, self.head.weight.device
        ids = (torch.arange(1, 6, device=device) % vocabulary)[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        if both:
            inputs["decoder_input_ids"] = ids
        hooks = [part.register_forward_hook(self._record) for part in self.decoder.modules() if part is not self.head]
        hooks.append(self.head.register_forward_hook(self._replace))
        try:
            with frozen(self.module):
                logits = getattr(self.module(**inputs), "logits", None)
        except Exception as error:
            raise _cannot(self.module, f"a pass over five tokens fails: {type(error).__name__}: {error}") from error
        finally:
            for hook in hooks:
                hook.remove()
        return self.hidden, self.raw, logits, self.calls

    def _record(self, part, inputs, output):
        if threading.get_ident() == self.thread:
            self.calls.pop(part, None)
            self.calls[part] = output[0] if isinstance(output, tuple) and output else output

    def _replace(self, head, inputs, output):
        if threading.get_ident() != self.thread:
            return None
        self.hidden, self.product = inputs[0], output
        values = torch.linspace(-_PROBE_RANGE, _PROBE_RANGE, output.numel(), device=output.device)
        self.raw = values.reshape(output.shape).to(output.dtype)
        return self.raw


def _check_head(module, head, hidden, product):
    with torch.inference_mode():
        expected = nn.functional.linear(hidden, head.weight, head.bias)
    if not _close(product, expected):
        raise _cannot(module, f"its head, a {type(head).__name__}, does more than multiply by its matrix")


def _find_layers(module, decoder, calls):
    """Return the shallowest ``ModuleList`` whose blocks all ran, and the module that owns it."""
    queue = deque([decoder])
    while queue:
        owner = queue.popleft()
        lists = [part for part in owner.children() if isinstance(part, nn.ModuleList)]
        lists = [part for part in lists if len(part) and all(block in calls for block in part)]
        if lists:
            return max(lists, key=len), owner
        queue.extend(owner.children())
    raise _cannot(module, "no list of decoder blocks was found")


def _find_norm(owner, calls, hidden):
    # In the order of the calls, so that the norm comes before a dropout that returns its input. OPT may have a
    # projection instead of a norm.
    children = set(owner.children())
    for part, output in calls.items():
        if part not in children or isinstance(part, (nn.Dropout, nn.Identity, nn.Linear)):
            continue
        if not isinstance(output, torch.Tensor) or output.shape != hidden.shape:
            continue
        ours, theirs = _exact(output), _exact(hidden)
        factor = float((ours * theirs).sum() / (ours * ours).sum())
        if factor > 0 and _close(hidden, ours * factor, output.dtype):
            # A factor that rounding explains is 1.
            return part, 1.0 if _close(hidden, output, output.dtype) else factor
    return None, 1.0


def _find_finish(module, raw, logits):
    config = module.config.get_text_config(decoder=True)
    scales, caps = _numbers(config, _SCALES), _numbers(config, _CAPS)
    bias = getattr(module, "final_logits_bias", None)
    bias = None if bias is None else bias.reshape(-1)
    candidates = [
        Finish(scale, cap, bias)
        for scale in dict.fromkeys([1.0, *scales.values(), *(1 / value for value in scales.values())])
        for cap in (None, *caps.values())
    ]
    with torch.inference_mode():
        errors = [float((_exact(finish(raw)) - _exact(logits)).abs().max()) for finish in candidates]
    best = min(range(len(candidates)), key=errors.__getitem__)
    if not _close(logits, candidates[best](raw)):
        tried = ", ".join(f"{name}={value:g}" for name, value in {**scales, **caps}.items()) or "no scaling"
        tried += "" if bias is None else ", final_logits_bias"
        raise _cannot(
            module,
            f"its logits differ from the head's result by up to {errors[best]:.3g} on a range of "
            f"{_PROBE_RANGE:g} (tried: {tried}), so the model changes them in an unsupported way",
        )
    return candidates[best]


def _numbers(config, names):
    found = {name: getattr(config, name, None) for name in names}
    return {name: float(v) for name, v in found.items() if isinstance(v, (int, float)) and v}


def _close(one, other, dtype=None):
    """Whether two tensors agree within the coarser of their precisions."""
    epsilon = max(torch.finfo(d).eps for d in (one.dtype, other.dtype, dtype or one.dtype))
    one, other = _exact(one), _exact(other)
    return bool((one - other).abs().max() <= 16 * epsilon * other.abs().max())


def _exact(tensor):
    return tensor.cpu().double()  # MPS has no float64


def _cannot(module, why):
    kind = getattr(getattr(module, "config", None), "model_type", None)
    return BackboneError(f"cannot use the output matrix of {kind!r} models ({type(module).__name__}): {why}.")
