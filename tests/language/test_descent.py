"""Further closed-form steps: what they compute, and that it depends on what was learnt alone."""

from unittest import mock

import numpy as np
import pytest
import torch
from helpers.language import VOCABULARY, make
from helpers.tiny import WORDS, tiny_tokenizer

from faast_sklearn import FaastSeq2Seq, backbone, load, merge, save
from faast_sklearn.backbones.transformers.language_model import LanguageModel
from faast_sklearn.language import problem as problem_module
from faast_sklearn.language import reserve as reserve_module
from faast_sklearn.language import shortlist as shortlist_module
from faast_sklearn.language.descent import Descent
from faast_sklearn.language.fast_weights import FastWeights
from faast_sklearn.language.problem import solve_weights
from faast_sklearn.language.prompts import Prompts
from faast_sklearn.language.shortlist import Shortlist
from faast_sklearn.language.solving import FURTHER_DAMPING, curvature, step_filter, token_spectrum
from faast_sklearn.language.tokens import next_token_log_probabilities, token_moments

CPU = torch.device("cpu")
N = 60


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "cohere", "t5", "bart"])
def lm(request):
    model = make(request.param).double()
    kind = "t5" if model.config.is_encoder_decoder else "decoder"
    return LanguageModel(model, tiny_tokenizer(kind), CPU, torch.float64)


def learnt_tokens(lm, n=N):
    """Return keys, and targets that depend on them; few tokens come often."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(n, lm.head.in_features, generator=generator, dtype=torch.float64)
    return keys, (keys[:, :4].argmax(1) + 5) % VOCABULARY


def some_weights(d, seed=1):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((d, d), (d,), (VOCABULARY,))]
    return 0.1 * draw[0], 0.1 * draw[1], draw[2]


def rest(shortlist, keys, reader):
    return shortlist.rest(keys, keys @ reader)


def test_residuals_of_a_list_of_all_tokens_are_the_gradients_of_the_loss(lm):
    keys, targets = learnt_tokens(lm)
    update, reader, shift = some_weights(keys.shape[1])
    weights = FastWeights("residual", update, reader[:, None], shift[None])
    shortlist = Shortlist(lm, token_moments(lm, "residual", keys, targets), shift)
    assert len(shortlist.tokens) == VOCABULARY
    assert not len(shortlist.others)
    found = shortlist.residuals(keys, targets, keys @ reader, rest(shortlist, keys, reader), update)
    whole = token_moments(lm, "residual", keys, targets, weights)
    torch.testing.assert_close(keys.T @ found, whole.memory.cross, rtol=1e-5, atol=1e-5)
    losses = shortlist.losses_along(
        keys, targets, keys @ reader, rest(shortlist, keys, reader), 0 * update, update, (0.0, 1.0)
    )
    log_p, _ = next_token_log_probabilities(lm, keys, targets, weights)
    assert losses[1] == pytest.approx(-float(log_p.mean()), abs=1e-6)


def test_a_short_list_is_exact_at_the_frozen_model_and_near_it_elsewhere(lm):
    keys, targets = learnt_tokens(lm)
    update, reader, shift = some_weights(keys.shape[1])
    moments = token_moments(lm, "residual", keys, targets)
    whole = Shortlist(lm, moments, shift)
    with mock.patch.object(shortlist_module, "_MOST", VOCABULARY - 6):
        short = Shortlist(lm, moments, shift)
    assert len(short.others) == 6
    assert not set(short.others.tolist()) & set(targets.tolist())
    (a0, a1), (b0, b1) = (
        one.losses_along(keys, targets, keys @ reader, rest(one, keys, reader), 0 * update, update, (0.0, 0.3))
        for one in (short, whole)
    )
    assert a0 == pytest.approx(b0, abs=1e-9)
    assert abs(a1 - b1) < 0.1 * abs(b1 - b0) + 1e-3
    # Its gradient is that of its loss.
    step = 1e-5
    read, others = keys @ reader, rest(short, keys, reader)
    low, high = short.losses_along(keys, targets, read, others, 0.3 * update, update, (-step, step))
    gradient = keys.T @ short.residuals(keys, targets, read, others, 0.3 * update) / len(keys)
    if lm.finish.cap is None:
        assert (high - low) / (2 * step) == pytest.approx(-float((gradient * update).sum()), rel=1e-4, abs=1e-7)


def descent(lm, moments, keys, targets, alpha=0.3):
    _, reader, shift = some_weights(keys.shape[1])
    spectrum, factor = token_spectrum(moments), curvature(lm, moments)(FURTHER_DAMPING)
    return Descent(lm, moments, spectrum, factor, alpha, reader, 0 * shift, keys, targets), spectrum, factor


def test_the_first_step_is_the_preconditioned_gradient_also_of_tokens_that_were_not_kept(lm):
    keys, targets = learnt_tokens(lm)
    moments = token_moments(lm, "residual", keys, targets)
    steps, spectrum, factor = descent(lm, moments, keys, targets)
    gradient = spectrum.vectors.T @ moments.memory.cross / N
    left = spectrum.vectors @ (step_filter(moments, spectrum, 0.3)[:, None] * gradient)
    expected = left @ torch.linalg.inv(factor @ factor.T)
    for kept in (slice(None), slice(0, 20)):
        steps, _, _ = descent(lm, moments, keys[kept], targets[kept])
        update, lengths = steps.run(1, lengths=[0.5])
        assert lengths == [0.5]
        torch.testing.assert_close(update, 0.5 * expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_steps_lower_the_loss_of_what_chooses_them_until_it_gains_no_more(lm):
    keys, targets = learnt_tokens(lm)
    steps, _, _ = descent(lm, token_moments(lm, "residual", keys, targets), keys, targets)
    held = steps.tokens(keys, targets)
    losses = []
    for most in (0, 1, 3, 30):
        update, lengths = steps.run(most, held)
        weights = FastWeights("residual", update)
        losses.append(-float(next_token_log_probabilities(lm, keys, targets, weights)[0].mean()))
        again, _ = steps.run(most, lengths=lengths)
        torch.testing.assert_close(again, update, rtol=0, atol=0)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[1] < losses[0]
    wrong = steps.tokens(keys, (targets + 3) % VOCABULARY)
    assert len(steps.run(30, wrong)[1]) < 5


# A model of the whole road.

TEXTS = [f"{word} {other}" for word in WORDS.split()[:6] for other in WORDS.split()[-12:]]
ANSWERS = [" ".join(reversed(text.split())) for text in TEXTS]
EVERY = range(len(TEXTS))


@pytest.fixture(scope="module")
def handle():
    model = make("llama")
    model.lm_head.weight.data *= 10  # new models expect all tokens alike, and a single step is then enough
    return backbone((model, tiny_tokenizer("decoder")))


def fitted(handle, which=EVERY, **more):
    settings = {"device": "cpu", "max_new_tokens": 4} | more
    return FaastSeq2Seq(handle, **settings).fit([TEXTS[i] for i in which], [ANSWERS[i] for i in which])


def weights_of(seq2seq):
    return seq2seq._solution().weights


def assert_same_weights(a, b):
    for name in ("update", "reader", "shift"):
        one, two = getattr(weights_of(a), name), getattr(weights_of(b), name)
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5 * float(two.abs().max()))


def test_further_steps_gain_on_held_out_tokens_and_max_iter_bounds_them(handle):
    one, few, many = (fitted(handle, max_iter=k) for k in (1, 5, 20))
    assert one.n_iter_ == 1
    assert few.n_iter_ == 5
    assert many.n_iter_ > 5
    assert many.held_out_loss_ < few.held_out_loss_
    assert many.held_out_loss_ < one.held_out_loss_
    assert many.token_scores(TEXTS, ANSWERS)["nll"] < one.token_scores(TEXTS, ANSWERS)["nll"]
    for value in (0, 1.5, True, "auto"):
        with pytest.raises(ValueError, match="max_iter must be an integer of at least 1"):
            fitted(handle, max_iter=value)


def test_further_steps_depend_on_what_was_learnt_alone(handle, tmp_path):
    whole = fitted(handle)
    assert whole.n_iter_ > 1
    order = np.random.default_rng(0).permutation(len(TEXTS))
    parts = fitted(handle, range(2))
    parts.partial_fit(TEXTS[2:], ANSWERS[2:])
    assert_same_weights(parts, whole)
    assert_same_weights(fitted(handle, order, batch_size=3), whole)
    assert_same_weights(merge([fitted(handle, range(9)), fitted(handle, range(9, len(TEXTS)))]), whole)
    more = fitted(handle).partial_fit(["the dog"], ["the mat"]).forget(["the dog"], ["the mat"])
    assert_same_weights(more, whole)
    save(whole, tmp_path / "whole.safetensors")
    again = load(tmp_path / "whole.safetensors", backbone=handle)
    assert again.n_iter_ == whole.n_iter_
    np.testing.assert_array_equal(again.predict(TEXTS[:4]), whole.predict(TEXTS[:4]))
    again.partial_fit(["the dog"], ["the mat"])
    assert_same_weights(again, fitted(handle).partial_fit(["the dog"], ["the mat"]))


def test_held_out_tokens_stay_unlearnt_for_a_further_pass(handle):
    """What tokens are held out decides nothing but the lengths of the steps: their targets teach nothing."""
    lm, moments = handle.open_language_model("cpu"), fitted(handle).moments_
    settings = {"target": "residual", "solver": "ridge", "alpha": "auto", "memory_weight": "auto", "max_iter": 20}
    learnt = []

    def recorded(lm, moments, *rest):
        learnt.append(moments.n_tokens)
        return Descent(lm, moments, *rest)

    n_held = sum(len(moments.reserve.samples[i].targets) for i in moments.reserve.folds(moments.output.n_tokens)[0])
    with mock.patch.object(problem_module, "Descent", recorded):
        assert solve_weights(lm, moments, **settings, hold_out=True).n_iter > 1
        assert learnt == [moments.output.n_tokens - n_held]
        learnt.clear()
        solve_weights(lm, moments, **settings)
        assert learnt == [moments.output.n_tokens - n_held, moments.output.n_tokens]


def test_a_reserve_of_some_tokens_still_takes_further_steps(handle):
    with mock.patch.object(reserve_module, "MOST_TOKENS", 120), mock.patch.object(reserve_module, "HELD_OUT", 50):
        some = fitted(handle)
        assert some.moments_.reserve.n_tokens <= 120 < some.n_tokens_seen_
        assert some.n_iter_ > 1
        assert some.held_out_loss_ < fitted(handle, max_iter=1).held_out_loss_


def test_prompts_are_left_alone(handle):
    """States in prompts are counted, and damp the directions that would change them."""
    moments = fitted(handle).moments_.output
    exchanges = Prompts(handle.open_language_model("cpu")).pairs(TEXTS, ANSWERS)
    # The last state of a prompt is the first key of its answer.
    assert moments.prompts.weight == sum(len(exchange.prompt) - 1 for exchange in exchanges)
    alone = moments.with_prompts(None)
    both, one = token_spectrum(moments), token_spectrum(alone)
    assert float(both.values.sum()) == pytest.approx(2 * float(one.values.sum()), rel=1)
    total = moments + moments - moments
    torch.testing.assert_close(total.prompts.matrix(), moments.prompts.matrix(), rtol=1e-8, atol=1e-8)
