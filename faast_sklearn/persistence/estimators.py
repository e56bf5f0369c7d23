"""Whole estimators and pipelines, converted to and from what a file holds."""

import warnings
from typing import Any

from sklearn.pipeline import Pipeline

from faast_sklearn.backbones.identity import weight_summary
from faast_sklearn.errors import FaastError, SavedFileError, SavedFileWarning, shortened
from faast_sklearn.persistence.earlier import as_of_today
from faast_sklearn.persistence.fields import Listed, Number, Record, Text
from faast_sklearn.persistence.foreign import read_foreign, write_foreign
from faast_sklearn.persistence.parameters import pack_parameters, unpack_parameters

__all__ = ["pack_estimator", "register", "unpack_estimator"]

_kinds = {}  # name -> class of this library
_PASSED = ("passthrough", "drop")
_ESTIMATOR = {"kind", "class", "parameters", "state", "weights"}
_SUMMARY = Record(dict, structure=Text(), dtype=Text(), digest=Text(), sample=Listed(Number()))


def register(cls) -> None:
    """Let files hold a class of this library, under its own name.

    Parameters
    ----------
    cls : class
        With ``_saved_state``, the fields of its attributes by name, and ``_open_backbone``.
    """
    _kinds[cls.__name__] = cls


def pack_estimator(estimator: Any, out: Any) -> Any:
    """Return an estimator as JSON values.

    Parameters
    ----------
    estimator : estimator of this library, Pipeline or, written by skops, estimator of scikit-learn
    out : TensorWriter

    Raises
    ------
    SavedFileError
        If it cannot be saved.
    MissingDependencyError
        If it needs skops, which is not installed.
    """
    if isinstance(estimator, Pipeline):
        return _pack_pipeline(estimator, out)
    base = _base_of(estimator)
    if base is None:
        return _pack_foreign(estimator, out)
    state, weights = None, None
    if estimator.__sklearn_is_fitted__():
        estimator._ready_to_save(out.moments)
        attributes = vars(estimator)
        with out.at("state"):
            state = {}
            for name, field in base._saved_state.items():
                if name in attributes:
                    with out.at(name):
                        state[name] = field.pack(attributes[name], out)
        weights = _weights_of(estimator)
    with out.at("parameters"):
        parameters = pack_parameters(estimator, out)
    cls = type(estimator)
    return {
        "kind": base.__name__,
        "class": None if cls is base else f"{cls.__module__}.{cls.__qualname__}",
        "parameters": parameters,
        "state": state,
        "weights": weights,
    }


def unpack_estimator(node: Any, source: Any, given: dict, cls=None) -> Any:
    """Return the estimator that a file holds.

    Parameters
    ----------
    node : dict
        As :func:`pack_estimator` returned it.
    source : TensorReader
    given : dict
        Parameters that replace those in the file, by name; ``step__name`` within a pipeline.
    cls : class, optional
        The class to make; by default the class of this library that the file names.

    Raises
    ------
    SavedFileError
    """
    kind = node.get("kind") if isinstance(node, dict) else None
    if kind == "Pipeline":
        return _unpack_pipeline(node, source, given)
    if kind == "skops" and node.keys() == {"kind", "data", "parts"}:
        return _unpack_foreign(node, source, given)
    if not isinstance(kind, str) or kind not in _kinds or node.keys() != _ESTIMATOR:
        raise source.wrong(f"holds {shortened(kind)}, which is not an estimator that this version knows")
    node, base = as_of_today(kind, node), _kinds[kind]
    if cls is None and node["class"] is not None:
        raise SavedFileError(
            f"this file was saved by {shortened(node['class'], 100)}, a class outside this library; load it with that "
            "class, CLASS.from_pretrained(path)."
        )
    if cls is not None and not issubclass(cls, base):
        raise SavedFileError(f"this file holds a {kind}, not a {cls.__name__}.")
    cls = cls or base
    names = cls._get_param_names()
    _refuse_parameters(given, names)
    with source.at("parameters"):
        parameters = unpack_parameters(node["parameters"], given, names, source)
    estimator = cls(**{**{name: value for name, value in given.items() if name in names}, **parameters})
    if node["state"] is not None:
        with source.at("state"):
            _restore(estimator, base, node["state"], source)
        if node["weights"] is not None:
            with source.at("weights"):
                summary = _SUMMARY.unpack(node["weights"], source)
                estimator._saved_backbone = {**summary, "sample": list(summary["sample"])}
    return estimator


def _restore(estimator, base, node, source):
    if not isinstance(node, dict) or not node.keys() <= base._saved_state.keys():
        raise source.wrong(f"has attributes other than {sorted(base._saved_state)}")
    attributes = {}
    for name, field in base._saved_state.items():
        if name in node:
            with source.at(name):
                attributes[name] = field.unpack(node[name], source)
    try:
        estimator._restore_state(attributes)
    except (KeyError, ValueError) as error:
        raise source.wrong(f"does not fit together: {error}") from error


def _weights_of(estimator):
    """Return the summary of the backbone's weights: from the file that was loaded, or else of those in use."""
    if estimator.backbone is None:
        return None
    known = estimator.__dict__.get("_saved_backbone")
    if known is not None:
        return known
    try:
        return weight_summary(estimator._open_backbone())
    except (FaastError, OSError) as error:
        warnings.warn(
            f"the backbone cannot be opened here, so the file cannot say which weights it had: {error}",
            SavedFileWarning,
            stacklevel=2,
        )
        return None


def _refuse_parameters(given, names):
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise TypeError(f"the saved estimator has no parameter {unknown[0]!r}; it has {', '.join(names) or 'none'}.")


def _pack_pipeline(pipeline, out):
    steps = []
    for name, step in pipeline.steps:
        with out.at(name):
            packed = {"kind": "passed", "as": step} if step is None or step in _PASSED else pack_estimator(step, out)
            steps.append([name, packed])
    names = getattr(pipeline, "transform_input", None)
    return {
        "kind": "Pipeline",
        "steps": steps,
        "verbose": bool(pipeline.verbose),
        "transform_input": None if names is None else list(names),
    }


def _unpack_pipeline(node, source, given):
    pairs = node.get("steps")
    if node.keys() != {"kind", "steps", "verbose", "transform_input"} or not isinstance(pairs, list):
        raise source.wrong("is not a pipeline")
    steps = []
    names = [pair[0] for pair in pairs if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)]
    if not len(pairs) == len(names) == len(set(names)):
        raise source.wrong("has steps without names")
    for parameter in given:
        if parameter.partition("__")[0] not in names:
            raise TypeError(f"the saved pipeline has no step for {parameter!r}; its steps are {', '.join(names)}.")
    for name, step in pairs:
        own = {key.partition("__")[2]: value for key, value in given.items() if key.partition("__")[0] == name}
        with source.at(name):
            if isinstance(step, dict) and step.get("kind") == "passed":
                if step.get("as") is not None and step.get("as") not in _PASSED:
                    raise source.wrong("is not a step")
                steps.append((name, step["as"]))
            else:
                steps.append((name, unpack_estimator(step, source, own)))
    more = {}
    if node["transform_input"] is not None:
        more["transform_input"] = list(Listed(Text()).unpack(node["transform_input"], source))
    return Pipeline(steps, verbose=bool(node["verbose"]), **more)


def _pack_foreign(estimator, out):
    with out.at("skops"):
        name, parts = write_foreign(estimator, out, lambda part: _base_of(part) is not None)
    packed = out.each(parts, lambda part: pack_estimator(part, out))
    return {"kind": "skops", "data": name, "parts": packed}


def _unpack_foreign(node, source, given):
    if not isinstance(node["parts"], list):
        raise source.wrong("is not a step that skops wrote")
    if not node["parts"]:
        _refuse_parameters(given, ())
    parts = source.each(node["parts"], lambda part: unpack_estimator(part, source, given))
    return read_foreign(node["data"], source, parts)


def _base_of(estimator):
    """Return the class of this library to which an estimator belongs, or None."""
    return next((cls for cls in type(estimator).__mro__ if _kinds.get(cls.__name__) is cls), None)
