"""What users pass as X, y and weights, turned into samples that can be counted, indexed and named."""

from faast_sklearn.inputs.samples import as_samples

__all__ = ["as_samples"]
