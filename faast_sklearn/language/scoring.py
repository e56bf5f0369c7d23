"""Scores of generated texts against reference texts."""

from collections.abc import Sequence

from faast_sklearn.errors import InputError
from faast_sklearn.optional import require

__all__ = ["TEXT_SCORINGS", "text_score"]

TEXT_SCORINGS = ("bleu", "chrf", "exact_match")
# Longest n-grams that BLEU compares.
_MOST_WORDS = 4
# Scripts that put no spaces between words: Thai and Lao, Tibetan, Burmese, Khmer, kana; and Chinese characters.
_UNSPACED = ((0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF))
_CHINESE = ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))


def text_score(predictions: Sequence, references: Sequence, scoring: str = "bleu") -> float:
    """Compare predicted texts with their references.

    Parameters
    ----------
    predictions, references : sequence of n str
    scoring : {"bleu", "chrf", "exact_match"}, default="bleu"
        "bleu" and "chrf" are sacrebleu's corpus scores, from 0 to 100; "exact_match" is the share of texts that are
        equal up to surrounding spaces, from 0 to 1. BLEU has sacrebleu's defaults, with two exceptions: if no reference
        has four words, n-grams go up to the longest reference's length; in scripts without spaces, words are characters
        (sacrebleu's tokenizer "zh" for Chinese, "char" for Japanese, Thai and similar).

    Returns
    -------
    float
        Higher is better.

    Raises
    ------
    ValueError
        If ``scoring`` is unknown, the lengths differ, or there is nothing to compare.
    MissingDependencyError
        If sacrebleu is needed and not installed.

    Examples
    --------
    >>> from faast_sklearn.language.scoring import text_score
    >>> text_score(["un chat ", "un chien"], ["un chat", "le chien"], "exact_match")
    0.5
    >>> round(text_score(["tea x1"], ["tea x1"]), 6)
    100.0
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
    tokenize = _tokenizer(references)
    words = sacrebleu.BLEU(tokenize=tokenize).tokenizer
    longest = max(len(words(text.strip()).split()) for text in references)
    if not longest:
        return 100.0 * (not any(text.strip() for text in predictions))
    # Without force, sacrebleu warns about texts that end in a separate full stop.
    bleu = sacrebleu.BLEU(tokenize=tokenize, max_ngram_order=min(longest, _MOST_WORDS), force=True)
    return float(bleu.corpus_score(predictions, [references]).score)


def _tokenizer(texts):
    """Return the name of sacrebleu's tokenizer for the script of most letters."""
    codes = [ord(letter) for text in texts for letter in text if letter.isalpha() or ord(letter) > 0x0DFF]
    unspaced, chinese = (
        sum(any(low <= code <= high for low, high in ranges) for code in codes) for ranges in (_UNSPACED, _CHINESE)
    )
    if unspaced + chinese <= len(codes) / 2:
        return "13a"
    return "char" if unspaced else "zh"
