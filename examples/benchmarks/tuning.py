"""Full fine-tuning and LoRA of the same backbone, beside FaastClassifier, at 1 to 64 examples per class.

    python examples/benchmarks/tuning.py --photos DIR --intents TRAIN.tsv TEST.tsv [--draws 2] [--output tuning.md]

Photographs (``DIR/train`` and ``DIR/test``, one folder per class in each) go through the bundled EfficientNet-Lite0,
texts with a column ``intent`` from two tab-separated files through the bundled MiniLM, mean over real tokens. All
methods start from the same weights, see the same inputs and are tested on the same examples.

Fine-tuning trains all weights, LoRA (``peft``) rank 8 beside all linear layers and pointwise convolutions. Both train
a linear head too, which starts as logistic regression on the frozen features, and minimise cross-entropy with AdamW,
warm-up and a cosine. The head starts weak (C = 0.001): a head that fits the few examples leaves the backbone nothing
to learn. Batch norm keeps its statistics, which a few examples would make worse. Learning rates of the backbone are the
best of three *in hindsight*, chosen on the test data separately in each cell and for each method.

Each cell is accuracy in percent / seconds to train, means over draws. Seconds are those of the processor, all threads
together, so that other programs on the machine count little; on a GPU, of the clock. They begin with files or texts
and an open backbone, and are those of one rate, without the search.
"""

import argparse
import copy
import functools
import math
import time
import warnings
from pathlib import Path

import numpy as np
import peft
import torch
from auto_alpha import requests
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from faast_sklearn import FaastClassifier, backbone, image_folder

SHOTS = (1, 2, 5, 16, 64)
# Epochs at each of these, and learning rates.
IMAGES = {"epochs": (20, 20, 15, 8, 4), "fine-tuning": (1e-4, 3e-4, 1e-3), "LoRA": (1e-3, 2e-3, 4e-3), "head": 1e-4}
TEXTS = {"epochs": (20, 15, 10, 5, 3), "fine-tuning": (3e-5, 1e-4, 3e-4), "LoRA": (3e-4, 1e-3, 3e-3), "head": 1e-3}
SETTINGS = {"image": IMAGES, "text": TEXTS}


class Tuned(torch.nn.Module):
    """A trainable copy of a backbone, with LoRA or without, and a linear head."""

    def __init__(self, opened, lora):
        super().__init__()
        self.backbone = copy.copy(opened)
        self.module = self.backbone.module = copy.deepcopy(opened.module).requires_grad_(True)
        if lora:
            parts = [(n, m) for n, m in self.module.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
            names = [name for name, part in parts if getattr(part, "kernel_size", (1, 1)) == (1, 1)]
            config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=names)
            peft.inject_adapter_in_model(config, self.module)  # freezes all else

    def features(self, items):
        """Return what the backbone's own ``forward`` does, with gradients."""
        batch = self.backbone.collate(items)
        if self.backbone.modality == "image":
            return self.backbone.encode(self.backbone.transform(batch.inputs, batch.size, self.backbone.device))
        inputs = {name: tensor.to(self.backbone.device) for name, tensor in batch.inputs.items()}
        return self.backbone.head(self.backbone.encode(inputs))

    def forward(self, items):
        return self.head((self.features(items) - self.mean) / self.scale)

    def in_batches(self, run, items):
        self.module.eval()
        with torch.no_grad():
            return torch.cat([run(items[i : i + 32]) for i in range(0, len(items), 32)])

    def fit(self, samples, code, rate, head_rate, epochs):
        items = [self.backbone.read(sample) for sample in samples]
        code = torch.as_tensor(code, device=self.backbone.device)
        self.start_head(self.in_batches(self.features, items), code)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        groups = [{"params": trained, "lr": rate}, {"params": self.head.parameters(), "lr": head_rate}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
        n_batches = math.ceil(len(items) / (8 if len(items) < 100 else 16))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step / (n_batches * epochs)))
        self.module.train()
        for part in self.module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.eval()
        for _ in range(epochs):
            for rows in torch.randperm(len(items)).tensor_split(n_batches):
                optimizer.zero_grad()
                cross_entropy(self([items[row] for row in rows]), code[rows.to(code.device)]).backward()
                optimizer.step()
                schedule.step()
        return self

    def start_head(self, features, code):
        self.mean = features.mean(0)
        self.scale = (features - self.mean).square().mean().sqrt()
        probe = LogisticRegression(C=0.001, max_iter=300).fit(((features - self.mean) / self.scale).cpu(), code.cpu())
        self.head = torch.nn.Linear(*probe.coef_.T.shape).to(features.device)
        self.head.load_state_dict({"weight": torch.tensor(probe.coef_), "bias": torch.tensor(probe.intercept_)})

    def score(self, samples, code):
        found = self.in_batches(self, [self.backbone.read(sample) for sample in samples]).argmax(1)
        return np.mean(found.cpu().numpy() == code)


def warm_cosine(done, warm=0.1):
    return (done + 0.01) / (warm + 0.01) if done < warm else (1 + math.cos(math.pi * (done - warm) / (1 - warm))) / 2


def intents(files, n_classes):
    columns = [requests([name]) for name in files]
    chosen = np.random.default_rng(0).permutation(np.unique(columns[0][1]))[:n_classes]
    return [(texts[np.isin(labels, chosen)], labels[np.isin(labels, chosen)]) for texts, labels in columns]


def draw(samples, labels, n, seed):
    """Return up to ``n`` samples of each class, and their classes as numbers."""
    rng, (names, code) = np.random.default_rng(seed), np.unique(labels, return_inverse=True)
    rows = np.concatenate([rng.permutation(np.flatnonzero(code == k))[:n] for k in range(len(names))])
    return samples[rows].tolist(), code[rows]


def methods(handle, opened, shots):
    """Yield names of methods, their rates, and for each rate what learns from samples and their classes."""
    settings = SETTINGS[opened.modality]

    def closed_form(layers, samples, code):
        clf = FaastClassifier(handle, layers=layers, device=opened.device, dtype="float32").fit(samples, code)
        clf.coef_  # noqa: B018 - it solves when first asked
        return clf

    def by_gradient(lora, rate, samples, code):
        torch.manual_seed(0)
        return Tuned(opened, lora).fit(samples, code, rate, settings["head"], settings["epochs"][SHOTS.index(shots)])

    for layers in ("last", "auto"):
        yield f'layers="{layers}"', [None], [functools.partial(closed_form, layers)]
    for name in ("fine-tuning", "LoRA"):
        yield name, settings[name], [functools.partial(by_gradient, name == "LoRA", rate) for rate in settings[name]]


def judged(fit, train, test, device):
    # On a GPU the processor only waits, so there the clock on the wall counts.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    clf = fit(*train)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = clock() - start
    return 100 * clf.score(*test), seconds


def table(say, handle, train, test, args):
    opened = handle.open(args.device, "float32")
    for _, _, fits in methods(handle, opened, 1):
        fits[0](*draw(*train, 1, 0))  # what happens once in a process is not timed
    tested = draw(*test, args.tested, 0)
    say(f"\n{handle.spec}: {len(np.unique(train[1]))} classes, {len(tested[1])} test examples\n")
    say("| shots | " + " | ".join(name for name, _, _ in methods(handle, opened, 1)) + " | best rates |")
    say("|---|---|---|---|---|---|")
    for shots in args.shots:
        cells, best_rates = [], []
        draws = [draw(*train, shots, seed) for seed in range(args.draws if shots <= 5 else max(args.draws // 2, 1))]
        for _, rates, fits in methods(handle, opened, shots):
            means = [np.mean([judged(fit, one, tested, opened.device) for one in draws], 0) for fit in fits]
            best = int(np.argmax([accuracy for accuracy, _ in means]))
            cells.append(f"{means[best][0]:.1f} / {means[best][1]:.{2 if means[best][1] < 10 else 0}f}")
            best_rates += [f"{rates[best]:g}"] if rates[best] else []
        say(f"| {shots} | " + " | ".join(cells) + f" | {', '.join(best_rates)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", metavar="DIR", help="with train and test in it, one folder per class in each")
    parser.add_argument("--intents", nargs=2, metavar="FILE", help="to learn from, to test on")
    parser.add_argument("--shots", type=int, nargs="+", choices=SHOTS, default=SHOTS)
    parser.add_argument("--draws", type=int, default=2, help="draws up to 5 shots; half of it beyond")
    parser.add_argument("--tested", type=int, default=30, help="most test examples per class")
    parser.add_argument("--classes", type=int, default=30, help="so many intents, chosen at random")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="append the tables to this Markdown file, row by row")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    def say(line):
        print(line, flush=True)
        if args.output:
            with open(args.output, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    if args.photos:
        sets = [image_folder(Path(args.photos) / part) for part in ("train", "test")]
        table(say, backbone("bundled:efficientnet-lite0", image_size=args.image_size), *sets, args)
    if args.intents:
        table(say, backbone("bundled:minilm-l6"), *intents(args.intents, args.classes), args)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
