"""What was saved and loaded is what was never saved: to the last bit, and for everything that comes after."""

import dataclasses
import json
import os
import pickle

import numpy as np
import pytest
import torch
from helpers.data import IMAGES, SMALL_IMAGES, TEXTS, TOPICS
from helpers.seq2seq import chosen, logits, opened, pairs, some
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from faast_sklearn import BackboneFeatures, FaastClassifier, FaastSeq2Seq, FeatureCache, backbone, load, merge, save
from faast_sklearn.backbones import release_backbones
from faast_sklearn.backbones.device import available_devices
from faast_sklearn.backbones.open_backbones import open_count
from faast_sklearn.errors import SavedFileError, SavedFileWarning
from faast_sklearn.language.fast_weights import FastWeights
from faast_sklearn.language.problem import SolvedWeights
from faast_sklearn.persistence.archive import read_archive, write_archive
from faast_sklearn.readout import LinearReadout
from faast_sklearn.readout.class_vectors import ClassValues
from faast_sklearn.readout.problem import ReadoutProblem, Settings, SolvedReadout
from faast_sklearn.solvers.filters import Solution

DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS, LABELS = DIGITS[:240], LABELS[:240]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saved.safetensors"


def through(estimator, path, **options):
    save(estimator, path, **options)
    return load(path)


def fitted_state(estimator):
    """Attributes that users see, of kinds that can be compared."""
    names = ("classes_", "n_features_in_", "n_samples_seen_", "feature_names_in_", "alpha_", "solver_")
    return {name: np.asarray(getattr(estimator, name)).tolist() for name in names if hasattr(estimator, name)}


ROWS = {
    "ridge": {},
    "pinv": {"solver": "pinv", "alpha": 0.8, "normalize": True, "fit_intercept": False},
    "fixed alpha": {"alpha": 2.0, "class_weight": {0: 2.0, 3: 0.5}},
    "values": {"values": np.random.default_rng(0).normal(size=(10, 64)), "prior_strength": 20.0},
    "a chosen prior": {"values": {k: np.eye(10, 64)[k] + 0.1 for k in range(10)}, "prior_strength": "auto"},
}


@pytest.mark.parametrize("options", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("solved", [False, True], ids=["unsolved", "solved"])
def test_a_loaded_classifier_goes_on_as_if_it_had_never_stopped(options, solved, path):
    ours = FaastClassifier(**options).fit(DIGITS[:100], LABELS[:100]).partial_fit(DIGITS[100:140], LABELS[100:140])
    if solved:
        ours.predict(DIGITS[:2])
    theirs = through(ours, path)
    for later in (
        lambda clf: clf,
        lambda clf: clf.partial_fit(DIGITS[140:], LABELS[140:]),
        lambda clf: clf.forget(DIGITS[:30], LABELS[:30]),
    ):
        later(ours), later(theirs)
        for method in ("predict", "decision_function", "predict_proba", "predict_log_proba", "novelty_score"):
            np.testing.assert_array_equal(getattr(theirs, method)(DIGITS), getattr(ours, method)(DIGITS))
        np.testing.assert_array_equal(theirs.coef_, ours.coef_)
        assert fitted_state(theirs) == fitted_state(ours)
        assert theirs.classes_.dtype == ours.classes_.dtype
    assert repr(theirs) == repr(ours)


def test_a_symmetric_scatter_comes_back_whole(path):
    X = np.random.default_rng(0).standard_normal((3000, 6))
    ours = FaastClassifier().fit(X, X[:, 0] > 0)
    matrix = ours.moments_.scatter.matrix()
    assert matrix.equal(matrix.T)
    assert through(ours, path).moments_.scatter.matrix().equal(matrix)


def test_a_dense_scatter_is_written_as_one_triangle(path):
    X, y = load_digits(return_X_y=True)
    X, y = np.tile(X, (3, 1)), np.tile(y, 3)
    ours = FaastClassifier().fit(X, y)
    theirs = through(ours, path)
    save(ours, path.with_name("weights"), moments=False)
    others = path.with_name("weights").stat().st_size + 8 * 10 * 64  # means of the classes
    assert path.stat().st_size < others + 8 * 64 * 65 / 2 + 3_000
    for clf in (ours, theirs):
        clf.partial_fit(X[:50], y[:50])
    np.testing.assert_array_equal(theirs.coef_, ours.coef_)


def test_a_class_without_examples_is_kept(path):
    ours = FaastClassifier().partial_fit(DIGITS, LABELS, classes=np.arange(12))
    theirs = through(ours, path)
    assert theirs.classes_.tolist() == list(range(12))
    np.testing.assert_array_equal(theirs.decision_function(DIGITS), ours.decision_function(DIGITS))
    for clf in (ours, theirs):
        clf.forget(DIGITS, LABELS)
    with pytest.raises(NotFittedError, match="has been forgotten"):
        through(ours, path).predict(DIGITS)


LABEL_KINDS = {
    "bool": LABELS % 2 == 0,
    "int32": LABELS.astype(np.int32),
    "uint8": LABELS.astype(np.uint8),
    "whole floats": LABELS.astype(float),
    "strings": np.array([f"digit é{k}" for k in LABELS]),
    "objects": np.array([f"digit {k}" for k in LABELS], dtype=object),
}


@pytest.mark.parametrize("y", LABEL_KINDS.values(), ids=LABEL_KINDS)
def test_labels_come_back_as_they_were(y, path):
    ours = FaastClassifier().fit(DIGITS, y)
    theirs = through(ours, path)
    assert theirs.classes_.dtype == ours.classes_.dtype
    found = theirs.predict(DIGITS)
    np.testing.assert_array_equal(found, ours.predict(DIGITS))
    assert type(found[0]) is type(ours.predict(DIGITS)[0])


def test_column_names_are_kept(path):
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(DIGITS[:, 20:24], columns=["a", "b", "c", "d"])
    theirs = through(FaastClassifier().fit(X, LABELS), path)
    assert theirs.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="feature names"):
        theirs.predict(X.rename(columns={"a": "z"}))


BACKBONES = {
    "texts": (FaastClassifier("bundled:minilm-l6", dtype=torch.float32, verbose=0, batch_size=8), TEXTS, TOPICS),
    "names": (FaastClassifier("bundled:minilm-l6", values="text", prior_strength="auto"), TEXTS, TOPICS),
    "images": (FaastClassifier(SMALL_IMAGES, cache="memory"), IMAGES, np.arange(len(IMAGES)) // 6),
}


@pytest.mark.parametrize(("estimator", "X", "y"), BACKBONES.values(), ids=BACKBONES)
def test_a_backbone_is_named_and_opened_only_when_it_is_needed(estimator, X, y, path):
    ours = clone(estimator).fit(X[::2], y[::2])
    expected = ours.predict_proba(X)
    save(ours, path)
    release_backbones()
    before = open_count()
    theirs = load(path)
    assert open_count() == before
    np.testing.assert_array_equal(theirs.predict_proba(X), expected)
    unbroken = clone(estimator).fit(X[::2], y[::2]).partial_fit(X[1::2], y[1::2])
    np.testing.assert_array_equal(theirs.partial_fit(X[1::2], y[1::2]).coef_, unbroken.coef_)


def test_zero_shot_classifiers_without_examples_are_kept(path):
    ours = FaastClassifier("bundled:minilm-l6", values="text").fit(None, ["fruit", "vehicle"])
    theirs = through(ours, path)
    for clf in (ours, theirs):
        clf.partial_fit(["a truck", "an apple"], ["vehicle", "fruit"])
    np.testing.assert_array_equal(theirs.predict_proba(TEXTS), ours.predict_proba(TEXTS))


LANGUAGE = {
    "residual": {},
    "refined": {"refined": True},
    "embedding": {"target": "embedding", "solver": "pinv", "memory_weight": 0.9},
    "choices": {"choices": ["cat", "dog"], "template": "{source} then {target}"},
    "generation": {"num_beams": 2, "max_new_tokens": 4},
    "frozen": {"memory_weight": 0},
}


@pytest.mark.parametrize("options", LANGUAGE.values(), ids=LANGUAGE)
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_loaded_language_model_goes_on_as_if_it_had_never_stopped(options, name, path):
    model, data, more = opened(name), pairs(24), pairs(9, seed=1)
    if "choices" in options:
        data, more = chosen(data, options["choices"]), chosen(more, options["choices"])
    once = "refined" in options
    options = {"batch_size": 6, "max_new_tokens": 3, **options}
    options.pop("refined", None)
    ours = FaastSeq2Seq(model, **options).fit(*data)
    if once:
        ours.refine(*data)
    save(ours, path)
    theirs = load(path, backbone=model)
    for later in (
        lambda s: s,
        lambda s: s if once else s.partial_fit(*more),
        lambda s: s if once else s.forget(*some(data, range(5))),
    ):
        later(ours), later(theirs)
        torch.testing.assert_close(logits(theirs), logits(ours), rtol=0, atol=0)
        assert theirs.predict(data[0][:5]).tolist() == ours.predict(data[0][:5]).tolist()
        assert theirs.token_scores(*more) == ours.token_scores(*more)
        assert (theirs.alpha_, theirs.memory_weight_, theirs.held_out_loss_) == (
            ours.alpha_,
            ours.memory_weight_,
            ours.held_out_loss_,
        )
        assert (theirs.n_samples_seen_, theirs.n_tokens_seen_) == (ours.n_samples_seen_, ours.n_tokens_seen_)


# Without moments, in folders, with weights


@pytest.mark.parametrize("options", ROWS.values(), ids=ROWS)
def test_without_moments_a_file_is_smaller_and_predicts_the_same(options, path):
    ours = FaastClassifier(**options).fit(DIGITS, LABELS)
    save(ours, path)
    whole = path.stat().st_size
    theirs = through(ours, path, moments=False)
    assert path.stat().st_size < whole / 2
    np.testing.assert_array_equal(theirs.predict_proba(DIGITS), ours.predict_proba(DIGITS))
    again = through(theirs, path)
    np.testing.assert_array_equal(again.predict_proba(DIGITS), ours.predict_proba(DIGITS))
    assert again.n_samples_seen_ == len(DIGITS)
    pickle.loads(pickle.dumps(again)).predict(DIGITS)
    for call in (
        lambda: again.partial_fit(DIGITS, LABELS),
        lambda: again.forget(DIGITS[:3], LABELS[:3]),
        lambda: again.novelty_score(DIGITS),
        lambda: again.moments_,
        lambda: merge([again, ours]),
        lambda: merge([ours, again]),
    ):
        with pytest.raises(SavedFileError, match="saved with moments=False"):
            call()
    np.testing.assert_array_equal(again.predict_proba(DIGITS), ours.predict_proba(DIGITS))
    again.fit(DIGITS[:50], LABELS[:50]).partial_fit(DIGITS[50:], LABELS[50:])
    assert again.n_samples_seen_ == len(DIGITS)


def test_a_language_model_without_moments(path):
    model, data = opened("llama"), pairs(24)
    ours = FaastSeq2Seq(model).fit(*data)
    save(ours, path, moments=False)
    theirs = load(path, backbone=model)
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=0, atol=0)
    for call in (lambda: theirs.partial_fit(*data), lambda: theirs.forget(*data), lambda: merge([ours, theirs])):
        with pytest.raises(SavedFileError, match="saved with moments=False"):
            call()
    assert theirs.n_samples_seen_ == 24


def test_folders_and_files(tmp_path):
    ours = FaastClassifier().fit(DIGITS, LABELS)
    ours.save_pretrained(tmp_path / "one")
    save(ours, tmp_path / "one")
    save(ours, f"{tmp_path / 'two'}{os.sep}")
    save(ours, str(tmp_path / "three"))
    assert (tmp_path / "three").is_file()
    for place in ("one", "two", "three", "one/faast.safetensors"):
        for loaded in (load(tmp_path / place), FaastClassifier.from_pretrained(tmp_path / place)):
            np.testing.assert_array_equal(loaded.coef_, ours.coef_)
    with pytest.raises(SavedFileError, match="holds a FaastClassifier, not a FaastSeq2Seq"):
        FaastSeq2Seq.from_pretrained(tmp_path / "one")
    with pytest.raises(SavedFileError, match=r"is a file, expected a folder"):
        save(ours, tmp_path / "three", backbone=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SavedFileError, match=r"no faast\.safetensors"):
        load(tmp_path / "empty")
    with pytest.raises(OSError, match="missing"):
        save(ours, tmp_path / "missing" / "file")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")


def test_weights_travel_with_the_file(tmp_path):
    ours = FaastClassifier(backbone("bundled:minilm-l6", max_length=16)).fit(TEXTS, TOPICS)
    save(ours, tmp_path / "here", backbone=True)
    os.rename(tmp_path / "here", tmp_path / "there")
    theirs = load(tmp_path / "there")
    assert theirs.backbone.spec.startswith(f"hf:{tmp_path.resolve()}")
    np.testing.assert_array_equal(theirs.predict_proba(TEXTS), ours.predict_proba(TEXTS))
    images = FaastClassifier(SMALL_IMAGES).fit(IMAGES, np.arange(len(IMAGES)) // 6)
    save(images, tmp_path / "there", backbone=True)
    assert len(list((tmp_path / "there").glob("backbone-*"))) == 1  # those of the texts have gone
    theirs = load(tmp_path / "there")
    np.testing.assert_array_equal(theirs.predict_proba(IMAGES), images.predict_proba(IMAGES))
    (weights,) = (tmp_path / "there").glob("backbone-*/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(SavedFileError, match=r"weights beside the saved file are damaged.*model\.safetensors"):
        load(tmp_path / "there")
    weights.unlink()
    with pytest.raises(SavedFileError, match="missing"):
        load(tmp_path / "there")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SavedFileError, match="is a link"):
        load(tmp_path / "there")


def test_weights_of_a_local_folder_travel_and_pickled_ones_do_not(tmp_path, tiny_folder):
    folder = tiny_folder("bert")
    ours = FaastClassifier(folder, device="cpu").fit(TEXTS, TOPICS)
    save(ours, tmp_path / "kept", backbone=True)
    np.testing.assert_array_equal(load(tmp_path / "kept").predict_proba(TEXTS), ours.predict_proba(TEXTS))
    save(ours, tmp_path / "file")
    assert folder.encode() not in (tmp_path / "file").read_bytes()
    with pytest.raises(SavedFileError, match=r"was a local folder or file when this was saved.*load\(path, backbone="):
        load(tmp_path / "file")
    np.testing.assert_array_equal(load(tmp_path / "file", backbone=folder).predict(TEXTS), ours.predict(TEXTS))
    with pytest.raises(SavedFileError, match="cannot be stored"):
        save(FaastClassifier(torch.nn.Identity()).fit(DIGITS, LABELS), tmp_path / "module", backbone=True)
    assert not list((tmp_path / "module").glob(".*"))


# What must not be in a file


def test_modules_functions_devices_and_places_are_never_written(tmp_path, path):
    class Secret(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1).float()

    ours = FaastClassifier(Secret(), device="cpu", cache=FeatureCache(tmp_path / "features")).fit(DIGITS, LABELS)
    save(ours, path)
    text = path.read_bytes().split(b"}}")[0]
    for never in (b"pickle", b"cpu", str(tmp_path).encode(), b'features"'):
        assert never not in text
    with pytest.raises(SavedFileError, match=r"backbone was a Secret in memory .* load\(path, backbone=\.\.\.\)"):
        load(path)
    theirs = load(path, backbone=ours.backbone, device="cpu")
    np.testing.assert_array_equal(theirs.predict_proba(DIGITS), ours.predict_proba(DIGITS))
    assert theirs.cache is None
    model = opened("llama")
    save(FaastSeq2Seq(model, template=lambda source: f"{source} then").fit(*pairs(12)), path)
    with pytest.raises(SavedFileError, match=r"template was a function .* load\(path, template=\.\.\.\)"):
        load(path, backbone=model)
    load(path, backbone=model, template="{source} {target}").predict(["the cat"])
    with pytest.raises(TypeError, match="no parameter 'colour'; it has alpha, backbone"):
        load(path, backbone=model, template="{source} {target}", colour=1)


@pytest.mark.skipif(available_devices()[0] == "cpu", reason="no accelerator")
def test_what_was_learnt_on_a_device_loads_on_the_host_and_back(path):
    device = available_devices()[0]
    ours = FaastClassifier(device=device).fit(DIGITS, LABELS)
    theirs = through(ours, path)
    assert theirs.device is None
    assert theirs.moments_.scatter.device.type == "cpu"
    np.testing.assert_allclose(theirs.predict_proba(DIGITS), ours.predict_proba(DIGITS), rtol=1e-8, atol=1e-12)
    there = load(path, device=device).partial_fit(DIGITS, LABELS)
    assert there.n_samples_seen_ == 2 * len(DIGITS)


def test_labels_that_json_does_not_know_are_refused_and_the_old_file_stays(path):
    ours = FaastClassifier().fit(DIGITS, LABELS)
    save(ours, path)
    before = path.read_bytes()
    days = np.datetime64("2020-01-01") + LABELS
    with pytest.raises(SavedFileError, match=r"types \['date'\] cannot be saved"):
        save(FaastClassifier().fit(DIGITS, days), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


# Versions and fingerprints


def changed(path, change):
    """Change the manifest of a file and give it the checksum that belongs to it."""
    manifest, tensors = read_archive(path)
    change(manifest, tensors)
    write_archive(path, manifest, tensors)


def test_other_versions_are_told(path):
    save(FaastClassifier().fit(DIGITS, LABELS), path)
    changed(path, lambda m, t: m["versions"].update(torch="1.13.1", faast_sklearn="0.0.1"))
    with pytest.warns(SavedFileWarning, match=r"saved with .*faast_sklearn 0\.0\.1, here 0\.1.*") as caught:
        loaded = load(path)
    assert "torch 1.13.1" in str(caught[0].message)
    assert caught[0].filename == __file__
    loaded.predict(DIGITS)


def test_other_weights_are_told_once_and_the_same_in_another_precision_are_not(path):
    torch.manual_seed(0)
    one, other = torch.nn.Linear(64, 20), torch.nn.Linear(64, 20)
    save(FaastClassifier(one).fit(DIGITS, LABELS), path)
    loaded = load(path, backbone=other)
    with pytest.warns(SavedFileWarning, match="not those that the FaastClassifier was saved with"):
        loaded.predict(DIGITS)
    loaded.predict(DIGITS)  # warnings are errors
    save(loaded, path)  # which does not make the other weights the right ones
    with pytest.warns(SavedFileWarning, match="not those"):
        load(path, backbone=other).partial_fit(DIGITS, LABELS)
    for dtype in ("float64", "bfloat16", "float16"):
        load(path, backbone=one, dtype=dtype).predict(DIGITS)
    load(path, backbone=other).fit(DIGITS, LABELS)  # starts anew, so that nothing is compared
    model = opened("llama")
    save(FaastSeq2Seq(model).fit(*pairs(12)), path)
    with torch.no_grad():
        model[0].lm_head.weight.add_(1.0)
    with pytest.warns(SavedFileWarning, match="FaastSeq2Seq was saved with"):
        load(path, backbone=model).predict(["the cat"])


@pytest.mark.filterwarnings("ignore:Importing from timm:FutureWarning")  # of open_clip's older releases
def test_a_backbone_that_cannot_be_opened_does_not_lose_what_was_learnt(path, tiny_folder, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_folder("bert"), tmp_path / "model")
    ours = FaastClassifier(str(folder), device="cpu").fit(TEXTS, TOPICS)
    ours.predict(TEXTS)
    release_backbones()
    shutil.move(folder, tmp_path / "moved")
    with pytest.warns(SavedFileWarning, match="cannot say which weights"):
        save(ours, path)
    theirs = load(path, backbone=str(tmp_path / "moved"))
    np.testing.assert_array_equal(theirs.coef_, ours.coef_)


# Pipelines


def test_pipelines_are_saved_step_by_step(path):
    pytest.importorskip("skops")
    inner = Pipeline([("nothing", "passthrough"), ("scale", StandardScaler())])
    pipe = make_pipeline(BackboneFeatures("bundled:minilm-l6"), inner, FaastClassifier()).fit(TEXTS, TOPICS)
    theirs = through(pipe, path)
    np.testing.assert_array_equal(theirs.predict_proba(TEXTS), pipe.predict_proba(TEXTS))
    assert repr(theirs) == repr(pipe)
    theirs = load(path, backbonefeatures__batch_size=2, faastclassifier__verbose=0)
    assert theirs[0].batch_size == 2
    with pytest.raises(TypeError, match="no step for 'other__alpha'"):
        load(path, other__alpha=1)
    with pytest.raises(TypeError, match="no parameter 'alfa'"):
        load(path, faastclassifier__alfa=1)


def test_whatever_scikit_learn_puts_around_an_estimator_is_saved_with_it(path):
    pytest.importorskip("skops")
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"text": TEXTS, "shop": np.arange(len(TEXTS)) % 3})
    columns = make_column_transformer(
        (BackboneFeatures("bundled:minilm-l6"), "text"), (OneHotEncoder(), ["shop"]), sparse_threshold=0
    )
    calibrated = CalibratedClassifierCV(FaastClassifier(), cv=2)
    for last in (FaastClassifier(), calibrated, GridSearchCV(FaastClassifier(), {"alpha": [0.1, 1.0]}, cv=2)):
        pipe = make_pipeline(clone(columns), last).fit(table, TOPICS)
        theirs = through(pipe, path)
        np.testing.assert_array_equal(theirs.predict_proba(table), pipe.predict_proba(table))
    search = GridSearchCV(FaastClassifier(), {"alpha": [0.1, 1.0]}, cv=2).fit(DIGITS, LABELS)
    theirs = through(search, path)
    np.testing.assert_array_equal(theirs.predict_proba(DIGITS), search.predict_proba(DIGITS))
    assert theirs.best_params_ == search.best_params_
    inside = make_pipeline(make_union(FaastTransformer(), "passthrough"), FaastClassifier())
    with pytest.raises(SavedFileError, match=r"FeatureUnion .*skops.*FaastTransformer"):
        save(inside.fit(DIGITS, LABELS), path)


class FaastTransformer(FunctionTransformer):
    """A class of somebody's own, which nobody can vouch for."""


def test_a_backbone_within_a_foreign_step_is_passed_to_the_step(path):
    pytest.importorskip("skops")
    module = torch.nn.Flatten()
    union = make_union(BackboneFeatures(module), FunctionTransformer())
    pipe = make_pipeline(union, FaastClassifier()).fit(DIGITS, LABELS)
    save(pipe, path)
    with pytest.raises(SavedFileError, match="backbone was a Flatten in memory"):
        load(path)
    theirs = load(path, featureunion__backbone=module)
    np.testing.assert_array_equal(theirs.predict_proba(DIGITS), pipe.predict_proba(DIGITS))


def test_skops_itself_writes_them_too():
    skops = pytest.importorskip("skops.io")
    search = GridSearchCV(FaastClassifier(), {"alpha": [0.1, 1.0]}, cv=2).fit(DIGITS, LABELS)
    search.predict(DIGITS)
    data = skops.dumps(search)
    theirs = skops.loads(data, trusted=skops.get_untrusted_types(data=data))
    np.testing.assert_array_equal(theirs.predict_proba(DIGITS), search.predict_proba(DIGITS))


def test_skops_is_asked_for_where_it_is_needed(path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "skops.io", None)
    with pytest.raises(ImportError, match="pip install skops"):
        save(make_pipeline(StandardScaler(), FaastClassifier()).fit(DIGITS, LABELS), path)
    assert not path.exists()
    save(make_pipeline(FaastClassifier()).fit(DIGITS, LABELS), path)


class Mine(FaastClassifier):
    pass


def test_classes_of_ones_own_are_loaded_by_themselves(path):
    ours = Mine().fit(DIGITS, LABELS)
    save(ours, path)
    with pytest.raises(SavedFileError, match=r"'test_saving\.Mine', a class outside this library.*from_pretrained"):
        load(path)
    theirs = Mine.from_pretrained(path)
    assert type(theirs) is Mine
    np.testing.assert_array_equal(theirs.coef_, ours.coef_)


def test_estimators_that_have_learnt_nothing_keep_their_parameters(path):
    ours = FaastClassifier(
        "bundled:minilm-l6", alpha=np.float32(0.5), class_weight={"a": 1, "b": 2.5}, values={"a": "x", "b": "y"}
    )
    theirs = through(ours, path)
    assert theirs.get_params() == {**ours.get_params(), "device": None}
    with pytest.raises(NotFittedError):
        theirs.predict(["a"])
    theirs = through(BackboneFeatures("bundled:minilm-l6", normalize=True).fit(), path)
    assert theirs.transform(["a b"]).shape == (1, 384)
    model = opened("llama")
    save(FaastSeq2Seq(model, choices=("a", "b")), path)
    theirs = load(path, backbone=model)
    assert theirs.choices == ("a", "b")


# The table of what is saved is whole


@pytest.mark.parametrize(
    ("cls", "left_out"),
    [
        (Settings, ()),
        (Solution, ()),
        (LinearReadout, ()),
        (SolvedReadout, ()),
        (ClassValues, ()),
        (FastWeights, ("_carried",)),  # of a pass under way
        (SolvedWeights, ()),
    ],
)
def test_every_part_of_what_was_solved_is_in_the_file(cls, left_out):
    names = {field.name for field in dataclasses.fields(cls)} - set(left_out)
    assert names == set(cls.record().parts)


def test_every_attribute_of_a_fitted_estimator_is_in_the_file_or_known_to_stay_out(path):
    stays = {"device_", "classes_", "moments_", "_learnt_with"}  # a place, and what follows from the rest
    for estimator in (
        FaastClassifier().fit(DIGITS, LABELS),
        FaastClassifier("bundled:minilm-l6").fit(TEXTS, TOPICS),
        BackboneFeatures("bundled:minilm-l6").fit(),
        FaastSeq2Seq(opened("llama")).fit(*pairs(8)),
    ):
        estimator.predict(TEXTS[:1] if estimator.backbone else DIGITS) if hasattr(estimator, "predict") else None
        found = vars(estimator).keys() - estimator.get_params().keys()
        assert found - stays <= estimator._saved_state.keys()
    derived = {"_directions", "_lock"}
    assert {name.lstrip("_") for name in vars(ReadoutProblem(None, None, None)).keys() - derived} == set(
        ReadoutProblem.record().parts
    )


def test_any_reader_of_safetensors_opens_the_file(path):
    from safetensors import safe_open

    save(FaastClassifier().fit(DIGITS, LABELS), path)
    with safe_open(path, "np") as file:
        assert file.metadata()["format"] == "faast_sklearn"
        assert json.loads(file.metadata()["manifest"])["estimator"]["kind"] == "FaastClassifier"
        assert "state._problem.solved.readout.coef" in file.keys()  # noqa: SIM118 - it is not a dict
