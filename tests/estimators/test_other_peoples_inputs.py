"""Inputs that bug reports and other projects' clients have brought, each with the neighbours of its kind."""

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers.seq2seq import chosen, opened, pairs
from sklearn.base import clone
from sklearn.datasets import load_digits

from faast_sklearn import FaastClassifier, FaastSeq2Seq, backbone, load, merge, save
from faast_sklearn.errors import InputError
from faast_sklearn.few_shot import few_shot_score

X, Y = load_digits(return_X_y=True)
X, Y = X[:200], Y[:200]


# Weights of classes


LABELS = {
    "integers": (Y, {"0": 9.0}, "labels are [0, 1"),
    "strings": (np.array(list("abcdefghij"))[Y], {"A": 9.0}, "did you mean 'a'?"),
    "objects": (np.array(["cat", "dog"], object)[Y % 2], {"cta": 9.0}, "did you mean 'cat'?"),
    "booleans": (Y % 2 == 1, {"True": 9.0}, "did you mean True?"),
    "halves": (Y, {0.5: 9.0}, "names 0.5 (float)"),
    "none": (Y, {None: 9.0}, "names None"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_a_class_weight_that_names_no_label_is_refused(kind):
    y, weights, told = LABELS[kind]
    clf = FaastClassifier(class_weight=weights)
    with pytest.raises(InputError, match="class_weight names") as caught:
        clf.fit(X, y)
    assert told in str(caught.value)
    if kind != "objects" and kind != "strings":  # of other strings one may come later
        for learn in (lambda: clf.partial_fit(X, y), lambda: clf.fit(iter([(X, y)]))):
            with pytest.raises(InputError, match="class_weight names"):
                learn()
    with pytest.raises(InputError, match="class_weight names"):
        few_shot_score(FaastClassifier(class_weight=weights), X, y, n_way=2, n_shot=2, n_query=2, n_episodes=2)


def test_a_class_weight_may_name_what_comes_later_and_more_than_there_is():
    first, later = Y < 5, Y >= 5
    weights = {7: 3.0}
    stream = FaastClassifier(class_weight=weights).partial_fit(X[first], Y[first]).partial_fit(X[later], Y[later])
    whole = FaastClassifier(class_weight=weights).fit(X, Y)
    np.testing.assert_allclose(stream.predict_proba(X), whole.predict_proba(X), atol=1e-9)
    weighted = FaastClassifier().fit(X, Y, sample_weight=np.where(Y == 7, 3.0, 1.0))
    np.testing.assert_allclose(whole.coef_, weighted.coef_, atol=1e-12)
    # Where all labels are named a further one is a class that this part of the data lacks, as in scikit-learn.
    named = FaastClassifier(class_weight=dict.fromkeys(range(20), 2.0)).fit(X, Y)
    np.testing.assert_allclose(named.coef_, FaastClassifier().fit(X, Y).coef_, atol=1e-9)
    truth = FaastClassifier(class_weight={True: 2.0}).fit(X, Y % 2)  # as Python has it, True is 1
    np.testing.assert_allclose(truth.coef_, FaastClassifier(class_weight={1: 2.0}).fit(X, Y % 2).coef_)


# Targets that are none of the choices


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("Positive", "positive"), (" positive", "positive"), ("positive.", "positive"), ("negativ", "negative")],
)
def test_a_target_outside_of_the_choices_is_refused(wrong, nearest):
    choices = ["positive", "negative", "neutral"]
    sources, targets = chosen(pairs(9), choices)
    seq2seq = FaastSeq2Seq(opened("llama"), choices=choices)
    other = [*targets[:4], wrong, *targets[5:]]
    told = rf"^y\[4\] is '{wrong}', which is not one of choices; the nearest is '{nearest}'\.$"
    for learn in (seq2seq.fit, seq2seq.partial_fit):
        with pytest.raises(InputError, match=told):
            learn(sources, other)
        assert not hasattr(seq2seq, "moments_")
    seq2seq.fit(sources, np.array(targets))
    for learn in (seq2seq.partial_fit, seq2seq.forget, seq2seq.score):
        with pytest.raises(InputError, match=told):
            learn(sources, other)
    assert seq2seq.n_samples_seen_ == 9
    assert seq2seq.token_scores(sources[:1], ["any answer"])["n_tokens"] > 1  # how likely is no question of choices


# What was learnt, and what is asked now


class Scaled(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1,), scale))

    def forward(self, x):
        return x.float() * self.weight


def changed(name, value):
    return rf"^{name} was .* when this \w+ learnt and is {value} now.*; set it back with set_params, or call fit\.$"


def test_a_backbone_that_was_changed_is_refused_until_fit():
    clf = FaastClassifier(Scaled(1.0), device="cpu").fit(X, Y)
    proba, other = clf.predict_proba(X), Scaled(2.0)
    before = clf.backbone
    clf.set_params(backbone=other)
    asks = (clf.predict, clf.predict_proba, clf.predict_log_proba, clf.decision_function)
    learns = (clf.partial_fit, clf.forget, clf.score)
    for call in (*(lambda ask=ask: ask(X) for ask in asks), *(lambda learn=learn: learn(X, Y) for learn in learns)):
        with pytest.raises(InputError, match="backbone was Scaled"):
            call()
    with pytest.raises(InputError, match="backbone was"):
        merge([clf, clf])
    assert clf.n_samples_seen_ == 200
    np.testing.assert_array_equal(clf.set_params(backbone=before).predict_proba(X), proba)
    clf.set_params(backbone=other).fit(X, Y).partial_fit(X, Y)
    assert clf.n_samples_seen_ == 400
    for twin in (clone(clf).fit(X, Y), copy.deepcopy(clf), pickle.loads(pickle.dumps(clf))):
        twin.partial_fit(X, Y)
    assert copy.deepcopy(clf)._learnt_with["backbone"] is other


def test_options_of_a_handle_and_its_precision_are_part_of_what_was_learnt():
    images = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    labels = [0, 1] * 3
    make = "timm:test_resnet.r160_in1k"
    small, large = (backbone(make, pretrained=False, image_size=size) for size in (64, 96))
    clf = FaastClassifier(small, device="cpu").fit(images, labels)
    for call in (lambda: clf.partial_fit(images, labels), lambda: clf.predict(images)):
        clf.set_params(backbone=large)
        with pytest.raises(InputError, match=r"backbone was backbone\('timm:test_resnet.r160_in1k'"):
            call()
    clf.set_params(backbone=small, dtype="bfloat16")
    for learn in (clf.partial_fit, clf.forget):
        with pytest.raises(InputError, match=changed("dtype", "'bfloat16'")):
            learn(images, labels)
    assert len(clf.predict(images)) == 6  # in another precision what was learnt is still worth something
    clf.set_params(dtype="float32").partial_fit(images, labels)  # which is what "auto" is here


def test_the_same_model_named_another_way_is_the_same(tiny_folder):
    texts, labels = ["the cat", "a dog", "red tree", "blue house"], [0, 1, 0, 1]
    folder = str(tiny_folder("bert"))
    clf = FaastClassifier(folder, device="cpu").fit(texts, labels)
    clf.set_params(backbone=f"hf:{folder}").partial_fit(texts, labels)
    clf.set_params(backbone=backbone(folder)).forget(texts, labels)
    assert clf.n_samples_seen_ == 4


def test_what_a_file_says_was_learnt_with(tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8), [0, 1] * 3
    handle = backbone("bundled:efficientnet-lite0", image_size=32)
    save(FaastClassifier(handle, device="cpu").fit(images, labels), tmp_path / "clf.safetensors")
    clf = load(tmp_path / "clf.safetensors")
    clf.set_params(device="cpu").partial_fit(images, labels)
    clf.set_params(backbone=backbone("bundled:efficientnet-lite0", image_size=64))
    with pytest.raises(InputError, match="backbone was backbone"):
        clf.partial_fit(images, labels)


@pytest.mark.parametrize(
    ("name", "value"), [("target", "embedding"), ("learn_from", "all"), ("template", "{source} is {target}")]
)
def test_a_language_model_learns_on_as_it_began(name, value):
    data = pairs(8)
    seq2seq = FaastSeq2Seq(opened("llama")).fit(*data)
    seq2seq.set_params(**{name: value})
    for learn in (seq2seq.partial_fit, seq2seq.forget):
        with pytest.raises(InputError, match=changed(name, ".*")):
            learn(*data)
    assert seq2seq.n_samples_seen_ == 8
    seq2seq.set_params(alpha=1.0, solver="pinv", memory_weight=0.5, **{name: FaastSeq2Seq("x").get_params()[name]})
    assert seq2seq.partial_fit(*data).n_samples_seen_ == 16


def test_a_language_model_that_was_changed_is_refused_until_fit():
    data, other = pairs(8), opened("gpt2")
    seq2seq = FaastSeq2Seq(opened("llama"), max_new_tokens=2).fit(*data)
    seq2seq.set_params(backbone=other)
    for call in (
        lambda: seq2seq.partial_fit(*data),
        lambda: seq2seq.forget(*data),
        lambda: seq2seq.predict(data[0][:1]),
        lambda: seq2seq.token_scores(*data),
        lambda: seq2seq.alpha_,
    ):
        with pytest.raises(InputError, match="backbone was"):
            call()
    assert seq2seq.fit(*data).n_samples_seen_ == 8
