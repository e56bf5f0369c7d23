"""Kinds of estimators to pass bad input to, and how a table of it becomes cases."""

import functools
from dataclasses import dataclass

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.images import thumbnail
from helpers.seq2seq import chosen, opened, pairs
from helpers.tiny import tiny_model, tiny_tokenizer
from PIL import Image

from faast_sklearn import BackboneFeatures, FaastClassifier, FaastSeq2Seq, backbone

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
