"""FaastSeq2Seq among others: exports that transformers loads, and scikit-learn's ways, on tiny random models."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
import transformers as tr
from helpers.language import hook_count
from helpers.seq2seq import PROBE, bare_logits, inputs, logits, opened, pairs
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from faast_sklearn import FaastSeq2Seq
from faast_sklearn.backbones import release_backbones
from faast_sklearn.backbones.open_backbones import open_count
from faast_sklearn.errors import BackboneError, InputError, NotFittedWarning
from faast_sklearn.language import reserve
from faast_sklearn.moments import scatter

# Export

FOLDABLE = ["llama", "llama-tied", "gpt2", "qwen2", "gemma2", "cohere", "phi", "t5", "t5-untied", "bart", "marian"]


@pytest.mark.parametrize("name", FOLDABLE)
def test_a_folded_checkpoint_needs_no_code_of_ours(name, tmp_path):
    model, tokenizer = opened(name)
    if name == "marian":  # never saves its positions, which are not to be learnt
        plain = tmp_path / "plain"
        model.save_pretrained(plain)
        model = tr.AutoModelForSeq2SeqLM.from_pretrained(plain)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    config = copy.deepcopy(model.config.to_dict())
    seq2seq = FaastSeq2Seq((model, tokenizer), max_new_tokens=4).fit(*pairs(60))
    assert seq2seq.memory_weight_ > 0
    wanted = logits(seq2seq)
    seq2seq.save_folded(tmp_path)
    auto = tr.AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else tr.AutoModelForCausalLM
    again = auto.from_pretrained(tmp_path)
    with torch.no_grad():
        found = again(**inputs(seq2seq)).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)
    assert type(again) is type(model)
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.config.to_dict() == config
    assert not torch.allclose(wanted, bare_logits(seq2seq), atol=0.1)
    # It is a backbone again. (Of a folder that says qwen2, transformers makes a tokenizer of its own.)
    test, source = pairs(10, 9), (again, tokenizer) if name == "qwen2" else str(tmp_path)
    with pytest.warns(NotFittedWarning):
        assert FaastSeq2Seq(source).perplexity(*test) == pytest.approx(seq2seq.perplexity(*test), rel=1e-4)


def test_what_cannot_be_folded_says_why(tmp_path):
    source = opened("llama")
    seq2seq = FaastSeq2Seq(source, target="embedding", memory_weight=0.9)
    with pytest.raises(NotFittedError):
        seq2seq.save_folded(tmp_path / "none")
    seq2seq.fit(*pairs(20))
    with pytest.raises(BackboneError, match="final norm, which is not linear"):
        seq2seq.save_folded(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(BackboneError, match="is a file"):
        FaastSeq2Seq(source).fit(*pairs(20)).save_folded(tmp_path / "file")


def test_without_weight_the_checkpoint_is_the_frozen_model(tmp_path):
    model, tokenizer = opened("gpt2")
    FaastSeq2Seq((model, tokenizer), memory_weight=0).fit(*pairs(10)).save_folded(tmp_path)
    again = tr.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(PROBE).logits, model(PROBE).logits)


# scikit-learn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    model, tokenizer = opened("llama")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_parameters_clones_and_copies(folder):
    seq2seq = FaastSeq2Seq(folder, memory_weight=0.5, choices=["cat", "dog"])
    params = seq2seq.get_params()
    assert (params["memory_weight"], params["backbone"], params["target"]) == (0.5, folder, "residual")
    twin = clone(seq2seq)
    assert twin.get_params() == params
    assert not twin.__sklearn_is_fitted__()
    assert "memory_weight=0.5" in repr(seq2seq)
    seq2seq.set_params(memory_weight="auto", choices=None).fit(*pairs(40))
    before, wanted = open_count(), seq2seq.perplexity(*pairs(9, 9))
    for other in (copy.deepcopy(seq2seq), pickle.loads(pickle.dumps(seq2seq))):
        assert other.perplexity(*pairs(9, 9)) == pytest.approx(wanted, rel=1e-9)
        other.partial_fit(*pairs(40, 5))
        assert other.n_samples_seen_ == 80
    assert seq2seq.perplexity(*pairs(9, 9)) == wanted
    assert open_count() == before


def test_a_pickle_holds_what_was_learnt_and_no_module(folder, monkeypatch):
    monkeypatch.setattr(reserve, "MOST_TOKENS", 256)
    monkeypatch.setattr(scatter, "PENDING_ROWS", 16)
    seq2seq = FaastSeq2Seq(folder).fit(*pairs(40))
    for _ in range(2):  # unsolved, and solved
        blob = pickle.dumps(seq2seq)
        assert b"transformers" not in blob
        assert b"torch.nn" not in blob
        seq2seq.perplexity(*pairs(9, 9))
    more = len(pickle.dumps(FaastSeq2Seq(folder).fit(*pairs(800))))
    assert more < len(blob) + 256 * (16 * 4 + 8)  # bounded by the reserve, whatever is learnt
    release_backbones()
    assert pickle.loads(blob).perplexity(*pairs(9, 9)) == pytest.approx(seq2seq.perplexity(*pairs(9, 9)), rel=1e-6)


def test_a_whole_search_opens_the_model_once(folder):
    release_backbones()
    before = open_count()
    X, y = (np.array(part, dtype=object) for part in pairs(60))
    base = FaastSeq2Seq(folder, scoring="negative_perplexity", batch_size=16)
    search = GridSearchCV(base, {"memory_weight": [0, 0.5, 1.0]}, cv=3, error_score="raise").fit(X, y)
    assert search.best_params_["memory_weight"] > 0
    assert search.score(X, y) == -search.best_estimator_.perplexity(X, y)
    scores = cross_val_score(base, X, y, cv=3, error_score="raise")
    assert (scores > search.cv_results_["mean_test_score"][0]).all()
    pipe = Pipeline([("strip", FunctionTransformer(strip)), ("lm", base)]).fit([f" {x} " for x in X], y)
    assert pipe.score(X, y) == pytest.approx(clone(base).fit(X, y).score(X, y), rel=1e-6)
    assert open_count() == before + 1


def strip(texts):
    return [text.strip() for text in texts]


def test_predicting_while_learning_sees_one_state_or_another():
    choices = ["cat", "dog on", "red house"]
    seq2seq = FaastSeq2Seq(opened("gpt2"), choices=choices, batch_size=8)
    parts = [(pairs(15, seed)[0], choices * 5) for seed in range(6)]
    X, wanted = pairs(12, 50)[0], []
    for k, part in enumerate(parts):
        (seq2seq.fit if k == 0 else seq2seq.partial_fit)(*part)
        wanted.append(seq2seq.choice_log_probabilities(X))
    seq2seq.fit(*parts[0])
    found, done = [], threading.Event()

    def ask():
        while not done.is_set():
            found.append(seq2seq.choice_log_probabilities(X))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for part in parts[1:]:
            seq2seq.partial_fit(*part)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert len(found) >= 3
    for scores in found:
        assert min(np.abs(scores - one).max() for one in wanted) < 1e-4
    np.testing.assert_allclose(seq2seq.choice_log_probabilities(X), wanted[-1], atol=1e-4)
    assert hook_count(seq2seq.backbone[0]) == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, InputError])
@pytest.mark.parametrize("method", ["fit", "partial_fit", "forget"])
def test_what_breaks_off_changes_nothing(error, method):
    model, tokenizer = opened("llama")
    fresh, fitted = (FaastSeq2Seq((model, tokenizer), batch_size=2) for _ in range(2))
    data, test = pairs(20), pairs(9, 9)
    fitted.fit(*data)
    before = fitted.perplexity(*test)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) % 3 == 0:
            raise error("here")

    hook = model.register_forward_pre_hook(fail)
    for seq2seq in (fitted,) if method == "forget" else (fresh, fitted):
        state = dict(seq2seq.__dict__)
        with pytest.raises(error, match="here"):
            getattr(seq2seq, method)(*data)
        assert seq2seq.__dict__.keys() == state.keys()
        assert all(seq2seq.__dict__[key] is value for key, value in state.items())
    hook.remove()
    assert len(calls) >= 3
    assert fitted.perplexity(*test) == before
    assert hook_count(model) == 0


@pytest.mark.slow
def test_bundled_smollm2_learns_chooses_exports_and_is_saved_with_its_weights(tmp_path):
    pytest.importorskip("gguf")
    X = ["I love it", "It broke at once", "Wonderful, and so quick", "A waste of money", "Best I ever had", "Awful"] * 2
    y = ["good", "bad"] * 6
    seq2seq = FaastSeq2Seq("bundled:smollm2-135m", choices=["good", "bad"], dtype="float32").fit(X, y)
    assert seq2seq.score(["What a great day", "This is terrible"], ["good", "bad"]) == 1.0
    seq2seq.save_pretrained(tmp_path / "judge", backbone=True)
    theirs = FaastSeq2Seq.from_pretrained(tmp_path / "judge")
    assert theirs.backbone.spec.startswith(f"hf:{(tmp_path / 'judge').resolve()}")
    assert np.array_equal(theirs.choice_log_probabilities(X[:3]), seq2seq.choice_log_probabilities(X[:3]))
    seq2seq.save_folded(tmp_path / "folded")
    again = tr.AutoModelForCausalLM.from_pretrained(tmp_path / "folded")
    tokenizer = tr.AutoTokenizer.from_pretrained(tmp_path / "folded")
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with seq2seq.attached() as model, torch.no_grad():
        wanted = model(ids).logits
        torch.testing.assert_close(again(ids).logits, wanted, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits, wanted, atol=1e-2)
    with pytest.warns(NotFittedWarning):
        folded = FaastSeq2Seq(str(tmp_path / "folded")).perplexity(X[:4], y[:4])
    assert folded == pytest.approx(seq2seq.perplexity(X[:4], y[:4]), rel=1e-3)
