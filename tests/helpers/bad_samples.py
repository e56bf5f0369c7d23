"""Samples, labels and weights that cannot be meant."""

import datetime
import decimal
import io
import pathlib

import datasets
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from helpers.bad_inputs import ASK, KINDS, LEARN, TEXTS, Case, Fresh, X, Y, dataset, frame, with_value
from PIL import Image

from faast_sklearn.errors import (
    InputError,
    NonFiniteError,
)

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
    "three axes": (X[None], InputError, ["dim 3", "<= 2"]),
    "four axes": (X[None, None], InputError, ["dim 4", "<= 2"]),
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
    "a np.matrix": (X.view(np.matrix), InputError, ["np.asarray(X)"]),
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
    "unpaired surrogate": ([*TEXTS[:5], "oak \ud83c"], InputError, ["X[5]", "unpaired surrogate", r"'\ud83c'", "4"]),
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
