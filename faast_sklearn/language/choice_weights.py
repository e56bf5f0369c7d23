"""Fast weights for choices, learnt from the tokens that decide: a discriminant at each node of the tree of choices.

A choice is a path in this tree (:class:`~faast_sklearn.language.choices.ChoiceTree`); at each node only the tokens of
its edges compete. What is kept of the hidden states at a node is their scatter and their sum for each edge, so each
node is a classification problem. It is solved and read out as :class:`~faast_sklearn.FaastClassifier` does it, as
scores ``sₜ(h) = h·cₜ + oₜ``. The logit of token t becomes

    ``first · sₜ(h) + second · (h − m)·eₜ``,

e the output embeddings and m the mean over a node's classes of their mean state: the second part is the frozen model
without what it prefers whatever the prompt says. Constants are read from the state
(:func:`~faast_sklearn.language.solving.constant_readers`), so the whole is a change of rows of the output matrix. The
row of a token that competes at several nodes is the least-squares fit to its scores there.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from faast_sklearn.language.fast_weights import FastWeights
from faast_sklearn.language.moments import LanguageMoments, TokenMoments
from faast_sklearn.language.solving import Directions, constant_readers, key_spectrum
from faast_sklearn.moments.class_moments import ClassMoments
from faast_sklearn.moments.cross_moments import CrossMoments
from faast_sklearn.readout.calibration import log_share_of_none, log_shares
from faast_sklearn.readout.linear import discriminant_readout, score_readout
from faast_sklearn.solvers.solve import fast_weights

__all__ = ["choice_directions", "choice_fast_weights", "choice_moments"]


def choice_moments(keys: torch.Tensor, edges: torch.Tensor, nodes: Sequence) -> tuple:
    """Compute the statistics of the tokens that decide.

    Parameters
    ----------
    keys : tensor of shape (n, d)
        Hidden states in front of them, on the device where moments are kept.
    edges : tensor of shape (n,), int64
        Which edge of the tree each of them is.
    nodes : sequence of sequences of int
        The tokens that may follow, node by node.

    Returns
    -------
    output : TokenMoments
        Of all keys, with the sum of those of each edge as ``memory.cross``, and their number as ``counts``.
    parts : list of CrossMoments
        The same of each node.
    """
    edges = edges.to(keys.device)
    values = torch.nn.functional.one_hot(edges, sum(map(len, nodes))).to(torch.float64)
    output = TokenMoments(CrossMoments.from_rows(keys, values), counts=values.sum(0))
    if len(nodes) == 1:
        return output, []  # it would be a copy
    parts, start = [], 0
    for node in nodes:
        own = values[:, start : start + len(node)]
        at = own.sum(1) > 0
        parts.append(CrossMoments.from_rows(keys[at], own[at]))
        start += len(node)
    return output, parts


def choice_directions(
    lm: Any, moments: LanguageMoments, nodes: Sequence, solver: Literal["ridge", "pinv"], alpha: float | Literal["auto"]
) -> tuple:
    """Solve for the parts of the fast weights, before they are scaled by their strengths.

    Parameters
    ----------
    lm : LanguageModel
    moments : LanguageMoments
        Its ``output`` and ``middle`` are from :func:`choice_moments`, of at least one key.
    nodes : sequence of sequences of int
    solver, alpha
        As in :func:`~faast_sklearn.solvers.fast_weights`.

    Returns
    -------
    directions : Directions
        ``tokens`` are those of ``nodes``, each once.
    solutions : list of Solution
        Of the nodes at which two or more edges were learnt, the one with the most keys first.
    """
    output, device = moments.output, moments.output.device
    tokens, token = torch.tensor([t for node in nodes for t in node], device=device).unique(return_inverse=True)
    matrix = lm.head.weight.detach()[tokens.to(lm.device)].to(device, torch.float64)
    spectrum = key_spectrum(output.memory)
    sums = torch.stack([part.keys.mean * part.keys.weight for part in _at_nodes(moments)], 1)
    readers = constant_readers(spectrum, output, sums)
    one = readers.sum(1, keepdim=True)
    lone = torch.bincount(token) == 1
    update = torch.zeros((output.memory.keys.n_features, len(tokens)), dtype=torch.float64, device=device)
    shift, mixed, solutions, start = matrix.T.clone(), torch.zeros_like(update), [], 0
    for k, part in enumerate(_at_nodes(moments)):
        edges = slice(start, start + len(nodes[k]))
        start, at, counts = edges.stop, token[edges], output.counts[edges]
        if not bool((counts > 0.5).any()):
            continue
        coef, offset, solution = _discriminant(part, counts, solver, alpha)
        solutions += [] if solution is None else [(part.weight, solution)]
        update[:, at] += torch.where(lone[at], coef.T + one * offset, 0.0)
        # The scores of the keys, as targets of the fit.
        scored = part.keys.about_origin().matrix() @ coef.T + sums[:, k, None] * offset
        mixed[:, at] += torch.where(lone[at], 0.0, scored)
        means = part.cross.T[counts > 0.5] / counts[counts > 0.5, None]
        usual = matrix[at] @ means.mean(0)
        shift[:, at] -= torch.where(lone[at], one, readers[:, k, None]) * usual
    update += torch.where(lone, 0.0, constant_readers(spectrum, output, mixed))
    fixed = -matrix.T - one * _biases(lm, tokens)
    directions = Directions((update / lm.finish.scale).float(), None, shift.float(), tokens, fixed.float())
    return directions, [solution for _, solution in sorted(solutions, key=lambda pair: -pair[0])]


def choice_fast_weights(
    lm: Any, directions: Directions, first: float, second: float, share: float = 1.0
) -> FastWeights:
    """Return fast weights with these strengths, in the model's dtype.

    Parameters
    ----------
    lm : LanguageModel
    directions : Directions
        From :func:`choice_directions`.
    first, second : float
        Of the discriminant, and of the frozen model's own preferences.
    share : float, default=1.0
        How far the second replaces the frozen model's logits, from 0 to 1.

    Returns
    -------
    FastWeights
    """
    tokens, fixed = directions.tokens, directions.fixed
    assert tokens is not None
    assert fixed is not None
    columns = first * directions.update + share * (second * directions.shift + fixed)
    rows = torch.nn.functional.one_hot(tokens, lm.head.out_features)
    return FastWeights("residual", None, columns.to(lm.device, lm.dtype), rows.to(lm.device, lm.dtype))


def _at_nodes(moments):
    return moments.middle or (moments.output.memory,)


def _discriminant(part, counts, solver, alpha):
    """Return coefficients (c, d) and offsets (c,) of a node's edges, and the solution; None if only one was learnt."""
    keys = part.keys
    coef = torch.zeros((len(counts), keys.n_features), dtype=torch.float64, device=keys.device)
    offset = torch.zeros_like(counts)
    seen = torch.nonzero(counts > 0.5)[:, 0]
    number = counts[seen].round()
    means = part.cross.T[seen] / number[:, None]
    rows = number.cpu().numpy()
    classes = ClassMoments(seen.cpu().numpy(), rows, rows.astype(np.int64), np.ones(len(seen)), means, keys)
    if solver == "ridge":
        offset += log_share_of_none(classes)
    if len(seen) < 2:
        offset[seen] = torch.as_tensor(log_shares(classes), device=keys.device)
        return coef, offset, None
    solution = fast_weights(classes, solver=solver, alpha=alpha)
    if solver == "ridge":
        readout = discriminant_readout(solution, classes)
    else:
        readout = score_readout(solution, classes, True)
    coef[seen] = torch.as_tensor(readout.coef * readout.temperature, device=keys.device)
    offset[seen] = torch.as_tensor(readout.intercept * readout.temperature, device=keys.device)
    return coef, offset, solution


def _biases(lm, tokens):
    """Return the constants that the model itself adds to the output matrix's result, float64."""
    at, total = tokens.to(lm.device), torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    if lm.head.bias is not None:
        total += lm.head.bias.detach()[at].to(total)
    if lm.finish.bias is not None:
        total += lm.finish.bias[at].to(total) / lm.finish.scale
    return total
