"""Inner layers of a module: how they are found, and which statistics of their outputs are read."""

from typing import Any

import torch

__all__ = ["first_tensor", "repeated_blocks", "statistics_of_maps", "unit_length"]


def repeated_blocks(module: Any) -> list[torch.nn.Module]:
    """Return the blocks or stages that a model consists of, first to last; an empty list if there are none.

    Among the containers whose children are two or more modules of one class, each with submodules, take the one with
    the most parameters; its children are the blocks of a transformer or the stages of a convolutional network.

    Parameters
    ----------
    module : torch.nn.Module or None

    Returns
    -------
    list of torch.nn.Module

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.backbones.inner import repeated_blocks
    >>> layer = torch.nn.TransformerEncoderLayer(4, 1, 8)
    >>> len(repeated_blocks(torch.nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)))
    3
    """
    best: list[torch.nn.Module] = []
    most = 0
    for part in module.modules() if isinstance(module, torch.nn.Module) else ():
        if not isinstance(part, (torch.nn.ModuleList, torch.nn.Sequential)) or len(part) < 2:
            continue
        children = list(part)
        composite = all(next(child.children(), None) is not None for child in children)
        size = sum(p.numel() for p in part.parameters())
        if composite and len({type(child) for child in children}) == 1 and size > most:
            best, most = children, size
    return best


def first_tensor(output: Any) -> Any:
    """Return the first tensor in a layer's output, since blocks of transformers may return tuples."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) else getattr(output, "last_hidden_state", None)


def statistics_of_maps(output: torch.Tensor) -> list[torch.Tensor]:
    """Return mean, maximum and standard deviation over the positions of feature maps.

    Parameters
    ----------
    output : tensor of shape (n, c, h, w)

    Returns
    -------
    list of three tensors of shape (n, c), float32 (float64 if the maps are)

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.backbones.inner import statistics_of_maps
    >>> [part.tolist() for part in statistics_of_maps(torch.tensor([[[[1.0, 3.0]]]]))]
    [[[2.0]], [[3.0]], [[1.0]]]
    """
    output = output if output.dtype == torch.float64 else output.float()
    deviation, mean = torch.std_mean(output, (2, 3), correction=0)
    return [mean, output.amax((2, 3)), deviation]


def unit_length(means: torch.Tensor) -> torch.Tensor:
    """Return means over tokens, of shape (n, d), scaled to unit length.

    Some blocks of language models give a few huge numbers, which weigh more in the means of short texts.
    """
    return torch.nn.functional.normalize(means, dim=1)
