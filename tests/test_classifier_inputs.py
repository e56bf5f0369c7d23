"""Bad input: a typed error that names the sample and the remedy, after which everything is as it was."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from faast_sklearn import BackboneFeatures, FaastClassifier, backbone
from faast_sklearn.errors import (
    BackboneError,
    DeviceError,
    ForgetError,
    InputError,
    MissingDependencyError,
    NonFiniteError,
    UnknownBackboneError,
)

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 5)), np.arange(30) % 3
X[np.arange(30), Y] += 2.0


def with_value(row, value, X=X):
    X = X.copy()
    X[row, 2] = value
    return X


def length_and_vowels(text):
    return torch.tensor([len(text), sum(text.count(vowel) for vowel in "aeiou"), 1.0])


def thumbnail(image):
    return torch.from_numpy(np.asarray(image.resize((2, 2)), dtype=np.float32).ravel())


TEXTS = ["oak", "elm tree", "yew", "a beech", "fir", "one birch"]
KINDS = np.array(["short", "long"] * 3)


def of_rows():
    return FaastClassifier().fit(X, Y), X


def of_texts():
    handle = backbone((torch.nn.Identity(), length_and_vowels), modality="text")
    return FaastClassifier(handle, device="cpu", batch_size=2).fit(TEXTS, KINDS), TEXTS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(6):
        Image.new("RGB", (40, 30), (40 * i, 255 * (i % 2), 0)).save(folder / f"{i}.jpg", quality=95)
    Image.fromarray(RNG.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(folder / "cut.jpg")
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.png").touch()
    return folder


def of_images(files):
    paths = [str(files / f"{i}.jpg") for i in range(6)]
    handle = backbone((torch.nn.Identity(), thumbnail))
    return FaastClassifier(handle, device="cpu", batch_size=2).fit(paths, KINDS), paths


def assert_refused(clf, samples, call, error, fragments):
    before, proba = dict(clf.__dict__), clf.predict_proba(samples)
    with pytest.raises(error) as caught:
        call(clf)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert clf.__dict__.keys() == before.keys()
    assert all(clf.__dict__[name] is value for name, value in before.items())
    assert np.array_equal(clf.predict_proba(samples), proba)
    assert isinstance(caught.value, (ValueError, RuntimeError, ImportError, TypeError))


LEARNING = ["fit", "partial_fit", "forget"]
ASKING = ["predict", "predict_proba", "decision_function"]

# name: samples that none of the methods takes, with error and what its message says
ROWS = {
    "nan": (with_value(17, np.nan), NonFiniteError, ["NaN", "row 17", "column 2", "impute"]),
    "infinite": (with_value(4, -np.inf), NonFiniteError, ["infinity", "row 4"]),
    "nan in a tensor": (torch.from_numpy(with_value(9, np.nan)), NonFiniteError, ["NaN", "row 9"]),
    "nan in float16": (with_value(9, np.nan).astype(np.float16), NonFiniteError, ["NaN", "row 9"]),
    "nan in a list": (with_value(3, np.nan).tolist(), NonFiniteError, ["NaN", "row 3"]),
    "wrong width": (X[:, :4], InputError, ["4 features", "expecting 5"]),
    "wrong width in a tensor": (torch.from_numpy(X[:, :4]), InputError, ["4 features", "expecting 5"]),
    "no rows": (X[:0], InputError, ["0 sample(s)"]),
    "no rows in a tensor": (torch.zeros(0, 5), InputError, ["(0, 5)"]),
    "an empty list": ([], InputError, ["Expected 2D array"]),
    "one axis": (X[:, 0], InputError, ["Expected 2D array", "reshape"]),
    "one axis in a tensor": (torch.zeros(30), InputError, ["shape (30,)", "(n_samples, d)"]),
    "integers in a tensor": (torch.zeros(30, 5, dtype=torch.int64), InputError, ["int64", "floating"]),
    "texts": (["some text"] * 30, InputError, ["could not convert string"]),
}


@pytest.mark.parametrize("method", LEARNING + ASKING)
@pytest.mark.parametrize("name", ROWS)
def test_rows_that_cannot_be_used(name, method):
    bad, error, fragments = ROWS[name]
    clf, samples = of_rows()
    labels = () if method in ASKING else (Y[: len(bad)],)
    if method == "fit" and "width" in name:
        return  # fit may learn from another width
    if name == "nan in a list" and method == "fit":
        fragments = ["NaN"]
    assert_refused(clf, samples, lambda clf: getattr(clf, method)(bad, *labels), error, fragments)


BAD_TEXTS = {
    "none": ([*TEXTS[:4], None, "x"], ["X[4] is None", "expected str", "fill them"]),
    "nan": ([*TEXTS[:2], float("nan"), *TEXTS[3:]], ["X[2] is nan (float)", "expected str", "fill them"]),
    "number": ([*TEXTS[:5], 3.5], ["X[5] is 3.5 (float)", "str(x)"]),
    "bytes": ([b"oak", *TEXTS[1:]], ["X[0]", "decode"]),
    "one text": ("oak tree", ["one str", "[x]"]),
    "none at all": ([], ["0 samples"]),
    "a table": (X[:6], ["shape (6, 5)", "backbone=None"]),
}


@pytest.mark.parametrize("method", LEARNING + ASKING)
@pytest.mark.parametrize("name", BAD_TEXTS)
def test_texts_that_cannot_be_used(name, method):
    bad, fragments = BAD_TEXTS[name]
    clf, samples = of_texts()
    labels = () if method in ASKING else (KINDS[: len(bad)],) if name != "one text" else (KINDS[:1].repeat(len(bad)),)
    assert_refused(clf, samples, lambda clf: getattr(clf, method)(bad, *labels), InputError, fragments)


@pytest.mark.parametrize("method", LEARNING + ASKING)
@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("cut.jpg", ["truncated"]),
        ("text.jpg", ["cannot", "text.jpg"]),
        ("empty.png", ["empty.png"]),
        ("missing.jpg", ["missing.jpg"]),
    ],
)
def test_images_that_cannot_be_read_are_named_by_index_and_path(name, fragments, method, files):
    clf, paths = of_images(files)
    bad = [*paths[:3], str(files / name), *paths[4:]]
    labels = () if method in ASKING else (KINDS,)
    fragments = ["X[3]", str(files / name), *fragments]
    assert_refused(clf, paths, lambda clf: getattr(clf, method)(bad, *labels), InputError, fragments)


LABELS_AND_WEIGHTS = {
    "fewer labels": ({"y": Y[:29]}, InputError, ["30 samples", "29"]),
    "no labels": ({"y": None}, InputError, ["requires y"]),
    "continuous labels": ({"y": X[:, 0]}, InputError, ["continuous"]),
    "nan labels": ({"y": np.where(Y == 1, np.nan, Y)}, InputError, ["NaN"]),
    "two columns of labels": ({"y": np.c_[Y, Y]}, InputError, ["shape (30, 2)"]),
    "labels of two kinds": ({"y": np.array(["a", 1] * 15, dtype=object)}, InputError, ["int, str", "one type"]),
    "a negative weight": (
        {"y": Y, "sample_weight": np.r_[[1.0] * 7, -1, [1.0] * 22]},
        InputError,
        ["[7] is -1", "forget"],
    ),
    "a nan weight": ({"y": Y, "sample_weight": np.r_[np.ones(7), np.nan, np.ones(22)]}, InputError, ["[7] is nan"]),
    "an infinite weight": ({"y": Y, "sample_weight": np.r_[np.inf, np.ones(29)]}, InputError, ["[0] is inf"]),
    "fewer weights": ({"y": Y, "sample_weight": np.ones(29)}, InputError, ["30 samples", "29"]),
    "weights of two axes": ({"y": Y, "sample_weight": np.ones((30, 2))}, InputError, ["(30, 2)", "(30,)"]),
}


@pytest.mark.parametrize("method", LEARNING)
@pytest.mark.parametrize("name", LABELS_AND_WEIGHTS)
def test_labels_and_weights_that_cannot_be_used(name, method):
    arguments, error, fragments = LABELS_AND_WEIGHTS[name]
    clf, samples = of_rows()
    assert_refused(clf, samples, lambda clf: getattr(clf, method)(X, **arguments), error, fragments)


OTHER = {
    "all weights zero": (lambda clf: clf.fit(X, Y, np.zeros(30)), InputError, ["every sample_weight is zero"]),
    "mixed declared classes": (lambda clf: clf.partial_fit(X, Y, classes=["a"]), InputError, ["one type"]),
    "mixed labels": (lambda clf: clf.partial_fit(X, Y.astype(str)), InputError, ["one type"]),
    "unknown label": (lambda clf: clf.forget(X, Y + 1), ForgetError, ["never learnt: [3]", "known are [0, 1, 2]"]),
    "forget more": (lambda clf: clf.forget(np.r_[X, X], np.r_[Y, Y]), ForgetError, ["only 10", "were learnt"]),
    "forget heavier": (lambda clf: clf.forget(X, Y, np.full(30, 1.5)), ForgetError, ["weight 15", "weight 10"]),
    "forget others": (lambda clf: clf.forget(X[:3] + 90, Y[:3]), ForgetError, ["never learnt"]),
    "squares overflow": (lambda clf: clf.partial_fit(X * 1e170, Y), NonFiniteError, ["overflow", "normalize=True"]),
    "iterator in predict": (lambda clf: clf.predict(iter([X])), InputError, ["read once", "fit and partial_fit"]),
    "loader in predict": (
        lambda clf: clf.score(torch.utils.data.DataLoader(list(X)), Y),
        InputError,
        ["DataLoader", "read once"],
    ),
    "labels beside an iterator": (lambda clf: clf.fit(iter([(X, Y)]), Y), InputError, ["must be None"]),
    "empty iterator": (lambda clf: clf.fit(iter([])), InputError, ["no batches"]),
    "iterator of samples": (lambda clf: clf.fit(zip(X, Y, strict=True)), InputError, ["Batch 0", "batch_size"]),
    "second batch of another width": (
        lambda clf: clf.fit(iter([(X, Y), (X[:, :3], Y)])),
        InputError,
        ["3 features", "expecting 5"],
    ),
    "batch with fewer labels": (lambda clf: clf.fit(iter([(X, Y), (X, Y[:9])])), InputError, ["Batch 1", "30", "9"]),
    "batch with nan": (lambda clf: clf.fit(iter([(X, Y), (with_value(2, np.nan), Y)])), NonFiniteError, ["row 2"]),
}


@pytest.mark.parametrize("name", OTHER)
def test_calls_that_cannot_be_meant(name):
    call, error, fragments = OTHER[name]
    clf, samples = of_rows()
    assert_refused(clf, samples, call, error, fragments)


PARAMETERS = {
    "solver": ({"solver": "svd"}, ValueError, ["'ridge' or 'pinv'", "'svd'"]),
    "alpha": ({"alpha": "best"}, ValueError, ["'auto'", "'best'"]),
    "negative alpha": ({"alpha": -1.0}, ValueError, ["at least 0"]),
    "nan alpha": ({"alpha": float("nan")}, ValueError, ["finite"]),
    "class weight": ({"class_weight": "even"}, ValueError, ["'balanced'", "'even'"]),
    "class weights in a list": ({"class_weight": [1, 2, 3]}, ValueError, ["dict"]),
    "negative class weight": ({"class_weight": {0: -1.0}}, ValueError, ["not negative"]),
    "device": ({"device": "tpu"}, DeviceError, ["'tpu'", "auto"]),
    "dtype": ({"backbone": torch.nn.Identity(), "dtype": "int8"}, DeviceError, ["'int8'", "float32"]),
    "batch size": (
        {"backbone": torch.nn.Identity(), "device": "cpu", "batch_size": 0},
        ValueError,
        ["batch_size", "0"],
    ),
    "backbone": ({"backbone": "bundled:minilm"}, UnknownBackboneError, ["did you mean bundled:minilm-l6"]),
    "prefix": ({"backbone": "tim:resnet50"}, UnknownBackboneError, ["timm:resnet50"]),
    "timm name": ({"backbone": "timm:resnet5O", "device": "cpu"}, UnknownBackboneError, ["resnet50"]),
    "kind of backbone": ({"backbone": 3}, UnknownBackboneError, ["int", "nn.Module"]),
    "download": ({"backbone": "hf:nobody/nothing", "device": "cpu"}, BackboneError, ["nobody/nothing"]),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_that_do_not_exist_are_refused_in_fit_and_not_before(name):
    parameters, error, fragments = PARAMETERS[name]
    clf = FaastClassifier(**parameters)
    params = dict(clf.__dict__)
    with pytest.raises(error) as caught:
        clf.fit(X.astype(np.float32), Y)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert clf.__dict__ == params
    if "backbone" in parameters and "batch_size" not in parameters and "dtype" not in parameters:
        with pytest.raises(error):
            BackboneFeatures(**parameters).fit(X)


def test_missing_packages_come_with_the_line_that_installs_them(monkeypatch):
    clf, samples = of_rows()
    clf.set_params(verbose=1)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tqdm", None)
        with pytest.raises(MissingDependencyError, match="pip install tqdm"):
            clf.fit(X, Y)
    clf.set_params(verbose=0)
    assert clf.predict(samples).shape == (30,)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match="pip install timm"):
        FaastClassifier("timm:resnet18", device="cpu").fit(X, Y)
