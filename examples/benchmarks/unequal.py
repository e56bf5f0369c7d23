"""Accuracy, balanced accuracy and log-loss where classes have unequal numbers of examples, and with unequal weights.

    python examples/benchmarks/unequal.py [--photos DIR] [--intents FILE ...] [--draws 12] [--output docs/accuracy.md]

The data are those of ``auto_alpha.py``, and texts with a column ``intent`` from tab-separated files. In each draw
classes get the numbers of examples of a row at random; up to 100 of their other examples are test data, weighted so
that classes have the same shares as in training. Four tables: classes of unequal size beside the usual alternatives;
the same with inner layers, on the data of ``accuracy.py``; how good the probabilities are, beside logistic regression
and scikit-learn's calibration, which refits; and what unequal weights cost.
"""

import argparse
import warnings

import numpy as np
from accuracy import last_layer, read, samples, scaled
from auto_alpha import CS, datasets, requests, spanned
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV

from faast_sklearn import BackboneFeatures, FaastClassifier

FEW = [(3, 1), (12, 3), (40, 4), (8, 4, 2, 1), (20, 5, 5, 2), (200, 50, 20, 10)]
LONG = [(60, 40, 24, 16, 10, 6, 4, 3, 2, 1), (90, 70, 50, 40, 30, 20, 12, 8, 5, 3)]
TAIL = tuple(np.round(np.geomspace(100, 1, 150)).astype(int).tolist())
EQUAL = [5, 16, 64]
MOST_TESTED = 100
TITLES = {
    "unequal": "Classes of unequal size",
    "layers": "Classes of unequal size, with inner layers",
    "calibration": "Probabilities: log-loss / expected calibration error in percent",
    "weights": "Weights: accuracy with 300 examples",
}


def intents(files, cache):
    texts, labels = requests(files)
    features = BackboneFeatures("bundled:minilm-l6", cache=cache, verbose=1).fit(texts)
    return "intents, MiniLM", features.transform(texts), labels, 0


def draw(X, y, counts, seed):
    """Return examples to learn from, others to test on, and weights of the latter; None if classes are too small."""
    rng = np.random.default_rng(seed)
    labels, sizes = np.unique(y, return_counts=True)
    order = rng.permutation(len(labels))
    learnt, tested, weights = [], [], []
    for count in counts:
        fitting = [k for k in order if sizes[k] >= count + 15]
        if not fitting:
            return None
        order = order[order != fitting[0]]
        rows = rng.permutation(np.flatnonzero(y == labels[fitting[0]]))
        test = rows[count : count + MOST_TESTED]
        learnt.append(rows[:count])
        tested.append(test)
        weights.append(np.full(len(test), count / sum(counts) / len(test)))
    learnt, tested = np.concatenate(learnt), np.concatenate(tested)
    return X[learnt], y[learnt], X[tested], y[tested], np.concatenate(weights)


def held_out_folds(y, n_folds, rng):
    """Return the fold of each row, each class dealt over all of them; -1, never held out, for a class of one row."""
    fold = np.full(len(y), -1)
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        if len(rows) > 1:
            fold[rows] = (np.arange(len(rows)) + rng.integers(n_folds)) % n_folds
    return fold


class LogisticByCV:
    """Logistic regression with C of least held-out log-loss in three folds, on features of unit mean square."""

    def fit(self, X, y):
        X, self._span = spanned(X)
        fold, losses = held_out_folds(y, 3, np.random.default_rng(0)), []
        for C in CS:
            total = 0.0
            for k in range(3):
                train, test = fold != k, fold == k
                known = test & np.isin(y, y[train])
                if known.any() and len(np.unique(y[train])) > 1:
                    clf = LogisticRegression(C=C, max_iter=300).fit(X[train], y[train])
                    log_p = clf.predict_log_proba(X[known])
                    total -= log_p[np.arange(len(log_p)), np.searchsorted(clf.classes_, y[known])].sum()
            losses.append(total)
        self._clf = LogisticRegression(C=CS[int(np.argmin(losses))], max_iter=300).fit(X, y)
        self.classes_ = self._clf.classes_
        return self

    def predict_proba(self, X):
        return self._clf.predict_proba(self._span(X))


class Ridge:
    """RidgeClassifierCV over 25 strengths; it has no probabilities."""

    def fit(self, X, y, sample_weight=None):
        self._clf = RidgeClassifierCV(alphas=np.logspace(-3, 5, 25)).fit(X, y, sample_weight)
        self.classes_ = self._clf.classes_
        return self

    def predict_proba(self, X):
        return np.where(self.classes_ == self._clf.predict(X)[:, None], 1.0, np.nan)


PEERS = {"`RidgeClassifierCV`": Ridge, "logistic, C by CV": LogisticByCV}


def methods():
    yield "default", FaastClassifier()
    yield "balanced", FaastClassifier(class_weight="balanced")
    yield "paper", FaastClassifier(solver="pinv", alpha=0.8, normalize=True, fit_intercept=False)
    yield "RidgeClassifierCV", Ridge()
    yield "shrinkage LDA", LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    yield "logistic, C = 0.05", LogisticRegression(C=0.05, max_iter=300)
    yield "logistic, C by CV", LogisticByCV()


def judged(clf, X_test, y_test, weight):
    """Return accuracy and balanced accuracy in percent, and log-loss."""
    P = clf.predict_proba(X_test)
    code = np.searchsorted(clf.classes_, y_test)
    right = np.nan_to_num(P).argmax(1) == code
    balanced = np.mean([right[code == k].mean() for k in np.unique(code)])
    P = np.clip(P, 1e-15, 1.0)
    loss = -np.log(P[np.arange(len(code)), code] / P.sum(1))
    return 100 * weight @ right / weight.sum(), 100 * balanced, weight @ loss / weight.sum()


def calibration_error(P, classes, y_test, weight, n_bins=15):
    """Return the expected calibration error of the predicted class in percent, in bins of equal weight."""
    top, right = P.max(1), classes[P.argmax(1)] == y_test
    order = np.argsort(top)
    bins = np.minimum(np.cumsum(weight[order]) / weight.sum() * n_bins, n_bins - 1e-9).astype(int)
    gaps = np.bincount(bins, weights=(weight * (top - right))[order], minlength=n_bins)
    return 100 * np.abs(gaps).sum() / weight.sum()


def draws_of(X, y, counts, n_draws):
    found = (draw(X, y, counts, seed) for seed in range(n_draws))
    return [one for one in found if one is not None]


def unequal_table(say, sets, few, long, n_draws):
    names = [name for name, _ in methods()]
    gaps = []
    for title, X, y, _ in sets:
        n_classes = len(np.unique(y))
        more = [tuple(row[-n_classes:]) if len(row) > n_classes else row for row in long]
        cells = [(str(row)[1:-1], row) for row in [*few, *more]]
        if long and n_classes >= len(TAIL):
            cells += [("20 classes, 40 to 2", tuple(np.round(np.geomspace(40, 2, 20)).astype(int).tolist()))]
            cells += [(f"{len(TAIL)} classes, 100 to 1", TAIL)]
        say(f"\n{title}: accuracy / balanced accuracy / log-loss\n")
        say("| examples | " + " | ".join(names) + " |")
        say("|---" * (1 + len(names)) + "|")
        for shown, counts in cells:
            found = {name: [] for name in names}
            for data in draws_of(X, y, counts, max(n_draws // 6, 1) if len(counts) > 50 else n_draws):
                for name, clf in methods():
                    found[name].append(judged(clf.fit(*data[:2]), *data[2:]))
            if not found["default"]:
                continue
            mean = {name: np.mean(values, 0) for name, values in found.items()}
            say(f"| {shown} | " + " | ".join(_shown(mean[name]) for name in names) + " |")
            gaps.append(_gaps(mean))
    gaps = np.array(gaps)
    say(
        "\n| the default minus … | accuracy, best other column | balanced accuracy, `RidgeClassifierCV` | log-loss, "
        "logistic, C = 0.05 | log-loss, logistic, C by CV |"
    )
    say("|---|---|---|---|---|")
    for what, row in (("mean", gaps.mean(0)), ("worst", [*gaps.min(0)[:2], *gaps.max(0)[2:]])):
        say(f"| {what} | {row[0]:+.2f} | {row[1]:+.2f} | {row[2]:+.3f} | {row[3]:+.3f} |")


def _shown(values):
    accuracy, balanced, loss = values
    return f"{accuracy:.1f} / {balanced:.1f}" + ("" if np.isnan(loss) else f" / {loss:.3f}")


def _gaps(mean):
    ours = mean["default"]
    best = max(values[0] for name, values in mean.items() if name != "default")
    peers = [mean["logistic, C = 0.05"][2], mean["logistic, C by CV"][2]]
    return [ours[0] - best, ours[1] - mean["RidgeClassifierCV"][1], *(ours[2] - loss for loss in peers)]


def layers_table(say, args, few, n_draws):
    """The default with inner layers beside the last one alone, and peers on both."""
    names = [
        "default",
        "`layers='last'`",
        *(f"{peer}, {which}" for which in ("last", "same features") for peer in PEERS),
    ]
    for title, spec, X, y, _ in samples(args):
        if spec is None:
            continue
        F, backbone, widths = read(spec, X, args.cache)
        last, y = last_layer(backbone), np.asarray(y)
        say(f"\n{title}: accuracy / balanced accuracy / log-loss\n")
        say("| examples | " + " | ".join(names) + " |")
        say("|---" * (1 + len(names)) + "|")
        for counts in few:
            found = []
            for X_train, y_train, X_test, *rest in draws_of(F, y, counts, n_draws):
                both, n = np.concatenate([X_train, X_test]), len(X_train)
                Z, same = both[:, : widths[0]], scaled(both, np.arange(n), widths)
                row = [
                    judged(FaastClassifier(backbone).fit(X_train, y_train), X_test, *rest),
                    judged(FaastClassifier(last).fit(Z[:n], y_train), Z[n:], *rest),
                ]
                for read_by in (Z, same):
                    row += [judged(peer().fit(read_by[:n], y_train), read_by[n:], *rest) for peer in PEERS.values()]
                found.append(row)
            if found:
                say(f"| {str(counts)[1:-1]} | " + " | ".join(map(_shown, np.mean(found, 0))) + " |")


def calibration_table(say, sets, n_draws):
    """Log-loss and calibration error at equal and unequal numbers, and with all that there is."""
    say("\n| data | examples | default | logistic, C by CV | default, sigmoid | default, isotonic |")
    say("|---|---|---|---|---|---|")
    for title, X, y, n_test in sets:
        n_classes = min(len(np.unique(y)), 10)
        rows = [(f"{k} of each of {n_classes} classes", (k,) * n_classes) for k in EQUAL]
        rows += [(str(row)[1:-1], row) for row in ((40, 20, 10, 5), (200, 50, 20, 10))]
        for shown, counts in rows:
            _calibrated_row(say, title, shown, draws_of(X, y, counts, n_draws))
        if n_test:
            order = np.random.default_rng(0).permutation(len(X))
            train, test = order[n_test:], order[:n_test]
            _calibrated_row(say, title, "all", [(X[train], y[train], X[test], y[test], np.ones(n_test))])


def _calibrated_row(say, title, shown, draws):
    if not draws:
        return
    found = []
    for X, y, X_test, y_test, weight in draws:
        least = np.unique(y, return_counts=True)[1].min()
        row = []
        for clf in (
            FaastClassifier(),
            LogisticByCV(),
            CalibratedClassifierCV(FaastClassifier(), method="sigmoid", cv=min(5, least)),
            CalibratedClassifierCV(FaastClassifier(), method="isotonic", cv=min(5, least)),
        ):
            clf.fit(X, y)
            loss = judged(clf, X_test, y_test, weight)[2]
            row += [loss, calibration_error(clf.predict_proba(X_test), clf.classes_, y_test, weight)]
        found.append(row)
    mean = np.mean(found, 0).reshape(-1, 2)
    say(f"| {title} | {shown} | " + " | ".join(f"{loss:.3f} / {error:.1f}" for loss, error in mean) + " |")


def weightings(y, rng):
    n = len(y)
    yield "all 1", np.ones(n)
    yield "votes, 1 to 5", rng.integers(1, 6, n).astype(float)
    yield "a tenth for half of them", np.where(rng.random(n) < 0.5, 0.1, 1.0)
    yield "30 for one class", np.where(y == y[0], 30.0, 1.0)
    yield "n for one example", np.r_[float(n), np.ones(n - 1)]
    yield "four decades", 10.0 ** rng.uniform(-2, 2, n)


def weights_table(say, sets, n_draws):
    names = [name for name, _ in weightings(np.zeros(2), np.random.default_rng(0))]
    say("\n| data | | " + " | ".join(names) + " |")
    say("|---|---" + "|---" * len(names) + "|")
    for title, X, y, _ in sets:
        some = np.isin(y, np.unique(y)[:10])  # of 150 classes 300 examples are too few
        X, y = X[some], y[some]
        n = min(300, len(X) // 2)
        found = {"default": [], "`RidgeClassifierCV`": []}
        for seed in range(max(n_draws // 2, 1)):
            rng = np.random.default_rng(seed)
            order = rng.permutation(len(X))
            train, test = order[:n], order[n : n + 1500]
            for name, make in (("default", FaastClassifier), ("`RidgeClassifierCV`", Ridge)):
                row = []
                for _, weight in weightings(y[train], np.random.default_rng(seed)):
                    clf = make().fit(X[train], y[train], sample_weight=weight)
                    row.append(judged(clf, X[test], y[test], np.ones(len(test)))[0])
                found[name].append(row)
        for name, rows in found.items():
            say(f"| {title} | {name} | " + " | ".join(f"{value:.1f}" for value in np.mean(rows, 0)) + " |")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="an image folder, one folder per class")
    parser.add_argument("--intents", nargs="*", default=[], help="tab-separated files with columns text and intent")
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--output", help="append the tables to this Markdown file")
    parser.add_argument("--cache", help="a directory to keep features in, for another run")
    parser.add_argument("--tables", nargs="*", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--small", action="store_true", help="pixels of digits alone, in seconds")
    return parser.parse_args()


def main():
    args = parse()
    sets = []
    for one in datasets(args.photos, args.cache) if {*args.tables} - {"layers"} else ():
        sets.append(one)
        if args.small:
            break
    if args.intents and not args.small and sets:
        sets.append(intents(args.intents, args.cache))
    few, long, n_draws = (FEW[:2], [], 2) if args.small else (FEW, LONG, args.draws)
    lines = []

    def say(line=""):
        print(line, flush=True)
        lines.append(line)

    for table in args.tables:
        if table == "layers" and args.small:
            continue
        say(f"\n### {TITLES[table]}")
        if table == "unequal":
            unequal_table(say, sets, few, long, n_draws)
        elif table == "layers":
            layers_table(say, args, few + [row[-8:] for row in long], n_draws)
        elif table == "calibration":
            calibration_table(say, sets, max(n_draws // 2, 1))
        elif table == "weights":
            weights_table(say, sets, n_draws)
    if args.output:
        with open(args.output, "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
