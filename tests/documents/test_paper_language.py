"""The paper's experiments on language: the full command on tiny published checkpoints and local data, and --small."""

import importlib
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.published import base_model, write
from helpers.tiny import SPECIAL, tiny_model

from faast_sklearn import FaastSeq2Seq, backbone, release_backbones

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}[SEP]{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
REVIEWS = [
    ("a moving film , with {braces} and brilliant actors", 1),
    ("the plot makes no sense", 0),
    ("i would see it again", 1),
    ("dull and far too long", 0),
    ("clever from the first minute", 1),
    ("a waste of an evening", 0),
    ("warm and funny", 1),
    ("nobody will remember it", 0),
    ("the best of the year", 1),
    ("wooden , loud and empty", 0),
    ("what a treat", 1),
    ("we left in the break", 0),
]
LINES = ["", " = A heading = \n", "A first line of text , which is long enough .\n", "", "And a second one .\n"]


def letters(chat=False):
    """A tokenizer whose tokens are bytes, so that it reads and writes any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT if chat else None, **names)


def put_table(file, **columns):
    from datasets import Dataset

    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns).to_parquet(file)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Published checkpoints and data as they lie in a folder after downloading; {option: values}."""
    folder = tmp_path_factory.mktemp("copies")
    found = {"--model": [], "--base-config": []}
    sizes = {"vocab_size": 4 + 256, "tie_word_embeddings": False}
    for name, kind, more in (
        ("gpt2-xl", "gpt2", {"n_positions": 800}),
        ("Qwen2.5-3B-Instruct", "qwen2", {"max_position_embeddings": 700}),
        ("Qwen2.5-7B-Instruct", "qwen2", {"max_position_embeddings": 700, "hidden_size": 16, "rms_norm_eps": 1e-5}),
    ):
        model = base_model(kind, **sizes, **more)
        model.config.save_pretrained(folder / f"base-{name}")
        write(folder / name, model, n=2, tokenizer=False, base_model=name)
        letters(chat=kind == "qwen2").save_pretrained(folder / name)
        found["--model"].append(f"{name}={folder / name}")
        found["--base-config"].append(f"{name}={folder / f'base-{name}'}")
    texts, labels = zip(*REVIEWS, strict=True)
    for split in ("train", "validation"):
        put_table(folder / f"sst2/data/{split}-0.parquet", idx=list(range(12)), sentence=texts, label=labels)
    for split in ("train", "test"):
        put_table(folder / f"imdb/plain_text/{split}-0.parquet", text=[f"{t}, {t}" for t in texts], label=labels)
        put_table(folder / f"wikitext/wikitext-103-raw-v1/{split}-0.parquet", text=LINES * 20)
        for one, other in (("en", "de"), ("de", "en"), ("en", "fr"), ("fr", "en")):
            rows = [{one: f"{one} {i}", other: f"{other} {i * i}"} for i in range(6)]
            put_table(folder / f"iwslt/iwslt2017-{one}-{other}/{split}/0000.parquet", translation=rows)
    (folder / "wikitext/README.md").write_text(
        "---\nconfigs:\n- config_name: wikitext-103-raw-v1\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: wikitext-103-raw-v1/{s}-*.parquet\n" for s in ("train", "test"))
        + "---\n"
    )
    found["--data"] = [f"{task}={folder / task}" for task in ("sst2", "imdb", "iwslt", "wikitext")]
    return found


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The script, with what it holds open given back at the end."""
    datasets = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        datasets.disable_progress_bars()
        module = importlib.import_module("paper_language")
        yield module
        module._open.clear()
        for kept in (module.reviews, module.pairs, module.texts):
            kept.cache_clear()
        release_backbones()
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def measured(paper, copies, tmp_path_factory):
    """All tasks of the full command, measured once: the folder, and the cells of each."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(paper.FULL, "iwslt", replace(paper.FULL["iwslt"], new_tokens=2))
        patch.setitem(paper.FULL, "wikitext", replace(paper.FULL["wikitext"], window=90))
        patch.setattr(paper, "DIRECTIONS", ("de-en",))
        tables = paper.main(command(copies, folder, "--tasks", "sst2", "wikitext", "iwslt"))
        tables |= paper.main(command(copies, folder, "--tasks", "imdb", "--methods", "in-context", "paper"))
    return folder, tables


def command(copies, output, *more):
    options = [word for option, values in copies.items() for word in (option, *values)]
    return [*options, "--device", "cpu", "--limit", "12", "--draws", "2", "--output", str(output), *map(str, more)]


def rows_of(file):
    """The table's rows as dicts."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in file.read_text().splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_the_full_command_on_local_copies(measured):
    tmp_path, tables = measured
    assert {task: len(cells) for task, cells in tables.items()} == {"sst2": 9, "wikitext": 3, "iwslt": 8, "imdb": 5}
    for task, cells in tables.items():
        written = json.loads((tmp_path / f"paper_{task}.json").read_text())
        assert written["cells"] == cells
        assert written["settings"]["limit"] == 12
        for key, figures in cells.items():
            assert all(math.isfinite(value) for value in figures.values()), key
            assert figures.get("memories") == (3 if " / paper / " in key else None)
            assert ("strength" in figures) == (" / paper / " in key or " / ours / " in key)
    shown = {task: rows_of(tmp_path / f"paper_{task}.md") for task in tables}
    beside = {(row["method"], row["examples per class"]): row["published"] for row in shown["sst2"]}
    assert beside[("frozen", "0")] == "74.3"
    assert [beside[("paper", shots)] for shots in ("1", "5", "full")] == ["78.5", "80.8", "87.5"]
    assert beside[("ours", "full")] == ""
    assert [row["published"] for row in shown["imdb"] if row["method"] == "paper"] == ["86.7", "87.4", "90.4"]
    assert [row["published"] for row in shown["wikitext"]] == ["17.41", "13.23", ""]
    bleu = {row["model"]: row["published"] for row in shown["iwslt"] if row["method"] == "paper"}
    assert bleu == {"Qwen2.5-3B-Instruct": "36.4", "Qwen2.5-7B-Instruct": "37.1"}
    # alpha is that of the paper's code: of one example, five, and a hundred or more.
    alphas = [row["alpha"] for row in shown["sst2"] if row["method"] == "paper"]
    assert alphas == ["0.901", "0.905", "1.00"]
    assert [row["alpha"] for row in shown["iwslt"] if row["method"] == "paper"] == ["0.9", "1.00"]


def test_a_killed_run_goes_on_with_what_is_missing(paper, copies, measured, tmp_path, monkeypatch):
    given = command(copies, tmp_path, "--tasks", "wikitext")
    first = measured[1]["wikitext"]
    shutil.copy(measured[0] / "paper_wikitext.json", tmp_path)
    monkeypatch.setitem(paper.FULL, "wikitext", replace(paper.FULL["wikitext"], window=90))
    loaded, opened = [], []
    load, open_model = paper.load_dataset, paper.opened
    monkeypatch.setattr(paper, "load_dataset", lambda *a, **k: loaded.append(a) or load(*a, **k))
    monkeypatch.setattr(paper, "opened", lambda *a: opened.append(a) or open_model(*a))
    paper.texts.cache_clear()
    assert paper.main(given)["wikitext"] == first
    assert (loaded, opened) == ([], [])
    file = tmp_path / "paper_wikitext.json"
    record = json.loads(file.read_text())
    (key,) = (key for key in record["cells"] if " / paper / " in key)
    del record["cells"][key]
    file.write_text(json.dumps(record))
    again = paper.main(given)["wikitext"]
    assert len(loaded) == 2
    assert len({id(args) for _, args in opened}) == 1
    assert again[key]["perplexity"] == pytest.approx(first[key]["perplexity"])
    assert {k: v for k, v in again.items() if k != key} == {k: v for k, v in first.items() if k != key}
    with pytest.raises(SystemExit, match="another alpha"):
        paper.main([*given, "--alpha", "0.5"])


def test_rows_are_what_the_library_gives(paper, copies, measured):
    cells = measured[1]["sst2"]
    places = [dict(option.split("=", 1) for option in copies[name])["gpt2-xl"] for name in ("--model", "--base-config")]
    handle = backbone(places[0], base_config=places[1])
    X, y = (list(column) for column in zip(*((text, paper.LABELS[label]) for text, label in REVIEWS), strict=True))
    settings = {"template": paper.REVIEW, "choices": paper.LABELS, "device": "cpu"}
    memories = FaastSeq2Seq(handle, alpha=1.0, memory_weight=0.9, learn_from="all", **settings).fit(X, y)
    lm = handle.open_language_model("cpu")
    plain = backbone((lm.module, lm.tokenizer))
    frozen = FaastSeq2Seq(plain, memory_weight=0, **settings).fit(X, y)
    ours = FaastSeq2Seq(plain, **settings).fit(X, y)
    for name, learnt in (("frozen / 0", frozen), ("paper / full", memories), ("ours / full", ours)):
        assert cells[f"sst2 / gpt2-xl / {name}"]["accuracy, %"] == pytest.approx(100 * learnt.score(X, y))
    # The memories in the middle are not there by accident.
    bare = FaastSeq2Seq(plain, alpha=1.0, learn_from="all", **paper.PAPER, **settings).fit(X, y)
    differ = np.abs(memories.choice_log_probabilities(X) - bare.choice_log_probabilities(X))
    assert differ.max() > 1e-3


def test_perplexity_is_that_of_windows_without_overlap(paper, copies, measured):
    cells = measured[1]["wikitext"]
    lm = paper.opened(*opening(paper, copies)).lm
    ids = lm.tokenizer("\n\n".join((LINES * 20)[:12]), return_tensors="pt")["input_ids"]
    total = count = 0
    for start in range(0, ids.shape[1], 90):
        window = ids[:, start : start + 90]
        with torch.no_grad():
            total += float(lm.module(window, labels=window).loss) * (window.shape[1] - 1)
        count += window.shape[1] - 1
    frozen = cells["wikitext-103 / gpt2-xl / frozen / 0"]
    assert (frozen["tokens"], count > 180) == (count, True)
    assert frozen["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert cells["wikitext-103 / gpt2-xl / paper / full"]["tokens learnt"] == count


def opening(paper, copies):
    args = paper.parse_arguments(command(copies, "unused"))
    return paper.models(args, "sst2")[0], args


def test_windows_are_the_text(paper, monkeypatch):
    lines = [f"line {i}" for i in range(30)]
    whole = letters()("\n\n".join(lines))["input_ids"]
    for size in (30, 7):
        monkeypatch.setattr(paper, "LINES_A_CALL", size)
        batches = list(paper.windows(letters(), lines, 16, batch_size=3))
        assert [tuple(batch.shape) for batch in batches[:-1]] == [(3, 16)] * (len(batches) - 2) + [batches[-2].shape]
        assert [token for batch in batches for token in batch.flatten().tolist()] == whole
    (rest,) = paper.windows(letters(), ["abc"], 16)
    assert rest.tolist() == [letters()("abc")["input_ids"]]


class Recorded:
    """Stands for an estimator, and remembers what it was given."""

    seen = ()

    def __init__(self, args, model, method, task, shots, **settings):
        self.alpha_, self.memory_weight_, self.settings = 0.5, 1.0, settings
        Recorded.seen = (*Recorded.seen, self)

    def fit(self, X, y):
        self.X, self.y = list(X), list(y)
        return self

    def predict(self, X):
        self.asked = list(X)
        return np.array(["positive"] * len(X), dtype=object)


def test_draws_share_the_questions(paper, copies, monkeypatch):
    monkeypatch.setattr(paper, "seq2seq", Recorded)
    model, args = opening(paper, copies)
    args.draws = 4
    taught = {}
    for method in ("paper", "ours", "in-context"):
        Recorded.seen = ()
        figures = paper.sentiment_accuracy(args, model, method, "sst2", 1)
        assert (figures["accuracy, %"], figures["tested on"]) == (50.0, 12)
        assert figures["± 95 %"] == pytest.approx(196 * math.sqrt(0.25 / 12))
        assert len(Recorded.seen) == 4
        assert sorted(text for one in Recorded.seen for text in one.asked) == sorted(text for text, _ in REVIEWS)
        taught[method] = [one.X for one in Recorded.seen]
        if method != "in-context":
            assert all(sorted(one.y) == ["negative", "positive"] for one in Recorded.seen)
            assert len({tuple(one.X) for one in Recorded.seen}) > 1
    # The same examples, whoever learns from them; in a prompt they are shown instead.
    assert taught["paper"] == taught["ours"]
    for one, examples in zip(Recorded.seen, taught["ours"], strict=True):
        prompt = one.settings["template"].format(source="what is asked", target="answer")
        assert [prompt.count(f"Review: {text}\nSentiment: ") for text in examples] == [1, 1]
        assert prompt.endswith("\n\nReview: what is asked\nSentiment: answer\n")


def test_examples_take_half_of_the_context(paper, copies):
    lm = paper.opened(*opening(paper, copies)).lm
    X, y = ["a" * 500, "b" * 9], ["positive", "negative"]
    template = paper.with_examples(lm, X, y)
    head = template.removesuffix(paper.REVIEW)
    assert "Review: " + "a" * (800 // 4 - len("Review: \nSentiment: negative\n\n")) + "\n" in head
    assert "Review: " + "b" * 9 + "\n" in head
    with pytest.raises(paper.UnavailableError, match="16 examples do not fit into 800 tokens"):
        paper.with_examples(lm, X * 8, y * 8)


def test_translation_asks_as_the_paper_does(paper):
    shown = (("One.", "Eins."),)
    system, user = paper.chat_prompt("en-de", shown, "Two.")
    assert system == {"role": "system", "content": "You are a helpful assistant."}
    assert user["content"] == (
        "Please translate English text into German.\n\nEnglish: One.\nGerman: Eins.\n\nEnglish: Two.\nGerman:"
    )
    assert paper.plain_prompt("fr-en", (), "Deux.") == "French: Deux.\nEnglish: "


def test_small_runs_on_another_model_and_pairs(paper, tmp_path, monkeypatch):
    pytest.importorskip("sacrebleu")
    model = tiny_llama(tmp_path / "letters")
    pairs = tmp_path / "mine.tsv"
    pairs.write_text("\n".join(["de\ten", *(f"das {i}\tthe {i}" for i in range(10))]), encoding="utf-8")
    monkeypatch.setattr(paper, "load_dataset", None)  # nothing is loaded
    monkeypatch.setitem(paper.SMALL, "iwslt", replace(paper.SMALL["iwslt"], new_tokens=3))
    given = ["--small", "--model", model, "--device", "cpu", "--limit", "10", "--draws", "1"]
    tables = paper.main([*given, "--pairs", f"de-en={pairs}", "--output", str(tmp_path / "out")])
    assert list(tables) == ["sst2", "wikitext", "iwslt"]
    for task, cells in tables.items():
        rows = rows_of(tmp_path / "out" / f"paper_{task}.md")
        assert len(rows) == len(cells)
        assert {row["published"] for row in rows} == {""}
        assert {row["model"] for row in rows} == {"letters"}
        assert [row["memories"] for row in rows if row["method"] == "paper"] == ["1"] * (3 if task == "sst2" else 1)
    (row,) = (row for row in rows if row["method"] == "ours")
    assert (row["data"], row["direction"], row["tested on"]) == ("mine.tsv", "de-en", "2")
    likelihood = {row["method"]: float(row["NLL per token"]) for row in rows}
    # Eight pairs teach an untrained model little, and states in their prompts damp it: it may be less than is printed.
    assert likelihood["ours"] <= likelihood["frozen"]


def tiny_llama(folder):
    model = tiny_model("llama")
    model.resize_token_embeddings(4 + 256)
    model.config.max_position_embeddings = 1024
    model.save_pretrained(folder)
    letters().save_pretrained(folder)
    return str(folder)


def test_too_few_examples_are_said_in_the_table(paper, copies, tmp_path):
    given = command(copies, tmp_path, "--tasks", "sst2", "--methods", "ours", "--limit", 4)
    cells = paper.main(given)["sst2"]
    assert [key.rpartition(" / ")[2] for key in cells] == ["1", "full"]
    (row,) = (row for row in rows_of(tmp_path / "paper_sst2.md") if row["examples per class"] == "5")
    assert re.fullmatch(r"only \d examples of a class", row["accuracy, %"])


def test_errors_name_the_remedy(paper, copies, tmp_path, capsys):
    given = command(copies, tmp_path, "--tasks", "sst2")
    with pytest.raises(SystemExit, match=r"(?s)nowhere.* cannot be loaded: .*--data NAME=FOLDER, or try --small"):
        paper.main([*given, "--data", f"sst2={tmp_path / 'nowhere'}"])
    with pytest.raises(SystemExit, match=r"(?s)gpt2-xl cannot be opened: .*--model gpt2-xl=FOLDER.*--small"):
        paper.main([*given, "--model", f"gpt2-xl={tmp_path / 'nowhere'}"])
    for wrong in (["--model", "gpt3=x"], ["--data", "x"], ["--pairs", "german=x"]):
        with pytest.raises(SystemExit):
            paper.main([*given, *wrong])
        assert wrong[1].split("=")[0] in capsys.readouterr().err
