"""FaastClassifier: closed-form classification on the features of a frozen backbone."""

import functools
import numbers
import threading
from collections.abc import Mapping
from contextlib import closing

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from faast_sklearn.errors import ForgetError, InputError, NonFiniteError
from faast_sklearn.extraction import FrozenBackboneMixin, unit_rows
from faast_sklearn.inputs import count_samples, iter_chunks
from faast_sklearn.moments import ClassMoments
from faast_sklearn.readout import LinearReadout, discriminant_readout, score_readout
from faast_sklearn.solvers import fast_weights
from faast_sklearn.targets import check_labels, row_weights, union_of_labels

__all__ = ["FaastClassifier"]


class FaastClassifier(FrozenBackboneMixin, ClassifierMixin, BaseEstimator):
    """Classifier that compiles labelled examples into fast weights by one closed-form solve.

    A frozen backbone turns samples into features; ``fit`` streams them into sufficient statistics and solves once;
    ``predict`` is one backbone pass and one small product. There are no gradients, no epochs and no stored
    examples: ``partial_fit`` adds statistics, in any order and split to the same result, and ``forget`` takes them
    away again.

    With ``solver="ridge"`` the objective is ``‖(K − 1μᵀ) W − (V − 1v̄ᵀ)‖² + λ‖W‖²`` for features K and one-hot
    labels V, read out as a regularised linear discriminant with calibrated probabilities. ``solver="pinv"`` is
    the truncated pseudo-inverse of Bao et al. [1]_, read out as it stands; their setting is ``solver="pinv",
    alpha=0.8, normalize=True, fit_intercept=False``.

    Parameters
    ----------
    backbone : None, str, path, handle, torch.nn.Module or (module, preprocess), default=None
        ``None``: X is features already, (n, d). ``"timm:NAME"``, ``"hf:NAME_OR_PATH"``, ``"bundled:NAME"``, a local
        folder, a handle made with :func:`~faast_sklearn.backbone`, or a module in memory. It is opened when first
        needed, once a process, and never trained or changed.
    solver : {"ridge", "pinv"}, default="ridge"
        The spectral filter.
    alpha : "auto" or float, default="auto"
        Ridge: the penalty relative to the mean eigenvalue of the scatter matrix, ``λ = alpha · trace / d``. Pinv:
        singular values below ``σ_max · N ** -alpha`` are dropped. "auto" takes the least generalised
        cross-validation error along a path, from the statistics alone.
    normalize : bool, default=False
        Scale features to unit L2 norm.
    fit_intercept : bool, default=True
        Centre features and targets. Without it scores are ``x W``, and their argmax is the prediction.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, multiplied into ``sample_weight``; labels that a dict does not name weigh 1.
        "balanced" needs all labels at once and is refused by ``partial_fit``.
    batch_size : int or "auto", default="auto"
        Samples a forward pass of the backbone; halved where memory is short.
    device : None, "auto", str or torch.device, default=None
        ``None`` runs a backbone on the best device there is; ready features stay where they are.
    dtype : "auto", str or torch.dtype, default="auto"
        Of the backbone: bfloat16 on GPUs that have it, float32 elsewhere. Statistics are always float64.
    verbose : int, default=0
        1 shows a progress bar on stderr.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted: the columns of scores and probabilities.
    coef_ : ndarray of shape (n_classes, d) or (1, d) when binary
        ``decision_function(X) == features @ coef_.T + intercept_``.
    intercept_ : ndarray of shape (n_classes,) or (1,)
    alpha_ : float
        The regulariser used.
    solver_ : {"cholesky", "eigh"}
        The factorisation that was used.
    moments_ : ClassMoments
        All that is known of what was learnt.
    n_samples_seen_ : int
        Rows of positive weight learnt and not forgotten.
    n_features_in_ : int
        Number of features d, of X or of the backbone.
    feature_names_in_ : ndarray of shape (d,)
        Column names of a DataFrame of ready features.
    device_ : str
        Where features were computed.

    Notes
    -----
    Learning n rows costs O(n d²) and keeps 8 d² bytes, or 8 n d while n < d. The solve costs O(d³), O(n² d) while
    n < d; it runs once, when a prediction or a coefficient is first asked for after a change. Predicting costs
    O(d c) a row, however many rows were learnt.

    Probabilities are posteriors of Gaussian classes at a temperature that minimises the expected left-out log-loss;
    :mod:`faast_sklearn.readout` has the formulas.

    References
    ----------
    .. [1] Bao et al., "Forward-Only Associative Learning via Closed-Form Fast Weights for Test-Time Supervised
       Adaptation", arXiv 2605.04651, 2026, section 3.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from faast_sklearn import FaastClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> X, X_test, y, y_test = train_test_split(X, y, random_state=0)
    >>> clf = FaastClassifier().fit(X, y)
    >>> round(clf.score(X_test, y_test), 2)
    0.95
    >>> clf.partial_fit(X_test, y_test).n_samples_seen_
    1797
    >>> round(clf.forget(X_test, y_test).score(X_test, y_test), 2)
    0.95
    """

    def __init__(
        self,
        backbone=None,
        *,
        solver="ridge",
        alpha="auto",
        normalize=False,
        fit_intercept=True,
        class_weight=None,
        batch_size="auto",
        device=None,
        dtype="auto",
        verbose=0,
    ):
        self.backbone = backbone
        self.solver = solver
        self.alpha = alpha
        self.normalize = normalize
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.verbose = verbose

    def fit(self, X, y=None, sample_weight=None):
        """Forget everything and learn from labelled samples.

        Parameters
        ----------
        X : samples, or an iterable of batches
            Features (n, d) without a backbone; images, paths or texts with one, see
            :func:`~faast_sklearn.inputs.as_samples`. An iterator or DataLoader yields ``(X, y)`` or
            ``(X, y, sample_weight)`` and is read once, in memory that does not grow with it.
        y : array-like of shape (n,)
            Labels: strings, integers or booleans. None for iterables and datasets that bring their own.
        sample_weight : array-like of shape (n,), optional
            Non-negative; 2 counts a sample twice and 0 leaves it out.

        Returns
        -------
        FaastClassifier
            Itself.

        Raises
        ------
        InputError, NonFiniteError, BackboneError, MissingDependencyError, DeviceError, OutOfMemoryError
            See :mod:`faast_sklearn.errors`. The estimator is then as it was before the call.
        """
        return self._learn(X, y, sample_weight, reset=True)

    def partial_fit(self, X, y=None, classes=None, sample_weight=None):
        """Learn more labelled samples; the same as having fitted all at once.

        No solve happens here. Few rows wait in a small buffer, so that many small calls cost about as much as one.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.
        classes : array-like, optional
            Labels to list in ``classes_`` from now on, seen or not. It is never needed: a label that was not seen
            before adds a class, and columns follow ``classes_``, which stays sorted.

        Returns
        -------
        FaastClassifier
            Itself.

        Raises
        ------
        InputError, NonFiniteError, BackboneError, MissingDependencyError, DeviceError, OutOfMemoryError
            The estimator is then as it was before the call.
        """
        return self._learn(X, y, sample_weight, reset=not hasattr(self, "moments_"), classes=classes, partial=True)

    def forget(self, X, y=None, sample_weight=None):
        """Take samples away that were learnt before; the same as never having learnt them.

        Parameters
        ----------
        X, y, sample_weight
            As they were learnt. A class of which nothing is left disappears.

        Returns
        -------
        FaastClassifier
            Itself.

        Raises
        ------
        ForgetError
            If a label is unknown, or more is to be forgotten than was learnt.
        InputError, NonFiniteError
            As in :meth:`fit`. The estimator is then as it was before the call.
        """
        check_is_fitted(self)
        self._check_params(partial=True)
        with self._unchanged_on_error():
            source = self._open_source(reset=False)
            with self._report(X, "forget") as report:
                removed = self._moments_of(source, X, y, sample_weight, report)
            self._publish(_taken_away(self.moments_, removed))
        return self

    def predict(self, X):
        """Return the most probable label of each sample.

        Parameters
        ----------
        X : samples
            As in :meth:`fit`, but not an iterator.

        Returns
        -------
        ndarray of shape (n,)
            Of the labels' own type.
        """
        compiled, scores = self._scores(X)
        return compiled.classes[scores.argmax(axis=1)]

    def decision_function(self, X):
        """Return the scores of each class, ``features @ coef_.T + intercept_``.

        Parameters
        ----------
        X : samples
            As in :meth:`predict`.

        Returns
        -------
        ndarray of shape (n, n_classes), or (n,) when binary: positive for ``classes_[1]``
        """
        _, scores = self._scores(X)
        if scores.shape[1] > 2:
            return scores
        return scores[:, -1] - scores[:, 0]

    def predict_proba(self, X):
        """Return calibrated probabilities of each class.

        Parameters
        ----------
        X : samples
            As in :meth:`predict`.

        Returns
        -------
        ndarray of shape (n, n_classes)
            Rows sum to one, columns are ``classes_``, the argmax is :meth:`predict`.
        """
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X):
        """Return the logarithm of :meth:`predict_proba`.

        Parameters
        ----------
        X : samples
            As in :meth:`predict`.

        Returns
        -------
        ndarray of shape (n, n_classes)
        """
        compiled, scores = self._scores(X)
        return compiled.readout.log_probabilities(scores)

    @property
    def coef_(self):
        """Weights of the features, of shape (n_classes, d), or (1, d) when binary."""
        return _binary_difference(self._current().readout.coef)

    @property
    def intercept_(self):
        """Offsets of the scores, of shape (n_classes,), or (1,) when binary."""
        return _binary_difference(self._current().readout.intercept)

    @property
    def alpha_(self):
        """The regulariser that was used."""
        return self._current().solution.alpha

    @property
    def solver_(self):
        """The factorisation that was used."""
        return self._current().solution.method

    def _learn(self, X, y, sample_weight, *, reset, classes=None, partial=False):
        self._check_params(partial)
        with self._unchanged_on_error():
            if reset:
                self._declared = np.array([])
            source = self._open_source(reset)
            with self._report(X, "partial_fit" if partial else "fit") as report:
                moments = self._moments_of(source, X, y, sample_weight, report)
            if reset and not moments.n_rows:
                raise InputError("every sample_weight is zero, so there is nothing to learn from.")
            if classes is not None:
                self._declared = union_of_labels(self._declared, np.unique(check_labels(classes, "classes")))
            if not reset:
                moments = self.moments_ + moments
            self.device_ = str(source.device)
            self._publish(moments)
        return self

    def _moments_of(self, source, X, y, sample_weight, report):
        """Stream labelled samples into moments; nothing of this estimator is changed but by ``source``."""
        if self.class_weight == "balanced" and y is None and count_samples(X) is None:
            raise InputError(
                "class_weight='balanced' needs all labels at once, and X yields them batch by batch; pass a dict of "
                "weights, or let it yield (X, y, sample_weight)."
            )
        moments = None
        for chunk, labels, weight in iter_chunks(X, y, sample_weight):
            samples = source.samples(chunk)
            labels = check_labels(labels, "y")
            if len(labels) != len(samples):
                raise InputError(f"X has {len(samples)} samples and y has {len(labels)}; pass one label for each.")
            classes, codes = np.unique(labels, return_inverse=True)
            weight = row_weights(weight, len(samples), self.class_weight, classes, codes)
            with closing(source.stream(samples, report)) as stream:
                for indices, features in stream:
                    rows = unit_rows(features) if self.normalize else features
                    row_weight = None if weight is None else weight[indices]
                    with np.errstate(over="ignore", invalid="ignore"):
                        part = ClassMoments.from_codes(rows, codes[indices], classes, row_weight)
                        moments = part if moments is None else moments + part
        _refuse_overflow(moments)  # once, since it waits for the device
        return moments

    def _publish(self, moments):
        """Make new moments current, as the last step of a change."""
        classes = union_of_labels(moments.classes, self._declared)
        compiled = _Compiled(moments, classes, self.solver, self.alpha, self.fit_intercept)
        self.__dict__.update(moments_=moments, n_samples_seen_=moments.n_rows, classes_=classes, _compiled=compiled)

    def _adopt(self, moments, estimators):
        """Make the sum of what several have learnt current."""
        self._declared = functools.reduce(union_of_labels, [estimator._declared for estimator in estimators])
        self._publish(moments)

    def _current(self):
        if "_compiled" not in self.__dict__:
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' or 'partial_fit' first."
            )
        return self._compiled

    def _scores(self, X):
        compiled = self._current()
        source = self._open_source(reset=False)
        samples = source.samples(X)
        readout = compiled.readout
        out = None
        with self._report(samples, "predict") as report, closing(source.stream(samples, report)) as stream:
            for indices, features in stream:
                scores = readout.scores(unit_rows(features) if self.normalize else features)
                if isinstance(scores, np.ndarray):
                    out = np.empty((len(samples), scores.shape[1])) if out is None else out
                    out[indices] = scores
                else:
                    # Scores stay on the device until the end, so that no batch waits for the host.
                    out = scores.new_empty((len(samples), scores.shape[1])) if out is None else out
                    out[torch.as_tensor(indices, device=out.device)] = scores
        return compiled, out if isinstance(out, np.ndarray) else out.cpu().numpy()

    def _check_params(self, partial):
        if self.solver not in ("ridge", "pinv"):
            raise ValueError(f"solver must be 'ridge' or 'pinv', got {self.solver!r}.")
        number = isinstance(self.alpha, numbers.Real) and not isinstance(self.alpha, bool)
        if self.alpha != "auto" and not (number and 0 <= self.alpha < np.inf):
            raise ValueError(f"alpha must be 'auto' or a finite number of at least 0, got {self.alpha!r}.")
        if not (self.class_weight is None or self.class_weight == "balanced" or isinstance(self.class_weight, Mapping)):
            raise ValueError(f"class_weight must be a dict, 'balanced' or None, got {self.class_weight!r}.")
        if self.class_weight == "balanced" and partial:
            raise ValueError(
                "class_weight='balanced' needs all labels at once and cannot be used with partial_fit or forget; "
                "pass a dict of weights, or sample_weight."
            )

    def __sklearn_is_fitted__(self):
        return "_compiled" in self.__dict__

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self._reads_rows()
        return tags


class _Compiled:
    """Moments and the parameters that go with them, solved when first asked, once, under a lock.

    An estimator replaces it as a whole, so that threads that predict see one consistent state.
    """

    def __init__(self, moments, classes, solver, alpha, intercept):
        self.moments, self.classes = moments, classes
        self._settings = (solver, alpha, intercept)
        self._solved = None
        self._lock = threading.Lock()

    @property
    def solution(self):
        """The fast weights."""
        return self._solve()[0]

    @property
    def readout(self):
        """What turns features into scores, one column for each of ``classes``."""
        return self._solve()[1]

    def _solve(self):
        with self._lock:
            if self._solved is None:
                self._solved = self._compile()
            return self._solved

    def _compile(self):
        solver, alpha, intercept = self._settings
        if not self.moments.n_rows:
            raise NotFittedError("Everything that was learnt has been forgotten; call 'partial_fit' or 'fit' first.")
        solution = fast_weights(self.moments, solver=solver, alpha=alpha, intercept=intercept)
        if len(self.moments.classes) == 1:
            readout = LinearReadout(np.zeros((1, self.moments.n_features)), np.zeros(1))
        elif solver == "ridge" and intercept:
            readout = discriminant_readout(solution, self.moments)
        else:
            readout = score_readout(solution, self.moments, intercept)
        return solution, self._spread(readout)

    def _spread(self, readout):
        """Give classes that were declared but never seen a score of minus infinity."""
        if len(self.classes) == len(self.moments.classes):
            return readout
        seen = np.searchsorted(self.classes, self.moments.classes)
        coef = np.zeros((len(self.classes), readout.coef.shape[1]))
        intercept = np.full(len(self.classes), -np.inf)
        coef[seen], intercept[seen] = readout.coef, readout.intercept
        return LinearReadout(coef, intercept, readout.temperature)

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock())

    def __deepcopy__(self, memo):
        return self  # nothing in it changes after the solve


def _binary_difference(rows):
    """Reduce two rows (classes first) to what speaks for the second; one or many rows stay."""
    return rows[1:] - rows[:1] if len(rows) == 2 else rows


def _refuse_overflow(part):
    """Raise NonFiniteError if features are finite but their squares are not."""
    if not part.scatter.trace() + part.weight * float(part.scatter.mean.square().sum()) < 1e300:
        raise NonFiniteError(
            "features are so large that their squares overflow float64; divide them by a constant, "
            "or use normalize=True."
        )


def _taken_away(learnt, removed):
    """Return ``learnt − removed``; raise ForgetError if ``removed`` cannot be a part of ``learnt``."""
    unknown = np.setdiff1d(removed.classes, learnt.classes)
    if len(unknown):
        raise ForgetError(
            f"y has labels that were never learnt: {unknown[:5].tolist()}; known are {learnt.classes[:10].tolist()}."
        )
    at = np.searchsorted(learnt.classes, removed.classes)
    excess = (removed.rows > learnt.rows[at]) | (removed.counts > learnt.counts[at] * (1 + 1e-9))
    if excess.any():
        k = int(np.flatnonzero(excess)[0])
        raise ForgetError(
            f"asked to forget {removed.rows[k]} samples of weight {removed.counts[k]:g} of class "
            f"{removed.classes[k]!r}, but only {learnt.rows[at[k]]} of weight {learnt.counts[at[k]]:g} were learnt."
        )
    left = learnt - removed
    before, after = learnt.scatter.variances(), left.scatter.variances()
    if bool((after < -1e-8 * before).any()):
        raise ForgetError("these samples were never learnt: taking them away leaves a negative variance.")
    return left
