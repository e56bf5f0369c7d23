"""Forward-only adaptation of frozen pretrained models, scikit-learn style.

``FaastClassifier`` learns from images, texts or ready features by one closed-form solve, ``FaastSeq2Seq`` teaches a
language model a task, and ``BackboneFeatures`` gives the features alone. ``backbone`` names a frozen model,
``list_backbones`` says which there are.
"""

from faast_sklearn.backbones import backbone, list_backbones, register_backbone, release_backbones
from faast_sklearn.estimators.classifier import FaastClassifier
from faast_sklearn.estimators.features import BackboneFeatures
from faast_sklearn.estimators.merging import merge
from faast_sklearn.estimators.seq2seq import FaastSeq2Seq
from faast_sklearn.features.cache import FeatureCache
from faast_sklearn.inputs.datasets import as_indexable, image_folder
from faast_sklearn.persistence.saving import load, save

__version__ = "0.1.0"

__all__ = [
    "BackboneFeatures",
    "FaastClassifier",
    "FaastSeq2Seq",
    "FeatureCache",
    "as_indexable",
    "backbone",
    "image_folder",
    "list_backbones",
    "load",
    "merge",
    "register_backbone",
    "release_backbones",
    "save",
]
