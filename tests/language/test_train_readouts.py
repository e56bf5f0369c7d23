"""Training of the readouts of middle memories: what it changes, that it is the gradient, and what it writes."""

import copy

import numpy as np
import pytest
import torch
from helpers.language import hook_count
from helpers.published import VOCABULARY, base_model
from helpers.tiny import WORDS, tiny_tokenizer
from torch.nn.functional import cross_entropy

from faast_sklearn import FaastSeq2Seq, backbone
from faast_sklearn.backbones.transformers.language_model import LanguageModel
from faast_sklearn.backbones.transformers.published import Readouts
from faast_sklearn.errors import BackboneError, InputError
from faast_sklearn.language import FastWeightLM, train_readouts

SIZES = {"window": 8, "n_learnt": 3, "n_scored": 2, "alpha": 0.7, "memory_weight": 0.4}
STEPS = {**SIZES, "steps": 4, "lr": 0.01, "save_every": 2}


def opened(name="qwen2", dtype=torch.float32):
    return LanguageModel(base_model(name).to(dtype), tiny_tokenizer("decoder"), torch.device("cpu"), dtype)


def stories(n, seed=0):
    """Texts in each of which a word mostly has the same successor, another one in every text."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        follows, row = rng.permutation(np.arange(4, VOCABULARY)), [int(rng.integers(4, VOCABULARY))]
        while len(row) < 39:
            row.append(int(follows[row[-1] - 4] if rng.random() < 0.9 else rng.integers(4, VOCABULARY)))
        found.append(row)
    return found


def used(lm, readouts, windows):
    """The loss of the last windows with these readouts, when the first ones have been learnt."""
    lm = copy.copy(lm)
    lm.readouts = readouts
    n, ids = SIZES["n_learnt"], torch.tensor(windows)
    logits = FastWeightLM(lm).learn(ids[:n])(ids[n:]).logits[:, :-1]
    return float(cross_entropy(logits.flatten(0, 1), ids[n:, 1:].flatten()))


def test_a_step_follows_the_gradient_of_the_loss_in_use():
    lm, row = opened("gpt2", torch.float64), stories(1)[0]
    settings = {**SIZES, "lr": 1e-3, "n_layers": 2}
    windows = np.array([*row, 3]).reshape(-1, SIZES["window"])  # so short that each step has all of it

    def slopes(readouts, which, i, places):
        """Central differences of the loss in use for single weights."""
        found = []
        for place in places:
            losses = []
            for sign in (1, -1):
                changed = [[t.clone() for t in tensors] for tensors in (readouts.scorers, readouts.out_projs)]
                changed[which][i].view(-1)[place] += sign * 1e-3
                moved = Readouts(*map(tuple, changed), readouts.layer_indices, readouts.alpha, readouts.weight)
                losses.append(used(lm, moved, windows))
            found.append(losses[0] - losses[1])
        return np.array(found)

    one, losses = train_readouts(lm, [row], steps=1, **settings)
    first = one.model.readouts
    start = Readouts(
        tuple(map(torch.zeros_like, first.scorers)),
        tuple(map(torch.zeros_like, first.out_projs)),
        first.layer_indices,
        first.alpha,
        first.weight,
    )
    assert losses[0] == pytest.approx(used(lm, start, windows), abs=1e-6)
    bare = FastWeightLM(lm, target="embedding", solver="pinv", alpha=0.7, memory_weight=0.4)
    ids = torch.tensor(windows)
    logits = bare.learn(ids[:3])(ids[3:]).logits[:, :-1]
    assert losses[0] == pytest.approx(float(cross_entropy(logits.flatten(0, 1), ids[3:, 1:].flatten())), abs=1e-6)

    # The first step of Adam in each weight has the length lr, against the sign of the gradient.
    for i in range(2):
        assert not first.scorers[i].any()  # no gradient while out_proj is zero
        places = np.linspace(0, 255, 6).astype(int)
        moves = first.out_projs[i].view(-1)[places].numpy()
        assert np.array_equal(np.sign(moves), -np.sign(slopes(start, 1, i, places)))
    two, losses = train_readouts(lm, [row], steps=2, **settings)
    assert losses[1] == pytest.approx(used(lm, first, windows), abs=1e-6)
    for i in range(2):
        moves = two.model.readouts.scorers[i].view(-1)[:6].numpy()
        assert np.array_equal(np.sign(moves), -np.sign(slopes(first, 0, i, range(6))))


def test_the_model_is_as_it_was():
    lm = opened("gpt2")
    lm.module.train()
    lm.module.transformer.wpe.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in lm.module.state_dict().items()}
    train_readouts(lm, stories(4), **STEPS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.module.state_dict().items())
    assert [name for name, p in lm.module.named_parameters() if not p.requires_grad] == ["transformer.wpe.weight"]
    assert all(p.grad is None for p in lm.module.parameters())
    assert all(part.training for part in lm.module.modules())
    assert hook_count(lm.module) == 0
    assert lm.readouts is None


def test_what_is_interrupted_goes_on_bit_for_bit(tmp_path, monkeypatch):
    lm, corpus = opened(), stories(6)
    whole, losses = train_readouts(lm, corpus, folder=tmp_path / "whole", **STEPS)
    taken, step = [], torch.optim.AdamW.step

    def counted(optimizer):
        taken.append(None)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        train_readouts(lm, corpus, folder=tmp_path / "parts", **STEPS)
    assert all(p.requires_grad for p in lm.module.parameters())
    taken.clear()
    parts, resumed = train_readouts(opened(), corpus, folder=tmp_path / "parts", **STEPS)  # as in another process
    assert len(taken) == 2  # the first two were on the disk
    assert np.array_equal(resumed, losses)
    for one, other in zip(
        parts.model.readouts.tensors().values(), whole.model.readouts.tensors().values(), strict=True
    ):
        assert one.any()
        assert torch.equal(one, other)
    # A training that is finished is only read.
    taken.clear()
    assert np.array_equal(train_readouts(lm, corpus, folder=tmp_path / "parts", **STEPS)[1], losses)
    assert not taken
    with pytest.raises(InputError, match="another lr, corpus"):
        train_readouts(lm, corpus[1:], folder=tmp_path / "parts", **{**STEPS, "lr": 0.1})


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_it_writes_the_published_layout(name, tmp_path):
    corpus = stories(6)
    lm, _ = train_readouts(opened(name), corpus, folder=tmp_path / "faast", n_layers=3, **STEPS)
    read = FastWeightLM.from_pretrained(str(tmp_path / "faast"))
    ours, theirs = lm.model.readouts, read.model.readouts
    assert (theirs.alpha, theirs.weight, theirs.layer_indices) == (0.7, 0.4, ours.layer_indices)
    assert all(torch.equal(tensor, theirs.tensors()[key]) for key, tensor in ours.tensors().items())
    ids = torch.tensor(corpus)[:, :16]
    assert torch.equal(lm(ids).logits, read(ids).logits)  # nothing learnt: the frozen model
    assert torch.equal(lm.learn(ids)(ids).logits, read.learn(ids)(ids).logits)
    words = WORDS.split()
    texts = [" ".join(words[token - 4] for token in row[:12]) for row in corpus]
    seq2seq = FaastSeq2Seq(backbone(tmp_path / "faast")).fit(texts)
    # A text of the estimator ends with the token that says so.
    alone = FastWeightLM(lm.model).learn(torch.tensor([[*row[:12], 3] for row in corpus]))
    with seq2seq.attached() as module, torch.no_grad():
        torch.testing.assert_close(module(ids).logits, alone(ids).logits, rtol=1e-4, atol=1e-4)


def test_trained_memories_help_with_other_texts_of_the_kind():
    lm = opened()
    settings = {**SIZES, "n_learnt": 4, "n_scored": 1}  # a step has about one text, whose end is scored
    trained, _ = train_readouts(lm, stories(200), steps=60, lr=0.03, **settings)
    rows = stories(24, seed=1)

    def loss(learner):
        total = 0.0
        for row in rows:
            ids = torch.tensor([*row, 3]).reshape(-1, 8)
            learner.reset_projection()
            logits = learner.learn(ids[:4])(ids[4:]).logits[:, :-1]
            total += float(cross_entropy(logits.flatten(0, 1), ids[4:, 1:].flatten()))
        return total / len(rows)

    alone = min(
        loss(FastWeightLM(lm, target="embedding", solver="pinv", alpha=0.7, memory_weight=weight))
        for weight in (0.1, 0.4, 0.9)
    )
    assert loss(trained) < alone - 0.05


def test_texts_are_tokenized_and_the_seed_decides_what_is_drawn():
    lm, corpus, words = opened(), stories(6), WORDS.split()
    texts = (" ".join(words[token - 4] for token in row) for row in corpus)
    losses = train_readouts(lm, texts, **STEPS)[1]
    assert np.array_equal(losses, train_readouts(lm, corpus, **STEPS)[1])
    assert not np.array_equal(losses, train_readouts(lm, corpus, random_state=1, **STEPS)[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": []}, "0 tokens, and a step needs 40.*more text"),
        ({"corpus": ["a cat"]}, "3 tokens, and a step needs 40"),
        ({"corpus": "a cat"}, "iterable of texts"),
        ({"corpus": None}, "iterable of texts"),
        ({"corpus": ["a cat", None]}, r"corpus\[1\] is neither a text"),
        ({"corpus": [[4, 5.5]]}, r"corpus\[0\] is neither a text"),
        ({"corpus": [[4, 99] * 30]}, "token 99, but Qwen2ForCausalLM has 25"),
        ({"n_layers": 5}, "5 blocks; use fewer"),
        ({"n_layers": 0}, "n_layers must be"),
        ({"steps": 1.5}, "steps must be"),
        ({"window": 1}, "window must be an integer of at least 2"),
        ({"window": 64}, "reads 32 tokens"),
        ({"lr": 0}, "lr must be"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"memory_weight": 1.5}, "memory_weight must be a number above 0 and at most 1"),
        ({"random_state": None}, "random_state must be"),
        ({"lr": 1e30}, "not finite"),
    ],
)
def test_errors_name_the_remedy(changes, message):
    settings = {**STEPS, "corpus": stories(6), **changes}
    lm = opened()
    with pytest.raises((ValueError, BackboneError), match=message):
        train_readouts(lm, settings.pop("corpus"), **settings)
    assert all(p.requires_grad for p in lm.module.parameters())


def test_models_without_such_memories_are_refused():
    from helpers.language import make

    for name in ("t5", "opt-post-norm"):
        lm = LanguageModel(make(name), tiny_tokenizer("decoder"), torch.device("cpu"), torch.float32)
        with pytest.raises(InputError, match="use one of those"):
            train_readouts(lm, stories(6), **STEPS)


def test_another_file_in_the_folder_is_not_a_state(tmp_path):
    from faast_sklearn.persistence.archive import write_archive

    write_archive(tmp_path / "training.safetensors", {}, {"losses": torch.zeros(1)})
    with pytest.raises(InputError, match="not the state of a training"):
        train_readouts(opened(), stories(6), folder=tmp_path, **STEPS)


def test_the_bar_shows_the_loss(capsys):
    train_readouts(opened(), stories(6), verbose=1, **STEPS)
    shown = capsys.readouterr().err
    assert "train readouts" in shown
    assert "4/4" in shown
    assert "loss=" in shown
