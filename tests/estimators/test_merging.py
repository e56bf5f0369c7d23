import numpy as np
import pytest
import torch
from helpers.seq2seq import chosen, logits, opened, pairs, some
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

from faast_sklearn import FaastClassifier, FaastSeq2Seq, merge
from faast_sklearn.errors import InputError


def test_shards_of_rows_are_the_whole_also_with_other_classes_on_each():
    X, y = load_digits(return_X_y=True)
    order = np.argsort(y, kind="stable")  # shards hardly share a class
    shards = [FaastClassifier(verbose=0, batch_size=k + 1).fit(X[i], y[i]) for k, i in enumerate(np.split(order, 3))]
    before = [shard.coef_.copy() for shard in shards]
    merged, whole = merge(shards), FaastClassifier().fit(X, y)
    np.testing.assert_allclose(merged.coef_, whole.coef_, rtol=1e-7, atol=1e-10)
    assert merged.n_samples_seen_ == len(X)
    assert merged.classes_.tolist() == list(range(10))
    for shard, coef in zip(shards, before, strict=True):
        np.testing.assert_array_equal(shard.coef_, coef)
    merged.partial_fit(X[:5], y[:5])
    assert merged.n_samples_seen_ == len(X) + 5


@pytest.mark.parametrize("target", ["residual", "embedding"])
def test_two_language_models_that_learnt_halves_are_one_that_learnt_all(target):
    backbone, data = opened("llama"), chosen(pairs(24), ["cat", "dog"])
    options = {"target": target, "batch_size": 6, "choices": ["cat", "dog"]}
    halves = [FaastSeq2Seq(backbone, **options).fit(*some(data, range(i, i + 12))) for i in (0, 12)]
    merged, whole = merge(halves), FaastSeq2Seq(backbone, **options).fit(*data)
    torch.testing.assert_close(logits(merged), logits(whole), rtol=0, atol=1e-4)
    assert merged.n_samples_seen_ == 24


def test_what_does_not_belong_together_is_refused():
    X, y = load_digits(return_X_y=True)
    one = FaastClassifier().fit(X, y)
    with pytest.raises(InputError, match=r"estimators\[1\] has alpha=3.0 and the first 'auto'"):
        merge([one, FaastClassifier(alpha=3.0).fit(X, y)])
    with pytest.raises(InputError, match=r"estimators\[1\] has learnt from 5 features"):
        merge([one, FaastClassifier().fit(X[:, :5], y)])
    with pytest.raises(InputError, match=r"estimators\[1\] is a FaastSeq2Seq"):
        merge([one, FaastSeq2Seq(opened("llama")).fit(*pairs(4))])
    # Arrays are compared by content, however long: their printed form leaves out the middle.
    vectors = [np.arange(2000.0), np.arange(2000.0)[::-1]]
    other = [np.where(np.arange(2000) == 1000, 0.5, vectors[0]), vectors[1]]
    known = [
        FaastClassifier(values=values).fit(X[:50], y[:50] % 2) for values in (vectors, [*map(np.copy, vectors)], other)
    ]
    merge(known[:2])
    with pytest.raises(InputError, match=r"estimators\[1\] has values="):
        merge(known[1:])
    with pytest.raises(InputError, match="nothing to merge"):
        merge([])
    with pytest.raises(NotFittedError):
        merge([one, FaastClassifier()])


def test_refined_models_know_more_and_cannot_be_added_to():
    backbone, data = opened("llama"), pairs(160, noise=0.0)
    test = pairs(40, seed=1, noise=0.0)
    once = FaastSeq2Seq(backbone).fit(*data)
    twice = FaastSeq2Seq(backbone).fit(*data).refine(*(column[::-1] for column in data))
    before = twice.token_scores(*test)
    assert before["nll"] < once.token_scores(*test)["nll"] - 0.01
    for method in (twice.partial_fit, twice.forget):
        with pytest.raises(InputError, match="was refined"):
            method(*data)
    with pytest.raises(InputError, match="was refined"):
        merge([twice, once])
    with pytest.raises(InputError, match="other texts"):
        twice.refine(*test)
    assert twice.token_scores(*test) == before
    assert twice.fit(*data).partial_fit(*test).n_samples_seen_ == 200
    with pytest.raises(ValueError, match="needs target='residual'"):
        FaastSeq2Seq(backbone, target="embedding").fit(*data).refine(*data)
    with pytest.raises(NotFittedError):
        FaastSeq2Seq(backbone).refine(*data)


def test_refined_weights_fold_into_the_matrix_too(tmp_path):
    import transformers

    data = pairs(160, noise=0.0)
    seq2seq = FaastSeq2Seq(opened("llama")).fit(*data).refine(*data).refine(*data)
    seq2seq.save_folded(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[5, 9, 7, 4, 11]])
    with torch.no_grad(), seq2seq.attached() as model:
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-4)
