"""Bad input, all of it in one table: a typed error that names what is wrong and the remedy, and nothing has changed.

Each entry says what is passed to which methods of which kind of estimator, the type of the error, and fragments of its
message. Calls that are an error of scikit-learn's own contract keep its type.
"""

import inspect
import itertools
import pathlib

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.bad_calls import (
    BAD_LEARNT_PAIRS,
    BAD_PAIRS,
    BAD_SOURCES,
    FRAME_CALLS,
    NEW_CALLS,
    PAIR_CALLS,
    ROW_CALLS,
    SHORT_CALLS,
    bad_pairs,
    not_fitted,
)
from helpers.bad_inputs import ALL, RUN, TELL, X, Y, calls, samples
from helpers.bad_parameters import PARAMETERS, parameters
from helpers.bad_samples import BAD_IMAGES, BAD_TEXTS, FEATURES, MODULE, ROWS, bad_files, labels_and_weights
from helpers.unchanged import everything_as_before
from PIL import Image

from faast_sklearn import FaastClassifier

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
