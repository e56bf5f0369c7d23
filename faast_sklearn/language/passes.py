"""Passes of the frozen model over prompts and answers, to learn from them or to compute their likelihood."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from faast_sklearn.backbones.base import Batch, ForwardPass
from faast_sklearn.backbones.device import moments_device
from faast_sklearn.language.choice_weights import choice_moments
from faast_sklearn.language.moments import LanguageMoments
from faast_sklearn.language.padding import decoder_inputs, pad_rows
from faast_sklearn.language.reserve import Reserve, digest
from faast_sklearn.language.tokens import hidden_states, next_token_log_probabilities, token_moments
from faast_sklearn.moments.cross_moments import CrossMoments
from faast_sklearn.moments.scatter import Scatter

__all__ = ["ExchangePass", "LearningPass", "LikelihoodPass", "Observation", "observe"]


@dataclass(frozen=True, eq=False)
class Observation:
    """Statistics of a batch of samples.

    Parameters
    ----------
    moments : LanguageMoments
    finite : bool tensor of shape (n,)
        Whether the hidden states of each sample are finite.
    """

    moments: LanguageMoments
    finite: torch.Tensor


def observe(
    lm: Any,
    inputs: dict,
    where: torch.Tensor,
    targets: torch.Tensor,
    digests: Sequence,
    *,
    target: Literal["residual", "embedding"],
    weights: Any = None,
    nodes: Sequence | None = None,
) -> "Observation":
    """Run the frozen model over a batch and return the statistics of its tokens.

    Parameters
    ----------
    lm : LanguageModel
    inputs : dict of tensors
        Keyword arguments of the module.
    where : bool tensor of shape (n, t)
        Positions of the decoder whose next token is learnt.
    targets : tensor of shape (n, t), int64
        The next token at each of them.
    digests : sequence of n bytes
        Digests of the samples.
    target : {"residual", "embedding"}
    weights : FastWeights, default=None
        Residuals are those of the model with these weights; by default of the frozen model.
    nodes : sequence of sequences of int, default=None
        Of a :class:`~faast_sklearn.language.choices.ChoiceTree`, if ``targets`` are its edges.

    Returns
    -------
    Observation
    """
    layers = lm.readouts.layer_indices if lm.readouts is not None else ()
    plain = target == "residual" and nodes is None
    seen = where | _prompts(lm, inputs, where) if plain else where
    found, states = hidden_states(lm, inputs, seen, target, layers)
    learnt = where[seen]
    keys, wanted = found[learnt].clone(), targets[where]  # outputs of a frozen pass must not be changed in place
    lengths = where.sum(1)
    device = moments_device(lm.device)
    if nodes is None:
        output = token_moments(lm, target, keys, wanted, weights)
        if plain:
            output = output.with_prompts(_scatter(found[~learnt].to(device)))
        middle = [_middle_moments(lm, k, part, where) for k, part in enumerate(states)]
    else:
        output, middle = choice_moments(keys.to(device), wanted, nodes)
    reserve = Reserve.of_tokens(digests, keys.to(device), wanted.to(device), lengths.tolist())
    moments = LanguageMoments(output, middle, reserve, len(where))
    rows = torch.arange(len(where), device=where.device).repeat_interleave(lengths)
    bad = torch.zeros(len(where), device=keys.device).index_add_(0, rows, (~torch.isfinite(keys).all(1)).float())
    return Observation(moments, bad == 0)


def _prompts(lm, inputs, where):
    """Return where a decoder reads a prompt: its real tokens without those learnt, and without the end."""
    mask = inputs.get("attention_mask")
    if lm.encoder_decoder or mask is None or mask.shape != where.shape:
        return torch.zeros_like(where)
    real = mask > 0
    last = torch.arange(mask.shape[1], device=mask.device) * real
    return real & ~where & (last < last.max(1, keepdim=True).values)


def _scatter(states):
    return Scatter.from_rows(states.double()) if len(states) else Scatter.empty(states.shape[1], states.device)


def _middle_moments(lm, k, states, where):
    """Return the moments of a middle memory: a key is a state, its value the next state times a score."""
    scorer = lm.readouts.scorers[k]
    keys = states[where]
    following = torch.zeros_like(where)
    following[:, 1:] = where[:, :-1]
    values = states[following]
    score = torch.nn.functional.linear(torch.cat([keys, values], -1), scorer)
    device = moments_device(lm.device)
    return CrossMoments.from_rows(keys.to(device), (values * torch.sigmoid(score)).to(device))


class ExchangePass(ForwardPass):
    """Runs an opened language model over :class:`~faast_sklearn.language.exchanges.Exchange` samples.

    Parameters
    ----------
    lm : LanguageModel
        Hooks on its module stay active.
    """

    modality = "text"

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self.module, self.device, self.dtype = lm.module, lm.device, lm.dtype
        self.default_batch_size = lm.default_batch_size

    @property
    def shares_memory_with(self) -> Any:
        """The module: all passes over it share the largest batch size that fits."""
        return self.module

    def read(self, sample: Any) -> Any:
        """Return the exchange itself."""
        return sample

    def sort_key(self, item: Any) -> Any:
        """Return the number of tokens of the exchange."""
        return len(item.prompt) + len(item.answer)


class _AnswerPass(ExchangePass):
    """Collates exchanges for one pass over given answers (teacher forcing)."""

    def __init__(self, lm, learn_from="answer"):
        super().__init__(lm)
        self.learn_from = learn_from

    def collate(self, items):
        """Pad on the right, where a causal decoder does not look, and mark what is learnt."""
        lengths = np.array([item.length for item in items])
        digests = [digest(item.prompt, item.answer) for item in items]
        answers = [item.answer for item in items]
        if self.lm.encoder_decoder:
            ids, mask = pad_rows([item.prompt for item in items], self.lm.pad_id)
            inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_inputs(self.lm, answers)}
            targets, where = pad_rows(answers, self.lm.pad_id)
        else:
            rows = [(*item.prompt, *item.answer) for item in items]
            ids, mask = pad_rows(rows, self.lm.pad_id)
            targets, where = pad_rows([row[1:] for row in rows], self.lm.pad_id)
            targets, where = (torch.nn.functional.pad(tensor, (0, 1)) for tensor in (targets, where))
            if self.learn_from == "answer":
                for i, item in enumerate(items):
                    where[i, : len(item.prompt) - 1] = 0
            inputs = {"input_ids": ids, "attention_mask": mask}
        return Batch((inputs, where.bool(), targets, digests), len(items), lengths, self.lm.limit)

    def _on_device(self, batch):
        inputs, where, targets, digests = batch.inputs
        inputs = {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}
        return inputs, where.to(self.device), targets.to(self.device), digests


class LearningPass(_AnswerPass):
    """Runs a language model over prompts and answers and returns their statistics.

    Drive it with :func:`~faast_sklearn.features.loop.stream_features`; ``forward`` returns an :class:`Observation`.

    Parameters
    ----------
    lm : LanguageModel
    target : {"residual", "embedding"}
    learn_from : {"answer", "all"}, default="answer"
        Which tokens of a decoder's text are targets.
    weights : FastWeights, default=None
        Residuals are those of the model with these weights; by default of the frozen model.
    """

    def __init__(
        self,
        lm: Any,
        target: Literal["residual", "embedding"],
        learn_from: Literal["answer", "all"] = "answer",
        weights: Any = None,
    ) -> None:
        super().__init__(lm, learn_from)
        self.target = target
        self.weights = weights
        self.nodes: Sequence | None = None

    def forward(self, batch: Any) -> Any:
        """Return the statistics of the batch."""
        inputs, where, targets, digests = self._on_device(batch)
        how: dict[str, Any] = {"target": self.target, "weights": self.weights, "nodes": self.nodes}
        return observe(self.lm, inputs, where, targets, digests, **how)

    def finite(self, output: Any) -> Any:
        """Return whether the hidden states of each sample are finite."""
        return output.finite


class LikelihoodPass(_AnswerPass):
    """Runs a language model over prompts and answers and returns how likely the answers are.

    Parameters
    ----------
    lm : LanguageModel
    weights : FastWeights
        Applied to the model.
    learn_from : {"answer", "all"}, default="answer"
        Which tokens of a decoder's text count.

    Notes
    -----
    ``forward`` returns, for each sample, the sum of its tokens' log-probabilities (natural logarithm), the number of
    tokens, and the number of tokens that the model ranks first; shape (n, 3).
    """

    def __init__(self, lm: Any, weights: Any, learn_from: Literal["answer", "all"] = "answer") -> None:
        super().__init__(lm, learn_from)
        self.weights = weights

    def forward(self, batch: Any) -> Any:
        """Score the batch."""
        inputs, where, targets, _ = self._on_device(batch)
        states, _ = hidden_states(self.lm, inputs, where, "residual", weights=self.weights)
        log_p, correct = next_token_log_probabilities(self.lm, states.clone(), targets[where], self.weights)
        rows = torch.arange(batch.size, device=self.device).repeat_interleave(where.sum(1))
        found = torch.stack([log_p, torch.ones_like(log_p), correct.to(log_p.dtype)], 1)
        return torch.zeros((batch.size, 3), dtype=log_p.dtype, device=self.device).index_add_(0, rows, found)
