"""Forward-only adaptation of frozen pretrained models, scikit-learn style.

``FaastClassifier`` learns from images, texts or ready features by one closed-form solve; ``BackboneFeatures`` gives
the features alone. ``backbone`` names a frozen model, ``list_backbones`` says which there are.
"""

from faast_sklearn.backbones import backbone, list_backbones, register_backbone, release_backbones
from faast_sklearn.classifier import FaastClassifier
from faast_sklearn.features import BackboneFeatures
from faast_sklearn.sources import as_indexable, image_folder

__version__ = "0.1.0"

__all__ = [
    "BackboneFeatures",
    "FaastClassifier",
    "as_indexable",
    "backbone",
    "image_folder",
    "list_backbones",
    "register_backbone",
    "release_backbones",
]
