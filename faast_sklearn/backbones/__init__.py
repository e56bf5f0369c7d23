"""Frozen pretrained models as feature extractors; see docs/backbones.md.

Models are named by a handle (``backbone("timm:NAME")``), opened once per process, and shared.
"""

from faast_sklearn.backbones.base import Backbone, Batch
from faast_sklearn.backbones.handle import BackboneHandle, backbone
from faast_sklearn.backbones.open_backbones import release_backbones
from faast_sklearn.backbones.registry import list_backbones, register_backbone

__all__ = [
    "Backbone",
    "BackboneHandle",
    "Batch",
    "backbone",
    "list_backbones",
    "register_backbone",
    "release_backbones",
]
