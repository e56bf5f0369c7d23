"""Configuration of the documentation site; ``python -m sphinx -W --keep-going -n -b html docs SITE`` builds it."""

import importlib
import inspect
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import faast_sklearn  # noqa: E402

project = "faast_sklearn"
author = "The faast_sklearn developers"
copyright = f"2026, {author}"
version = release = faast_sklearn.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
]
root_doc = "index"
exclude_patterns = ["_build", "Thumbs.db", ".DS_Store"]
templates_path = ["_templates"]

# --- Markdown: the same files are read on a code host, so nothing beyond plain Markdown is switched on.

# So that links such as saving.md#pipelines find their heading, by the names that code hosts give to headings.
myst_heading_anchors = 4
# Files outside of this folder that are pages of the site too, with the names of these pages.
OUTSIDE = {"../README.md": "get_started.md", "../CHANGELOG.md": "changelog.rst", "../SECURITY.md": "security.rst"}
highlight_language = "none"  # formulas are indented blocks; code says what it is written in
# The order of the front page. It would be shown as code on a code host, so it is not in index.md.
FRONT = ("get_started", "guide", "how_it_works", "api", "measured", "changelog")

# --- Docstrings

autosummary_generate = True


def own_members(fullname):
    """Name the public methods and properties of a class that this library has written, with autodoc's word for each.

    What classes inherit from scikit-learn (``get_params``, metadata routing) is described there.
    """
    module, _, name = fullname.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    shown = {}
    for member in dir(cls):
        value = inspect.getattr_static(cls, member)
        plain = getattr(value, "fget", None) or getattr(value, "__func__", value)
        plain = inspect.unwrap(getattr(plain, "fn", plain))  # `fn`: scikit-learn's available_if
        if member.startswith("_") or not str(getattr(plain, "__module__", "")).startswith("faast_sklearn"):
            continue
        if isinstance(value, property):
            shown[member] = "property"
        elif callable(plain):
            shown[member] = "method"
    return shown


autosummary_context = {"own_members": own_members}
suppress_warnings = ["config.cache"]  # that this function is not kept from build to build
autodoc_typehints = "none"  # the docstrings say what signatures do, and more
# Methods are listed and documented on the page of their class.
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
toc_object_entries_show_parents = "hide"
# Base classes of other libraries: their documentation is not looked up, so that builds are offline.
nitpick_ignore_regex = [(r"py:.*", r"(sklearn|torch|abc|collections|numpy|builtins)\..*")]
# Python in quotes stays Python.
smartquotes = False

# --- Gallery: examples/plot_*.py, if there are any; `-D plot_gallery=0` shows them without running them.

EXAMPLES = DOCS.parent / "examples"
has_gallery = any(EXAMPLES.glob("plot_*.py")) and any(EXAMPLES.glob("GALLERY_HEADER.*"))
if has_gallery:
    extensions.append("sphinx_gallery.gen_gallery")
    FRONT = (*FRONT[:3], "auto_examples/index", *FRONT[3:])
    sphinx_gallery_conf = {
        "examples_dirs": str(EXAMPLES),
        "gallery_dirs": "auto_examples",
        "filename_pattern": "plot_",
        # The other scripts are commands with arguments, not pages.
        "ignore_pattern": r"(^|[\\/])(?!plot_)[^\\/]*\.py$",
        "within_subsection_order": "FileNameSortKey",
        "download_all_examples": False,
        "remove_config_comments": True,
        "show_memory": False,
        "write_computation_times": False,
        "abort_on_example_error": True,
    }

# --- Looks

html_theme = "pydata_sphinx_theme"
html_title = "faast_sklearn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}
# These have nothing beside them in the tree, so a sidebar would be empty.
html_sidebars = {page: [] for page in ("index", "get_started", "how_it_works", "changelog")}


def _lead_outside_links_inside(text):
    for outside, page in OUTSIDE.items():
        text = text.replace(f"]({outside}", f"]({page}")
    return text


def _adapt_page(app, docname, source):
    if docname == "index":
        source[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(FRONT) + "\n```\n"
    source[0] = _lead_outside_links_inside(source[0])


def _adapt_included(app, relative_path, parent_docname, content):
    content[0] = _lead_outside_links_inside(content[0].replace("](docs/", "]("))


def setup(app):
    """Connect what makes Markdown of a code host a page of the site."""
    app.connect("source-read", _adapt_page)
    app.connect("include-read", _adapt_included)
