"""What adapting costs: every method on a tiny language model and on digits, in processes of their own; and resuming."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from faast_sklearn import release_backbones

BENCHMARKS = Path(__file__).parent.parent / "examples" / "benchmarks"


@pytest.fixture
def cost(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent.parent))
    yield importlib.import_module("paper_cost")
    release_backbones()


@pytest.fixture
def pairs(tmp_path):
    """A table of pairs in the tiny models' words: the answer is the question's last word twice."""
    words = ("cat", "dog", "sat", "mat", "red", "tree", "one", "far")
    lines = [f"the {a} {b}\t{b} {b}" for a in words for b in words]
    np.random.default_rng(0).shuffle(lines)
    file = tmp_path / "pairs.tsv"
    file.write_text("\n".join(["question\tanswer", *lines, ""]), encoding="utf-8")
    return file


def of_texts(cost, tiny_folder, pairs, name, *more):
    arguments = ["--small", "--pairs", str(pairs), "--language-model", f"hf:{tiny_folder('llama')}", "--limit", "50"]
    args = cost.parse_arguments([*arguments, "--device", "cpu", "--measure", "texts", name, *more])
    torch.manual_seed(0)
    found = cost.in_child(args)
    release_backbones()  # what LoRA has changed
    return found


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
def test_every_way_of_teaching_a_language_model(cost, tiny_folder, pairs, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(cost, "NEW_TOKENS", 4)  # the tiny model reads 64
    monkeypatch.setattr(cost.paper_language, "SHOWN", 2)
    more = ("--epochs", "12", "--rate", "0.03")
    found = {name: of_texts(cost, tiny_folder, pairs, name, *more) for name in cost.METHODS["texts"]}
    nll = {name: figures["NLL a token"] for name, figures in found.items()}
    # The formula with all hidden states kept and this library's sums are one memory.
    assert nll["the paper's formula, SVD"] == pytest.approx(nll["the paper's memory"], rel=1e-4)
    for name in ("FaastSeq2Seq()", "LoRA, rank 8"):
        assert nll[name] < nll["frozen"] - 0.3, name
    assert nll["five pairs in the prompt"] != nll["frozen"]
    for name in ("FaastSeq2Seq()", "the paper's memory", "the paper's formula, SVD", "LoRA, rank 8"):
        assert found[name]["to adapt, s"] > 0
        assert found[name]["kept, MB"] > 0
    assert all(figures["to predict one, ms"] > 0 for figures in found.values())


def test_losses_are_those_of_the_estimator(cost, tiny_folder, pairs):
    from paper_language import Sizes, plain_prompt
    from paper_language import pairs as read

    from faast_sklearn import FaastSeq2Seq

    found = of_texts(cost, tiny_folder, pairs, "FaastSeq2Seq()")
    X, y, X_test, y_test = read("en-de", True, str(pairs), "", Sizes(50, 10))
    seq2seq = FaastSeq2Seq(f"hf:{tiny_folder('llama')}", template=lambda x: plain_prompt("en-de", (), x), device="cpu")
    scores = seq2seq.fit(X, y).token_scores(X_test, y_test)
    assert found["NLL a token"] == pytest.approx(scores["nll"], rel=1e-4)


def test_every_way_of_learning_features(cost):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 20))
    y = np.arange(90) % 3
    X = torch.from_numpy(centres[y] + 0.3 * rng.standard_normal((90, 20))).float()
    for name, method in cost.METHODS["images"].items():
        torch.manual_seed(0)
        predict, kept = method(X[:60], y[:60])
        assert (predict(X[60:]) == y[60:]).all(), name
        assert kept() > 0
    W = np.linalg.pinv(X[:60].numpy(), rcond=60**-0.8) @ np.eye(3)[y[:60]]
    predict, kept = cost.formula(X[:60], y[:60])
    assert np.array_equal(predict(X[60:]), (X[60:].numpy() @ W).argmax(1))
    assert kept() == 20 * 3 * 4


def test_what_was_used_is_measured(cost):
    device = torch.device("cpu")
    with cost.Spent(device) as spent:
        ones = torch.ones(50 * 2**18)  # 50 MB
        ones += 1
    if cost.CLEAR.exists():
        assert 45 < spent.megabytes < 70
    assert spent.seconds > 0


@pytest.mark.slow
def test_small_runs_each_method_in_a_process_and_goes_on_where_it_was(cost, tmp_path, monkeypatch):
    arguments = ["--small", "--tasks", "images", "--device", "cpu", "--output", str(tmp_path / "out")]
    cells = cost.main(arguments)["images"]
    assert list(cells) == [f"digits / {name}" for name in cost.METHODS["images"]]
    assert cells["digits / FaastClassifier()"]["accuracy, %"] > cells["digits / kNN"]["accuracy, %"] > 50
    table = (tmp_path / "out" / "paper_cost_images.md").read_text(encoding="utf-8")
    assert len(table.splitlines()) == 2 + 4

    def fail(*given):
        raise AssertionError(f"measured again: {given[2]}")

    monkeypatch.setattr(cost, "in_process", fail)
    assert cost.main(arguments)["images"] == cells
    file = tmp_path / "out" / "paper_cost_images.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    del record["cells"]["digits / kNN"]
    file.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(AssertionError, match="measured again: kNN"):
        cost.main(arguments)


@pytest.mark.slow
def test_what_is_missing_is_said_in_the_table(cost, tiny_folder, pairs, tmp_path, monkeypatch):
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "peft.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'blocked'}:{BENCHMARKS.parent.parent}")
    monkeypatch.setitem(cost.METHODS, "texts", {"LoRA, rank 8": cost.lora})
    arguments = ["--small", "--tasks", "texts", "--pairs", str(pairs), "--device", "cpu"]
    arguments += ["--language-model", f"hf:{tiny_folder('llama')}", "--output", str(tmp_path / "out")]
    assert cost.main(arguments)["texts"] == {}
    assert "needs peft: pip install" in (tmp_path / "out" / "paper_cost_texts.md").read_text(encoding="utf-8")
