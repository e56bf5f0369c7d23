"""Settings that a sentence-transformers folder keeps beside a model's weights."""

import json

import torch

from faast_sklearn.errors import BackboneError

__all__ = ["SentenceSettings", "read_sentence_settings"]

_POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
_POOLING_NAMES = {"lasttoken": "last", "weightedmean": "weighted_mean", "mean_sqrt_len_tokens": "mean_sqrt_len"}


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
    """

    def __init__(self):
        self.pooling = "mean"
        self.max_length = None
        self.lower = False
        self.prompt = ""
        self.head = None


class _Normalize(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.normalize(x, dim=-1)


class _Upcast(torch.nn.Module):
    """Pooled features arrive as float32; dense layers run in the module's dtype."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


def read_sentence_settings(fetch, device, dtype):
    """Read ``modules.json`` and what it points to.

    Parameters
    ----------
    fetch : callable
        From a file name inside the folder or repository to a local path, or ``None`` if absent.
    device : torch.device
    dtype : torch.dtype

    Returns
    -------
    SentenceSettings or None
        ``None`` if this is no sentence-transformers folder.

    Raises
    ------
    BackboneError
        If a step of the pipeline is of a kind that is not known here; leaving it out would change
        the features silently.
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
    steps = []
    for entry in modules:
        kind, folder = entry["type"].rsplit(".", 1)[-1], entry.get("path", "")
        if kind == "Pooling":
            settings.pooling = _pooling(_json(fetch(f"{folder}/config.json")) or {})
        elif kind == "Normalize":
            steps.append(_Normalize())
        elif kind == "Dense":
            steps += [_Upcast(dtype), _dense(fetch, folder).to(device=device, dtype=dtype)]
        elif kind not in ("Transformer", "Dropout"):
            raise BackboneError(
                f"modules.json has a step of type {entry['type']!r}, which is not supported; pass pooling='mean' "
                "(or another) to ignore the sentence-transformers settings."
            )
    if steps:
        settings.head = torch.nn.Sequential(*steps).eval().requires_grad_(False)
    return settings


def _pooling(config):
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        return _POOLING_NAMES.get(mode, mode)
    chosen = [name for key, name in _POOLING_MODES.items() if config.get(key)]
    if len(chosen) != 1:
        raise BackboneError(f"1_Pooling/config.json asks for {chosen or 'no pooling'}; pass pooling= yourself.")
    return chosen[0]


def _dense(fetch, folder):
    config = _json(fetch(f"{folder}/config.json"))
    linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    path = fetch(f"{folder}/model.safetensors")
    if path is not None:
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        path = fetch(f"{folder}/pytorch_model.bin")
        if path is None:
            raise BackboneError(f"no weights for the dense step {folder!r}.")
        state = torch.load(path, map_location="cpu", weights_only=True)
    linear.load_state_dict({key.removeprefix("linear."): value for key, value in state.items()})
    name = config.get("activation_function", "torch.nn.modules.linear.Identity").rsplit(".", 1)[-1]
    if name not in ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid"):
        raise BackboneError(f"the dense step {folder!r} has an unknown activation {name!r}.")
    return torch.nn.Sequential(linear, getattr(torch.nn, name)())


def _json(path):
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)
