"""Few-shot evaluation: accuracy over many small tasks drawn from labelled samples.

The features of a frozen backbone are computed before the episodes. For a :class:`~faast_sklearn.FaastClassifier` near
its defaults, the episodes are then solved in large batches (module ``faast_sklearn.few_shot.episodes``). Any other
classifier is fitted and scored for one episode after the other.
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

# Parameters that the batched solve supports, or that do not change accuracies.
_FOLLOWED = {"solver", "alpha", "fit_intercept", "normalize", "backbone", *RUN_PARAMETERS}


@dataclass(frozen=True, eq=False, repr=False)
class FewShotResult:
    """Accuracies of few-shot episodes.

    Parameters
    ----------
    scores : ndarray of shape (n_episodes,)
        Share of query rows that were predicted correctly. The same ``random_state`` gives the same episodes, so that
        scores of two estimators can be compared episode by episode.
    n_way, n_shot, n_query : int
        Classes per episode, support rows per class and query rows per class.

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

    Each episode draws ``n_way`` classes and, per class, ``n_shot`` rows to learn from and ``n_query`` other rows to
    test on. Its score is that of ``clone(estimator).fit(support).score(query)``.

    Parameters
    ----------
    estimator : classifier
        A :class:`~faast_sklearn.FaastClassifier`, or any scikit-learn classifier or pipeline. It is not changed.
    X : samples of shape (n, ...)
        Samples that the estimator accepts and that can be indexed. The backbone of a ``FaastClassifier`` without inner
        layers and class vectors, or a ``BackboneFeatures`` as the first step of a pipeline, runs once over all of them.
        With inner layers or class vectors, a cache encodes each sample once per process.
    y : array-like of shape (n,)
        Labels.
    n_way, n_shot, n_query, n_episodes, random_state
        As in :func:`~faast_sklearn.few_shot.sample_episodes`. The episodes depend only on these and on y, so that the
        same integer ``random_state`` gives every estimator the same episodes.
    n_jobs : int, optional
        Number of processes; only used if episodes are fitted one by one.

    Returns
    -------
    FewShotResult
        With ``scores``, ``mean`` and the 95 % ``interval`` of the mean. Episodes are solved in large batches if the
        estimator is a ``FaastClassifier`` that reads no inner layers and whose only parameters other than the defaults
        are ``backbone``, ``solver``, ``alpha``, ``normalize``, ``fit_intercept`` and those that say how to run. The
        scores equal those of fitting one by one.

    Raises
    ------
    InputError
        If X and y differ in length, there are too few classes or rows, or a sample cannot be used.
    ValueError
        If a number or a parameter of the estimator is invalid.

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
    """Return the accuracy of each episode; computations that all episodes share are done once."""
    if isinstance(estimator, Pipeline) and len(estimator) > 1 and isinstance(estimator[0], BackboneFeatures):
        return _scores(estimator[1:], clone(estimator[0]).fit_transform(X), y, episodes, n_jobs)
    if isinstance(estimator, Pipeline) and len(estimator) == 1:
        estimator = estimator[0]
    if isinstance(estimator, FaastClassifier):
        evaluation = Evaluation(estimator, partial=False)
        reads_layers = evaluation.reads_layers()
        if _is_plain(estimator) and not reads_layers:
            settings = {name: getattr(estimator, name) for name in ("solver", "alpha", "fit_intercept")}
            normalize = estimator._learns_unit_rows()
            return solve_episodes(_unscaled(estimator, X), episodes, normalize=normalize, **settings)
        if estimator.backbone is not None and (evaluation.uses_values() or reads_layers):
            # Embedded class names, the scale of logits and the widths of layers come from the backbone, so the
            # estimator keeps it; a cache avoids encoding a sample more than once.
            estimator = clone(estimator).set_params(cache="memory" if estimator.cache is None else estimator.cache)
        elif estimator.backbone is not None:
            ready = {"backbone": None, "cache": None, "normalize": estimator._learns_unit_rows()}
            X, estimator = _unscaled(estimator, X), clone(estimator).set_params(**ready)
        if isinstance(estimator.class_weight, Mapping):  # an episode has only some of the named classes
            weights = named_weights(estimator.class_weight, np.unique(y))
            estimator = clone(estimator).set_params(class_weight=weights)
    tasks = zip(*(rows.reshape(len(rows), -1) for rows in episodes[:2]), strict=True)
    run = Parallel(n_jobs=n_jobs)
    return np.array(run(delayed(_fit_and_score)(estimator, X, y, *rows) for rows in tasks), dtype=np.float64)


def _is_plain(estimator):
    """Whether the parameters of the estimator are such that the batched solve gives the same result."""
    if type(estimator) is not FaastClassifier:
        return False
    defaults = inspect.signature(FaastClassifier).parameters
    others = {name: value for name, value in estimator.get_params(deep=False).items() if name not in _FOLLOWED}
    return all(
        type(value) is type(defaults[name].default) and value == defaults[name].default
        for name, value in others.items()
    )


def _unscaled(estimator, X):
    """Return the features of samples without scaling to unit length, which follows when episodes are solved."""
    return Evaluation(clone(estimator).set_params(normalize=False), partial=False).all_features(X)


def _fit_and_score(estimator, X, y, support, query):
    return clone(estimator).fit(_rows(X, support), y[support]).score(_rows(X, query), y[query])


def _rows(X, indices):
    return X[torch.as_tensor(indices, device=X.device)] if isinstance(X, torch.Tensor) else _safe_indexing(X, indices)
