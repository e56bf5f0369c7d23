"""The tree of several answers, and the log-probabilities that a language model gives to each of them."""

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch

from faast_sklearn.backbones.base import Batch, as_features, frozen
from faast_sklearn.errors import BackboneError, InputError, nearest, shortened
from faast_sklearn.language.padding import decoder_inputs, pad_rows
from faast_sklearn.language.passes import ExchangePass, LearningPass

__all__ = ["ChoicePass", "ChoiceScorer", "ChoiceTree", "checked_choices", "choice_tree", "refuse_other_targets"]

# Most logits and most cached tokens that may exist at once, for a batch of the default size.
_MOST_LOGITS = 2**26
_MOST_TOKENS = 2**16


class ChoiceTree:
    """Where answers part: after each prefix with two or more different next tokens.

    Only these tokens decide between the answers. The model's probabilities of the tokens that may follow a prefix are
    renormalised to sum to one, and the probability of an answer is the product along its path, whatever its length.

    Parameters
    ----------
    answers : sequence of k sequences of int
        Their tokens, in the order of the choices.

    Attributes
    ----------
    prefixes : tuple of tuple of int
        The tokens in front of each node.
    nodes : tuple of tuple of int
        The tokens that may follow, node by node. All in a row, they are the edges, numbered from 0.
    paths : tuple of k tuples of int
        The edges on the way to each answer.

    Examples
    --------
    >>> from faast_sklearn.language.choices import ChoiceTree
    >>> tree = ChoiceTree([[5, 6, 2], [5, 7, 8, 2], [9, 2]])
    >>> tree.prefixes, tree.nodes, tree.paths
    (((), (5,)), ((5, 9), (6, 7)), ((0, 2), (0, 3), (1,)))
    """

    def __init__(self, answers: Sequence) -> None:
        following: dict = {}
        for answer in answers:
            for k, token in enumerate(answer):
                following.setdefault(tuple(answer[:k]), {})[token] = None  # in the order of the choices
        parting = {prefix: tuple(tokens) for prefix, tokens in following.items() if len(tokens) > 1}
        self.prefixes, self.nodes = tuple(parting), tuple(parting.values())
        ends = [(*prefix, token) for prefix, tokens in parting.items() for token in tokens]
        self._edges = {end: edge for edge, end in enumerate(ends)}
        self._decisions = {tuple(answer): self._along(answer) for answer in answers}
        self.paths = tuple(tuple(edge for _, edge in self._along(answer)) for answer in answers)

    def _along(self, answer):
        ends = ((k, self._edges.get(tuple(answer[: k + 1]))) for k in range(len(answer)))
        return [(k, edge) for k, edge in ends if edge is not None]

    def decisions(self, answer: Sequence) -> list:
        """Return position and edge of each deciding token of an answer; raise InputError for another answer."""
        try:
            return self._decisions[tuple(answer)]
        except KeyError:
            raise InputError(
                "template puts different texts around the answers to different sources, so that a choice has different "
                "tokens; to learn choices, write the same text in front of and after every answer."
            ) from None


class ChoicePass(LearningPass):
    """Runs a language model over prompts and chosen answers, and returns the statistics of the tokens that decide.

    The targets are the edges of the tree, instead of tokens; see
    :func:`~faast_sklearn.language.choice_weights.choice_moments`.

    Parameters
    ----------
    lm : LanguageModel
    tree : ChoiceTree
    """

    def __init__(self, lm: Any, tree: "ChoiceTree") -> None:
        super().__init__(lm, "residual")
        self.tree = tree
        self.nodes = tree.nodes

    def collate(self, items: Any) -> Any:
        """Mark the positions in front of the tokens that decide."""
        batch = super().collate(items)
        _, where, targets, _ = batch.inputs
        where.zero_()
        for i, item in enumerate(items):
            start = 0 if self.lm.encoder_decoder else len(item.prompt) - 1
            for k, edge in self.tree.decisions(item.answer):
                where[i, start + k], targets[i, start + k] = True, edge
        return batch


class ChoiceScorer(ExchangePass):
    """Runs a language model over prompts and returns the log-probability of each of k answers among these k.

    Drive it with :func:`~faast_sklearn.features.loop.stream_features`, over ``prompts.questions(X, room=scorer.room)``.
    Probabilities are renormalised along the tree of the answers (:class:`ChoiceTree`). The end token of an answer
    decides where a longer answer has the same beginning. The prompt runs once; the nodes of the tree are reached from
    its key-value cache (for encoder-decoders, from the encoder's output), in chunks if there are many. ``forward``
    returns natural logarithms, shape (n, k), float32 or better.

    Parameters
    ----------
    lm : LanguageModel
        Hooks on its module stay active.
    prompts : Prompts
        Of the same model.
    choices : sequence of k str

    Raises
    ------
    ValueError
        If there are no choices, or one is not a string, is empty, occurs twice or (from the first batch of prompts on)
        is too long for the model; the message names it.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> from faast_sklearn.language.choices import ChoiceScorer
    >>> ChoiceScorer(SimpleNamespace(), None, ["yes", "no", "yes"])
    Traceback (most recent call last):
    ...
    faast_sklearn.errors.InputError: choices[2] is 'yes' again; list each choice once.
    """

    def __init__(self, lm: Any, prompts: Any, choices: Sequence) -> None:
        self.choices = checked_choices(choices)
        super().__init__(lm)
        self.prompts = prompts
        self._ids = {}  # tokens of the answers, by turn: a callable template may use several turns
        self._options = set(inspect.signature(type(lm.module).forward).parameters)
        # transformers 5.24 renamed the key-value cache and warns about the old name.
        self._cache = "cache" if "cache" in self._options else "past_key_values"

    def room(self, turn: Any) -> Any:
        """Return the number of tokens of the longest choice in a turn, with its end token."""
        return max(map(len, self._answers(turn)))

    def collate(self, items: Any) -> Any:
        """Group prompts by the text around their answers, which is nearly always the same."""
        groups = {}
        for k, item in enumerate(items):
            groups.setdefault(item.turn, []).append(k)
        side = "right" if self.lm.encoder_decoder else "left"
        inputs = [
            (rows, self._answers(turn), *pad_rows([items[k].prompt for k in rows], self.lm.pad_id, side))
            for turn, rows in groups.items()
        ]
        return Batch(inputs, len(items), np.array([item.length for item in items]), self.lm.limit)

    def forward(self, batch: Any) -> Any:
        """Return the log-probabilities, shape (batch.size, k)."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        scores = torch.zeros(batch.size, len(self.choices), dtype=wide, device=self.device)
        run = self._encoder_decoder if self.lm.encoder_decoder else self._decoder
        with frozen(self.module):
            for rows, answers, ids, mask in batch.inputs:
                tree = ChoiceTree(answers)
                found = run(tree, ids.to(self.device), mask.to(self.device)) if tree.nodes else {}
                if tree.nodes:
                    edges = torch.cat([found[prefix] for prefix in tree.prefixes], 1).to(wide)
                    scores[rows] = torch.stack([edges[:, list(path)].sum(1) for path in tree.paths], 1)
        return as_features(scores)

    def _decoder(self, tree, ids, mask):
        """Return the log-probabilities (n, c) of the tokens that may follow each prefix, as a dict."""
        n = len(ids)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        later = _runs(tree)
        # Only the last position predicts a token of an answer; padding is on the left.
        seen = self._call(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=bool(later),
            logits_to_keep=1,
        )
        found = _followed(tree, [((), 0)], seen.logits[:, -1:])
        filled = getattr(seen, self._cache, None)
        # Caches of recurrent models have layers that cannot be repeated.
        repeated = [filled, *getattr(filled, "layers", ())] if later else []
        if not all(hasattr(part, "batch_repeat_interleave") for part in repeated):
            raise BackboneError(f"{type(self.module).__name__} has no key-value cache, which scoring choices needs.")
        chunks = self._chunks(later, ids.shape[1])
        for some in chunks:
            # Inputs are padded on the right, where causal attention does not look.
            given, given_mask = (t.to(self.device) for t in pad_rows(some, self.lm.pad_id))
            # The pass below writes into the cache, so every chunk but the last gets a copy.
            cache = filled if some is chunks[-1] else copy.deepcopy(filled)
            cache.batch_repeat_interleave(len(some))
            logits = self._call(
                input_ids=given.repeat(n, 1),
                attention_mask=torch.cat([mask.repeat_interleave(len(some), 0), given_mask.repeat(n, 1)], 1),
                position_ids=positions[:, -1:].repeat_interleave(len(some), 0)
                + torch.arange(1, given.shape[1] + 1, device=self.device),
                **{self._cache: cache},
                use_cache=True,
            ).logits
            for k, run in enumerate(some):
                found |= _followed(tree, later[run], logits[k :: len(some)])
        return found

    def _encoder_decoder(self, tree, ids, mask):
        from transformers.modeling_outputs import BaseModelOutput

        n, encoded, found = len(ids), None, {}
        later = {run: [(prefix, at + 1) for prefix, at in told] for run, told in _runs(tree).items()}
        # The empty answer runs with the encoder; the others reuse the encoder's output.
        for some in [[()], *self._chunks(later, ids.shape[1])]:
            given = decoder_inputs(self.lm, [(*run, self.lm.pad_id) for run in some]).to(self.device)
            source = {"input_ids": ids}
            if encoded is not None:
                source = {"encoder_outputs": BaseModelOutput(encoded.repeat_interleave(len(some), 0))}
            output = self._call(
                **source,
                attention_mask=mask.repeat_interleave(len(some), 0),
                decoder_input_ids=given.repeat(n, 1),
                use_cache=False,
            )
            encoded = output.encoder_last_hidden_state if encoded is None else encoded
            for k, run in enumerate(some):
                found |= _followed(tree, later.get(run, [((), 0)]), output.logits[k :: len(some)])
        return found

    def _call(self, **inputs):
        # Not every model takes position_ids or logits_to_keep.
        return self.module(**{k: v for k, v in inputs.items() if k not in _OPTIONAL or k in self._options})

    def _chunks(self, runs, width):
        """Split runs of tokens into chunks, so that memory is bounded for any number of answers."""
        if not runs:
            return []
        # Runs of similar length go together, so that there is little padding.
        runs = sorted(runs, key=lambda run: -len(run))
        longest = len(runs[0])
        vocabulary = self.lm.head.weight.shape[0]
        most = min(_MOST_LOGITS // (longest * vocabulary), _MOST_TOKENS // (width + longest))
        size = max(1, most // self.default_batch_size)
        return [runs[i : i + size] for i in range(0, len(runs), size)]

    def _answers(self, turn):
        if turn not in self._ids:
            answers = self.prompts.answers(self.choices, turn)
            for k, answer in enumerate(answers):
                if not answer:
                    raise InputError(f"choices[{k}], {self.choices[k]!r}, has no tokens; leave it out.")
                self.prompts.refuse_long(answer, f"choices[{k}]")
            self._ids[turn] = answers
        return self._ids[turn]


_OPTIONAL = ("position_ids", "logits_to_keep")


def _runs(tree):
    """Return the shortest runs of tokens that pass all nodes but the first: a dict to lists of (prefix, position)."""
    runs: dict = {}
    for prefix in sorted(filter(None, tree.prefixes), key=len, reverse=True):
        run = next((longer for longer in runs if longer[: len(prefix)] == prefix), prefix)
        runs.setdefault(run, []).append((prefix, len(prefix) - 1))
    return runs


def _followed(tree, told, logits):
    """Return the renormalised log-probabilities of what may follow the prefixes that end at positions of logits."""
    nodes = dict(zip(tree.prefixes, tree.nodes, strict=True))
    return {prefix: _wide(logits[:, at, list(nodes[prefix])]).log_softmax(-1) for prefix, at in told if prefix in nodes}


def _wide(logits):
    return logits if logits.dtype == torch.float64 else logits.float()


def checked_choices(choices: Any) -> list:
    """Return the choices as a list; raise InputError unless they are different strings with text.

    Examples
    --------
    >>> from faast_sklearn.language.choices import checked_choices
    >>> checked_choices("cat")
    Traceback (most recent call last):
    ...
    faast_sklearn.errors.InputError: choices must be a list of strings, got 'cat'.
    """
    # A set has no stable order.
    if isinstance(choices, (str, bytes, Mapping, Set)) or not isinstance(choices, Iterable):
        raise InputError(f"choices must be a list of strings, got {choices!r}.")
    choices = list(choices)
    if not choices:
        raise InputError("choices is empty; pass at least one string.")
    seen = set()
    for k, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise InputError(f"choices[{k}] is {choice!r} ({type(choice).__name__}), expected str; convert it first.")
        if not choice.strip():
            raise InputError(f"choices[{k}] is empty; leave it out.")
        if choice in seen:
            raise InputError(f"choices[{k}] is {choice!r} again; list each choice once.")
        seen.add(choice)
    return [str(choice) for choice in choices]


def refuse_other_targets(targets: Sequence, choices: Sequence) -> None:
    """Raise InputError for the first target that is not among the choices; the message names the nearest choice.

    Parameters
    ----------
    targets : sequence of str
    choices : sequence of str

    Examples
    --------
    >>> from faast_sklearn.language.choices import refuse_other_targets
    >>> refuse_other_targets(["good", "Bad"], ["good", "bad"])
    Traceback (most recent call last):
    ...
    faast_sklearn.errors.InputError: y[1] is 'Bad', which is not one of choices; the nearest is 'bad'.
    """
    choices = checked_choices(choices)
    known = set(choices)
    for i, target in enumerate(targets):
        if target not in known:
            near = shortened(nearest(target, choices, cutoff=0.0))
            raise InputError(f"y[{i}] is {shortened(target)}, which is not one of choices; the nearest is {near}.")


def choice_tree(prompts: Any, choices: Sequence) -> "ChoiceTree":
    """Return the tree of choices as a prompt's answers.

    Parameters
    ----------
    prompts : Prompts
    choices : sequence of str
    """
    turn = prompts.questions(["a"])[0].turn
    return ChoiceTree(prompts.answers(checked_choices(choices), turn))
