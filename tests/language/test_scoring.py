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


SCRIPTS = {
    "one word": ["yes", "no"],
    "two words": ["tea x1"],
    "three words": ["tea x1", "two green teas"],
    "few and many": ["tea", "the cat sat on the mat today ."],
    "Chinese": ["我喜欢喝绿茶", "他在家"],
    "one character": ["茶"],
    "Japanese": ["お茶をください", "はい"],
    "Thai": ["ฉันชอบดื่มชา"],
    "Khmer": ["ខ្ញុំចូលចិត្តតែ"],
    "Korean": ["저는 녹차를 좋아해요"],
    "Arabic": ["أحب الشاي الأخضر"],
    "Hindi": ["मुझे हरी चाय पसंद है"],
    "signs": ["?", "..."],
    "emoji": ["🍵"],
    "nothing": ["", " "],
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("scoring", ["bleu", "chrf", "exact_match"])
def test_equal_texts_score_all_there_is_whatever_their_length_and_script(name, scoring):
    pytest.importorskip("sacrebleu")
    texts = SCRIPTS[name]
    if scoring != "chrf" or name != "nothing":  # no character, no score
        assert text_score(texts, texts, scoring) == pytest.approx(1.0 if scoring == "exact_match" else 100.0)
    assert text_score(["x y z"] * len(texts), texts, scoring) < (0.5 if scoring == "exact_match" else 50.0)


def test_better_short_answers_score_better():
    pytest.importorskip("sacrebleu")
    for wanted, near, far in (
        (["tea x1", "coffee x2"], ["tea x1", "coffee x3"], ["milk x1", "juice x3"]),
        (["我喜欢喝绿茶"], ["我喜欢喝红茶"], ["他在家里"]),
        (["お茶をください"], ["水をください"], ["さようなら"]),
        (["ฉันชอบดื่มชา"], ["ฉันชอบดื่มกาแฟ"], ["ลาก่อน"]),
    ):
        scores = [text_score(answers, wanted, "bleu") for answers in (wanted, near, far)]
        assert scores[0] > scores[1] > scores[2]


def test_long_texts_of_any_script_with_spaces_are_left_to_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    worse = ["저는 홍차를 아주 많이 좋아해요", "tea"]
    references = ["저는 녹차를 아주 많이 좋아해요", "tea"]
    assert text_score(worse, references) == sacrebleu.BLEU().corpus_score(worse, [references]).score
    chinese = (["我喜欢喝红茶和咖啡"], ["我喜欢喝绿茶和咖啡"])
    assert text_score(*chinese) == sacrebleu.BLEU(tokenize="zh").corpus_score(chinese[0], [chinese[1]]).score


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
