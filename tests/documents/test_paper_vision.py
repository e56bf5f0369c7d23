"""The paper's experiments on images: readers computed twice, the full command on local data, and --small."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
CIFAR = ["airplane", "automobile", "bird"]


@pytest.fixture
def paper(monkeypatch, tmp_path):
    """The script, with nothing kept from another test."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    module = importlib.import_module("paper_vision")
    yield module
    module.task.cache_clear()
    datasets.enable_progress_bars()


@pytest.fixture
def one(paper):
    """A task with an embedding for each of four classes."""
    rng = np.random.default_rng(0)

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    embeddings = unit(rng.standard_normal((4, 12)))
    y, y_query = np.arange(40) % 4, np.arange(60) % 4
    X, X_query = (unit(embeddings[labels] + 0.5 * rng.standard_normal((len(labels), 12))) for labels in (y, y_query))
    return paper.Task(X, y, X_query, y_query, embeddings, 30)


def test_the_papers_reader_is_its_formula(paper, one):
    W = np.linalg.pinv(one.X, rcond=len(one.X) ** -0.8) @ one.embeddings[one.y]
    r = len(one.X) / (one.n0 + len(one.X))
    wanted = (((1 - r) * one.X_query + r * one.X_query @ W) @ one.embeddings.T).argmax(1)
    assert np.array_equal(paper.paper(one), wanted)
    assert len(set(wanted)) == 4
    alone = one._replace(embeddings=None)
    onehot = np.linalg.pinv(one.X, rcond=len(one.X) ** -0.8) @ np.eye(4)[one.y]
    assert np.array_equal(paper.paper(alone), (one.X_query @ onehot).argmax(1))


def test_what_looks_examples_up_does_so(paper, one, monkeypatch):
    monkeypatch.setattr(paper, "ROWS", 7)  # in pieces, as on the whole of CIFAR-10
    alone = one._replace(embeddings=None)
    votes = KNeighborsClassifier(10).fit(one.X, one.y).predict(one.X_query)
    assert np.array_equal(paper.nearest_neighbours(alone), votes)
    attention = np.exp(one.X_query @ one.X.T / paper.TEMPERATURE) @ np.eye(4)[one.y]
    assert np.array_equal(paper.attention(alone), attention.argmax(1))
    # With a prior, few examples leave the nearest name as it is, and many overrule it.
    assert np.array_equal(paper.attention(one._replace(n0=1e9)), paper.zero_shot(one))
    assert np.array_equal(paper.attention(one._replace(n0=0)), attention.argmax(1))
    assert not np.array_equal(paper.attention(one), paper.zero_shot(one))


def test_every_reader_learns(paper, one):
    for name, reader in paper.READERS.items():
        assert (reader(one) == one.y_query).mean() > 0.6, name  # of four classes


def test_small_runs_at_once_and_goes_on_where_it_was(paper, tmp_path, monkeypatch, capsys):
    arguments = ["--small", "--limit", "140", "--episodes", "2", "--queries", "3", "--output", str(tmp_path / "out")]
    arguments += ["--device", "cpu"]
    cells = paper.main(arguments)
    table = (tmp_path / "out" / "paper_vision.md").read_text(encoding="utf-8")
    assert table.strip() in capsys.readouterr().out
    assert table.count("| needs a backbone that embeds texts too |") == 6  # two readers at three numbers of shots
    assert len(cells) == 5 * 3
    assert all(0 < cell["accuracy, %"] <= 100 for cell in cells.values())
    full = {key.rpartition(" / ")[2]: cell["accuracy, %"] for key, cell in cells.items() if "/ full /" in key}
    assert full["FaastClassifier()"] >= full["kNN"]

    def fail(one):
        raise AssertionError("measured again")

    monkeypatch.setattr(paper, "READERS", dict.fromkeys(paper.READERS, fail) | {"zero-shot": paper.zero_shot})
    monkeypatch.setitem(paper.READERS, 'FaastClassifier(prior_strength="auto")', paper.ours_with_prior)
    assert paper.main(arguments) == cells
    file = tmp_path / "out" / "paper_vision.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    del record["cells"]["digits / 5 / kNN"]
    file.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(AssertionError, match="measured again"):
        paper.main(arguments)
    monkeypatch.setitem(paper.READERS, "kNN", paper.nearest_neighbours)
    again = paper.main(arguments)
    assert again["digits / 5 / kNN"]["accuracy, %"] == cells["digits / 5 / kNN"]["accuracy, %"]
    with pytest.raises(SystemExit, match="was made with another queries: give another --output"):
        paper.main([*arguments, "--queries", "4"])


def test_the_usual_backbones_exist(paper):
    open_clip = pytest.importorskip("open_clip")
    for small, spec in ((False, paper.CLIP), (True, paper.BUNDLED)):
        assert paper.parse_arguments(["--small"] if small else []).backbone == spec
    model, _, tag = paper.CLIP.removeprefix("open_clip:").partition("/")
    assert tag in open_clip.list_pretrained_tags_by_model(model)


def pictures(n_classes, a_class, size, seed):
    """Noisy pictures of one colour a class, and their labels, in mixed order."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(n_classes), a_class))
    colours = np.random.default_rng(9).integers(40, 215, (n_classes, 1, 1, 3))
    pixels = np.clip(colours[labels] + rng.integers(-30, 30, (len(labels), size, size, 3)), 0, 255)
    return [Image.fromarray(np.uint8(one)) for one in pixels], labels.tolist()


@pytest.mark.slow
def test_the_full_command_on_local_copies(paper, tiny_open_clip, tmp_path):
    from datasets import ClassLabel, Dataset, Features, Image

    name, weights = tiny_open_clip
    others = ["n01532829", "n02074367"]
    for folder, column, names, splits in (
        ("cifar10", "img", CIFAR, {"train": 12, "test": 6}),
        ("mini-imagenet", "image", sorted([*paper.TEST_CLASSES, *others]), {"train": 6, "validation": 4}),
    ):
        for seed, (split, a_class) in enumerate(splits.items()):
            images, labels = pictures(len(names), a_class, 40, seed)
            features = Features({column: Image(), "label": ClassLabel(names=names)})
            data = Dataset.from_dict({column: images, "label": labels}, features=features)
            (tmp_path / folder).mkdir(exist_ok=True)
            data.to_parquet(tmp_path / folder / f"{split}-0.parquet")
    arguments = ["--data", *(f"{folder}={tmp_path / folder}" for folder in ("cifar10", "mini-imagenet"))]
    arguments += ["--backbone", f"open_clip:{name}", "--weights", str(weights), "--episodes", "1", "--queries", "3"]
    cells = paper.main([*arguments, "--device", "cpu", "--output", str(tmp_path / "out")])
    assert len(cells) == 2 * 3 * len(paper.READERS)
    assert cells["cifar10 / full / FaastClassifier()"]["accuracy, %"] > 90
    table = (tmp_path / "out" / "paper_vision.md").read_text(encoding="utf-8").splitlines()
    assert sum("| 86.7 |" in line for line in table) == sum("| 88.6 |" in line for line in table) == 1
    tasks = [
        paper.task(
            data, str(tmp_path / data), False, f"open_clip:{name}", str(weights), None, "cpu", str(tmp_path / "out")
        )
        for data in ("cifar10", "mini-imagenet")
    ]
    assert [(len(one.X), len(one.X_query), len(one.embeddings), one.n0) for one in tasks] == [
        (36, 18, 3, 400),
        (100, 100, 20, 800),
    ]
    for one in tasks:
        np.testing.assert_allclose(np.linalg.norm(one.X, axis=1), 1, rtol=1e-5)


def test_a_folder_of_images_is_a_data_set(paper, tmp_path):
    for i, (image, label) in enumerate(zip(*pictures(2, 6, 40, 0), strict=True)):
        (tmp_path / "own" / f"kind_{label}").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "own" / f"kind_{label}" / f"{i}.png")
    arguments = ["--small", "--images", str(tmp_path / "own"), "--episodes", "1", "--device", "cpu"]
    cells = paper.main([*arguments, "--output", str(tmp_path / "out")])
    assert "images / full / FaastClassifier()" in cells
    assert not any("/ 5 /" in key and key.startswith("digits") for key in cells)


def test_what_cannot_be_had_is_named(paper, tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        paper.main(["--data", "cifar11"])
    with pytest.raises(SystemExit, match=r"cannot be loaded.*\n.*--small"):
        paper.main(["--data", f"cifar10={tmp_path / 'nowhere'}", "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"digits: no image of '5' to learn from.*--limit"):
        paper.main(["--small", "--limit", "5", "--output", str(tmp_path / "out")])
    monkeypatch.setattr(paper, "load_dataset", lambda where, split: named_otherwise())
    with pytest.raises(SystemExit, match="has no class n01930112: --data mini-imagenet=FOLDER"):
        paper.main(["--data", "mini-imagenet", "--output", str(tmp_path / "out")])


def named_otherwise():
    from datasets import ClassLabel, Dataset, Features, Image

    images, labels = pictures(2, 1, 8, 0)
    features = Features({"image": Image(), "label": ClassLabel(names=["nematode", "king crab"])})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)
