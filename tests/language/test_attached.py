"""What transformers offers, on a model with attached fast weights: it writes what the folded checkpoint writes."""

import copy
import threading
import warnings

import pytest
import torch
import transformers as tr
from helpers.releases import before
from helpers.tiny import tiny_model, tiny_tokenizer

from faast_sklearn import FaastSeq2Seq
from faast_sklearn.language import FastWeightLM

IDS = torch.tensor([[5, 6, 7, 9, 5, 6], [8, 10, 11, 4, 8, 10]])
PROMPTS, ANSWERS = [[5, 6], [8, 10]] * 4, [[11, 12, 3], [14, 3]] * 4
STRONG = {"alpha": 1.0, "memory_weight": 1.0, "device": "cpu"}
COMPILES = pytest.mark.skipif(before("torch", "2.7"), reason="torch 2.6 cannot compile decoders of transformers")


@pytest.fixture(scope="module", params=["llama", "t5"])
def pair(request, tmp_path_factory):
    """A model with fast weights, and the plain model with the same weights in its output matrix."""
    lm = FastWeightLM(tiny_model(request.param), **STRONG).learn(PROMPTS, answers=ANSWERS)
    return lm, folded(lm, tmp_path_factory.mktemp("folded"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    lm = FastWeightLM(tiny_model("llama"), **STRONG).learn(PROMPTS, answers=ANSWERS)
    return lm, folded(lm, tmp_path_factory.mktemp("folded"))


def folded(lm, folder):
    lm.save_folded(folder)
    return type(lm.model.module).from_pretrained(folder).eval()


def write(model, ids=IDS, **options):
    """Seven tokens for each prompt, whatever they are."""
    settings = {"max_new_tokens": 7, "eos_token_id": None, "pad_token_id": 0, "do_sample": False, **options}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return model.generate(ids, **settings)


def compiled():
    """Settings of static caches with which generate compiles the model, as it does by itself on GPUs."""
    config = tr.CompileConfig(backend="eager", mode=None, fullgraph=False)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def draft():
    """A smaller model that makes other proposals than the model that it helps."""
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    return model


WAYS = {
    "static cache": lambda: {"cache_implementation": "static"},
    "no cache": lambda: {"use_cache": False},
    "beams": lambda: {"num_beams": 4, "num_return_sequences": 3},
    "sampling": lambda: {"do_sample": True, "num_return_sequences": 3},
    "sampled beams": lambda: {"do_sample": True, "num_beams": 3, "num_return_sequences": 2},
    "own tokens as proposals": lambda: {"ids": IDS[1:], "prompt_lookup_num_tokens": 3},
}
OF_DECODERS = {
    "StaticCache": lambda: {"past_key_values": tr.StaticCache(config=tiny_model("llama").config, max_cache_len=32)},
    "assistant": lambda: {"ids": IDS[:1], "assistant_model": draft()},
    "assistant, sampling": lambda: {"ids": IDS[:1], "assistant_model": draft(), "do_sample": True},
    "own first block as assistant": lambda: {"ids": IDS[:1], "assistant_early_exit": 1},
}


def same_as_folded(lm, plain, options):
    frozen, wanted = write(lm.model.module, **options()), write(plain, **options())
    with lm.attached() as model:
        assert torch.equal(write(model, **options()), wanted)
    assert frozen.shape != wanted.shape or not torch.equal(frozen, wanted)
    assert torch.equal(write(model, **options()), frozen)


@pytest.mark.parametrize("way", WAYS)
def test_generate_writes_what_the_folded_checkpoint_writes(way, pair):
    same_as_folded(*pair, WAYS[way])


@pytest.mark.parametrize("way", OF_DECODERS)
def test_generate_writes_what_the_folded_decoder_writes(way, decoder):
    same_as_folded(*decoder, OF_DECODERS[way])


def test_an_assistant_proposes_with_its_fast_weights(decoder):
    lm, plain = decoder
    target, calls = copy.deepcopy(plain), []
    target.register_forward_pre_hook(lambda *_: calls.append(1))

    def passes_with(assistant):
        calls.clear()
        write(target, IDS[:1], assistant_model=assistant)
        return len(calls)

    with lm.attached() as model:
        attached = passes_with(model)
    # Proposals of the very same model are all accepted; those of the frozen model are not.
    assert attached == passes_with(plain) < passes_with(lm.model.module)


@pytest.mark.parametrize("kind", ["TextStreamer", "TextIteratorStreamer"])
def test_streamers_write_what_the_folded_checkpoint_writes(kind, decoder, capsys):
    lm, plain = decoder
    tokenizer = tiny_tokenizer("decoder")

    def text_of(model):
        streamer = getattr(tr, kind)(tokenizer)
        if kind == "TextStreamer":
            write(model, IDS[:1], streamer=streamer)
            return capsys.readouterr().out
        thread = threading.Thread(target=write, args=(model, IDS[:1]), kwargs={"streamer": streamer})
        thread.start()
        text = "".join(streamer)
        thread.join()
        return text

    frozen = text_of(lm.model.module)
    with lm.attached() as model:
        attached = text_of(model)
    assert attached == text_of(plain)
    assert attached != frozen


@pytest.mark.parametrize("made", ["before the block", "within the block"])
def test_pipelines_write_what_the_folded_checkpoint_writes(made, decoder):
    lm, plain = decoder

    def texts_of(model, pipe=None):
        pipe = pipe or pipeline(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pipe(["the cat sat", "red"], max_new_tokens=5, do_sample=False, batch_size=2)

    def pipeline(model):
        return tr.pipeline("text-generation", model=model, tokenizer=padding, device="cpu")

    padding = tiny_tokenizer("decoder", pad_token="[PAD]", padding_side="left")
    pipe = pipeline(lm.model.module) if made == "before the block" else None
    frozen = texts_of(lm.model.module)
    with lm.attached() as model:
        attached = texts_of(model, pipe)
    assert attached == texts_of(plain)
    assert attached != frozen
    assert texts_of(model, pipe) == frozen


@COMPILES
@pytest.mark.parametrize("first", ["frozen", "attached"])
def test_generate_compiles_neither_the_hooks_nor_past_them(first, decoder):
    _, plain = decoder
    lm = FastWeightLM(tiny_model("llama"), **STRONG).learn(PROMPTS, answers=ANSWERS)
    frozen = write(tiny_model("llama"))
    if first == "frozen":  # compiled without the hooks
        assert torch.equal(write(lm.model.module, **compiled()), frozen)
        assert hasattr(lm.model.module, "_compiled_call")
    with lm.attached() as model:
        assert torch.equal(write(model, **compiled()), write(plain))
    assert torch.equal(write(model, **compiled()), frozen)
    with lm.attached() as model:
        assert torch.equal(write(model, **compiled()), write(plain))


@COMPILES
def test_other_threads_run_compiled_models_with_the_weights(decoder):
    lm, plain = decoder
    model = torch.compile(lm.model.module, backend="eager")
    found = []

    def logits_in_a_thread():
        with torch.no_grad():
            thread = threading.Thread(target=lambda: found.append(model(IDS).logits))
            thread.start()
            thread.join()

    logits_in_a_thread()
    with lm.attached():
        logits_in_a_thread()
    logits_in_a_thread()
    with torch.no_grad():
        torch.testing.assert_close(found[1], plain(IDS).logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2], found[0])
    assert (found[1] - found[0]).abs().max() > 0.1


def whole(model):
    model.forward = torch.compile(model.forward, backend="eager")


def head(model):
    model.lm_head.forward = torch.compile(model.lm_head.forward, backend="eager")


def blocks(model):
    for i, block in enumerate(model.model.layers):
        model.model.layers[i] = torch.compile(block, backend="eager")


@COMPILES
@pytest.mark.parametrize("compile_parts", [whole, head, blocks])
def test_passes_of_the_library_leave_no_hooks_in_a_compiled_forward(compile_parts):
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "use_cache": False}
    plain, model = tiny_model("llama"), tiny_model("llama")
    compile_parts(model)
    tokenizer, texts = tiny_tokenizer("decoder"), (["the cat", "a dog ran"] * 4, ["mat", "on"] * 4)
    seq2seq = FaastSeq2Seq((model, tokenizer), **STRONG)
    with torch.inference_mode():  # as in the library's passes, so that compiled code is taken for the same
        frozen = model(**inputs).logits
        torch.testing.assert_close(frozen, plain(**inputs).logits)
        wanted = FaastSeq2Seq((plain, tokenizer), **STRONG).fit(*texts).token_scores(*texts)
        assert seq2seq.fit(*texts).token_scores(*texts) == pytest.approx(wanted, rel=1e-5)
        assert torch.equal(model(**inputs).logits, frozen)


@COMPILES
def test_predict_leaves_no_hooks_in_code_that_generate_compiles(monkeypatch):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer("decoder")
    for name, value in compiled().items():
        setattr(model.generation_config, name, value)  # as Gemma's checkpoints have a static cache
    texts = ["the cat", "a dog ran"] * 4, ["mat", "on"] * 4
    settings = {**STRONG, "max_new_tokens": 5, "template": "{source} is {target}"}
    seq2seq = FaastSeq2Seq((model, tokenizer), **settings).fit(*texts)
    monkeypatch.setattr(model, "get_compiled_call", lambda _: pytest.fail("compiled"))
    plain = FaastSeq2Seq((tiny_model("llama"), tokenizer), **settings).fit(*texts)
    assert list(seq2seq.predict(texts[0])) == list(plain.predict(texts[0]))
