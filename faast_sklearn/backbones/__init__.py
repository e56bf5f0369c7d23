"""Frozen pretrained models as feature extractors; see docs/backbones.md.

Models are named by a handle (``backbone("timm:NAME")``), opened once a process, and shared.
"""

from faast_sklearn.backbones.base import Backbone, Batch
from faast_sklearn.backbones.handle import BackboneHandle, as_handle, backbone
from faast_sklearn.backbones.opened import open_count, release_backbones
from faast_sklearn.backbones.registry import list_backbones, register_backbone

__all__ = [
    "Backbone",
    "BackboneHandle",
    "Batch",
    "as_handle",
    "backbone",
    "list_backbones",
    "open_count",
    "register_backbone",
    "release_backbones",
]
