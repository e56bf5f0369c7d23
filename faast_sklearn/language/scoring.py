"""How good generated texts are, beside the texts that people wrote."""

from faast_sklearn.backbones.optional import require
from faast_sklearn.errors import InputError

__all__ = ["TEXT_SCORINGS", "text_score"]

TEXT_SCORINGS = ("bleu", "chrf", "exact_match")


def text_score(predictions, references, scoring="bleu"):
    """Compare predicted texts with their references.

    Parameters
    ----------
    predictions, references : sequence of n str
    scoring : {"bleu", "chrf", "exact_match"}, default="bleu"
        "bleu" and "chrf" are sacrebleu's corpus scores with its own defaults, from 0 to 100; "exact_match" is the
        share of texts that are equal but for spaces around them, from 0 to 1.

    Returns
    -------
    float
        Higher is better.

    Raises
    ------
    ValueError
        Another ``scoring``, other lengths, or nothing to compare.
    MissingDependencyError
        If sacrebleu is needed and not installed.

    Examples
    --------
    >>> from faast_sklearn.language.scoring import text_score
    >>> text_score(["un chat ", "un chien"], ["un chat", "le chien"], "exact_match")
    0.5
    """
    if scoring not in TEXT_SCORINGS:
        raise ValueError(f"scoring={scoring!r} is not one of {', '.join(map(repr, TEXT_SCORINGS))}.")
    predictions, references = list(predictions), list(references)
    if len(predictions) != len(references) or not references:
        raise InputError(
            f"{len(predictions)} predictions and {len(references)} references cannot be compared; pass one of each for "
            "every sample."
        )
    if scoring == "exact_match":
        return sum(p.strip() == r.strip() for p, r in zip(predictions, references, strict=True)) / len(references)
    sacrebleu = require("sacrebleu")
    if scoring == "chrf":
        return float(sacrebleu.corpus_chrf(predictions, [references]).score)
    # Without force, sacrebleu logs doubts about texts that end in a separate full stop.
    return float(sacrebleu.corpus_bleu(predictions, [references], force=True).score)
