"""What FaastSeq2Seq answers, and what it does where texts are long, numbers overflow or memory is short."""

import logging

import numpy as np
import pytest
import torch
from helpers.choices import one_by_one
from helpers.seq2seq import opened, pairs
from helpers.tiny import tiny_model, tiny_tokenizer
from sklearn.exceptions import NotFittedError

from faast_sklearn import FaastSeq2Seq
from faast_sklearn.backbones.handle import as_handle
from faast_sklearn.errors import (
    NonFiniteError,
    NotFittedWarning,
    OutOfMemoryError,
    TruncationWarning,
)
from faast_sklearn.language.prompts import Prompts

CHOICES = ["red", "red house", "the cat ran", "blue"]


@pytest.fixture(scope="module")
def llama():
    return opened("llama")


@pytest.fixture(scope="module")
def gpt2():
    return tiny_model("gpt2"), tiny_tokenizer("decoder")  # 16 positions


# Answers


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
def test_choices_are_scored_along_their_tree_and_the_score_is_accuracy(name):
    X, y = pairs(40)[0], [CHOICES[i % 4] for i in range(40)]
    seq2seq = FaastSeq2Seq(opened(name), choices=CHOICES, batch_size=8).fit(X, y)
    test, wanted = pairs(15, 9, ragged=True)[0], [CHOICES[i % 3] for i in range(15)]
    scores = seq2seq.choice_log_probabilities(test)
    assert scores.shape == (15, 4)
    lm = as_handle(seq2seq.backbone).open_language_model("cpu", "float32")
    with seq2seq.attached():
        wanted_scores = one_by_one(lm, Prompts(lm), CHOICES, test)
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-4)
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
    model = opened(name)
    model[0].generation_config.min_new_tokens = 3
    seq2seq = FaastSeq2Seq(model, batch_size=5, max_new_tokens=4).fit(*pairs(40, ragged=True))
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
    model = opened("llama")
    model[0].generation_config.min_new_tokens = 3
    seq2seq = FaastSeq2Seq(model, max_new_tokens=3).fit(*pairs(60))
    X, y = pairs(20, 9)
    found = list(seq2seq.predict(X))
    y[:4] = found[:4]
    # No reference has four words, and with runs of four even equal texts would score nothing.
    longest = max(len(text.split()) for text in y)
    assert longest < 4
    wanted = {
        "bleu": sacrebleu.BLEU(max_ngram_order=longest, force=True).corpus_score(found, [y]).score,
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
    with pytest.warns(NotFittedWarning, match="the frozen model is used; call fit"):
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


# Data that are used as far as they can be (what cannot be used at all: test_bad_inputs.py)


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


# Models


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
