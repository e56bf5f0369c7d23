import gc
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
from helpers.tiny import tiny_model, tiny_tokenizer


def pytest_collection_finish():
    """Spare full garbage collections a look at all that importing and collecting have made."""
    gc.collect()
    gc.freeze()


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
