"""Shared code of the paper's experiments: cells of a table, each measured once, saved at once, and shown.

A run that was killed goes on with the cells that are missing. ``NAME.json`` in the output directory holds the settings,
the versions and every finished cell; ``NAME.md`` the table, published figures beside measured ones.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

from faast_sklearn import __version__
from faast_sklearn.backbones.device import resolve_device


class UnavailableError(Exception):
    """A cell cannot be measured here; the message says why, and stands in the table."""


@dataclass(frozen=True)
class Cell:
    """One cell: where it stands, how it is measured, and what the paper has there.

    Parameters
    ----------
    place : dict
        What distinguishes the cell, such as ``{"data": "digits", "shots": 5, "reader": "kNN"}``; the same keys for
        all cells of an experiment, in the order of the table's first columns.
    measure : callable
        Returns a dict of numbers, or raises `UnavailableError`.
    published : float or None
        The paper's figure.
    """

    place: dict
    measure: Callable[[], dict]
    published: float | None = None

    @property
    def key(self):
        return " / ".join(map(str, self.place.values()))


def run(name, cells, *, output, settings):
    """Measure the cells that are not in ``output/NAME.json`` yet, and return and print the table.

    Parameters
    ----------
    name : str
        Of the files.
    cells : iterable of Cell
        Measured in this order. What several of them need is best kept by their ``measure``.
    output : path
        A directory; made if it is not there.
    settings : dict
        Whatever decides the figures: sizes, seeds, backbones. Finished cells of other settings are not mixed with.

    Raises
    ------
    SystemExit
        When the file holds cells of other settings.
    """
    directory = pathlib.Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.json"
    settings = json.loads(json.dumps(settings))  # as it will be read back: tuples are lists, keys are strings
    record = {"settings": settings, "machine": machine(settings.get("device")), "cells": {}}
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        differing = sorted(
            key for key in found["settings"] | settings if found["settings"].get(key) != settings.get(key)
        )
        if differing:
            raise SystemExit(f"{file} was made with another {', '.join(differing)}: give another --output")
        record["cells"] = found["cells"]
    cells = list(cells)
    reasons = {}
    missing = [cell for cell in cells if cell.key not in record["cells"]]
    with tqdm(missing, desc=name, unit="cell", initial=len(cells) - len(missing), total=len(cells)) as bar:
        for cell in bar:
            bar.set_postfix_str(cell.key)
            start = time.perf_counter()
            try:
                figures = cell.measure()
            except UnavailableError as reason:
                reasons[cell.key] = str(reason)  # not kept: another run may find what was missing
                continue
            record["cells"][cell.key] = {**figures, "measured in seconds": round(time.perf_counter() - start, 3)}
            write(file, json.dumps(record, indent=1) + "\n")
    shown = table(cells, record["cells"], reasons)
    write(directory / f"{name}.md", shown + "\n")
    print(f"\n{shown}\n\nFigures: {file}")
    return record["cells"]


def table(cells, measured, reasons):
    """Return the Markdown table of all cells."""
    names = list(dict.fromkeys(n for cell in cells for n in measured.get(cell.key, ()) if n != "measured in seconds"))
    # Even if nothing was measured, a column says why.
    names = names or ["measured"]
    heads = [*cells[0].place, "published", *names]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for cell in cells:
        figures = measured.get(cell.key, {})
        values = [shown(figures.get(n)) for n in names]
        if not figures:
            values[0] = reasons.get(cell.key, "")
        row = [*map(str, cell.place.values()), "" if cell.published is None else f"{cell.published}", *values]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def shown(value):
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int):
        return str(value)
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def write(file, text):
    """Replace the file in one step, so that a kill leaves the old or the new one."""
    beside = file.with_name(file.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, file)


def load_dataset(name, *given, **more):
    """Load data by ``datasets``: from the hub, its cache or a folder.

    Raises
    ------
    SystemExit
        With the remedy, where that package, the network or the data are missing.
    """
    try:
        import datasets
    except ImportError:
        raise SystemExit('data come from the package datasets: pip install ".[benchmarks]"; or try --small.') from None
    try:
        return datasets.load_dataset(name, *given, **more)
    except Exception as error:  # of the hub's client, the network, or a file
        raise SystemExit(
            f"{more.get('data_files', name)} cannot be loaded: {first_line(error)}\nWithout a network give a local "
            "copy, --data NAME=FOLDER, or try --small."
        ) from error


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def machine(device):
    device = resolve_device(device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "faast_sklearn": __version__,
        **{package: importlib.metadata.version(package) for package in ("torch", "transformers", "scikit-learn")},
    }
