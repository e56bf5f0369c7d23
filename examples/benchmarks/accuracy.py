"""Accuracy, log-loss and seconds at every number of shots, beside the usual alternatives on the same features.

    python examples/benchmarks/accuracy.py [--photos DIR] [--draws 6] [--output docs/accuracy.md]

The data are those of ``auto_alpha.py``. Logistic regression is given the best of seven C *in hindsight*, chosen on the
test data separately in each cell and for accuracy and log-loss; its seconds are those of all seven fits, without the
cross-validation that an honest choice would take. The SGD probe is scikit-learn's, twenty epochs on standardised
features.
"""

import argparse
import itertools
import time
import warnings

import numpy as np
from auto_alpha import CS, SHOTS, datasets, logistic
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from faast_sklearn import FaastClassifier


def methods(shots):
    yield "paper", FaastClassifier(solver="pinv", alpha=0.8, normalize=True, fit_intercept=False)
    yield "auto", FaastClassifier()
    yield "class mean", NearestCentroid()
    yield "kNN", KNeighborsClassifier(n_neighbors=min(5, shots or 5))
    yield "SGD probe", make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", max_iter=20, tol=None))


def judged(clf, X, y, X_test, y_test):
    start = time.perf_counter()
    clf.fit(X, y)
    getattr(clf, "coef_", None)  # FaastClassifier solves when first asked
    seconds = time.perf_counter() - start
    accuracy = 100 * clf.score(X_test, y_test)
    if isinstance(clf, NearestCentroid) and not np.all(clf.within_class_std_dev_ > 0):
        return accuracy, np.nan, seconds  # its probabilities divide distances by a spread that is zero here
    p = np.clip(clf.predict_proba(X_test), 1e-15, 1)
    return accuracy, log_loss(y_test, p / p.sum(1, keepdims=True), labels=clf.classes_), seconds


def cell(X, y, n_test, shots, draws):
    found = {}
    for seed in range(draws):
        X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=n_test, stratify=y, random_state=seed)
        if shots is not None:
            rng = np.random.default_rng(seed)
            chosen = [rng.permutation(np.flatnonzero(y_train == label))[:shots] for label in np.unique(y)]
            X_train, y_train = X_train[np.concatenate(chosen)], y_train[np.concatenate(chosen)]
        for name, clf in methods(shots):
            found.setdefault(name, []).append(judged(clf, X_train, y_train, X_test, y_test))
        start = time.perf_counter()
        path = logistic(X_train, y_train, X_test, y_test)
        seconds = time.perf_counter() - start
        found.setdefault("best-C logistic", []).append([(*scores, seconds) for scores in path])
    result = {name: np.mean(values, 0) for name, values in found.items()}
    path = result["best-C logistic"]
    result["best-C logistic"] = (path[:, 0].max(), path[:, 1].min(), path[:, 2].mean())
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="an image folder, one folder per class")
    parser.add_argument("--draws", type=int, default=6, help="draws up to 16 shots; a third of it beyond")
    parser.add_argument("--output", help="append the tables to this Markdown file")
    parser.add_argument("--cache", help="a directory to keep features in, for another run")
    parser.add_argument("--sets", type=int, help="only this many data sets; the first is pixels of digits")
    args = parser.parse_args()
    lines = []

    def say(line=""):
        print(line, flush=True)
        lines.append(line)

    gaps = []
    for name, X, y, n_test in itertools.islice(datasets(args.photos, args.cache), args.sets):
        names = [n for n, _ in methods(1)] + ["best-C logistic"]
        say(f"\n{name}: {X.shape[0]} x {X.shape[1]}, {len(np.unique(y))} classes, {len(CS)} values of C\n")
        say("| shots | " + " | ".join(names) + " |")
        say("|---" * (len(names) + 1) + "|")
        smallest = np.unique(y, return_counts=True)[1].min() * (1 - n_test / len(y))
        for shots in SHOTS:
            if shots is not None and shots > smallest:
                continue
            draws = args.draws if shots is not None and shots <= 16 else max(args.draws // 3, 1)
            r = cell(X, y, n_test, shots, draws)
            shown = [f"{r[n][0]:.1f} / {r[n][1]:.3f} / {r[n][2]:.2g}".replace(" / nan", " / -") for n in names]
            say(f"| {shots or 'all'} | " + " | ".join(shown) + " |")
            best = max(r["best-C logistic"][0], r["SGD probe"][0])
            gaps.append(r["auto"][0] - best)
    say("\n| accuracy less the better of best-C logistic and SGD probe | auto |")
    say("|---|---|")
    say(f"| mean over cells | {np.mean(gaps):+.2f} |")
    say(f"| worst cell | {np.min(gaps):+.2f} |")
    if args.output:
        with open(args.output, "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
