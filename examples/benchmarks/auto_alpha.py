"""Accuracy of ``alpha="auto"`` at every number of shots, beside the best alpha and C in hindsight and the paper.

    python examples/benchmarks/auto_alpha.py [--photos DIR] [--draws 10] [--output docs/auto_alpha.md]

Data: scikit-learn's digits, as pixels and through the bundled EfficientNet-Lite0; ``--photos DIR``, an image folder,
through the same; first sentences of the docstrings of installed packages through the bundled MiniLM, the package being
the class. "Best" means best in hindsight: of thirteen alphas and seven C, the one whose mean accuracy on the test data
over all draws is highest, separately in each cell.
"""

import argparse
import ast
import csv
import importlib.util
import random
import re
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from faast_sklearn import BackboneFeatures, FaastClassifier, image_folder

ALPHAS = np.logspace(-3, 3, 13)
CS = np.logspace(-2, 4, 7)
SHOTS = (1, 2, 5, 16, 64, 256, None)
PACKAGES = ("numpy", "scipy", "sklearn", "torch", "transformers", "timm", "sympy", "networkx")


def docstrings(per_package=700):
    rng = random.Random(0)
    texts, labels = [], []
    names = re.compile(r"\b(" + "|".join(PACKAGES) + r")\b", re.IGNORECASE)
    for package in PACKAGES:
        found = set()
        for file in sorted(Path(importlib.util.find_spec(package).origin).parent.rglob("*.py")):
            if "test" in str(file):
                continue
            try:
                tree = ast.parse(file.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    first = re.split(r"\n\s*\n", (ast.get_docstring(node) or "").strip())[0].replace("\n", " ")
                    if 20 < len(first) < 300:
                        found.add(names.sub("it", first))
        chosen = sorted(found)
        rng.shuffle(chosen)
        texts += chosen[:per_package]
        labels += [package] * len(chosen[:per_package])
    return texts, np.array(labels)


def requests(files):
    """Return texts and intents, two arrays, from tab-separated files with the columns ``text`` and ``intent``."""
    rows = []
    for name in files:
        with open(name, encoding="utf-8", newline="") as file:
            rows += csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return tuple(np.array([row[column] for row in rows]) for column in ("text", "intent"))


def grey(images):
    """Return grey images as others are: uint8 with three channels."""
    return np.repeat(images.astype(np.uint8)[..., None], 3, axis=3)


def datasets(photos, cache=None):
    digits = load_digits()
    images = grey(digits.images / 16 * 255)
    yield "digits, pixels", digits.data.astype(np.float32), digits.target, 600
    vision = BackboneFeatures("bundled:efficientnet-lite0", cache=cache, verbose=1)
    yield "digits, EfficientNet", vision.fit(images).transform(images), digits.target, 600
    texts, labels = docstrings()
    yield (
        "docstrings, MiniLM",
        BackboneFeatures("bundled:minilm-l6", cache=cache, verbose=1).fit(texts).transform(texts),
        labels,
        2000,
    )
    if photos:
        paths, labels = image_folder(photos)
        yield "photos, EfficientNet", vision.fit(paths).transform(paths), labels, 600


def spanned(X):
    """Return centred features of unit mean square in coordinates of the rows' span, and a map for other features."""
    mean = X.mean(0)
    # The penalty keeps the weights in the span of the rows, so that rotating into it changes nothing but time.
    basis = np.linalg.svd(X - mean, full_matrices=False)[2].T if len(X) < X.shape[1] else np.eye(X.shape[1])
    scale = np.sqrt(((X - mean) ** 2).sum(1).mean())

    def into(rows):
        return (rows - mean) @ basis / scale

    return into(X), into


def logistic(X, y, X_test, y_test):
    """Accuracy and log-loss for each C, on features centred and scaled to unit mean square."""
    X, into = spanned(X)
    X_test = into(X_test)
    result = []
    for C in CS:
        clf = LogisticRegression(C=C, max_iter=300).fit(X, y)
        result.append(scores(clf, X_test, y_test))
    return result


def scores(clf, X, y):
    return 100 * clf.score(X, y), log_loss(y, np.clip(clf.predict_proba(X), 1e-15, 1), labels=clf.classes_)


def cell(X, y, n_test, shots, draws):
    auto, fixed, best_c, paper, seconds, alphas = [], [], [], [], [], []
    for seed in range(draws):
        X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=n_test, stratify=y, random_state=seed)
        if shots is not None:
            rng = np.random.default_rng(seed)
            chosen = [rng.permutation(np.flatnonzero(y_train == label))[:shots] for label in np.unique(y)]
            X_train, y_train = X_train[np.concatenate(chosen)], y_train[np.concatenate(chosen)]
        start = time.perf_counter()
        clf = FaastClassifier().fit(X_train, y_train)
        alphas.append(clf.alpha_)
        seconds.append(time.perf_counter() - start)
        auto.append(scores(clf, X_test, y_test))
        fixed.append([scores(FaastClassifier(alpha=a).fit(X_train, y_train), X_test, y_test) for a in ALPHAS])
        best_c.append(logistic(X_train, y_train, X_test, y_test))
        clf = FaastClassifier(solver="pinv", alpha=0.8, normalize=True, fit_intercept=False).fit(X_train, y_train)
        paper.append(scores(clf, X_test, y_test))
    auto, paper = np.mean(auto, 0), np.mean(paper, 0)
    fixed, best_c = np.mean(fixed, 0), np.mean(best_c, 0)
    return {
        "auto": auto,
        "fixed": (fixed[:, 0].max(), fixed[:, 1].min()),
        "logistic": (best_c[:, 0].max(), best_c[:, 1].min()),
        "paper": paper,
        "alpha": float(np.exp(np.mean(np.log(alphas)))),
        "milliseconds": 1000 * float(np.median(seconds)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="an image folder, one folder per class")
    parser.add_argument("--draws", type=int, default=10, help="draws up to 16 shots; a third of it beyond")
    parser.add_argument("--output", help="append the tables to this Markdown file")
    args = parser.parse_args()
    lines = []

    def say(line=""):
        print(line, flush=True)
        lines.append(line)

    gaps = []
    for name, X, y, n_test in datasets(args.photos):
        say(f"\n{name}: {X.shape[0]} x {X.shape[1]}, {len(np.unique(y))} classes\n")
        say("| shots | auto | best fixed alpha | best-C logistic | paper | auto's alpha | ms |")
        say("|---|---|---|---|---|---|---|")
        smallest = np.unique(y, return_counts=True)[1].min() * (1 - n_test / len(y))
        for shots in SHOTS:
            if shots is not None and shots > smallest:
                continue
            draws = args.draws if shots is not None and shots <= 16 else max(args.draws // 3, 1)
            r = cell(X, y, n_test, shots, draws)
            shown = " | ".join(f"{r[k][0]:.1f} ({r[k][1]:.3f})" for k in ("auto", "fixed", "logistic", "paper"))
            say(f"| {shots or 'all'} | {shown} | {r['alpha']:.2g} | {r['milliseconds']:.0f} |")
            gaps.append([r["auto"][0] - r[k][0] for k in ("fixed", "logistic", "paper")])
    gaps = np.array(gaps)
    say("\n| auto minus … | best fixed alpha | best-C logistic | paper |")
    say("|---|---|---|---|")
    say("| mean over cells | " + " | ".join(f"{v:+.2f}" for v in gaps.mean(0)) + " |")
    say("| worst cell | " + " | ".join(f"{v:+.2f}" for v in gaps.min(0)) + " |")
    if args.output:
        with open(args.output, "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
