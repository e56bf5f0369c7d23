"""The documentation leaves no page and no public name out, and its tables are right; that it builds is for .ci/run."""

import importlib
import pkgutil
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from helpers.releases import before

import faast_sklearn

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OURS = ("_build", "_templates", "_static", "figures", "generated", "auto_examples")  # folders without pages to write


@pytest.fixture(scope="module")
def conf():
    path = list(sys.path)
    try:
        return runpy.run_path(str(DOCS / "conf.py"))
    finally:
        sys.path[:] = path


def pages():
    found = (path.relative_to(DOCS) for pattern in ("*.md", "*.rst") for path in DOCS.rglob(pattern))
    return {path.with_suffix("").as_posix() for path in found if path.parts[0] not in OURS}


def test_configuration_names_what_is_there(conf):
    assert conf["version"] == faast_sklearn.__version__
    for folder in (*conf["templates_path"], *conf["html_static_path"]):
        assert (DOCS / folder).is_dir()
    for file in conf["html_css_files"]:
        assert (DOCS / "_static" / file).is_file()
    for outside, page in conf["OUTSIDE"].items():
        assert (DOCS / outside).resolve().is_file()
        assert (DOCS / page).is_file()


def test_every_page_is_in_a_table_of_contents(conf):
    listed = {"index"}
    queue = [page for page in conf["FRONT"] if not page.startswith("auto_examples")]
    while queue:
        page = queue.pop()
        assert page not in listed, f"{page} is listed twice"
        listed.add(page)
        if (DOCS / f"{page}.rst").is_file():
            source = (DOCS / f"{page}.rst").read_text(encoding="utf-8")
            for block in re.findall(r"^\.\. toctree::\n(?:   :.*\n)*\n((?:   \S.*\n)+)", source, flags=re.MULTILINE):
                # A line is a page, or a title and the page in angle brackets.
                queue += [re.sub(r".*<(.+)>$", r"\1", line.strip()) for line in block.splitlines()]
    assert listed == pages()


def listed_names():
    """The objects of the API page, with the names that it gives them."""
    names, module = [], None
    inside = False
    for line in (DOCS / "api.rst").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\.\. (?:currentmodule|automodule|module):: (\S+)", line):
            module = match[1]
        elif line.startswith(".. autosummary::"):
            inside = True
        elif inside and (match := re.fullmatch(r"   (\w+)", line)):
            names.append((module, match[1]))
        elif line and not line.startswith(" "):
            inside = False
    return names


PUBLIC = (
    "faast_sklearn",
    "faast_sklearn.backbones",
    "faast_sklearn.dask",
    "faast_sklearn.display",
    "faast_sklearn.distributed",
    "faast_sklearn.errors",
    "faast_sklearn.few_shot",
    "faast_sklearn.inputs",
    "faast_sklearn.language",
    "faast_sklearn.moments",
    "faast_sklearn.readout",
    "faast_sklearn.selection",
    "faast_sklearn.solvers",
)


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_on_the_api_page(module):
    if module.endswith(".dask"):
        pytest.importorskip("dask")
    listed = [
        getattr(importlib.import_module(where), name)
        for where, name in listed_names()
        if where == module or not module.endswith(".dask")
    ]
    public = importlib.import_module(module)
    missing = [name for name in public.__all__ if not any(getattr(public, name) is thing for thing in listed)]
    assert not missing


def test_the_api_page_lists_nothing_twice_and_no_module_is_public_unseen():
    names = listed_names()
    assert len(names) == len(set(names))
    assert {module for module, _ in names} == set(PUBLIC)
    # What index.md calls a module of the library is one of those above.
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    modules = {info.name for info in pkgutil.iter_modules(faast_sklearn.__path__, "faast_sklearn.")}
    assert {name for name in re.findall(r"`(faast_sklearn\.\w+)`", index) if name in modules} <= set(PUBLIC)


@pytest.mark.parametrize("figure", ["at_a_glance", "five_rooms", "choosing_a_backbone"])
def test_figures_are_what_their_scripts_draw(figure, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "figures"))
    script = runpy.run_path(str(DOCS / "figures" / f"{figure}.py"))
    assert (DOCS / "_static" / script["NAME"]).read_text(encoding="utf-8") == script["draw"]().svg()


def test_the_rooms_of_the_picture_are_files(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "figures"))
    for _, files, *_ in runpy.run_path(str(DOCS / "figures" / "five_rooms.py"))["ROOMS"]:
        for file in files.split():
            assert (ROOT / "faast_sklearn" / file).exists()


def rows(prefix):
    """Rows of the tables of choosing_a_backbone.md whose backbone has this prefix, by the name of their columns."""
    found, header = [], None
    for line in (DOCS / "choosing_a_backbone.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else None
        if cells is None:
            header = None
        elif header is None:
            header = cells
        elif cells[0].startswith(f"`{prefix}"):
            found.append(dict(zip(header, cells, strict=True)))
    return found


def millions(text):
    return float(text.removesuffix(" M"))


@pytest.mark.parametrize(
    "name",
    [
        "bundled:efficientnet-lite0",
        "bundled:minilm-l6",
        pytest.param("bundled:smollm2-135m", marks=pytest.mark.slow),
    ],
)
def test_bundled_backbones_are_as_the_table_says(name):
    from faast_sklearn.backbones import backbone
    from faast_sklearn.backbones.bundled import BUNDLED
    from faast_sklearn.errors import MissingDependencyError

    (row,) = (row for row in rows("bundled:") if row["name"] == f"`{name}`")
    try:
        opened = backbone(name).open("cpu")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    assert int(row["d"]) == opened.n_features
    assert row["licence"] == opened.license
    assert millions(row["parameters"]) == round(sum(p.numel() for p in opened.module.parameters()) / 1e6, 1)
    size = sum(
        file.stat().st_size
        for file in BUNDLED[name.partition(":")[2]].folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    )
    assert float(row["size on disk"].removesuffix(" MB")) == round(size / 1e6)


@pytest.mark.skipif(before("timm", "1.0.24"), reason="this timm names no licences, or makes no models without numbers")
@pytest.mark.parametrize("row", rows("timm:"), ids=lambda row: row["name"].strip("`"))
def test_timm_models_are_as_the_table_says(row):
    import timm

    name = row["name"].strip("`").removeprefix("timm:")
    side = int(row["input"].removesuffix(" px"))
    with torch.device("meta"):  # shapes without numbers
        model = timm.create_model(name, pretrained=False, num_classes=0).eval()
        assert model(torch.empty(2, 3, side, side)).shape == (2, int(row["d"]))
    count = sum(p.numel() for p in model.parameters())
    assert millions(row["parameters"]) == round(count / 1e6, 1)
    assert float(row["float32"].removesuffix(" MB")) == round(count * 4 / 1e6)
    assert row["licence"] == timm.get_pretrained_cfg(name).license
    assert side == timm.get_pretrained_cfg(name).input_size[-1]


def test_the_flow_chart_leads_to_rows_of_the_tables(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "figures"))
    choices = runpy.run_path(str(DOCS / "figures" / "choosing_a_backbone.py"))["CHOICES"]
    table = {row["name"].strip("`"): row for prefix in ("bundled:", "timm:", "hf:") for row in rows(prefix)}
    for _, _, answers in choices:
        for _, name, facts in answers:
            if name == "backbone=None":
                continue
            row = table[name]
            size = next(row[column] for column in ("size on disk", "float32", "size") if column in row).split(",")[0]
            assert size in facts
            if "d = " in facts:
                assert int(re.search(r"d = ([\d,]+\d)", facts)[1].replace(",", "")) == int(row["d"])
