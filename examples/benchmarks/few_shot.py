"""Seconds and accuracy of few-shot evaluation: all episodes at once beside loops over scikit-learn's classifiers.

    python examples/benchmarks/few_shot.py [--rows 2000 12000] [--episodes 600] [--features 1280] [--repeats 3]

Every contestant runs once a repeat, in turn, on the same episodes; seconds are the least of the repeats and ratios are
ratios of these. In each repeat loops run only ``--looped`` of the episodes and are scaled up, since all episodes cost
the same.
"""

import argparse
import os
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rows", type=int, nargs="+", default=[2000, 12000])
parser.add_argument("--features", type=int, default=1280)
parser.add_argument("--classes", type=int, default=20)
parser.add_argument("--ways", type=int, default=5)
parser.add_argument("--shots", type=int, default=5)
parser.add_argument("--queries", type=int, default=15)
parser.add_argument("--episodes", type=int, default=600)
parser.add_argument("--looped", type=int, default=100, help="episodes that a loop runs in each repeat")
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()
# BLAS libraries read these once, when they are loaded.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(args.threads)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid  # noqa: E402

from faast_sklearn import FaastClassifier  # noqa: E402
from faast_sklearn.few_shot import few_shot_score, sample_episodes  # noqa: E402


def features(n, d, c, seed=0):
    """Non-negative, correlated features as a backbone pools them, float32."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % c
    mixing = rng.standard_normal((64, d)).astype(np.float32)
    latent = 0.4 * rng.standard_normal((c, 64))[y] + rng.standard_normal((n, 64))
    noise = rng.standard_normal((n, d), np.float32)
    return np.maximum(latent.astype(np.float32) @ mixing / 8 + 0.5 * noise, 0), y


def loop(estimator, X, y, episodes):
    tasks = zip(*(part.reshape(len(part), -1) for part in episodes[:2]), strict=True)
    return np.array([clone(estimator).fit(X[s], y[s]).score(X[q], y[q]) for s, q in tasks])


def main():
    torch.set_num_threads(args.threads)
    sizes = {"n_way": args.ways, "n_shot": args.shots, "n_query": args.queries, "random_state": 0}
    looped = {
        "FaastClassifier, loop": FaastClassifier(),
        "NearestCentroid, loop": NearestCentroid(),
        "KNeighborsClassifier(1), loop": KNeighborsClassifier(1),
        "LogisticRegression, loop": LogisticRegression(),
    }
    for n in args.rows:
        X, y = features(n, args.features, args.classes)
        few = sample_episodes(y, n_episodes=min(args.looped, args.episodes), **sizes)
        scores, seconds = {}, {}
        for _ in range(args.repeats):
            start = time.perf_counter()
            everything = few_shot_score(FaastClassifier(), X, y, n_episodes=args.episodes, **sizes)
            seconds.setdefault("FaastClassifier, at once", []).append(time.perf_counter() - start)
            for name, estimator in looped.items():
                start = time.perf_counter()
                scores[name] = loop(estimator, X, y, few)
                scale = args.episodes / len(few.support)
                seconds.setdefault(name, []).append((time.perf_counter() - start) * scale)
        # A loop draws only its own episodes, so the same ones are drawn again for all at once to compare accuracies.
        same = few_shot_score(FaastClassifier(), X, y, n_episodes=len(few.support), **sizes).scores
        scores["FaastClassifier, at once"] = same
        print(f"\n{n} rows, d = {args.features}: {args.episodes} episodes, {everything}")
        print("| classifier | seconds | times ours | accuracy |\n|---|---|---|---|")
        ours = min(seconds["FaastClassifier, at once"])
        for name, values in seconds.items():
            print(f"| {name} | {min(values):.3f} | {min(values) / ours:.1f} | {scores[name].mean():.4f} |")
        print("equal accuracies:", np.array_equal(same, scores["FaastClassifier, loop"]))


if __name__ == "__main__":
    main()
