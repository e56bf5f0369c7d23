import pytest

from faast_sklearn.errors import InputError
from faast_sklearn.language.scoring import TEXT_SCORINGS, text_score

TEXTS = ["the cat sat on the mat today .", "a dog ran far away from the house ."]


@pytest.mark.parametrize("scoring", ["bleu", "chrf"])
def test_corpus_scores_are_those_of_sacrebleu(scoring):
    sacrebleu = pytest.importorskip("sacrebleu")
    worse = ["the cat sat on a mat today .", "a dog ran away ."]
    metric = sacrebleu.BLEU() if scoring == "bleu" else sacrebleu.CHRF()
    assert text_score(worse, TEXTS, scoring) == metric.corpus_score(worse, [TEXTS]).score
    assert 0 < text_score(worse, TEXTS, scoring) < text_score(TEXTS, TEXTS, scoring) == pytest.approx(100)


def test_exact_match_ignores_the_spaces_around():
    assert text_score([" a\n", "b", "C"], ["a", "b", "c"], "exact_match") == pytest.approx(2 / 3)


def test_unknown_scorings_list_the_known_ones():
    with pytest.raises(ValueError, match="rouge") as error:
        text_score(TEXTS, TEXTS, "rouge")
    assert all(name in str(error.value) for name in TEXT_SCORINGS)


def test_other_lengths_are_named():
    with pytest.raises(InputError, match="1 predictions and 2 references"):
        text_score(TEXTS[:1], TEXTS)
    with pytest.raises(InputError):
        text_score([], [])
