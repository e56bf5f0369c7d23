"""Cross-validating 25 alphas from the statistics of five folds, against one fit and against refitting.

    python examples/benchmarks/selection.py [--rows 50000] [--features 1280] [--classes 10] [--repeats 3]

Times are the least of the repeats, ratios are within this run. The floor is 1.5 times one ``fit`` plus five
eigendecompositions of the scatter matrix. Errors of some refits are compared with those from the statistics.
"""

import argparse
import time

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import StratifiedKFold

from faast_sklearn import FaastClassifier
from faast_sklearn.selection import alpha_path
from faast_sklearn.solvers import decompose


def features(n, d, c):
    """Rows whose spectrum falls off like that of pooled image features."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, c, n)
    scale = np.arange(1, d + 1) ** -0.5
    centres = rng.standard_normal((c, d)) * scale
    X = rng.standard_normal((n, d), dtype=np.float32)
    X *= scale.astype(np.float32)
    X += 0.5 * centres[y].astype(np.float32)
    return X, y


def least(repeats, function):
    seconds, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    X, y = features(args.rows, args.features, args.classes)
    alphas = np.logspace(-4, 2, 25)
    fit, clf = least(args.repeats, lambda: FaastClassifier().fit(X, y))
    solve, _ = least(args.repeats, lambda: decompose(clf.moments_.scatter))
    search, path = least(args.repeats, lambda: alpha_path(FaastClassifier(), X, y, alphas=alphas, cv=5))
    print(f"{args.rows} x {args.features}, {args.classes} classes, 25 alphas, 5 folds")
    print(f"one fit {fit:.2f} s, one eigendecomposition {solve:.2f} s, the search {search:.2f} s")
    print(f"search / (fit + 5 eigendecompositions): {search / (fit + 5 * solve):.2f} (floor 1.5)")
    print(f"best alpha {path.best_alpha_:.3g}; generalised cross-validation takes {clf.alpha_:.3g}")

    V = (y[:, None] == np.unique(y)).astype(float)
    worst, refits = 0.0, []
    for k, (train, test) in enumerate(StratifiedKFold(5).split(X, y)):
        if k not in (0, 4):
            continue
        rows = X[train].astype(np.float64)
        unit = ((rows - rows.mean(0)) ** 2).sum() / args.features
        for a in (0, 12, 24):
            start = time.perf_counter()
            ridge = Ridge(alpha=alphas[a] * unit, solver="cholesky").fit(rows, V[train])
            error = ((V[test] - ridge.predict(X[test].astype(np.float64))) ** 2).sum(1).mean()
            refits.append(time.perf_counter() - start)
            worst = max(worst, abs(error + path.cv_results_[f"split{k}_test_score"][a]) / error)
    print(f"largest relative difference from refitting with scikit-learn's Ridge: {worst:.1e} (floor 1e-8)")
    print(
        f"125 such refits would take {125 * np.median(refits):.0f} s, "
        f"{125 * np.median(refits) / search:.0f} times the search"
    )


if __name__ == "__main__":
    main()
