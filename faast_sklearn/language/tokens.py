"""Keys of learnt tokens, from one pass of a frozen language model, and their statistics."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

from faast_sklearn.backbones.base import frozen
from faast_sklearn.backbones.device import moments_device
from faast_sklearn.backbones.hooks import hooked
from faast_sklearn.errors import BackboneError, InputError
from faast_sklearn.language.moments import TokenMoments
from faast_sklearn.moments.cross_moments import CrossMoments
from faast_sklearn.moments.scatter import Scatter

__all__ = ["TARGETS", "hidden_states", "next_token_log_probabilities", "raw_logits", "row_chunks", "token_moments"]

TARGETS = ("residual", "embedding")

# Logits that exist at once: 64 MB in float32.
_MOST_LOGITS = 2**24


def hidden_states(
    lm: Any,
    inputs: dict,
    where: torch.Tensor,
    target: Literal["residual", "embedding"],
    layers: Sequence = (),
    weights: Any = None,
) -> tuple:
    """Run the frozen model and return its hidden states at chosen positions.

    Parameters
    ----------
    lm : LanguageModel
    inputs : dict of tensors
        Keyword arguments of the module, on its device.
    where : bool tensor of shape (n, t)
        Positions of the decoder to return.
    target : {"residual", "embedding"}
        States as they enter the output matrix, or as they enter the final norm.
    layers : sequence of int, default=()
        Also return the states of all positions in front of these blocks.
    weights : FastWeights, default=None
        Applied where they act before the states that are returned; none by default.

    Returns
    -------
    keys : tensor of shape (where.sum(), d)
        One row of ``where`` after the other.
    middle : list of tensors of shape (n, t, d)
        One for each of ``layers``.

    Raises
    ------
    InputError
        If ``target="embedding"`` and the model has no final norm in front of its output matrix.
    """
    caught, middle = [], [None] * len(layers)

    def at_head(states):
        if target == "residual":
            caught.append(states[where])
        # Skip the logits of the other positions: they would be most of the work and are not needed here.
        return states[:, :1]

    def at_norm(states):
        caught.append(states[where])

    def at_layer(k):
        def catch(states):
            middle[k] = states

        return catch

    before = [] if weights is None or weights.target == "residual" else weights.hooks(lm)[0]
    before += [(lm.head, at_head), *((lm.layers[index], at_layer(k)) for k, index in enumerate(layers))]
    if target == "embedding":
        if lm.final_norm is None:
            raise InputError(
                f"target='embedding' learns in front of the final norm, and {lm.module.config.model_type!r} models "
                "have none there; use target='residual'."
            )
        before.append((lm.final_norm, at_norm))
    with frozen(lm.module), hooked(before):
        lm.module(**inputs, use_cache=False)
    if len(caught) > 1 and target == "embedding":
        raise BackboneError(
            f"{type(lm.module).__name__} runs its final norm {len(caught)} times per pass, so a memory in front of it "
            "would act each time; use target='residual'."
        )
    if len(caught) != 1:
        raise BackboneError(f"one pass of {type(lm.module).__name__} reached its output matrix {len(caught)} times.")
    return caught[0], middle


def token_moments(
    lm: Any, target: Literal["residual", "embedding"], keys: torch.Tensor, targets: torch.Tensor, weights: Any = None
) -> "TokenMoments":
    """Compute the statistics of tokens from the hidden states before them.

    With ``target="embedding"`` values are the input embeddings of the tokens (Bao et al., section 3). With
    ``"residual"`` they are the negative gradients of the loss at the hidden state, ``Eᵀ a'(y − p)`` for output
    embeddings E, probabilities p and slopes a' of the logits; the sums for the curvature of the loss come with them.

    Parameters
    ----------
    lm : LanguageModel
    target : {"residual", "embedding"}
    keys : tensor of shape (n, d)
        As :func:`hidden_states` returns them.
    targets : tensor of shape (n,), int64
        The tokens that came next.
    weights : FastWeights, default=None
        Residuals are those of the model with these weights; by default of the frozen model.

    Returns
    -------
    TokenMoments
        On the device where moments are kept. "residual" costs two products of O(n V d), in chunks of bounded memory.
    """
    device = moments_device(lm.device)
    if target == "embedding":
        with frozen(lm.module):
            values = lm.embedding(targets).clone()
        return TokenMoments(CrossMoments.from_rows(keys.to(device), values.to(device)))
    n, vocabulary = len(keys), lm.head.out_features
    expected = torch.empty((n, lm.head.in_features), dtype=torch.float32, device=lm.device)
    values = torch.empty_like(expected)
    sums = torch.zeros(2, vocabulary, dtype=torch.float32 if device.type != lm.device.type else torch.float64)
    sums = sums.to(lm.device)
    loss = torch.zeros((), dtype=sums.dtype, device=lm.device)
    matrix, curved = lm.head.weight, False
    with frozen(lm.module):
        for part in row_chunks(n, vocabulary):
            raw = raw_logits(lm, keys[part], weights)
            logits = lm.finish(raw).float()
            slope = lm.finish.slope(raw)
            log_p = logits.log_softmax(1)
            at = targets[part, None]
            loss -= log_p.gather(1, at).sum(dtype=loss.dtype)
            p = log_p.exp_()
            sums[0] += p.sum(0, dtype=sums.dtype)
            own = matrix[targets[part]].float()
            if isinstance(slope, torch.Tensor):
                curved = True
                slope = slope.float()
                own *= slope.gather(1, at)
                p *= slope
                sums[1] += (p * slope).sum(0, dtype=sums.dtype)
            elif slope != 1:
                own *= slope
                p *= slope
            expected[part] = (p.to(matrix.dtype) @ matrix).float()
            values[part] = own - expected[part]
    sums = sums.to(device, torch.float64)
    slope = 1.0 if curved else float(slope) if n else 1.0
    return TokenMoments(
        CrossMoments.from_rows(keys.to(device), values.to(device)),
        Scatter.from_rows(expected.to(device, torch.float64)),
        torch.bincount(targets.to(device), minlength=vocabulary).to(torch.float64),
        sums[0],
        sums[1] if curved else sums[0] * slope**2,
        float(loss),
    )


def next_token_log_probabilities(lm: Any, states: torch.Tensor, targets: torch.Tensor, weights: Any = None) -> tuple:
    """Return the log-probability of each token, and whether it is the most likely one.

    Parameters
    ----------
    lm : LanguageModel
    states : tensor of shape (n, d)
        As they enter the output matrix.
    targets : tensor of shape (n,), int64
    weights : FastWeights, default=None
        Applied to ``states`` if their target is "residual"; none by default.

    Returns
    -------
    log_p : tensor of shape (n,), float32
    correct : bool tensor of shape (n,)
    """
    log_p, correct = [], []
    with frozen(lm.module):
        for part in row_chunks(len(states), lm.head.out_features):
            logits = lm.finish(raw_logits(lm, states[part], weights)).float()
            log_p.append(logits.log_softmax(1).gather(1, targets[part, None])[:, 0])
            correct.append(logits.argmax(1) == targets[part])
    return torch.cat(log_p).clone(), torch.cat(correct).clone()


def raw_logits(lm: Any, states: Any, weights: Any = None) -> Any:
    """Return the output matrix's result with residual fast weights; call it under ``frozen`` with a few rows."""
    # Not through the module, which may have hooks of other callers.
    matrix, bias = lm.head.weight, lm.head.bias
    if weights is None or weights.target != "residual":
        return torch.nn.functional.linear(states, matrix, bias)
    return weights.adapt_raw(states, torch.nn.functional.linear(weights.adapt(states), matrix, bias))


def row_chunks(n: Any, vocabulary: Any) -> Iterator[Any]:
    """Yield slices of n rows so small that their logits take at most 64 MB in float32; at least one slice."""
    size = max(1, _MOST_LOGITS // vocabulary)
    for start in range(0, max(n, 1), size):
        yield slice(start, start + size)
