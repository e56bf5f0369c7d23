"""BackboneFeatures: the features of a frozen backbone, as a transformer."""

import copy
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import NotFittedError

from faast_sklearn.backbones.handle import as_handle
from faast_sklearn.backbones.layers import check_layers
from faast_sklearn.backbones.views import check_views
from faast_sklearn.errors import InputError
from faast_sklearn.estimators.base import FrozenBackboneMixin
from faast_sklearn.estimators.statistics import FACTS
from faast_sklearn.estimators.turns import changing
from faast_sklearn.features.readers import in_order
from faast_sklearn.persistence.arrays import Labels
from faast_sklearn.persistence.fields import Integer
from faast_sklearn.persistence.saving import Persistent

__all__ = ["BackboneFeatures"]


class BackboneFeatures(
    Persistent, FrozenBackboneMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Features of a frozen pretrained backbone, as a scikit-learn transformer.

    Nothing is learnt: ``fit`` opens the backbone, ``transform`` runs it, also without ``fit``. To train a linear head
    on the features use :class:`~faast_sklearn.FaastClassifier` directly, which never stores them.

    Parameters
    ----------
    backbone : str, path, handle, torch.nn.Module or (module, preprocess)
        ``"timm:NAME"``, ``"hf:NAME_OR_PATH"``, ``"bundled:NAME"``, a local folder, a handle made with
        :func:`~faast_sklearn.backbone`, or a module in memory. See :func:`~faast_sklearn.list_backbones`.
    layers : "auto", "last" or int, default="last"
        What one pass of the backbone gives: the features of its last layer ("last"), or after them those of that many
        inner layers: of the last stages of a convolutional network mean, maximum and deviation over the positions, of
        the last blocks of a transformer the mean over the tokens. "auto" reads up to three. They come unscaled, and a
        step behind cannot tell them apart, which can cost accuracy with few examples;
        :class:`~faast_sklearn.FaastClassifier` scales them against each other.
    views : int, default=1
        Images: over how many views features are averaged, in ``fit`` and ``predict`` alike, at the cost of one pass
        each: 2 adds the mirror image, up to 6 small shifts. Not for what a mirror changes, such as digits and texts.
    normalize : bool, default=False
        Scale features to unit L2 norm.
    batch_size : int or "auto", default="auto"
        Samples a forward pass; halved where memory is short.
    device : None, "auto", str or torch.device, default=None
        ``None`` takes the best there is.
    dtype : "auto", str or torch.dtype, default="auto"
        bfloat16 on GPUs that have it, float32 elsewhere.
    cache : None, "memory", directory or FeatureCache, default=None
        Where features are kept, so that each sample is encoded once; see :class:`~faast_sklearn.FeatureCache`.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    n_features_out_ : int
        Number of features d.
    device_ : str
        Where the backbone ran in ``fit``.

    See Also
    --------
    FaastClassifier : Learns from such features as they stream by.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from faast_sklearn import BackboneFeatures
    >>> class Mean(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x.float().mean((2, 3))
    >>> BackboneFeatures(Mean(), device="cpu").fit_transform(np.ones((2, 3, 8, 8), np.float32)).shape
    (2, 3)
    """

    _saved_state: ClassVar = {
        "n_features_out_": Integer(1),
        "_n_features_out": Integer(1),
        "n_features_in_": Integer(1),
        "_n_features": Integer(1),
        "feature_names_in_": Labels(sorted=False),
    }

    def __init__(
        self,
        backbone: Any,
        *,
        layers: int | Literal["auto", "last"] = "last",
        views: int = 1,
        normalize: bool = False,
        batch_size: int | Literal["auto"] = "auto",
        device: Any = None,
        dtype: Any = "auto",
        cache: Any = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.layers = layers
        self.views = views
        self.normalize = normalize
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.cache = cache
        self.verbose = verbose

    def fit(self, X: Any = None, y: Any = None) -> "BackboneFeatures":
        """Open the backbone; nothing is learnt.

        Parameters
        ----------
        X : samples, optional
            Checked as in :meth:`transform`. Only a module in memory needs them, to see how many features it gives.
        y : ignored

        Returns
        -------
        BackboneFeatures
            Itself.
        """
        with changing(self):
            self._check_params()
            with self._reader(X, "features", {}) as reader:
                samples = None if X is None else reader.samples(X)
                if samples is None and reader.n_features is None:
                    raise InputError(
                        "pass samples to fit: a module in memory shows how many features it gives by running."
                    )
                width = reader.probe(samples)
            for name in FACTS:
                self.__dict__.pop(name, None)
            self.__dict__.update(reader.facts, n_features_out_=width, _n_features_out=width)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the features of samples.

        Parameters
        ----------
        X : samples
            As :func:`~faast_sklearn.inputs.as_samples` takes them.

        Returns
        -------
        ndarray of shape (n, d), float32 (float64 if the backbone runs in it)

        Raises
        ------
        InputError, NonFiniteError, OutOfMemoryError
            With the sample they are about; see :mod:`faast_sklearn.errors`.
        """
        if "n_features_out_" not in self.__dict__:
            return copy.copy(self).fit(X)._features(X)
        return self._features(X)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the features, ``backbonefeatures0`` and so on.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of what is read; used only to be checked, where X is a table of numbers.

        Returns
        -------
        ndarray of shape (d,), object

        Raises
        ------
        ValueError
            If X is a table and has not as many columns.
        sklearn.exceptions.NotFittedError
            Before ``fit``, if the backbone is a module in memory that has to run to say how many features it gives.
        """
        known = self
        if "n_features_out_" not in self.__dict__:
            known = copy.copy(self)
            known._n_features_out = known._reader(None, "", {}).n_features
            if known._n_features_out is None:
                raise NotFittedError(f"This {type(self).__name__} instance is not fitted yet; call fit(X) first.")
        # Names of what is not a table of numbers are those of columns of images or texts.
        return super(BackboneFeatures, known).get_feature_names_out(input_features if self._reads_rows() else None)

    def _features(self, X):
        self._check_params()
        with self._reader(X, "features", self._facts(), normalize=self.normalize) as reader:
            samples = reader.samples(X)
            dtype = torch.float64 if reader.backbone.dtype == torch.float64 else torch.float32
            # On the host batch by batch: all of the rows are more than a device may hold.
            rows = ((positions, part.to(dtype).cpu().numpy()) for positions, part in reader.stream(samples))
            return in_order(rows, len(samples))

    def _restore_state(self, attributes):
        super()._restore_state({**attributes, "device_": "cpu"})

    def _check_params(self):
        as_handle(self.backbone)  # without one there are no features
        check_layers(self.layers)
        check_views(self.views)
        if not isinstance(self.normalize, (bool, np.bool_)):
            raise ValueError(f"normalize must be True or False, got {self.normalize!r}.")

    def __sklearn_is_fitted__(self):
        return True

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = ["float32"]
        tags.input_tags.two_d_array = self._reads_rows()
        return tags
