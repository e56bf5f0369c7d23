"""Plots of accuracy against shots, and of the validation score along a path of alphas; they need matplotlib."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from faast_sklearn.errors import InputError
from faast_sklearn.few_shot.score import few_shot_score
from faast_sklearn.optional import require
from faast_sklearn.selection import alpha_path

__all__ = ["AlphaPathDisplay", "FewShotCurveDisplay"]


class FewShotCurveDisplay:
    """Accuracy of one or several classifiers against the number of shots, with 95 % intervals.

    Make one with :meth:`from_estimator` or :meth:`from_results`.

    Parameters
    ----------
    results : dict of str to dict of int to FewShotResult
        By the name of a classifier, its result for each number of shots.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
    figure_ : matplotlib.figure.Figure
    lines_ : dict of str to matplotlib.lines.Line2D
    bands_ : dict of str to matplotlib artist
        The intervals.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("agg")
    >>> from sklearn.datasets import load_digits
    >>> from faast_sklearn import FaastClassifier
    >>> from faast_sklearn.display import FewShotCurveDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> display = FewShotCurveDisplay.from_estimator(FaastClassifier(), X, y, shots=(1, 5), random_state=0)
    >>> display.ax_.get_xlabel()
    'shots (examples per class)'
    """

    def __init__(self, results: dict) -> None:
        self.results = results

    @classmethod
    def from_estimator(
        cls,
        estimators: Any,
        X: Any,
        y: Any,
        *,
        shots: Sequence = (1, 2, 5, 10),
        n_way: Any = 5,
        n_query: Any = 15,
        n_episodes: Any = 100,
        random_state: Any = None,
        ax: Any = None,
        **line_kw: Any,
    ) -> "FewShotCurveDisplay":
        """Evaluate estimators at several numbers of shots and plot them.

        Parameters
        ----------
        estimators : estimator, list of estimators, or dict of str to estimator
            Estimators without a name are named after their class. All see the same episodes, and the query rows are
            the same for all numbers of shots.
        X, y : samples and labels
            As in :func:`~faast_sklearn.few_shot.few_shot_score`.
        shots : sequence of int, default=(1, 2, 5, 10)
        n_way, n_query, n_episodes, random_state
            As in :func:`~faast_sklearn.few_shot.few_shot_score`.
        ax : matplotlib.axes.Axes, optional
            The axes to draw into; a new figure by default.
        **line_kw
            For the lines, see ``matplotlib.axes.Axes.plot``.

        Returns
        -------
        FewShotCurveDisplay

        Raises
        ------
        MissingDependencyError
            Without matplotlib, before anything is computed.
        InputError, ValueError
            As in :func:`~faast_sklearn.few_shot.few_shot_score`.
        """
        require("matplotlib")
        seed = check_random_state(random_state).randint(2**31 - 1)
        settings = {"n_way": n_way, "n_query": n_query, "n_episodes": n_episodes, "random_state": seed}
        results = {
            name: {shot: few_shot_score(estimator, X, y, n_shot=shot, **settings) for shot in shots}
            for name, estimator in _named(estimators).items()
        }
        return cls.from_results(results, ax=ax, **line_kw)

    @classmethod
    def from_results(cls, results: dict, *, ax: Any = None, **line_kw: Any) -> "FewShotCurveDisplay":
        """Plot results that were computed before.

        Parameters
        ----------
        results : dict of str to dict of int to FewShotResult
            ``{name: {shots: result}}``.
        ax : matplotlib.axes.Axes, optional
        **line_kw
            For the lines.

        Returns
        -------
        FewShotCurveDisplay
        """
        return cls(results).plot(ax, **line_kw)

    def plot(self, ax: Any = None, *, name: str | None = None, **line_kw: Any) -> "FewShotCurveDisplay":
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            A new figure by default.
        name : str, optional
            Draw this one alone.
        **line_kw
            For the lines.

        Returns
        -------
        FewShotCurveDisplay
            Itself.
        """
        if name is not None and name not in self.results:
            raise InputError(f"there is no curve {name!r}; there are {list(self.results)}.")
        self.ax_, self.figure_ = _axes(ax)
        self.lines_, self.bands_ = {}, {}
        ticks = set()
        for label, results in self.results.items():
            if name not in (None, label):
                continue
            shots = sorted(results)
            low, high = np.clip(np.transpose([results[shot].interval for shot in shots]), 0.0, 1.0)
            means = [results[shot].mean for shot in shots]
            (line,) = self.ax_.plot(shots, means, **{"marker": "o", "markersize": 4, "label": label, **line_kw})
            band = self.ax_.fill_between(shots, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
            self.lines_[label], self.bands_[label] = line, band
            ticks.update(shots)
        some = next(iter(next(iter(self.results.values())).values()))
        self.ax_.set_xscale("log", base=2)
        # By default the labels would be powers of two, such as 2³.
        self.ax_.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
        self.ax_.set_xticks([], minor=True)
        self.ax_.set(xlabel="shots (examples per class)", ylabel=f"accuracy, {some.n_way}-way, with 95 % interval")
        self.ax_.grid(alpha=0.3)
        self.ax_.legend(loc="best")
        return self


class AlphaPathDisplay:
    """Mean and spread of the validation score over the folds, along a path of alphas, with the chosen alpha marked.

    Make one with :meth:`from_estimator` or :meth:`from_results`.

    Parameters
    ----------
    alphas : ndarray of shape (k,)
    curves : dict of str to (ndarray of shape (k,), ndarray of shape (k,))
        Mean and standard deviation of the score at each alpha, by the name of the curve.
    score_name : str
        Label of the vertical axis.
    chosen : dict of str to float, optional
        By the name of a curve, the alpha to mark on it.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
    figure_ : matplotlib.figure.Figure
    lines_ : dict of str to matplotlib.lines.Line2D
    bands_ : dict of str to matplotlib artist
        One standard deviation on either side of the mean.
    marks_ : dict of str to matplotlib.lines.Line2D
        The marks of the chosen alphas.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("agg")
    >>> from faast_sklearn.display import AlphaPathDisplay
    >>> cv_results = {"param_alpha": [0.1, 1.0], "mean_test_score": [0.8, 0.9], "std_test_score": [0.02, 0.01]}
    >>> AlphaPathDisplay.from_results(cv_results, score_name="accuracy").ax_.get_ylabel()
    'accuracy'
    """

    def __init__(
        self, alphas: np.ndarray, curves: dict, *, score_name: str = "score", chosen: dict | None = None
    ) -> None:
        self.alphas = alphas
        self.curves = curves
        self.score_name = score_name
        self.chosen = chosen

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        alphas: Any = None,
        cv: Any = 5,
        scoring: Any = "neg_squared_error",
        ax: Any = None,
        name: str | None = None,
        **line_kw: Any,
    ) -> "AlphaPathDisplay":
        """Cross-validate an estimator along a path of alphas and plot its scores.

        Parameters
        ----------
        estimator : FaastClassifier
        X, y : samples and labels
        alphas, cv, scoring
            As in :func:`~faast_sklearn.selection.alpha_path`.
        ax : matplotlib.axes.Axes, optional
        name : str, optional
            Name of the curve; by default the name of the estimator's class.
        **line_kw
            For the line.

        Returns
        -------
        AlphaPathDisplay

        Raises
        ------
        MissingDependencyError
            Without matplotlib, before anything is computed.
        """
        require("matplotlib")
        path = alpha_path(clone(estimator), X, y, alphas=alphas, cv=cv, scoring=scoring)
        name = type(estimator).__name__ if name is None else name
        results: dict[str, Any] = {"score_name": path.scoring, "chosen": path.best_alpha_, "name": name}
        return cls.from_results(path.cv_results_, **results, ax=ax, **line_kw)

    @classmethod
    def from_results(
        cls,
        cv_results: dict,
        *,
        score_name: str = "score",
        chosen: float | None = None,
        ax: Any = None,
        name: str = "validation",
        **line_kw: Any,
    ) -> "AlphaPathDisplay":
        """Plot the results of a search over ``alpha``.

        Parameters
        ----------
        cv_results : dict
            With ``param_alpha``, ``mean_test_score`` and ``std_test_score``, such as ``GridSearchCV(...).cv_results_``
            of a search over ``alpha`` alone.
        score_name : str, default="score"
        chosen : float, optional
            The alpha to mark; by default the one with the best mean score.
        ax : matplotlib.axes.Axes, optional
        name : str, default="validation"
            Name of the curve.
        **line_kw
            For the line.

        Returns
        -------
        AlphaPathDisplay

        Raises
        ------
        InputError
            If a column is missing, or an alpha occurs twice, as in a search that also varies other parameters.
        """
        columns = ("param_alpha", "mean_test_score", "std_test_score")
        missing = [column for column in columns if column not in cv_results]
        if missing:
            raise InputError(f"cv_results has no {', '.join(missing)}; it must be of a search over alpha.")
        alphas, mean, spread = (np.asarray(cv_results[column], dtype=np.float64) for column in columns)
        order = np.argsort(alphas)
        alphas, mean, spread = alphas[order], mean[order], spread[order]
        if (np.diff(alphas) == 0).any():
            raise InputError("cv_results has several rows for one alpha; keep one value of each other parameter.")
        chosen = alphas[np.nanargmax(mean)] if chosen is None else chosen
        display = cls(alphas, {name: (mean, spread)}, score_name=score_name, chosen={name: float(chosen)})
        return display.plot(ax, **line_kw)

    def plot(self, ax: Any = None, *, name: str | None = None, **line_kw: Any) -> "AlphaPathDisplay":
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            A new figure by default.
        name : str, optional
            Draw this one alone.
        **line_kw
            For the lines.

        Returns
        -------
        AlphaPathDisplay
            Itself.
        """
        if name is not None and name not in self.curves:
            raise InputError(f"there is no curve {name!r}; there are {list(self.curves)}.")
        self.ax_, self.figure_ = _axes(ax)
        self.lines_, self.bands_, self.marks_ = {}, {}, {}
        for label, (mean, spread) in self.curves.items():
            if name not in (None, label):
                continue
            (line,) = self.ax_.plot(self.alphas, mean, **{"label": label, **line_kw})
            low, high = np.asarray(mean) - spread, np.asarray(mean) + spread
            colour = line.get_color()
            self.lines_[label] = line
            self.bands_[label] = self.ax_.fill_between(self.alphas, low, high, color=colour, alpha=0.2, linewidth=0)
            alpha = (self.chosen or {}).get(label)
            if alpha is not None:
                at = self.ax_.axvline(alpha, color=colour, linestyle="--", label=f"chosen: {alpha:.3g}")
                self.marks_[label] = at
        # Exponents of the pseudo-inverse may be zero, which a logarithmic axis cannot show.
        self.ax_.set_xscale("log" if min(self.alphas) > 0 else "linear")
        self.ax_.set(xlabel="alpha", ylabel=self.score_name)
        self.ax_.grid(alpha=0.3)
        self.ax_.legend(loc="best")
        return self


def _axes(ax):
    """Return the axes to draw into, and their figure."""
    if ax is None:
        _, ax = require("matplotlib.pyplot", pip="matplotlib").subplots()
    return ax, ax.figure


def _named(estimators):
    """Return a dict of name to estimator."""
    if isinstance(estimators, Mapping):
        return dict(estimators)
    if not isinstance(estimators, (list, tuple)):
        estimators = [estimators]
    named = {}
    for estimator in estimators:
        name = type(estimator).__name__
        same = sum(other.split(" ")[0] == name for other in named)
        named[f"{name} {same + 1}" if same else name] = estimator
    return named
