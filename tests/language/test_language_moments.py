"""Statistics of learnt tokens: the same in any order and split, undone by ``−``, and what their definitions say."""

import pickle
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.language import VOCABULARY, make, numbers
from helpers.tiny import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from faast_sklearn.backbones.transformers.language_model import LanguageModel
from faast_sklearn.language import reserve as reserve_module
from faast_sklearn.language.moments import LanguageMoments
from faast_sklearn.language.reserve import Reserve, Sample, digest
from faast_sklearn.language.solving import DAMPING, curvature
from faast_sklearn.language.tokens import token_moments
from faast_sklearn.moments.cross_moments import CrossMoments

quick = settings(derandomize=True, deadline=None, max_examples=25)
CPU = torch.device("cpu")
MODELS = ["llama", "gpt2", "gemma2", "cohere", "granite", "t5", "bart"]


@pytest.fixture(scope="module")
def opened():
    made = {}

    def open_(name):
        if name not in made:
            model = make(name).double()
            kind = "t5" if model.config.is_encoder_decoder else "decoder"
            made[name] = LanguageModel(model, tiny_tokenizer(kind), CPU, torch.float64)
        return made[name]

    return open_


def tokens(lm, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(n, lm.head.in_features, generator=generator, dtype=torch.float64)
    return keys, torch.randint(0, VOCABULARY, (n,), generator=generator)


def pieces(rng, n, n_pieces):
    """Cut a random order of n rows at random places."""
    return [part for part in np.split(rng.permutation(n), np.sort(rng.integers(0, n + 1, n_pieces - 1))) if len(part)]


def assert_same(a, b, rtol=1e-10):
    for x, y in zip(numbers(a), numbers(b), strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=rtol * max(1.0, float(x.abs().max())))
    assert [s.digest for s in a.reserve.samples] == [s.digest for s in b.reserve.samples]
    assert a.reserve.bound == b.reserve.bound


def learnt(lm, target, keys, targets, which=None):
    """The moments of some samples of three tokens each, whose middle memory has arbitrary values."""
    which = range(len(keys) // 3) if which is None else which
    rows = torch.tensor([3 * i + k for i in which for k in range(3)])
    keys, targets = keys[rows], targets[rows]
    digests = [digest(row) for row in targets.view(-1, 3).tolist()]
    kept = Reserve.of_tokens(digests, keys, targets, [3] * len(which))
    middle = [CrossMoments.from_rows(keys, keys.cos())]
    return LanguageMoments(token_moments(lm, target, keys, targets), middle, kept, len(which))


@pytest.mark.parametrize("target", ["residual", "embedding"])
@quick
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 6))
def test_any_split_and_order_gives_the_same_and_minus_undoes_plus(opened, target, seed, n, n_pieces):
    lm, rng = opened("gemma2"), np.random.default_rng(seed)
    keys, targets = tokens(lm, 3 * n, seed)
    cut = pieces(rng, n, n_pieces)
    whole = learnt(lm, target, keys, targets)
    parts = [learnt(lm, target, keys, targets, part) for part in cut]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert_same(whole, total)
    if len(cut) > 1:
        assert_same(total - parts[-1], learnt(lm, target, keys, targets, np.concatenate(cut[:-1])), rtol=1e-9)


@quick
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 6))
def test_cross_moments_are_the_products(seed, n, n_pieces):
    rng = np.random.default_rng(seed)
    K, V = torch.from_numpy(rng.normal(2, 1, (n, 5))), torch.from_numpy(rng.normal(size=(n, 3)))
    total = CrossMoments.empty(5, 3)
    for part in pieces(rng, n, n_pieces):
        total = total + CrossMoments.from_rows(K[part], V[part])
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(total.keys.about_origin().matrix(), K.T @ K, **close)
    torch.testing.assert_close(total.cross, K.T @ V, **close)
    assert total.power == pytest.approx(float((V * V).sum()))
    assert total.weight == n
    rest = total - CrossMoments.from_rows(K[:1], V[:1])
    torch.testing.assert_close(rest.cross, K[1:].T @ V[1:], **close)
    torch.testing.assert_close(rest.keys.about_origin().matrix(), K[1:].T @ K[1:], rtol=1e-9, atol=1e-9)


def reserve_of(numbers, lengths):
    samples = [
        Sample(digest([k]), torch.full((lengths[k], 2), float(k)), torch.full((lengths[k],), k)) for k in numbers
    ]
    return Reserve.of(samples)


@quick
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 8), st.integers(1, 40))
def test_a_reserve_does_not_depend_on_the_order_also_where_samples_repeat(seed, n, n_pieces, most):
    rng = np.random.default_rng(seed)
    numbers, lengths = rng.integers(0, 12, n), rng.integers(1, 5, 12).tolist()
    with mock.patch.object(reserve_module, "MOST_TOKENS", most):
        whole, total = reserve_of(numbers, lengths), Reserve()
        for part in pieces(rng, n, n_pieces):
            total = total + reserve_of(numbers[part], lengths)
        assert [s.digest for s in total.samples] == [s.digest for s in whole.samples]
        assert total.bound == whole.bound
        assert total.n_tokens <= most
        # As many as fit: the next one does not, or there is none.
        ranked = sorted((digest([k]), lengths[k]) for k in numbers)
        assert len(whole) == int((np.cumsum([length for _, length in ranked]) <= most).sum())
        assert whole.missing(reserve_of(numbers[:1], lengths)) == 0
        assert whole.missing(Reserve.of([Sample(bytes(8), torch.ones(1, 2), torch.ones(1))])) == 1


@quick
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_a_reserve_forgets(seed, n):
    rng = np.random.default_rng(seed)
    numbers, lengths = rng.integers(0, 12, n), [2] * 12
    some = rng.permutation(n)[: n // 2]
    rest = reserve_of(numbers, lengths) - reserve_of(numbers[some], lengths)
    assert [s.digest for s in rest.samples] == [s.digest for s in reserve_of(np.delete(numbers, some), lengths).samples]
    assert rest.missing(reserve_of([*numbers, 3], lengths)) > 0


@quick
@given(st.integers(0, 400), st.sampled_from([0.0, 100.0, 1e6]))
def test_folds_part_the_samples(n, more):
    kept = Reserve([Sample(digest([k]), torch.zeros(1, 2), torch.zeros(1)) for k in range(n)])
    folds = kept.folds(n + more)
    assert sorted(i for fold in folds for i in fold) == (list(range(n)) if folds else [])
    assert bool(folds) == (n > 1 or (n == 1 and n <= (n + more) / 4))
    assert len(folds) <= 4
    assert (len(folds) == 1) == (n > 0 and n <= (n + more) / 4)


def test_of_a_long_sample_evenly_spaced_tokens_are_kept():
    kept = Reserve.of_tokens([digest([1])], torch.arange(1000.0)[:, None], torch.arange(1000), [1000])
    assert 128 <= kept.n_tokens <= 256
    (sample,) = kept.samples
    assert len(set(sample.targets.diff().tolist())) == 1
    assert torch.equal(sample.keys[:, 0].long(), sample.targets)
    assert sample.targets[-1] > 990


@pytest.mark.parametrize("name", MODELS)
def test_residual_values_are_the_negative_gradient_of_the_loss(name, opened):
    lm = opened(name)
    keys, targets = tokens(lm, 6)
    for i in range(len(keys)):
        h = keys[i : i + 1].clone().requires_grad_()
        logits = lm.finish(torch.nn.functional.linear(h, lm.head.weight, lm.head.bias))
        loss = torch.nn.functional.cross_entropy(logits, targets[i : i + 1])
        (gradient,) = torch.autograd.grad(loss, h)
        moments = token_moments(lm, "residual", keys[i : i + 1], targets[i : i + 1])
        # One key: C = k vᵀ.
        value = keys[i] @ moments.memory.cross / keys[i].square().sum()
        torch.testing.assert_close(value, -gradient[0], rtol=1e-4, atol=1e-5)
        assert moments.loss == pytest.approx(loss.item(), rel=1e-5)
        assert moments.memory.power == pytest.approx(float(gradient.square().sum()), rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("most", [1, 2**24])
def test_curvature_is_the_sum_over_tokens(name, most, opened, monkeypatch):
    """Fisher's information of each token about its hidden state, from what chunks of rows add up."""
    from faast_sklearn.language import tokens as module

    monkeypatch.setattr(module, "_MOST_LOGITS", most)
    lm = opened(name)
    keys, targets = tokens(lm, 9)
    moments = token_moments(lm, "residual", keys, targets)
    E = lm.head.weight.detach()
    F, probability = torch.zeros(len(E.T), len(E.T), dtype=torch.float64), torch.zeros(len(E), dtype=torch.float64)
    for h in keys:
        raw = torch.nn.functional.linear(h, E, lm.head.bias).detach().requires_grad_()
        # The logits are functions of their own raw values alone, so the sum's gradient is every slope.
        logits = lm.finish(raw[None])[0]
        (slope,) = torch.autograd.grad(logits.sum(), raw)
        p = logits.detach().softmax(0)
        probability += p
        J = slope[:, None] * E
        F += J.T @ (torch.diag(p) - torch.outer(p, p)) @ J
    second = E.T @ (moments.curvature[:, None] * E)
    found = second - moments.expected.about_origin().matrix()
    torch.testing.assert_close(found, F, rtol=1e-4, atol=1e-4 * float(F.abs().max()))
    torch.testing.assert_close(moments.probability, probability, rtol=1e-4, atol=1e-5)
    assert torch.equal(moments.counts, torch.bincount(targets, minlength=VOCABULARY).double())
    # What is inverted has a bound on the curvature that tokens may come to have.
    factor = curvature(lm, moments)(DAMPING)
    damped = F / 9 + 30 * F.trace() / 9 / E.square().sum() * E.T @ E
    torch.testing.assert_close(factor @ factor.T, damped, rtol=1e-4, atol=1e-4 * float(damped.abs().max()))


def test_embedding_values_are_those_of_the_next_tokens(opened):
    lm = opened("t5")
    keys, targets = tokens(lm, 9)
    moments = token_moments(lm, "embedding", keys, targets)
    torch.testing.assert_close(moments.memory.cross, keys.T @ lm.embedding.weight[targets])
    assert moments.expected is None


def test_moments_travel_without_a_device(opened):
    lm = opened("llama")
    keys, targets = tokens(lm, 30)
    moments = learnt(lm, "residual", keys, targets)
    blob = pickle.dumps(moments)
    assert b"torch._utils" not in blob  # how tensors are pickled
    again = pickle.loads(blob)
    assert_same(again, moments)
    assert_same(again + moments, moments + moments)
    for mine, theirs in zip(again.reserve.samples, moments.reserve.samples, strict=True):
        torch.testing.assert_close(mine.keys, theirs.keys)
        assert torch.equal(mine.targets, theirs.targets)
    assert_same(moments.to("cpu"), moments)


def test_moments_never_change(opened):
    lm = opened("llama")
    keys, targets = tokens(lm, 60)
    a, b = (learnt(lm, "residual", keys, targets, which) for which in (range(12), range(12, 20)))
    before = pickle.dumps(a), pickle.dumps(b)
    _ = a + b, b + a, (a + b) - b, a.to("cpu"), curvature(lm, a.output)(DAMPING)
    assert (pickle.dumps(a), pickle.dumps(b)) == before
