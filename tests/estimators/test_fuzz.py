"""Random inputs: what comes out is right, or one of the library's own errors, and no estimator is ever changed by one.

A few examples, always the same, in the default run; many, and new ones, by hand or nightly::

    FAAST_FUZZ_EXAMPLES=100000 python -m pytest tests/estimators/test_fuzz.py
"""

import functools
import io
import os
import warnings

import hypothesis
import numpy as np
import pytest
import torch
from helpers.images import thumbnail
from helpers.tiny import tiny_model, tiny_tokenizer
from helpers.unchanged import everything_as_before
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from faast_sklearn import FaastClassifier, backbone
from faast_sklearn.backbones.image_reading import read_image
from faast_sklearn.errors import FaastError, InputError, TruncationWarning
from faast_sklearn.inputs import as_samples
from faast_sklearn.inputs.samples import iter_chunks

MANY = int(os.environ.get("FAAST_FUZZ_EXAMPLES", "0"))


def fuzzed(n, **strategies):
    """Run a test on ``n`` examples that are always the same, or on as many new ones as were asked for."""

    def decorate(test):
        settings = hypothesis.settings(
            max_examples=MANY or n,
            derandomize=not MANY,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        return settings(hypothesis.given(**strategies)(test))

    return decorate


@pytest.fixture(autouse=True)
def only_our_warnings():
    """Warnings of others about odd values are not errors here; a result still has to be right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Arrays

FLOATS = st.sampled_from([np.float64, np.float32, np.float16, np.longdouble])
OTHERS = st.sampled_from(
    [np.bool_, np.int8, np.uint8, np.int64, np.uint64, np.complex64, "M8[s]", "m8[ns]", "U3", "S3", "O"]
)
EXTREMES = [0.0, -0.0, 1.0, -1.0, 5e-324, 1e-310, 6e-8, 65504.0, 65520.0, 1e38, -1e38, 1e154, 1e300, np.inf, np.nan]


@st.composite
def arrays(draw, dims=(2, 2)):
    """Arrays of any dtype, mostly small numbers, in any memory layout."""
    dtype = np.dtype(draw(st.one_of(FLOATS, FLOATS, OTHERS)))
    least = draw(st.sampled_from([0, 1, 1, 1]))
    shape = draw(hnp.array_shapes(min_dims=dims[0], max_dims=dims[1], min_side=least, max_side=6))
    if dtype.kind == "f":
        usual = st.floats(-10, 10, width=16)
        values = st.one_of(usual, usual, usual, st.sampled_from(EXTREMES)) if draw(st.booleans()) else usual
        with np.errstate(over="ignore"):
            array = np.array(draw(hnp.arrays(np.float64, shape, elements=values)), dtype=dtype)
    elif dtype.kind == "O":
        element = st.one_of(st.integers(-9, 9), st.none(), st.text(max_size=2), st.floats(), st.booleans())
        array = draw(hnp.arrays(dtype, shape, elements=element))
    else:
        array = draw(hnp.arrays(dtype, shape))
    layout = draw(st.sampled_from(["C", "F", "strided", "reversed", "read-only", "swapped"]))
    if layout == "F":
        array = np.asfortranarray(array)
    elif layout == "strided" and array.ndim:
        array = np.repeat(array, 2, axis=0)[::2]
    elif layout == "reversed" and array.ndim:
        array = array[::-1]
    elif layout == "swapped" and array.dtype.kind in "fiu":
        array = array.astype(array.dtype.newbyteorder())
    if layout == "read-only":
        array.flags.writeable = False
    return array


def outcome(call):
    """What a call gives, or the library's own error; any other exception is a failure of the test."""
    try:
        return call(), None
    except FaastError as error:
        return None, error
    except TypeError as error:
        # scikit-learn asks its estimators for this one, of cells that are no numbers.
        if "must be a string or a" in str(error):
            return None, error
        raise


X = np.random.default_rng(0).normal(size=(12, 4))
Y = np.arange(12) % 3


@functools.cache
def reader_of_rows():
    clf = FaastClassifier().fit(X, Y)
    clf.predict(X)
    return clf


@fuzzed(
    60,
    X=st.one_of(arrays(), arrays(), arrays((0, 4))),
    labels=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    weights=st.one_of(st.none(), arrays((0, 2))),
)
def test_any_array_is_learnt_or_refused(X, labels, weights):
    y = np.array(labels)[: len(X)] if X.ndim and len(X) <= 6 else np.array(labels)
    before = X.copy()
    clf = FaastClassifier()
    fitted, error = outcome(lambda: clf.fit(X, y, weights))
    if error is not None:
        assert vars(clf) == vars(FaastClassifier())
    else:
        proba, error = outcome(lambda: fitted.predict_proba(X))
        assert error is None
        assert proba.shape == (len(X), len(fitted.classes_))
        assert np.isfinite(proba).all()
        np.testing.assert_allclose(proba.sum(1), 1.0, atol=1e-9)
        assert np.array_equal(proba, fitted.predict_proba(X))
        assert np.array_equal(proba, FaastClassifier().fit(X, y, weights).predict_proba(X))
    assert before.tobytes() == X.copy().tobytes() or X.dtype.hasobject
    learnt = reader_of_rows()
    with everything_as_before(learnt):
        outcome(lambda: learnt.predict(X))


@fuzzed(60, X=arrays((0, 5)), modality=st.sampled_from(["image", "text", "tensor"]), labels=arrays((0, 2)))
def test_any_array_is_samples_or_refused(X, modality, labels):
    found, _ = outcome(lambda: as_samples(X, modality))
    if found is not None:
        assert len(found) == X.shape[0] > 0
        found[0], found[len(found) - 1]
        assert modality != "text" or all(isinstance(text, str) for text in found)
    outcome(lambda: list(iter_chunks(X, labels)))
    outcome(lambda: list(iter_chunks(X, labels, labels)))


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=2), inner, max_size=2),
        st.sets(st.integers(), max_size=3),
        st.builds(iter, st.lists(inner, max_size=3)),
    ),
    max_leaves=8,
)


@fuzzed(80, X=ANYTHING, y=ANYTHING, weights=st.one_of(st.none(), ANYTHING))
def test_anything_at_all_is_refused_or_learnt(X, y, weights):
    clf = FaastClassifier()
    _, error = outcome(lambda: clf.fit(X, y, weights))
    if error is not None:
        assert vars(clf) == vars(FaastClassifier())
    learnt = reader_of_rows()
    with everything_as_before(learnt):
        outcome(lambda: learnt.forget(X, y, weights))
        outcome(lambda: learnt.predict(X))


# Images


def encoded(format, mode="RGB", size=(9, 7)):
    out = io.BytesIO()
    image = Image.frombytes("RGB", size, bytes(i * 7 % 256 for i in range(3 * size[0] * size[1]))).convert(mode)
    image.save(out, format, **({"save_all": True, "append_images": [image.rotate(180)]} if format == "GIF" else {}))
    return out.getvalue()


SEEDS = [
    encoded(format, mode)
    for format, mode in (
        ("PNG", "RGB"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
        ("BMP", "RGB"),
        ("TIFF", "RGB"),
        ("PPM", "RGB"),
    )
]


@st.composite
def files(draw):
    """Bytes of an image with a few changed, cut out, doubled or put in; or any bytes at all."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.sampled_from(["set", "flip", "cut", "double", "insert", "truncate", "size"]))
        if what == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif what == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del data[at : at + draw(st.integers(1, 20))]
        elif what == "double":
            data[at:at] = data[at : at + 16]
        elif what == "insert":
            data[at:at] = draw(st.binary(max_size=8))
        elif what == "truncate":
            del data[at:]
        elif what == "size":  # four bytes that may well be a length
            data[at : at + 4] = draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\xff\xff"]))
    return bytes(data)


@functools.cache
def reader_of_images():
    clf = FaastClassifier(backbone((torch.nn.Identity(), thumbnail)), device="cpu")
    clf.fit(SEEDS, [i % 2 for i in range(len(SEEDS))])
    clf.predict(SEEDS)
    return clf


@fuzzed(250, data=st.one_of(files(), files(), files(), st.binary(max_size=64)), shrink=st.sampled_from([None, (2, 3)]))
def test_any_bytes_are_an_image_or_refused(data, shrink):
    try:
        pixels = read_image(data, shrink)
    except InputError:
        with pytest.raises(InputError):
            read_image(data, shrink)
        clf = reader_of_images()
        with everything_as_before(clf), pytest.raises(InputError, match=r"X\[1\]"):
            clf.partial_fit([SEEDS[0], data], [0, 1])
        return
    assert pixels.dtype == torch.uint8
    assert pixels.ndim == 3
    assert pixels.shape[0] in (1, 3)
    assert pixels.numel() > 0
    assert torch.equal(pixels, read_image(data, shrink))


def test_the_mutations_do_both():
    """A fuzz that only ever fails, or only ever succeeds, would show nothing."""
    found = {True: 0, False: 0}

    @fuzzed(100, data=files())
    def run(data):
        found[outcome(lambda: read_image(data))[1] is None] += 1

    run()
    assert min(found.values()) > 10


# Texts

LETTERS = st.characters(codec=None)
TEXTS = st.one_of(
    st.text(LETTERS, max_size=12),
    st.text(st.sampled_from("\0\ud800\udfff\ufeff\u200d\u0301\u202e\U0001f600\uffff ­\n\t"), max_size=12),
    st.builds(lambda text, n: text * n, st.text(LETTERS, max_size=3), st.sampled_from([1, 40, 400])),
)


def reads_any_text(clf, texts):
    with everything_as_before(clf):
        proba, error = outcome(lambda: clf.predict_proba(texts))
        if error is not None:
            assert any(not is_unicode(text) for text in texts)
            assert "an unpaired surrogate" in str(error)
            assert outcome(lambda: clf.partial_fit(texts, [0] * len(texts)))[1] is not None
            return
    assert all(map(is_unicode, texts))
    assert proba.shape == (len(texts), 2)
    assert np.isfinite(proba).all()
    assert np.array_equal(proba, clf.predict_proba(texts))


def is_unicode(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@pytest.fixture(scope="module")
def bert():
    handle = backbone((tiny_model("bert"), tiny_tokenizer()))
    return FaastClassifier(handle, device="cpu").fit(["a cat", "the dog", "on"], [0, 1, 0])


@pytest.fixture(scope="module")
def minilm():
    handle = backbone("bundled:minilm-l6", max_length=32)
    return FaastClassifier(handle, device="cpu").fit(["a cat", "the dog", "on"], [0, 1, 0])


def test_any_text_is_read_or_refused_by_a_tiny_model(bert):
    @fuzzed(60, texts=st.lists(TEXTS, min_size=1, max_size=4))
    def run(texts):
        reads_any_text(bert, texts)

    run()


def test_any_text_is_read_or_refused_by_a_real_model(minilm):
    @fuzzed(12, texts=st.lists(TEXTS, min_size=1, max_size=2))
    def run(texts):
        reads_any_text(minilm, texts)

    run()


def test_texts_without_end_are_cut_with_a_warning(bert):
    with pytest.warns(TruncationWarning, match="1 of 2"):
        assert np.isfinite(bert.predict_proba(["cat " * 20_000, "a"])).all()
