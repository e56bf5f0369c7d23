"""Rewrite what files of earlier versions hold into the form that this version reads."""

from typing import Any

from faast_sklearn.errors import SavedFileError, shortened

__all__ = ["as_of_today"]

# Removed parameters, with the values at which they had no effect.
_GONE: dict[str, dict[str, Any]] = {
    "FaastClassifier": {"expansion": None, "n_passes": 1, "prompt_template": "auto"},
    "FaastSeq2Seq": {"n_passes": 1, "generation_config": None},
}
# Estimators that read the last layer alone in earlier versions.
_LAST_LAYER = ("FaastClassifier", "BackboneFeatures")


def as_of_today(kind: str, node: Any) -> dict:
    """Rewrite an estimator of an earlier file into the form that this version reads.

    Parameters
    ----------
    kind : str
        Name of the estimator's class.
    node : dict
        ``"parameters"`` and ``"state"`` as they were read. It is not changed.

    Returns
    -------
    dict

    Raises
    ------
    SavedFileError
        If a removed parameter was in use.
    """
    parameters, gone = node["parameters"], _GONE.get(kind, {})
    if not isinstance(parameters, dict):
        return node
    if parameters.keys() & gone.keys():
        node = _without_knobs(kind, node, gone)
    if kind in _LAST_LAYER and "layers" not in parameters:
        node = _of_one_layer(kind, node)
    if kind == "FaastSeq2Seq" and "max_iter" not in parameters:
        node = _of_one_step(node)
    if kind == "FaastSeq2Seq":
        node = _with_one_node(node)
    return node


def _of_one_step(node):
    """Add the parameter and the state of a language model that took one closed-form step, without prompts."""
    state = node["state"]
    if isinstance(state, dict) and isinstance(state.get("_problem"), dict):
        problem = {"max_iter": 1, **state["_problem"]}
        if isinstance(problem.get("solved"), dict):
            problem["solved"] = {"n_iter": 1, **problem["solved"]}
        moments = problem.get("moments")
        if isinstance(moments, dict) and isinstance(moments.get("output"), dict):
            problem["moments"] = {**moments, "output": {"prompts": None, **moments["output"]}}
        state = {**state, "_problem": problem}
    return {**node, "parameters": {**node["parameters"], "max_iter": 1}, "state": state}


def _without_knobs(kind, node, gone):
    """Drop the parameters that were removed, and rewrite the state of that version."""
    parameters, state = node["parameters"], node["state"]
    for name, unused in gone.items():
        if parameters.get(name, unused) != unused:
            raise SavedFileError(
                f"this file was saved with {name}={shortened(parameters[name])}, which this version does not have; fit "
                "again without it."
            )
    if parameters.get("normalize", False) not in (True, False):
        raise SavedFileError(
            f"this file was saved with normalize={parameters['normalize']!r}, which this version does not have; fit "
            "again with True or False."
        )
    parameters = {name: value for name, value in parameters.items() if name not in gone}
    if state is not None:
        try:
            state = {"FaastClassifier": _one_feature_map, "FaastSeq2Seq": _as_problem}[kind](state)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SavedFileError(f"the saved file is not valid: its state has no known form ({error!r}).") from error
    return {**node, "parameters": parameters, "state": state}


def _with_one_node(node):
    """Return a language model whose choices, if it has any, are a tree of one node: its tokens were in a flat list."""
    state = node["state"]
    problem = state.get("_problem") if isinstance(state, dict) else None
    among = problem.get("among") if isinstance(problem, dict) else None
    if not isinstance(among, list) or not all(isinstance(token, int) for token in among):
        return node
    return {**node, "state": {**state, "_problem": {**problem, "among": [among]}}}


def _of_one_layer(kind, node):
    """Add the parameters and the state that make an estimator read the last layer alone."""
    state = node["state"]
    if kind == "FaastClassifier" and isinstance(state, dict) and isinstance(state.get("_problem"), dict):
        problem = {"blocks": None, **state["_problem"]}
        if isinstance(problem.get("settings"), dict):
            problem["settings"] = {"choose_layers": True, **problem["settings"]}
        if isinstance(problem.get("solved"), dict):
            problem["solved"] = {"factors": None, **problem["solved"]}
        state = {**state, "_problem": problem}
    return {**node, "parameters": {**node["parameters"], "layers": "last", "views": 1}, "state": state}


def _one_feature_map(state):
    """Return the state of a classifier whose file keeps moments in a mapping from feature maps."""
    state = {name: value for name, value in state.items() if name != "n_passes_"}
    compiled = state.pop("_compiled")
    settings = {name: value for name, value in compiled["settings"].items() if name != "expansion"}
    learnt, fitted = compiled["learnt"], compiled["fitted"]
    used = None if fitted is None else fitted["map"]
    if "moments" in learnt:
        ((used, learnt),) = learnt["moments"]
    if fitted is not None:
        fitted = {name: value for name, value in fitted.items() if name != "map"}
    settings["unit_rows"] = used["normalize"]
    problem = {"classes": compiled["classes"], "settings": settings, "values": compiled["values"]}
    state["_problem"] = {**problem, "moments": learnt, "solved": fitted}
    return state


def _as_problem(state):
    """Return the state with the names of this version."""
    return {"_problem" if name == "_learnt" else name: value for name, value in state.items()}
