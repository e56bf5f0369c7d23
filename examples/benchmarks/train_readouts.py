"""Readouts of middle memories, trained on docstrings: perplexity of held-out text beside the output memory alone.

    python examples/benchmarks/train_readouts.py [--device cuda] [--steps N] [--lr LR ...] [--alpha ALPHA ...]
    python examples/benchmarks/train_readouts.py --small

The model is SmolLM2-135M, from a package. Readouts are trained on the docstrings of SciPy and NumPy; held out are those
of scikit-learn, and the chapters of the Python language reference that ``help()`` shows. All of these are installed
anyway, and nothing is downloaded.

Held-out text is read as in training: a stretch is learnt, and the perplexity is that of the windows after it, which are
read one by one; then everything is forgotten. Rows:

* the frozen model;
* the output memory alone (the paper's formula), with the alpha and the weight that are best *on that text*;
* with the trained middle memories too, which have learnt the stretch before;
* the same readouts, with memories of a stretch of the training text. Training on docstrings helps by itself; this row
  has that gain without what the stretch before teaches.

The last column has the mean over stretches of what is gained beside the output memory alone, and its standard error.
The weight of the output memory in training is the best one for eight stretches of the training text. Several ``--lr``
and ``--alpha`` train one set of readouts each.
"""

import argparse
import ast
import importlib.util
import inspect
import itertools
import math
import pathlib
import pydoc_data.topics
import time

import numpy as np
import torch
from tqdm.auto import tqdm

from faast_sklearn.backbones.base import frozen
from faast_sklearn.language import FastWeightLM, train_readouts
from faast_sklearn.language.solving import key_spectrum
from faast_sklearn.language.tokens import hidden_states, next_token_log_probabilities
from faast_sklearn.solvers.filters import solve_pinv

TRAINED_ON = ("scipy", "numpy")
ALPHAS = (0.8, 1.0, 1.2)
WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)  # 0 is the frozen model
SEED = 0


def main(argv=None):
    args = parse_arguments(argv)
    most = 60 if args.small else None  # files
    trained_on = [text for name in TRAINED_ON for text in docstrings(name, most)]
    bare = FastWeightLM(args.backbone, target="embedding", device=args.device, dtype="float32")
    text = tokens(bare, trained_on)
    held_out = {
        "scikit-learn": tokens(bare, docstrings("sklearn", most)),
        "Python's reference": tokens(bare, chapters()),
    }
    print(f"{len(text):,} tokens to train on, {bare.device}\n")
    at_best = output_losses(bare, stretches(text, args, 8, args.learnt[0])).mean(0)
    trainings = [train(bare, text, at_best, *pair, args) for pair in itertools.product(args.lr, args.alpha)]
    print(
        "\n| held-out text | tokens learnt | memories | perplexity | nats per token | less than the output memory's |"
    )
    print("|---|---|---|---|---|---|")
    for name, n_learnt in itertools.product(held_out, args.learnt):
        compare(name, held_out[name], text, bare, trainings, n_learnt, args)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="bundled:smollm2-135m", help="decoder (default: %(default)s)")
    parser.add_argument("--device", help="such as cpu or cuda (default: the best there is)")
    parser.add_argument("--folder", metavar="DIR", help="where to write readouts, and the state of their training")
    parser.add_argument("--layers", type=int, default=4, help="middle memories (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="of training (default: %(default)s)")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3], help="learning rates (default: 0.001)")
    parser.add_argument("--alpha", type=float, nargs="+", default=[1.0], help="of the truncation (default: 1)")
    parser.add_argument("--window", type=int, default=256, help="tokens read at once (default: %(default)s)")
    parser.add_argument(
        "--learnt",
        type=int,
        nargs="+",
        default=[8, 64],
        help="windows learnt; the first in training too (default: 8 64)",
    )
    parser.add_argument("--scored", type=int, default=8, help="windows after them that are scored (default: 8)")
    parser.add_argument("--stretches", type=int, default=16, help="of each held-out text (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="a few steps, to see that all of it runs")
    args = parser.parse_args(argv)
    if args.small:
        args.steps, args.window, args.learnt, args.scored, args.stretches, args.layers = 4, 32, [2], 2, 2, 1
    return args


def train(bare, text, at_best, lr, alpha, args):
    """Train readouts, say how, and return the model with them and a name for the table."""
    row = at_best[np.argmin(np.abs(np.array(ALPHAS) - alpha)), 1:]
    weight = WEIGHTS[1 + int(row.argmin())]
    start = time.perf_counter()
    lm, losses = train_readouts(
        bare.model,
        [text],
        folder=args.folder and pathlib.Path(args.folder) / f"lr{lr:g}-alpha{alpha:g}",
        n_layers=args.layers,
        steps=args.steps,
        lr=lr,
        window=args.window,
        n_learnt=args.learnt[0],
        n_scored=args.scored,
        alpha=alpha,
        memory_weight=weight,
        random_state=SEED,
        verbose=1,
    )
    tenth, seconds = max(1, len(losses) // 10), time.perf_counter() - start
    print(
        f"{args.layers} memories, {args.steps} steps of {args.learnt[0]} + {args.scored} windows of {args.window} "
        f"tokens, lr {lr:g}, alpha {alpha:g}, weight of the output memory {weight:g}: {seconds:.0f} s, loss "
        f"{losses[:tenth].mean():.3f} to {losses[-tenth:].mean():.3f}",
        flush=True,
    )
    return lm, f"lr {lr:g}, alpha {alpha:g}, weight {weight:g}"


def docstrings(package, most=None):
    """Return the docstrings of a package of more than a sentence, in the order of its files: all, or so many."""
    root = pathlib.Path(importlib.util.find_spec(package).origin).parent
    found = []
    for file in sorted(root.rglob("*.py"))[:most]:
        if "tests" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = inspect.cleandoc(ast.get_docstring(node) or "")
                found += [text] if len(text) > 200 else []
    return list(dict.fromkeys(found))


def chapters():
    """Return the chapters of Python's language reference, in the order of their names."""
    return [text for _, text in sorted(pydoc_data.topics.topics.items())]


def tokens(lm, texts):
    """Return the tokens of texts, each followed by the token that ends a text."""
    end = [lm.model.eos_ids[0]]
    found = [lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + end for text in texts]
    return torch.tensor([token for row in found for token in row])


def stretches(text, args, n, n_learnt):
    """Return pairs of what is learnt and what is scored after it: windows of evenly spaced stretches of a text."""
    size = (n_learnt + args.scored) * args.window
    starts = np.linspace(0, len(text) - size, n).astype(int)
    rows = [text[start : start + size].reshape(-1, args.window) for start in starts]
    return [(part[:n_learnt], part[n_learnt:]) for part in rows]


def compare(name, held_out, text, bare, trainings, n_learnt, args):
    """Print the rows of a held-out text."""
    pairs = stretches(held_out, args, args.stretches, n_learnt)
    elsewhere = [learnt for learnt, _ in stretches(text, args, args.stretches, n_learnt)]
    unrelated = [(learnt, scored) for learnt, (_, scored) in zip(elsewhere, pairs, strict=True)]
    output = output_losses(bare, pairs)
    mean = output[..., 1:].mean(0)
    i, k = np.unravel_index(mean.argmin(), mean.shape)
    alone = output[:, i, k + 1]
    rows = {"none": output[:, 0, 0], f"output alone, alpha {ALPHAS[i]:g}, weight {WEIGHTS[k + 1]:g}": alone}
    for lm, settings in trainings:
        rows[f"output and middle, {settings}"] = losses_of(lm, pairs)
        rows[f"the same, of training text, {settings}"] = losses_of(lm, unrelated)
    for memories, losses in rows.items():
        mean, gain = losses.mean(), alone - losses
        error = gain.std(ddof=1) / math.sqrt(len(gain))
        less = "" if losses is alone else f"{gain.mean():.3f} ± {error:.3f}"
        shown = (name, f"{n_learnt * args.window:,}", memories, f"{math.exp(mean):.2f}", f"{mean:.3f}", less)
        print("| " + " | ".join(shown) + " |", flush=True)


def learn(lm, windows):
    """Forget everything and learn these windows."""
    lm.reset_projection()
    for part in windows.split(16):
        lm.learn(input_ids=part)


def output_losses(lm, pairs):
    """Return nats per scored token of each stretch for each of ALPHAS and WEIGHTS, in an array of that shape."""
    found = np.zeros((len(pairs), len(ALPHAS), len(WEIGHTS)))
    for row, (learnt, scored) in zip(found, tqdm(pairs, desc="output memory", leave=False), strict=True):
        learn(lm, learnt)
        memory, inputs = lm.moments.output.memory, scored.to(lm.device)
        spectrum, where = key_spectrum(memory), torch.ones_like(inputs, dtype=torch.bool)
        where[:, -1] = False
        # The output memory acts behind all blocks, so that one pass serves all of its settings.
        states, targets = hidden_states(lm.model, {"input_ids": inputs}, where, "embedding")[0], inputs[:, 1:].flatten()
        for i, alpha in enumerate(ALPHAS):
            read = states @ solve_pinv(spectrum, memory.cross, alpha, memory.weight).weights.to(states)
            for k, weight in enumerate(WEIGHTS):
                with frozen(lm.model.module):
                    entering = lm.model.normalise((1 - weight) * states + weight * read)
                row[i, k] = -float(next_token_log_probabilities(lm.model, entering.clone(), targets)[0].mean())
    return found


def losses_of(lm, pairs):
    """Return nats per scored token of each stretch, with all memories."""
    found = []
    for learnt, scored in tqdm(pairs, desc="all memories", leave=False):
        learn(lm, learnt)
        logits, targets = lm(input_ids=scored.to(lm.device), use_cache=False).logits[:, :-1], scored[:, 1:]
        found.append(float(torch.nn.functional.cross_entropy(logits.float().mT, targets.to(lm.device))))
    return np.array(found)


if __name__ == "__main__":
    main()
