"""FaastClassifier: closed-form classification on the features of a frozen backbone."""

import contextlib
import copy
import numbers
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score

from faast_sklearn.backbones.layers import check_layers
from faast_sklearn.backbones.views import check_views
from faast_sklearn.errors import InputError, NonFiniteError
from faast_sklearn.estimators.base import LearningMixin
from faast_sklearn.estimators.statistics import Statistics
from faast_sklearn.features.labelled import labelled_samples
from faast_sklearn.features.readers import in_order
from faast_sklearn.inputs.labels import check_labels, union_of_labels
from faast_sklearn.inputs.samples import count_samples, with_labels
from faast_sklearn.moments.blocks import Blocks
from faast_sklearn.moments.class_moments import ClassMoments
from faast_sklearn.moments.collect import collect, recent, refuse_overflow
from faast_sklearn.persistence.arrays import Labels
from faast_sklearn.persistence.fields import Boolean, Integer, Listed
from faast_sklearn.persistence.not_saved import NotSaved
from faast_sklearn.persistence.saving import Persistent
from faast_sklearn.readout.class_vectors import check_values, class_values
from faast_sklearn.readout.problem import ReadoutProblem, Settings

__all__ = ["FaastClassifier"]


class FaastClassifier(LearningMixin, Persistent, ClassifierMixin, BaseEstimator):
    """Classifier that turns labelled samples into fast weights by one closed-form solve.

    A frozen backbone turns samples into features. ``fit`` adds them up to sufficient statistics, and the first
    prediction solves for the weights once. ``predict`` needs one backbone pass and one small matrix product. There are
    no gradients, no epochs and no stored samples. ``partial_fit`` adds statistics, with the same result for any order
    and split of the samples, and ``forget`` subtracts them again.

    ``solver="ridge"`` minimises ``‖(K − 1μᵀ) W − (V − 1v̄ᵀ)‖² + λ‖W‖²`` for features K and one-hot labels V. The
    weights give a regularised linear discriminant with calibrated probabilities. ``solver="pinv"`` is the truncated
    pseudo-inverse of Bao et al. [1]_, whose scores are used directly; their setting is ``solver="pinv", alpha=0.8,
    normalize=True, fit_intercept=False``.

    Parameters
    ----------
    backbone : None, str, path, handle, torch.nn.Module or (module, preprocess), default=None
        ``None``: X already holds features, (n, d). Otherwise ``"timm:NAME"``, ``"hf:NAME_OR_PATH"``,
        ``"bundled:NAME"``, a local folder, a handle made with :func:`~faast_sklearn.backbone`, or a module in memory.
        It is opened on first use, once per process, and never trained or changed.
    solver : {"ridge", "pinv"}, default="ridge"
        The spectral filter.
    alpha : "auto" or float, default="auto"
        Strength of the regularisation. Ridge: the penalty relative to the mean eigenvalue of the scatter matrix,
        ``λ = alpha · trace / d``. Pinv: singular values below ``σ_max · N ** -alpha`` are dropped. "auto" minimises the
        generalised cross-validation error over a grid of strengths, from the statistics alone.
    values : {"onehot", "text"}, array-like of shape (n_classes, m) or dict, default="onehot"
        The vector of each class. "text": the backbone, a dual encoder or a text encoder, embeds the class label. An
        array has one row for each of ``classes_``. A dict maps labels to vectors, or to texts that the backbone embeds.
        If the backbone reads images, a label or text is embedded in the prompt of the paper, "A photo of a {label}.";
        a list of texts is embedded unchanged and averaged. The fast weights map features to these vectors, and the
        prediction is the class whose vector is nearest by cosine, unless a prior makes the vectors examples (below).
    prior_strength : float or "auto", default=0.0
        N0: the number of training samples that all class vectors together count for. For ridge with an intercept, each
        vector is learnt as an example of its class with the weight N0 / n_classes; "auto" estimates the weight from
        the distances between vectors and class means. With ``solver="pinv"`` or without an intercept, N0 is that of
        the paper: the zero-shot scores, cosines of features and class vectors, are mixed with the learnt scores, which
        get the weight ``r = N / (N0 + N)``; "auto" minimises the expected left-out log-loss. It has no effect on
        one-hot values.
    layers : "auto", "last" or int, default="auto"
        Layers of the backbone whose features one pass returns. "last" is the last layer. A number adds that many inner
        layers: mean, maximum and standard deviation over the positions for the last stages of a convolutional network,
        the mean over the tokens for the last blocks of a transformer. "auto" reads up to three inner layers and 4,096
        features, and solves without the inner ones if the statistics predict a smaller error for the last layer alone.
        Statistics grow with the square of the number of features, the time of the solve with its cube.
    views : int, default=1
        Images: number of views over which features are averaged, in ``fit`` and ``predict`` alike, at the cost of one
        pass per view. 2 adds the mirror image, 3 to 6 add small shifts. Keep 1 if mirroring changes what an image
        shows, as for digits and written text.
    normalize : bool or "auto", default="auto"
        Scale features to unit L2 norm, separately for each statistic of each layer. "auto" scales the features of a
        backbone and leaves ready features as they are. A prior and ``values="text"`` scale them too.
    fit_intercept : bool, default=True
        Centre features and targets. Without an intercept, scores are ``x W``, and their argmax is the prediction.
    class_weight : dict, "balanced" or None, default=None
        Weight per class, multiplied into ``sample_weight``; a class that the dict does not name has weight 1. Keys
        have to be labels of the training samples. Other keys are allowed if the dict names all labels, and in
        ``partial_fit``, where such labels may follow. "balanced" needs all labels at once, so ``partial_fit`` and
        ``forget`` refuse it.
    batch_size : int or "auto", default="auto"
        Samples per forward pass of the backbone; halved when memory is short.
    device : None, "auto", str or torch.device, default=None
        ``None`` runs a backbone on the best available device; ready features stay where they are.
    dtype : "auto", str or torch.dtype, default="auto"
        Of the backbone. "auto": bfloat16 on GPUs that support it, float32 elsewhere. Statistics are always float64.
    cache : None, "memory", directory or FeatureCache, default=None
        Where the features of each sample are stored, so that the backbone encodes it once; see
        :class:`~faast_sklearn.FeatureCache`. With a cache, fits to the same samples, as in a search over ``alpha``,
        also share moments and decompositions.
    verbose : int, default=0
        1 shows a progress bar on stderr.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Sorted labels: the columns of scores and probabilities.
    coef_ : ndarray of shape (n_classes, d) or (1, d) when binary
        ``decision_function(X) == features @ coef_.T + intercept_``; with ``normalize``, features have unit length.
    intercept_ : ndarray of shape (n_classes,) or (1,)
    alpha_ : float or None
        The strength of the regularisation that was used; None without examples.
    solver_ : {"cholesky", "tridiagonal", "eigh"} or None
        The factorisation that was used; None without examples.
    condition_ : float or None
        Condition number of the solve: ``(λ_max + penalty) / (λ_min + penalty)`` of the scatter matrix for ridge,
        ``λ_max`` to the smallest eigenvalue kept for pinv, at least 1; an estimate if ``solver_`` is "cholesky"; None
        without examples. Rounding may change scores by about ``condition_ · 2**-53 · √N``, relative to the targets; if
        that exceeds 0.001, :class:`~faast_sklearn.errors.ConditionWarning` gives the reason and the remedy.
    reads_inner_layers_ : bool
        Whether predictions use inner layers of the backbone.
    prior_strength_ : float
        The N0 used; infinite while there are no examples.
    moments_ : ClassMoments
        Statistics of everything learnt.
    n_samples_seen_ : int
        Samples of positive weight learnt and not forgotten.
    n_features_in_ : int
        Number of columns of X, or of features if X holds raw samples.
    feature_names_in_ : ndarray of shape (d,)
        Column names of a DataFrame of ready features.
    device_ : str
        Where features were computed.

    Notes
    -----
    Learning n rows costs O(n d²) and keeps 8 d² bytes, or 8 n d while n < d. The solve costs O(d³), or O(n² d) while
    n < d. It runs once after a change, at the first prediction or access to a coefficient. Predicting costs O(d c) per
    row, whatever number of rows was learnt.

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

    # Attributes that files hold; devices, modules and caches are never saved.
    _saved_state: ClassVar = {
        "_problem": ReadoutProblem.record(),
        "_declared": Labels(),
        "n_samples_seen_": Integer(),
        "n_features_in_": Integer(1),
        "_n_features": Integer(1),
        "_blocks": Listed(Integer(1)),
        "_feature_maps": Boolean(),
        "feature_names_in_": Labels(sorted=False),
    }

    def __init__(
        self,
        backbone: Any = None,
        *,
        solver: Literal["ridge", "pinv"] = "ridge",
        alpha: Literal["auto"] | float = "auto",
        values: Any = "onehot",
        prior_strength: float | Literal["auto"] = 0.0,
        layers: int | Literal["auto", "last"] = "auto",
        views: int = 1,
        normalize: bool | Literal["auto"] = "auto",
        fit_intercept: bool = True,
        class_weight: dict | Literal["balanced"] | None = None,
        batch_size: int | Literal["auto"] = "auto",
        device: Any = None,
        dtype: Any = "auto",
        cache: Any = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.solver = solver
        self.alpha = alpha
        self.values = values
        self.prior_strength = prior_strength
        self.layers = layers
        self.views = views
        self.normalize = normalize
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.cache = cache
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "FaastClassifier":
        """Forget everything and learn from labelled samples.

        Parameters
        ----------
        X : samples, or an iterable of batches
            Without a backbone, features (n, d); with one, images, paths or texts, see
            :func:`~faast_sklearn.inputs.as_samples`. An iterator or DataLoader yields ``(X, y)`` or
            ``(X, y, sample_weight)``; it is read once, in memory that does not grow with its length. If X is None, y
            lists the class names; nothing is learnt, and ``values`` give zero-shot predictions.
        y : array-like of shape (n,)
            Labels: strings, integers or booleans. None for iterables and datasets that contain labels.
        sample_weight : array-like of shape (n,), optional
            Non-negative. Only ratios matter: multiplying all weights by k changes neither predictions nor
            probabilities. A weight of 0 leaves the sample out. At a given alpha, a weight of 2 gives the same fast
            weights as the sample twice; see ``docs/how_it_works.md``.

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

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None) -> "FaastClassifier":
        """Learn more labelled samples, with the same result as fitting all at once.

        Nothing is solved here. Few rows are kept in a small buffer, so that many small calls cost about as much as one.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.
        classes : array-like, optional
            Labels to list in ``classes_`` from now on, even if no sample has them. It is optional in every call: a new
            label in y adds a class. ``classes_`` stays sorted, and columns of scores follow it.

        Returns
        -------
        FaastClassifier
            Itself.

        Raises
        ------
        InputError, NonFiniteError, BackboneError, MissingDependencyError, DeviceError, OutOfMemoryError
            The estimator is then as it was before the call.
        """
        return self._learn(X, y, sample_weight, reset=False, classes=classes, partial=True)

    def forget(self, X: Any, y: Any = None, sample_weight: Any = None) -> "FaastClassifier":
        """Subtract samples that were learnt before, with the same result as never having learnt them.

        Parameters
        ----------
        X, y, sample_weight
            As they were learnt. A class that has no samples left is dropped, unless ``classes`` of
            :meth:`partial_fit` declared it.

        Returns
        -------
        FaastClassifier
            Itself.

        Raises
        ------
        ForgetError
            If a label is unknown, or these samples cannot be a part of those that were learnt.
        InputError, NonFiniteError
            As in :meth:`fit`. After any error, the estimator is as it was before the call.
        """
        return self._unlearn(X, y, sample_weight)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each sample.

        Parameters
        ----------
        X : samples
            As in :meth:`fit`, but not an iterator.

        Returns
        -------
        ndarray of shape (n,)
            Labels, of the type of ``classes_``.
        """
        problem, scores = self._scores(X)
        return problem.classes[scores.argmax(axis=1)]

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the score of each class, ``features @ coef_.T + intercept_``.

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

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the calibrated probability of each class.

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

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy of ``predict``.

        Parameters
        ----------
        X : samples
            As in :meth:`predict`.
        y : array-like of shape (n,), default=None
            Labels; None for datasets that contain labels.
        sample_weight : array-like of shape (n,), optional

        Returns
        -------
        float
            Share of the samples, or with weights of the total weight, that is predicted correctly.
        """
        X, y = with_labels(X, y)
        y = y if y is None else check_labels(y, "y")  # for None, scikit-learn raises its own message
        return float(accuracy_score(y, self.predict(X), sample_weight=sample_weight))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithm of ``predict_proba``.

        Parameters
        ----------
        X : samples
            As in :meth:`predict`.

        Returns
        -------
        ndarray of shape (n, n_classes)
        """
        problem, scores = self._scores(X)
        return problem.solved.readout.log_probabilities(scores)

    def novelty_score(self, X: Any) -> np.ndarray:
        """Return how far each sample is from every class that was learnt.

        The score is ``1 − maxₖ cos(x − m, mₖ − m)`` in the metric of the spread within classes, from the moments alone.
        On digits, texts and photographs, with one to all training samples per class, it detects samples of unseen
        classes better than the largest probability does in each of 26 settings, by 4.1 points of the area under the ROC
        curve on average. A quantile of the scores of held-out samples is a suitable threshold.

        Parameters
        ----------
        X : samples
            As in :meth:`predict`.

        Returns
        -------
        ndarray of shape (n,)
            From 0, in the direction of a class, to 2. The cost is O(d³ / 3) once and O(d²) per sample.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If there are examples of fewer than two classes.
        SavedFileError
            If the estimator was saved without its moments.
        """
        problem = self._current()
        problem.directions  # noqa: B018 - raises its errors before X is read
        return self._answers(X, problem, problem.novelty)

    @property
    def coef_(self) -> np.ndarray:
        """Weight matrix of the scores, of shape (n_classes, d), or (1, d) when binary."""
        return _binary_difference(self._current().solved.readout.coef)

    @property
    def intercept_(self) -> np.ndarray:
        """Offsets of the scores, of shape (n_classes,), or (1,) when binary."""
        return _binary_difference(self._current().solved.readout.intercept)

    @property
    def alpha_(self) -> float | None:
        """The strength of the regularisation that was used; None without examples."""
        return getattr(self._current().solved.solution, "alpha", None)

    @property
    def solver_(self) -> str | None:
        """The factorisation that was used; None without examples."""
        return getattr(self._current().solved.solution, "method", None)

    @property
    def condition_(self) -> float | None:
        """The condition number of the problem that was solved; None without examples."""
        return getattr(self._current().solved.solution, "condition", None)

    @property
    def reads_inner_layers_(self) -> bool:
        """Whether predictions use inner layers of the backbone, or the last one alone."""
        problem = self._current()
        factors = problem.solved.factors
        return factors is not None and bool((factors > 0).sum() > problem.blocks.n_last)

    @property
    def prior_strength_(self) -> float:
        """The number of training samples that all class vectors together count for; infinite without examples."""
        return self._current().solved.prior_strength

    @property
    def moments_(self) -> ClassMoments:
        """Statistics of everything learnt."""
        moments = self._current().moments
        return moments.refuse() if isinstance(moments, NotSaved) else moments

    def _read(self, X, y, sample_weight, what, facts, stream):
        """Return the statistics of labelled samples; if X is None, empty statistics that declare the classes."""
        reader = self._reader(X, what, facts, normalize=self._learns_unit_rows())
        moments, how = None, {"class_weight": self.class_weight, "stream": stream}
        with reader:
            if X is None and y is not None:
                return self._from_names(reader, y)
            for labelled in labelled_samples(reader, X, y, sample_weight, **how):
                part = self._moments_of(labelled)
                moments = part if moments is None else moments + part
        refuse_overflow(moments)
        return Statistics(moments, {"device_": str(moments.scatter.device), **reader.facts})

    def _moments_of(self, labelled):
        if self.cache is None or not labelled.again:
            return collect(labelled.batches())
        moments = recent.get(labelled.key(), lambda: collect(labelled.batches()))
        labelled.reader.check_width(moments.n_features)
        return moments

    def _from_names(self, reader, names):
        """Return empty statistics that declare the classes for zero-shot predictions."""
        if not self._has_values():
            raise InputError("X is None; pass samples, or values='text' (or vectors) to start from class names alone.")
        if not count_samples(names):
            raise InputError("y is empty; pass the names of the classes, or samples and their labels.")
        declared = np.unique(check_labels(names, "y"))
        width = reader.facts.get("_n_features", reader.facts.get("n_features_in_"))
        facts = reader.facts
        if width is None:  # a module in memory may not have its width as an attribute
            width = getattr(getattr(reader, "backbone", None), "n_features", None)
            width = self._class_values(declared).vectors.shape[1] if width is None else width
            facts = {**facts, "n_features_in_": width, "_n_features": width}
        return Statistics(ClassMoments.empty(width), {"device_": str(reader.device), **facts}, declared)

    def _learns_unit_rows(self):
        """Whether features are scaled to unit length, which cosines with class vectors need."""
        prior = self._has_values() and (self.prior_strength != 0.0 or isinstance(self.values, str))
        return bool(prior or (self.backbone is not None if self.normalize == "auto" else self.normalize))

    def _settings_of_statistics(self):
        return {**super()._settings_of_statistics(), "normalize": self._learns_unit_rows()}

    def _has_values(self):
        return not (isinstance(self.values, str) and self.values == "onehot")

    def _class_values(self, classes):
        if not self._has_values():
            return None
        backbone = None if self.backbone is None else self._open_backbone()
        return class_values(self.values, classes, backbone)

    def _state_of(self, statistics):
        """Return the attributes that statistics determine."""
        moments, declared = statistics.moments, statistics.declared
        classes = union_of_labels(moments.classes, declared)
        values = self._class_values(classes)
        if values is not None and (self.prior_strength != 0.0 or not moments.n_rows):
            width = statistics.facts.get("_blocks", (moments.n_features,))[0]
            if values.vectors.shape[1] != width:
                raise InputError(
                    f"a prior compares features with values, but there are {width} features and values of length "
                    f"{values.vectors.shape[1]}; use prior_strength=0, or values in the space of the features."
                )
        settings = Settings(
            self.solver,
            self.alpha,
            self.fit_intercept,
            self._learns_unit_rows(),
            self.prior_strength,
            isinstance(self.layers, str),
        )
        facts = statistics.facts
        blocks = Blocks(facts["_blocks"], facts["_feature_maps"]) if "_blocks" in facts else None
        problem = ReadoutProblem(moments, classes, settings, values, blocks)
        state = {"_problem": problem, "classes_": classes, "n_samples_seen_": moments.n_rows, "_declared": declared}
        # Ready features stay where they are.
        return state if self.backbone is not None else {**state, "device_": str(moments.scatter.device)}

    def _refuse_nothing(self, statistics):
        if not statistics.moments.n_rows and not len(statistics.declared):
            raise InputError("every sample_weight is zero, so there is nothing to learn from.")

    def _ready_to_save(self, moments):
        with contextlib.suppress(NotFittedError):  # everything was forgotten
            self._current().solved  # noqa: B018 - solves now, so that a loaded estimator need not

    def _restore_state(self, attributes):
        problem = attributes["_problem"]
        width = attributes.get("_n_features", attributes.get("n_features_in_"))
        if width != problem.n_features:
            raise ValueError(f"{width} features are expected, and there are weights for {problem.n_features}")
        super()._restore_state({**attributes, "classes_": problem.classes})

    def _without_moments(self):
        """Return a copy that predicts alike and holds only what prediction needs."""
        twin = copy.copy(self)
        twin._problem = self._current().without_moments()
        return twin

    def _scores(self, X):
        problem = self._current()
        readout = problem.solved.readout
        with np.errstate(over="ignore", invalid="ignore"):
            scores = self._answers(X, problem, readout.scores)
        bad = ~np.isfinite(scores[:, np.isfinite(readout.intercept)]).all(axis=1)
        if bad.any():
            raise NonFiniteError(
                f"features in row {int(bad.argmax())} are so much larger than those learnt that scores overflow "
                f"float64 ({int(bad.sum())} of {len(bad)} rows); drop such rows, or fit with normalize=True."
            )
        return problem, scores

    def _answers(self, X, problem, answer):
        """Apply ``answer`` to the features of all samples; return the results as an ndarray in the order of X."""
        with self._reader(X, "predict", self._facts(), normalize=problem.settings.unit_rows) as reader:
            self._refuse_changes("backbone")
            samples = reader.samples(X)
            with contextlib.closing(reader.stream(samples)) as stream:
                answers = in_order(((positions, answer(rows)) for positions, rows in stream), len(samples))
        return answers if isinstance(answers, np.ndarray) else answers.cpu().numpy()

    def _check_params(self, partial):
        if not (isinstance(self.solver, str) and self.solver in ("ridge", "pinv")):
            raise ValueError(f"solver must be 'ridge' or 'pinv', got {self.solver!r}.")
        for name in ("alpha", "prior_strength"):
            value = getattr(self, name)
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not (isinstance(value, str) and value == "auto") and not (number and 0 <= value < np.inf):
                raise ValueError(f"{name} must be 'auto' or a finite number of at least 0, got {value!r}.")
        check_values(self.values)
        check_layers(self.layers)
        check_views(self.views)
        automatic = isinstance(self.normalize, str) and self.normalize == "auto"
        if not automatic and not isinstance(self.normalize, (bool, np.bool_)):
            raise ValueError(f"normalize must be True, False or 'auto', got {self.normalize!r}.")
        if not isinstance(self.fit_intercept, (bool, np.bool_)):
            raise ValueError(f"fit_intercept must be True or False, got {self.fit_intercept!r}.")
        weights = self.class_weight
        balanced = isinstance(weights, str) and weights == "balanced"
        if not (weights is None or balanced or isinstance(weights, Mapping)):
            raise ValueError(f"class_weight must be a dict, 'balanced' or None, got {weights!r}.")
        if balanced and partial:
            raise ValueError(
                "class_weight='balanced' needs all labels at once and cannot be used with partial_fit or forget; "
                "pass a dict of weights, or sample_weight."
            )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self._reads_rows()
        return tags


def _binary_difference(rows):
    """Reduce two rows to the second minus the first; return any other number of rows unchanged."""
    return rows[1:] - rows[:1] if len(rows) == 2 else rows
