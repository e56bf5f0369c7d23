"""Few-shot evaluation: accuracy over many small tasks drawn from labelled samples.

A frozen backbone sees each sample once. Episodes of a plain :class:`~faast_sklearn.FaastClassifier` are then solved all
at once (module ``faast_sklearn.few_shot.episodes``); any other classifier is fitted and scored episode by episode.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
import torch
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing
from sklearn.utils.parallel import Parallel, delayed

from faast_sklearn.errors import InputError
from faast_sklearn.estimators.base import RUN_PARAMETERS
from faast_sklearn.estimators.classifier import FaastClassifier
from faast_sklearn.estimators.evaluation import Evaluation
from faast_sklearn.estimators.features import BackboneFeatures
from faast_sklearn.few_shot.episodes import sample_episodes, solve_episodes
from faast_sklearn.inputs.labels import check_labels, named_weights
from faast_sklearn.inputs.samples import count_samples

__all__ = ["FewShotResult", "few_shot_score"]

# Parameters that the solve of all episodes at once follows, or that have no say in accuracies.
_FOLLOWED = {"solver", "alpha", "fit_intercept", "backbone", *RUN_PARAMETERS}


@dataclass(frozen=True, eq=False, repr=False)
class FewShotResult:
    """Accuracies of few-shot episodes.

    Parameters
    ----------
    scores : ndarray of shape (n_episodes,)
        Share of query rows that were predicted correctly. Results of the same ``random_state`` are of the same
        episodes, so that two estimators are compared by the differences of their scores.
    n_way, n_shot, n_query : int
        Classes, support rows a class and query rows a class.

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.few_shot import FewShotResult
    >>> FewShotResult(np.array([0.8, 0.9, 1.0]), n_way=5, n_shot=1, n_query=15)
    FewShotResult(5-way 1-shot, 3 episodes: 0.900, 95 % interval 0.652 to 1.148)
    """

    scores: np.ndarray
    n_way: int
    n_shot: int
    n_query: int

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.scores)

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return float(self.scores.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval (lower, upper) of the mean by Student's t; NaN for a single episode."""
        n = len(self.scores)
        if n < 2:
            return (float("nan"), float("nan"))
        half = scipy.stats.t.ppf(0.975, n - 1) * self.scores.std(ddof=1) / n**0.5
        return (float(self.mean - half), float(self.mean + half))

    def __repr__(self):
        low, high = self.interval
        return (
            f"{type(self).__name__}({self.n_way}-way {self.n_shot}-shot, {self.n_episodes} episodes: "
            f"{self.mean:.3f}, 95 % interval {low:.3f} to {high:.3f})"
        )


def few_shot_score(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    n_way: Any = 5,
    n_shot: Any = 5,
    n_query: Any = 15,
    n_episodes: Any = 600,
    random_state: Any = None,
    n_jobs: int | None = None,
) -> "FewShotResult":
    """Evaluate a classifier on few-shot episodes.

    Each episode draws ``n_way`` classes, ``n_shot`` rows of each to learn from and ``n_query`` others of each to test
    on. A score is what ``clone(estimator).fit(support).score(query)`` returns.

    Parameters
    ----------
    estimator : classifier
        A :class:`~faast_sklearn.FaastClassifier`, or any scikit-learn classifier or pipeline. It is not changed.
    X : samples of shape (n, ...)
        What the estimator takes, by position. A backbone of a ``FaastClassifier``, or a ``BackboneFeatures`` in front
        of a pipeline, runs once over all of it.
    y : array-like of shape (n,)
        Labels.
    n_way, n_shot, n_query, n_episodes, random_state
        As in :func:`~faast_sklearn.few_shot.sample_episodes`. The episodes depend on y and on these alone, so
        estimators evaluated with the same integer ``random_state`` are compared on the same episodes.
    n_jobs : int, optional
        Processes of episodes that are solved one by one.

    Returns
    -------
    FewShotResult
        With ``scores``, ``mean`` and the 95 % ``interval`` of the mean. A ``FaastClassifier`` that differs from its
        defaults by ``solver``, ``alpha``, ``fit_intercept`` and ``normalize=True`` at most is solved for all episodes
        at once; the scores are those of the loop.

    Raises
    ------
    InputError
        If X and y differ in length, classes or rows are too few, or a sample cannot be used.
    ValueError
        If a number or a parameter of the estimator is wrong.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from faast_sklearn import FaastClassifier
    >>> from faast_sklearn.few_shot import few_shot_score
    >>> X, y = load_digits(return_X_y=True)
    >>> few_shot_score(FaastClassifier(), X, y, random_state=0)
    FewShotResult(5-way 5-shot, 600 episodes: 0.910, 95 % interval 0.907 to 0.914)
    >>> few_shot_score(KNeighborsClassifier(1), X, y, n_episodes=20, random_state=0).scores.shape
    (20,)
    """
    labels = check_labels(y, "y")
    n_samples = count_samples(X)
    if n_samples is None or n_samples != len(labels):
        what = f"a {type(X).__name__}, which has no length" if n_samples is None else f"{n_samples} samples"
        raise InputError(f"X is {what}, and y has {len(labels)} labels; pass indexable samples with one label each.")
    episodes = sample_episodes(
        labels, n_way=n_way, n_shot=n_shot, n_query=n_query, n_episodes=n_episodes, random_state=random_state
    )
    scores = _scores(estimator, X, labels, episodes, n_jobs)
    return FewShotResult(scores, n_way, n_shot, n_query)


def _scores(estimator, X, y, episodes, n_jobs):
    """Return the accuracy of each episode; work that all episodes share is done once."""
    if isinstance(estimator, Pipeline) and len(estimator) > 1 and isinstance(estimator[0], BackboneFeatures):
        return _scores(estimator[1:], clone(estimator[0]).fit_transform(X), y, episodes, n_jobs)
    if isinstance(estimator, Pipeline) and len(estimator) == 1:
        estimator = estimator[0]
    if isinstance(estimator, FaastClassifier):
        evaluation = Evaluation(estimator, partial=False)
        reads_layers = evaluation.reads_layers()
        if _is_plain(estimator) and not reads_layers:
            settings = {name: getattr(estimator, name) for name in ("solver", "alpha", "normalize", "fit_intercept")}
            return solve_episodes(_unscaled(estimator, X), episodes, **settings)
        if estimator.backbone is not None and (evaluation.uses_values() or reads_layers):
            # Class names, the scale of logits and the widths of layers are the backbone's, so it must stay; a cache
            # sees each sample once.
            estimator = clone(estimator).set_params(cache="memory" if estimator.cache is None else estimator.cache)
        elif estimator.backbone is not None:
            X, estimator = _unscaled(estimator, X), clone(estimator).set_params(backbone=None, cache=None)
        if isinstance(estimator.class_weight, Mapping):  # an episode has some of the classes
            weights = named_weights(estimator.class_weight, np.unique(y))
            estimator = clone(estimator).set_params(class_weight=weights)
    tasks = zip(*(rows.reshape(len(rows), -1) for rows in episodes[:2]), strict=True)
    run = Parallel(n_jobs=n_jobs)
    return np.array(run(delayed(_fit_and_score)(estimator, X, y, *rows) for rows in tasks), dtype=np.float64)


def _is_plain(estimator):
    """Whether solving all episodes at once gives what the estimator would, judged by its parameters."""
    if type(estimator) is not FaastClassifier or not isinstance(estimator.normalize, (bool, np.bool_)):
        return False
    defaults = inspect.signature(FaastClassifier).parameters
    return all(
        name in _FOLLOWED or name == "normalize" or (type(value) is type(default) and value == default)
        for name, value in estimator.get_params(deep=False).items()
        for default in [defaults[name].default]
    )


def _unscaled(estimator, X):
    """Return the features of samples as the backbone gives them: whoever solves the episodes scales them."""
    return Evaluation(clone(estimator).set_params(normalize=False), partial=False).all_features(X)


def _fit_and_score(estimator, X, y, support, query):
    return clone(estimator).fit(_rows(X, support), y[support]).score(_rows(X, query), y[query])


def _rows(X, indices):
    return X[torch.as_tensor(indices, device=X.device)] if isinstance(X, torch.Tensor) else _safe_indexing(X, indices)
