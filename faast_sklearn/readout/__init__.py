"""From fast weights to scores, probabilities and labels: the last of five rooms."""

from faast_sklearn.readout.linear import LinearReadout, discriminant_readout, score_readout

__all__ = [
    "LinearReadout",
    "discriminant_readout",
    "score_readout",
]
