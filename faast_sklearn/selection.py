"""Cross-validation of many regularisation strengths from the moments of the folds.

Moments add up, so those of all folds but one need no further pass over the samples. One pass and one
eigendecomposition per fold give the held-out error at every strength, with the same result as refitting.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.model_selection import check_cv

from faast_sklearn.errors import InputError
from faast_sklearn.estimators.evaluation import Evaluation
from faast_sklearn.inputs.samples import count_samples
from faast_sklearn.solvers.filters import pinv_filter, ridge_filter
from faast_sklearn.solvers.spectrum import decompose

__all__ = ["AlphaPath", "alpha_path", "kfold_errors"]

SCORINGS = ("neg_squared_error", "accuracy", "neg_log_loss")
_RIDGE_ALPHAS = np.logspace(-4, 2, 25)
_PINV_ALPHAS = np.linspace(0.1, 1.3, 25)


def kfold_errors(
    folds: Sequence, alphas: Any, *, solver: Literal["ridge", "pinv"] = "ridge", intercept: bool = True
) -> np.ndarray:
    """Return the mean squared error of held-out one-hot targets for each fold and strength, from moments alone.

    For the rows i of fold k, the error is ``Σᵢ ‖vᵢ − ŷᵢ‖² / nₖ``, where the weights W that predict ``ŷᵢ`` are learnt
    from all other folds. If G, X and t are the second moments of the fold's keys and values about the means of the
    other folds, then ``nₖ · error = t − 2 tr WᵀX + tr WᵀGW``.

    Parameters
    ----------
    folds : sequence of ClassMoments
        Moments of disjoint rows; at least two folds.
    alphas : array-like of shape (a,)
        As in :func:`~faast_sklearn.solvers.solve_ridge` or ``solve_pinv``.
    solver : {"ridge", "pinv"}, default="ridge"
    intercept : bool, default=True

    Returns
    -------
    ndarray of shape (n_folds, a)
        The cost per fold is one eigendecomposition, O(d³), and O(d² min(a c, 2 d)).

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.moments import ClassMoments
    >>> from faast_sklearn.selection import kfold_errors
    >>> X, y = np.random.default_rng(0).standard_normal((60, 3)), np.arange(60) % 2
    >>> X[:, 0] += 3 * y
    >>> folds = [ClassMoments.from_rows(X[i::3], y[i::3]) for i in range(3)]
    >>> kfold_errors(folds, [0.01, 1.0, 100.0]).mean(0).round(2)
    array([0.21, 0.23, 0.49])
    """
    alphas = np.asarray(alphas, dtype=np.float64)
    classes = functools.reduce(np.union1d, [fold.classes for fold in folds])
    folds = [fold.reindexed(classes) for fold in folds]
    pairs = zip(_left_out(folds), folds, strict=True)
    return np.stack([_held_out_errors(train, fold, alphas, solver, intercept) for train, fold in pairs])


def _left_out(folds) -> Iterator[Any]:
    """Yield, for each fold, the moments of all other folds."""
    whole = sum(folds[1:], start=folds[0])
    if not whole.scatter.is_factored:
        yield from (whole - fold for fold in folds)
        return
    # With few rows, moments hold the rows themselves and the solve is small. A sum of such moments does so too, but a
    # difference would form the d×d matrix.
    before, after = list(itertools.accumulate(folds)), list(itertools.accumulate(folds[::-1]))[::-1]
    yield after[1]
    yield from (before[k - 1] + after[k + 1] for k in range(1, len(folds) - 1))
    yield before[-2]


def _held_out_errors(train, fold, alphas, solver, intercept):
    train = train.reindexed(fold.classes)
    scatter = train.scatter if intercept else train.scatter.about_origin()
    spectrum = decompose(scatter)
    values, vectors = spectrum.values, spectrum.vectors
    if solver == "ridge":
        strengths = torch.as_tensor(alphas * spectrum.mean_value, device=values.device)[:, None]
        f = ridge_filter(values, strengths)
    else:
        f = pinv_filter(values, torch.as_tensor(train.n_samples**-alphas, device=values.device)[:, None])
    learnt = vectors.T @ train.class_sums(centred=intercept).T  # (r, c)
    cross, total, shift = _about_others(train, fold, intercept)
    explained = f @ (learnt * (vectors.T @ cross)).sum(1)
    a, c = len(alphas), learnt.shape[1]
    if a * c < 2 * len(scatter.mean):
        weights = vectors @ (f.T[:, :, None] * learnt[:, None, :]).reshape(-1, a * c)
        spread = fold.scatter.squares(weights) + fold.weight * (shift @ weights).square()
        quadratic = spread.reshape(a, c).sum(1)
    else:
        rotated = fold.scatter.quadratic(vectors)
        tilt = shift @ vectors
        rotated.addr_(tilt, tilt, alpha=fold.weight)
        quadratic = ((f @ (rotated * (learnt @ learnt.T))) * f).sum(1)
    return ((total - 2.0 * explained + quadratic) / fold.weight).cpu().numpy()


def _about_others(train, fold, intercept):
    """Return a fold's second moments of keys with values (d, c) and of values, and the mean of its keys (d,).

    With ``intercept``, all are about the means of the other folds; without it, about zero. ``train`` holds the moments
    of the other folds, with the same classes.
    """
    counts = torch.as_tensor(fold.counts, device=fold.scatter.device)
    shares = torch.as_tensor(train.counts / train.weight * intercept, device=counts.device)
    origin = train.scatter.mean * intercept
    codes = torch.eye(len(counts), dtype=counts.dtype, device=counts.device) - shares
    cross = (fold.class_sums(centred=False) - counts[:, None] * origin).T @ codes
    return cross, float(counts @ codes.square().sum(1)), fold.scatter.mean - origin


@dataclass(frozen=True)
class AlphaPath:
    """Cross-validated scores along a path of alphas.

    Attributes
    ----------
    cv_results_ : dict
        As in scikit-learn's ``GridSearchCV``: ``params``, ``param_alpha``, ``split{i}_test_score``,
        ``mean_test_score``, ``std_test_score``, ``rank_test_score``. The strongest regularisation comes last.
    scoring : str
        Name of the score.
    n_splits_ : int
        Number of folds.
    """

    cv_results_: dict
    scoring: str
    n_splits_: int

    @property
    def best_index_(self) -> int:
        """Position of the best mean score; among equal scores, that of the strongest regularisation."""
        return int(np.flatnonzero(self.cv_results_["rank_test_score"] == 1)[-1])

    @property
    def best_alpha_(self) -> float:
        """The alpha with the best mean score."""
        return float(self.cv_results_["param_alpha"][self.best_index_])

    @property
    def best_score_(self) -> float:
        """The best mean score."""
        return float(self.cv_results_["mean_test_score"][self.best_index_])


def alpha_path(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    alphas: Any = None,
    cv: Any = 5,
    groups: Any = None,
    scoring: Literal["neg_squared_error", "accuracy", "neg_log_loss"] = "neg_squared_error",
    sample_weight: Any = None,
) -> "AlphaPath":
    """Cross-validate a :class:`~faast_sklearn.FaastClassifier` at many alphas, with one or two passes over the samples.

    Parameters
    ----------
    estimator : FaastClassifier
        It is not changed. Its ``alpha`` is ignored; all other parameters apply.
    X, y : samples and labels
        As in ``fit``, but not an iterator.
    alphas : array-like of shape (a,), optional
        By default 25 values from 1e-4 to 100, or from 0.1 to 1.3 with ``solver="pinv"``.
    cv : int or splitter, default=5
        Its test folds must be disjoint and cover all samples, as those of KFold, StratifiedKFold and GroupKFold do,
        because the moments of a fold are left out of a sum. An integer is a number of stratified folds.
    groups : array-like of shape (n,), optional
        Groups of samples, for splitters that need them.
    scoring : {"neg_squared_error", "accuracy", "neg_log_loss"}, default="neg_squared_error"
        The squared error of one-hot targets needs only the statistics. The other two need a second pass over the
        samples, for which a ``cache`` of the estimator saves the backbone.
    sample_weight : array-like of shape (n,), optional

    Returns
    -------
    AlphaPath

    Raises
    ------
    InputError
        If X can be read only once, or the test folds overlap or leave out samples.
    ValueError
        If ``scoring`` is not one of the three, an alpha is not finite or is negative, or the estimator has
        ``class_weight="balanced"``, which needs all labels at once.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from faast_sklearn import FaastClassifier
    >>> from faast_sklearn.selection import alpha_path
    >>> path = alpha_path(FaastClassifier(), *load_digits(return_X_y=True), scoring="accuracy")
    >>> path.cv_results_["mean_test_score"].shape, path.best_score_ > 0.9
    ((25,), True)
    """
    if scoring not in SCORINGS:
        raise ValueError(f"scoring must be one of {SCORINGS}, got {scoring!r}.")
    default = _RIDGE_ALPHAS if estimator.solver == "ridge" else _PINV_ALPHAS
    alphas = np.unique(np.asarray(default if alphas is None else alphas, dtype=np.float64))
    if not len(alphas) or not np.isfinite(alphas).all() or alphas[0] < 0:
        raise ValueError(f"alphas must be finite numbers of at least 0, got {alphas.tolist()}.")
    n = count_samples(X)
    if n is None:
        raise InputError("X is read only once, so it cannot be split into folds; pass a list, an array or a dataset.")
    fold_of, n_folds = _fold_of(check_cv(cv, y, classifier=True), n, y, groups)
    evaluation = Evaluation(estimator)
    folds = evaluation.moments_of_folds(X, y, sample_weight, fold_of, n_folds)
    total = sum(folds[1:], start=folds[0])
    problem = evaluation.problem_of(total)
    solver = problem.settings.solver
    if scoring == "neg_squared_error":
        plain = problem.blocks is None and problem.examples is problem.moments
        errors = kfold_errors if plain else functools.partial(_errors_of_problems, problem)
        scores = -errors(folds, alphas, solver=solver, intercept=problem.settings.intercept)
    else:
        left_out = [[one.solved.readout for one in _problems(problem, train, alphas)] for train in _left_out(folds)]
        with closing(evaluation.features(X)) as stream:
            scores = _score_held_out(stream, problem.classes, y, sample_weight, fold_of, left_out, scoring)
    return AlphaPath(_results(alphas, scores, solver == "ridge"), scoring, n_folds)


def _errors_of_problems(problem, folds, alphas, *, solver, intercept):
    """Return the errors that ``kfold_errors`` returns, for solves that scale layers or learn class vectors.

    The scales and the weights of the vectors depend on the training folds, so each fold is solved on its own.
    """
    errors = []
    for train, fold in zip(_left_out(folds), folds, strict=True):
        solved = _problems(problem, train, alphas)
        errors.append([_error_of(one.solved.solution, one.scales, one.examples, fold, intercept) for one in solved])
    return np.array(errors)


def _error_of(solution, scales, train, fold, intercept):
    """Return the mean squared error of the weights learnt from ``train`` on the rows of ``fold``."""
    train, fold = scales.moments(train), scales.moments(fold)
    fold = fold.reindexed(np.union1d(train.classes, fold.classes))
    train, weights = train.reindexed(fold.classes), solution.weights
    if weights.shape[1] < len(fold.classes):  # the fold has a class that is not in train
        at = torch.as_tensor(np.flatnonzero(train.rows), device=weights.device)
        weights = weights.new_zeros((len(weights), len(fold.classes))).index_copy_(1, at, weights)
    cross, total, shift = _about_others(train, fold, intercept)
    spread = fold.scatter.squares(weights) + fold.weight * (shift @ weights).square()
    return float(total - 2.0 * (weights * cross).sum() + spread.sum()) / fold.weight


def _problems(problem, moments, alphas):
    """Return the problems of moments, one for each alpha; one decomposition solves them all."""
    moments.keep()
    return (problem.with_moments(moments, replace(problem.settings, alpha=float(alpha))) for alpha in alphas)


def _score_held_out(stream, classes, y, sample_weight, fold_of, left_out, scoring):
    """Return the mean score of each fold at each alpha."""
    codes = np.searchsorted(classes, y)
    weight = np.ones(len(fold_of)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    scores = np.zeros((len(left_out), len(left_out[0])))
    for indices, features in stream:
        for k in np.unique(fold_of[indices]):
            at = np.flatnonzero(fold_of[indices] == k)
            rows, w, code = features[at], weight[indices[at]], codes[indices[at]]
            for a, readout in enumerate(left_out[k]):
                values = readout.scores(rows)
                values = values if isinstance(values, np.ndarray) else values.cpu().numpy()
                if scoring == "accuracy":
                    scores[k, a] += w @ (values.argmax(1) == code)
                else:
                    scores[k, a] += w @ readout.log_probabilities(values)[np.arange(len(code)), code]
    return scores / np.bincount(fold_of, weights=weight)[:, None]


def _fold_of(splitter, n, y, groups):
    """Return the fold of each sample, and how many there are."""
    fold_of = np.full(n, -1)
    k = -1
    for k, (_, test) in enumerate(splitter.split(np.zeros((n, 1)), y, groups)):
        if (fold_of[test] >= 0).any():
            raise InputError(
                f"the test folds of {type(splitter).__name__} overlap; they must be disjoint, "
                "as those of KFold, StratifiedKFold or GroupKFold are."
            )
        fold_of[test] = k
    if k < 1:
        raise InputError(f"{type(splitter).__name__} makes fewer than two folds, so that nothing can be held out.")
    if (fold_of < 0).any():
        raise InputError(
            f"the test folds of {type(splitter).__name__} leave out {int((fold_of < 0).sum())} of {n} samples; each "
            "sample must be held out once, as by KFold, StratifiedKFold or GroupKFold."
        )
    return fold_of, k + 1


def _results(alphas, scores, ascending):
    # The strongest regularisation comes last, where best_index_ looks first among equal scores.
    order = np.arange(len(alphas)) if ascending else np.arange(len(alphas))[::-1]
    alphas, scores = alphas[order], scores[:, order]
    mean = scores.mean(0)
    results = {"params": [{"alpha": float(alpha)} for alpha in alphas], "param_alpha": np.ma.array(alphas)}
    for k, row in enumerate(scores):
        results[f"split{k}_test_score"] = row
    # Scores that differ only by rounding have the same rank.
    rank = rankdata(-np.round(mean, 12), method="min").astype(np.int32)
    return results | {"mean_test_score": mean, "std_test_score": scores.std(0), "rank_test_score": rank}
