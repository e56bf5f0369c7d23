"""The estimators. Those that learn keep moments of the samples and solve for the weights on first use."""

from faast_sklearn.estimators.classifier import FaastClassifier
from faast_sklearn.estimators.features import BackboneFeatures
from faast_sklearn.estimators.merging import merge
from faast_sklearn.estimators.seq2seq import FaastSeq2Seq

__all__ = [
    "BackboneFeatures",
    "FaastClassifier",
    "FaastSeq2Seq",
    "merge",
]
