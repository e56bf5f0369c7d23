"""What users pass becomes samples and labels: the first of five rooms."""

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
