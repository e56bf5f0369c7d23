"""Labels, vectors and texts in columns of pandas, polars, pyarrow, numpy and Hugging Face datasets."""

import os
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse as sp
import sklearn
import torch
from helpers.releases import before
from helpers.seq2seq import opened, pairs
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler

from faast_sklearn import BackboneFeatures, FaastClassifier, FaastSeq2Seq, backbone, load, save
from faast_sklearn.errors import InputError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 3)), np.arange(24) % 2
LISTS = X.tolist()
NAMES = np.array(["a", "b"])[Y]
MINILM = "bundled:minilm-l6"
# Strings of any length came with numpy 2.
STRINGS = np.dtypes.StringDType() if hasattr(np.dtypes, "StringDType") else object
TEXTS = ["red car", "blue sky", "green tree", "a dog"]


# Labels


LABELS = {
    "Int64": (pd.Series(Y, dtype="Int64"), np.int64),
    "UInt8": (pd.Series(Y, dtype="UInt8"), np.uint8),
    "boolean": (pd.Series(Y == 1, dtype="boolean"), np.bool_),
    "an extension array": (pd.array(Y, dtype="Int64"), np.int64),
    "an index": (pd.Index(Y, dtype="Int64"), np.int64),
    "a frame": (pd.DataFrame({"y": pd.Series(Y, dtype="Int64")}), np.int64),
    "categories": (pd.Series(Y).astype("category"), np.int64),
    "categories of strings": (pd.Series(NAMES).astype("category"), str),
    "string": (pd.Series(NAMES, dtype="string"), str),
    "int64[pyarrow]": (pd.Series(Y, dtype="int64[pyarrow]"), np.int64),
    "bool[pyarrow]": (pd.Series(Y == 1, dtype="bool[pyarrow]"), np.bool_),
    "string[pyarrow]": (pd.Series(NAMES, dtype="string[pyarrow]"), str),
    "polars": (pl.Series(Y), np.int64),
    "polars, booleans": (pl.Series(Y == 1), np.bool_),
    "polars, a frame": (pl.DataFrame({"y": NAMES}), str),
    "polars, categories": (pl.Series(NAMES).cast(pl.Categorical), str),
    "pyarrow": (pa.array(Y), np.int64),
    "pyarrow, chunks": (pa.chunked_array([Y[:9], Y[9:]]), np.int64),
    "pyarrow, booleans": (pa.array((Y == 1).tolist()), np.bool_),
    "pyarrow, a dictionary": (pa.array(NAMES.tolist()).dictionary_encode(), str),
    "pyarrow, a table": (pa.table({"y": NAMES.tolist()}), str),
    "numpy strings": (NAMES.astype(STRINGS), str),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_come_back_as_they_were_given(kind):
    y, expected = LABELS[kind]
    plain = {str: NAMES, np.bool_: Y == 1}.get(expected, Y)
    clf, twin = FaastClassifier().fit(X, y), FaastClassifier().fit(X, plain)
    assert all(type(label) is expected or isinstance(label, expected) for label in clf.classes_)
    assert clf.classes_.tolist() == twin.classes_.tolist()
    found = clf.predict(X)
    assert found.dtype == clf.classes_.dtype
    assert found.tolist() == twin.predict(X).tolist()
    assert clf.score(X, y) == twin.score(X, plain)
    assert clf.partial_fit(X, y).forget(X, y).n_samples_seen_ == 24


MISSING = {
    "Int64": pd.Series([*Y[:23], pd.NA], dtype="Int64"),
    "boolean": pd.Series([True] * 23 + [None], dtype="boolean"),
    "categories": pd.Series([*Y[:23], None]).astype("category"),
    "string": pd.Series(["a"] * 23 + [None], dtype="string"),
    "int64[pyarrow]": pd.Series([*Y[:23], None], dtype="int64[pyarrow]"),
    "polars": pl.Series([*Y[:23].tolist(), None]),
    "polars, booleans": pl.Series([True] * 23 + [None]),
    "pyarrow": pa.array([*Y[:23].tolist(), None]),
    "pyarrow, chunks": pa.chunked_array([["a"] * 20, ["b"] * 3 + [None]]),
}


@pytest.mark.parametrize("kind", MISSING)
def test_a_label_that_is_missing_is_named(kind):
    with pytest.raises(InputError, match=r"y\[23\] is (<NA>|nan|None); drop samples that have no label"):
        FaastClassifier().fit(X, MISSING[kind])


def labelled(labels, names=("cat", "dog")):
    rows = {"text": [TEXTS[i % 4] for i in range(len(labels))], "label": labels}
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict(rows, features=features)


def test_the_label_that_means_unlabelled_is_said_to(tmp_path):
    data = labelled([0, 1, 0, -1, 1, -1])
    clf = FaastClassifier(MINILM)
    told = r"label\[3\] is -1, which means 'unlabelled' in a ClassLabel column \(2 samples\); drop .*dataset\.filter"
    learners = [
        lambda: clf.fit(data),
        lambda: clf.partial_fit(data),
        lambda: clf.fit(data.to_iterable_dataset()),
    ]
    if not isinstance(data["label"], list):  # datasets 4: a column knows its dataset
        learners.append(lambda: clf.fit(data["text"], data["label"]))
    for learn in learners:
        with pytest.raises(InputError, match=told):
            learn()
    kept = data.filter(lambda row: row["label"] >= 0)
    assert clf.fit(kept).classes_.tolist() == [0, 1]
    with pytest.raises(InputError, match=told):
        clf.score(data)
    assert FaastClassifier().fit(X, np.where(Y == 1, -1, 1)).classes_.tolist() == [-1, 1]  # elsewhere it is a label


# Vectors


VECTORS = {
    "a Series of lists": pd.Series(LISTS),
    "a Series of arrays": pd.Series(list(X), index=range(30, 54)),
    "a Series of tensors": pd.Series([torch.tensor(row) for row in X]),
    "a frame of lists": pd.DataFrame({"vector": LISTS}),
    "an array of arrays": np.array([*X, None], dtype=object)[:24],
    "polars lists": pl.Series(LISTS),
    "polars arrays": pl.Series(LISTS, dtype=pl.Array(pl.Float64, 3)),
    "a polars frame of lists": pl.DataFrame({"vector": LISTS}),
    "a polars frame of arrays": pl.DataFrame({"vector": pl.Series(LISTS, dtype=pl.Array(pl.Float64, 3))}),
    "pyarrow lists": pa.array(LISTS),
    "pyarrow chunks": pa.chunked_array([LISTS[:5], LISTS[5:]]),
    "pyarrow fixed lists": pa.array(LISTS, type=pa.list_(pa.float64(), 3)),
    "a pyarrow table of lists": pa.table({"vector": LISTS}),
}


@pytest.mark.parametrize("kind", VECTORS)
def test_a_column_of_vectors_is_the_array_of_them(kind):
    given, whole = VECTORS[kind], FaastClassifier().fit(X, Y)
    clf = FaastClassifier().fit(given, Y)
    np.testing.assert_array_equal(clf.coef_, whole.coef_)
    assert clf.n_features_in_ == 3
    np.testing.assert_array_equal(whole.predict_proba(given), whole.predict_proba(X))
    assert clf.partial_fit(given, Y).forget(given, Y).n_samples_seen_ == 24
    assert clf.score(given, Y) == whole.score(X, Y)
    module = FaastClassifier(torch.nn.Identity(), normalize=False, device="cpu", cache="memory").fit(given, Y)
    np.testing.assert_allclose(module.predict_proba(given), whole.predict_proba(X), atol=1e-5)
    np.testing.assert_allclose(BackboneFeatures(torch.nn.Identity(), device="cpu").transform(given), X, rtol=1e-6)


def test_tables_of_numbers_have_names():
    columns = {name: X[:, i] for i, name in enumerate("abc")}
    frame = FaastClassifier().fit(pd.DataFrame(columns), Y)
    for table in (pa.table(columns), pl.DataFrame(columns)):
        clf = FaastClassifier().fit(table, Y)
        np.testing.assert_array_equal(clf.coef_, frame.coef_)
        assert clf.feature_names_in_.tolist() == ["a", "b", "c"]
        assert clf.predict(table).tolist() == frame.predict(pd.DataFrame(columns)).tolist()
    one = FaastClassifier().fit(pd.DataFrame({"a": X[:, 0]}), Y)  # one number a cell is a table of one column
    assert one.n_features_in_ == 1


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ([*LISTS[:23], [1.0]], r"X\[23\] has 1 numbers and X\[0\] has 3"),
        ([*LISTS[:23], None], r"X\[23\] is None \(NoneType\), expected a vector of numbers"),
        ([*LISTS[:23], "x"], r"X\[23\] is 'x' \(str\), expected a vector"),
        ([*LISTS[:23], ["1", "2", "3"]], r"X\[23\] is .* expected a vector"),
        ([*LISTS[:23], [[1.0, 2.0, 3.0]]], r"X\[23\] is .* expected a vector"),
    ],
)
def test_a_cell_that_is_no_vector_is_named(cells, told):
    for given in (pd.Series(cells), pd.DataFrame({"v": pd.Series(cells)})):
        with pytest.raises(InputError, match=told):
            FaastClassifier().fit(given, Y)


WORDS = {
    "pyarrow": pa.array(TEXTS),
    "pyarrow chunks": pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
    "pyarrow large strings": pa.array(TEXTS, type=pa.large_string()),
    "a pyarrow table": pa.table({"text": TEXTS}),
    "polars": pl.Series(TEXTS),
    "a polars frame": pl.DataFrame({"text": TEXTS}),
    "numpy strings": np.array(TEXTS, dtype=STRINGS),
    "string[pyarrow]": pd.Series(TEXTS, dtype="string[pyarrow]"),
}


@pytest.mark.parametrize("kind", WORDS)
def test_texts_in_any_column_are_those_texts(kind):
    expected = BackboneFeatures(MINILM, device="cpu").transform(TEXTS)
    for cache in (None, "memory"):
        found = BackboneFeatures(MINILM, device="cpu", cache=cache).transform(WORDS[kind])
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_text_that_is_missing_and_a_table_of_two_columns():
    features = BackboneFeatures(MINILM, device="cpu")
    for given in (pa.array(["red", None]), pl.Series(["red", None])):
        with pytest.raises(InputError, match=r"X\[1\] is None, expected str"):
            features.transform(given)
    with pytest.raises(InputError, match=r"2 columns \(t, u\); this backbone reads one"):
        features.transform(pa.table({"t": TEXTS, "u": TEXTS}))


# Sparse tables


KINDS = [f"{kind}_{what}" for kind in ("csr", "csc", "coo", "dok", "lil", "bsr", "dia") for what in ("array", "matrix")]


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_tables_of_every_kind_are_refused_with_what_to_do(kind):
    given, clf = getattr(sp, kind)(X), FaastClassifier().fit(X, Y)
    for call in (lambda: clf.fit(given, Y), lambda: clf.partial_fit(given, Y), lambda: clf.predict(given)):
        with pytest.raises(InputError, match=r"^X is sparse, .*X\.toarray\(\), or reduce it, as TruncatedSVD\(100\)"):
            call()
    with pytest.raises(InputError, match="TruncatedSVD"):
        make_pipeline(TfidfVectorizer(), FaastClassifier()).fit(TEXTS, [0, 1, 0, 1])


# Hugging Face datasets


def test_a_dataset_brings_its_labels_to_score_too():
    data = labelled([0, 1] * 4)
    clf = FaastClassifier(MINILM).fit(data)
    assert clf.score(data) == clf.score(data["text"], data["label"])
    weight = np.arange(8.0)
    assert clf.score(data, sample_weight=weight) == clf.score(list(data["text"]), [0, 1] * 4, sample_weight=weight)
    assert clf.predict(data).tolist() == clf.predict(list(data["text"])).tolist()


def test_a_dataset_that_streams_is_learnt_and_a_dict_of_splits_is_not():
    data = labelled([0, 1] * 4)
    whole = FaastClassifier(MINILM).fit(data)
    streams = [data.to_iterable_dataset(), data.to_iterable_dataset(num_shards=2)]
    if hasattr(streams[0], "batch"):  # datasets 2.21
        streams.append(streams[0].batch(3))
    for stream in streams:
        clf = FaastClassifier(MINILM).fit(stream)
        np.testing.assert_allclose(clf.predict_proba(TEXTS), whole.predict_proba(TEXTS), atol=1e-6)
        with pytest.raises(InputError, match="works in fit and partial_fit but not where"):
            clf.predict(stream)
    assert whole.partial_fit(data.to_iterable_dataset()).n_samples_seen_ == 16
    splits = datasets.DatasetDict(train=data, test=data)
    for learn in (whole.fit, whole.partial_fit):
        with pytest.raises(InputError, match=r"^X is a DatasetDict with keys \['train', 'test'\].*X\['train'\]"):
            learn(splits)
    with pytest.raises(InputError, match=r"keys \['train', 'test'\].*choose one"):
        whole.predict(splits)
    unnamed = datasets.IterableDataset.from_generator(lambda: iter([{"text": "a", "label": 0}]))
    with pytest.raises(InputError, match=r"does not say what its columns are; pass batches"):
        FaastClassifier(MINILM).fit(unnamed)


# Features with names


def column_transformers(rest):
    for columns in ("text", ["text"]):
        yield ColumnTransformer([("words", BackboneFeatures(MINILM), columns)], remainder=rest)


@pytest.mark.parametrize("rest", ["drop", "passthrough"])
@pytest.mark.parametrize("container", ["default", "pandas", "polars"])
def test_a_column_transformer_has_names(container, rest):
    rows = {"text": TEXTS, "n": [1.0, 2.0, 3.0, 4.0]}
    frame = pl.DataFrame(rows) if container == "polars" else pd.DataFrame(rows, index=[7, 8, 9, 10])
    if container == "pandas" and before("scikit-learn", "1.7.2"):
        # It numbers anew the rows of what any transformer makes of one column, which is a Series.
        frame = frame.reset_index(drop=True)
    expected = BackboneFeatures(MINILM).transform(TEXTS)
    names = [f"words__backbonefeatures{i}" for i in range(384)] + ["remainder__n"] * (rest == "passthrough")
    for transformer in column_transformers(rest):
        found = transformer.set_output(transform=container).fit_transform(frame)
        assert list(transformer.get_feature_names_out()) == names
        if container != "default":
            assert list(found.columns) == names
        if container == "pandas":
            assert list(found.index) == list(frame.index)
        np.testing.assert_allclose(np.asarray(found, dtype=float)[:, :384], expected, atol=1e-6)


def test_names_reach_the_end_of_a_pipeline_and_a_union(tmp_path):
    frame = pd.DataFrame({"text": TEXTS, "n": [1.0, 2.0, 3.0, 4.0]})
    with sklearn.config_context(transform_output="pandas"):
        both = make_column_transformer((BackboneFeatures(MINILM), "text"), (StandardScaler(), ["n"]))
        found = make_pipeline(both, StandardScaler()).fit(frame)
        assert found.transform(frame).columns[-1] == "standardscaler__n"
    union = make_union(BackboneFeatures(MINILM), BackboneFeatures(MINILM, normalize=True)).fit(TEXTS)
    assert len(union.get_feature_names_out()) == 768
    from PIL import Image

    images = pd.DataFrame({"path": [str(tmp_path / f"{i}.png") for i in range(3)]})
    for i, path in enumerate(images.path):
        Image.fromarray(np.full((8, 8), 80 * i, np.uint8)).save(path)
    reader = BackboneFeatures(backbone("timm:test_resnet.r160_in1k", pretrained=False), device="cpu")
    seen = ColumnTransformer([("image", reader, ["path"])]).set_output(transform="pandas").fit_transform(images)
    assert seen.columns[0] == "image__backbonefeatures0"


def test_features_need_no_fit(tmp_path):
    features = BackboneFeatures(MINILM)
    expected = BackboneFeatures(MINILM).fit().transform(TEXTS)
    np.testing.assert_array_equal(features.transform(TEXTS), expected)
    assert features.get_feature_names_out().tolist() == [f"backbonefeatures{i}" for i in range(384)]
    assert not [name for name in vars(features) if name.endswith("_")]  # transform changes nothing
    assert features.set_output(transform="pandas").transform(TEXTS).shape == (4, 384)
    save(BackboneFeatures(MINILM), tmp_path / "features.safetensors")
    np.testing.assert_array_equal(load(tmp_path / "features.safetensors").transform(TEXTS), expected)
    pipeline = make_pipeline(BackboneFeatures(MINILM), FaastClassifier().fit(expected, [0, 1, 0, 1]))
    assert pipeline.predict(TEXTS).tolist() == [0, 1, 0, 1]
    module = BackboneFeatures(torch.nn.Identity(), device="cpu")
    np.testing.assert_allclose(module.transform(X), X, rtol=1e-6)
    with pytest.raises(NotFittedError, match=r"call fit\(X\) first"):
        module.get_feature_names_out()


# Files that cannot be written


def test_a_folder_that_does_not_exist_is_named_and_nothing_is_left(tmp_path):
    clf, nowhere = FaastClassifier().fit(X, Y), tmp_path / "no" / "where"
    for path in (nowhere / "clf.safetensors", f"{nowhere / 'folder'}{os.sep}"):
        with pytest.raises(FileNotFoundError, match=r"the folder .*where' does not exist; make it first") as caught:
            save(clf, path)
        assert ".part" not in str(caught.value)
        with pytest.raises(FileNotFoundError, match="make it first"):
            clf.save_pretrained(path)
    assert list(tmp_path.iterdir()) == []


def test_a_stand_in_for_a_column_without_features_is_a_list():
    class Column(list):
        column_name, source = "label", SimpleNamespace(features=None)

    with pytest.raises(InputError, match=r"X has 24 samples and y has 2"):
        FaastClassifier().fit(X, Column([0, 1]))


def test_a_language_model_scores_a_dataset_of_texts():
    sources, _ = pairs(6)
    data = datasets.Dataset.from_dict({"text": sources})
    seq2seq = FaastSeq2Seq(opened("llama"), scoring="negative_perplexity").fit(data)
    assert seq2seq.score(data) == pytest.approx(seq2seq.score(sources))
