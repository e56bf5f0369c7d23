"""Bad input, all of it in one table: a typed error that names what is wrong and the remedy, and nothing has changed.

Each entry says what is passed to which methods of which kind of estimator, the type of the error, and fragments of its
message. Calls that are an error of scikit-learn's own contract keep its type.
"""

import datetime
import decimal
import functools
import inspect
import io
import itertools
import pathlib
from dataclasses import dataclass

import datasets
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from helpers.images import thumbnail
from helpers.seq2seq import chosen, opened, pairs
from helpers.tiny import tiny_model, tiny_tokenizer
from helpers.unchanged import everything_as_before
from PIL import Image
from sklearn.exceptions import NotFittedError

from faast_sklearn import BackboneFeatures, FaastClassifier, FaastSeq2Seq, backbone
from faast_sklearn.errors import (
    BackboneError,
    DeviceError,
    ForgetError,
    InputError,
    NonFiniteError,
    UnknownBackboneError,
)

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 5)), np.arange(30) % 3
X[np.arange(30), Y] += 2.0
TEXTS = ["oak", "elm tree", "yew", "a beech", "fir", "one birch"]
WORDS = ["a cat", "the dog", "on mat", "one tree", "two red", "three blue"]
KINDS = np.array(["short", "long"] * 3)
SOURCES, TARGETS = pairs(10)

LEARN = ("fit", "partial_fit", "forget")
ASK = ("predict", "predict_proba", "decision_function")
ALL = LEARN + ASK
TELL = ("fit", "partial_fit", "forget", "perplexity", "token_scores", "score")  # of a language model, with targets
FIT = ("fit",)
RUN = ("fit", "transform")  # of BackboneFeatures


# Estimators, each made once: no case changes them


def length_and_vowels(text):
    return torch.tensor([len(text), sum(text.count(vowel) for vowel in "aeiou"), 1.0])


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(6):
        Image.new("RGB", (40, 30), (40 * i, 255 * (i % 2), 0)).save(folder / f"{i}.jpg", quality=95)
    noise = Image.fromarray(RNG.integers(0, 256, (60, 60, 3), dtype=np.uint8))
    for name in ("cut.jpg", "cut.png", "cut.gif", "cut.webp"):
        noise.save(folder / name)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "drawing.svg").write_text("<svg/>")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")  # 48 KB, 1.2 GB as pixels
    Image.fromarray(np.full((3, 4), 7.5, np.float32)).save(folder / "floats.tif")
    return folder


class Flat(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1).float()


@pytest.fixture(scope="session")
def made(files):
    """A function from a kind to a fitted estimator and what its predictions are compared on."""
    paths = [str(files / f"{i}.jpg") for i in range(6)]

    def text_reader():
        return backbone((torch.nn.Identity(), length_and_vowels), modality="text")

    makers = {
        "rows": lambda: (FaastClassifier().fit(X, Y), X),
        "frame": lambda: (FaastClassifier().fit(pd.DataFrame(X, columns=list("abcde")), Y), None),
        "module": lambda: (FaastClassifier(Flat(), device="cpu").fit(X, Y), X),
        "texts": lambda: (FaastClassifier(text_reader(), device="cpu", batch_size=2).fit(TEXTS, KINDS), TEXTS),
        "encoder": lambda: (
            FaastClassifier(backbone((tiny_model("bert"), tiny_tokenizer())), device="cpu").fit(WORDS, KINDS),
            WORDS,
        ),
        "images": lambda: (
            FaastClassifier(backbone((torch.nn.Identity(), thumbnail)), device="cpu", batch_size=2).fit(paths, KINDS),
            paths,
        ),
        "pixels": lambda: (
            FaastClassifier(backbone(Flat(), modality="image"), device="cpu").fit(np.zeros((6, 5, 6)), KINDS),
            np.zeros((6, 5, 6)),
        ),
        "features": lambda: (BackboneFeatures(Flat(), device="cpu").fit(X), X),
        "pairs": lambda: (FaastSeq2Seq(opened("llama"), max_new_tokens=2).fit(SOURCES, TARGETS), None),
        "short": lambda: (
            FaastSeq2Seq((tiny_model("gpt2"), tiny_tokenizer("decoder")), max_new_tokens=2).fit(SOURCES, TARGETS),
            None,
        ),
        "choosing": lambda: (
            FaastSeq2Seq(opened("llama"), choices=["red", "cat"]).fit(*chosen((SOURCES,), ["red", "cat"])),
            None,
        ),
        "new rows": lambda: (FaastClassifier(), None),
        "new features": lambda: (BackboneFeatures(Flat(), device="cpu"), None),
        "new pairs": lambda: (FaastSeq2Seq(opened("llama"), max_new_tokens=2), None),
        "new choosing": lambda: (FaastSeq2Seq(opened("llama"), choices=["red", "cat"]), None),
        "new t5": lambda: (FaastSeq2Seq(opened("t5")), None),
        "new bart": lambda: (FaastSeq2Seq(opened("bart"), target="embedding"), None),
        "new endless": lambda: (FaastSeq2Seq((endless(), NoEnd())), None),
    }
    return functools.cache(lambda kind: makers[kind]())


def endless():
    model = tiny_model("gpt2")
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    return model


class NoEnd:
    """A tokenizer that ends no text."""

    eos_token_id = pad_token_id = bos_token_id = None
    all_special_ids = ()

    def __init__(self):
        self.inner = tiny_tokenizer("decoder")

    def __call__(self, *args, **options):
        return self.inner(*args, **options)

    def __getattr__(self, name):
        return getattr(self.inner, name)


LABELS = {"rows": Y, "frame": Y, "module": Y, "new rows": Y, "pairs": TARGETS, "short": TARGETS, "new pairs": TARGETS}


# The table


@dataclass(frozen=True)
class Case:
    """One bad call: ``call`` gets the estimator, and the folder of files where it wants one."""

    kind: str
    name: str
    call: object
    error: type
    fragments: tuple

    def __str__(self):
        return f"{self.kind}-{self.name}"


def with_value(row, value, X=X):
    X = X.copy()
    X[row, 2] = value
    return X


def frame(**columns):
    return pd.DataFrame({name: list(values) for name, values in columns.items()})


def dataset(**columns):
    return datasets.Dataset.from_dict({name: list(values) for name, values in columns.items()})


class Fresh:
    """Makes what can be used only once, anew for each call."""

    def __init__(self, make):
        self.make = make


def value_of(bad):
    return bad.make() if isinstance(bad, Fresh) else bad


def labels_of(kind, bad):
    """As many labels as there seem to be samples, so that their number is not what is wrong."""
    labels = LABELS.get(kind, KINDS)
    sized = not isinstance(bad, (str, bytes, dict)) and hasattr(bad, "__getitem__") and hasattr(bad, "__len__")
    if sized or hasattr(bad, "shape"):
        n = bad.shape[0] if isinstance(getattr(bad, "shape", None), tuple) and bad.shape else len(labels)
        n = n if hasattr(bad, "shape") and isinstance(bad.shape, tuple) else len(bad)
        return np.resize(labels, n).tolist() if n else labels[:0]
    return labels


def samples(kind, methods, table):
    """Cases of an X that cannot be used, by name: ``(X, error, fragments)`` and perhaps methods of its own."""
    for name, (bad, error, fragments, *own) in table.items():
        for method in own[0] if own else methods:

            def call(estimator, bad=bad, method=method):
                value = value_of(bad)
                given = (labels_of(kind, value),) if method in TELL and kind != "features" else ()
                return getattr(estimator, method)(value, *given)

            yield Case(kind, f"{name}-{method}", call, error, tuple(fragments))


def calls(kind, table):
    """Cases of a call that cannot be meant: ``name: (call, error, fragments)``."""
    for name, (call, error, fragments) in table.items():
        yield Case(kind, name, call, error, tuple(fragments))


TABLE_FORM = "expected an array or tensor whose first axis counts the samples"

ROWS = {
    "nan": (with_value(17, np.nan), NonFiniteError, ["NaN", "row 17", "column 2", "impute"]),
    "infinite": (with_value(4, -np.inf), NonFiniteError, ["infinity", "row 4"]),
    "nan in a tensor": (torch.from_numpy(with_value(9, np.nan)), NonFiniteError, ["NaN", "row 9"]),
    "nan in float16": (with_value(9, np.nan).astype(np.float16), NonFiniteError, ["NaN", "row 9"]),
    "nan in a list": (with_value(3, np.nan).tolist(), NonFiniteError, ["NaN", "row 3"]),
    "None in a cell": ([[1, 2, None, 4, 5]] * 30, NonFiniteError, ["NaN", "row 0, column 2", "impute"]),
    "None in an object column": (
        frame(**{c: [1.0, None] * 15 for c in "abcde"}).astype(object).to_numpy(),
        NonFiniteError,
        ["NaN", "row 1, column 0", "15 of 30"],
    ),
    "NA in a column": (
        pd.DataFrame({c: pd.array([1, None] * 15, dtype="Int64") for c in "abcde"}).to_numpy(na_value=np.nan),
        NonFiniteError,
        ["NaN", "row 1"],
    ),
    "wrong width": (X[:, :4], InputError, ["4 features", "expecting 5"], LEARN[1:] + ASK),
    "wrong width in a tensor": (
        torch.from_numpy(X[:, :4]),
        InputError,
        ["4 features", "expecting 5"],
        LEARN[1:] + ASK,
    ),
    "no rows": (X[:0], InputError, ["0 sample(s)"]),
    "no rows in a tensor": (torch.zeros(0, 5), InputError, ["(0, 5)"]),
    "no columns": (X[:, :0], InputError, ["0 feature(s)", "(30, 0)"]),
    "an empty list": ([], InputError, ["Expected 2D array"]),
    "one axis": (X[:, 0], InputError, ["Expected 2D array", "reshape"]),
    "one axis in a tensor": (torch.zeros(30), InputError, ["shape (30,)", "(n_samples, d)"]),
    "three axes": (X[None], InputError, ["dim 3", "dim <= 2"]),
    "four axes": (X[None, None], InputError, ["dim 4", "dim <= 2"]),
    "a Series": (pd.Series(X[:, 0]), InputError, ["2-dimensional container", "single column"]),
    "a range": (range(30), InputError, ["Expected 2D array", "reshape"]),
    "one number": (3, InputError, ["X is a int"]),
    "one number in an array": (np.array(3.0), InputError, ["single value", TABLE_FORM]),
    "a function": (len, InputError, ["X is a builtin_function_or_method"]),
    "a type": (int, InputError, ["X is a type"]),
    "integers in a tensor": (torch.zeros(30, 5, dtype=torch.int64), InputError, ["int64", "floating"]),
    "complex": (X.astype(complex), InputError, ["Complex data not supported"]),
    "complex in a tensor": (torch.zeros(30, 5, dtype=torch.complex64), InputError, ["complex64", "floating"]),
    "eight bits in a tensor": (torch.zeros(30, 5).to(torch.float8_e4m3fn), InputError, ["float8", "floating"]),
    "dates": (np.zeros((30, 5), "M8[s]"), InputError, ["dates or times", "X.min()"]),
    "time spans": (np.zeros((30, 5), "m8[s]"), InputError, ["dates or times"]),
    "columns of dates": (
        pd.DataFrame({c: pd.date_range("2020", periods=30) for c in "abcde"}),
        InputError,
        ["dates or times"],
    ),
    "a structured array": (np.zeros(30, [("a", float), ("b", float)]), InputError, ["structured", "array of numbers"]),
    "a np.matrix": (np.asmatrix(X), InputError, ["np.asarray(X)"]),
    "sparse": (sp.csr_matrix(X), InputError, ["X is sparse", "X.toarray()"]),
    "a sparse array": (sp.coo_array(X), InputError, ["X is sparse", "X.toarray()"]),
    "a sparse tensor": (torch.eye(30, 5).to_sparse(), InputError, ["sparse tensor", "X.to_dense()"]),
    "a tensor without values": (torch.zeros(30, 5, device="meta"), InputError, ["'meta'", "no values"]),
    "texts": (["some text"] * 30, InputError, ["could not convert string"]),
    "words among numbers": ([[1, 2, "x", 4, 5]] * 30, InputError, ["could not convert string", "'x'"]),
    "one text": ("some text", InputError, ["X is one str", "[x]"]),
    "bytes": (b"some text", InputError, ["X is one bytes"]),
    "a path": (pathlib.Path("rows.csv"), InputError, ["X is one", "Path"]),
    "one image": (Image.new("L", (5, 30)), InputError, ["X is one image"]),
    "ragged rows": ([[1, 2, 3, 4, 5], [1, 2]] * 15, InputError, ["inhomogeneous"]),
    "numbers beyond floats": ([[10**400] * 5] * 30, InputError, ["too large"]),
    "a dict": ({"a": X[:, 0]}, InputError, ["X is a dict with keys ['a']", "X['KEY']"]),
    "a set": ({1.0, 2.0}, InputError, ["X is a set", "has no order", "list"]),
    "a Hugging Face dataset": (dataset(x=X.tolist()), InputError, ["X is a Dataset", "ready features", "as_indexable"]),
    "a DatasetDict": (datasets.DatasetDict(train=dataset(x=[1])), InputError, ["keys ['train']", "choose one"]),
    "a TensorDataset": (
        torch.utils.data.TensorDataset(torch.from_numpy(X)),
        InputError,
        ["X is a TensorDataset", "ready features"],
    ),
    # scikit-learn asks its estimators for this type and message, see check_dtype_object.
    "a dict in a cell": ([[{"a": 1}, 2, 3, 4, 5]] * 30, TypeError, ["argument must be a string or a", "number"]),
    "nothing": (None, InputError, ["X is None"]),
    "samples that are read once": (
        Fresh(lambda: (x for x in X)),
        InputError,
        ["X is a generator", "y and sample_weight must be None", "(X, y)"],
        LEARN,
    ),
    "samples that are read once, to predict": (
        Fresh(lambda: (x for x in X)),
        InputError,
        ["X is a generator", "read once", "fit and partial_fit"],
        ASK,
    ),
    "a DataLoader": (
        torch.utils.data.DataLoader(list(X)),
        InputError,
        ["X is a DataLoader", "y and sample_weight must be None"],
        LEARN,
    ),
    "a DataLoader to predict": (
        torch.utils.data.DataLoader(list(X)),
        InputError,
        ["X is a DataLoader", "read once", "fit and partial_fit"],
        (*ASK, "novelty_score", "predict_log_proba"),
    ),
}

# A module in memory that reads arrays.
MODULE = {
    name: ROWS[name]
    for name in ("nan", "infinite", "wrong width", "no rows", "complex", "dates", "sparse", "a sparse tensor", "a dict")
} | {
    "nan beyond tables": (np.full((3, 5, 1), np.nan), NonFiniteError, ["X[0]", "float32", "values are finite"]),
    "rows of different lengths": ([np.ones(2), np.ones(3)], InputError, ["different shapes", "preprocess"]),
    "numbers in strings": (X.astype(str), InputError, ["not compatible", "numeric"]),
    "objects": ([np.array([None])] * 3, InputError, ["X[0]", "ndarray is not a tensor"]),
    "a set": ({1.0, 2.0}, InputError, ["X is a set", "has no order"]),
    "a tensor without values": (torch.zeros(3, 5, device="meta"), InputError, ["'meta'", "no values"]),
    "one number": (np.array(3.0), InputError, ["single value"]),
}

# ``fit`` of features looks at the first sample alone, and may see another width.
FEATURES = {name: (*MODULE[name][:3], ("transform",)) for name in ("wrong width", "rows of different lengths")}

BAD_TEXTS = {
    "none": ([*TEXTS[:4], None, "x"], InputError, ["X[4] is None", "expected str", "fill them"]),
    "nan": ([*TEXTS[:2], float("nan"), *TEXTS[3:]], InputError, ["X[2] is nan (float)", "expected str", "fill them"]),
    "NA in a Series": (pd.Series([*TEXTS[:5], pd.NA], dtype="string"), InputError, ["X[5] is", "drop such samples"]),
    "number": ([*TEXTS[:5], 3.5], InputError, ["X[5] is 3.5 (float)", "str(x)"]),
    "integers": (list(range(6)), InputError, ["X[0] is 0 (int)", "str(x)"]),
    "bytes": ([b"oak", *TEXTS[1:]], InputError, ["X[0]", "decode"]),
    "an array of bytes": (np.array(TEXTS, dtype="S"), InputError, ["X[0]", "x.decode('utf-8')"]),
    "half a character": ([*TEXTS[:5], "oak \ud83c"], InputError, ["X[5]", "half a character", r"'\ud83c'", "4"]),
    "lists of words": ([["oak", "elm"]] * 6, InputError, ["X[0] is ['oak', 'elm'] (list)"]),
    "dicts": ([{"text": "oak"}] * 6, InputError, ["X[0] is {'text': 'oak'} (dict)"]),
    "dates": (np.zeros(6, "M8[s]"), InputError, ["X[0]", "datetime64", "str(x)"]),
    "one text": ("oak tree", InputError, ["X is one str", "[x]"]),
    "none at all": ([], InputError, ["0 samples"]),
    "no text in an array": (np.array([], dtype=object), InputError, ["0 samples"]),
    "a table": (X[:6], InputError, ["shape (6, 5)", "backbone=None"]),
    "two columns": (frame(a=TEXTS, b=TEXTS), InputError, ["2 columns (a, b)", "X['NAME']", "ColumnTransformer"]),
    "two columns in an array": (np.array([TEXTS, TEXTS]).T, InputError, ["(6, 2)", "X[:, j]"]),
    "images": ([Image.new("RGB", (4, 4))] * 6, InputError, ["X[0]", "Image", "expected str"]),
    "an array of images": (np.zeros((6, 8, 8), np.uint8), InputError, ["(6, 8, 8)", "expected a list or array of str"]),
    "paths": ([pathlib.Path("a.txt")] * 6, InputError, ["X[0]", "Path", "expected str"]),
    "a dict": ({"text": TEXTS}, InputError, ["X is a dict with keys ['text']", "X['KEY']"]),
    "a set": (set(TEXTS), InputError, ["X is a set", "has no order", "list"]),
    "sparse": (sp.csr_matrix(X[:6]), InputError, ["X is sparse", "X.toarray()"]),
    "a DatasetDict": (datasets.DatasetDict(train=dataset(text=TEXTS)), InputError, ["keys ['train']", "choose one"]),
    "a dataset of two columns": (dataset(a=TEXTS, b=TEXTS), InputError, ["Which column", "['a', 'b']"]),
    "nothing": (None, InputError, ["X is None"]),
    "one number": (3, InputError, ["X is a int"]),
    "texts that are read once": (
        Fresh(lambda: iter(TEXTS)),
        InputError,
        ["read only once", "fit and partial_fit"],
        ASK,
    ),
    "a DataLoader": (torch.utils.data.DataLoader(TEXTS), InputError, ["DataLoader", "read only once"], ASK),
}

BAD_IMAGES = {
    "none": ([Image.new("L", (2, 2))] * 3 + [None] * 3, InputError, ["X[3] is None", "an image or a path"]),
    "nan": ([float("nan")] * 6, InputError, ["X[0] is nan (float)", "drop such samples"]),
    "integers": (list(range(6)), InputError, ["X[0] is 0 (int)", "PIL images, paths, arrays or tensors"]),
    "texts": (TEXTS, InputError, ["X[0]", "'oak' does not exist"]),
    "lists": ([[[1, 2], [3, 4]]] * 6, InputError, ["X[0]", "list is not an image", "an array"]),
    "dicts": ([{"text": "oak"}] * 6, InputError, ["X[0]", "a dict with keys ['text'] is not an image", "'bytes'"]),
    "open files": ([io.BytesIO(b"x")] * 6, InputError, ["X[0]", "cannot read image file"]),
    "bytes that are no image": ([b"no image"] * 6, InputError, ["X[0]", "cannot identify"]),
    "names with a null": (["a\0b"] * 6, InputError, ["X[0]", "null byte"]),
    "names that are no text": (["\udcff.png"] * 6, InputError, ["X[0]", "does not exist"]),
    "names without end": (["x" * 5000] * 6, InputError, ["X[0]", "too long"]),
    "names of nothing": ([""] * 6, InputError, ["X[0]", "''", "does not exist"]),
    "complex pixels": (np.zeros((6, 8, 8), complex), InputError, ["X[0]", "complex128"]),
    "pixels of objects": ([np.array([[None]])] * 6, InputError, ["X[0]", "dtype object"]),
    "pixels that are dates": (np.zeros((6, 8, 8), "M8[s]"), InputError, ["X[0]", "datetime64"]),
    "pixels beyond one": (np.full((6, 8, 8), 3.5), InputError, ["X[0]", "from 3.5 to 3.5", "[0, 1]"]),
    "pixels that are nan": (np.full((6, 8, 8), np.nan), InputError, ["X[0]", "nan"]),
    "negative pixels": (np.full((6, 8, 8), -3), InputError, ["X[0]", "from -3 to -3"]),
    "pixels of 32 bits": (np.full((6, 8, 8), 2**20), InputError, ["X[0]", "8 or 16 bits"]),
    "no pixels": ([np.zeros((0, 4, 3), np.uint8)] * 6, InputError, ["X[0]", "no pixels"]),
    "five axes": (np.zeros((6, 1, 2, 8, 8)), InputError, ["(6, 1, 2, 8, 8)", "(n, h, w, c)"]),
    "two channels": (np.zeros((6, 2, 8, 8)), InputError, ["1, 3 or 4 channels"]),
    "one image": (Image.new("L", (5, 5)), InputError, ["X is one image", "[image]"]),
    "one array": (np.zeros((8, 8, 3)), InputError, ["(8, 8, 3), one image", "X[None]"]),
    "one tensor": (torch.zeros(3, 8, 8), InputError, ["one image or many grey ones", "X[None]"]),
    "flat pixels": (X[:6], InputError, ["shape (6, 5)", "reshape(n, h, w)", "backbone=None"]),
    "a sparse tensor": (torch.zeros(6, 8, 8).to_sparse(), InputError, ["sparse tensor", "X.to_dense()"]),
    "sparse tensors": ([torch.zeros(8, 8).to_sparse()] * 6, InputError, ["X[0]", "sparse", "dense"]),
    "tensors without values": ([torch.zeros(8, 8, device="meta")] * 6, InputError, ["X[0]", "meta"]),
    "a dict": ({"image": [1]}, InputError, ["X is a dict with keys ['image']", "X['KEY']"]),
    "a set": ({"a.png"}, InputError, ["X is a set", "has no order"]),
    "one folder": ("photographs", InputError, ["X is one str", "image_folder(path)"]),
    "two columns": (frame(a=TEXTS, b=TEXTS), InputError, ["2 columns (a, b)", "X['NAME']"]),
    "none at all": ([], InputError, ["0 samples"]),
    "nothing": (None, InputError, ["X is None"]),
    "a DatasetDict": (datasets.DatasetDict(train=dataset(text=TEXTS)), InputError, ["keys ['train']", "choose one"]),
    "a DataLoader": (torch.utils.data.DataLoader(TEXTS), InputError, ["DataLoader", "read only once"], ASK),
}

# name of a file: what is said of it
BAD_FILES = {
    "cut.jpg": ["truncated"],
    "cut.png": ["truncated"],
    "cut.gif": ["cannot read"],
    "cut.webp": ["cannot read"],
    "text.jpg": ["cannot identify"],
    "drawing.svg": ["cannot identify"],
    "empty.png": ["cannot identify"],
    "missing.jpg": ["does not exist"],
    "folder.png": ["is a folder", "image_folder"],
    "bomb.png": ["exceeds limit", "decompression bomb"],
    "floats.tif": ["from 7.5 to 7.5", "[0, 1]"],
}


def bad_files(methods):
    for name, fragments in BAD_FILES.items():
        for method in methods:

            def call(clf, files, name=name, method=method):
                paths = [str(files / f"{i}.jpg") for i in range(6)]
                paths[3] = str(files / name)
                return getattr(clf, method)(paths, *(() if method in ASK else (KINDS,)))

            yield Case("images", f"{name}-{method}", call, InputError, ("X[3]", pathlib.Path(name), *fragments))


LABELS_AND_WEIGHTS = {
    "fewer labels": ({"y": Y[:29]}, InputError, ["30 samples", "29"]),
    "more labels": ({"y": np.r_[Y, Y]}, InputError, ["30 samples", "60"]),
    "empty labels": ({"y": []}, InputError, ["30 samples", "y has 0"]),
    "no labels": ({"y": None}, InputError, ["requires y"]),
    "continuous labels": ({"y": X[:, 0]}, InputError, ["continuous"]),
    "nan labels": ({"y": np.where(Y == 1, np.nan, Y)}, InputError, ["NaN"]),
    "infinite labels": ({"y": np.where(Y == 1, np.inf, Y)}, InputError, ["infinity"]),
    "nan among strings": ({"y": ["a"] * 7 + [float("nan")] + ["b"] * 22}, InputError, ["NaN", "y[7] is nan", "drop"]),
    "None among labels": ({"y": [*Y[:5].tolist(), None, *Y[6:].tolist()]}, InputError, ["y[5] is None", "drop"]),
    "None among strings": ({"y": [None, *["a"] * 29]}, InputError, ["y[0] is None", "drop"]),
    "NA among labels": ({"y": pd.Series(["a", None] * 15, dtype="string")}, InputError, ["y[1] is <NA>", "drop"]),
    "no time among times": ({"y": np.array(["NaT", "2020"] * 15, "M8[Y]")}, InputError, ["y[0] is NaT", "drop"]),
    "two columns of labels": ({"y": np.c_[Y, Y]}, InputError, ["shape (30, 2)"]),
    "one-hot labels": ({"y": np.eye(3)[Y]}, InputError, ["1d array", "(30, 3)"]),
    "a frame of labels": ({"y": frame(a=Y, b=Y)}, InputError, ["shape (30, 2)"]),
    "ragged labels": ({"y": [[1], [1, 2]] * 15}, InputError, ["inhomogeneous"]),
    "labels of two kinds": ({"y": np.array(["a", 1] * 15, dtype=object)}, InputError, ["int, str", "one type"]),
    "a list of labels of two kinds": ({"y": ["a", 1] * 15}, InputError, ["y mixes labels", "int, str", "one type"]),
    "flags and names": ({"y": [True, "a"] * 15}, InputError, ["bool, str", "one type"]),
    "complex labels": ({"y": Y.astype(complex)}, InputError, ["Complex data not supported"]),
    "bytes as labels": ({"y": [b"a", b"b"] * 15}, InputError, ["bytes", "strings, integers or booleans"]),
    "decimals as labels": ({"y": [decimal.Decimal(1)] * 30}, InputError, ["label type", "Decimal", "use strings"]),
    "dates as labels": ({"y": [datetime.date(2020, 1, 1)] * 30}, InputError, ["label type", "date", "use strings"]),
    "objects as labels": ({"y": [object()] * 30}, InputError, ["label type", "object", "use strings"]),
    "a set of labels": ({"y": {0, 1, 2}}, InputError, ["y is one set", "one for each sample"]),
    "a dict of labels": ({"y": {"label": Y}}, InputError, ["y is one dict", "one for each sample"]),
    "one label": ({"y": 1}, InputError, ["1d array", "shape ()"]),
    "one name": ({"y": "a" * 30}, InputError, ["y is one str", "one for each sample"]),
    "labels that are read once": ({"y": iter(Y.tolist())}, InputError, ["y is one list_iterator"]),
    "sparse labels": ({"y": sp.csr_matrix(Y[:, None])}, InputError, ["y is sparse", "toarray"]),
    "a negative weight": (
        {"sample_weight": np.r_[[1.0] * 7, -1, [1.0] * 22]},
        InputError,
        ["[7] is -1", "forget"],
    ),
    "a nan weight": ({"sample_weight": np.r_[np.ones(7), np.nan, np.ones(22)]}, InputError, ["[7] is nan"]),
    "an infinite weight": ({"sample_weight": np.r_[np.inf, np.ones(29)]}, InputError, ["[0] is inf"]),
    "None among weights": ({"sample_weight": [1.0, None] * 15}, InputError, ["[1] is nan"]),
    "fewer weights": ({"sample_weight": np.ones(29)}, InputError, ["30 samples", "29"]),
    "no weights": ({"sample_weight": []}, InputError, ["sample_weight has 0"]),
    "weights of two axes": ({"sample_weight": np.ones((30, 2))}, InputError, ["(30, 2)", "(30,)"]),
    "ragged weights": ({"sample_weight": [[1], [1, 2]] * 15}, InputError, ["sample_weight", "inhomogeneous"]),
    "words as weights": ({"sample_weight": ["a"] * 30}, InputError, ["sample_weight must be numbers", "'a'"]),
    "one word as weight": ({"sample_weight": "balanced"}, InputError, ["sample_weight must be numbers"]),
    "complex weights": ({"sample_weight": np.ones(30, complex)}, InputError, ["must be numbers", "complex128"]),
    "dates as weights": ({"sample_weight": np.zeros(30, "M8[s]")}, InputError, ["must be numbers", "datetime64"]),
    "a dict of weights": ({"sample_weight": {0: 1.0}}, InputError, ["sample_weight is a dict", "one for each sample"]),
    "a set of weights": ({"sample_weight": {1.0}}, InputError, ["sample_weight is a set"]),
    "weights that are read once": ({"sample_weight": iter([1.0] * 30)}, InputError, ["sample_weight is a list_iter"]),
    "sparse weights": ({"sample_weight": sp.csr_matrix(np.ones((30, 1)))}, InputError, ["sample_weight is a csr"]),
    "weights beyond floats": ({"sample_weight": np.full(30, 1e308)}, NonFiniteError, ["weights", "overflow"]),
}


def labels_and_weights():
    for name, (given, error, fragments) in LABELS_AND_WEIGHTS.items():
        for method in LEARN:

            def call(clf, given=given, method=method):
                return getattr(clf, method)(X, **{"y": Y, **given})

            yield Case("rows", f"{name}-{method}", call, error, tuple(fragments))


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
    "score with other labels": (lambda clf: clf.score(X, Y.astype(str)), ValueError, ["Mix of label input types"]),
    "score with fewer weights": (lambda clf: clf.score(X, Y, [1.0]), ValueError, ["inconsistent numbers"]),
    "score of a DataLoader": (
        lambda clf: clf.score(torch.utils.data.DataLoader(list(X)), Y),
        InputError,
        ["DataLoader", "read once"],
    ),
    "an option that is none": (lambda clf: clf.set_params(alfa=3), ValueError, ["Invalid parameter 'alfa'"]),
}

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
    "half a character in a target": (["a cat", "a"], ["dog", "\udc80"], ["y[1] has half a character"]),
    "fewer targets": (["a cat", "a"], ["dog"], ["X has 2 samples and y has 1"]),
    "more targets": (["a"], ["a", "b"], ["X has 1 samples and y has 2"]),
    "no targets": (["a cat"], [], ["y has 0 samples"]),
    "no samples": ([], [], ["0 samples"]),
    "one target": (["a cat"], "dog", ["y is one str", "[x]"]),
    "a set of targets": (["a cat"], {"dog"}, ["y is a set", "has no order"]),
    "a dict of targets": (["a cat"], {"fr": ["dog"]}, ["y is a dict", "y['KEY']"]),
    "targets in two columns": (["a cat"], frame(a=["x"], b=["y"]), ["y is a DataFrame with 2 columns", "y['NAME']"]),
    "targets of two axes": (["a cat"], np.array([["x", "y"]]), ["y has shape (1, 2)", "y[:, j]"]),
    "sparse targets": (["a cat"], sp.eye_array(3), ["y is sparse"]),
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
    for name, (X, y, fragments) in table.items():
        for method in methods:

            def call(seq2seq, X=X, y=y, method=method):
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
        "texts of one token": (lambda s: s.fit(["cat", "dog"]), InputError, ["all are a single token"]),
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
    *refused("nope", "/nowhere/at/all", says="no known prefix and no existing path", error=UnknownBackboneError),
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
    "normalize": refused("l1", "auto", None, 2, [True], says="normalize must be True or False"),
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
        *refused("/nowhere/at/all", says="no existing path", error=UnknownBackboneError),
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


TABLE = [
    *samples("rows", ALL, ROWS),
    *samples("module", ALL, MODULE),
    *samples("features", RUN, MODULE | FEATURES),
    *samples("texts", ALL, BAD_TEXTS),
    *samples("encoder", ("fit", "predict"), BAD_TEXTS),
    *samples("images", ALL, BAD_IMAGES),
    *samples("pixels", ("fit", "predict"), BAD_IMAGES),
    *bad_files(ALL),
    *labels_and_weights(),
    *calls("rows", ROW_CALLS),
    *calls("frame", FRAME_CALLS),
    *samples("pairs", (*TELL, "predict"), BAD_SOURCES),
    *samples("choosing", ("predict", "choice_log_probabilities"), BAD_SOURCES),
    *bad_pairs("pairs", BAD_PAIRS, TELL),
    *bad_pairs("pairs", BAD_LEARNT_PAIRS, TELL[:5]),
    *bad_pairs("new pairs", BAD_PAIRS | BAD_LEARNT_PAIRS, ("fit", "partial_fit")),
    *bad_pairs("choosing", {name: BAD_PAIRS[name] for name in ("labels for targets", "fewer targets")}, ("score",)),
    *calls("pairs", PAIR_CALLS),
    *calls("short", SHORT_CALLS),
    *(case for kind, table in NEW_CALLS.items() for case in calls(kind, table)),
    *not_fitted(),
    *parameters(),
]


def grouped():
    """The cases of one bad thing through all methods, in one test."""
    for _, cases in itertools.groupby(TABLE, key=lambda case: str(case).rpartition("-")[0] or str(case)):
        yield list(cases)


@pytest.mark.parametrize("cases", list(grouped()), ids=lambda cases: str(cases[0]))
def test_what_cannot_be_meant_is_refused_by_name_and_changes_nothing(cases, made, files):
    kind = cases[0].kind
    estimator, known = made(kind)
    proba = estimator.predict_proba(known) if known is not None and kind != "features" else None
    for case in cases:
        given = (files,) if "files" in inspect.signature(case.call).parameters else ()
        with everything_as_before(estimator), pytest.raises(case.error) as caught:
            case.call(estimator, *given)
        for fragment in case.fragments:
            found = str(files / fragment) if isinstance(fragment, pathlib.Path) else fragment
            assert found in str(caught.value), case
        # What users of scikit-learn catch already, also where it is an error of ours.
        assert isinstance(caught.value, (ValueError, RuntimeError, TypeError)), case
    if proba is not None:
        assert np.array_equal(estimator.predict_proba(known), proba)


@pytest.mark.parametrize(("kind", "cls", "table"), [entry[:3] for entry in PARAMETERS if entry[0] != "module"])
def test_every_parameter_has_its_wrong_values_in_the_table(kind, cls, table):
    names = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    assert list(table) == [name for name in names if name in table]  # in the order of the signature
    assert set(table) == set(names)
    for name, entries in table.items():
        assert len(entries) >= 2, name  # a wrong type and a wrong value


def test_each_case_has_a_name_of_its_own_and_says_something():
    names = [str(case) for case in TABLE]
    assert len(names) == len(set(names)) >= 1000
    assert all(case.fragments and all(map(str, case.fragments)) for case in TABLE)


# What looks odd and works


def test_numbers_in_other_forms_are_the_numbers():
    wanted = FaastClassifier().fit(X, Y).predict_proba(X)
    for same in (X.astype(str), X.astype(str).tolist(), X.astype(object), np.ma.masked_array(X), list(map(list, X))):
        np.testing.assert_array_equal(FaastClassifier().fit(same, Y).predict_proba(same), wanted)
    for labels in (Y.tolist(), pd.Series(Y, index=range(29, -1, -1)), torch.from_numpy(Y), Y.astype(np.uint8)):
        np.testing.assert_array_equal(FaastClassifier().fit(X, labels).predict_proba(X), wanted)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("CMYK", "x.jpg"),
        ("YCbCr", "x.jpg"),
        ("LAB", "x.tif"),
        ("RGBA", "x.png"),
        ("LA", "x.png"),
        ("P", "x.gif"),
        ("1", "x.png"),
        ("I;16", "x.png"),
    ],
)
def test_images_of_every_mode_are_read(mode, name, made, tmp_path):
    clf, _ = made("images")
    image = Image.new(mode, (9, 7))
    more = {"save_all": True, "append_images": [Image.new("P", (9, 7), 5)]} if mode == "P" else {}
    image.save(tmp_path / name, **more)  # of an animation the first picture counts
    proba = clf.predict_proba([str(tmp_path / name), (tmp_path / name).read_bytes()])
    assert np.isfinite(proba).all()
    assert np.array_equal(proba[0], proba[1])
