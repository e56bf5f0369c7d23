"""What adapting costs: every method on a tiny language model and on digits, in processes of their own; and resuming."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from faast_sklearn import release_backbones

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"

PEFT = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # it asks for it


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


@pytest.fixture
def here(cost, monkeypatch):
    """Methods are measured in this process, as each would be in its own."""

    def measured(argv, task, name, common):
        features = common()
        more = [] if features is None else ["--features", str(features)]
        try:
            found = cost.in_child(cost.parse_arguments([*argv, "--measure", task, name, *more]))
        finally:
            release_backbones()
        if "unavailable" in found:
            raise cost.UnavailableError(found["unavailable"])
        return found

    monkeypatch.setattr(cost, "in_process", measured)


def of_texts(cost, tiny_folder, pairs, name, *more):
    arguments = ["--small", "--pairs", str(pairs), "--language-model", f"hf:{tiny_folder('llama')}", "--limit", "50"]
    args = cost.parse_arguments([*arguments, "--device", "cpu", "--measure", "texts", name, *more])
    torch.manual_seed(0)
    found = cost.in_child(args)
    release_backbones()  # what LoRA has changed
    return found


@PEFT
def test_every_way_of_teaching_a_language_model(cost, tiny_folder, pairs, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(cost, "NEW_TOKENS", 4)  # the tiny model reads 64
    monkeypatch.setattr(cost.paper_language, "SHOWN", 2)
    more = ("--epochs", "12", "--rate", "0.03")
    found = {name: of_texts(cost, tiny_folder, pairs, name, *more) for name in cost.METHODS["texts"]}
    nll = {name: figures["NLL per token"] for name, figures in found.items()}
    # The formula with all hidden states kept and this library's sums are one memory.
    assert nll["the paper's formula, SVD"] == pytest.approx(nll["the paper's memory"], rel=1e-4)
    for name in ("FaastSeq2Seq()", "LoRA, rank 8"):
        assert nll[name] < nll["frozen"] - 0.3, name
    assert nll["five pairs in the prompt"] != nll["frozen"]
    for name in ("FaastSeq2Seq()", "the paper's memory", "the paper's formula, SVD", "LoRA, rank 8"):
        assert found[name]["to adapt, s"] > 0
        assert found[name]["kept, MB"] > 0
    assert all(figures["to predict one, ms"] > 0 for figures in found.values())
    by_hand = {name: (figures["epochs"], figures["rate"]) for name, figures in found.items() if "rate" in figures}
    assert by_hand == {"LoRA, rank 8": (12, 0.03)}


def test_losses_are_those_of_the_estimator(cost, tiny_folder, pairs):
    from paper_language import Sizes, plain_prompt
    from paper_language import pairs as read

    from faast_sklearn import FaastSeq2Seq

    found = of_texts(cost, tiny_folder, pairs, "FaastSeq2Seq()")
    X, y, X_test, y_test = read("en-de", True, str(pairs), "", Sizes(50, 10))
    seq2seq = FaastSeq2Seq(f"hf:{tiny_folder('llama')}", template=lambda x: plain_prompt("en-de", (), x), device="cpu")
    scores = seq2seq.fit(X, y).token_scores(X_test, y_test)
    assert found["NLL per token"] == pytest.approx(scores["nll"], rel=1e-4)


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
@PEFT
def test_the_full_command_on_local_copies(cost, here, tiny_folder, tiny_open_clip, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("peft")
    from PIL import Image

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    name, weights = tiny_open_clip
    monkeypatch.setattr(cost.paper_vision, "CLIP", f"open_clip:{name}")
    monkeypatch.setattr(cost, "NEW_TOKENS", 4)
    monkeypatch.setattr(cost.paper_language, "SHOWN", 2)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["red", "green"])})
    for split, n in (("train", 24), ("test", 12)):
        labels = [i % 2 for i in range(n)]
        images = [Image.new("RGB", (32, 32), ((200, 9 * i % 50, 0), (9 * i % 50, 200, 0))[i % 2]) for i in range(n)]
        data = datasets.Dataset.from_dict({"img": images, "label": labels}, features=features)
        (tmp_path / "cifar10").mkdir(exist_ok=True)
        data.to_parquet(tmp_path / "cifar10" / f"{split}-0.parquet")
    for split in ("train", "test"):
        file = tmp_path / "iwslt" / "iwslt2017-en-de" / split / "0000.parquet"
        file.parent.mkdir(parents=True)
        rows = [{"en": f"the {word}", "de": f"{word} {word}"} for word in ("cat", "dog", "mat", "tree")] * 3
        datasets.Dataset.from_dict({"translation": rows}).to_parquet(file)
    arguments = ["--data", *(f"{one}={tmp_path / one}" for one in ("cifar10", "iwslt")), "--weights", str(weights)]
    arguments += ["--language-model", f"hf:{tiny_folder('llama')}", "--limit", "10", "--epochs", "1"]
    arguments += ["--device", "cpu", "--output", str(tmp_path / "out")]
    tables = cost.main(arguments)
    for task, data in (("images", "cifar10"), ("texts", "iwslt en-de")):
        assert list(tables[task]) == [f"{data} / {name}" for name in cost.METHODS[task]]
    assert tables["images"]["cifar10 / FaastClassifier()"]["accuracy, %"] == 100
    assert tables["texts"]["iwslt en-de / frozen"]["kept, MB"] == 0
    with np.load(tmp_path / "out" / "features-cifar10.npz") as file:
        assert (len(file["X"]), len(file["X_query"])) == (24, 12)


def test_features_of_ones_own(cost, here, tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    X = (rng.standard_normal((3, 20))[y] + 0.3 * rng.standard_normal((90, 20))).astype("float32")
    np.savez(tmp_path / "own.npz", X=X[:60], y=y[:60], X_query=X[60:], y_query=y[60:])
    arguments = ["--tasks", "images", "--device", "cpu", "--output", str(tmp_path / "out")]
    cells = cost.main([*arguments, "--features", str(tmp_path / "own.npz")])["images"]
    assert cells["own.npz / FaastClassifier()"]["accuracy, %"] == 100
    with pytest.raises(SystemExit, match="was made with another features: give another --output"):
        cost.main([*arguments, "--features", str(tmp_path / "another.npz")])


def test_wrong_options_are_named(cost, capsys):
    for wrong in ("cifar10", "imdb=folder"):
        with pytest.raises(SystemExit):
            cost.parse_arguments(["--data", wrong])
        assert "is not cifar10=FOLDER or iwslt=FOLDER" in capsys.readouterr().err


@PEFT
def test_lora_leaves_the_model_as_it_was(cost, tiny_folder):
    pytest.importorskip("peft")
    from faast_sklearn import backbone

    handle = backbone(f"hf:{tiny_folder('llama')}")
    lm = handle.open_language_model("cpu")
    args = cost.parse_arguments(["--small", "--epochs", "2", "--rate", "0.03"])
    exchanges = list(cost.Prompts(lm, "{source} {target}").pairs(["the cat"] * 4, ["dog"] * 4))
    before = cost.loss(lm.module, lm, exchanges)
    attached, kept = cost.lora(args, handle, lm, "{source} {target}", ["the cat"] * 4, ["dog"] * 4)
    with attached() as model:
        assert cost.loss(model, lm, exchanges) < before - 0.1
    assert cost.loss(lm.module, lm, exchanges) == before
    assert not any("lora" in name for name, _ in lm.module.named_modules())
    # Two matrices of rank 8 for each of seven linear maps in two layers, in float32.
    widths = 4 * (16 + 16) + 3 * (16 + 32)
    assert kept() == 2 * widths * 8 * 4


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed, as a rule for the memory it took"),
        ("import json\nprint('noise')\nprint(json.dumps({'unavailable': 'no room'}))", "no room"),
    ],
)
def test_a_method_that_dies_leaves_its_reason_in_the_table(cost, tmp_path, monkeypatch, script, said):
    (tmp_path / "child.py").write_text(script)
    monkeypatch.setattr(cost, "__file__", str(tmp_path / "child.py"))
    monkeypatch.setitem(cost.METHODS, "texts", {"frozen": cost.nothing})
    tables = cost.main(["--small", "--tasks", "texts", "--device", "cpu", "--output", str(tmp_path / "out")])
    assert tables["texts"] == {}
    assert said in (tmp_path / "out" / "paper_cost_texts.md").read_text(encoding="utf-8")


def test_a_method_that_fails_stops_the_command(cost, tmp_path, monkeypatch):
    (tmp_path / "child.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(cost, "__file__", str(tmp_path / "child.py"))
    with pytest.raises(SystemExit, match="frozen: failed"):
        cost.main(["--small", "--tasks", "texts", "--device", "cpu", "--output", str(tmp_path / "out")])


def test_out_of_memory_is_a_reason(cost, monkeypatch):
    def too_large(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cost, "of_texts", too_large)
    args = cost.parse_arguments(["--small", "--measure", "texts", "frozen"])
    assert cost.in_child(args) == {"unavailable": "takes more memory than the device has"}


@pytest.mark.slow
def test_small_runs_each_method_in_a_process_and_goes_on_where_it_was(cost, tmp_path, monkeypatch):
    of_images = cost.METHODS["images"]
    monkeypatch.setitem(cost.METHODS, "images", {name: of_images[name] for name in ("kNN", "FaastClassifier()")})
    arguments = ["--small", "--tasks", "images", "--device", "cpu", "--output", str(tmp_path / "out")]
    cells = cost.main(arguments)["images"]
    assert cells["digits / FaastClassifier()"]["accuracy, %"] > cells["digits / kNN"]["accuracy, %"] > 50
    table = (tmp_path / "out" / "paper_cost_images.md").read_text(encoding="utf-8")
    assert len(table.splitlines()) == 2 + 2

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


def test_what_is_missing_is_said_in_the_table(cost, here, tiny_folder, pairs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setitem(cost.METHODS, "texts", {"LoRA, rank 8": cost.lora})
    arguments = ["--small", "--tasks", "texts", "--pairs", str(pairs), "--device", "cpu"]
    arguments += ["--language-model", f"hf:{tiny_folder('llama')}", "--output", str(tmp_path / "out")]
    assert cost.main(arguments)["texts"] == {}
    assert "needs peft: pip install" in (tmp_path / "out" / "paper_cost_texts.md").read_text(encoding="utf-8")
