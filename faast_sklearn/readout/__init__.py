"""From fast weights to class scores and probabilities, from the statistics alone.

Two readouts turn weights into a classifier:

* :func:`discriminant_readout`: Gaussian classes with the regularised pooled covariance. The ridge weights already
  hold everything: with the total scatter ``T = S + B`` (within plus between), ``(S + λ)⁻¹Mᵀ`` follows from
  ``W = (T + λ)⁻¹ C`` by a c×c inverse (Woodbury). Unlike the argmax of ridge scores it does not mask classes
  and suits classes of unequal size: a mean of few rows is shrunk towards the others as far as it is noise.
* :func:`score_readout`: the weights' own scores, whose argmax is the paper's prediction, with a softmax.

Both are calibrated by one temperature (``faast_sklearn.readout.calibration``). No example is needed, so a model that
learnt in pieces has the probabilities of one that learnt at once.
"""

from faast_sklearn.readout.linear import LinearReadout, discriminant_readout, score_readout

__all__ = [
    "LinearReadout",
    "discriminant_readout",
    "score_readout",
]
