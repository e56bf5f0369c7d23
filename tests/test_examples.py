"""The examples run as a user starts them, and show what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


def start(script, *arguments, cwd):
    """Run a script in a process of its own, on this tree's package, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


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


def test_quickstart_learns_a_folder_and_draws(photos, tmp_path):
    figure = tmp_path / "figure.png"
    arguments = ("--images", photos, "--shots", 2, 500, "--image-size", 64, "--output", figure)
    out = start("quickstart.py", *arguments, cwd=tmp_path)
    assert "12 images to learn from, 6 to test on, 2 classes" in out
    rows = re.findall(r"^ *(\w+) +(\d+) +([\d.]+) +[\d.]+ +([\d.]+) +[\d.]+$", out, flags=re.MULTILINE)
    # 500 examples a class are not there, so there is no such row.
    assert [(shots, n) for shots, n, *_ in rows] == [("2", "4"), ("all", "12")]
    end_to_end = float(re.search(r"accuracy +([\d.]+)", out)[1])
    assert end_to_end == float(rows[-1][2]) == 1.0
    with Image.open(figure) as image:
        assert image.width > image.height > 400
        assert len(image.convert("RGB").getcolors(2**24)) > 50


def test_image_benchmark_prints_ratios(tmp_path):
    out = start("benchmarks/images.py", "--n", 8, "--repeats", 1, cwd=tmp_path)
    found = re.findall(r"^(\w+): 8 on .*loop ([\d.]+) s .*fit ([\d.]+) s.*ratio ([\d.]+)$", out, flags=re.MULTILINE)
    assert [what for what, *_ in found] == ["images", "texts"]
    for bare, fit, ratio in ((float(number) for number in numbers) for _, *numbers in found):
        # Seconds are printed with three digits, so their ratio is about the ratio.
        assert fit / bare == pytest.approx(ratio, rel=0.2, abs=0.02)
