"""The examples run as a user starts them, and show what they promise."""

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]


def start(script, *arguments, cwd, alone=False):
    """Run a script on this tree's package, and return what it prints; in this process, or alone in one of its own."""
    command = [str(ROOT / "examples" / script), *map(str, arguments)]
    if not alone:
        return run_here(command, cwd)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def run_here(command, cwd):
    """Run a script without starting Python anew, which takes longer than most of them."""
    printed, threads = io.StringIO(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("ignore")
        patch.chdir(cwd)
        patch.setattr(sys, "argv", command)
        patch.setattr(sys, "path", [str(Path(command[0]).parent), *sys.path])
        patch.setenv("PYTHONPATH", str(ROOT))  # of processes that it starts
        modules = set(sys.modules)
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise AssertionError(end.code) from end
        finally:
            torch.set_num_threads(threads)
            for name in set(sys.modules) - modules:  # those beside the script, of which others may have the names
                if str(ROOT / "examples") in str(getattr(sys.modules[name], "__file__", "")):
                    del sys.modules[name]
    return printed.getvalue()


@pytest.fixture
def photos(tmp_path):
    """Two kinds of pictures that any pretrained network tells apart, in one folder each."""
    rng = np.random.default_rng(0)
    for name, colour in (("lake", (20, 60, 200)), ("meadow", (40, 180, 30))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(9):
            pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.jpg")
    return tmp_path / "photos"


@pytest.mark.slow
def test_quickstart_learns_a_folder_and_draws(photos, tmp_path):
    figure = tmp_path / "figure.png"
    arguments = ("--images", photos, "--shots", 2, 500, "--image-size", 64, "--output", figure)
    out = start("quickstart.py", *arguments, cwd=tmp_path, alone=True)
    assert "12 images to learn from, 6 to test on, 2 classes" in out
    rows = re.findall(r"^ *(\w+) +(\d+) +([\d.]+) +[\d.]+ +([\d.]+) +[\d.]+$", out, flags=re.MULTILINE)
    # 500 examples per class are not there, so there is no such row.
    assert [(shots, n) for shots, n, *_ in rows] == [("2", "4"), ("all", "12")]
    end_to_end = float(re.search(r"accuracy +([\d.]+)", out)[1])
    assert end_to_end == float(rows[-1][2]) == 1.0
    with Image.open(figure) as image:
        assert image.width > image.height > 400
        assert len(image.convert("RGB").getcolors(2**24)) > 50


@pytest.mark.slow
def test_image_benchmark_prints_ratios(tmp_path):
    out = start("benchmarks/images.py", "--n", 8, "--repeats", 1, cwd=tmp_path)
    found = re.findall(r"^(\w+): 8 on .*loop ([\d.]+) s .*fit ([\d.]+) s.*ratio ([\d.]+)$", out, flags=re.MULTILINE)
    assert [what for what, *_ in found] == ["images", "texts"]
    for bare, fit, ratio in ((float(number) for number in numbers) for _, *numbers in found):
        # Seconds are printed with three digits, so their ratio is about the ratio.
        assert fit / bare == pytest.approx(ratio, rel=0.2, abs=0.02)


@pytest.mark.slow
def test_dask_benchmark_prints_a_ratio_and_equal_coefficients(tmp_path):
    small = ("--rows", 4000, "--features", 40, "--chunk", 900, "--repeats", 1)
    out = start("benchmarks/dask_moments.py", *small, cwd=tmp_path)
    assert "4000 x 40 float32, 5 partitions, 2 workers" in out
    one, many, ratio = map(float, re.search(r"process ([\d.]+) s, workers ([\d.]+) s, ratio ([\d.]+)", out).groups())
    assert one / many == pytest.approx(ratio, rel=0.2, abs=0.02)
    assert float(re.search(r"largest: (\S+)", out)[1]) < 1e-9


@pytest.mark.slow
def test_few_shot_benchmark_prints_ratios_and_equal_accuracies(tmp_path):
    small = ("--rows", 400, "--features", 64, "--episodes", 20, "--looped", 10, "--repeats", 1, "--threads", 1)
    out = start("benchmarks/few_shot.py", *small, cwd=tmp_path)
    assert "equal accuracies: True" in out


@pytest.mark.slow
def test_selection_benchmark_prints_ratios_and_equal_errors(tmp_path):
    small = ("--rows", 1000, "--features", 40, "--classes", 4, "--repeats", 1)
    out = start("benchmarks/selection.py", *small, cwd=tmp_path)
    assert float(re.search(r"eigendecompositions\): ([\d.]+)", out)[1]) > 0
    assert float(re.search(r"scikit-learn's Ridge: (\S+)", out)[1]) < 1e-8


@pytest.mark.slow
def test_speed_is_one_table_of_ratios(tmp_path):
    out = start("benchmarks/speed.py", "--small", "--repeats", 1, "--device", "cpu", cwd=tmp_path)
    rows = re.findall(r"^\| (.*) \| (.+) \| ([\d.e+]+) (s|ms|µs) \| (\S*) \| (.*) \|$", out, flags=re.MULTILINE)
    units = {"s": 1, "ms": 1e-3, "µs": 1e-6}
    parts, ours = [], None
    for title, name, number, unit, ratio, share in rows:
        seconds = float(number) * units[unit]
        if title:
            parts.append(name)
            ours, ratio = seconds, ratio or 1
        # Times are printed with three digits, so their ratio is about the ratio.
        assert seconds / ours == pytest.approx(float(ratio), rel=0.02)
        assert not share or float(share.removesuffix(" GFLOP/s").replace(",", "")) > 0
    assert parts.count("product") == 2
    assert parts[2:] == [
        "`fit` and solve",
        "`predict`",
        "`fit` and solve",
        *["`partial_fit`"] * 2,
        '`alpha="auto"`',
        *["`predict`"] * 2,
        "`few_shot_score`",
        "`alpha_path`",
    ]
    assert {"the backbone alone", "pinv by SVD, float32", "RidgeClassifier"} <= {name for _, name, *_ in rows}


@pytest.mark.slow
def test_accuracy_and_novelty_benchmarks_print_tables(tmp_path):
    out = start("benchmarks/accuracy.py", "--sets", 1, "--draws", 1, cwd=tmp_path)
    rows = re.findall(r"^\| (\w+) \| (.+) \|$", out, flags=re.MULTILINE)
    assert [name for name, _ in rows] == ["shots", "1", "2", "5", "16", "64", "all"]
    columns = rows[0][1].split(" | ")
    for _, row in rows[1:]:
        cells = dict(zip(columns, row.split(" | "), strict=True))
        assert float(cells["default"].split(" / ")[0]) > float(cells["paper"].split(" / ")[0])
    out = start("benchmarks/novelty.py", "--sets", 1, "--draws", 1, cwd=tmp_path)
    areas = re.findall(r"^\| digits, pixels \| \w+ \| ([\d.]+) \| [\d.]+ \| ([\d.]+) \|$", out, flags=re.MULTILINE)
    assert len(areas) == 6
    assert sum(float(ours) > float(probability) for probability, ours in areas) >= 5


@pytest.fixture
def pairs(tmp_path):
    """A table of pairs in the tiny models' words: the answer is the question's last word twice."""
    words = ("cat", "dog", "sat", "mat")
    lines = [f"the {a} {b}\t{b} {b}\tmore" for a in words for b in words for _ in range(3)]
    file = tmp_path / "pairs.tsv"
    file.write_text("\n".join(["question\tanswer\tnote", *lines, ""]), encoding="utf-8")
    return file


def translation_rows(out):
    rows = re.findall(
        r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]*) \|$", out, re.MULTILINE
    )
    return {name: [float(cell) if cell else None for cell in cells] for name, *cells in rows}


@pytest.mark.slow
def test_unequal_benchmark_prints_three_tables(tmp_path):
    out = start("benchmarks/unequal.py", "--small", "--output", tmp_path / "page.md", cwd=tmp_path)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.strip() in out
    assert re.findall(r"^### (.*)$", page, flags=re.MULTILINE) == [
        "Classes of unequal size",
        "Probabilities: log-loss / expected calibration error in percent",
        "Weights: accuracy with 300 examples",
    ]
    default, ridge = (
        [float(one) for one in row.replace("/", "|").split("|")[3:] if one.strip()]
        for row in re.findall(r"^\| digits, pixels \| (?:default|`Ridge).*$", page, flags=re.MULTILINE)
    )
    assert len(default) == len(ridge) == 6
    few = re.search(r"^\| 12, 3 \| ([\d.]+) / ([\d.]+) / ([\d.]+) ", page, flags=re.MULTILINE)
    assert float(few[1]) > 95
    assert float(few[2]) > 90
    assert float(few[3]) < 0.2


@pytest.mark.slow
def test_translation_learns_a_table_of_pairs(pairs, tiny_folder, tmp_path):
    pytest.importorskip("sacrebleu")
    table = tmp_path / "table.md"
    arguments = ("--pairs", pairs, "--backbone", f"hf:{tiny_folder('llama')}", "--instruction", "", "--n-test", 8)
    arguments += ("--n-generate", 4, "--max-new-tokens", 4, "--output", table, "--show", 1)
    out = start("translation.py", *arguments, cwd=tmp_path)
    assert "40 pairs to learn from, 8 to test on, 4 of them generated" in out
    assert table.read_text().strip() in out
    rows = translation_rows(out)
    assert list(rows) == ["frozen", "in-context", "paper", "ours"]
    assert rows["ours"][1] < rows["frozen"][1]
    # Only what learns takes time to.
    assert [cells[-1] is None for cells in rows.values()] == [True, True, False, False]
    source, target = re.search(r"^source    (.+)\ntarget    (.+)$", out, flags=re.MULTILINE).groups()
    assert target == " ".join([source.split()[-1]] * 2)


@pytest.mark.slow
def test_translation_names_the_line_without_a_target(pairs, tmp_path):
    pytest.importorskip("sacrebleu")
    pairs.write_text(pairs.read_text() + "a source alone\n", encoding="utf-8")
    with pytest.raises(
        (AssertionError, ValueError), match=r"pairs\.tsv, line 50: expected a source, a tab and a target"
    ):
        start("translation.py", "--pairs", pairs, "--backbone", "none", cwd=tmp_path)


@pytest.mark.slow
def test_language_benchmark_prints_ratios(pairs, tiny_folder, tmp_path):
    arguments = ("--pairs", pairs, "--backbone", f"hf:{tiny_folder('llama')}", "--n", 64, "--n-generate", 4)
    out = start("benchmarks/language.py", *arguments, "--new-tokens", 3, "--repeats", 1, cwd=tmp_path)
    seconds = re.findall(r"^\| (.+) \| ([\d.]+) \| .* \| ([\d.]*) \|$", out, flags=re.MULTILINE)
    assert [ratio == "" for _, _, ratio in seconds][:7] == [True, False, False, True, False, False, False]
    if "peak beyond" in out:
        learnt = [int(n) for n in re.findall(r"^\| \d+ \| (\d+) \| \d+ \| \d+ \| \d+ \|$", out, flags=re.MULTILINE)]
        assert learnt == [64 * 3, 4 * 64 * 3]


@pytest.mark.slow
def test_readouts_are_compared_on_held_out_text(tiny_folder, tmp_path):
    out = start("benchmarks/train_readouts.py", "--small", "--backbone", f"hf:{tiny_folder('llama')}", cwd=tmp_path)
    assert "1 memories, 4 steps of 2 + 2 windows of 32 tokens" in out
    rows = re.findall(r"^\| (.+) \| 64 \| (.+) \| [\d.]+ \| [\d.]+ \|.*\|$", out, flags=re.MULTILINE)
    assert len(rows) == 8
    assert {name for name, _ in rows} == {"scikit-learn", "Python's reference"}


@pytest.mark.slow
def test_sentiment_prints_accuracies(tiny_folder, tmp_path):
    model = f"hf:{tiny_folder('llama')}"  # which knows none of the words; that a real one does is in the language guide
    out = start("sentiment.py", "--shots", 8, "--draws", 1, "--backbone", model, cwd=tmp_path)
    assert "40 reviews to test on" in out
    accuracies = [float(x) for x in re.search(r"^ +8 +([\d.]+) +([\d.]+) +([\d.]+)$", out, re.MULTILINE).groups()]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    assert len(re.findall(r"^ +([+-][\d.]+)  \S", out, flags=re.MULTILINE)) == 2
