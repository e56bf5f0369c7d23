"""What a saved file holds of each estimator, part by part."""

from types import SimpleNamespace

import numpy as np
import torch
from sklearn.exceptions import NotFittedError

from faast_sklearn.language import compiling
from faast_sklearn.language.fast_weights import FastWeights, Middle
from faast_sklearn.language.moments import LanguageMoments, TokenMoments
from faast_sklearn.language.reserve import Reserve, Sample
from faast_sklearn.moments.class_moments import ClassMoments
from faast_sklearn.moments.cross_moments import CrossMoments
from faast_sklearn.moments.scatter import Scatter
from faast_sklearn.persistence.arrays import Array, Labels, Stacked
from faast_sklearn.persistence.fields import (
    Boolean,
    Field,
    Integer,
    Listed,
    Maybe,
    Number,
    OneOf,
    Raw,
    Record,
)
from faast_sklearn.persistence.not_saved import NotSaved
from faast_sklearn.readout.class_vectors import ClassValues
from faast_sklearn.readout.fitted import Compiled, Fitted, Settings
from faast_sklearn.readout.linear import LinearReadout
from faast_sklearn.solvers.closed_form import Solution

__all__ = ["CLASSIFIER", "FEATURES", "LANGUAGE"]

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_ALPHA = OneOf("auto", fields=(Number(0),))
_SOLVER = OneOf("ridge", "pinv")
_TARGET = OneOf("residual", "embedding")


class _Moments(Field):
    """Moments, or the number of samples where they are left out."""

    def __init__(self, field, count):
        self.field, self.count = field, count

    def pack(self, value, out):
        if isinstance(value, NotSaved):
            return {"n_samples": value.n_samples}
        n_samples = self.count(value)
        # Where nothing was learnt there is nothing to leave out, and no weights to stand for it.
        return self.field.pack(value, out) if out.moments or not n_samples else {"n_samples": n_samples}

    def unpack(self, node, source):
        if isinstance(node, dict) and node.keys() == {"n_samples"}:
            return NotSaved(Integer().unpack(node["n_samples"], source))
        return self.field.unpack(node, source)


def _require(fits, what):
    if not fits:
        raise ValueError(what)


def _class_moments(classes, counts, rows, mean_weights, means, scatter):
    _require(scatter.n_features == means.shape[1], "class means and scatter have other numbers of features")
    _require(bool((mean_weights > 0).all()), "mean weights are not positive")
    return ClassMoments(classes, counts, rows, mean_weights, torch.from_numpy(means), scatter)


def _as_compiled(compiled):
    try:
        fitted = compiled.fitted  # solved now, so that whoever loads it need not
    except NotFittedError:
        fitted = None
    return SimpleNamespace(
        classes=compiled.classes,
        settings=compiled.settings,
        values=compiled._values,
        learnt=compiled.learnt,
        fitted=fitted,
    )


def _compiled(classes, settings, values, learnt, fitted):
    compiled = Compiled(learnt, classes, settings, values)
    if not isinstance(learnt, NotSaved):
        _require(np.isin(learnt.classes, classes).all(), "moments have classes that are not listed")
    if values is not None:
        _require(len(values.vectors) == len(classes), "there are not as many values as classes")
    if fitted is None:
        _require(not isinstance(learnt, NotSaved), "there are neither moments nor weights")
        return compiled
    if not isinstance(learnt, NotSaved):
        width, solution = learnt.n_features, fitted["solution"]
        _require(fitted["readout"].coef.shape[1] == width, "weights and moments have other numbers of features")
        _require(solution is None or len(solution.weights) == width, "the solution is of another width")
    _require(len(fitted["readout"].coef) == len(classes), "weights and classes are not of one number")
    compiled._fitted = Fitted(moments=learnt, **fitted)
    return compiled


def _as_reserve(reserve):
    return SimpleNamespace(
        keys=[s.keys for s in reserve.samples],
        targets=[s.targets for s in reserve.samples],
        digests=[s.digest for s in reserve.samples],
        bound=reserve.bound,
    )


def _reserve(keys, targets, digests, bound):
    _require(len(keys) == len(targets) == len(digests), "the reserve has not as many keys as targets and digests")
    samples = [Sample(*parts) for parts in zip(digests, keys, targets, strict=True)]
    _require(all(len(s.keys) == len(s.targets) for s in samples), "a sample has not as many keys as targets")
    _require(list(digests) == sorted(digests), "the reserve is not sorted")
    return Reserve(samples, bound)


def _cross(keys, cross, power):
    _require(keys.n_features == len(cross), "keys and their product with values have other numbers of features")
    return CrossMoments(keys, cross, power)


def _as_learnt(learnt):
    return SimpleNamespace(moments=learnt.moments, solved=learnt._solved, **learnt.settings)


def _learnt(moments, solved, **settings):
    _require(solved is not None or not isinstance(moments, NotSaved), "there are neither moments nor weights")
    learnt = compiling.Learnt(moments, **settings)
    learnt._solved = solved
    return learnt


_SCATTER = Record(
    Scatter,
    weight=Number(0),
    mean=Array("d"),
    dense=Maybe(Array("dd", symmetric=True)),
    factors=Stacked("rd"),
)
_CLASS_MOMENTS = Record(
    _class_moments,
    classes=Labels(),
    counts=Array("c", numpy=True, least=0),
    rows=Array("c", (torch.int64,), numpy=True, least=0),
    mean_weights=Array("c", numpy=True, least=0),
    means=Array("cd", numpy=True),
    scatter=_SCATTER,
)
_SETTINGS = Record(
    Settings,
    solver=_SOLVER,
    alpha=_ALPHA,
    intercept=Boolean(),
    unit_rows=Boolean(),
    prior_strength=_ALPHA,
)
_FITTED = Record(
    dict,
    solution=Maybe(
        Record(
            Solution,
            weights=Array("dm"),
            df=Number(),
            alpha=Number(0),
            method=OneOf("cholesky", "eigh"),
            condition=Number(1),
        )
    ),
    readout=Record(
        LinearReadout,
        coef=Array("cd", numpy=True),
        intercept=Array("c", numpy=True, finite=False),
        temperature=Number(0),
        left_out=Maybe(Array("kk", numpy=True)),
        inflation=Number(0),
    ),
    prior_strength=Number(0, infinite=True),
)
_COMPILED = Record(
    _compiled,
    view=_as_compiled,
    classes=Labels(),
    settings=_SETTINGS,
    values=Maybe(Record(ClassValues, vectors=Array("cm", numpy=True), logit_scale=Number())),
    learnt=_Moments(_CLASS_MOMENTS, lambda learnt: learnt.n_rows),
    fitted=Maybe(_FITTED),
)

_CROSS = Record(_cross, keys=_SCATTER, cross=Array("dm"), power=Number())
_TOKENS = Record(
    TokenMoments,
    memory=_CROSS,
    expected=Maybe(_SCATTER),
    counts=Maybe(Array("v")),
    probability=Maybe(Array("v")),
    curvature=Maybe(Array("v")),
    loss=Number(),
)
_RESERVE = Record(
    _reserve,
    view=_as_reserve,
    keys=Stacked("td", _FLOATS),
    targets=Stacked("t", (torch.int64,)),
    digests=Listed(Raw()),
    bound=Raw(),
)
_LANGUAGE_MOMENTS = Record(
    LanguageMoments, output=_TOKENS, middle=Listed(_CROSS), reserve=_RESERVE, n_samples=Integer()
)
_WEIGHTS = Record(
    FastWeights,
    target=_TARGET,
    update=Maybe(Array("dd", _FLOATS)),
    reader=Maybe(Array("dk", _FLOATS)),
    shift=Maybe(Array("kv", _FLOATS)),
    middle=Listed(Record(Middle, layer=Integer(), update=Array("dd", _FLOATS))),
)
_SOLVED = Record(
    compiling.Compiled,
    weights=_WEIGHTS,
    alpha=Number(0),
    memory_weight=Number(),
    shift_weight=Number(),
    held_out_loss=Maybe(Number()),
    condition=Maybe(Number(1)),
)
_LEARNT = Record(
    _learnt,
    view=_as_learnt,
    moments=_Moments(_LANGUAGE_MOMENTS, lambda moments: moments.n_samples),
    solved=Maybe(_SOLVED),
    target=_TARGET,
    solver=_SOLVER,
    alpha=_ALPHA,
    memory_weight=_ALPHA,
    among=Maybe(Listed(Integer())),
    base=Maybe(_WEIGHTS),
    hold_out=Boolean(),
)

# By estimator: the attributes that a file holds. What is not listed (devices, modules, caches) never goes in.
CLASSIFIER = {
    "_compiled": _COMPILED,
    "_declared": Labels(),
    "n_samples_seen_": Integer(),
    "n_features_in_": Integer(1),
    "_n_features": Integer(1),
    "feature_names_in_": Labels(sorted=False),
}
LANGUAGE = {"_learnt": _LEARNT, "n_samples_seen_": Integer(), "n_tokens_seen_": Integer()}
FEATURES = {
    "n_features_out_": Integer(1),
    "_n_features_out": Integer(1),
    "n_features_in_": Integer(1),
    "_n_features": Integer(1),
    "feature_names_in_": Labels(sorted=False),
}
