"""Value vectors of the classes, in place of one-hot codes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from faast_sklearn.backbones.memo import remembered
from faast_sklearn.errors import InputError
from faast_sklearn.features.normalize import unit_rows
from faast_sklearn.persistence.arrays import Array
from faast_sklearn.persistence.fields import Number
from faast_sklearn.persistence.state import Stateful

__all__ = ["ClassValues", "check_values", "class_values"]

# The paper's prompt, for models that were trained on captions; text encoders read the name as it is.
_CAPTION = "A photo of a {label}."
# Factor from cosines to logits for models without a scale of their own. For captions and sentences classified by
# their MiniLM similarity to class names, the log-loss is least between 5 and 20.
_LOGIT_SCALE = 10.0


@dataclass(frozen=True)
class ClassValues(Stateful):
    """One vector for each class.

    Parameters
    ----------
    vectors : ndarray of shape (c, m), float64
        Of unit length.
    logit_scale : float
        Factor between cosine similarities to features and logits; used with a prior.
    """

    vectors: np.ndarray
    logit_scale: float

    _state: ClassVar = {"vectors": Array("cm", numpy=True), "logit_scale": Number()}


def check_values(values: Any) -> None:
    """Raise ValueError unless ``values`` is "onehot" or of a type that :func:`class_values` takes."""
    named = isinstance(values, str) and values in ("onehot", "text")
    if not (named or isinstance(values, (Mapping, list, tuple)) or hasattr(values, "__array__")):
        raise ValueError(
            f"values must be 'onehot', 'text', an array of shape (n_classes, m) or a dict of labels, got {values!r}."
        )


def class_values(values: Any, classes: np.ndarray, backbone: Any = None) -> "ClassValues":
    """Look up or embed the vector of each class.

    Parameters
    ----------
    values : {"text"}, array-like of shape (c, m), or dict
        "text": the backbone embeds each label. An array has one row for each of the sorted ``classes``. A dict maps
        labels to vectors or to texts: a string is embedded in place of the label; a list of strings holds whole
        prompts, whose embeddings are averaged.
    classes : ndarray of shape (c,)
        Sorted labels.
    backbone : Backbone, optional
        With a method ``embed_text``; needed for texts.

    Returns
    -------
    ClassValues

    Raises
    ------
    InputError
        If a label is not a string and has no text, an entry is missing, or shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from faast_sklearn.readout.class_vectors import class_values
    >>> class_values({"b": [0, 2], "a": [3, 4]}, np.array(["a", "b"])).vectors.tolist()
    [[0.6, 0.8], [0.0, 1.0]]
    """
    if isinstance(values, Mapping):
        missing = [label for label in classes.tolist() if label not in values]
        if missing:
            raise InputError(f"values has no entry for the labels {missing[:5]!r}; give one for every label.")
        values = [values[label] for label in classes.tolist()]
        if all(_is_text(value) for value in values):
            return _of_texts(values, backbone)
    elif isinstance(values, str):
        texts = classes.tolist()
        if not all(isinstance(label, str) for label in texts):
            raise InputError(
                f"values='text' embeds labels as text, but they are {classes.dtype} such as {texts[0]!r}; pass "
                "values={label: 'its name', ...} or string labels."
            )
        return _of_texts(texts, backbone)
    try:
        vectors = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("values must hold vectors of equal length, or texts for all labels.") from error
    if vectors.ndim != 2 or not vectors.size:
        raise InputError(f"values has shape {vectors.shape}, expected (n_classes, m).")
    if len(vectors) != len(classes):
        raise InputError(
            f"values has {len(vectors)} rows and there are {len(classes)} classes, {classes[:5].tolist()}...; pass one "
            "row for each label in sorted order, or a dict, which may hold labels that are yet to come."
        )
    if not np.isfinite(vectors).all():
        raise InputError("values must be finite.")
    return ClassValues(unit_rows(vectors), _logit_scale(backbone))


def _is_text(value):
    several = isinstance(value, (list, tuple)) and len(value) > 0
    return isinstance(value, str) or (several and all(isinstance(text, str) for text in value))


def _of_texts(texts, backbone):
    if not hasattr(backbone, "embed_text"):
        reader = "backbone=None" if backbone is None else f"this {type(backbone).__name__}"
        raise InputError(
            f"{reader} cannot embed texts into the space of its features; use a dual encoder (CLIP, SigLIP) or a text "
            "encoder, or pass the vectors as values."
        )
    caption = _CAPTION if backbone.modality == "image" else "{label}"
    prompts = [[caption.replace("{label}", text)] if isinstance(text, str) else list(text) for text in texts]
    known = _embed(backbone, [prompt for group in prompts for prompt in group])
    vectors = np.stack([unit_rows(np.stack([known[prompt] for prompt in group])).mean(0) for group in prompts])
    return ClassValues(unit_rows(vectors), _logit_scale(backbone))


def _embed(backbone, texts):
    """Return the embedding of each text; an open backbone embeds each once, since searches ask repeatedly."""
    known = remembered(backbone, "vectors of texts", dict)
    new = [text for text in dict.fromkeys(texts) if text not in known]
    if new:
        vectors = backbone.embed_text(new).to(dtype=torch.float64, device="cpu").numpy()
        known.update(zip(new, vectors, strict=True))
    return known


def _logit_scale(backbone):
    scale = getattr(backbone, "logit_scale", None)
    return _LOGIT_SCALE if scale is None else float(scale)
