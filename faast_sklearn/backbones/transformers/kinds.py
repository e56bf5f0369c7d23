"""``hf:NAME_OR_PATH``: image encoders, text encoders, language models and dual encoders of transformers."""

from typing import Any, Literal

from faast_sklearn.backbones.images import ImageTransform
from faast_sklearn.backbones.timm import TimmBackbone
from faast_sklearn.backbones.transformers.language_model import LanguageModel, refuse_feature_options
from faast_sklearn.backbones.transformers.loading import IncompleteWeightsError, Source
from faast_sklearn.backbones.transformers.published import load_published, published_settings
from faast_sklearn.backbones.transformers.sentence_transformers import (
    SentenceSettings,
    read_sentence_settings,
    settings_of,
)
from faast_sklearn.backbones.transformers.text import TextBackbone, token_limit
from faast_sklearn.backbones.transformers.vision import DualBackbone, TextTower, VisionBackbone, image_reader
from faast_sklearn.errors import BackboneError

__all__ = ["HuggingFaceBackbone"]


_DEFAULTS = {"pooling": "auto", "max_length": None, "truncation": "warn", "layer": None, "tower": "image"}
_HEADS = {"decoder": "AutoModelForCausalLM", "encoder-decoder": "AutoModelForSeq2SeqLM"}
_APPLICABLE = {
    "image": {"pooling", "layer"},
    "timm_wrapper": set(),
    "dual": {"tower", "max_length", "truncation"},
    "encoder": {"pooling", "max_length", "truncation", "layer"},
}


def _model_kind(config):
    """Classify a transformers model by how it gives features; refuse audio, video and vision-language models."""
    from transformers.models.auto import modeling_auto as auto

    kind, architecture = config.model_type, (config.architectures or [""])[0]
    if kind in auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "dual"
    if hasattr(config, "vision_config"):
        raise BackboneError(
            f"{kind!r} models generate text from images; use an image encoder or a dual encoder here. FaastSeq2Seq "
            "takes them for text."
        )
    if kind in auto.MODEL_FOR_CTC_MAPPING_NAMES or kind in auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        raise BackboneError(f"{kind!r} models read audio, which is not supported.")
    # Some image models also have a vocabulary (of visual tokens).
    image = kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    image = image and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if image or getattr(config, "vocab_size", None) is None:
        if image or hasattr(config, "num_channels") or hasattr(config, "image_size") or kind == "timm_wrapper":
            return "image"
        raise BackboneError(f"{kind!r} models are neither image nor text models.")
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    # BERT-like models are also registered as causal; a masked language model is an encoder unless is_decoder is set.
    masked = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    causal = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or architecture.endswith("ForCausalLM")
    return "decoder" if causal and not masked else "encoder"


def _language_head(config):
    """Name the class that loads a language model with its head, also if it reads images; None if it writes no text."""
    from transformers.models.auto import modeling_auto as auto

    if hasattr(config, "vision_config") and config.model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "AutoModelForImageTextToText"
    return _HEADS.get(_model_kind(config))


def _features_module(module, config):
    """Return the part of a transformers model that gives features, as ``AutoModel`` would load it.

    Raises
    ------
    BackboneError
        If there is no such part.
    """
    from transformers import MODEL_MAPPING

    if hasattr(module, "timm_model"):
        return module  # TimmBackbone runs the timm model inside
    try:
        wanted = MODEL_MAPPING[type(config)]
    except KeyError:
        wanted = ()
    if wanted and isinstance(module, wanted):
        return module
    inside = next((part for part in module.modules() if wanted and isinstance(part, wanted)), None)
    if inside is not None:
        return inside
    name = type(module).__name__
    if "For" not in name and not name.endswith("LMHeadModel"):  # no task head, e.g. one encoder of a pair
        return module
    base = module.base_model
    if base is module:
        named = " or ".join(cls.__name__ for cls in (wanted if isinstance(wanted, tuple) else (wanted,))) or "AutoModel"
        raise BackboneError(f"{name} gives the output of its task, not features; pass a {named} of transformers.")
    return base


class HuggingFaceBackbone:
    """Opens transformers models; the model's configuration decides which class is returned."""

    @classmethod
    def open(
        cls,
        name: str,
        *,
        device: Any,
        dtype: Any,
        pooling: str = "auto",
        max_length: int | None = None,
        truncation: Literal["warn", "error"] = "warn",
        layer: int | None = None,
        tower: Literal["image", "text"] = "image",
        revision: str | None = None,
        local_files_only: bool = False,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
        base_config: str | None = None,
    ) -> Any:
        """Open a model of the Hugging Face hub, its cache, or a local folder.

        Parameters
        ----------
        name : str
            Repository or folder. If the folder exists, nothing is looked up anywhere else.
        device : torch.device
        dtype : torch.dtype
        pooling : str, default="auto"
            Texts: "mean", "last", "cls", "max", "mean_sqrt_len", "weighted_mean"; "auto" is what a
            sentence-transformers folder asks for, else "last" for decoders and "mean" for encoders.
            Images: "cls", "mean", "pooler"; "auto" is the model's pooled output, or the class token
            where that output passes through a layer that only pretraining used.
        max_length : int, default=None
            Largest number of tokens read, special ones included; the model's own limit by default.
        truncation : {"warn", "error"}, default="warn"
        layer : int, default=None
            Hidden state to take, as in ``hidden_states``; the last one after the final norm by default.
        tower : {"image", "text"}, default="image"
            Of a dual encoder (CLIP, SigLIP): which inputs to encode. Both towers give projected features.
        revision : str, default=None
        local_files_only : bool, default=False
        gguf_file : str, default=None
            Name of a GGUF file in the folder or repository.
        trust_remote_code : bool, default=False
            Run Python code from the repository.
        base_config : str, default=None
            Only for a published FAAST checkpoint, whose base model gives the features: folder, ``config.json`` or
            name of the base model's configuration; by default the name in the checkpoint.

        Returns
        -------
        Backbone

        Raises
        ------
        BackboneError
            The model cannot be found or loaded; the message lists what was tried.
        TypeError
            An option does not apply to this kind of model.
        MissingDependencyError
        """
        source = Source(name, revision, local_files_only, gguf_file, trust_remote_code)
        published = _published(source, base_config, dtype)
        config = source.config() if published is None else published.config
        kind = _model_kind(config)
        options = {
            "pooling": pooling,
            "max_length": max_length,
            "truncation": truncation,
            "layer": layer,
            "tower": tower,
        }
        _check_options(kind, config, options)
        module = _opened(source, config, dtype) if published is None else published.module.base_model
        if kind == "encoder-decoder":
            module = module.get_encoder()
        module = module.to(device=device, dtype=dtype).eval().requires_grad_(False)
        settings = read_sentence_settings(source.fetch, device, dtype) if pooling == "auto" else None
        tokenizer = source.tokenizer if published is None else lambda: published.tokenizer
        return _wrap(module, config, tokenizer, source.image_processor, device, dtype, options, settings)

    @classmethod
    def open_language_model(
        cls,
        name: str,
        *,
        device: Any,
        dtype: Any,
        max_length: int | None = None,
        revision: Any = None,
        local_files_only: bool = False,
        gguf_file: Any = None,
        trust_remote_code: bool = False,
        base_config: Any = None,
        **options: Any,
    ) -> "LanguageModel":
        """Open a causal or encoder-decoder language model with its head.

        Parameters
        ----------
        name : str
        device : torch.device
        dtype : torch.dtype
        max_length : int, default=None
            Largest number of tokens of a sequence, prompt and answer together.
        revision, local_files_only, gguf_file, trust_remote_code, base_config
            As in :meth:`open`.
        **options
            Options for features; refused unless they have their default values.

        Returns
        -------
        LanguageModel

        Raises
        ------
        BackboneError
            Also if it is not a language model, or its output matrix cannot be used.
        TypeError, MissingDependencyError
        """
        refuse_feature_options(options, _DEFAULTS)
        source = Source(name, revision, local_files_only, gguf_file, trust_remote_code)
        published = _published(source, base_config, dtype)
        if published is None:
            config = source.config()
            head = _language_head(config)
            if head is None:
                raise BackboneError(
                    f"{source.name!r} is a {config.model_type!r} model, of kind {_model_kind(config)!r}, which writes "
                    "no text; this needs a causal or encoder-decoder language model such as 'bundled:smollm2-135m'."
                )
            module, tokenizer, readouts = source.model(config, dtype, head), source.tokenizer_if_any(), None
        else:
            module, tokenizer = published.module, published.tokenizer
            readouts = published.readouts.to(device, dtype)
        module = module.to(device=device, dtype=dtype).eval().requires_grad_(False)
        return LanguageModel(module, tokenizer, device, dtype, max_length=max_length, readouts=readouts)

    @classmethod
    def from_memory(
        cls,
        module: Any,
        preprocess: Any,
        *,
        device: Any,
        dtype: Any,
        settings: "SentenceSettings | None" = None,
        **options: Any,
    ) -> Any:
        """Wrap a transformers model that is already in memory.

        Parameters
        ----------
        module : transformers.PreTrainedModel
            On ``device``, in ``dtype``; a language-model head is left out of the pass.
        preprocess : tokenizer, image processor or processor
        device : torch.device
        dtype : torch.dtype
        settings : SentenceSettings, default=None
        **options
            ``pooling``, ``max_length``, ``truncation``, ``layer``, ``tower`` as in :meth:`open`.

        Returns
        -------
        Backbone
        """
        options = _DEFAULTS | options
        config = module.config
        kind = _model_kind(config)
        _check_options(kind, config, options)
        whole = kind == "encoder-decoder" and hasattr(module, "get_encoder")
        module = module.get_encoder() if whole else _features_module(module, config)
        name = type(module).__name__
        tokenizer = _part(preprocess, "tokenizer", _is_tokenizer, f"backbone=({name}, tokenizer)")
        processor = _part(preprocess, "image_processor", _is_image_processor, f"backbone=({name}, image_processor)")
        return _wrap(module, config, tokenizer, processor, device, dtype, options, settings)

    @classmethod
    def from_sentence_transformer(cls, model: Any, *, device: Any, dtype: Any, **options: Any) -> Any:
        """Wrap a ``SentenceTransformer`` that is already in memory, as if its saved folder were opened.

        Parameters
        ----------
        model : sentence_transformers.SentenceTransformer
            On ``device``, in ``dtype``.
        device : torch.device
        dtype : torch.dtype
        **options
            As in :meth:`from_memory`; an explicit ``pooling`` leaves out the steps after the model.

        Returns
        -------
        Backbone
        """
        reader = next(iter(model.children()), None)
        if not hasattr(model, "encode") or not hasattr(reader, "auto_model") or not hasattr(reader, "tokenizer"):
            raise BackboneError(
                f"{type(model).__name__} is not a SentenceTransformer of a text model with a tokenizer; pass one, or "
                "(model, tokenizer or image processor) of transformers."
            )
        settings = settings_of(model, dtype) if options.get("pooling", "auto") == "auto" else None
        return cls.from_memory(
            reader.auto_model, reader.tokenizer, device=device, dtype=dtype, settings=settings, **options
        )


def _opened(source, config, dtype):
    """Load the part of a model that gives features; a checkpoint of an encoder alone is loaded by its own class."""
    own = (config.architectures or [""])[0]
    try:
        return source.model(config, dtype)
    except IncompleteWeightsError:
        if not hasattr(source.transformers, own):
            raise
    return _features_module(source.model(config, dtype, own), config)


def _published(source, base_config, dtype):
    """Read a published FAAST checkpoint; None if the source is another model."""
    settings = published_settings(source)
    if settings is not None:
        return load_published(source, settings, base_config, dtype)
    # A source that does not exist is reported when its configuration is loaded.
    if base_config is not None and (source.gguf_file is not None or source.fetch("config.json") is not None):
        raise TypeError(f"base_config= is for published FAAST checkpoints, and {source.name!r} is not one.")
    return None


def _part(preprocess, name, fits, remedy):
    """Return a function that returns ``preprocess`` or its part ``name``, whichever fits, or raises BackboneError."""

    def part():
        for found in (preprocess, getattr(preprocess, name, None)):
            if found is not None and fits(found):
                return found
        what = f"{'an' if name[0] in 'aeiou' else 'a'} {name.replace('_', ' ')}"
        raise BackboneError(f"{type(preprocess).__name__} is not {what}, which this model needs; pass {remedy}.")

    return part


def _is_tokenizer(thing):
    return hasattr(thing, "convert_ids_to_tokens")


def _is_image_processor(thing):
    return (
        callable(thing) and not _is_tokenizer(thing) and not hasattr(thing, "tokenizer") and hasattr(thing, "to_dict")
    )


def _check_options(kind, config, options):
    allowed = _APPLICABLE.get(config.model_type, _APPLICABLE.get(kind, _APPLICABLE["encoder"]))
    wrong = [name for name, value in options.items() if name not in allowed and value != _DEFAULTS[name]]
    if wrong:
        raise TypeError(
            f"{wrong[0]}= does not apply to {kind} models; allowed: {', '.join(sorted(allowed)) or 'none'}."
        )
    if options["tower"] not in ("image", "text"):
        raise TypeError(f"tower={options['tower']!r} is neither 'image' nor 'text'.")


def _wrap(module, config, tokenizer, image_processor, device, dtype, options, settings):
    """Wrap an open module in the backbone that fits it; tokenizer and processor are called if they are needed."""
    kind = _model_kind(config)
    if kind == "image":
        reader = image_reader(image_processor())
        if hasattr(module, "timm_model") and isinstance(reader, ImageTransform):
            return TimmBackbone(module.timm_model, reader, device, dtype)
        return VisionBackbone(module, reader, device, dtype, options["pooling"], options["layer"])
    if kind == "dual":
        text_config = config.text_config if hasattr(config, "text_config") else config.get_text_config()
        text, missing = None, None
        try:
            tokens = tokenizer()
        except BackboneError as error:  # images need no tokenizer
            if options["tower"] == "text":
                raise
            missing = error
        if missing is None:
            limit = token_limit(module, tokens, text_config, options["max_length"])
            text = TextTower(
                module, tokens, device, dtype, pooling="last", limit=limit, truncation=options["truncation"]
            )
        if options["tower"] == "text":
            return text
        return DualBackbone(module, image_reader(image_processor()), device, dtype, text, missing)
    tokens = tokenizer()
    pooling = options["pooling"]
    if pooling == "auto":
        pooling = settings.pooling if settings else "last" if kind == "decoder" else "mean"
    settings = settings or SentenceSettings()
    return TextBackbone(
        module,
        tokens,
        device,
        dtype,
        pooling=pooling,
        limit=token_limit(module, tokens, config, options["max_length"], settings.max_length),
        truncation=options["truncation"],
        layer=options["layer"],
        head=settings.head,
        prompt=settings.prompt,
        pool_prompt=settings.include_prompt,
        lower=settings.lower,
        causal=kind == "decoder",
    )
