"""Turn strings into one vector each: tokenise once, cut, pad, run, pool.

Padding is always on the right, whatever the tokenizer's setting: position numbers then start at the
first token, and in a causal model no real token attends to padding. So features depend neither on
the padding side nor on the other texts of a batch.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from faast_sklearn.backbones.base import Backbone, Batch, alike, as_features, frozen, refuse_random, run_on_probe
from faast_sklearn.backbones.inner import unit_length
from faast_sklearn.errors import BackboneError, InputError

__all__ = [
    "POOLINGS",
    "TextBackbone",
    "n_known_tokens",
    "pad_rows",
    "pool",
    "refuse_unknown_tokens",
    "special_tokens",
    "token_limit",
    "token_rows",
]

POOLINGS = ("mean", "last", "cls", "max", "mean_sqrt_len", "weighted_mean")
_UNKNOWN_LENGTH = 1_000_000  # tokenizers without a limit say 1e30
_FALLBACK_LIMIT = 512


def pool(
    hidden: torch.Tensor,
    mask: torch.Tensor,
    how: str,
) -> torch.Tensor:
    """Reduce token states to one vector per text, by the attention mask.

    Parameters
    ----------
    hidden : tensor of shape (n, t, d)
    mask : tensor of shape (n, t)
        1 for real tokens; padding may be on either side.
    how : {"mean", "last", "cls", "max", "mean_sqrt_len", "weighted_mean"}
        "last" and "cls" are the last and the first real token; "weighted_mean" weighs tokens by
        their position (1, 2, ...).

    Returns
    -------
    tensor of shape (n, d)
        At least float32.

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.backbones.transformers.text import pool
    >>> hidden = torch.tensor([[[0.0], [2.0], [4.0]]])
    >>> pool(hidden, torch.tensor([[0, 1, 1]]), "mean"), pool(hidden, torch.tensor([[1, 1, 0]]), "last")
    (tensor([[3.]]), tensor([[2.]]))
    """
    if how in ("last", "cls"):
        positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        where = (mask * positions).argmax(1) if how == "last" else (mask != 0).int().argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), where]
    if hidden.dtype != torch.float64:
        hidden = hidden.float()
    if how == "max":
        return hidden.masked_fill(mask[:, :, None] == 0, float("-inf")).amax(1)
    weights = mask.to(hidden.dtype)
    if how == "weighted_mean":
        weights = weights * weights.cumsum(1)
    total = weights.sum(1, keepdim=True)
    summed = torch.einsum("ntd,nt->nd", hidden, weights)
    return summed / (total.sqrt() if how == "mean_sqrt_len" else total)


def token_limit(
    module: torch.nn.Module,
    tokenizer: Any,
    config: Any,
    max_length: int | None = None,
    preferred: int | None = None,
    fallback: int | None = _FALLBACK_LIMIT,
) -> int | None:
    """Return the largest number of tokens, special ones included, that a model reads.

    Parameters
    ----------
    module : torch.nn.Module
    tokenizer : Hugging Face tokenizer
    config : Hugging Face configuration
        Of the text model.
    max_length : int, default=None
        The user's setting.
    preferred : int, default=None
        The checkpoint's length in training, if known.
    fallback : int or None, default=512
        Used if neither model nor tokenizer has a limit.

    Returns
    -------
    int or None

    Raises
    ------
    BackboneError
        If ``max_length`` is more than the model has positions for.
    """
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if positions is not None and positions <= 0:  # relative positions
        positions = None
    # RoBERTa-like models number positions from padding_idx + 1, so their table is that much longer.
    padding = getattr(getattr(module, "embeddings", None), "padding_idx", None)
    if positions is not None and padding is not None:
        positions -= padding + 1
    told = getattr(tokenizer, "model_max_length", None)
    told = told if told is not None and told < _UNKNOWN_LENGTH else None
    if max_length is not None:
        if positions is not None and max_length > positions:
            raise BackboneError(f"max_length={max_length}, but this model has positions for {positions} tokens only.")
        return int(max_length)
    known = [n for n in (preferred or told, positions) if n is not None]
    return int(min(known)) if known else fallback


def n_known_tokens(module: Any) -> Any:
    """Return the number of token embeddings of a transformers model; None if it is unknown."""
    try:
        embedding = module.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        # Not all text towers of CLIP models name their embedding; in transformers 5.5 only SigLIP's does.
        embedding = getattr(getattr(module, "embeddings", None), "token_embedding", None)
    return getattr(embedding, "num_embeddings", None)


def refuse_unknown_tokens(rows: Sequence, n_known: int | None, name: str) -> None:
    """Raise BackboneError for a token without an embedding, which would crash the process on an accelerator.

    Parameters
    ----------
    rows : sequence of sequences of int
    n_known : int or None
        Rows of the embedding; None if unknown.
    name : str
        Of the model.
    """
    most = max((max(row) for row in rows if len(row)), default=-1)
    if n_known is not None and most >= n_known:
        raise BackboneError(
            f"the tokenizer gives token {most}, but {name} has {n_known} embeddings: tokens were added to the "
            "tokenizer only. Call model.resize_token_embeddings(len(tokenizer)), or pass the model's own tokenizer."
        )


def token_rows(tokenizer: Any, texts: list, special: bool) -> list:
    """Return the token ids of each text, with special tokens or without; nothing is padded or cut."""
    plain = {"padding": False, "truncation": False, "return_attention_mask": False, "verbose": False}
    return tokenizer(texts, add_special_tokens=special, **plain)["input_ids"]


def special_tokens(tokenize: Callable[..., Any]) -> tuple:
    """Return the special tokens before and after a text, given a function ``(texts, special)`` to rows of tokens."""
    (bare,), (whole,) = tokenize(["a"], special=False), tokenize(["a"], special=True)
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def pad_rows(rows: Sequence, fill: int, side: str = "right") -> tuple:
    """Pad rows of token ids to the longest.

    Parameters
    ----------
    rows : sequence of n sequences of int
    fill : int
    side : {"right", "left"}, default="right"
        Where padding goes; "left" for prompts that a decoder continues.

    Returns
    -------
    ids : tensor of shape (n, t), int64
    mask : tensor of shape (n, t), int64
        1 for real tokens.

    Examples
    --------
    >>> from faast_sklearn.backbones.transformers.text import pad_rows
    >>> pad_rows([[5], [6, 7]], 0, "left")
    (tensor([[0, 5],
            [6, 7]]), tensor([[0, 1],
            [1, 1]]))
    """
    width = max(map(len, rows), default=0)
    ids = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        if len(row):
            where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
            ids[i, where] = torch.as_tensor(row, dtype=torch.long)
            mask[i, where] = 1
    return ids, mask


class TextBackbone(Backbone):
    """A frozen text model behind a Hugging Face tokenizer.

    Parameters
    ----------
    module : torch.nn.Module
        Called with ``input_ids`` and ``attention_mask``; returns an output with
        ``last_hidden_state``. On ``device``, in ``dtype``.
    tokenizer : Hugging Face tokenizer
        Not modified.
    device : torch.device
    dtype : torch.dtype
    pooling : str
        One of ``POOLINGS``.
    limit : int
        Largest number of tokens read, special ones included.
    truncation : {"warn", "error"}, default="warn"
    layer : int, default=None
        Take this entry of the model's hidden states instead of the last one after the final norm.
    head : callable, default=None
        Applied to pooled features, e.g. a sentence encoder's dense layer and normalisation.
    prompt : str, default=""
        Put before each text.
    pool_prompt : bool, default=True
        Whether its tokens are pooled with the others.
    lower : bool, default=False
    causal : bool, default=False
        Whether the module keeps a key-value cache that must be switched off.
    """

    modality = "text"

    def __init__(
        self,
        module: torch.nn.Module,
        tokenizer: Any,
        device: Any,
        dtype: Any,
        *,
        pooling: str,
        limit: int | None,
        truncation: Literal["warn", "error"] = "warn",
        layer: int | None = None,
        head: Callable[..., Any] | None = None,
        prompt: str = "",
        pool_prompt: bool = True,
        lower: bool = False,
        causal: bool = False,
    ) -> None:
        if pooling not in POOLINGS:
            raise BackboneError(f"pooling={pooling!r} is not one of {POOLINGS}.")
        if truncation not in ("warn", "error"):
            raise BackboneError(f"truncation={truncation!r} is neither 'warn' nor 'error'.")
        self.module = module
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = dtype
        self.pooling = pooling
        self.limit = limit
        self.truncation = truncation
        self.layer = layer
        self.head = head
        self.prompt = prompt
        self.lower = lower
        self.causal = causal
        # Fast tokenizers keep their padding and truncation as state and must not run in two threads at once.
        self._lock = threading.Lock()
        self._prefix, self._suffix = map(len, special_tokens(self._tokenize))
        if limit <= self._prefix + self._suffix:
            raise BackboneError(f"max_length={limit} leaves no room for text beside the special tokens.")
        pads = [getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "eos", "bos")]
        self._pad = next((token for token in pads if token is not None), 0)
        self._empty = next((token for token in (pads[2], pads[1], pads[0]) if token is not None), 0)
        self._unpooled = 0 if pool_prompt or not prompt else self._prompt_length()
        self._alone = False
        self._n_known = n_known_tokens(getattr(module, "text_model", module))
        weights = sum(p.numel() for p in module.parameters())
        if device.type == "cpu":
            self.default_batch_size = 32
        else:
            self.default_batch_size = 256 if weights < 5e8 else 64 if weights < 3e9 else 16
        self.settings = (pooling, limit, layer, prompt, pool_prompt, lower, repr(head))
        self.n_features = self._probe()

    def _probe(self):
        """Return the width of the features; find out whether the features of a text depend on its batch."""
        name = type(self.module).__name__
        one = self.collate(["a"])
        alone = run_on_probe(name, "texts", lambda: self.forward(one))
        padded = self.forward(self.collate(["a", " ".join(["a a"] * 4)]))
        if not alike(alone[0], padded[0], self.dtype):
            refuse_random(name, self.dtype, lambda: self.forward(one))
            self._alone = True  # it reads padding as text: only texts of equal length run together, unpadded
        return alone.shape[1]

    def read(self, sample: Any) -> Any:
        """Return the string itself."""
        if not isinstance(sample, str):
            raise InputError(f"{sample!r} is {type(sample).__name__}, expected str.")
        return str(sample)

    def sort_key(self, item: Any) -> Any:
        """Length of the text in characters."""
        return len(item)

    def collate(self, items: Any) -> Any:
        """Tokenise once without truncation, so that true lengths are known; then cut and pad."""
        texts = [self.prompt + (item.lower() if self.lower else item) for item in items]
        rows = self._tokenize(texts)
        lengths = np.array([len(row) for row in rows])
        rows = [self._cut(row) for row in rows]
        refuse_unknown_tokens(rows, self._n_known, type(self.module).__name__)
        return Batch(self._pad_rows(rows), len(rows), lengths, self.limit)

    def forward(self, batch: Any) -> Any:
        """Run the model and pool by the attention mask."""
        with frozen(self.module):
            inputs = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.inputs.items()}
            features = self._encode_by_length(inputs) if self._alone else self.encode(inputs)
            if self.head is not None:
                features = self.head(features)
        return as_features(features)

    def _encode_by_length(self, inputs):
        lengths = inputs["attention_mask"].sum(1)
        features = None
        for length in lengths.unique().tolist():
            at = (lengths == length).nonzero()[:, 0]
            some = self.encode({name: tensor[at, :length] for name, tensor in inputs.items()})
            features = some.new_empty((len(lengths), some.shape[1])) if features is None else features
            features[at] = some
        return features

    def encode(self, inputs: Any) -> Any:
        """Return pooled features of shape (n, d); called in eval and inference mode."""
        more = {"use_cache": False} if self.causal else {}
        if self.layer is not None:
            more["output_hidden_states"] = True
        output = self.module(**inputs, **more)
        hidden = getattr(output, "last_hidden_state", None) if self.layer is None else hidden_state(output, self.layer)
        if hidden is None:
            raise BackboneError(
                f"{type(self.module).__name__} gives no token states to pool; pass the model inside it, or another."
            )
        return pool(hidden, self._pooled(inputs["attention_mask"]), self.pooling)

    def _pooled(self, mask):
        """Return the mask of the tokens to pool, which may leave out those of the prompt."""
        if not self._unpooled:
            return mask
        mask = mask.clone()
        mask[:, : self._unpooled] = 0
        return mask

    def inner_layers(self) -> list[torch.nn.Module]:
        """Return the blocks of the text model; none if it reads padding, since its texts run length by length."""
        return [] if self._alone else super().inner_layers()

    def pool_layer(self, output: torch.Tensor, batch: Any) -> list[torch.Tensor]:
        """Return the mean over the real tokens of a text, of unit length."""
        mask = batch.inputs["attention_mask"]
        if output.ndim != 3 or output.shape[:2] != mask.shape:
            return []
        return [unit_length(pool(output, self._pooled(mask.to(output.device, non_blocking=True)), "mean"))]

    def embed_text(self, texts: list) -> torch.Tensor:
        """Encode a short list of texts, such as class names.

        Parameters
        ----------
        texts : list of str

        Returns
        -------
        tensor of shape (len(texts), n_features)
        """
        size = self.default_batch_size
        parts = [self.read(text) for text in texts]
        parts = [parts[i : i + size] for i in range(0, len(parts), size)]
        return torch.cat([self.forward(self.collate(part)) for part in parts])

    def _tokenize(self, texts, special=True):
        with self._lock:
            return token_rows(self.tokenizer, texts, special)

    def _prompt_length(self):
        (row,) = self._tokenize([self.prompt])
        return len(row) - (row[-1] in getattr(self.tokenizer, "all_special_ids", ()))

    def _cut(self, row):
        if not row:
            return [self._empty]  # without a begin token, an empty text has no tokens
        if len(row) <= self.limit:
            return row
        room = self.limit - self._prefix - self._suffix
        start, stop = self._prefix, len(row) - self._suffix
        if getattr(self.tokenizer, "truncation_side", "right") == "left":
            kept = row[stop - room : stop]
        else:
            kept = row[start : start + room]
        return [*row[:start], *kept, *row[stop:]]

    def _pad_rows(self, rows):
        ids, mask = pad_rows(rows, self._pad)
        if self.device.type == "cuda":
            ids, mask = ids.pin_memory(), mask.pin_memory()
        return {"input_ids": ids, "attention_mask": mask}


def hidden_state(output: Any, layer: Any) -> Any:
    """Return one of a model's hidden states; the error for a wrong index says how many there are."""
    try:
        return output.hidden_states[layer]
    except IndexError:
        raise BackboneError(f"layer={layer}, but the model has {len(output.hidden_states)} hidden states.") from None
