"""Token ids without a tokenizer: the same as the texts that they stand for, in every form; what is refused."""

import numpy as np
import pytest
import torch
from helpers.language import numbers
from helpers.tiny import tiny_model, tiny_tokenizer

from faast_sklearn import FaastSeq2Seq
from faast_sklearn.errors import BackboneError, InputError
from faast_sklearn.language import FastWeightLM
from faast_sklearn.language.prompts import Prompts

X = ["the cat sat on", "a dog ran", "one two three", "red green", "the house far away from one tree"]
Y = ["the mat", "far away", "red", "blue green red", "a dog"]
STRONG = {"alpha": 1.0, "memory_weight": 1.0, "device": "cpu"}


def bare(name="llama", **options):
    return FastWeightLM(tiny_model(name), **{**STRONG, **options})


def rows_of(seq2seq, *texts):
    """Prompts and answers of the estimator's texts, as token ids."""
    exchanges = seq2seq._exchanges(seq2seq._open_backbone(), *texts)
    return [list(e.prompt) for e in exchanges], [list(e.answer) for e in exchanges]


def padded(rows, fill=0, side="right"):
    width = max(map(len, rows))
    pad = [[fill] * (width - len(row)) for row in rows]
    return torch.tensor([[*row, *p] if side == "right" else [*p, *row] for row, p in zip(rows, pad, strict=True)])


def forms(prompts, answers, encoder_decoder):
    """The same samples, as arguments of learn and token_scores."""
    yield {"input_ids": prompts, "answers": answers}
    yield {"input_ids": [np.array(row) for row in prompts], "answers": [torch.tensor(row) for row in answers]}
    yield {"input_ids": prompts, "answers": answers, "batch_size": 1}
    mask = padded([[1] * len(row) for row in prompts], side="left")
    yield {"input_ids": padded(prompts, 7, "left"), "attention_mask": mask, "answers": answers}
    if encoder_decoder:
        rows, labels = prompts, answers
    else:
        rows = [p + a for p, a in zip(prompts, answers, strict=True)]
        labels = [[-100] * len(p) + a for p, a in zip(prompts, answers, strict=True)]
    yield {"input_ids": rows, "labels": labels}
    mask = padded([[1] * len(row) for row in rows])
    yield {"input_ids": padded(rows, 7), "attention_mask": mask, "labels": padded(labels, -100)}


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
def test_ids_are_learnt_and_scored_as_the_texts_that_they_stand_for(name):
    tokenizer = tiny_tokenizer("t5" if name in ("t5", "bart") else "decoder")
    seq2seq = FaastSeq2Seq((tiny_model(name), tokenizer), device="cpu").fit(X, Y)  # strengths from held-out tokens
    scores = seq2seq.token_scores(X, Y)
    for form in forms(*rows_of(seq2seq, X, Y), name in ("t5", "bart")):
        lm = bare(name, alpha="auto", memory_weight="auto").learn(**form)
        assert lm.tokenizer is None
        assert lm.n_tokens == seq2seq.n_tokens_seen_
        for ours, theirs in zip(numbers(lm.moments), numbers(seq2seq.moments_), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
        assert lm.moments.reserve.folds() == seq2seq.moments_.reserve.folds()
        assert lm.solved().memory_weight == pytest.approx(seq2seq.memory_weight_, rel=1e-3, abs=1e-6)
        # Strengths agree to 1e-3 only, see above, and losses follow them.
        assert lm.token_scores(**form) == pytest.approx(scores, rel=5e-4)


def test_whole_texts_are_learnt_from_rows_and_from_batches_alike():
    seq2seq = FaastSeq2Seq((tiny_model("llama"), tiny_tokenizer("decoder")), **STRONG).fit(X)
    rows = [p + a for p, a in zip(*rows_of(seq2seq, X, None), strict=True)]
    batch = {"input_ids": padded(rows), "attention_mask": padded([[1] * len(row) for row in rows])}
    scores = pytest.approx(seq2seq.token_scores(X), rel=1e-4)
    for form in ({"input_ids": rows}, batch, {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}):
        lm = bare().learn(**form)
        assert lm.token_scores(**form) == scores
        assert lm.moments.reserve.folds() == seq2seq.moments_.reserve.folds()
    assert bare().learn(rows[:2]).learn(rows[2:]).token_scores(rows) == scores


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_without_a_tokenizer_ids_go_in_and_out_and_a_checkpoint_is_written(name, tmp_path):
    lm = bare(name)
    prompts, answers = [[5, 6, 7], [8, 9]], [[10, 11, 3], [12, 3]]
    frozen = lm.token_scores(prompts, answers=answers)["nll"]
    assert lm.learn(prompts, answers=answers).token_scores(prompts, answers=answers)["nll"] < frozen
    ids = torch.tensor([[5, 6, 7]])
    lm.save_folded(tmp_path / "folded")
    folded = type(lm.model.module).from_pretrained(tmp_path / "folded").eval()
    settings = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(lm.generate(ids, **settings), folded.generate(ids, **settings))
    with lm.attached() as model:
        assert torch.equal(model.generate(ids, **settings), folded.generate(ids, **settings))
    # A folder without a tokenizer opens as well.
    again = FastWeightLM.from_pretrained(str(tmp_path / "folded"), device="cpu")
    assert again.tokenizer is None
    assert again.token_scores(prompts, answers=answers) == pytest.approx(
        lm.token_scores(prompts, answers=answers), rel=1e-4
    )


def test_what_needs_text_says_what_to_pass(tmp_path):
    lm = bare()
    for call in (lm.learn, lm.token_scores, lm.generate, lm):
        for text in ("a cat", ["a cat"]):
            with pytest.raises(InputError, match=r"is text, .*tokenizer\(texts.*or use FaastSeq2Seq"):
                call(text)
    with pytest.raises(InputError, match="is text"):
        lm.learn([[5, 6]], answers=["a cat"])
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    told = r"needs its tokenizer: backbone\(\(LlamaForCausalLM, tokenizer\)\)"
    for backbone in (model, str(tmp_path)):
        seq2seq = FaastSeq2Seq(backbone, device="cpu", choices=["red", "blue"])
        for call in (lambda s=seq2seq: s.fit(X, ["red"] * 5), lambda s=seq2seq: s.predict(X)):
            with pytest.raises(BackboneError, match=told):
                call()
    with pytest.raises(BackboneError, match=told):
        Prompts(lm.model)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (([[5, 99]],), r"input_ids\[0\] has token 99, and LlamaForCausalLM has 25 embeddings"),
        ((torch.tensor([[5, 99]]),), r"input_ids\[0\] has token 99"),
        (([[5, 6], [5, -1]],), r"input_ids\[1\] has token -1"),
        (([[5, 6], []],), r"input_ids\[1\] has no token"),
        (([5, 6],), r"input_ids\[0\] is 5, expected a row"),
        ((torch.tensor([5, 6]),), r"input_ids\[0\] is 5, expected a row"),
        (([[5.0, 6.0]],), r"input_ids\[0\] is \[5\.0, 6\.0\], expected a row of token ids"),
        (([],), r"input_ids is \[\]; pass rows"),
        ((7,), "input_ids is 7; pass rows"),
        (([[5] * 65],), "sample 0 has 65 tokens, and the model reads 64"),
        ((torch.full((1, 65), 5),), "a row of input_ids has 65 tokens, and the model reads 64"),
        ((tiny_tokenizer("decoder")(["a cat"]),), r"input_ids is BatchEncoding; unpack it"),
        (([[5, 6]], [[1]]), "attention_mask and input_ids differ in shape"),
        ((torch.tensor([[5, 6]]), torch.tensor([[1]])), "need the shape of input_ids"),
    ],
)
def test_ids_that_cannot_be_are_named_and_nothing_is_learnt(arguments, told):
    lm = bare()
    for call in (lm.learn, lm.token_scores):
        with pytest.raises(InputError, match=told):
            call(*arguments)
    assert lm.problem is None


def test_answers_that_cannot_be_are_named():
    lm = bare()
    for answers, told in (
        ([[5]], "input_ids has 2 samples and answers has 1"),
        ([[5], []], r"answers\[1\] has no token"),
        ([[5], [99]], r"answers\[1\] has token 99"),
        ([[5], [5] * 64], "sample 1 has 65 tokens"),
    ):
        with pytest.raises(InputError, match=told):
            lm.learn([[5, 6], [7]], answers=answers)
    with pytest.raises(InputError, match="answers= goes with input_ids alone, without labels="):
        lm.learn([[5]], labels=[[5]], answers=[[5]])
    with pytest.raises(InputError, match="no token to score"):
        lm.token_scores([[5], [6]])
    for ids in ([[5, 6]], torch.tensor([[5, 6]])):
        with pytest.raises(InputError, match="pass their tokens as answers= or labels="):
            bare("t5").learn(ids)
