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

    Nothing is learnt: ``fit`` opens the backbone and ``transform`` runs it, which works without ``fit`` too. To
    classify, use :class:`~faast_sklearn.FaastClassifier` directly, which does not store the features.

    Parameters
    ----------
    backbone : str, path, handle, torch.nn.Module or (module, preprocess)
        ``"timm:NAME"``, ``"hf:NAME_OR_PATH"``, ``"bundled:NAME"``, a local folder, a handle made with
        :func:`~faast_sklearn.backbone`, or a module in memory. See :func:`~faast_sklearn.list_backbones`.
    layers : "auto", "last" or int, default="last"
        Layers of the backbone whose features one pass returns. "last" is the last layer. A number adds that many inner
        layers: mean, maximum and standard deviation over the positions for the last stages of a convolutional network,
        the mean over the tokens for the last blocks of a transformer. "auto" adds up to three inner layers, as long as
        there are at most 4,096 features. Layers are not scaled relative to each other, which can cost a later step
        accuracy with few training samples; :class:`~faast_sklearn.FaastClassifier` scales them.
    views : int, default=1
        Images: number of views over which features are averaged, at the cost of one pass per view. 2 adds the mirror
        image, 3 to 6 add small shifts. Keep 1 if mirroring changes what an image shows, as for digits and written text.
    normalize : bool, default=False
        Scale features to unit L2 norm, separately for each statistic of each layer.
    batch_size : int or "auto", default="auto"
        Samples per forward pass; halved when memory is short.
    device : None, "auto", str or torch.device, default=None
        ``None`` takes the best available device.
    dtype : "auto", str or torch.dtype, default="auto"
        Of the backbone. "auto": bfloat16 on GPUs that support it, float32 elsewhere.
    cache : None, "memory", directory or FeatureCache, default=None
        Where the features of each sample are stored, so that the backbone encodes it once; see
        :class:`~faast_sklearn.FeatureCache`.
    verbose : int, default=0
        1 shows a progress bar on stderr.

    Attributes
    ----------
    n_features_out_ : int
        Number of features d.
    device_ : str
        Where the backbone ran in ``fit``.

    See Also
    --------
    FaastClassifier : Learns from such features without storing them.

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
            Checked as in :meth:`transform`. Only a module in memory needs them: one sample is run through it to find
            the number of features.
        y : ignored

        Returns
        -------
        BackboneFeatures
            Itself.

        Raises
        ------
        InputError
            If X is None and the backbone is a module in memory.
        """
        with changing(self):
            self._check_params()
            with self._reader(X, "features", {}) as reader:
                samples = None if X is None else reader.samples(X)
                if samples is None and reader.n_features is None:
                    raise InputError(
                        "pass samples to fit: a module in memory has to run once to show how many features it gives."
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
            In any form that :func:`~faast_sklearn.inputs.as_samples` takes.

        Returns
        -------
        ndarray of shape (n, d), float32 (float64 if the backbone runs in it)

        Raises
        ------
        InputError, NonFiniteError, OutOfMemoryError
            Messages name the sample if one is to blame; see :mod:`faast_sklearn.errors`.
        """
        if "n_features_out_" not in self.__dict__:
            return copy.copy(self).fit(X)._features(X)
        return self._features(X)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the features, ``backbonefeatures0`` and so on.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the columns of X; only checked, and only if X may be a table of numbers.

        Returns
        -------
        ndarray of shape (d,), object

        Raises
        ------
        ValueError
            If ``input_features`` do not match the columns of the table that was fitted.
        sklearn.exceptions.NotFittedError
            Before ``fit``, if the backbone is a module in memory, which has to run to show how many features it gives.
        """
        known = self
        if "n_features_out_" not in self.__dict__:
            known = copy.copy(self)
            known._n_features_out = known._reader(None, "", {}).n_features
            if known._n_features_out is None:
                raise NotFittedError(f"This {type(self).__name__} instance is not fitted yet; call fit(X) first.")
        # A backbone that reads images or texts has one input column, whose name says nothing about the features.
        return super(BackboneFeatures, known).get_feature_names_out(input_features if self._reads_rows() else None)

    def _features(self, X):
        self._check_params()
        with self._reader(X, "features", self._facts(), normalize=self.normalize) as reader:
            samples = reader.samples(X)
            dtype = torch.float64 if reader.backbone.dtype == torch.float64 else torch.float32
            # Each batch moves to the host at once, because all rows together may not fit into the device's memory.
            rows = ((positions, part.to(dtype).cpu().numpy()) for positions, part in reader.stream(samples))
            return in_order(rows, len(samples))

    def _restore_state(self, attributes):
        super()._restore_state({**attributes, "device_": "cpu"})

    def _check_params(self):
        as_handle(self.backbone)  # raises an error if the backbone is None
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
