"""Random models of a few thousand weights, tokenizers of a few words, and features computed the plain way."""

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


def encode(opened, samples, batch_size=None):
    """Features of samples, the plain way."""
    size = batch_size or len(samples)
    chunks = [samples[i : i + size] for i in range(0, len(samples), size)]
    return torch.cat([opened.forward(opened.collate([opened.read(s) for s in chunk])) for chunk in chunks]).cpu()
