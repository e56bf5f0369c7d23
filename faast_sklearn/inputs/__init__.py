"""What users pass as X, y and weights, turned into samples that can be counted, indexed and named."""

from faast_sklearn.inputs.datasets import as_indexable, image_folder
from faast_sklearn.inputs.samples import as_samples, count_samples, iter_chunks, name_sample, refuse_single

__all__ = [
    "as_indexable",
    "as_samples",
    "count_samples",
    "image_folder",
    "iter_chunks",
    "name_sample",
    "refuse_single",
]
