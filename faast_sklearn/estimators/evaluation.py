"""Features, moments and problems of a classifier that is evaluated many times, at the cost of one backbone pass."""

from collections.abc import Generator
from typing import Any

import torch
from sklearn.base import clone

from faast_sklearn.backbones.device import moments_device
from faast_sklearn.estimators.statistics import Statistics
from faast_sklearn.features.labelled import labelled_samples
from faast_sklearn.features.readers import in_order
from faast_sklearn.moments.collect import collect_folds

__all__ = ["Evaluation"]


class Evaluation:
    """Reads samples as an estimator does, without changing the estimator.

    Parameters
    ----------
    estimator : FaastClassifier
    partial : bool, default=True
        Whether moments are subtracted later, which ``class_weight="balanced"`` does not allow.

    Raises
    ------
    ValueError
        If a parameter of the estimator is invalid.
    """

    def __init__(self, estimator: Any, *, partial: bool = True) -> None:
        self._estimator = clone(estimator)
        self._estimator._check_params(partial=partial)
        self._facts = {}

    def moments_of_folds(self, X: Any, y: Any, sample_weight: Any, fold_of: Any, n_folds: Any) -> Any:
        """Return the ClassMoments of each fold, from one pass over labelled samples; see ``alpha_path``."""
        how = {"class_weight": self._estimator.class_weight}
        with self._reader(X) as reader:
            (labelled,) = labelled_samples(reader, X, y, sample_weight, **how)
            folds = collect_folds(labelled.batches(), fold_of, n_folds)
        self._facts = reader.facts
        return folds

    def problem_of(self, moments: Any) -> Any:
        """Return the ReadoutProblem of these moments and of the estimator's parameters."""
        return self._estimator._state_of(Statistics(moments, self._facts))["_problem"]

    def features(self, X: Any) -> Generator:
        """Yield (positions, rows of features), as ``fit`` reads them."""
        with self._reader(X) as reader:
            yield from reader.stream(reader.samples(X))

    def all_features(self, X: Any) -> Any:
        """Return the features (n, d) of samples: an array, or a tensor on the device where moments are kept."""
        if self._estimator.backbone is None:
            with self._reader(X) as reader:
                samples, device = reader.samples(X), moments_device(reader.device)
            return samples if device.type == "cpu" else torch.as_tensor(samples, device=device)
        with self._reader(X) as reader:
            samples = reader.samples(X)
            return in_order(reader.stream(samples), len(samples))

    def uses_values(self) -> bool:
        """Whether classes have value vectors, which the backbone may have to embed."""
        return self._estimator._has_values()

    def reads_layers(self) -> bool:
        """Whether inner layers of the backbone are read; each solve then needs their widths."""
        if self._estimator.backbone is None:
            return False
        return self._estimator._to_read(self._estimator._open_backbone()).blocks != ()

    def _reader(self, X):
        normalize = self._estimator._learns_unit_rows()
        return self._estimator._reader(X, "features", self._facts, normalize=normalize)
