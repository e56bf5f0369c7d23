"""The documents' Python blocks run as they stand, and their shell commands name what exists."""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from faast_sklearn import FaastClassifier

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/user_guide.md",
    "docs/caching.md",
    "docs/scaling_out.md",
    "docs/saving.md",
    "docs/model_selection.md",
    "docs/accuracy.md",
    "docs/language_models.md",
    "docs/backbones.md",
    "docs/how_it_works.md",
    "docs/numerics.md",
    "docs/index.md",
    "docs/get_started.md",
    "docs/choosing_a_backbone.md",
    "docs/add_a_backbone.md",
    "docs/troubleshooting.md",
)


def blocks(document, language):
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        (text[: match.start()].count("\n") + 2, match[1])
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    ]


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """A folder with what the documents speak of: photos by class and a table of reviews."""
    digits = load_digits()
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i, image in enumerate(digits.images[digits.target == label][:6]):
            pixels = np.kron(image * (255 / 16), np.ones((5, 5))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    rows = [("love it", "good"), ("broke at once", "bad"), ("works", "good"), ("a waste", "bad"), ("fine", "good")]
    lines = [f"{text},{'north' if i % 2 else 'south'},{label}" for i, (text, label) in enumerate(rows)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,shop,label", *lines]) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(document, chosen=lambda source: True):
    """Run all Python blocks in one namespace, as a reader who pastes one after the other."""
    found = [(line, source) for line, source in blocks(document, "python") if chosen(source)]
    assert found
    namespace = {}
    for line, source in found:
        # Compiled at its own line, so that a traceback points into the document.
        exec(compile("\n" * (line - 1) + source, str(ROOT / document), "exec"), namespace)
    return namespace


def test_readme_runs(stand_ins):
    left = run("README.md", lambda source: "FaastSeq2Seq" not in source)
    # "as if all had been there at once"
    whole = FaastClassifier().fit(left["X"], left["y"])
    np.testing.assert_allclose(left["clf"].coef_, whole.coef_, rtol=1e-6, atol=1e-9)


def test_user_guide_runs(stand_ins):
    left = run("docs/user_guide.md")
    # "what one pass over all would have given"
    whole = FaastClassifier().fit(left["F"], left["labels"])
    np.testing.assert_allclose(left["together"].coef_, whole.coef_, rtol=1e-6, atol=1e-9)
    assert left["together"].classes_.tolist() == ["cat", "dog"]
    assert (stand_ins / "classifier.joblib").is_file()


def test_model_selection_guide_runs():
    left = run("docs/model_selection.md")
    assert left["zero_shot"].predict(["a ripe banana", "a fast train"]).tolist() == ["fruit", "vehicle"]
    assert left["ours"].mean > 0.85


def test_saving_guide_runs():
    pytest.importorskip("skops")
    left = run("docs/saving.md")
    assert left["again"].n_samples_seen_ == 1797
    np.testing.assert_array_equal(left["found"].predict(left["X"]), left["bagged"].predict(left["X"]))


def test_scaling_out_guide_runs():
    left = run("docs/scaling_out.md")
    # "equals one fit of all samples to rounding"
    whole = FaastClassifier().fit(left["X"], left["y"])
    np.testing.assert_allclose(left["clf"].coef_, whole.coef_, rtol=1e-9, atol=1e-9 * np.abs(whole.coef_).max())


def test_caching_guide_runs():
    run("docs/caching.md")


def test_front_page_runs():
    assert run("docs/index.md")["clf"].classes_.tolist() == ["bad", "good", "question"]


def test_get_started_runs(stand_ins):
    left = run("docs/get_started.md")
    assert left["clf"].score(left["test"], left["y_test"]) > 0.6
    assert left["load"]("opinion.safetensors").classes_.tolist() == left["opinion"].classes_.tolist()


def test_choosing_a_backbone_runs():
    assert run("docs/choosing_a_backbone.md")["scores"].mean() > 0.5


def test_add_a_backbone_runs(monkeypatch):
    from faast_sklearn.backbones import registry

    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    left = run("docs/add_a_backbone.md")
    assert left["whole"].shape == (200, 16)
    assert "X[1]" in str(left["refused"])


def test_troubleshooting_runs():
    (condition,) = run("docs/troubleshooting.md")["condition"]
    assert "condition number" in condition


@pytest.mark.slow
def test_readme_runs_a_language_model():
    pytest.importorskip("gguf")
    left = run("README.md", lambda source: "FaastSeq2Seq" in source)
    assert left["clerk"].predict(left["orders"][-1:]).tolist() == ["water x4"]


@pytest.mark.slow
def test_language_guide_runs(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.chdir(tmp_path)
    left = run("docs/language_models.md")
    seq2seq, ids = left["seq2seq"], left["ids"]["input_ids"]
    # "needs none of this library's code": the same logits from the plain checkpoint
    with seq2seq.attached() as model, torch.inference_mode():
        expected = model(ids).logits
        np.testing.assert_allclose(left["model"](ids).logits, expected, atol=2e-3)
    assert seq2seq.n_samples_seen_ == 7


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / document).parent / name if name else ROOT / document
        assert file.exists(), f"{document} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
            assert anchor in anchors, f"{document} links to {target}; anchors are {anchors}"


def command(marker):
    """The shell command of the README below a marker, as .ci/run reads it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^<!-- {marker} -->\n```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return found.strip()


@pytest.mark.parametrize("marker", ["run", "test"])
def test_readme_commands_name_what_exists(marker):
    line = command(marker)
    assert "\n" not in line
    tokens = shlex.split(line)
    for token in tokens:
        if token.endswith(".py"):
            assert (ROOT / token).is_file()
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"\.\[([\w,]+)\]", line)
    assert extras
    for extra in extras[0].split(","):
        assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE), f"no extra {extra!r}"


def test_ci_runs_the_readme_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "<!-- test -->" in script
    assert "pytest" in command("test")
