"""Write checkpoints: with fast weights folded into the output matrix, or with readouts as the published ones have."""

import copy
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from faast_sklearn.backbones.base import alike, frozen
from faast_sklearn.backbones.transformers.published import BASE_CONFIG
from faast_sklearn.backbones.transformers.verbosity import quiet_transformers
from faast_sklearn.errors import BackboneError, refuse_missing_parent
from faast_sklearn.persistence.archive import replaced

__all__ = ["save_folded", "save_published"]


def save_folded(lm: Any, weights: Any, folder: str | os.PathLike) -> None:
    """Write model and tokenizer with the fast weights folded into the output matrix.

    Parameters
    ----------
    lm : LanguageModel
        Not changed.
    weights : FastWeights
    folder : str or path

    Raises
    ------
    BackboneError
        If the weights cannot be folded, or the model gives different logits when read again. Nothing is then written.
    """
    matrix = weights.folded_matrix(lm)
    folder = Path(folder)
    if folder.is_file():
        raise BackboneError(f"{str(folder)!r} is a file; pass a folder.")
    refuse_missing_parent(folder)
    plain = _merged(lm.module)
    with weights.attached(lm, private=True):
        expected = _probe(lm, lm.module)
    # Some models scale the states only while the output matrix is tied.
    for scale in dict.fromkeys((1.0, lm.norm_factor)):
        beside = folder.absolute().parent / f".{folder.name}.{uuid.uuid4().hex}.part"
        try:
            if _written(lm, _with_matrix(plain, matrix * scale), beside, expected):
                _move(beside, folder)
                return
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    raise BackboneError(
        f"{type(lm.module).__name__}, written and read again, gives other logits than with the fast weights attached, "
        "so the copy was deleted; use attached(), or save the estimator."
    )


def save_published(lm: Any, folder: str | os.PathLike) -> None:
    """Write a model with readouts in the layout of the published FAAST checkpoints, with its base's configuration.

    Parameters
    ----------
    lm : LanguageModel
        With readouts; not changed.
    folder : str or path
        Created if it does not exist; the folder above must.
    """
    folder = Path(folder)
    refuse_missing_parent(folder)
    folder.mkdir(exist_ok=True)
    plain = _merged(lm.module)
    tensors, seen = lm.readouts.tensors(), set()
    for name, tensor in plain.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # tied tensors have several names
            tensors[f"model.{name}"] = tensor
        seen.add(id(tensor))
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    name = plain.config.name_or_path
    base = plain.config.model_type if name in ("", "None") else Path(name).name  # no folder of this machine
    with quiet_transformers():
        if lm.tokenizer is not None and hasattr(lm.tokenizer, "save_pretrained"):
            lm.tokenizer.save_pretrained(folder)
        if getattr(plain, "generation_config", None) is not None:
            plain.generation_config.save_pretrained(folder)
        config = copy.deepcopy(plain.config)
        config.name_or_path = base
        config.to_json_file(folder / BASE_CONFIG)
    with replaced(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary)
    settings = {"base_model": base, **lm.readouts.settings()}
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _written(lm, model, folder, expected):
    """Write a model and its tokenizer, and say whether it gives the expected logits when it is read again."""
    with quiet_transformers():
        model.save_pretrained(folder)
        if lm.tokenizer is not None:
            lm.tokenizer.save_pretrained(folder)
        read = type(model).from_pretrained(folder, dtype=lm.dtype).to(lm.device).eval()
    return alike(_probe(lm, read), expected, lm.dtype)


def _move(beside, folder):
    """Replace the files of an older model in the folder; other files stay."""
    folder.mkdir(exist_ok=True)
    new = {file.relative_to(beside) for file in beside.rglob("*") if file.is_file()}
    for pattern in ("model*.safetensors*", "pytorch_model*.bin*"):
        for old in folder.glob(pattern):
            if old.relative_to(folder) not in new:
                old.unlink()
    for name in new:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(beside / name, folder / name)


def _probe(lm, module):
    """Return the logits of a few tokens."""
    ids = torch.arange(5, 13, device=lm.device).remainder(lm.head.out_features)[None]
    more = {"decoder_input_ids": ids} if lm.encoder_decoder else {}
    with frozen(module):
        return module(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits.float().clone()


def _merged(module):
    """Return the module, or a copy with its PEFT adapters merged into the layers that they adapt."""
    layers = [
        name for name, part in module.named_modules() if hasattr(part, "get_base_layer") and hasattr(part, "merge")
    ]
    if not layers:
        return module
    module = copy.deepcopy(module)
    for name in layers:
        part = module.get_submodule(name)
        part.merge()
        module.set_submodule(name, part.get_base_layer())
    return module


def _with_matrix(module, matrix):
    """Return a copy that shares the tensors of the frozen model but has its own, untied output matrix."""
    config = copy.deepcopy(module.config)
    for part in (config, config.get_text_config(decoder=True)):
        part.tie_word_embeddings = False
        # Weights that were read from a quantised file are written unquantised.
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    with torch.device("meta"):
        model = type(module)(config)
    model.load_state_dict(_apart(module.state_dict()), strict=False, assign=True)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(matrix, requires_grad=False)
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if left:
        raise BackboneError(f"the state_dict of {type(model).__name__} lacks tensors that the model needs: {left[:3]}.")
    model.generation_config = copy.deepcopy(module.generation_config)
    return model.eval()


def _apart(state):
    """Copy tensors that are stored under several names: BART-like models read each name if the head is not tied."""
    seen, apart = set(), {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape)
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart
