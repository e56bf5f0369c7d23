"""The weights of a backbone beside a saved estimator: a folder of plain files, named and checked by their content."""

import hashlib
import os
import re
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import safetensors.torch

from faast_sklearn.backbones import backbone
from faast_sklearn.backbones.bundled import BUNDLED
from faast_sklearn.backbones.handle import as_handle
from faast_sklearn.errors import SavedFileError, shortened
from faast_sklearn.persistence.archive import ABANDONED, digest_of_file, sync_file, sync_folder
from faast_sklearn.persistence.fields import Options

__all__ = ["STORED", "open_stored", "remove_others", "store_weights"]

STORED = "stored"
_FOLDER = re.compile(r"backbone-[0-9a-f]{16}\Z")
# Configurations, vocabularies and tensors; neither code nor pickles.
_KEPT = {".json", ".txt", ".model", ".spm", ".jinja", ".safetensors", ".gguf", ".vocab", ".merges"}
_WEIGHTS = {".safetensors", ".gguf"}
_PICKLED = {".bin", ".pt", ".pth"}
_TIMM_FILE = "model.safetensors"
_TIMM_NAME = re.compile(r"timm:\w[\w.]*\Z", re.ASCII)
# Options that say where weights come from; the folder replaces them.
_ORIGIN = ("revision", "local_files_only", "weights", "pretrained")


def store_weights(value: Any, folder: Path) -> dict:
    """Write the weights that a backbone parameter names into a folder of their own.

    Parameters
    ----------
    value : str, path or handle
    folder : Path
        Folder of the saved file.

    Returns
    -------
    dict
        What :func:`open_stored` takes.

    Raises
    ------
    SavedFileError
        If the weights cannot be stored; the message says why.
    """
    handle = as_handle(value)
    prefix, _, name = (handle.spec or "").partition(":")
    options = {key: option for key, option in handle.options.items() if key not in _ORIGIN}
    if prefix == "bundled":
        prefix, name, options = _unbundled(name, options)
    if handle.module is not None or prefix not in ("hf", "timm") or options.get("trust_remote_code"):
        raise SavedFileError(
            f"the weights of {handle!r} cannot be stored: that works for 'bundled:', 'timm:' and 'hf:' without "
            "trust_remote_code. Save without backbone=True, and pass the backbone to load."
        )
    places = _places(options)
    if places:
        raise SavedFileError(f"the weights of {handle!r} cannot be stored: its option {places[0]} is a path.")
    for left in folder.glob(".backbone-*.part"):
        if time.time() - left.stat().st_mtime > ABANDONED:
            shutil.rmtree(left, ignore_errors=True)
    part = folder / f".backbone-{uuid.uuid4().hex}.part"
    part.mkdir()
    try:
        if prefix == "hf":
            _copy_files(_transformers_folder(name, handle.options), part, options.get("gguf_file"))
            spec = "hf"
        else:
            opened = handle.open("cpu", "float32")
            spec = f"timm:{name}"
            if not _TIMM_NAME.match(spec) or Path(name).exists():
                raise SavedFileError(f"the weights of {handle!r} cannot be stored; name a model of timm.list_models().")
            tensors = {key: tensor.cpu().contiguous() for key, tensor in opened.module.state_dict().items()}
            safetensors.torch.save_file(tensors, part / _TIMM_FILE)
        files = _digests(part)
        for file in files:
            sync_file(part / file)
        return {STORED: _put_in_place(part, folder, files), "spec": spec, "options": Options().pack(options, None)}
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def open_stored(node: Any, source: Any) -> Any:
    """Check every byte of the weights beside the file, and return the handle of their backbone.

    Parameters
    ----------
    node : dict
        As :func:`store_weights` returned it.
    source : TensorReader

    Raises
    ------
    SavedFileError
        If a file is missing, damaged, not listed, or a link.
    """
    stored, spec = node[STORED], node["spec"]
    if not isinstance(stored, dict) or stored.keys() != {"folder", "files"} or not isinstance(stored["files"], dict):
        raise source.wrong("names its weights in an unknown way")
    name, files = stored["folder"], stored["files"]
    if not isinstance(name, str) or not _FOLDER.match(name) or not isinstance(spec, str):
        raise source.wrong("names its weights in an unknown way")
    place = source.folder / name
    if not place.is_dir() or place.is_symlink():
        raise SavedFileError(f"the weights that belong to the saved file, {name!r}, are not beside it.")
    found = _digests(place)
    if found != files:
        wrong = sorted(file for file in found.keys() | files.keys() if found.get(file) != files.get(file))
        raise SavedFileError(f"the weights beside the saved file are damaged, missing or not its own: {wrong[:3]}.")
    options = Options().unpack(node["options"], source)
    if _places(options) or options.get("trust_remote_code"):
        raise source.wrong("has options that name files or run code")
    if spec == "hf":
        return backbone(f"hf:{place.resolve()}", **options)
    if not _TIMM_NAME.match(spec) or _TIMM_FILE not in files:
        raise source.wrong(f"is {shortened(spec)}, expected a model")
    return backbone(spec, weights=str(place.resolve() / _TIMM_FILE), **options)


def _places(options):
    """Return the names of options that are paths: strings with a separator, and ``base_config``."""
    paths = [name for name, value in options.items() if isinstance(value, str) and ("/" in value or os.sep in value)]
    return [*paths, *(name for name in ("base_config",) if options.get(name) is not None)]


def remove_others(folder: Any, kept: Any) -> None:
    """Remove the weights of what was saved in a folder before, except those that are ``kept``."""
    for place in folder.iterdir():
        if _FOLDER.match(place.name) and place.name not in kept and place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)


def _unbundled(name, options):
    """Return the backbone behind a bundled name, whose package may be absent when the file is loaded."""
    entry = BUNDLED[name]
    if name == "efficientnet-lite0":
        return "timm", "tf_efficientnet_lite0", options
    gguf = sorted(entry.folder.glob("*.gguf"))
    if gguf:
        return "hf", str(entry.folder), {**options, "gguf_file": gguf[0].name}
    return "hf", str(entry.folder / "model"), options


def _transformers_folder(name, options):
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=options.get("revision"), local_files_only=True))
    except Exception as error:
        raise SavedFileError(f"the files of {name!r} are not in the cache of this machine: {error}") from error


def _copy_files(origin, target, gguf_file):
    copied = []
    for path in sorted(origin.rglob("*")):
        relative = path.relative_to(origin)
        if any(part.startswith(".") for part in relative.parts) or not path.is_file():
            continue
        if path.suffix not in _KEPT or (path.suffix == ".gguf" and path.name != gguf_file):
            continue
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / relative)
        copied.append(relative)
    for path in origin.rglob("*"):
        plain = any(c.parent == path.relative_to(origin).parent and c.suffix in _WEIGHTS for c in copied)
        if path.suffix in _PICKLED and not plain:
            raise SavedFileError(f"{path.name!r} is a pickle, which is not stored; convert it to safetensors first.")
    if not any(c.suffix in _WEIGHTS for c in copied):
        raise SavedFileError(f"there are no weights as safetensors or GGUF in {origin.name!r}.")


def _digests(place):
    """Return the digest of each file by its path within the folder; raise SavedFileError for a link."""
    files = {}
    for path in sorted(place.rglob("*")):
        if path.is_symlink():
            raise SavedFileError(f"{path.name!r} beside the saved file is a link, which is not followed.")
        if path.is_file():
            files[path.relative_to(place).as_posix()] = digest_of_file(path)
    return files


def _put_in_place(part, folder, files):
    name = "backbone-" + hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
    place = folder / name
    if place.is_dir() and not place.is_symlink() and _digests(place) == files:
        shutil.rmtree(part)
    else:
        shutil.rmtree(place, ignore_errors=True)
        os.replace(part, place)
        sync_folder(folder)
    return {"folder": name, "files": files}
