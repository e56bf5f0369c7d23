"""LoRA of a language model on pairs of texts, for comparison with FaastSeq2Seq in ``examples/translation.py``.

    python examples/benchmarks/lora.py --pairs FILE --test FILE [--rates 1e-3 2e-3 4e-3] [--epochs 1 3 10]

Adapters of rank 8 (``peft``) train with AdamW, warm-up and a cosine on the tokens of the answers, in batches of 16
pairs whose order is shuffled in each epoch. They see the same prompts, are judged on the same tokens and write with
the same loop as FaastSeq2Seq. ``--modules`` restricts them to a part of the model: its attention, its MLPs or its last
two blocks. Among several rates, the best after one epoch on the first half of the test pairs is
used; all figures are of the second half.
"""

import argparse
import contextlib
import math
import random
import sys
import time
from pathlib import Path

import peft
import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parent.parent))
from translation import read_pairs, split

from faast_sklearn import FaastSeq2Seq, backbone
from faast_sklearn.language.passes import LearningPass
from faast_sklearn.language.prompts import Prompts
from faast_sklearn.language.scoring import text_score

MODULES = ("all", "attention", "mlp", "last-2")


def adapters(lm, modules):
    """Put adapters beside linear layers of the model, and return it with them."""
    names = {name: part for name, part in lm.module.named_modules() if isinstance(part, torch.nn.Linear)}
    inner = [name for name, part in names.items() if part is not lm.head]
    blocks = {name: int(next((word for word in name.split(".") if word.isdigit()), -1)) for name in inner}
    chosen = {
        "all": inner,
        "attention": [name for name in inner if "attn" in name],
        "mlp": [name for name in inner if "mlp" in name],
        "last-2": [name for name in inner if blocks[name] >= len(lm.layers) - 2],
    }[modules]
    return peft.get_peft_model(lm.module, peft.LoraConfig(r=8, lora_alpha=16, target_modules=chosen))


def train(lm, exchanges, rate, epochs, trained, batch_size=16):
    """Minimise the negative log-likelihood of the answers' tokens."""
    passes = LearningPass(lm, target="residual")
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    n_steps = epochs * math.ceil(len(exchanges) / batch_size)

    def warm_cosine(step, warm=0.1):
        done = (step + 1) / n_steps
        return done / warm if done < warm else (1 + math.cos(math.pi * (done - warm) / (1 - warm))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine)
    order = list(range(len(exchanges)))
    for epoch in range(epochs):
        random.Random(epoch).shuffle(order)
        for start in range(0, len(order), batch_size):
            batch = passes.collate([exchanges[i] for i in order[start : start + batch_size]])
            inputs, where, targets, _ = batch.inputs
            inputs = {name: tensor.to(lm.device) for name, tensor in inputs.items()}
            where = where.to(lm.device)
            logits = states_to_logits(lm, inputs, where)
            optimizer.zero_grad()
            cross_entropy(logits, targets.to(lm.device)[where]).backward()
            optimizer.step()
            schedule.step()
    synchronize(lm.device)


def states_to_logits(lm, inputs, where):
    """Run the model; its output matrix sees the states in front of learnt tokens only."""
    hook = lm.head.register_forward_pre_hook(lambda _, args: (args[0][where][None],))
    try:
        return lm.module(**inputs, use_cache=False).logits[0].float()
    finally:
        hook.remove()


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_row(*cells):
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", metavar="FILE", required=True, help="tab-separated pairs to learn from")
    parser.add_argument("--test", metavar="FILE", required=True, help="pairs to test on")
    parser.add_argument("--n-train", type=int)
    parser.add_argument("--n-test", type=int, default=300)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--modules", nargs="+", choices=MODULES, default=["all"])
    parser.add_argument("--instruction", default="Translate to German: ")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--backbone", default="bundled:smollm2-135m")
    parser.add_argument("--device", help="such as cpu or cuda (default: the best there is)")
    args = parser.parse_args()

    X, y = split(read_pairs(args.pairs)[: args.n_train], args.instruction)
    X_test, y_test = split(read_pairs(args.test)[: args.n_test], args.instruction)
    half = len(X_test) // 2
    handle = backbone(args.backbone)
    lm = handle.open_language_model(args.device, "float32")
    exchanges = Prompts(lm).pairs(X, y)
    common = {"max_new_tokens": args.max_new_tokens, "device": args.device, "dtype": "float32"}
    frozen = FaastSeq2Seq(handle, memory_weight=0, **common)
    frozen.fit(X[:1], y[:1])

    @contextlib.contextmanager
    def trained(modules, rate, epochs):
        """Yield seconds and memory of training, with the trained adapters in the model."""
        torch.manual_seed(0)
        adapted = adapters(lm, modules)
        weights = [p for p in adapted.parameters() if p.requires_grad]
        if lm.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(lm.device)
        start = time.perf_counter()
        train(lm, exchanges, rate, epochs, weights)
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated(lm.device) / 2**20 if lm.device.type == "cuda" else math.nan
        try:
            yield seconds, peak, sum(p.nbytes for p in weights) / 2**20
        finally:
            adapted.unload()  # its layers were put into the model itself
            vars(lm.module).pop("peft_config", None)  # peft 0.18 leaves it there

    heads = ["adapters", "rate", "epochs", "NLL per token", "next-token accuracy, %", "BLEU", "chrF", "seconds"]
    print_row(*heads, "peak MiB", "MiB kept")
    print_row(*["---"] * 10)
    for modules in args.modules:
        losses = {}
        for rate in args.rates if len(args.rates) > 1 else []:
            with trained(modules, rate, 1):
                losses[rate] = frozen.token_scores(X_test[:half], y_test[:half])["nll"]
            print(f"{modules}, {rate:g}: {losses[rate]:.3f} nats on the first half", file=sys.stderr, flush=True)
        rate = min(losses, key=losses.get) if losses else args.rates[0]
        for epochs in args.epochs:
            with trained(modules, rate, epochs) as (seconds, peak, kept):
                scores = frozen.token_scores(X_test[half:], y_test[half:])
                written = frozen.predict(X_test[half:])
            bleu, chrf = (text_score(written, y_test[half:], metric) for metric in ("bleu", "chrf"))
            quality = f"{scores['nll']:.3f} | {100 * scores['accuracy']:.1f} | {bleu:.1f} | {chrf:.1f}"
            print_row(modules, f"{rate:g}", epochs, quality, f"{seconds:.1f}", f"{peak:.0f}", f"{kept:.1f}")


if __name__ == "__main__":
    main()
