"""Plain transformers checkpoints that have fast weights in their output matrix."""

import copy
from pathlib import Path

import torch

from faast_sklearn.backbones.quiet import quiet_transformers
from faast_sklearn.errors import BackboneError

__all__ = ["save_folded"]


def save_folded(lm, weights, folder):
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
        If the weights cannot be folded, or the folder holds a model of another kind that would be mixed up with it.
    """
    matrix = weights.folded_matrix(lm)
    folder = Path(folder)
    if folder.is_file():
        raise BackboneError(f"{str(folder)!r} is a file; pass a folder.")
    model = _with_matrix(lm, matrix)
    with quiet_transformers():
        model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)


def _with_matrix(lm, matrix):
    """Return a model like the frozen one, sharing its tensors, with another output matrix, not tied to any other."""
    config = copy.deepcopy(lm.module.config)
    for part in (config, config.get_text_config(decoder=True)):
        part.tie_word_embeddings = False
        # What was read from a quantised file is stored plainly.
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    with torch.device("meta"):
        model = type(lm.module)(config)
    model.load_state_dict(_apart(lm.module.state_dict()), strict=False, assign=True)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(matrix, requires_grad=False)
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if left:
        raise BackboneError(f"{type(model).__name__} keeps tensors that its state does not have: {left[:3]}.")
    model.generation_config = copy.deepcopy(lm.module.generation_config)
    return model.eval()


def _apart(state):
    """Copy what is there under several names: BART and its kin read every one, once the head is not tied."""
    seen, apart = set(), {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape)
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart
