import pytest
import torch
import transformers as tr
from helpers.language import GROUPED, MODELS, TOKENS, VOCABULARY, hook_count, make
from helpers.tiny import tiny_model, tiny_tokenizer

from faast_sklearn.backbones import backbone, register_backbone, release_backbones
from faast_sklearn.backbones.base import frozen
from faast_sklearn.backbones.open_backbones import open_count
from faast_sklearn.backbones.transformers.architecture import Finish, find_architecture
from faast_sklearn.errors import BackboneError


@pytest.fixture(scope="module")
def opened():
    made = {}

    def open_(name):
        if name not in made:
            model = make(name)
            tokenizer = tiny_tokenizer("t5" if model.config.is_encoder_decoder else "decoder")
            made[name] = backbone((model, tokenizer)).open_language_model("cpu")
        return made[name]

    return open_


def run(lm, ids):
    """The head's input, the decoder blocks' calls and the logits of a plain pass."""
    seen = {"blocks": []}
    hooks = [lm.head.register_forward_pre_hook(lambda part, args: seen.update(hidden=args[0]))]
    hooks += [
        block.register_forward_hook(lambda part, args, out, i=i: seen["blocks"].append(i))
        for i, block in enumerate(lm.layers)
    ]
    if lm.final_norm is not None:
        hooks.append(lm.final_norm.register_forward_hook(lambda part, args, out: seen.update(norm=out)))
    more = {"decoder_input_ids": ids.flip(1)} if lm.encoder_decoder else {}
    with frozen(lm.module):
        seen["logits"] = lm.module(input_ids=ids, **more).logits
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_are_where_they_are_said_to_be(name, opened):
    lm = opened(name)
    model = lm.module
    assert hook_count(model) == 0
    ids = torch.randint(4, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(1))
    seen = run(lm, ids)
    with torch.inference_mode():
        assert torch.allclose(lm.finish(lm.head(seen["hidden"])), seen["logits"], rtol=1e-5, atol=1e-5)
    assert seen["blocks"] == list(range(3 if lm.encoder_decoder else 2))
    names = {id(part): key for key, part in model.named_modules()}
    assert (None if lm.final_norm is None else names[id(lm.final_norm)]) == MODELS[name][1]
    if lm.final_norm is not None:
        factor = 0.25 if name == "t5" else 1.0  # sqrt(1 / 16)
        assert torch.allclose(seen["norm"] * factor, seen["hidden"])
    # The decoder's embedding reads the decoder's tokens.
    assert lm.embedding(ids).shape[:2] == ids.shape
    assert lm.encoder_decoder == model.config.is_encoder_decoder
    assert lm.readouts is None


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "granite", "bart"])
def test_the_slope_is_the_derivative_of_the_logits(name, opened):
    lm = opened(name)
    raw = torch.linspace(-20, 20, VOCABULARY, dtype=torch.float64)[None].requires_grad_()
    (expected,) = torch.autograd.grad(lm.finish(raw).sum(), raw)
    slope = lm.finish.slope(raw.detach())
    assert torch.allclose(torch.as_tensor(slope, dtype=torch.float64).expand_as(expected), expected)


def test_what_happens_to_the_logits_is_seen_even_where_weights_are_tiny():
    config = tr.Gemma2Config(**GROUPED, **TOKENS, final_logit_softcapping=30.0, initializer_range=1e-4)
    model = tr.Gemma2ForCausalLM(config).eval()
    assert find_architecture(model).finish == Finish(cap=30.0)
    # A field that the model does not use is not believed.
    llama = tiny_model("llama")
    llama.config.logit_scale = 3.0
    assert find_architecture(llama).finish == Finish()


class Squared(tr.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits**2
        return output


class Sidestepped(tr.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = self.model(args[0] if args else kwargs["input_ids"])[0] @ self.lm_head.weight.T
        return output


class Doubling(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_cannot_be_placed_is_refused_by_name():
    config = MODELS["llama"][0]()
    for kind, why in ((Squared, "logits differ from the head's result"), (Sidestepped, "logits differ")):
        model = kind(config).eval()
        with pytest.raises(
            BackboneError, match=rf"cannot use the output matrix of 'llama' models \({kind.__name__}.*{why}"
        ):
            find_architecture(model)
        assert hook_count(model) == 0
    model = tiny_model("llama")
    model.lm_head = Doubling(16, VOCABULARY, bias=False)
    with pytest.raises(BackboneError, match="Doubling, does more than multiply"):
        find_architecture(model)
    model.lm_head = torch.nn.Sequential(torch.nn.Linear(16, VOCABULARY))
    with pytest.raises(BackboneError, match="head is a Sequential"):
        find_architecture(model)
    model = tiny_model("llama")
    model.model.norm.forward = lambda hidden: 1 / 0
    with pytest.raises(BackboneError, match="a pass over five tokens fails: ZeroDivisionError"):
        find_architecture(model)
    assert hook_count(model) == 0


@pytest.mark.parametrize(
    ("name", "limit"), [("llama", 64), ("gpt2", 16), ("t5", None), ("t5-short", 9), ("gpt2-short", 5)]
)
def test_the_limit_is_the_models_or_the_tokenizers_or_the_users(name, limit):
    kind = "t5" if name.startswith("t5") else "decoder"
    tokenizer = tiny_tokenizer(kind, **({"model_max_length": 9} if name == "t5-short" else {}))
    options = {"max_length": 5} if name == "gpt2-short" else {}
    lm = backbone((tiny_model(name.split("-")[0]), tokenizer), **options).open_language_model("cpu")
    assert lm.limit == limit


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(BackboneError, match="positions for 16 tokens"):
        backbone((tiny_model("gpt2"), tiny_tokenizer("decoder")), max_length=17).open_language_model("cpu")


def test_padding_and_end_tokens():
    lm = backbone((tiny_model("t5"), tiny_tokenizer("t5"))).open_language_model("cpu")
    assert (lm.pad_id, set(lm.eos_ids)) == (0, {1, 3})  # T5's configuration and the tokenizer's
    model = tiny_model("llama")
    model.generation_config.eos_token_id = [7, 3, 10**6]
    lm = backbone((model, tiny_tokenizer("decoder"))).open_language_model("cpu")
    assert (lm.pad_id, lm.eos_ids) == (3, (7, 3))  # no padding token: the end token; no id beyond the vocabulary


def test_a_module_in_memory_is_never_changed():
    model = tiny_model("llama").train()
    handle = backbone((model, tiny_tokenizer("decoder")))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lm = handle.open_language_model("cpu")
    assert lm.module is model
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    half = handle.open_language_model("cpu", "bfloat16")
    assert half.module is not model
    assert half.head.weight.dtype == half.dtype == torch.bfloat16
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert handle.open_language_model("cpu") is lm
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert handle.open_language_model("cpu") is not lm  # trained on since


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folders_open_frozen_and_once(dtype, tiny_folder):
    random, generated = torch.get_rng_state(), []
    for name, kind in (
        ("llama", "LlamaForCausalLM"),
        ("gpt2", "GPT2LMHeadModel"),
        ("t5", "T5ForConditionalGeneration"),
    ):
        handle = backbone(tiny_folder(name))
        release_backbones()  # what other tests have opened or let go of
        before = open_count()
        lm = handle.open_language_model("cpu", dtype)
        assert handle.open_language_model("cpu", dtype) is lm
        assert backbone(tiny_folder(name)).open_language_model("cpu", dtype) is lm
        assert open_count() == before + 1
        assert type(lm.module).__name__ == kind
        assert not lm.module.training
        assert not any(parameter.requires_grad for parameter in lm.module.parameters())
        assert {parameter.dtype for parameter in lm.module.parameters()} == {lm.dtype}
        assert handle.open("cpu", dtype).module is not lm.module
        generated.append(lm)
    assert torch.equal(torch.get_rng_state(), random)
    if dtype == "float32":
        ids = torch.tensor([[5, 6, 7]])
        plain = tiny_model("llama")
        with torch.inference_mode():
            assert torch.equal(generated[0].module(ids).logits, plain(ids).logits)
    release_backbones()


def test_options_of_features_are_refused(tiny_folder):
    for option in ({"pooling": "mean"}, {"layer": 1}, {"tower": "text"}, {"truncation": "error"}):
        with pytest.raises(TypeError, match=f"{next(iter(option))}= is for features"):
            backbone(tiny_folder("llama"), **option).open_language_model("cpu")
    assert backbone(tiny_folder("llama"), pooling="auto", max_length=7).open_language_model("cpu").limit == 7
    with pytest.raises(TypeError, match="pooling= is for features"):
        backbone((tiny_model("llama"), tiny_tokenizer("decoder")), pooling="last").open_language_model("cpu")
    with pytest.raises(TypeError, match="base_config= is for published"):
        backbone(tiny_folder("llama"), base_config="x").open_language_model("cpu")


def test_what_is_no_language_model_is_refused(tiny_folder):
    for name, kind in (("bert", "encoder"), ("clip", "dual"), ("vit", "image")):
        with pytest.raises(BackboneError, match=f"{name}' model, of kind '{kind}', which writes no text"):
            backbone(tiny_folder(name)).open_language_model("cpu")
    with pytest.raises(BackboneError, match="'timm:' has no language models"):
        backbone("timm:resnet18").open_language_model("cpu")
    with pytest.raises(BackboneError, match="minilm-l6' is not a language model; bundled:smollm2-135m is"):
        backbone("bundled:minilm-l6").open_language_model("cpu")
    with pytest.raises(BackboneError, match="Linear is not a language model"):
        backbone(torch.nn.Linear(2, 2)).open_language_model("cpu")
    with pytest.raises(BackboneError, match=r"Linear is no tokenizer.*backbone\(\(LlamaForCausalLM, tokenizer\)\)"):
        backbone((tiny_model("llama"), torch.nn.Linear(2, 2))).open_language_model("cpu")
    with pytest.raises(BackboneError, match=r"no language-model head|is not a language model"):
        backbone((tiny_model("llama").model, tiny_tokenizer("decoder"))).open_language_model("cpu")


def test_a_registered_prefix_may_offer_language_models():
    class Mine:
        @classmethod
        def open(cls, name, *, device, dtype):
            raise AssertionError

        @classmethod
        def open_language_model(cls, name, *, device, dtype):
            handle = backbone((tiny_model(name), tiny_tokenizer("decoder")))
            return handle.open_language_model(device, dtype)

    register_backbone("mylms", Mine)
    assert backbone("mylms:llama").open_language_model("cpu").limit == 64


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer("decoder").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"lack 1 tensors of LlamaForCausalLM.*lm_head\.weight"):
        backbone(tmp_path).open_language_model("cpu")
    assert backbone(tmp_path).open("cpu").n_features == 16


@pytest.mark.slow
def test_bundled_smollm2_writes_and_leaves_its_reader_as_it_was():
    gguf = pytest.importorskip("gguf")
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    lm = backbone("bundled:smollm2-135m").open_language_model("cpu")
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
    assert (lm.limit, lm.license) == (8192, "apache-2.0")
    assert lm.head.weight is lm.embedding.weight
    assert lm.tokenizer.decode(lm.eos_ids) == "<|im_end|>"
    with frozen(lm.module):
        logits = lm.module(**lm.tokenizer("The capital of France is", return_tensors="pt")).logits
    assert lm.tokenizer.decode(logits[0, -1].argmax()) == " Paris"
    features = backbone("bundled:smollm2-135m").open("cpu")
    assert features.module.embed_tokens.weight.equal(lm.embedding.weight)
