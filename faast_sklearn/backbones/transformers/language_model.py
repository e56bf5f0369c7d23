"""An open, frozen language model with its head, to which fast weights for token prediction are added."""

import functools
import inspect
from typing import Any

import torch

from faast_sklearn.backbones.base import alike, frozen
from faast_sklearn.backbones.transformers.architecture import find_architecture
from faast_sklearn.backbones.transformers.text import token_limit
from faast_sklearn.backbones.transformers.verbosity import quiet_transformers
from faast_sklearn.errors import BackboneError

__all__ = ["LanguageModel"]


class LanguageModel:
    """A frozen causal or encoder-decoder language model behind its tokenizer.

    Made by :meth:`BackboneHandle.open_language_model
    <faast_sklearn.backbones.handle.BackboneHandle.open_language_model>`, once per process; clones of an
    estimator share it. The caller's module keeps its mode, gradient flags and dtype, so run passes inside
    :func:`~faast_sklearn.backbones.base.frozen`.

    Parameters
    ----------
    module : transformers.PreTrainedModel
        With a language-model head; on ``device``, in ``dtype``.
    tokenizer : Hugging Face tokenizer or None
        Not modified. None if only token ids are passed.
    device : torch.device
    dtype : torch.dtype
    max_length : int, default=None
        Sets ``limit``; by default it is that of model and tokenizer.
    readouts : Readouts, default=None

    Attributes
    ----------
    module, tokenizer, device, dtype, readouts
        As passed. Published FAAST checkpoints have ``readouts``.
    encoder_decoder : bool
    limit : int or None
        Largest number of tokens of prompt and answer together; in an encoder-decoder, of each. ``None`` if neither
        model nor tokenizer has a limit.
    embedding : torch.nn.Module
        Input embedding; in an encoder-decoder, that of the decoder.
    head : torch.nn.Linear
        The output matrix, ``weight`` of shape (vocabulary, d).
    final_norm : torch.nn.Module or None
        The module whose output, times ``norm_factor``, is the head's input; ``None`` if no norm is directly
        before the head, as in BART.
    norm_factor : float
        1, except ``d ** -0.5`` for T5 with tied embeddings.
    finish : Finish
        From the output matrix's result to the logits.
    layers : torch.nn.ModuleList
        The decoder's blocks.
    pad_id : int
        A valid id, even if the tokenizer has no padding token.
    eos_ids : tuple of int
        Tokens that end an answer.
    default_batch_size : int
    license : str
        "unknown" where the weights do not say.

    Raises
    ------
    BackboneError
        If the output matrix cannot be used or ``max_length`` exceeds the number of positions.

    Examples
    --------
    >>> import torch, transformers
    >>> from faast_sklearn.backbones.transformers.language_model import LanguageModel
    >>> config = transformers.GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1, n_positions=8, eos_token_id=3)
    >>> model = transformers.GPT2LMHeadModel(config).eval()
    >>> opened = LanguageModel(model, None, torch.device("cpu"), torch.float32)
    >>> opened.head.weight.shape, opened.limit, opened.eos_ids, opened.pad_id
    (torch.Size([9, 4]), 8, (3,), 0)
    """

    license = "unknown"

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
        device: Any,
        dtype: Any,
        *,
        max_length: int | None = None,
        readouts: Any = None,
    ) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = dtype
        self.readouts = readouts
        self.encoder_decoder = bool(getattr(module.config, "is_encoder_decoder", False))
        with quiet_transformers():
            parts = find_architecture(module)
        self.embedding, self.head, self.layers = parts.embedding, parts.head, parts.layers
        self.final_norm, self.norm_factor = parts.final_norm, parts.norm_factor
        self.finish = parts.finish
        config = module.config.get_text_config(decoder=True)
        self.limit = token_limit(module, tokenizer, config, max_length, fallback=None)
        self.eos_ids = self._eos_ids()
        self.pad_id = self._pad_id()
        if device.type == "cpu":
            self.default_batch_size = 16
        else:
            weights = sum(p.numel() for p in module.parameters())
            self.default_batch_size = 64 if weights < 1e9 else 32 if weights < 4e9 else 8

    @functools.cached_property
    def reads_mask(self) -> bool:
        """Whether left padding leaves the next token's logits of a prompt unchanged; checked by two small passes."""
        if self.encoder_decoder:
            return True
        ids = torch.tensor([[min(5, self.head.out_features - 1), min(7, self.head.out_features - 1)]])
        known = inspect.signature(self.module.forward).parameters

        def last(ids, mask):
            positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if "position_ids" in known else {}
            with frozen(self.module):
                inputs = {"input_ids": ids, "attention_mask": mask, **positions}
                output = self.module(**{name: tensor.to(self.device) for name, tensor in inputs.items()})
            return output.logits[0, -1].float().clone()

        padded = torch.cat([torch.full((1, 3), self.pad_id), ids], 1)
        mask = torch.tensor([[0, 0, 0, 1, 1]])
        return alike(last(ids, torch.ones_like(ids)), last(padded, mask), self.dtype)

    def normalise(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the final norm to hidden states, so that they can enter the output matrix.

        Parameters
        ----------
        states : torch.Tensor of shape (..., d)

        Returns
        -------
        torch.Tensor of the same shape
        """
        normed = self.final_norm(states)
        return normed if self.norm_factor == 1 else normed * self.norm_factor

    def _eos_ids(self):
        generation = getattr(self.module, "generation_config", None)
        told = getattr(generation, "eos_token_id", None)
        if told is None:
            told = getattr(self.module.config, "eos_token_id", None)
        own = getattr(self.tokenizer, "eos_token_id", None)
        found = [*(told if isinstance(told, (list, tuple)) else [told]), own]
        return tuple(dict.fromkeys(int(token) for token in found if self._legal(token)))

    def _pad_id(self):
        names = ("pad_token_id", "eos_token_id", "bos_token_id")
        found = [getattr(self.tokenizer, name, None) for name in names]
        return next((int(token) for token in found if self._legal(token)), 0)

    def _legal(self, token):
        # Configurations may hold token ids of other checkpoints, beyond this vocabulary.
        return token is not None and 0 <= token < self.head.out_features


def language_model_in_memory(
    module: Any, tokenizer: Any, *, device: Any, dtype: Any, max_length: int | None = None, **options: Any
) -> "LanguageModel":
    """Wrap the caller's language model without changing it.

    Parameters
    ----------
    module : transformers.PreTrainedModel
        ``...ForCausalLM`` or ``...ForConditionalGeneration``, on ``device``, in ``dtype``.
    tokenizer : Hugging Face tokenizer, a processor that holds one, or None
        None if only token ids are passed.
    device : torch.device
    dtype : torch.dtype
    max_length : int, default=None
    **options
        Options for features; refused.

    Returns
    -------
    LanguageModel

    Raises
    ------
    BackboneError, TypeError
    """
    refuse_feature_options(options)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not callable(getattr(module, "generate", None)) or not hasattr(module, "config"):
        raise BackboneError(
            f"{type(module).__name__} is not a language model with a head; pass a ...ForCausalLM or "
            "...ForConditionalGeneration of transformers."
        )
    if tokenizer is not None and not (hasattr(tokenizer, "eos_token_id") and callable(tokenizer)):
        raise BackboneError(
            f"{type(tokenizer).__name__} is no tokenizer of transformers; pass backbone(({type(module).__name__}, "
            "tokenizer))."
        )
    return LanguageModel(module, tokenizer, device, dtype, max_length=max_length)


def refuse_feature_options(options: Any, defaults: Any = None) -> None:
    """Raise TypeError for an option that applies to features only, unless it has its default value."""
    for name, value in options.items():
        if defaults is None or value != defaults.get(name):
            raise TypeError(f"{name}= is for features and does not apply to language models; leave it out.")
