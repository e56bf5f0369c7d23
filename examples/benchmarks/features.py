"""Cost of learning from ready features, beside scikit-learn and the SVD pseudo-inverse, as ratios within one run.

    python examples/benchmarks/features.py [--rows 50000] [--features 1280] [--repeats 3] [--threads 2]

Every competitor runs in turn in each repeat, so that a machine whose speed drifts slows all of them; the ratios are
of medians. Features are real numbers of the shape that pooled ReLU features have: non-negative, correlated, and
different in mean by class.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
import warnings


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--cv-rows", type=int, default=20_000, help="rows for RidgeClassifierCV and LogisticRegression")
    parser.add_argument("--stream-rows", type=int, default=1_000_000)
    parser.add_argument("--stream-features", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of the parts to run: fit, cv, partial, stream")
    parser.add_argument("--json", help="write the figures to this file")
    return parser.parse_args()


args = parse()
# BLAS libraries read these once, when they are loaded.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(args.threads)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # noqa: E402
from sklearn.linear_model import LogisticRegression, RidgeClassifier, RidgeClassifierCV  # noqa: E402

from faast_sklearn import FaastClassifier  # noqa: E402


def features(n, d, c, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n)
    mixing = rng.standard_normal((64, d)).astype(np.float32)
    centres = rng.standard_normal((c, 64)).astype(np.float32)
    X = np.empty((n, d), np.float32)
    for start in range(0, n, 10_000):
        part = slice(start, start + 10_000)
        latent = centres[y[part]] + 1.5 * rng.standard_normal((len(y[part]), 64), np.float32)
        noise = rng.standard_normal((len(latent), d), np.float32)
        X[part] = np.maximum(latent @ mixing / 8 + 0.5 * noise, 0)
    return X, y


def compare(contestants, repeats):
    """Run each contestant once a repeat, in turn; return the median seconds of each."""
    seconds = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(title, seconds, ours):
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:44s} {value:8.3f} s   {value / seconds[ours]:6.2f} x ours")
    figures[title] = seconds


def part_fit():
    X, y = features(args.rows, args.features, args.classes)
    onehot = torch.nn.functional.one_hot(torch.from_numpy(y)).float()
    tensor = torch.from_numpy(X)
    ours = "FaastClassifier(), alpha='auto'"
    show(
        f"fit, {args.rows} x {args.features} float32, {args.classes} classes",
        compare(
            {
                ours: lambda: FaastClassifier().fit(X, y).coef_,
                "FaastClassifier(alpha=1.0)": lambda: FaastClassifier(alpha=1.0).fit(X, y).coef_,
                "its fit alone, before anything is asked": lambda: FaastClassifier().fit(X, y),
                "RidgeClassifier": lambda: RidgeClassifier().fit(X, y),
                "torch.linalg.pinv (SVD) @ V": lambda: torch.linalg.pinv(tensor, rtol=args.rows**-0.8) @ onehot,
                "LinearDiscriminantAnalysis(solver='svd')": lambda: LinearDiscriminantAnalysis().fit(X, y),
                "LinearDiscriminantAnalysis(solver='lsqr')": lambda: LinearDiscriminantAnalysis(solver="lsqr").fit(
                    X, y
                ),
            },
            args.repeats,
        ),
        ours,
    )


def part_cv():
    X, y = features(args.cv_rows, args.features, args.classes)
    alphas = np.logspace(-3, 5, 25)
    ours = "FaastClassifier(), alpha='auto'"
    show(
        f"choosing the regulariser, {args.cv_rows} x {args.features} float32",
        compare(
            {
                ours: lambda: FaastClassifier().fit(X, y).coef_,
                "RidgeClassifierCV, 25 alphas": lambda: RidgeClassifierCV(alphas=alphas).fit(X, y),
                "LogisticRegression, one C": lambda: LogisticRegression(max_iter=100).fit(X, y),
            },
            1 if args.repeats == 1 else 2,
        ),
        ours,
    )


def part_partial():
    X, y = features(args.rows, args.features, args.classes)
    step = max(args.rows // 1000, 1)

    def pieces():
        clf = FaastClassifier()
        for start in range(0, args.rows, step):
            clf.partial_fit(X[start : start + step], y[start : start + step])
        clf.coef_  # noqa: B018

    ours = "one fit"
    seconds = compare({ours: lambda: FaastClassifier().fit(X, y).coef_, "many partial_fit": pieces}, args.repeats)
    show(f"{args.rows // step} partial_fit calls of {step} rows", seconds, ours)


def part_stream():
    n, d = args.stream_rows, args.stream_features
    X, y = features(10_000, d, args.classes)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 2**20

    seen = []

    def batches():
        for i in range(n // 10_000):
            if i in (n // 50_000, n // 10_000 - 1):
                seen.append(resident())
            yield X, y

    start = time.perf_counter()
    clf = FaastClassifier().fit(batches())
    clf.coef_  # noqa: B018
    seconds = time.perf_counter() - start
    title = f"streaming {clf.n_samples_seen_} x {d} from an iterator"
    print(f"\n{title}\n  {seconds:.1f} s, resident memory after a fifth {seen[0]:.0f} MB, at the end {seen[1]:.0f} MB")
    figures[title] = {"seconds": seconds, "resident_mb": seen}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    figures = {}
    parts = {"fit": part_fit, "cv": part_cv, "partial": part_partial, "stream": part_stream}
    unknown = set(args.only or ()) - parts.keys()
    if unknown:
        sys.exit(f"unknown parts {sorted(unknown)}; there are {list(parts)}")
    for name, part in parts.items():
        if not args.only or name in args.only:
            part()
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures, file, indent=1)
