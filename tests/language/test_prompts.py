import pytest
import torch
from helpers.tiny import tiny_model, tiny_tokenizer

from faast_sklearn.backbones.transformers.language_model import LanguageModel
from faast_sklearn.errors import InputError
from faast_sklearn.language.prompts import Prompts

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }}"
    "{% if m.role == 'assistant' %}[SEP]\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer(bos=False, merges=(), **options):
    """Every byte is a token, so texts come back from their ids as they were; ``merges`` join some."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["[BOS]", "[SEP]", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[BOS] $A [SEP]", special_tokens=[("[BOS]", 0), ("[SEP]", 1)]
        )
    names = {"bos_token": "[BOS]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options)


class Bare:
    """What Prompts needs of a language model."""

    def __init__(self, tokenizer, limit=None, encoder_decoder=False, eos_ids=(1,)):
        self.tokenizer, self.limit, self.encoder_decoder, self.eos_ids = tokenizer, limit, encoder_decoder, eos_ids
        self.pad_id = 1


def texts(lm, exchange):
    return lm.tokenizer.decode(exchange.prompt), lm.tokenizer.decode(exchange.answer)


def test_plain_template_by_default_with_bos_before_and_eos_behind():
    lm = Bare(byte_tokenizer(bos=True))
    exchange = Prompts(lm).pairs(["Hi {x}"], ["Yo"])[0]
    # The tokenizer also writes [SEP] after a text; after a prompt it must not.
    assert texts(lm, exchange) == ("[BOS]Hi {x}\n", "Yo[SEP]")
    assert exchange.length == len(exchange.prompt) + len(exchange.answer)


def test_chat_template_is_not_given_a_second_bos_and_ends_with_its_own_token():
    lm = Bare(byte_tokenizer(bos=True, chat_template=CHAT))
    exchange = Prompts(lm).pairs(["Hi"], ["Yo"])[0]
    whole = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], tokenize=False
    )
    assert texts(lm, exchange) == ("[BOS]<user> Hi<assistant>", " Yo[SEP]")
    assert "".join(texts(lm, exchange)) == whole.rstrip("\n")


def test_what_a_chat_template_opens_answers_with_belongs_to_the_prompt():
    thinking = CHAT.replace("<{{ m.role }}> {{", "<{{ m.role }}>{% if m.role == 'assistant' %}<t></t>{% endif %} {{")
    lm = Bare(byte_tokenizer(chat_template=thinking))
    assert texts(lm, Prompts(lm).pairs(["Hi"], ["Yo"])[0]) == ("[BOS]<user> Hi<assistant><t></t>", " Yo[SEP]")


def test_the_token_that_ends_a_turn_also_ends_an_answer():
    chat = CHAT.replace("[SEP]", "[END]")
    tokenizer = byte_tokenizer(chat_template=chat, additional_special_tokens=["[END]"])
    end = tokenizer.convert_tokens_to_ids("[END]")
    lm = Bare(tokenizer)
    for template in (None, lambda source: [{"role": "user", "content": source}]):
        prompts = Prompts(lm, template)
        assert set(prompts.stop_ids) == {1, end}
        assert prompts.pairs(["Hi"], ["Yo"])[0].answer[-1] == end
    assert Prompts(lm, "{source} {target}").pairs(["Hi"], ["Yo"])[0].answer[-1] == 1


@pytest.mark.parametrize(
    "template", [None, "{source}\nFrench: {target}.", lambda s: f"[{s}] is ", "{{{source}}}={target}"]
)
@pytest.mark.parametrize("chat", [None, CHAT])
def test_a_prompt_is_the_same_when_learning_and_when_answering(template, chat):
    prompts = Prompts(Bare(byte_tokenizer(bos=True, chat_template=chat)), template)
    X = ["one", "", "with {braces} and  spaces ", "ünïcode\n"]
    learnt, asked = prompts.pairs(X, ["Paris"] * 4), prompts.questions(X)
    assert [e.prompt for e in learnt] == [e.prompt for e in asked]
    assert [e.answer for e in asked] == [()] * 4
    assert [list(e.answer) for e in learnt] == [prompts.answers(["Paris"], e.turn)[0] for e in asked]


def test_the_space_before_an_answer_is_joined_to_its_first_word():
    tokenizer = byte_tokenizer(merges=[("Ġ", "P")])
    lm = Bare(tokenizer)
    exchange = Prompts(lm, "{source} is {target}").pairs(["Here"], ["P"])[0]
    assert texts(lm, exchange) == ("Here is", " P[SEP]")
    assert len(exchange.answer) == 2


def test_a_tokenizer_that_writes_a_space_itself_gets_no_second_one():
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    # As sentencepiece does: a space before every text, whether it has one or not.
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(["[SEP]", "▁", "a", "b"])}, []))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    lm = Bare(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]"), eos_ids=(0,))
    for template in ("{source} {target}", "{source}\n{target}"):
        assert Prompts(lm, template).pairs(["a"], ["b"])[0].answer == (1, 3, 0)


def test_a_chat_template_without_bos_gets_none():
    lm = Bare(byte_tokenizer(bos=True, chat_template=CHAT.replace("{{ bos_token }}", "")))
    assert texts(lm, Prompts(lm).pairs(["Hi"], ["Yo"])[0])[0] == "<user> Hi<assistant>"


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{source}", "{target}"),
        ("{target}", "{source}"),
        ("{source} {target} {label}", "{label}"),
        ("{source} {} {target}", "{}"),
        ("{target} {source}", "after {source}"),
        ("{source} {target} {target}", "once"),
        ("{source!r} {target}", "plain"),
        ("{source {target}", "format string"),
        (7, "int"),
    ],
)
def test_templates_without_their_fields_are_named(template, named):
    with pytest.raises(InputError) as error:
        Prompts(Bare(byte_tokenizer()), template)
    assert named in str(error.value)
    assert repr(template) in str(error.value)


def test_a_function_may_return_text_or_messages_and_nothing_else():
    lm = Bare(byte_tokenizer(chat_template=CHAT))
    mixed = Prompts(
        lm, lambda s: s.upper() if s < "m" else [{"role": "system", "content": "S"}, {"role": "user", "content": s}]
    )
    plain, chat = mixed.pairs(["a", "z"], ["b", "y"])
    assert texts(lm, plain) == ("A", "b[SEP]")
    assert texts(lm, chat) == ("[BOS]<system> S<user> z<assistant>", " y[SEP]")
    with pytest.raises(InputError, match=r"X\[1\].*NoneType"):
        Prompts(lm, lambda s: s or None).questions(["a", ""])
    with pytest.raises(InputError, match=r"X\[0\].*no chat template"):
        Prompts(Bare(byte_tokenizer()), lambda s: [{"role": "user", "content": s}]).questions(["a"])


def test_a_chat_template_that_fails_is_named_with_the_remedy():
    with pytest.raises(InputError, match=r"refused.*template"):
        Prompts(Bare(byte_tokenizer(chat_template="{{ raise_exception('refused') }}")))


def test_the_source_is_shortened_and_neither_template_nor_answer():
    lm = Bare(byte_tokenizer(), limit=24)
    prompts = Prompts(lm, "Q: {source}?\nA: {target}")
    short, long = prompts.pairs(["abc", "abcdefghijklmnopqrstuvwxyz"], ["yes"] * 2)
    assert texts(lm, short) == ("Q: abc?\nA:", " yes[SEP]")
    assert short.length <= 24
    assert texts(lm, long) == ("Q: abcdefghijkl?\nA:", " yes[SEP]")
    assert len(long.prompt) + len(long.answer) == 24
    assert long.length == 24 + 14
    asked = prompts.questions(["abcdefghijklmnopqrstuvwxyz"], room=5)[0]
    assert asked.prompt == long.prompt
    assert asked.length == long.length


def test_answers_that_do_not_fit_are_named():
    prompts = Prompts(Bare(byte_tokenizer(), limit=8), "{source}:{target}")
    with pytest.raises(InputError, match=r"y\[1\] has 9 tokens.*reads 8"):
        prompts.pairs(["a", "b"], ["c", "12345678"])
    with pytest.raises(InputError, match=r"X\[1\].*template.*9 tokens.*reads 8"):
        Prompts(Bare(byte_tokenizer(), limit=8), "{source}::{target}").pairs(["a", ""], ["c", "123456"])
    # A room for the answer is no wish that the template could break silently either.
    with pytest.raises(InputError, match=r"X\[0\]"):
        prompts.questions(["a"], room=8)


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (["a", 3], ["b", "c"], r"X\[1\]"),
        (["a", "b"], ["c", None], r"^y\[1\] is None"),
        (["a", "b"], "cd", "^y is one str"),
        (["a", "b"], ["c"], "X has 2 samples and y has 1"),
        (["a", "b"], ["c", " "], r"y\[1\] is empty"),
        ([], [], "0 samples"),
    ],
)
def test_bad_pairs_are_named(X, y, message):
    with pytest.raises(InputError, match=message):
        Prompts(Bare(byte_tokenizer())).pairs(X, y)


def test_an_empty_source_is_legal_and_its_prompt_is_not_empty():
    lm = Bare(byte_tokenizer())
    assert Prompts(lm, "{source}{target}").pairs([""], ["b"])[0].prompt == (lm.tokenizer.bos_token_id,)


@pytest.mark.parametrize("bos", [False, True])
def test_every_token_of_plain_text_after_the_first_is_a_target(bos):
    lm = Bare(byte_tokenizer(bos=bos), limit=8)
    short, long = Prompts(lm).texts(["abc", "abcdefghijkl"])
    assert texts(lm, short) == (("[BOS]", "abc[SEP]") if bos else ("a", "bc[SEP]"))
    # The end of a text that was cut is not its end, so [SEP] is not learnt there.
    assert "".join(texts(lm, long)) == ("[BOS]abcdefg" if bos else "abcdefgh")
    assert long.length > lm.limit >= short.length
    with pytest.raises(InputError, match=r"X\[1\] is empty"):
        Prompts(lm).texts(["a", ""])


def test_encoder_decoders_have_both_sides_apart():
    tokenizer = tiny_tokenizer("t5")
    lm = LanguageModel(tiny_model("t5"), tokenizer, torch.device("cpu"), torch.float32)
    exchange = Prompts(lm).pairs(["the cat"], ["red house"])[0]
    assert texts(lm, exchange) == ("the cat [SEP]", "red house [SEP]")
    named = Prompts(lm, "photo of {source} {target}").pairs(["the cat"], ["red house"])[0]
    assert texts(lm, named) == ("photo of the cat [SEP]", "red house [SEP]")
    with pytest.raises(InputError, match="pass y"):
        Prompts(lm).texts(["the cat"])


def test_each_side_of_an_encoder_decoder_has_the_whole_context():
    lm = Bare(tiny_tokenizer("t5"), limit=4, encoder_decoder=True, eos_ids=(3,))
    exchange = Prompts(lm).pairs(["the cat sat on the mat"], ["red green blue"])[0]
    assert texts(lm, exchange) == ("the cat sat [SEP]", "red green blue [SEP]")
    assert exchange.length == 7
    with pytest.raises(InputError, match=r"y\[0\] has 5 tokens"):
        Prompts(lm).pairs(["a"], ["red green blue tree"])


def test_an_end_before_the_language_code_is_seen():
    from tokenizers import processors

    tokenizer = tiny_tokenizer("t5")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP] [CLS]", special_tokens=[("[SEP]", 3), ("[CLS]", 2)]
    )
    lm = Bare(tokenizer, encoder_decoder=True, eos_ids=(3,))
    assert Prompts(lm).pairs(["cat"], ["dog"])[0].answer[-2:] == (3, 2)
