"""The per-sample cache: keys of samples, stores, and the pass that encodes only what is missing."""

from faast_sklearn.features.cache.feature_cache import FeatureCache, as_cache

__all__ = ["FeatureCache", "as_cache"]
