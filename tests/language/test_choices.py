"""Choices are learnt from the tokens that decide between them, and from nothing else."""

import functools

import numpy as np
import pytest
import torch
from helpers.seq2seq import chosen, logits, opened, pairs, some

from faast_sklearn import FaastClassifier, FaastSeq2Seq, load, merge, save
from faast_sklearn.backbones.handle import as_handle
from faast_sklearn.errors import InputError, NotFittedWarning
from faast_sklearn.language.choice_weights import choice_directions, choice_fast_weights
from faast_sklearn.language.choices import ChoiceTree, choice_tree
from faast_sklearn.language.prompts import Prompts

# A tree of three nodes; "house" may follow at two of them.
CHOICES = ["red house", "red tree", "house", "the cat", "the house"]
TEMPLATE = "{source} is {target}"


def learnt(data, model=None, **options):
    model = opened("llama") if model is None else model
    return FaastSeq2Seq(model, choices=CHOICES, template=TEMPLATE, batch_size=5, **options).fit(*data)


@functools.cache
def data():
    sources, targets = chosen(pairs(40, seed=4), CHOICES)
    return [f"{source} {target.split()[0]}" for source, target in zip(sources, targets, strict=True)], targets


def language_model(model):
    return as_handle(model).open_language_model("cpu", "float32")


def test_a_tree_has_a_node_wherever_answers_part():
    tree = ChoiceTree([[3, 5, 2], [3, 5, 6, 2], [4, 2], [3, 7, 2]])
    assert tree.prefixes == ((), (3,), (3, 5))
    assert tree.nodes == ((3, 4), (5, 7), (2, 6))
    assert tree.paths == ((0, 2, 4), (0, 2, 5), (1,), (0, 3))
    assert tree.decisions([3, 5, 6, 2]) == [(0, 0), (1, 2), (2, 5)]
    assert ChoiceTree([[3, 2]]).nodes == ()


def test_probabilities_are_those_of_a_softmax_at_each_node():
    model = opened("gpt2")
    lm = language_model(model)
    tree = choice_tree(Prompts(lm, TEMPLATE), CHOICES)
    assert [len(node) for node in tree.nodes] == [3, 2, 2]
    frozen = FaastSeq2Seq(model, choices=CHOICES, template=TEMPLATE)
    with pytest.warns(NotFittedWarning):
        found = np.exp(frozen.choice_log_probabilities(["one cat"]))[0]
    prompt = Prompts(lm, TEMPLATE).questions(["one cat"])[0].prompt

    def after(prefix, tokens):
        with torch.no_grad():
            return lm.module(torch.tensor([[*prompt, *prefix]])).logits[0, -1, list(tokens)].softmax(0).numpy()

    first, red, the = (after(*at) for at in zip(tree.prefixes, tree.nodes, strict=True))
    wanted = [first[0] * red[0], first[0] * red[1], first[1], first[2] * the[0], first[2] * the[1]]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert sum(wanted) == pytest.approx(1.0)


def test_a_weight_of_zero_is_the_frozen_model():
    model = opened("llama")
    X = data()[0]
    with pytest.warns(NotFittedWarning):
        frozen = FaastSeq2Seq(model, choices=CHOICES, template=TEMPLATE).choice_log_probabilities(X)
    found = learnt(data(), model, memory_weight=0).choice_log_probabilities(X)
    np.testing.assert_array_equal(found, frozen)


def test_two_words_are_learnt_as_the_classifier_learns_two_classes():
    model, words = opened("llama"), ["cat", "dog"]
    X, y = chosen(pairs(30, seed=2), words)
    seq2seq = FaastSeq2Seq(model, choices=words, template=TEMPLATE, batch_size=8).fit(X, y)
    lm = language_model(model)
    prompts = Prompts(lm, TEMPLATE)
    states = []
    for question in prompts.questions(X):
        with torch.no_grad():
            run = lm.module(torch.tensor([question.prompt]), output_hidden_states=True)
        states.append(run.hidden_states[-1][0, -1].numpy())
    states = np.array(states)
    clf = FaastClassifier().fit(states, np.array(y) == "dog")
    tree = choice_tree(prompts, words)
    directions, (solution,) = choice_directions(lm, seq2seq.moments_, tree.nodes, "ridge", "auto")
    assert seq2seq.alpha_ == solution.alpha == pytest.approx(clf.alpha_)
    # The constant is read along the direction in which states are nearly one.
    G, mean = states.T @ states / len(states), states.mean(0)
    one = np.linalg.solve(G + 1e-4 * np.trace(G) / len(G) * np.eye(len(G)), mean)
    cat, dog = torch.searchsorted(directions.tokens, torch.tensor(tree.nodes[0]))
    update = (directions.update[:, dog] - directions.update[:, cat]).numpy()
    np.testing.assert_allclose(update, clf.coef_[0] + one * clf.intercept_[0], rtol=1e-3, atol=1e-4)
    # All together, as two rows of the output matrix.
    weights = choice_fast_weights(lm, directions, 0.7, 0.4)
    matrix = lm.head.weight.detach().numpy()[list(tree.nodes[0])]
    classes = np.array([states[np.array(y) == word].mean(0) for word in words])
    shift = matrix[1] - matrix[0] - one * (classes.mean(0) @ (matrix[1] - matrix[0]))
    changed = weights.folded_matrix(lm).numpy()[list(tree.nodes[0])]
    np.testing.assert_allclose(changed[1] - changed[0], 0.7 * update + 0.4 * shift, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
def test_parts_are_the_whole_and_what_is_forgotten_was_never_there(name):
    model = opened(name)
    whole = learnt(data(), model)
    halves = [learnt(some(data(), range(i, 40, 2)), model) for i in range(2)]
    pieces = learnt(some(data(), range(11)), model).partial_fit(*some(data(), range(11, 40)))
    more = pairs(6, seed=8)[0], CHOICES[1:] + CHOICES[-2:]
    back = learnt(data(), model).partial_fit(*more).forget(*more)
    wanted = whole.choice_log_probabilities(data()[0])
    for other in (merge(halves), pieces, back):
        np.testing.assert_allclose(other.choice_log_probabilities(data()[0]), wanted, atol=1e-3)
        assert other.alpha_ == pytest.approx(whole.alpha_)
        assert other.n_tokens_seen_ == whole.n_tokens_seen_ == 40 + 32  # one or two decisions each


def test_saved_is_never_saved(tmp_path):
    model = opened("llama")
    ours = learnt(some(data(), range(30)), model)
    save(ours, tmp_path / "choices.safetensors")
    theirs = load(tmp_path / "choices.safetensors", backbone=model)
    for _ in range(2):
        np.testing.assert_array_equal(*(s.choice_log_probabilities(data()[0]) for s in (ours, theirs)))
        for one in (ours, theirs):
            one.partial_fit(*some(data(), range(30, 40)))


@pytest.mark.parametrize("solver", ["ridge", "pinv"])
def test_what_was_learnt_is_chosen_also_by_the_folded_model(solver, tmp_path):
    y = [CHOICES[i % 5] for i in range(120)]
    X = [f"{source} {['cat', 'dog', 'red', 'tree', 'house'][i % 5]}" for i, source in enumerate(pairs(120, seed=4)[0])]
    options = {"choices": CHOICES, "template": "{source} {target}", "device": "cpu"}
    seq2seq = FaastSeq2Seq(opened("gpt2"), solver=solver, **options).fit(X, y)
    assert seq2seq.score(X, y) > 0.85
    assert seq2seq.memory_weight_ > 0
    assert seq2seq.held_out_loss_ < 0.5
    seq2seq.save_folded(tmp_path)
    with pytest.warns(NotFittedWarning):
        found = FaastSeq2Seq(str(tmp_path), **options).choice_log_probabilities(X)
    np.testing.assert_allclose(found, seq2seq.choice_log_probabilities(X), atol=1e-3)


def test_other_tokens_are_as_before():
    seq2seq = learnt(data(), memory_weight=1.0)
    deciding = sorted({token for node in seq2seq._problem.settings["among"] for token in node})
    with torch.no_grad():
        change = logits(seq2seq) - seq2seq.backbone[0](torch.tensor([[5, 9, 7, 4, 11], [20, 8, 6, 6, 13]])).logits
    others = [token for token in range(change.shape[-1]) if token not in deciding]
    assert (change[..., others] == 0).all()
    assert (change[..., deciding].abs() > 1e-3).any()


def test_choices_of_which_there_was_no_example_can_be_chosen():
    X, y = data()
    seen = [i for i in range(40) if y[i] in CHOICES[:3]]
    found = learnt(some(data(), seen)).choice_log_probabilities(X)
    assert np.isfinite(found).all()
    one = learnt(some(data(), [0])).choice_log_probabilities(X)
    assert np.isfinite(one).all()


def test_what_choices_cannot_do_is_said():
    X, y = data()
    seq2seq = learnt((X, y))
    with pytest.raises(ValueError, match="choices are learnt in a single step"):
        seq2seq.refine(X, y)
    with pytest.raises(InputError, match="choices are learnt from sources"):
        seq2seq.partial_fit(X)
    with pytest.raises(InputError, match="choices was"):
        seq2seq.set_params(choices=CHOICES[:3]).partial_fit(X[:3], CHOICES[:3])
    seq2seq.set_params(choices=tuple(CHOICES)).partial_fit(X[:3], CHOICES[:3])


def test_a_template_that_changes_the_tokens_of_an_answer_is_refused():
    model = opened("llama")
    model[1].backend_tokenizer.pre_tokenizer = __import__("tokenizers").pre_tokenizers.Split(" ", "isolated")
    seq2seq = FaastSeq2Seq(model, choices=CHOICES, template=lambda s: s + " is " if "cat" in s else s)
    with pytest.raises(InputError, match="template puts different texts around the answers"):
        seq2seq.fit(["the cat", "a dog"], CHOICES[:2])
