"""What a language model's fast weights cost beside running the model, as ratios within one run.

* ``fit`` against the bare forward pass, logits included, over the same batches with the same padding; and the solve.
* ``generate`` with fast weights attached, with fast weights folded into the checkpoint, and ``predict`` from strings to
  strings, against the bare model's ``generate``: the same prompts, the same number of tokens.
* Memory beyond the model at its peak while N and 4 N pairs are learnt, each in a process of its own (Linux).

All competitors run in turn in each repeat, so that a machine whose speed drifts slows all of them; figures are medians,
and ratios are medians of the repeats' ratios. Without ``--pairs``: made-up pairs of 5 to 60 words.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import torch
from timing import in_turn, ratio

from faast_sklearn import FaastSeq2Seq, backbone
from faast_sklearn.backbones.transformers.verbosity import quiet_transformers
from faast_sklearn.language.padding import pad_rows
from faast_sklearn.language.passes import LearningPass
from faast_sklearn.language.prompts import Prompts


def main():
    args = parse_arguments()
    if args.memory_of:
        print(json.dumps(peak_memory(args)))
        return
    handle = backbone(args.backbone)
    lm = handle.open_language_model(args.device)
    X, y = load_pairs(args.pairs, args.n)
    print(f"{args.n} pairs, batches of {args.batch_size}, on {lm.device}, {torch.get_num_threads()} threads\n")
    print("| | seconds | against | ratio |\n|---|---|---|---|")
    learnt = learning(handle, lm, X, y, args)
    generation(lm, learnt, X, args)
    if pathlib.Path("/proc/self/clear_refs").exists():
        memory(args)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", metavar="FILE", help="tab-separated pairs under headings (default: made up)")
    parser.add_argument("--n", type=int, default=256, help="pairs to learn (default: 256)")
    parser.add_argument("--n-generate", type=int, default=32, help="prompts to answer (default: 32)")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens of each answer (default: 32)")
    parser.add_argument("--batch-size", type=int, default=16, help="of every competitor (default: 16)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--backbone", default="bundled:smollm2-135m", help="decoder (default: %(default)s)")
    parser.add_argument("--device", help="such as cpu or cuda (default: the best there is)")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)  # how the script calls itself
    return parser.parse_args()


def load_pairs(file, n):
    if file is None:
        rng = np.random.default_rng(0)
        words = ["time", "year", "people", "way", "day", "thing", "child", "world", "school", "family", "group"]
        pairs = [[" ".join(rng.choice(words, rng.integers(5, 60))) for _ in range(2)] for _ in range(n)]
    else:
        lines = pathlib.Path(file).read_text(encoding="utf-8").splitlines()[1:]
        pairs = [line.split("\t")[:2] for line in lines if line.strip()]
    # If more are wanted than there are, they repeat.
    return tuple(zip(*(pairs[i % len(pairs)] for i in range(n)), strict=True))


def learning(handle, lm, X, y, args):
    """Print what ``fit`` and the solve cost; return a fitted estimator."""
    # Texts of like length share a batch, as in fit; otherwise padding alone would decide.
    exchanges = sorted(Prompts(lm).pairs(X, y), key=lambda one: -len(one.prompt) - len(one.answer))
    collate = LearningPass(lm, "residual").collate
    starts = range(0, len(exchanges), args.batch_size)
    batches = [collate(exchanges[start : start + args.batch_size]).inputs[0] for start in starts]

    def bare():
        with torch.inference_mode():
            for batch in batches:
                inputs = {name: tensor.to(lm.device) for name, tensor in batch.items()}
                logits = lm.module(**inputs, use_cache=False).logits
        logits[0, 0, 0].item()  # waits for the device

    fitted = []

    def fit():
        fitted[:] = [FaastSeq2Seq(handle, batch_size=args.batch_size, device=args.device).fit(X, y)]

    def solve():
        fitted[0].alpha_  # noqa: B018

    seconds = in_turn({"bare": bare, "fit": fit, "solve": solve}, args.repeats)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    name = f"bare forward pass with logits, {tokens} tokens"
    row(name, seconds["bare"])
    row("`fit`", seconds["fit"], seconds["bare"], "at most 1.15")
    row("the solve, when first asked for", seconds["solve"], seconds["bare"])
    return fitted[0]


def generation(lm, learnt, X, args):
    """Print what writing costs with fast weights."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    X = X[: args.n_generate]
    length = {"min_new_tokens": args.new_tokens, "max_new_tokens": args.new_tokens}
    prompts = sorted((one.prompt for one in Prompts(lm).questions(X, room=args.new_tokens)), key=len, reverse=True)
    side = "right" if lm.encoder_decoder else "left"
    starts = range(0, len(prompts), args.batch_size)
    batches = [pad_rows(prompts[start : start + args.batch_size], lm.pad_id, side) for start in starts]

    def write(model):
        for ids, mask in batches:
            with torch.inference_mode():
                model.generate(
                    input_ids=ids.to(lm.device),
                    attention_mask=mask.to(lm.device),
                    do_sample=False,
                    num_beams=1,
                    pad_token_id=lm.pad_id,
                    eos_token_id=list(lm.eos_ids),
                    **length,
                )

    def attached():
        with learnt.attached() as model:
            write(model)

    learnt.set_params(max_new_tokens=args.new_tokens)
    lm.module.generation_config.min_new_tokens = args.new_tokens
    runs = {"bare": lambda: write(lm.module), "attached": attached, "predict": lambda: learnt.predict(X)}
    with tempfile.TemporaryDirectory() as folder:
        learnt.save_folded(folder)
        opener = AutoModelForSeq2SeqLM if lm.encoder_decoder else AutoModelForCausalLM
        with quiet_transformers():
            folded = opener.from_pretrained(folder, dtype=lm.dtype).to(lm.device).eval()
        seconds = in_turn({**runs, "folded": lambda: write(folded)}, args.repeats)
    written = len(X) * args.new_tokens
    row(f"bare `generate`, {written} tokens", seconds["bare"])
    row("`generate`, fast weights attached", seconds["attached"], seconds["bare"], "at most 1.03")
    row("`generate`, fast weights folded", seconds["folded"], seconds["bare"], "1.0")
    row("`predict`, from strings to strings", seconds["predict"], seconds["bare"])


def row(name, seconds, beside=None, floor=None):
    cells = ["", ""]
    if beside is not None:
        cells = ["wanted: " + floor if floor else "", f"{ratio(seconds, beside):.3f}"]
    print(f"| {name} | {statistics.median(seconds):.3f} | {cells[0]} | {cells[1]} |", flush=True)


def memory(args):
    """Print the peak of memory beyond the model, for N and for 4 N pairs."""
    print("\n| pairs | tokens learnt | peak beyond the model: `fit`, MB | and the solve, MB | statistics 24 d², MB |")
    print("|---|---|---|---|---|")
    for n in (args.n, 4 * args.n):
        given = sys.argv[1:]
        command = [sys.executable, __file__, *given, "--memory-of", str(n)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(f"| {n} | {found['tokens']} | {found['fit']:.0f} | {found['solve']:.0f} | {found['statistics']:.0f} |")


def peak_memory(args):
    """Measure this process: peak resident memory minus that with the model open and warm."""
    handle = backbone(args.backbone)
    lm = handle.open_language_model(args.device)
    X, y = load_pairs(args.pairs, args.n)
    longest = max(range(len(X)), key=lambda i: len(X[i]) + len(y[i]))
    make = {"batch_size": args.batch_size, "device": args.device}
    # A warm-up, since the memory of libraries and thread pools is not to be measured.
    FaastSeq2Seq(handle, **make).fit([X[longest]], [y[longest]])
    copies = args.memory_of // args.n
    X, y = X * copies, y * copies  # the same texts again, so that no batch is larger
    before = resident("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    seq2seq = FaastSeq2Seq(handle, **make).fit(X, y)
    fit = resident("VmHWM") - before
    seq2seq.alpha_  # noqa: B018
    solve = resident("VmHWM") - before
    d = lm.head.in_features
    return {"tokens": seq2seq.n_tokens_seen_, "fit": fit, "solve": solve, "statistics": 24 * d * d / 2**20}


def resident(what):
    status = pathlib.Path(f"/proc/{os.getpid()}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
