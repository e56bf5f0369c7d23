"""Settings that a sentence-transformers folder keeps beside a model's weights."""

import functools
import json
from collections.abc import Callable
from typing import Any

import torch

from faast_sklearn.errors import BackboneError

__all__ = ["SentenceSettings", "read_sentence_settings", "settings_of"]

_POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
_POOLING_NAMES = {"lasttoken": "last", "weightedmean": "weighted_mean", "mean_sqrt_len_tokens": "mean_sqrt_len"}


# Steps that add nothing after the model.
_PLAIN = ("Transformer", "Dropout")


class SentenceSettings:
    """Pooling, length, prompt and head of a sentence encoder.

    Attributes
    ----------
    pooling : str
    max_length : int or None
    lower : bool
    prompt : str
    head : torch.nn.Sequential or None
        Dense layers and normalisation after the pooling.
    include_prompt : bool
        Whether the tokens of the prompt are pooled with the others.
    """

    def __init__(self) -> None:
        self.pooling = "mean"
        self.max_length = None
        self.lower = False
        self.prompt = ""
        self.head: Any = None
        self.include_prompt = True

    def read(self, parts: Any, dtype: Any, truncate_dim: int | None) -> None:
        """Read the parts of a pipeline in order, and the number of leading features to keep.

        Parameters
        ----------
        parts : iterable of (str, dict, callable)
            Kind and configuration of each part, and a function that returns its layer, if it has one.
        dtype : torch.dtype
        truncate_dim : int or None
        """
        steps: list[torch.nn.Module] = []
        for kind, config, layer in parts:
            if kind == "Pooling":
                self.pooling, self.include_prompt = _pooling(config), bool(config.get("include_prompt", True))
            elif kind == "Normalize":
                steps.append(_Normalize())
            elif kind in ("Dense", "LayerNorm"):
                steps += [_Upcast(dtype), layer()]
            else:
                _refuse_step(kind, config)
            _refuse_wiring(kind, config)
        if truncate_dim is not None:
            steps.append(_First(int(truncate_dim)))
        if steps:
            self.head = torch.nn.Sequential(*steps)


class _First(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[..., : self.size]

    def extra_repr(self):
        return str(self.size)


class _Normalize(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.normalize(x, dim=-1)


class _Upcast(torch.nn.Module):
    """Cast pooled features, which arrive as float32, to the dtype of the dense layers."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


def read_sentence_settings(fetch: Callable[..., Any], device: Any, dtype: Any) -> "SentenceSettings | None":
    """Read ``modules.json`` and the files that it names.

    Parameters
    ----------
    fetch : callable
        Returns the local path of a file of the folder or repository, or ``None`` if it is absent.
    device : torch.device
    dtype : torch.dtype

    Returns
    -------
    SentenceSettings or None
        ``None`` if this is no sentence-transformers folder.

    Raises
    ------
    BackboneError
        If a step of the pipeline is not supported; leaving it out would silently change the
        features.
    """
    modules = _json(fetch("modules.json"))
    if modules is None:
        return None
    settings = SentenceSettings()
    transformer = _json(fetch("sentence_bert_config.json")) or {}
    settings.max_length = transformer.get("max_seq_length")
    settings.lower = bool(transformer.get("do_lower_case", False))
    prompts = _json(fetch("config_sentence_transformers.json")) or {}
    if prompts.get("default_prompt_name"):
        settings.prompt = (prompts.get("prompts") or {}).get(prompts["default_prompt_name"], "")

    def parts():
        for entry in modules:
            kind, folder = entry["type"].rsplit(".", 1)[-1], entry.get("path", "")
            if kind in _PLAIN:
                yield kind, transformer if kind == "Transformer" else {}, None
            else:
                config = _json(fetch(f"{folder}/config.json")) or {}
                yield kind, config, functools.partial(_stored_layer, kind, config, fetch, folder)

    settings.read(parts(), dtype, prompts.get("truncate_dim"))
    if settings.head is not None:
        settings.head.to(device, dtype).eval().requires_grad_(False)
    return settings


def settings_of(model: Any, dtype: Any) -> "SentenceSettings":
    """Read the settings of a ``SentenceTransformer`` in memory.

    Parameters
    ----------
    model : sentence_transformers.SentenceTransformer
    dtype : torch.dtype

    Returns
    -------
    SentenceSettings

    Raises
    ------
    BackboneError
        As in :func:`read_sentence_settings`.
    """
    settings = SentenceSettings()
    reader, *others = model.children()
    settings.max_length = model.max_seq_length
    settings.lower = bool(getattr(reader, "do_lower_case", False))
    if getattr(model, "default_prompt_name", None):
        settings.prompt = (model.prompts or {}).get(model.default_prompt_name) or ""

    def parts():
        yield type(reader).__name__, vars(reader), None
        for part in others:
            config = part.get_config_dict() if hasattr(part, "get_config_dict") else {}
            yield type(part).__name__, config, functools.partial(_own_layer, part)

    settings.read(parts(), dtype, getattr(model, "truncate_dim", None))
    return settings


def _refuse_step(kind, config):
    """Raise BackboneError for an unknown step, or one with another task or output than token states."""
    task = config.get("transformer_task", "feature-extraction")
    output = config.get("module_output_name", "token_embeddings")
    if kind not in _PLAIN:
        raise BackboneError(
            f"a step of type {kind!r} of sentence-transformers is not supported; pass pooling='mean' (or another) to "
            "ignore the sentence-transformers settings."
        )
    if task != "feature-extraction" or output != "token_embeddings":
        raise BackboneError(
            f"the model of this sentence encoder gives {output!r} of task {task!r}, but only token states are read; "
            "pass pooling='mean' (or another) to ignore the sentence-transformers settings."
        )


def _refuse_wiring(kind, config):
    for name in ("module_input_name", "module_output_name"):
        if kind in ("Dense", "Normalize", "LayerNorm") and config.get(name) not in (None, "sentence_embedding"):
            raise BackboneError(
                f"{kind} has {name}={config[name]!r}, but only steps on the sentence embedding are supported; pass "
                "pooling='mean' (or another) to ignore the sentence-transformers settings."
            )


def _pooling(config):
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        return _POOLING_NAMES.get(mode, mode)
    chosen = [name for key, name in _POOLING_MODES.items() if config.get(key)]
    if len(chosen) != 1:
        raise BackboneError(f"1_Pooling/config.json asks for {chosen or 'no pooling'}; pass pooling= yourself.")
    return chosen[0]


def _own_layer(part):
    """Return the layer of a step in memory; not a copy."""
    return part.norm if hasattr(part, "norm") else torch.nn.Sequential(part.linear, part.activation_function)


def _stored_layer(kind, config, fetch, folder):
    """Build the layer of a stored step, with its weights."""
    state = _state(fetch, folder)
    if kind == "LayerNorm":
        norm = torch.nn.LayerNorm(len(next(iter(state.values()))))
        norm.load_state_dict({key.removeprefix("norm."): value for key, value in state.items()})
        return norm
    linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    linear.load_state_dict({key.removeprefix("linear."): value for key, value in state.items()})
    name = config.get("activation_function", "torch.nn.modules.linear.Identity").rsplit(".", 1)[-1]
    if name not in ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid"):
        raise BackboneError(f"the dense step {folder!r} has an unknown activation {name!r}.")
    return torch.nn.Sequential(linear, getattr(torch.nn, name)())


def _state(fetch, folder):
    path = fetch(f"{folder}/model.safetensors")
    if path is not None:
        from safetensors.torch import load_file

        return load_file(path)
    path = fetch(f"{folder}/pytorch_model.bin")
    if path is None:
        raise BackboneError(f"no weights for the step {folder!r}.")
    return torch.load(path, map_location="cpu", weights_only=True)


def _json(path):
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)
