"""Read published FAAST checkpoints, a base language model and trained readouts in one folder, without their code."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from faast_sklearn.backbones.transformers.loading import absent_tensors
from faast_sklearn.backbones.transformers.verbosity import quiet_transformers
from faast_sklearn.errors import BackboneError

__all__ = ["BASE_CONFIG", "PublishedCheckpoint", "Readouts", "load_published", "middle_layers", "published_settings"]

_SUPPORTED = {"reader_type": "inverse", "extractor_type": "next-token", "interpreter_type": "projection"}
_SCORER = "external.layers.{}.memory_reader.scorer.weight"
_OUT_PROJ = "external.layers.{}.interpreter.out_proj.weight"
# The base model's configuration in a checkpoint of this library; those of the authors have none.
BASE_CONFIG = "base_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# The checkpoints name their base models without the owner.
_OWNERS = {"gpt2": "openai-community/", "Qwen": "Qwen/", "Llama": "meta-llama/Meta-"}


@dataclass(frozen=True)
class Readouts:
    """What a published checkpoint adds to its base model.

    Parameters
    ----------
    scorers : tuple of n torch.Tensor of shape (1, 2 d)
        Weigh the values of the middle memories: ``sigmoid(scorer([h_t; h_{t+1}]))``.
    out_projs : tuple of n torch.Tensor of shape (d, d)
        Read the middle memories: ``h + out_proj(h W)``.
    layer_indices : tuple of n int
        The block before which each middle memory sits.
    alpha : float
        Exponent of the truncation: singular values below ``N ** -alpha`` times the largest are dropped.
    weight : float, default=0.9
        Of the output memory.
    """

    scorers: tuple
    out_projs: tuple
    layer_indices: tuple
    alpha: float
    weight: float = 0.9

    def to(self, device: Any, dtype: Any) -> Any:
        """Return the readouts on ``device`` in ``dtype``."""
        scorers, out_projs = (
            tuple(tensor.to(device=device, dtype=dtype) for tensor in tensors)
            for tensors in (self.scorers, self.out_projs)
        )
        return replace(self, scorers=scorers, out_projs=out_projs)

    def tensors(self) -> dict:
        """Return the tensors by their names in a checkpoint."""
        scorers = {_SCORER.format(i): tensor for i, tensor in enumerate(self.scorers)}
        return scorers | {_OUT_PROJ.format(i): tensor for i, tensor in enumerate(self.out_projs)}

    def settings(self) -> dict:
        """Return what a checkpoint's ``config.json`` says of them."""
        numbers = {"reader_update_alpha": self.alpha, "memory_weight": self.weight}
        return {"num_layers": len(self.scorers), **_SUPPORTED, **numbers}


def middle_layers(depth: int, n: int) -> tuple:
    """Return the blocks before which the n middle memories of a model of ``depth`` blocks sit: evenly spaced.

    Examples
    --------
    >>> from faast_sklearn.backbones.transformers.published import middle_layers
    >>> middle_layers(30, 2)
    (10, 20)
    """
    return tuple(int(depth / (n + 1) * (i + 1)) for i in range(n))


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A published checkpoint in memory.

    Parameters
    ----------
    module : transformers.PreTrainedModel
        The base model with its head, on the host.
    config : transformers.PretrainedConfig
        Of the base model.
    tokenizer : Hugging Face tokenizer
    readouts : Readouts
    """

    module: torch.nn.Module
    config: Any
    tokenizer: Any
    readouts: Readouts


def published_settings(source: Any) -> dict | None:
    """Return the settings of a published FAAST checkpoint, or ``None`` if the source is another model.

    Parameters
    ----------
    source : Source

    Returns
    -------
    dict or None

    Raises
    ------
    BackboneError
        If the kind of checkpoint is not supported.
    """
    path = None if source.gguf_file is not None else source.fetch("config.json")
    try:
        settings = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        return None  # transformers will report the error
    if not isinstance(settings, dict) or "base_model" not in settings or "reader_type" not in settings:
        return None
    for name, supported in _SUPPORTED.items():
        if settings.get(name) != supported:
            raise BackboneError(
                f"the FAAST checkpoint {source.name!r} has {name}={settings.get(name)!r}; only {supported!r} is "
                "supported."
            )
    n, alpha = settings.get("num_layers"), settings.get("reader_update_alpha", 1.0)
    weight = settings.get("memory_weight", 0.9)  # the authors' code has 0.9, and no such setting
    if not isinstance(n, int) or isinstance(n, bool) or n < 0:
        raise BackboneError(f"the FAAST checkpoint {source.name!r} has num_layers={n!r}, expected 0 or more.")
    if not isinstance(alpha, (int, float)) or not alpha > 0:
        raise BackboneError(f"the FAAST checkpoint {source.name!r} has reader_update_alpha={alpha!r}, expected > 0.")
    if not isinstance(weight, (int, float)) or not 0 < weight <= 1:
        raise BackboneError(f"the FAAST checkpoint {source.name!r} has memory_weight={weight!r}, expected 0 to 1.")
    return {**settings, "reader_update_alpha": float(alpha), "memory_weight": float(weight)}


def load_published(source: Any, settings: dict, base_config: str | None, dtype: Any) -> "PublishedCheckpoint":
    """Build the base model from its configuration and the checkpoint's weights, and read the readouts.

    Only safetensors are read, and no code of the checkpoint runs.

    Parameters
    ----------
    source : Source
    settings : dict
        From :func:`published_settings`.
    base_config : str or None
        Folder or ``config.json`` of the base model, or its name on the hub; by default the checkpoint's own
        copy, or the name that it has.
    dtype : torch.dtype
        Of the base model.

    Returns
    -------
    PublishedCheckpoint

    Raises
    ------
    BackboneError
        Names up to 20 tensors that are missing, unexpected or wrongly shaped; or says how to pass ``base_config``.
    """
    config, origin = _base_config(source, settings["base_model"], base_config)
    with quiet_transformers(), torch.device("meta"):
        try:
            shell = source.transformers.AutoModelForCausalLM.from_config(config)
        except ValueError as error:
            raise BackboneError(
                f"the base of the FAAST checkpoint {source.name!r}, a {config.model_type!r} model, is not a causal "
                f"language model: {error}"
            ) from error
    tensors = _read_tensors(source)
    base = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    # Drop the causal masks that older versions of transformers saved with GPT-2's weights.
    base = {name: value for name, value in base.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    rest = {name: value for name, value in tensors.items() if not name.startswith("model.")}
    state = shell.state_dict(keep_vars=True)
    faults = _faults(base, {name: tuple(value.shape) for name, value in state.items()}, absent_tensors(shell, base))
    faults = [f"model.{fault}" for fault in faults] or _untied(base, state)
    readouts, wrong = _readouts(rest, settings, config.get_text_config())
    if faults or wrong:
        listed = [*wrong, *faults]
        more = f"; and {len(listed) - 20} more" if len(listed) > 20 else ""
        raise BackboneError(
            f"the FAAST checkpoint {source.name!r} does not fit the base configuration {origin!r}: "
            f"{'; '.join(listed[:20])}{more}."
        )
    with quiet_transformers():
        module = source.assemble(type(shell), config, base, dtype)
    folders = [source, _Folder(origin)]
    generation = next((path for place in folders if (path := place.fetch("generation_config.json"))), None)
    if generation is not None:
        values = json.loads(Path(generation).read_text(encoding="utf-8"))
        module.generation_config = source.transformers.GenerationConfig.from_dict(values)
    return PublishedCheckpoint(module, config, _tokenizer(source, origin), readouts)


class _Folder:
    """A folder, or the folder of a file; it need not exist."""

    def __init__(self, path):
        path = Path(path)
        self.path = path.parent if path.is_file() else path

    def fetch(self, file):
        return str(self.path / file) if (self.path / file).is_file() else None


def _base_config(source, named, given):
    """Return the base model's configuration and where it came from."""
    origin = source.fetch(BASE_CONFIG) if given is None else given
    if origin is None:
        owner = next((owner for start, owner in _OWNERS.items() if str(named).startswith(start)), "")
        origin = str(named) if "/" in str(named) else f"{owner}{named}"
    try:
        with quiet_transformers():
            config = source.transformers.AutoConfig.from_pretrained(
                origin, local_files_only=source.offline, trust_remote_code=False
            )
    except Exception as error:
        raise BackboneError(
            f"the FAAST checkpoint {source.name!r} was made from {named!r} but lacks its configuration; "
            f"{origin!r} cannot be loaded ({type(error).__name__}: {str(error).strip().splitlines()[0]}). Pass "
            "base_config=PATH, a folder with the base model's config.json (its weights are not needed) or that file."
        ) from error
    return config, str(origin)


def _read_tensors(source):
    """Return all tensors of the checkpoint, from one file of safetensors or several with an index."""
    from safetensors.torch import load_file

    index = source.fetch("model.safetensors.index.json")
    if index is None:
        names = ["model.safetensors"]
    else:
        promised = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(promised.values()))
    tensors = {}
    for name in names:
        # An index must not name files outside its folder.
        path = source.fetch(name) if Path(name).name == name else None
        if path is None:
            raise BackboneError(
                f"the FAAST checkpoint {source.name!r} has no file {name!r}; its weights must be safetensors "
                "(pickled weights are not read)."
            )
        try:
            tensors.update(load_file(path))
        except Exception as error:
            raise BackboneError(f"{path!r} cannot be read: {type(error).__name__}: {error}") from error
    absent = [] if index is None else sorted(set(promised) - set(tensors))
    if absent:
        raise BackboneError(
            f"the index of {source.name!r} lists {len(absent)} tensors that its files lack: {', '.join(absent[:5])}."
        )
    return tensors


def _readouts(tensors, settings, config):
    """Return the readouts and a list of their faults."""
    n, width, depth = settings["num_layers"], config.hidden_size, config.num_hidden_layers
    if n >= depth:
        return None, [f"num_layers={n}, but the base model has {depth} blocks"]
    shapes = {_SCORER.format(i): (1, 2 * width) for i in range(n)}
    shapes |= {_OUT_PROJ.format(i): (width, width) for i in range(n)}
    faults = _faults(tensors, shapes, sorted(shapes.keys() - tensors.keys()))
    if faults:
        return None, faults
    return Readouts(
        tuple(tensors[_SCORER.format(i)] for i in range(n)),
        tuple(tensors[_OUT_PROJ.format(i)] for i in range(n)),
        middle_layers(depth, n),
        settings["reader_update_alpha"],
        settings["memory_weight"],
    ), []


def _faults(tensors, shapes, absent):
    faults = [f"{name} is missing" for name in absent]
    faults += [f"{name} is unexpected" for name in sorted(tensors.keys() - shapes.keys())]
    faults += [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    return faults


def _untied(tensors, state):
    """List the tensors that differ although the configuration ties them."""
    first = {}
    for name, tensor in state.items():
        if name in tensors:
            first.setdefault(id(tensor), name)
    pairs = [(name, first[id(tensor)]) for name, tensor in state.items() if name in tensors]
    return [
        f"model.{name} differs from model.{other}, which the configuration ties to it"
        for name, other in pairs
        if name != other and not torch.equal(tensors[name], tensors[other])
    ]


def _tokenizer(source, origin):
    """Load the checkpoint's tokenizer, else the base model's."""
    folder = _Folder(origin)
    if any(source.fetch(file) for file in _TOKENIZER_FILES):
        place, options = source.name, source.hub
    elif not folder.path.is_dir():
        place, options = origin, {"local_files_only": source.offline}
    elif any(folder.fetch(file) for file in _TOKENIZER_FILES):
        place, options = str(folder.path), {"local_files_only": True}
    else:
        # transformers would make an empty tokenizer.
        raise BackboneError(
            f"neither the FAAST checkpoint {source.name!r} nor its base {str(folder.path)!r} has a tokenizer "
            f"({', '.join(_TOKENIZER_FILES)}); copy the base model's tokenizer there."
        )
    try:
        with quiet_transformers():
            return source.transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    except Exception as error:
        raise BackboneError(
            f"cannot load the tokenizer of the FAAST checkpoint {source.name!r} from {place!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
