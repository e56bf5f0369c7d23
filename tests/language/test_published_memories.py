"""Published FAAST checkpoints at work, beside a second computation that shares no code with the library's."""

import numpy as np
import pytest
import torch
from helpers.language import hook_count
from helpers.published import DEPTH, VOCABULARY, base_model, readouts, write
from helpers.tiny import WORDS, tiny_tokenizer
from sklearn.base import clone

from faast_sklearn import FaastSeq2Seq
from faast_sklearn.backbones import backbone
from faast_sklearn.errors import BackboneError
from faast_sklearn.language import FastWeightLM

ALPHA = 0.7  # of the checkpoints that write() makes
MIDDLE = [int(DEPTH / 3), int(2 * DEPTH / 3)]
NAMES = ["gpt2", "qwen2"]


class Reference:
    """The paper's memories on a plain transformers model, row by row and without any padding."""

    def __init__(self, model, alpha=ALPHA):
        self.model, self.alpha = model, alpha
        gpt2 = hasattr(model, "transformer")
        self.blocks = model.transformer.h if gpt2 else model.model.layers
        self.norm = model.transformer.ln_f if gpt2 else model.model.norm
        self.embedding = model.get_input_embeddings().weight.detach()
        trained = readouts(2)
        self.scorers = [trained[f"external.layers.{i}.memory_reader.scorer.weight"] for i in range(2)]
        self.projections = [trained[f"external.layers.{i}.interpreter.out_proj.weight"] for i in range(2)]

    def states(self, row, where):
        """The input of one module in a pass of one row."""
        seen = []
        hook = where.register_forward_pre_hook(
            lambda part, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        with torch.no_grad():
            self.model(torch.tensor([row]))
        hook.remove()
        return seen[0][0].double()

    def learn(self, rows):
        keys, values = [[], [], []], [[], [], []]
        for row in rows:
            for i, layer in enumerate(MIDDLE):
                h = self.states(row, self.blocks[layer])
                gate = torch.sigmoid(torch.cat([h[:-1], h[1:]], 1) @ self.scorers[i].double().T)
                keys[i].append(h[:-1])
                values[i].append(h[1:] * gate)
            keys[2].append(self.states(row, self.norm)[:-1])
            values[2].append(self.embedding[row[1:]].double())
        self.memories = []
        for K, V in zip(map(torch.cat, keys), map(torch.cat, values), strict=True):
            self.memories.append((torch.linalg.pinv(K, rtol=len(K) ** -self.alpha) @ V).float())
        return self

    def logits(self, ids, r=0.9, **inputs):
        def change(where, function):
            def hook(part, args, kwargs):
                if args:
                    return (function(args[0]), *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": function(kwargs["hidden_states"])}

            return where.register_forward_pre_hook(hook, with_kwargs=True)

        hooks = [
            change(self.blocks[layer], lambda h, W=W, P=P: h + (h @ W) @ P.T)
            for layer, W, P in zip(MIDDLE, self.memories[:2], self.projections, strict=True)
        ]
        hooks.append(change(self.norm, lambda h: (1 - r) * h + r * (h @ self.memories[2])))
        with torch.no_grad():
            found = self.model(ids, **inputs).logits
        for hook in hooks:
            hook.remove()
        return found


def rows_of(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 13, (n,), generator=generator).tolist()
    return [torch.randint(4, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[7] * (width - len(row))] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])}


@pytest.fixture(params=NAMES)
def published(request, tmp_path):
    """The base model, and the checkpoint's folder with that of its configuration."""
    model = base_model(request.param)
    model.config.save_pretrained(tmp_path / "base")
    return model, write(tmp_path / "faast", model), tmp_path / "base"


ROWS, PROBE = rows_of(40), torch.tensor([[5, 9, 7, 4, 11, 20, 8]])


def test_learning_on_padded_batches_is_the_papers_computation(published):
    model, folder, config = published
    reference = Reference(model).learn(ROWS)
    lm = FastWeightLM.from_pretrained(str(folder), base_config=str(config))
    with torch.no_grad():
        bare = model(PROBE).logits
    assert torch.equal(lm(PROBE).logits, bare)
    lm.learn(**padded(ROWS))
    assert lm.n_tokens == sum(len(row) - 1 for row in ROWS)
    wanted = reference.logits(PROBE)
    assert not torch.allclose(wanted, bare, atol=0.1)
    torch.testing.assert_close(lm(PROBE).logits, wanted, rtol=1e-4, atol=1e-4)
    assert (lm.solved().alpha, lm.solved().memory_weight) == (ALPHA, 0.9)
    assert hook_count(lm.model.module) == 0


def test_chunks_are_the_whole_in_any_order_and_reset_forgets(published):
    _, folder, config = published
    lm = FastWeightLM.from_pretrained(str(folder), base_config=str(config))
    bare = lm(PROBE).logits
    whole = lm.learn(**padded(ROWS))(PROBE).logits
    lm.reset_projection()
    assert (lm.n_tokens, lm.solved()) == (0, None)
    assert torch.equal(lm(PROBE).logits, bare)
    for chunk in (ROWS[31:], ROWS[:7], ROWS[7:31]):
        lm.learn(**padded(chunk))
        lm(PROBE)  # what is learnt in between comes from the frozen model all the same
    torch.testing.assert_close(lm(PROBE).logits, whole, rtol=1e-4, atol=1e-4)


def test_alpha_and_weight_may_be_given(published):
    model, folder, config = published
    lm = FastWeightLM.from_pretrained(str(folder), base_config=str(config), alpha=0.4, memory_weight=0.5)
    wanted = Reference(model, 0.4).learn(ROWS).logits(PROBE, r=0.5)
    torch.testing.assert_close(lm.learn(**padded(ROWS))(PROBE).logits, wanted, rtol=1e-4, atol=1e-4)
    other = FastWeightLM.from_pretrained(str(folder), base_config=str(config)).learn(**padded(ROWS))
    assert not torch.allclose(other(PROBE).logits, wanted, atol=1e-2)


def test_generation_is_greedy_with_the_memories_also_from_a_cache(published):
    model, folder, config = published
    reference = Reference(model).learn(ROWS)
    lm = FastWeightLM.from_pretrained(str(folder), base_config=str(config)).learn(**padded(ROWS))
    ids = PROBE[:, :4]
    while ids.shape[1] < 10 and (token := int(reference.logits(ids)[0, -1].argmax())) != 3:
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    found = lm.generate(
        PROBE[:, :4], attention_mask=torch.ones(1, 4), max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    assert found[:, : ids.shape[1]].tolist() == ids.tolist()
    assert ids.shape[1] > 5
    assert hook_count(lm.model.module) == 0


def text(row):
    return " ".join(WORDS.split()[token - 4] for token in row)


def test_the_estimator_learns_the_same_from_texts(published):
    model, folder, config = published
    seq2seq = FaastSeq2Seq(backbone(folder, base_config=config), batch_size=7)
    seq2seq.fit([text(row) for row in ROWS])
    # Its texts end with the token that says so.
    reference = Reference(model).learn([[*row, 3] for row in ROWS])
    wanted = reference.logits(PROBE)
    with seq2seq.attached() as module, torch.no_grad():
        torch.testing.assert_close(module(PROBE).logits, wanted, rtol=1e-4, atol=1e-4)
    assert (seq2seq.alpha_, seq2seq.memory_weight_) == (ALPHA, 0.9)
    probes = [[5, 9, 7, 4, 11], [20, 8, 6]]
    losses = [
        torch.nn.functional.cross_entropy(reference.logits(torch.tensor([row]))[0], torch.tensor([*row[1:], 3]))
        for row in probes
    ]
    total = sum(float(loss) * len(row) for loss, row in zip(losses, probes, strict=True))
    assert np.log(seq2seq.perplexity([text(row) for row in probes])) == pytest.approx(total / 8, abs=1e-4)


def test_the_estimator_answers_forgets_and_cannot_fold(published):
    model, folder, config = published
    seq2seq = FaastSeq2Seq(
        backbone(folder, base_config=config),
        template="{source} {target}",
        learn_from="all",
        max_new_tokens=1,
        batch_size=4,
    )
    X, y = [text(row[:3]) for row in ROWS], [text(row[3:]) for row in ROWS]
    late = X[25:], y[25:]
    seq2seq.fit(X[:25], y[:25])
    before, answers = seq2seq.perplexity(*late), seq2seq.predict(X)
    reference, tokenizer = Reference(model).learn([[*row, 3] for row in ROWS[:25]]), tiny_tokenizer("decoder")
    for row, answer in zip(ROWS, answers, strict=True):
        token = int(reference.logits(torch.tensor([row[:3]]))[0, -1].argmax())
        assert answer == tokenizer.decode([token], skip_special_tokens=True)
    assert len(set(answers)) > 5
    seq2seq.partial_fit(*late)
    # Whether random weights profit is luck; that they are those of all rows is not.
    whole = clone(seq2seq).fit(X, y)
    assert seq2seq.perplexity(*late) == pytest.approx(whole.perplexity(*late), rel=1e-4)
    assert seq2seq.perplexity(*late) != pytest.approx(before, rel=1e-3)
    seq2seq.forget(*late)
    assert seq2seq.perplexity(*late) == pytest.approx(before, rel=1e-4)
    assert list(seq2seq.predict(X)) == list(answers)
    with pytest.raises(BackboneError, match="middle of the model"):
        seq2seq.save_folded(folder / "out")


def test_without_middle_memories_it_is_the_output_memory(tmp_path):
    model = base_model("qwen2")
    model.config.save_pretrained(tmp_path / "base")
    folder = write(tmp_path / "faast", model, n=0)
    lm = FastWeightLM.from_pretrained(str(folder), base_config=str(tmp_path / "base")).learn(**padded(ROWS))
    plain = FastWeightLM(
        backbone(folder, base_config=tmp_path / "base"), target="embedding", solver="pinv", memory_weight=0.9
    ).learn(**padded(ROWS))
    assert torch.equal(lm(PROBE).logits, plain(PROBE).logits)
    reference = Reference(model).learn(ROWS)
    reference.memories[:2] = [torch.zeros(16, 16)] * 2
    torch.testing.assert_close(lm(PROBE).logits, reference.logits(PROBE), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_clones_share_and_pickles_keep_what_was_learnt(name, tmp_path):
    import pickle

    from faast_sklearn.backbones.open_backbones import open_count

    model = base_model(name)
    model.config.save_pretrained(tmp_path / "base")
    handle = backbone(write(tmp_path / "faast", model), base_config=tmp_path / "base")
    seq2seq = FaastSeq2Seq(handle, batch_size=7).fit([text(row) for row in ROWS])
    probe = [text(row) for row in ROWS[:5]]
    before = open_count()
    found = seq2seq.perplexity(probe)
    assert pickle.loads(pickle.dumps(seq2seq)).perplexity(probe) == pytest.approx(found, rel=1e-6)
    assert clone(seq2seq).fit([text(row) for row in ROWS]).perplexity(probe) == pytest.approx(found, rel=1e-6)
    assert open_count() == before


def test_labels_say_what_is_learnt(published):
    _, folder, config = published
    rows = rows_of(30, 3)
    inputs = padded(rows)
    labels = inputs["input_ids"].clone()
    labels[:, :3] = -100
    lm = FastWeightLM.from_pretrained(str(folder), base_config=str(config)).learn(**inputs, labels=labels)
    assert lm.n_tokens == sum(len(row) - 3 for row in rows)
