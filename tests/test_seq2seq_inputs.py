"""What FaastSeq2Seq answers, and what it says about data, parameters and models that it cannot use."""

import logging

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_tokenizer
from sklearn.exceptions import NotFittedError
from test_seq2seq import opened, pairs

from faast_sklearn import FaastSeq2Seq
from faast_sklearn.errors import (
    BackboneError,
    InputError,
    NonFiniteError,
    NotFittedWarning,
    OutOfMemoryError,
    TruncationWarning,
    UnknownBackboneError,
)

CHOICES = ["red", "red house", "the cat ran", "blue"]


@pytest.fixture(scope="module")
def llama():
    return opened("llama")


@pytest.fixture(scope="module")
def gpt2():
    return tiny_model("gpt2"), tiny_tokenizer("decoder")  # 16 positions


# Answers


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
def test_choices_are_scored_as_whole_answers_and_the_score_is_accuracy(name):
    X, y = pairs(40)[0], [CHOICES[i % 4] for i in range(40)]
    seq2seq = FaastSeq2Seq(opened(name), choices=CHOICES, batch_size=8).fit(X, y)
    test, wanted = pairs(15, 9, ragged=True)[0], [CHOICES[i % 3] for i in range(15)]
    scores = seq2seq.choice_log_probabilities(test)
    assert scores.shape == (15, 4)
    for k, choice in enumerate(CHOICES):
        for i in (0, 7, 14):
            found = seq2seq.token_scores([test[i]], [choice])
            assert scores[i, k] == pytest.approx(-found["nll"] * found["n_tokens"], abs=1e-4)
    predicted = seq2seq.predict(test)
    assert predicted.dtype == object
    assert list(predicted) == [CHOICES[k] for k in scores.argmax(1)]
    assert seq2seq.score(test, wanted) == np.mean(predicted == np.array(wanted, dtype=object))
    assert seq2seq.set_params(scoring="negative_perplexity").score(test, list(predicted)) == 1.0


def test_choices_that_were_learnt_are_chosen():
    seq2seq = FaastSeq2Seq(opened("llama"), choices=CHOICES)
    X = ["the cat", "the dog", "one tree", "two house"] * 8
    assert seq2seq.fit(X, CHOICES * 8).score(X, CHOICES * 8) == 1.0


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_answers_keep_their_order_and_know_no_neighbours(name):
    options = {"max_new_tokens": 4, "generation_config": {"min_new_tokens": 3}}
    seq2seq = FaastSeq2Seq(opened(name), batch_size=5, **options).fit(*pairs(40, ragged=True))
    X = pairs(17, 9, ragged=True)[0]
    found = seq2seq.predict(np.array(X, dtype=object))
    assert found.dtype == object
    assert found.shape == (17,)
    assert all(isinstance(text, str) for text in found)
    assert list(found) == [seq2seq.predict([x])[0] for x in X]
    assert list(seq2seq.predict(X[::-1])) == list(found[::-1])
    assert len(set(found)) > 2


def test_scores():
    sacrebleu = pytest.importorskip("sacrebleu")
    settings = {"min_new_tokens": 3}
    seq2seq = FaastSeq2Seq(opened("llama"), max_new_tokens=3, generation_config=settings).fit(*pairs(60))
    X, y = pairs(20, 9)
    found = list(seq2seq.predict(X))
    y[:4] = found[:4]
    wanted = {
        "bleu": sacrebleu.corpus_bleu(found, [y], force=True).score,
        "chrf": sacrebleu.corpus_chrf(found, [y]).score,
        "exact_match": np.mean([a == b for a, b in zip(found, y, strict=True)]),
        "negative_perplexity": -seq2seq.perplexity(X, y),
    }
    assert seq2seq.score(X, y) == pytest.approx(wanted["bleu"])
    for scoring, value in wanted.items():
        assert seq2seq.set_params(scoring=scoring).score(X, y) == pytest.approx(value)
    assert wanted["exact_match"] >= 0.2


def test_before_fit_it_is_the_frozen_model_and_says_so():
    source, (X, y) = opened("llama"), pairs(6, 9)
    fresh = FaastSeq2Seq(source, max_new_tokens=3)
    frozen = FaastSeq2Seq(source, max_new_tokens=3, memory_weight=0).fit(X, y)
    with pytest.warns(NotFittedWarning, match="frozen model; call fit"):
        assert list(fresh.predict(X)) == list(frozen.predict(X))
    with pytest.warns(NotFittedWarning) as seen:
        assert fresh.perplexity(X, y) == frozen.perplexity(X, y)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    with pytest.warns(NotFittedWarning) as seen, fresh.attached() as model, torch.no_grad():
        assert model is source[0]
    for name in ("alpha_", "memory_weight_", "shift_weight_", "held_out_loss_"):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            getattr(fresh, name)
        assert not hasattr(fresh, name)
    assert not hasattr(fresh, "moments_")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_tokenizer_without_a_padding_token_is_enough(name):
    model, tokenizer = opened(name)
    assert tokenizer.pad_token is None
    data, test = pairs(30, ragged=True), pairs(9, 9, ragged=True)
    bare = FaastSeq2Seq((model, tokenizer), batch_size=4, max_new_tokens=3).fit(*data)
    padding = tiny_tokenizer("decoder", pad_token="[PAD]")
    padded = FaastSeq2Seq((model, padding), batch_size=4, max_new_tokens=3).fit(*data)
    assert bare.perplexity(*test) == padded.perplexity(*test)
    assert list(bare.predict(test[0])) == list(padded.predict(test[0]))
    assert tokenizer.pad_token is None


# Data


@pytest.mark.parametrize("method", ["fit", "partial_fit", "perplexity", "token_scores"])
@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (["a cat", 3], ["dog", "cat"], r"X\[1\] is 3"),
        (["a cat", None], ["dog", "cat"], r"X\[1\] is None"),
        (["a cat", "a"], ["dog", 1.5], r"y\[1\] is 1\.5"),
        (["a cat", "a"], ["dog", None], r"y\[1\] is None"),
        (["a cat", "a"], ["dog"], "X has 2 samples and y has 1"),
        (["a cat", "a"], ["dog", " "], r"y\[1\] is empty"),
        (["a cat", "a"], ["", "dog"], r"y\[0\] is empty"),
        (["a cat", ""], None, r"X\[1\] is empty"),
        ([], [], "X has 0 samples"),
        ([], None, "X has 0 samples"),
        ("a cat", ["dog"], "X is one str"),
        (["a cat"], "dog", "y is one str"),
        (None, ["dog"], "X is None"),
        ({"text": ["a"]}, ["dog"], r"choose one, as in X\['KEY'\]"),
        (["a"], ["red " * 16], r"y\[0\] has 17 tokens with its end, and the model reads 16"),
    ],
)
@pytest.mark.filterwarnings("ignore::faast_sklearn.errors.NotFittedWarning")
def test_texts_that_cannot_be_are_named(method, X, y, message, gpt2):
    seq2seq = FaastSeq2Seq(gpt2)
    with pytest.raises(InputError, match=message):
        getattr(seq2seq, method)(X, y)
    assert not hasattr(seq2seq, "moments_")
    with pytest.raises(NotFittedError):
        seq2seq.forget(["a"], ["cat"])


def test_other_texts_that_cannot_be(llama):
    seq2seq = FaastSeq2Seq(llama, max_new_tokens=2).fit(*pairs(10))
    before = dict(seq2seq.__dict__)
    with pytest.raises(InputError, match=r"X\[1\] is 2"):
        seq2seq.predict(["a", 2])
    with pytest.raises(InputError, match="y is None; only scoring='negative_perplexity'"):
        seq2seq.score(["a"])
    with pytest.raises(InputError, match="X has 1 samples and y has 2"):
        seq2seq.score(["a"], ["a", "b"])
    endless = tiny_model("gpt2")
    endless.config.eos_token_id = endless.generation_config.eos_token_id = None
    with pytest.raises(InputError, match="a single token"):
        FaastSeq2Seq((endless, NoEnd())).fit(["cat", "dog"])
    for change in (seq2seq.fit, seq2seq.partial_fit, seq2seq.forget):
        with pytest.raises(InputError, match="y has 2"):
            change(["a"], ["a", "b"])
    assert seq2seq.__dict__ == before
    t5 = FaastSeq2Seq(opened("t5"))
    with pytest.raises(InputError, match="encoder-decoder model learns from sources and targets"):
        t5.fit(["a cat"])
    bart = FaastSeq2Seq(opened("bart"), target="embedding")
    with pytest.raises(InputError, match="final norm, and 'bart' models have none there; use target='residual'"):
        bart.fit(["a cat"], ["dog"])


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


def test_long_sources_are_shortened_with_one_warning_and_answers_are_not(gpt2):
    long = "the cat sat on the mat far away from one two three red green blue house"
    seq2seq = FaastSeq2Seq(gpt2, max_new_tokens=2, batch_size=1)
    with pytest.warns(TruncationWarning, match="2 of 3") as seen:
        seq2seq.fit([long, "a", long], ["dog dog", "cat", "tree of"])
    assert len(seen) == 1
    assert seq2seq.n_tokens_seen_ == 8  # answers are whole
    with pytest.warns(TruncationWarning, match="1 of 2") as seen:
        seq2seq.predict([long, "a"])
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{source}", r"lacks \{target\}"),
        ("{target}", r"lacks \{source\}"),
        ("{source} {goal} {target}", r"has the field \{goal\}"),
        ("{target} {source}", "after {source}"),
        (7, "template=7 is int"),
        (lambda source: 3, r"X\[0\]: template returned int '3'"),
        (lambda source: [{"role": "user", "content": source}], r"X\[0\]: .*no chat template"),
    ],
)
def test_templates_that_cannot_be_are_named(template, message, llama):
    seq2seq = FaastSeq2Seq(llama, template=template)
    with pytest.raises(InputError, match=message):
        seq2seq.fit(["a"], ["cat"])
    with pytest.raises(InputError, match=message):
        seq2seq.predict(["a"])
    assert not hasattr(seq2seq, "moments_")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["a", "cat", "a"], r"choices\[2\] is 'a' again"),
        (["a", ""], r"choices\[1\] is empty"),
        ([], "at least one"),
        ("cat", "list of strings"),
        (["a", 3], r"choices\[1\] is 3"),
        (["a", "red " * 16], r"choices\[1\] has 17 tokens"),
    ],
)
def test_choices_that_cannot_be_are_named(choices, message, gpt2):
    seq2seq = FaastSeq2Seq(gpt2).fit(*pairs(9)).set_params(choices=choices)
    with pytest.raises(ValueError, match=message):
        seq2seq.predict(["a"])


def test_choice_probabilities_need_choices(llama):
    with pytest.raises(ValueError, match="choices is None"):
        FaastSeq2Seq(llama).choice_log_probabilities(["a"])


# Parameters


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target", "residuals"),
        ("target", None),
        ("solver", "lasso"),
        ("solver", ["ridge"]),
        ("alpha", -1),
        ("alpha", "automatic"),
        ("alpha", float("nan")),
        ("alpha", None),
        ("memory_weight", -0.5),
        ("memory_weight", float("inf")),
        ("memory_weight", True),
        ("learn_from", "prompt"),
        ("scoring", "accuracy"),
        ("batch_size", 0),
        ("batch_size", "big"),
    ],
)
def test_wrong_parameters_are_named(name, value, llama):
    data = pairs(10)
    seq2seq = FaastSeq2Seq(llama).fit(*data)
    moments, samples = seq2seq.moments_, seq2seq.n_samples_seen_
    seq2seq.set_params(**{name: value})
    uses = [seq2seq.fit, seq2seq.partial_fit, seq2seq.forget, seq2seq.score, seq2seq.perplexity]
    for use in uses:
        with pytest.raises(ValueError, match=f"{name}.*{value!r}".replace("[", r"\[")):
            use(*data)
    assert (seq2seq.moments_, seq2seq.n_samples_seen_) == (moments, samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"num_beams": "two"}, "num_beams"),
        ({"generation_config": {"temprature": 1.0}}, "temprature"),
    ],
)
def test_wrong_settings_of_generation_are_named(options, message, llama):
    with pytest.raises(ValueError, match=message):
        FaastSeq2Seq(llama, **options).fit(*pairs(9)).predict(["a"])


@pytest.mark.parametrize("value", [0, 1.5, True, "two"])
def test_wrong_numbers_of_passes_are_named(value, llama):
    with pytest.raises(ValueError, match=f"n_passes.*{value!r}"):
        FaastSeq2Seq(llama, n_passes=value).fit(*pairs(9))


def test_several_passes_need_all_samples_and_the_residual(llama):
    with pytest.raises(ValueError, match="needs target='residual'"):
        FaastSeq2Seq(llama, n_passes=2, target="embedding").fit(*pairs(9))
    seq2seq = FaastSeq2Seq(llama, n_passes=2).fit(*pairs(20))
    for change in (seq2seq.partial_fit, seq2seq.forget):
        with pytest.raises(ValueError, match="n_passes=1"):
            change(*pairs(20))


# Models


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (lambda: (tiny_model("bert"), tiny_tokenizer()), BackboneError, "is no language model|no language-model head"),
        (lambda: torch.nn.Linear(2, 2), BackboneError, "Linear is no language model"),
        (lambda: tiny_model("llama"), BackboneError, "needs its tokenizer"),
        (lambda: "timm:resnet18", BackboneError, "'timm:' has no language models"),
        (lambda: "bundled:minilm-l6", BackboneError, "is no language model"),
        (lambda: "/nowhere/at/all", UnknownBackboneError, "no existing path"),
        (lambda: 3, UnknownBackboneError, "backbone=3 is int"),
        (lambda: None, UnknownBackboneError, "backbone=None"),
    ],
)
def test_what_is_no_language_model_is_refused(source, error, message):
    seq2seq = FaastSeq2Seq(source())
    for use in (seq2seq.fit, seq2seq.partial_fit, seq2seq.perplexity):
        with pytest.raises(error, match=message):
            use(["a"], ["cat"])
    assert not hasattr(seq2seq, "moments_")


@pytest.mark.parametrize(("dtype", "remedy"), [("bfloat16", "try dtype='float32'"), ("float32", "values are finite")])
@pytest.mark.parametrize("target", ["residual", "embedding"])
def test_hidden_states_that_are_not_finite_name_the_sample_and_the_remedy(dtype, remedy, target):
    model, tokenizer = opened("llama")
    model.to(getattr(torch, dtype))
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer("mat")["input_ids"]] = float("inf")
    seq2seq = FaastSeq2Seq((model, tokenizer), batch_size=2, target=target).fit(["a cat", "the dog"] * 4, ["red"] * 8)
    state, wanted = dict(seq2seq.__dict__), seq2seq.perplexity(["a"], ["cat"])
    X, y = ["a cat", "the dog", "the cat", "the mat", "a mat"], ["red"] * 5
    for change in (seq2seq.fit, seq2seq.partial_fit, seq2seq.forget):
        with pytest.raises(NonFiniteError, match=rf"X\[3\].*in {dtype}; .*{remedy}"):
            change(X, y)
    assert seq2seq.__dict__ == state
    assert seq2seq.perplexity(["a"], ["cat"]) == wanted
    with pytest.raises(NonFiniteError, match=r"X\[3\]"):
        seq2seq.perplexity(X, y)


def test_where_memory_is_short_batches_are_halved(caplog):
    model, tokenizer = opened("llama")
    data, test = pairs(21), pairs(9, 9)
    wanted = FaastSeq2Seq((model, tokenizer), batch_size=2, max_new_tokens=3).fit(*data)
    scores, answers = wanted.perplexity(*test), list(wanted.predict(test[0]))
    largest = [2]

    def short(part, args, kwargs):
        if len(kwargs["input_ids"]) > largest[0]:
            raise torch.OutOfMemoryError("out of memory")

    hook = model.register_forward_pre_hook(short, with_kwargs=True)
    try:
        seq2seq = FaastSeq2Seq((model, tokenizer), batch_size=4, max_new_tokens=3)
        with caplog.at_level(logging.WARNING, "faast_sklearn"):
            seq2seq.fit(*data)
        assert "batch_size is now 2" in caplog.text
        assert seq2seq.n_samples_seen_ == 21
        assert seq2seq.perplexity(*test) == pytest.approx(scores, rel=1e-5)
        assert list(seq2seq.predict(test[0])) == answers
        largest[0] = 0
        with pytest.raises(OutOfMemoryError, match="Not even one sample"):
            seq2seq.fit(*data)
        assert seq2seq.n_samples_seen_ == 21
    finally:
        hook.remove()
    assert seq2seq.perplexity(*test) == pytest.approx(scores, rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_precisions(dtype):
    data, test = pairs(60), pairs(20, 9)
    model, tokenizer = opened("llama")
    one = FaastSeq2Seq((model, tokenizer), memory_weight=1.0).fit(*data)
    other = FaastSeq2Seq((model, tokenizer), memory_weight=1.0, dtype=dtype).fit(*data)
    rel = 0.05 if dtype == "bfloat16" else 1e-4
    assert other.perplexity(*test) == pytest.approx(one.perplexity(*test), rel=rel)
    with other.attached() as module:
        assert module.dtype == getattr(torch, dtype)
    assert model.dtype == torch.float32
