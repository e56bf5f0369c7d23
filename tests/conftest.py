import json
import logging
import os

# Before any library reads them: no test may look anything up on a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tests that run beside others share the cores with them; waiting threads would take them away.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
# scikit-learn skips one of its own checks without it.
os.environ["SCIPY_ARRAY_API"] = "1"

import pytest
import torch

WORDS = "a the cat dog sat on mat ran far away from one two three red green blue house tree photo of"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def tiny_tokenizer(kind="encoder", **options):
    """A word-level tokenizer; encoders put [CLS] and [SEP] around a text, decoders nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS.split())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]"}
    if kind == "encoder":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    elif kind == "clip":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names |= {"pad_token": "[PAD]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    elif kind == "t5":
        tokenizer.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
        names |= {"pad_token": "[PAD]", "eos_token": "[SEP]"}
    else:
        names |= {"eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options)


def tiny_model(name):
    """A random transformers model of a few thousand weights, the same at each call."""
    import transformers as tr

    vocabulary = len(SPECIAL) + len(WORDS.split())
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    vision = {**shape, "image_size": 32, "patch_size": 8}
    makers = {
        "bert": lambda: tr.BertModel(tr.BertConfig(**shape, **text, max_position_embeddings=16)),
        "roberta": lambda: tr.RobertaModel(tr.RobertaConfig(**shape, **text, max_position_embeddings=17)),
        "gpt2": lambda: tr.GPT2LMHeadModel(
            tr.GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=16, eos_token_id=3)
        ),
        "llama": lambda: tr.LlamaForCausalLM(tr.LlamaConfig(**shape, **text, max_position_embeddings=64)),
        "t5": lambda: tr.T5ForConditionalGeneration(
            tr.T5Config(
                vocab_size=vocabulary, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
            )
        ),
        "bart": lambda: tr.BartForConditionalGeneration(
            tr.BartConfig(
                vocab_size=vocabulary,
                d_model=16,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                max_position_embeddings=32,
                pad_token_id=0,
                bos_token_id=2,
                eos_token_id=3,
                decoder_start_token_id=3,
                forced_eos_token_id=3,
            )
        ),
        "vit": lambda: tr.ViTForImageClassification(tr.ViTConfig(**vision)),
        "resnet": lambda: tr.ResNetModel(
            tr.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
        "clip": lambda: tr.CLIPModel(
            tr.CLIPConfig(
                text_config={**shape, **text, "max_position_embeddings": 12}, vision_config=vision, projection_dim=8
            )
        ),
        "siglip": lambda: tr.SiglipModel(
            tr.SiglipConfig(text_config={**shape, **text, "max_position_embeddings": 12}, vision_config=vision)
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = makers[name]().eval()
        # Standard initialisation is so small that features of different inputs are hardly distinct.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A function from a name of ``tiny_model`` to a folder with model, tokenizer and image processor."""
    import transformers as tr

    made = {}

    def folder(name):
        if name not in made:
            path = tmp_path_factory.mktemp(name)
            tiny_model(name).save_pretrained(path)
            kinds = {"gpt2": "decoder", "llama": "decoder", "t5": "t5", "clip": "clip", "siglip": "t5"}
            if name not in ("vit", "resnet"):
                tiny_tokenizer(kinds.get(name, "encoder")).save_pretrained(path)
            side = {"height": 32, "width": 32}
            processors = {
                "vit": lambda: tr.ViTImageProcessor(size=side),
                "resnet": lambda: tr.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875),
                "clip": lambda: tr.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side),
                "siglip": lambda: tr.SiglipImageProcessor(size=side),
            }
            if name in processors:
                processors[name]().save_pretrained(path)
            made[name] = str(path)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def tiny_open_clip(tmp_path_factory):
    """Name of a tiny model of open_clip and a file with its random weights."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("open_clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "faast-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    logging.disable(logging.WARNING)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(open_clip.create_model("faast-tiny").state_dict(), folder / "weights.pt")
    logging.disable(logging.NOTSET)
    return "faast-tiny", folder / "weights.pt"


def encode(opened, samples, batch_size=None):
    """Features of samples, the plain way."""
    size = batch_size or len(samples)
    chunks = [samples[i : i + size] for i in range(0, len(samples), size)]
    return torch.cat([opened.forward(opened.collate([opened.read(s) for s in chunk])) for chunk in chunks]).cpu()
