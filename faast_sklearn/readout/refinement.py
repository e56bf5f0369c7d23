"""More passes over the examples, each one closed-form step of multinomial logistic regression.

A discriminant learns what Gaussian classes share; with many examples a class the likelihood itself knows better. One
pass costs one product with the features and one of the solve's size, and no learning rate is left to choose.
"""

from dataclasses import replace

import numpy as np
import torch

from faast_sklearn.moments.candidates import CandidateMoments
from faast_sklearn.solvers.condition import regular_factor

__all__ = ["held_out_rows", "refine", "refine_while_it_helps"]

# A pass multiplies the residual by the inverse of the scatter of features, at three times the penalty of the solve, and
# of the mean Fisher matrix of the scores, damped by its mean diagonal. Undamped, steps overshoot from the second on.
_STEP = 0.5
_DAMPING = 1.0
_PENALTY = 3.0
# One in five rows of each class says how many passes help.
_FOLDS = 5
# Fewer than these are too few to tell: thirty have chosen steps that cost two points of accuracy.
_LEAST_HELD_OUT = 100
_SLICE_ROWS = 16384


def held_out_rows(codes):
    """Return a mask of every fifth row of each class, in the order in which they come.

    Parameters
    ----------
    codes : ndarray of int, shape (n,)

    Returns
    -------
    ndarray of bool, shape (n,)
    """
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(codes[order]) != 0])
    place = np.arange(len(codes)) - np.repeat(starts, np.diff(np.r_[starts, len(codes)]))
    mask = np.zeros(len(codes), dtype=bool)
    mask[order] = place % _FOLDS == _FOLDS - 1
    return mask


def refine_while_it_helps(compile, rows, codes, classes, weight, maps, n_steps):
    """Compile labelled rows and refine the readout by as many steps as lower the log-loss of held-out rows.

    Parameters
    ----------
    compile : callable
        Makes a :class:`~faast_sklearn.readout.fitted.Compiled` of CandidateMoments.
    rows : ndarray or torch.Tensor of shape (n, d)
        Features.
    codes, classes, weight
        Labels as positions in sorted ``classes``, each of which occurs, and weights or None.
    maps : tuple of FeatureMap
    n_steps : int
        At most.

    Returns
    -------
    compiled : Compiled
        Of all rows.
    n_steps : int
        Taken; none if there are too few rows to tell.
    """
    held_out = held_out_rows(codes)

    def moments(mask):
        at = np.flatnonzero(mask)
        return CandidateMoments.from_codes(rows[at], codes[at], classes, None if weight is None else weight[at], maps)

    def steps(compiled, n, held_out=None):
        fitted = compiled.fitted
        return refine(
            fitted.readout,
            fitted.moments,
            fitted.solution.alpha,
            lambda at: fitted.map(rows[at]),
            codes,
            weight,
            n,
            held_out,
        )

    learnt = moments(~held_out)
    if held_out.sum() < _LEAST_HELD_OUT or len(classes) < 2:
        return compile(learnt + moments(held_out)), 0
    _, losses = steps(compile(learnt), n_steps, held_out)
    best = _worth_taking(losses)
    whole = compile(learnt + moments(held_out))
    if not best:
        return whole, 0
    readouts, _ = steps(whole, best)
    return whole.with_readout(readouts[-1]), best


def _worth_taking(losses):
    """Return the number of steps of least mean loss, or none unless it is lower by one standard error."""
    best = int(np.argmin([loss.mean() for loss in losses]))
    gain = losses[0] - losses[best]
    return best if gain.mean() > gain.std() / max(len(gain) - 1, 1) ** 0.5 else 0


def refine(readout, moments, alpha, rows, codes, weight, n_steps, held_out=None):
    """Take steps ``W ← W + ½ (T + 3λ)⁻¹ (X − μ)ᵀ(Y − P) (F + f̄ I)⁻¹`` on the log-likelihood of the labels.

    P are the probabilities of the current readout, T the scatter of the rows, ``F = diag p̄ − PᵀP / n`` the Fisher
    matrix of the scores and f̄ its mean diagonal.

    Parameters
    ----------
    readout : LinearReadout
        Where to start; all its classes have rows.
    moments : ClassMoments
        Of the rows to learn from.
    alpha : float
        Of the ridge solve: ``λ = alpha · trace(T) / d``.
    rows : callable
        ``rows(slice)`` returns those rows of features, mapped, an ndarray or tensor.
    codes : ndarray of int, shape (n,)
        Column of each row's class.
    weight : ndarray of shape (n,) or None
    n_steps : int
    held_out : ndarray of bool, shape (n,), optional
        Rows that only judge. They must not be in ``moments``.

    Returns
    -------
    readouts : list of LinearReadout
        The first is ``readout``, then one for each step.
    losses : list of ndarray
        Weighted log-loss of each held-out row under each; empty without them. O(n d c) a step, and one Cholesky
        factorisation, O(d³ / 3).
    """
    scatter = moments.scatter.significant()
    matrix = scatter.matrix()
    matrix.diagonal().add_(_PENALTY * alpha * scatter.trace() / scatter.n_features)
    factor = regular_factor(matrix)
    readouts, losses = [readout], []
    for step in range(n_steps + (held_out is not None)):
        gradient, residual, fisher, loss = _one_pass(readouts[-1], rows, codes, weight, held_out)
        if held_out is not None:
            losses.append(loss)
        if step == n_steps:
            break
        gradient -= np.outer(moments.mean, residual)
        inverse = np.linalg.inv(fisher + _DAMPING * np.trace(fisher) / len(fisher) * np.eye(len(fisher)))
        solved = torch.cholesky_solve(torch.as_tensor(gradient, device=factor.device), factor).cpu().numpy()
        move = _STEP * solved @ inverse
        offset = _STEP * residual / moments.weight @ inverse - moments.mean @ move
        last = readouts[-1]
        readouts.append(
            replace(
                last, coef=last.coef + move.T / last.temperature, intercept=last.intercept + offset / last.temperature
            )
        )
    return readouts, losses


def _one_pass(readout, rows, codes, weight, held_out):
    """Return gradient (d, c), sum of residuals (c,), mean Fisher matrix of the scores (c, c), held-out losses."""
    c = len(readout.coef)
    gradient, residual, outer, mean, total = 0.0, np.zeros(c), np.zeros((c, c)), np.zeros(c), 0.0
    losses = []
    for start in range(0, len(codes), _SLICE_ROWS):
        part = slice(start, start + _SLICE_ROWS)
        X, code = rows(part), codes[part]
        scores = readout.scores(X)
        log_p = readout.log_probabilities(scores if isinstance(scores, np.ndarray) else scores.cpu().numpy())
        w = np.ones(len(code)) if weight is None else weight[part]
        if held_out is not None:
            out = held_out[part]
            losses.append(-w[out] * log_p[np.flatnonzero(out), code[out]])
            w = np.where(out, 0.0, w)
        p = np.exp(log_p)
        error = -p * w[:, None]
        error[np.arange(len(code)), code] += w
        if isinstance(X, np.ndarray):
            gradient = gradient + X.T.astype(np.float64, copy=False) @ error
        else:
            gradient = gradient + (X.T.to(torch.float64) @ torch.as_tensor(error, device=X.device)).cpu().numpy()
        residual += error.sum(0)
        outer += (p * w[:, None]).T @ p
        mean += w @ p
        total += w.sum()
    return gradient, residual, (np.diag(mean) - outer) / total, np.concatenate(losses) if losses else None
