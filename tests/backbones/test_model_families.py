"""Models as others hold them: wrapped, half, random, blind to padding, of another library; in memory and in folders."""

import json
import warnings

import numpy as np
import pytest
import timm
import torch
import transformers as tr
from helpers.families import SMALL, TEXT, made
from helpers.tiny import encode, tiny_model, tiny_tokenizer
from PIL import Image
from sentence_transformers import SentenceTransformer

from faast_sklearn import BackboneFeatures, FaastClassifier, FaastSeq2Seq, backbone, load, save
from faast_sklearn.errors import BackboneError, InputError

TEXTS = ["the cat sat", "a dog ran far away from one", "red", "two three green"]
IMAGES = [np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8) for i in range(3)]
SIDE = {"height": 32, "width": 32}
MINILM = "bundled:minilm-l6"
VISION = {**SMALL, "image_size": 32, "patch_size": 8}


def features(spec, samples=TEXTS, **options):
    return encode(backbone(spec, **options).open("cpu"), samples)


def stored(tmp_path, model, *others):
    for part in (model, *others):
        part.save_pretrained(tmp_path)
    return tmp_path


# Wrappers


def wrappers(module):
    yield torch.compile(module, backend="eager")
    yield torch.nn.DataParallel(module)
    yield torch.compile(torch.nn.DataParallel(module), backend="eager")


def test_what_is_compiled_or_wrapped_is_the_module_inside(tmp_path):
    bert, tokenizer = tiny_model("bert"), tiny_tokenizer()
    expected = features((bert, tokenizer))
    for wrapped in wrappers(bert):
        assert torch.equal(features((wrapped, tokenizer)), expected)
        assert backbone((wrapped, tokenizer)) == backbone((bert, tokenizer))  # one entry, one cache
    llama, words = tiny_model("llama"), tiny_tokenizer("decoder")
    plain = FaastSeq2Seq((llama, words), max_new_tokens=3).fit(TEXTS, TEXTS)
    for wrapped in wrappers(llama):
        twin = FaastSeq2Seq((wrapped, words), max_new_tokens=3).fit(TEXTS, TEXTS)
        assert twin.predict(TEXTS).tolist() == plain.predict(TEXTS).tolist()
    linear, rows = torch.nn.Linear(3, 2), np.eye(3, dtype=np.float32)
    for wrapped in wrappers(linear):
        found = BackboneFeatures(wrapped, device="cpu").transform(rows)
        np.testing.assert_array_equal(found, BackboneFeatures(linear, device="cpu").transform(rows))


def test_adapters_of_peft_count_and_learnt_prompts_are_refused():
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    tokenizer = tiny_tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft, about what transformers renames
        adapted = get_peft_model(tiny_model("bert"), LoraConfig(target_modules=["query"], init_lora_weights=False))
        prompted = get_peft_model(
            tiny_model("bert"), PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2)
        )
    inside = adapted.get_base_model()
    assert torch.equal(features((adapted, tokenizer)), features((inside, tokenizer)))
    assert not torch.allclose(features((adapted, tokenizer)), features((tiny_model("bert"), tokenizer)), atol=1e-3)
    with pytest.raises(BackboneError, match="puts learnt prompts before each input"):
        backbone((prompted, tokenizer))


# A module alone


def test_a_module_alone_says_what_it_is_to_come_with():
    bert, vit = tiny_model("bert"), tiny_model("vit")
    images = [Image.fromarray(image) for image in IMAGES]
    compiled = torch.compile(bert, backend="eager")
    for module, samples, told in (
        (bert, TEXTS[:3], r"X holds strs, and BertModel reads arrays; pass backbone=\(BertModel, tokenizer\)"),
        (compiled, np.array(TEXTS[:3]), r"pass backbone=\(BertModel, tokenizer\) for texts"),
        (torch.nn.DataParallel(bert), np.array([TEXTS[:3]], object).T, r"pass backbone=\(BertModel, tokenizer\)"),
        (vit, images, r"X holds PIL images, and ViTForImageClassification reads arrays; pass .*image_processor\)"),
        (vit, ["a.png", "b.png", "c.png"], r"image_processor\) for images"),
        (torch.nn.Linear(2, 2), TEXTS[:3], r"pass backbone=\(Linear, preprocess\) with a function"),
        (torch.nn.Conv2d(3, 3, 3), images, r"X holds PIL images, and Conv2d reads arrays"),
    ):
        clf = FaastClassifier(module, device="cpu")
        with pytest.raises(InputError, match=told):
            clf.fit(samples, [0, 1, 0])
        with pytest.raises(InputError, match=told):
            BackboneFeatures(module, device="cpu").transform(samples)


def test_a_part_of_the_wrong_kind_is_named():
    tokenizer, processor = tiny_tokenizer(), tr.ViTImageProcessor(size=SIDE)
    for spec, told in (
        ((tiny_model("vit"), tokenizer), "is not an image processor, .*pass backbone=.*image_processor"),
        ((tiny_model("bert"), processor), r"is not a tokenizer, .*pass backbone=\(BertModel, tokenizer\)"),
        ((torch.nn.Linear(2, 2), tokenizer), "belongs to a transformers model, and Linear is not one"),
    ):
        with pytest.raises(BackboneError, match=told):
            backbone(spec).open("cpu")


def test_a_timm_module_brings_its_own_preprocessing(tmp_path):
    model = made(lambda: timm.create_model("test_vit.r160_in1k", pretrained=False, num_classes=7))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    named = backbone("timm:test_vit.r160_in1k", weights=tmp_path / "weights.pth").open("cpu")
    expected = encode(named, IMAGES)
    opened = backbone(model).open("cpu")
    assert opened.modality == "image"
    for samples in (IMAGES, [Image.fromarray(image) for image in IMAGES]):
        assert torch.allclose(encode(opened, samples), expected, atol=1e-5)
    for wrapped in wrappers(model):
        assert torch.allclose(features(wrapped, IMAGES), expected, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    raw = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(raw)
    assert torch.allclose(features(model, list(raw), modality="tensor"), logits, atol=1e-5)
    with pytest.raises(InputError, match="modality='tensor'"):
        FaastClassifier(model, device="cpu").fit(raw.numpy(), [0, 1])


# SentenceTransformer


def sentence_modules(folder):
    from sentence_transformers.base.modules import Transformer

    return [Transformer(folder)]


def vectors(model, texts=TEXTS):
    return torch.from_numpy(model.encode(texts, convert_to_numpy=True, show_progress_bar=False))


@pytest.fixture
def sentences(tiny_folder):
    """Make a SentenceTransformer of a tiny encoder with steps behind it."""

    def make(*steps, **options):
        return SentenceTransformer(modules=[*sentence_modules(tiny_folder("bert")), *steps], device="cpu", **options)

    return make


def test_a_sentence_transformer_is_its_saved_folder_and_its_encode(sentences, tmp_path):
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {
            "mean": sentences(Pooling(16, "mean")),
            "cls": sentences(Pooling(16, "cls"), Normalize()),
            "last, dense": sentences(Pooling(16, "lasttoken"), Dense(16, 5), Normalize()),
            "layer norm": sentences(Pooling(16, "max"), LayerNorm(16)),
            "prompt": sentences(Pooling(16, "mean"), prompts={"q": "the house "}, default_prompt_name="q"),
            "prompt left out": sentences(
                Pooling(16, "mean", include_prompt=False), prompts={"q": "the house "}, default_prompt_name="q"
            ),
        }
    for name, model in settings.items():
        expected = vectors(model)
        folder = tmp_path / name
        model.save(str(folder), create_model_card=False)
        assert torch.allclose(features(model), expected, atol=1e-5), name
        assert torch.allclose(features(str(folder)), expected, atol=1e-5), name
        assert torch.allclose(features(str(folder)), features(model), atol=1e-6), name
    left, kept = vectors(settings["prompt left out"]), vectors(settings["prompt"])
    assert not torch.allclose(left, kept, atol=1e-3)


def test_truncate_dim_is_heard(sentences, tmp_path):
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling

    model = sentences(Pooling(16, "mean"), Normalize(), truncate_dim=6)
    assert torch.allclose(features(model), vectors(model), atol=1e-5)
    assert features(model).shape == (4, 6)
    sentences(Pooling(16, "mean"), Normalize()).save(str(tmp_path / "whole"), create_model_card=False)
    config = tmp_path / "whole" / "config_sentence_transformers.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "truncate_dim": 6}))
    assert torch.allclose(features(str(tmp_path / "whole")), vectors(model), atol=1e-5)


def test_steps_that_are_not_known_are_refused_in_memory_and_in_a_folder(sentences, tmp_path):
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import WeightedLayerPooling

    several = sentences(WeightedLayerPooling(16, num_hidden_layers=2))
    tokens = sentences(Dense(16, 5, module_input_name="token_embeddings", module_output_name="token_embeddings"))
    for name, model, told in (("layers", several, "WeightedLayerPooling"), ("dense", tokens, "module_input_name=")):
        model.save(str(tmp_path / name), create_model_card=False)
        for spec in (model, str(tmp_path / name)):
            with pytest.raises(BackboneError, match=told):
                backbone(spec).open("cpu")
            assert features(spec, pooling="mean").shape == (4, 16)


def test_a_sentence_transformer_in_an_estimator(sentences, tmp_path):
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import Pooling

    model = sentences(Pooling(16, "mean"))
    clf = FaastClassifier(model, device="cpu").fit(TEXTS, [0, 1, 0, 1])
    save(clf, tmp_path / "clf.safetensors")
    theirs = load(tmp_path / "clf.safetensors", backbone=model)
    np.testing.assert_allclose(theirs.predict_proba(TEXTS), clf.predict_proba(TEXTS), atol=1e-9)
    named = FaastClassifier(model, device="cpu", values="text").fit(None, ["cat", "dog"])
    assert set(named.predict(["the cat", "a dog"])) <= {"cat", "dog"}
    dense = sentences(Pooling(16, "mean"), Dense(16, 5))
    dense.train()
    features(dense)
    assert dense[2].training  # what is the caller's stays as it was
    assert all(parameter.requires_grad for parameter in dense[2].parameters())
    with pytest.raises(BackboneError, match="reads texts by itself; pass it alone"):
        backbone((model, tiny_tokenizer())).open("cpu")


# Zero-shot with a model in memory


def clip_pair():
    processor = tr.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIDE)
    return tiny_model("clip"), tr.CLIPProcessor(processor, tiny_tokenizer("clip"))


@pytest.mark.parametrize("kind", ["text", "dual"])
def test_class_names_alone_with_a_model_in_memory(kind, tmp_path, tiny_folder):
    spec = (tiny_model("bert"), tiny_tokenizer()) if kind == "text" else clip_pair()
    samples = TEXTS[:3] if kind == "text" else IMAGES
    options = {"values": {"cat": ["cat"], "dog": ["dog"]}, "device": "cpu"}
    clf = FaastClassifier(spec, **options).fit(None, ["cat", "dog"])
    folder = FaastClassifier(tiny_folder("bert" if kind == "text" else "clip"), **options).fit(None, ["cat", "dog"])
    np.testing.assert_allclose(clf.predict_proba(samples), folder.predict_proba(samples), atol=1e-3)
    save(clf, tmp_path / "clf.safetensors")
    theirs = load(tmp_path / "clf.safetensors", backbone=spec).set_params(device="cpu")
    np.testing.assert_allclose(theirs.predict_proba(samples), clf.predict_proba(samples), atol=1e-9)
    started = FaastClassifier(spec, **options).partial_fit(None, ["cat", "dog"])
    for one in (clf, started, theirs):
        one.partial_fit(samples, ["cat", "dog", "cat"]).forget(samples[:1], ["cat"])
        assert one.n_samples_seen_ == 2
        assert len(one.predict(samples)) == 3


# Random models


@pytest.mark.parametrize("cls", [tr.ViTMAEModel, tr.ViTMAEForPreTraining])
def test_masks_that_are_drawn_anew_are_refused(cls, tmp_path):
    decoder = {f"decoder_{name}": value for name, value in SMALL.items()}
    model = made(lambda: cls(tr.ViTMAEConfig(**VISION, **decoder)))
    processor = tr.ViTImageProcessor(size=SIDE)
    for spec in ((model, processor), str(stored(tmp_path, model, processor))):
        with pytest.raises(BackboneError, match=r"draws at random also in eval mode .*mask_ratio = 0"):
            backbone(spec).open("cpu")
    model.config.mask_ratio = 0.0
    seen = features((model, processor), IMAGES)
    assert torch.allclose(features((model, processor), IMAGES), seen, atol=1e-4)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "mask_ratio": 0.0}))
    assert torch.allclose(features(str(tmp_path), IMAGES), seen, atol=1e-4)


class Noisy(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        noise = torch.nn.functional.dropout(torch.ones_like(x), training=True) if self.size else torch.rand(3)[:1] * 0
        return x * noise


def test_a_module_in_memory_that_draws_at_random_is_refused():
    rows = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    with pytest.raises(BackboneError, match="Noisy draws at random also in eval mode"):
        FaastClassifier(Noisy(1), device="cpu").fit(rows, [0, 1] * 3)
    calm = BackboneFeatures(Noisy(0), device="cpu").transform(rows)  # it draws, and what it draws is of no account
    assert not calm.any()


# Models that do not look at the mask


class Blind(tr.BertModel):
    def forward(self, input_ids, attention_mask=None, **more):
        return super().forward(input_ids, attention_mask=torch.ones_like(input_ids), **more)


def test_a_text_model_that_reads_padding_as_text_answers_as_alone():
    model = Blind(tiny_model("bert").config).eval()
    model.load_state_dict(tiny_model("bert").state_dict())
    opened = backbone((model, tiny_tokenizer())).open("cpu")
    alone = torch.cat([encode(opened, [text]) for text in TEXTS])
    assert torch.allclose(encode(opened, TEXTS), alone, atol=1e-5)
    assert torch.allclose(alone, features((tiny_model("bert"), tiny_tokenizer())), atol=1e-5)


def test_generation_of_a_model_that_reads_padding_as_text_is_that_of_each_alone():
    config = {name: value for name, value in TEXT.items() if "attention" not in name and "position" not in name}
    model = made(lambda: tr.RwkvForCausalLM(tr.RwkvConfig(**config, attention_hidden_size=16, context_length=64)))
    options = {"max_new_tokens": 5, "alpha": 1.0, "memory_weight": 1.0, "device": "cpu"}
    seq2seq = FaastSeq2Seq((model, tiny_tokenizer("decoder")), **options).fit(TEXTS, ["mat", "on", "tree", "blue"])
    assert not seq2seq._open_backbone().reads_mask
    together = seq2seq.predict(TEXTS).tolist()
    assert together == [seq2seq.predict([text])[0] for text in TEXTS]
    assert FaastSeq2Seq((tiny_model("llama"), tiny_tokenizer("decoder")))._open_backbone().reads_mask


# Families: in memory and from the folder


def same(tmp_path, model, reader, samples):
    found = features((model, reader), samples)
    assert torch.allclose(found, features(str(stored(tmp_path, model, reader)), samples), atol=1e-5)
    return found


IMAGE_MODELS = {
    "beit": lambda: tr.BeitModel(tr.BeitConfig(**VISION)),
    "beit, a classifier": lambda: tr.BeitForImageClassification(tr.BeitConfig(**VISION)),
    "data2vec, a classifier": lambda: tr.Data2VecVisionForImageClassification(tr.Data2VecVisionConfig(**VISION)),
    "dinov2": lambda: tr.Dinov2ForImageClassification(tr.Dinov2Config(**VISION)),
    "dinov3": lambda: tr.DINOv3ViTModel(tr.DINOv3ViTConfig(**VISION)),
    "vit, masked images": lambda: tr.ViTForMaskedImageModeling(tr.ViTConfig(**VISION)),
}
TEXT_MODELS = {
    "bert, a classifier": lambda: tr.BertForSequenceClassification(tr.BertConfig(**TEXT)),
    "dpr": lambda: tr.DPRQuestionEncoder(tr.DPRConfig(**TEXT)),
    "distilbert": lambda: tr.DistilBertForMaskedLM(
        tr.DistilBertConfig(vocab_size=25, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    ),
    "opt": lambda: tr.OPTForCausalLM(
        tr.OPTConfig(**TEXT, ffn_dim=32, word_embed_proj_dim=16, do_layer_norm_before=True)
    ),
    "llama4": lambda: tr.Llama4ForCausalLM(
        tr.Llama4TextConfig(**TEXT, num_key_value_heads=2, head_dim=8, num_local_experts=2, intermediate_size_mlp=32)
    ),
}


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_image_models_in_memory_are_those_of_the_folder(name, tmp_path):
    found = same(tmp_path, made(IMAGE_MODELS[name]), tr.ViTImageProcessor(size=SIDE), IMAGES)
    assert found.shape == (3, 16)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_text_models_in_memory_are_those_of_the_folder_or_refused(name, tmp_path):
    model, tokenizer = made(TEXT_MODELS[name]), tiny_tokenizer()
    if name != "dpr":
        assert same(tmp_path, model, tokenizer, TEXTS).shape == (4, 16)
        return
    for spec in ((model, tokenizer), str(stored(tmp_path, model, tokenizer))):
        with pytest.raises(BackboneError, match=r"no token states to pool|gives no features of texts"):
            backbone(spec).open("cpu")


@pytest.mark.parametrize("kind", ["T5", "MT5", "UMT5"])
def test_an_encoder_that_was_saved_alone_is_that_of_the_pair(kind, tmp_path):
    shape = {"vocab_size": 25, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = getattr(tr, f"{kind}Config")(**shape, decoder_start_token_id=0)
    alone = made(lambda: getattr(tr, f"{kind}EncoderModel")(config))
    tokenizer = tiny_tokenizer("t5")
    found = same(tmp_path / "alone", alone, tokenizer, TEXTS)
    whole = made(lambda: getattr(tr, f"{kind}ForConditionalGeneration")(getattr(tr, f"{kind}Config")(**shape)))
    whole.encoder.load_state_dict(alone.encoder.state_dict())
    assert torch.allclose(same(tmp_path / "whole", whole, tokenizer, TEXTS), found, atol=1e-5)


@pytest.mark.parametrize("cls", [tr.TimmWrapperModel, tr.TimmWrapperForImageClassification])
def test_the_wrapper_of_timm_is_the_model_of_timm(cls, tmp_path):
    plain = timm.create_model("test_resnet.r160_in1k", pretrained=False)
    config = tr.TimmWrapperConfig(architecture="test_resnet", num_labels=3, pretrained_cfg=plain.pretrained_cfg)
    model = made(lambda: cls(config))
    model.save_pretrained(tmp_path)
    processor = tr.TimmWrapperImageProcessor(model.config.pretrained_cfg)
    found = features((model, processor), IMAGES)
    assert torch.allclose(features(str(tmp_path), IMAGES), found, atol=1e-5)
    assert torch.allclose(features(model.timm_model, IMAGES), found, atol=1e-5)


def test_dual_encoders_with_one_reader_and_with_one_tower(tmp_path):
    model, both = clip_pair()
    expected = features((model, both), IMAGES)
    assert torch.equal(features((model, both.image_processor), IMAGES), expected)
    with pytest.raises(BackboneError, match=r"class names cannot be read: .*pass backbone=\(CLIPModel, tokenizer\)"):
        FaastClassifier((model, both.image_processor), values="text").fit(None, ["cat", "dog"])
    with pytest.raises(BackboneError, match="is not an image processor"):
        backbone((model, both.tokenizer)).open("cpu")
    assert torch.equal(features((model, both.tokenizer), tower="text"), features((model, both), TEXTS, tower="text"))
    classifier = made(lambda: tr.CLIPForImageClassification(model.config))
    for spec in ((classifier, both), str(stored(tmp_path, classifier, both.image_processor))):
        with pytest.raises(BackboneError, match=r"CLIPForImageClassification .* pass a CLIPModel"):
            backbone(spec).open("cpu")


# Models that read more than text


MANY = {**TEXT, "vocab_size": 300, "num_key_value_heads": 2, "head_dim": 8}
MULTIMODAL = {
    "gemma3": lambda: tr.Gemma3ForConditionalGeneration(
        tr.Gemma3Config(text_config=dict(MANY), vision_config=dict(VISION), mm_tokens_per_image=4)
    ),
    "llava": lambda: tr.LlavaForConditionalGeneration(
        tr.LlavaConfig(
            text_config={"model_type": "llama", **MANY},
            vision_config={"model_type": "clip_vision_model", **VISION},
            image_token_index=299,
        )
    ),
    "smolvlm": lambda: tr.SmolVLMForConditionalGeneration(
        tr.SmolVLMConfig(
            text_config={"model_type": "llama", **MANY}, vision_config=dict(VISION), image_token_id=299, scale_factor=2
        )
    ),
}


@pytest.mark.parametrize("name", MULTIMODAL)
def test_models_that_see_write_text_from_their_folder_as_in_memory(name, tmp_path):
    model, tokenizer = made(MULTIMODAL[name]), tiny_tokenizer("decoder")
    folder = str(stored(tmp_path, model, tokenizer))
    targets = ["mat", "on", "tree", "blue"]
    ours, theirs = (
        FaastSeq2Seq(spec, max_new_tokens=3, alpha=1.0, memory_weight=0.5, device="cpu").fit(TEXTS, targets)
        for spec in ((model, tokenizer), folder)
    )
    assert theirs.token_scores(TEXTS, targets) == pytest.approx(ours.token_scores(TEXTS, targets), abs=1e-5)
    assert theirs.predict(TEXTS).tolist() == ours.predict(TEXTS).tolist()
    with pytest.raises(BackboneError, match="FaastSeq2Seq takes them for text"):
        FaastClassifier(folder).fit(TEXTS, targets)


def test_models_of_sound_are_refused_by_name(tmp_path):
    shape = {f"{side}_{part}": 2 for side in ("encoder", "decoder") for part in ("layers", "attention_heads")}
    ffn = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 51865}
    whisper = tr.WhisperForConditionalGeneration(tr.WhisperConfig(d_model=16, **shape, **ffn))
    tokenizer = tiny_tokenizer()
    folder = str(stored(tmp_path, whisper, tokenizer))
    for spec in ((whisper, tokenizer), (whisper.model, tokenizer), folder):
        with pytest.raises(BackboneError, match="'whisper' models read audio, which is not supported"):
            backbone(spec).open("cpu")
    for spec in ((whisper, tokenizer), folder):
        with pytest.raises(BackboneError, match="whisper"):
            FaastSeq2Seq(spec).fit(TEXTS, TEXTS)
    clap = tr.ClapModel(tr.ClapConfig(text_config={**TEXT, "num_hidden_layers": 1}, projection_dim=8))
    with pytest.raises(BackboneError, match="'clap' models are neither image nor text models"):
        backbone((clap, tokenizer)).open("cpu")


def test_tokens_beyond_the_embedding_are_refused_before_the_pass():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["zebra"])
    for spec in ((tiny_model("bert"), tokenizer), clip_with(tokenizer)):
        options = {"tower": "text"} if isinstance(spec[0], tr.CLIPModel) else {}
        opened = backbone(spec, **options).open("cpu")
        assert encode(opened, TEXTS).shape[0] == 4
        with pytest.raises(BackboneError, match=r"gives token 25, but \w+ has 25 embeddings.*resize_token_embeddings"):
            encode(opened, ["the cat", "a zebra"])
    resized = tiny_model("bert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resized.resize_token_embeddings(len(tokenizer))
    assert torch.isfinite(features((resized, tokenizer), ["a zebra"])).all()


def clip_with(tokenizer):
    return tiny_model("clip"), tokenizer
