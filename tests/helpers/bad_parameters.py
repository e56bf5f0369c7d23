"""Parameters of a wrong type or value."""

import numpy as np
import torch
from helpers.bad_calls import with_params
from helpers.bad_inputs import ALL, ASK, FIT, LEARN, RUN, SOURCES, TARGETS, Case, X, Y
from helpers.tiny import tiny_model, tiny_tokenizer

from faast_sklearn import BackboneFeatures, FaastClassifier, FaastSeq2Seq
from faast_sklearn.errors import (
    BackboneError,
    DeviceError,
    InputError,
    UnknownBackboneError,
)

# Parameters: of each one, values of a wrong type and of a wrong value, with the error and fragments of the message


def refused(*values, says, error=ValueError, methods=None):
    """Entries that share an error; each message also has the value that was given."""
    return [(value, error, [says, value] if error is ValueError else [says], methods) for value in values]


def no_kind_of_backbone(*values):
    said = "backbone={!r} is {}; pass a spec such as 'timm:NAME', a path, a handle, an nn.Module or"
    return [(v, UnknownBackboneError, [said.format(v, type(v).__name__)], None) for v in values]


NO_BACKBONE = [
    *no_kind_of_backbone(3, True, [], b"x", len, torch.nn.Identity, ("a", "b", "c")),
    *no_kind_of_backbone((torch.nn.Identity(),)),
    *refused("tim:resnet50", says="timm:resnet50", error=UnknownBackboneError),
    *refused("timm:resnet5O", says="resnet50", error=UnknownBackboneError),
    *refused("hf:nobody/nothing", says="nobody/nothing", error=BackboneError),
    *refused("nope", "/nowhere/at/all", says="neither a known prefix nor an existing path", error=UnknownBackboneError),
    *refused("bundled:minilm", says="did you mean bundled:minilm-l6", error=UnknownBackboneError),
    *refused("bundled:", says="has no name after the prefix", error=UnknownBackboneError),
]
NO_DEVICE = [
    *refused("tpu", -1, [], object(), says="is not a torch device; use one of", error=DeviceError),
    *refused("cuda:99", says="cuda:99", error=DeviceError),
    *refused("meta", says="holds no data", error=DeviceError),
]
NO_DTYPE = refused("int8", 3, None, torch.int8, [], "half", np.float32, says="is not one of 'auto'", error=DeviceError)
NO_BATCH_SIZE = refused(0, -1, 1.5, "big", None, True, [3], says="batch_size must be 'auto' or a positive integer")
NO_CACHE = refused("", 3, True, [], b"x", says="cache must be None, 'memory', a directory or a FeatureCache")
NO_VERBOSITY = refused("loud", -1, None, [], "0", float("nan"), says="verbose must be 0, 1 or another number")
NO_ALPHA = ["best", -1.0, float("nan"), float("inf"), None, True, [1.0], 1j]
NO_COUNT = [0, -1, 1.5, "two", True, None]

NO_LAYERS = refused("first", 0, -1, 1.0, None, True, [2], says="layers must be 'auto', 'last' or a positive integer")
NO_VIEWS = refused("auto", 0, 7, 2.0, None, True, [2], says="views must be an integer from 1 to 6")

CLASSIFIER_PARAMETERS = {
    "backbone": NO_BACKBONE,
    "solver": refused("svd", None, 3, ["ridge"], np.array(["ridge"] * 2), says="solver must be 'ridge' or 'pinv'"),
    "alpha": refused(*NO_ALPHA, np.ones(2), says="alpha must be 'auto' or a finite number of at least 0"),
    "values": [
        *refused("hot", 3, None, says="values must be 'onehot', 'text', an array of shape (n_classes, m) or a dict"),
        *refused({}, says="values has no entry for the labels [0, 1, 2]", error=InputError, methods=FIT),
        *refused({0: [1, 2]}, says="values has no entry for the labels [1, 2]", error=InputError, methods=FIT),
        *refused([], np.zeros((3, 0)), np.zeros(3), says="expected (n_classes, m)", error=InputError, methods=FIT),
        *refused([[1, 2], [3]], [["a"]] * 3, says="must hold vectors of equal length", error=InputError, methods=FIT),
        *refused(np.full((3, 2), np.nan), says="values must be finite", error=InputError, methods=FIT),
        *refused(np.ones((2, 2)), says="values has 2 rows and there are 3 classes", error=InputError, methods=FIT),
        *refused("text", says="labels as text, but they are int64", error=InputError, methods=FIT),
        *refused({0: "a", 1: "b", 2: "c"}, says="backbone=None cannot embed texts", error=InputError, methods=FIT),
    ],
    "prior_strength": refused(
        "much", -1.0, float("nan"), float("inf"), None, True, [1], says="prior_strength must be 'auto' or a finite"
    ),
    "layers": NO_LAYERS,
    "views": NO_VIEWS,
    "normalize": refused("l1", None, 2, [True], says="normalize must be True, False or 'auto'"),
    "fit_intercept": refused("yes", None, 3, [], np.array([True, False]), says="fit_intercept must be True or False"),
    "class_weight": [
        *refused("even", 3, [1, 2], np.ones(3), says="class_weight must be a dict, 'balanced' or None"),
        *refused({0: -1.0}, {0: "a"}, {0: None}, {0: float("nan")}, says="finite weights that are not negative"),
        ("balanced", ValueError, ["needs all labels at once", "dict of weights"], ("partial_fit", "forget")),
    ],
    "batch_size": NO_BATCH_SIZE,
    "device": NO_DEVICE,
    "dtype": NO_DTYPE,
    "cache": NO_CACHE,
    "verbose": NO_VERBOSITY,
}

FEATURES_PARAMETERS = {
    "backbone": [*NO_BACKBONE, *no_kind_of_backbone(None)],
    "layers": NO_LAYERS,
    "views": NO_VIEWS,
    "normalize": refused("l1", "auto", None, 2, [True], says="normalize must be True or False"),
    "batch_size": NO_BATCH_SIZE,
    "device": NO_DEVICE,
    "dtype": NO_DTYPE,
    "cache": NO_CACHE,
    "verbose": NO_VERBOSITY,
}

ANSWER = ("predict",)
EVERY = ("fit", "partial_fit", "forget", "score", "perplexity", "predict")
SEQ2SEQ_PARAMETERS = {
    "backbone": [
        *no_kind_of_backbone(3, None, []),
        *refused("/nowhere/at/all", says="nor an existing path", error=UnknownBackboneError),
        *refused("timm:resnet18", says="'timm:' has no language models", error=BackboneError),
        *refused("bundled:minilm-l6", says="is not a language model", error=BackboneError),
        *refused(torch.nn.Linear(2, 2), says="Linear is not a language model", error=BackboneError),
        *refused(tiny_model("llama"), says="needs its tokenizer", error=BackboneError),
        *refused((tiny_model("bert"), tiny_tokenizer()), says="BertModel", error=BackboneError),
    ],
    "target": refused("residuals", None, ["residual"], says="target must be one of", methods=EVERY),
    "solver": refused("lasso", None, ["ridge"], says="solver must be one of", methods=EVERY),
    "alpha": refused(*NO_ALPHA, np.ones(2), says="alpha must be 'auto' or a finite number", methods=EVERY),
    "memory_weight": refused(
        -0.5,
        float("inf"),
        True,
        None,
        "much",
        np.ones(2),
        says="memory_weight must be 'auto' or a finite number",
        methods=EVERY,
    ),
    "max_iter": refused(
        0, -1, 1.5, True, None, "auto", says="max_iter must be an integer of at least 1", methods=EVERY
    ),
    "learn_from": refused("prompt", None, says="learn_from must be one of", methods=EVERY),
    "template": [
        (7, InputError, ["template=7 is int"], EVERY),
        ([], InputError, ["template=[] is list"], ("fit", "predict")),
        (b"x", InputError, ["template=b'x' is bytes"], ("fit", "predict")),
        ("{source}", InputError, ["lacks {target}"], EVERY),
        ("{target}", InputError, ["lacks {source}"], ("fit", "predict")),
        ("{source} {goal} {target}", InputError, ["has the field {goal}"], ("fit", "predict")),
        ("{target} {source}", InputError, ["after {source}"], ("fit", "predict")),
    ],
    "choices": [
        (["a", "cat", "a"], InputError, ["choices[2] is 'a' again"], ("fit", "predict", "choice_log_probabilities")),
        (["a", ""], InputError, ["choices[1] is empty"], ("fit", "predict")),
        ([], InputError, ["at least one"], ("fit", "predict")),
        ("cat", InputError, ["list of strings", "'cat'"], ("fit", "predict")),
        (b"cat", InputError, ["list of strings"], ("fit", "predict")),
        (3, InputError, ["list of strings", "got 3"], ("fit", "predict")),
        ({"a": 1}, InputError, ["list of strings"], ("fit", "predict")),
        ({"a", "cat"}, InputError, ["list of strings"], ("fit", "predict")),
        (["a", 3], InputError, ["choices[1] is 3"], ("fit", "predict")),
        (["a", None], InputError, ["choices[1] is None"], ("fit", "predict")),
    ],
    "max_new_tokens": refused(0, "two", None, 1.5, True, says="max_new_tokens must be a positive", methods=ANSWER),
    "num_beams": refused(0, "two", None, 1.5, True, says="num_beams must be a positive integer", methods=ANSWER),
    "scoring": refused("accuracy", None, says="scoring must be one of", methods=EVERY),
    "batch_size": [(value, *rest, EVERY) for value, *rest, _ in NO_BATCH_SIZE],
    "device": NO_DEVICE,
    "dtype": NO_DTYPE,
    "verbose": NO_VERBOSITY,
}

# kind, class, table, and the methods that refuse a parameter unless it says otherwise
PARAMETERS = [
    ("rows", FaastClassifier, CLASSIFIER_PARAMETERS, LEARN),
    ("module", FaastClassifier, {k: CLASSIFIER_PARAMETERS[k] for k in ("batch_size", "device", "dtype", "cache")}, ALL),
    ("features", BackboneFeatures, FEATURES_PARAMETERS, RUN),
    ("pairs", FaastSeq2Seq, SEQ2SEQ_PARAMETERS, ("fit", "partial_fit", "perplexity")),
]


def parameters():
    for kind, _, table, usual in PARAMETERS:
        for name, entries in table.items():
            for k, (value, error, fragments, methods) in enumerate(entries):
                for method in methods or usual:

                    def call(estimator, name=name, value=value, method=method, kind=kind):
                        data = (SOURCES, TARGETS) if kind == "pairs" else (X.astype(np.float32), Y)
                        only_x = method in (*ASK, "transform", "choice_log_probabilities")
                        given = data[:1] if only_x else data
                        return with_params(estimator, {name: value}, lambda: getattr(estimator, method)(*given))

                    # A message has the value as it is written in Python.
                    told = tuple(
                        part if isinstance(part, str) and part is not value else repr(part) for part in fragments
                    )
                    yield Case(kind, f"{name}={k}-{method}", call, error, told)
