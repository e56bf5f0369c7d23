"""Calls that cannot be meant: streams, names, pairs of texts, and what is not fitted."""

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from helpers.bad_inputs import ASK, SOURCES, TARGETS, TEXTS, Case, Fresh, X, Y, frame, value_of, with_value
from helpers.bad_samples import BAD_TEXTS
from helpers.releases import before
from sklearn.exceptions import NotFittedError

from faast_sklearn import BackboneFeatures, FaastClassifier, FaastSeq2Seq
from faast_sklearn.errors import (
    ForgetError,
    InputError,
    NonFiniteError,
)

ROW_CALLS = {
    "all weights zero": (lambda clf: clf.fit(X, Y, np.zeros(30)), InputError, ["every sample_weight is zero"]),
    "mixed declared classes": (lambda clf: clf.partial_fit(X, Y, classes=["a"]), InputError, ["one type"]),
    "one declared class": (lambda clf: clf.partial_fit(X, Y, classes="abc"), InputError, ["classes is one str"]),
    "a number of classes": (lambda clf: clf.partial_fit(X, Y, classes=3), InputError, ["classes should be a 1d array"]),
    "None among classes": (lambda clf: clf.partial_fit(X, Y, classes=[0, None]), InputError, ["classes[1] is None"]),
    "a set of classes": (lambda clf: clf.partial_fit(X, Y, classes={0, 1}), InputError, ["classes is one set"]),
    "classes in two columns": (lambda clf: clf.partial_fit(X, Y, classes=[[0, 1]]), InputError, ["classes", "(1, 2)"]),
    "mixed labels": (lambda clf: clf.partial_fit(X, Y.astype(str)), InputError, ["one type"]),
    "unknown label": (lambda clf: clf.forget(X, Y + 1), ForgetError, ["never learnt: [3]", "known are [0, 1, 2]"]),
    "forget more": (lambda clf: clf.forget(np.r_[X, X], np.r_[Y, Y]), ForgetError, ["only 10", "were learnt"]),
    "forget heavier": (lambda clf: clf.forget(X, Y, np.full(30, 1.5)), ForgetError, ["weight 15", "weight 10"]),
    "forget others": (lambda clf: clf.forget(X[:3] + 90, Y[:3]), ForgetError, ["never learnt"]),
    "squares overflow": (lambda clf: clf.partial_fit(X * 1e170, Y), NonFiniteError, ["overflow", "normalize=True"]),
    "labels beside an iterator": (lambda clf: clf.fit(iter([(X, Y)]), Y), InputError, ["must be None"]),
    "weights beside an iterator": (
        lambda clf: clf.fit(iter([(X, Y)]), sample_weight=np.ones(30)),
        InputError,
        ["y and sample_weight must be None"],
    ),
    "empty iterator": (lambda clf: clf.fit(iter([])), InputError, ["no batches"]),
    "a generator twice": (lambda clf: used_up(clf.fit), InputError, ["no batches", "may have been read already"]),
    "iterator of samples": (lambda clf: clf.fit(zip(X, Y, strict=True)), InputError, ["Batch 0", "batch_size"]),
    "iterator of dicts": (lambda clf: clf.fit(iter([{"x": X, "y": Y}])), InputError, ["Batch 0 is a dict", "'x', 'y'"]),
    "iterator of rows alone": (lambda clf: clf.fit(iter([X])), InputError, ["Batch 0 is a ndarray", "(X, y)"]),
    "second batch of another width": (
        lambda clf: clf.fit(iter([(X, Y), (X[:, :3], Y)])),
        InputError,
        ["3 features", "expecting 5"],
    ),
    "batch with fewer labels": (lambda clf: clf.fit(iter([(X, Y), (X, Y[:9])])), InputError, ["Batch 1", "30", "9"]),
    "batch with nan": (lambda clf: clf.fit(iter([(X, Y), (with_value(2, np.nan), Y)])), NonFiniteError, ["row 2"]),
    "balanced weights of a stream": (
        lambda clf: with_params(clf, {"class_weight": "balanced"}, lambda: clf.fit(iter([(X, Y)]))),
        InputError,
        ["class_weight='balanced'", "dict of weights"],
    ),
    "names without values": (lambda clf: clf.fit(None, ["a", "b"]), InputError, ["X is None", "values='text'"]),
    "nothing at all": (lambda clf: clf.fit(None), InputError, ["requires y"]),
    # Scores are scikit-learn's.
    "score without labels": (lambda clf: clf.score(X, None), ValueError, ["y_true", "None"]),
    "score with fewer labels": (lambda clf: clf.score(X, Y[:3]), ValueError, ["inconsistent numbers", "[3, 30]"]),
    "score with fewer weights": (lambda clf: clf.score(X, Y, [1.0]), ValueError, ["inconsistent numbers"]),
    "score of a DataLoader": (
        lambda clf: clf.score(torch.utils.data.DataLoader(list(X)), Y),
        InputError,
        ["DataLoader", "read once"],
    ),
    "an option that is none": (lambda clf: clf.set_params(alfa=3), ValueError, ["Invalid parameter 'alfa'"]),
}
if not before("scikit-learn", "1.9"):  # whose accuracy of labels of another type is 0
    ROW_CALLS["score with other labels"] = (
        lambda clf: clf.score(X, Y.astype(str)),
        ValueError,
        ["Mix of label input types"],
    )

RENAMED = pd.DataFrame(X, columns=list("abcdf"))
FRAME_CALLS = {
    f"{name} columns-{method}": (
        lambda clf, bad=bad, method=method: getattr(clf, method)(bad, *(() if method in ASK else (Y,))),
        InputError,
        ["feature names should match", *fragments],
    )
    for name, bad, fragments in (
        ("renamed", RENAMED, ["unseen at fit time", "- f", "now missing", "- e"]),
        ("reordered", RENAMED.rename(columns={"f": "e"})[list("baced")], ["same order"]),
        ("missing", RENAMED[list("abcd")], ["now missing", "- e"]),
    )
    for method in ("partial_fit", "forget", "predict")
}


def used_up(fit):
    batches = ((X, Y) for _ in range(1))
    list(batches)
    return fit(batches)


def with_params(estimator, params, call):
    """Call with other parameters for once."""
    own = {name: getattr(estimator, name) for name in params}
    estimator.set_params(**params)
    try:
        return call()
    finally:
        estimator.set_params(**own)


BAD_SOURCES = {
    **{name: case for name, case in BAD_TEXTS.items() if name not in ("texts that are read once", "a DataLoader")},
    "texts that are read once": (Fresh(lambda: iter(TEXTS)), InputError, ["cannot be indexed", "read only once"]),
    "a DataLoader": (torch.utils.data.DataLoader(TEXTS), InputError, ["DataLoader", "read only once"]),
    "messages": ([[{"role": "user", "content": "a"}]] * 3, InputError, ["X[0] is [{'role'", "(list)"]),
}

# (X, y, fragments)
BAD_PAIRS = {
    "a number among targets": (["a cat", "a"], ["dog", 1.5], ["y[1] is 1.5", "str(x)"]),
    "None among targets": (["a cat", "a"], ["dog", None], ["y[1] is None", "drop such samples"]),
    "nan among targets": (["a cat", "a"], ["dog", float("nan")], ["y[1] is nan"]),
    "labels for targets": (["a cat", "a"], [0, 1], ["y[0] is 0 (int)"]),
    "unpaired surrogate in a target": (["a cat", "a"], ["dog", "\udc80"], ["y[1] has an unpaired surrogate"]),
    "fewer targets": (["a cat", "a"], ["dog"], ["X has 2 samples and y has 1"]),
    "more targets": (["a"], ["a", "b"], ["X has 1 samples and y has 2"]),
    "no targets": (["a cat"], [], ["y has 0 samples"]),
    "no samples": ([], [], ["0 samples"]),
    "one target": (["a cat"], "dog", ["y is one str", "[x]"]),
    "a set of targets": (["a cat"], {"dog"}, ["y is a set", "has no order"]),
    "a dict of targets": (["a cat"], {"fr": ["dog"]}, ["y is a dict", "y['KEY']"]),
    "targets in two columns": (["a cat"], frame(a=["x"], b=["y"]), ["y is a DataFrame with 2 columns", "y['NAME']"]),
    "targets of two axes": (["a cat"], np.array([["x", "y"]]), ["y has shape (1, 2)", "y[:, j]"]),
    "sparse targets": (["a cat"], sp.csr_array(np.eye(3)), ["y is sparse"]),
    "targets that are read once": (["a cat"], Fresh(lambda: iter(["dog"])), ["read only once"]),
    "a function for targets": (["a cat"], len, ["y is a builtin_function_or_method"]),
}
# Where tokens are counted, nothing to learn is an error; a reference of a score may be empty.
BAD_LEARNT_PAIRS = {
    "an empty target": (["a cat", "a"], ["", "dog"], ["y[0] is empty", "drop"]),
    "a blank target": (["a cat", "a"], ["dog", " "], ["y[1] is empty"]),
    "an empty text": (["a cat", ""], None, ["X[1] is empty"]),
    "no texts": ([], None, ["X has 0 samples"]),
}


def bad_pairs(kind, table, methods):
    for name, (sources, targets, fragments) in table.items():
        for method in methods:

            def call(seq2seq, X=sources, y=targets, method=method):
                return getattr(seq2seq, method)(X, value_of(y))

            yield Case(kind, f"{name}-{method}", call, InputError, tuple(fragments))


PAIR_CALLS = {
    "score without targets": (lambda s: s.score(["a"]), InputError, ["y is None", "scoring='negative_perplexity'"]),
    "forget others": (lambda s: s.forget(["the cat"], ["blue"]), ForgetError, ["1 of these samples", "never learnt"]),
    "forget more": (
        lambda s: s.forget(SOURCES * 2, TARGETS * 2),
        ForgetError,
        ["asked to forget 20 samples", "only 10"],
    ),
    "choices are none": (lambda s: s.choice_log_probabilities(["a"]), ValueError, ["choices is None", "choices=[...]"]),
    "a template that returns a number": (
        lambda s: with_params(s, {"template": lambda source: 3}, lambda: s.predict(["a"])),
        InputError,
        ["X[0]: template returned int '3'"],
    ),
    "a template of messages without a chat template": (
        lambda s: with_params(s, {"template": chat}, lambda: s.fit(["a"], ["cat"])),
        InputError,
        ["X[0]: ", "no chat template"],
    ),
}

SHORT_CALLS = {
    f"a target that is too long-{method}": (
        lambda s, method=method: getattr(s, method)(["a"], ["red " * 16]),
        InputError,
        ["y[0] has 17 tokens with its end, and the model reads 16"],
    )
    for method in ("fit", "partial_fit", "forget", "perplexity", "token_scores")
} | {
    "a choice that is too long": (
        lambda s: with_params(s, {"choices": ["a", "red " * 16]}, lambda: s.predict(["a"])),
        InputError,
        ["choices[1] has 17 tokens", "reads 16"],
    )
}


def chat(source):
    return [{"role": "user", "content": source}]


NEW_CALLS = {
    "new t5": {
        "plain text": (
            lambda s: s.fit(["a cat"]),
            InputError,
            ["encoder-decoder model learns from sources and targets"],
        )
    },
    "new bart": {
        "no final norm": (
            lambda s: s.fit(["a cat"], ["dog"]),
            InputError,
            ["final norm, and 'bart' models have none there; use target='residual'"],
        )
    },
    "new endless": {
        "texts of one token": (lambda s: s.fit(["cat", "dog"]), InputError, ["each is a single token"]),
    },
    "new features": {
        "nothing to see the width by": (lambda f: f.fit(), InputError, ["pass samples to fit", "module in memory"])
    },
}


def not_fitted():
    row_data, pair_data = (X, Y), (SOURCES, TARGETS)
    for kind, cls, arguments in (
        ("new rows", FaastClassifier, {"score": row_data, "forget": row_data}),
        ("new features", BackboneFeatures, {"get_feature_names_out": ()}),
        ("new pairs", FaastSeq2Seq, {"forget": pair_data, "save_folded": ("nowhere",)}),
    ):
        methods = {
            FaastClassifier: [*ASK, "predict_log_proba", "novelty_score", "score", "forget"],
            BackboneFeatures: ["get_feature_names_out"],
            FaastSeq2Seq: ["forget", "save_folded"],
        }[cls]
        for method in methods:
            given = arguments.get(method, (X,))
            call = lambda estimator, method=method, given=given: getattr(estimator, method)(*given)  # noqa: E731
            yield Case(kind, f"not fitted-{method}", call, NotFittedError, (cls.__name__, "not fitted yet", "fit"))
        solved = {
            FaastClassifier: [
                "coef_",
                "intercept_",
                "alpha_",
                "solver_",
                "prior_strength_",
                "moments_",
            ],
            BackboneFeatures: [],
            FaastSeq2Seq: ["alpha_", "memory_weight_", "shift_weight_", "held_out_loss_"],
        }[cls]
        for name in solved:
            read = lambda estimator, name=name: getattr(estimator, name)  # noqa: E731
            yield Case(kind, f"not fitted-{name}", read, NotFittedError, (cls.__name__, "not fitted yet"))
