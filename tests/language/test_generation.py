import copy
import logging

import numpy as np
import pytest
import torch
from helpers.choices import next_logits, one_by_one
from helpers.tiny import tiny_model, tiny_tokenizer

from faast_sklearn.backbones.handle import as_handle
from faast_sklearn.backbones.transformers.language_model import LanguageModel
from faast_sklearn.errors import BackboneError, InputError
from faast_sklearn.features.loop import stream_features
from faast_sklearn.language.choices import ChoiceScorer
from faast_sklearn.language.generation import Generator
from faast_sklearn.language.prompts import Prompts

CPU = torch.device("cpu")
X = ["the cat sat", "red", "a dog ran far away from the house", "one two", ""]
NAMES = ["llama", "gpt2", "t5", "bart"]


def opened(name, dtype=torch.float32):
    kinds = {"t5": "t5", "bart": "t5"}
    return LanguageModel(tiny_model(name).to(dtype), tiny_tokenizer(kinds.get(name, "decoder")), CPU, dtype)


def answers(lm, prompts, X=X, batch_size=3, **options):
    generator = Generator(lm, stop_ids=prompts.stop_ids, **options)
    found = [None] * len(X)
    for indices, texts in stream_features(generator, prompts.questions(X, room=generator.room), batch_size=batch_size):
        for i, text in zip(indices, texts, strict=True):
            found[i] = text
    return found


def scores(lm, prompts, choices, X=X, batch_size=3, scorer=None):
    scorer = scorer or ChoiceScorer(lm, prompts, choices)
    found = np.full((len(X), len(choices)), np.nan)
    for indices, rows in stream_features(scorer, prompts.questions(X, room=scorer.room), batch_size=batch_size):
        found[indices] = rows.numpy()
    return found


def greedy(lm, prompt, n):
    answer = []
    while len(answer) < n:
        token = int(next_logits(lm, prompt, answer)[-1].argmax())
        if token in lm.eos_ids:
            break
        answer.append(token)
    return lm.tokenizer.decode(answer, skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_generation_is_the_greedy_loop_in_the_original_order(name, batch_size):
    lm = opened(name)
    prompts = Prompts(lm, "{source} is {target}")
    wanted = [greedy(lm, exchange.prompt, 6) for exchange in prompts.questions(X)]
    assert answers(lm, prompts, batch_size=batch_size, max_new_tokens=6) == wanted
    assert len(set(wanted)) > 1


def test_bart_generates_what_it_generates_alone():
    lm = opened("bart")
    prompts = Prompts(lm)
    assert answers(lm, prompts, max_new_tokens=6) == answers(lm, prompts, batch_size=1, max_new_tokens=6)


def test_an_answer_does_not_depend_on_its_batch_where_the_context_ends():
    lm = opened("gpt2")  # 16 positions
    prompts = Prompts(lm, "{source} is {target}")
    texts = ["a", "the cat sat on", "the cat sat on the mat far away from one two three red green blue"]
    with pytest.warns(match="1 of 3 texts were cut"):
        together = answers(lm, prompts, texts, batch_size=3, max_new_tokens=64)
    with pytest.warns(match="1 of 3 texts were cut"):
        assert together == answers(lm, prompts, texts, batch_size=1, max_new_tokens=64)
    generator = Generator(lm, max_new_tokens=64)
    caps = [generator._most(exchange) for exchange in prompts.questions(texts, room=generator.room)]
    assert caps == [14, 11, 8]
    assert caps[-1] == generator.room


def test_generation_stops_at_any_end_token():
    lm = opened("llama")
    prompts = Prompts(lm, "{source} is {target}")
    exchange = prompts.questions(X[:1])[0]
    generator = Generator(lm, max_new_tokens=6, stop_ids=())
    full = generator.forward(generator.collate([exchange]))[0].split()
    third = lm.tokenizer.convert_tokens_to_ids(full[2])
    shorter = Generator(lm, max_new_tokens=6, stop_ids=(3, third))
    assert shorter.forward(shorter.collate([exchange]))[0].split() == full[: full.index(full[2])]


def test_what_the_template_has_behind_an_answer_is_no_part_of_it():
    lm = opened("llama")
    bare = Prompts(lm, "{source} is {target}")
    full = answers(lm, bare, X[:1], max_new_tokens=4)[0]
    last = full.split()[-1]
    assert (
        answers(lm, Prompts(lm, f"{{source}} is {{target}} {last}"), X[:1], max_new_tokens=4)[0]
        == full[: -len(last)].rstrip()
    )


@pytest.mark.parametrize("name", NAMES)
def test_greedy_search_and_beams_leave_the_model_as_it_is_and_are_silent(name, caplog):
    from transformers.utils import logging as hf_logging

    lm = opened(name)
    module = lm.module
    # As chat models bring them: sampling settings that would contradict greedy search.
    module.generation_config.update(do_sample=True, temperature=0.7, top_k=3, top_p=0.9, max_length=9)
    before = copy.deepcopy(module.generation_config.to_dict())
    prompts = Prompts(lm, "{source} is {target}")
    hf_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            plain = answers(lm, prompts, max_new_tokens=5)
            assert plain == answers(lm, prompts, max_new_tokens=5)  # nothing is sampled
            beams = answers(lm, prompts, max_new_tokens=5, num_beams=3)
    finally:
        hf_logging.disable_propagation()
    assert caplog.records == []
    assert plain != beams or name in ("t5", "bart")
    assert module.generation_config.to_dict() == before
    module.generation_config.no_repeat_ngram_size = 1  # what else is set there counts
    assert all(len(set(text.split())) == len(text.split()) for text in answers(lm, prompts, max_new_tokens=5))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"num_beams": 1.5}, "num_beams"),
    ],
)
def test_settings_that_cannot_be_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        Generator(opened("llama"), **options)


CHOICES = ["red", "red house", "the cat ran", "blue", "a a"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("template", ["{source} is {target}", "{source} {target} tree"])
def test_probabilities_of_choices_are_renormalised_along_their_tree(name, template):
    lm = opened(name)
    prompts = Prompts(lm, template)
    wanted = one_by_one(lm, prompts, CHOICES, X)
    np.testing.assert_allclose(scores(lm, prompts, CHOICES), wanted, atol=1e-4)
    np.testing.assert_allclose(np.exp(wanted).sum(1), 1.0, rtol=1e-6)
    assert np.ptp(wanted, axis=1).min() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_choices_score_alike_however_few_run_at_once(name, monkeypatch):
    from faast_sklearn.language import choices

    lm = opened(name)
    prompts = Prompts(lm)
    at_once = scores(lm, prompts, CHOICES)
    for limit in ("_MOST_LOGITS", "_MOST_TOKENS"):
        with monkeypatch.context() as patch:
            patch.setattr(choices, limit, 1)
            np.testing.assert_allclose(scores(lm, prompts, CHOICES, batch_size=2), at_once, atol=1e-5)


def test_all_answers_of_one_token_sum_to_one():
    lm = opened("gpt2")
    prompts = Prompts(lm)
    # Without an end token every word is a whole answer of its own.
    prompts._eos = None
    words = [lm.tokenizer.convert_ids_to_tokens(i) for i in range(len(lm.tokenizer))]
    scorer = ChoiceScorer(lm, prompts, words)
    scorer._ids = {exchange.turn: [[i] for i in range(len(words))] for exchange in prompts.questions(["cat"])}
    np.testing.assert_allclose(np.exp(scores(lm, prompts, words, scorer=scorer)).sum(1), 1, atol=1e-5)


def test_choices_follow_the_turn_of_each_prompt():
    lm = opened("llama")
    prompts = Prompts(lm, lambda source: source + " is " if "cat" in source else source)
    lm.tokenizer.backend_tokenizer.pre_tokenizer = __import__("tokenizers").pre_tokenizers.Split(" ", "isolated")
    np.testing.assert_allclose(scores(lm, prompts, CHOICES), one_by_one(lm, prompts, CHOICES, X), atol=1e-4)
    assert len({exchange.turn for exchange in prompts.questions(X)}) == 2


def test_choices_in_sliding_windows_and_double_precision():
    import transformers as tr

    config = tr.MistralConfig(
        vocab_size=24,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        sliding_window=4,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = tr.MistralForCausalLM(config).double().eval()
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    lm = LanguageModel(module, tiny_tokenizer("decoder"), CPU, torch.float64)
    prompts = Prompts(lm, "{source} is {target}")
    found = scores(lm, prompts, CHOICES)
    np.testing.assert_allclose(found, one_by_one(lm, prompts, CHOICES, X), atol=1e-5)
    scorer = ChoiceScorer(lm, prompts, CHOICES)
    assert scorer.forward(scorer.collate(list(prompts.questions(X)))).dtype == torch.float64


@pytest.mark.parametrize(
    ("choices", "named"),
    [
        (["a", "b", "a"], r"choices\[2\].*'a' again"),
        (["a", ""], r"choices\[1\] is empty"),
        (["a", 3], r"choices\[1\] is 3 \(int\)"),
        ([], "at least one"),
        ("ab", "list"),
    ],
)
def test_choices_that_cannot_be_are_named(choices, named):
    with pytest.raises(ValueError, match=named):
        ChoiceScorer(opened("llama"), None, choices)


def test_a_choice_longer_than_the_context_is_named():
    lm = opened("gpt2")
    prompts = Prompts(lm)
    scorer = ChoiceScorer(lm, prompts, ["red", "red " * 16])
    with pytest.raises(InputError, match=r"choices\[1\] has 17 tokens"):
        prompts.questions(X, room=scorer.room)


def test_a_model_without_a_cache_is_named():
    import transformers as tr

    shape = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    lm = LanguageModel(tr.MambaForCausalLM(tr.MambaConfig(**shape)), tiny_tokenizer("decoder"), CPU, torch.float32)
    with pytest.raises(BackboneError, match="MambaForCausalLM has no key-value cache"):
        scores(lm, Prompts(lm), CHOICES)


@pytest.mark.slow
def test_a_chat_model_answers_and_prefers_the_right_answer():
    lm = as_handle("bundled:smollm2-135m").open_language_model("cpu", "float32")
    prompts = Prompts(lm)
    X = ["What is the capital of France?", "What is 2+2?"]
    texts = answers(lm, prompts, X, max_new_tokens=16)
    assert "Paris" in texts[0]
    assert "4" in texts[1]
    choices = ["The capital of France is Paris.", "The capital of France is Rome."]
    found = scores(lm, prompts, choices, X[:1])
    np.testing.assert_allclose(found, one_by_one(lm, prompts, choices, X[:1]), atol=1e-3)
    assert found[0].argmax() == 0


def test_hooks_on_the_model_are_felt():
    lm = opened("llama")
    prompts = Prompts(lm)
    before = scores(lm, prompts, CHOICES), answers(lm, prompts, max_new_tokens=5)
    hook = lm.final_norm.register_forward_hook(lambda module, inputs, output: -output)
    try:
        assert not np.allclose(scores(lm, prompts, CHOICES), before[0])
        assert answers(lm, prompts, max_new_tokens=5) != before[1]
    finally:
        hook.remove()
    np.testing.assert_array_equal(scores(lm, prompts, CHOICES), before[0])


def test_modes_and_gradients_of_the_module_stay():
    lm = opened("llama")
    lm.module.train()
    prompts = Prompts(lm)
    rows = scores(lm, prompts, CHOICES)
    answers(lm, prompts, max_new_tokens=2)
    assert lm.module.training
    assert all(parameter.requires_grad for parameter in lm.module.parameters())
    assert torch.is_grad_enabled()
    assert np.isfinite(rows).all()
