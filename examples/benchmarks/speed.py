"""What everything costs on this machine: one table from one run, each part beside its usual alternatives.

    python examples/benchmarks/speed.py [--device cpu|cuda] [--small]

"times ours" says how many times as long the others take; for a bare product of matrices it is the share of this
machine's multiply limit that ours reaches. "share of peak" is the necessary arithmetic divided by the time and by the
speed of the largest product above in the same precision; a symmetric product counts half. All runs of a part take turns
in each repeat; seconds are medians, ratios medians of the repeats' ratios. On CUDA, clocks are events on the stream,
and scikit-learn stays on the host. Features are made up, with the spectrum of pooled image features; images are
scikit-learn's handwritten digits, through the bundled EfficientNet-Lite0.
"""

import argparse
import statistics

import numpy as np
import torch
from images import bare_pass
from paper_vision import digits
from selection import features
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestCentroid
from threadpoolctl import threadpool_limits
from timing import in_turn, ratio
from torch.utils.flop_counter import FlopCounterMode

from faast_sklearn import FaastClassifier, backbone
from faast_sklearn.backbones.device import resolve_device
from faast_sklearn.few_shot import few_shot_score, sample_episodes
from faast_sklearn.selection import alpha_path
from faast_sklearn.solvers import fast_weights

SIZES = {
    "full": {"rows": 50_000, "features": 1280, "images": 256, "episodes": 600, "search_rows": 5000, "square": 4096},
    "small": {"rows": 2000, "features": 64, "images": 8, "episodes": 20, "search_rows": 300, "square": 256},
}
CLASSES = 20
LOOPED = 60  # episodes that a loop runs; it is scaled up, since all of them cost the same
CALLS = 100  # repeats of what takes microseconds


class Table:
    """Prints parts of the table as they are measured."""

    def __init__(self, device, repeats):
        self.device, self.repeats = device, repeats
        self.peaks = {}  # operations a second by dtype
        print("| | | time | times ours | share of peak |\n|---|---|---|---|---|", flush=True)

    def part(self, title, runs, *, work=None, dtype=torch.float64, scale=None, repeats=None):
        """Measure runs in turn and print a row for each; the first one is ours.

        Parameters
        ----------
        title : str
        runs : dict
            Names and functions of no arguments.
        work : dict, optional
            Floating-point operations that a run cannot do without, by name.
        dtype : torch.dtype
            In which these operations are done.
        scale : dict, optional
            Factors by which the seconds of runs are multiplied, by name.
        repeats : int, optional
            If different from that of all parts.
        """
        seconds = in_turn(runs, repeats or self.repeats, self.device)
        for name, factor in (scale or {}).items():
            seconds[name] = [factor * value for value in seconds[name]]
        ours = next(iter(runs))
        for name, taken in seconds.items():
            share = ""
            if work and name in work:
                speed = work[name] / statistics.median(taken)
                if ours == "product":
                    self.peaks[dtype] = speed
                    share = f"{speed / 1e9:,.0f} GFLOP/s"
                else:
                    share = f"{speed / self.peaks[dtype]:.2g}"
            beside = "" if name == ours else f"{ratio(taken, seconds[ours]):.3g}"
            print(f"| {title} | {name} | {shown(statistics.median(taken))} | {beside} | {share} |", flush=True)
            title = ""


def shown(seconds):
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def multiply(table, args):
    n = args.square
    dtypes = [torch.float64, torch.float32] + [torch.bfloat16] * (table.device.type == "cuda")
    for dtype in dtypes:
        a = torch.randn(n, n, device=table.device).to(dtype)
        title = f"two {n:,} x {n:,} matrices, {str(dtype).removeprefix('torch.')}"
        table.part(title, {"product": lambda a=a: a @ a}, work={"product": 2 * n**3}, dtype=dtype)


def from_images(table, args):
    images, labels, _ = digits(args.images)
    network = backbone("bundled:efficientnet-lite0")
    opened = network.open(table.device)
    size = opened.default_batch_size
    clf = FaastClassifier(network, device=args.device, batch_size=size).fit(images, labels)
    clf.coef_  # noqa: B018
    started = clone(clf).partial_fit(images[: args.images // 2], labels[: args.images // 2], classes=range(10))
    batch = opened.collate([opened.read(images[0])])
    with FlopCounterMode(display=False) as counter:
        opened.forward(batch)
    passes = counter.get_total_flops() * args.images
    table.part(
        f"from {args.images} images, reading included",
        {
            "`fit` and solve": lambda: clone(clf).fit(images, labels).coef_,
            "`partial_fit`": lambda: started.partial_fit(images, labels),
            "`predict`": lambda: clf.predict(images),
            "the backbone alone": lambda: bare_pass(opened, images, size),
        },
        work={"`fit` and solve": passes, "the backbone alone": passes},
        dtype=torch.float32,
    )
    table.part(
        "from one image",
        {
            "`predict`": lambda: clf.predict(images[:1]),
            "the backbone alone": lambda: bare_pass(opened, images[:1], 1),
        },
    )


def from_features(table, args):
    X, y = features(args.rows, args.features, CLASSES)
    n, d = X.shape
    on_device = torch.from_numpy(X).to(table.device)
    given = X if table.device.type == "cpu" else on_device
    exact = on_device.double()
    onehot = torch.nn.functional.one_hot(torch.from_numpy(y), CLASSES).to(on_device)
    new = FaastClassifier(device=args.device)
    symmetric = n * d * (d + 1)
    table.part(
        f"{n:,} x {d:,} features, float32",
        {
            "`fit` and solve": lambda: clone(new).fit(given, y).coef_,
            "`fit`": lambda: clone(new).fit(given, y),
            "X'X in float64": lambda: exact.T @ exact,
            "X'X in float32": lambda: on_device.T @ on_device,
            "pinv by SVD, float32": lambda: torch.linalg.pinv(on_device, rtol=n**-0.8) @ onehot,
            "RidgeClassifier": lambda: RidgeClassifier().fit(X, y),
            "LinearDiscriminantAnalysis, lsqr": lambda: LinearDiscriminantAnalysis(solver="lsqr").fit(X, y),
        },
        work={"`fit` and solve": symmetric, "`fit`": symmetric},
    )
    clf = clone(new).fit(given, y)
    few = min(1000, n)
    others = {
        "RidgeClassifier": RidgeClassifier().fit(X[: 2 * few], y[: 2 * few]),
        "LogisticRegression": LogisticRegression(C=1e-4, tol=0.01).fit(X[: 2 * few], y[: 2 * few]),
    }
    for k in (1, few):
        learning = clone(new).fit(given, y)
        again = {"`partial_fit`": lambda k=k, c=learning: repeated(lambda: c.partial_fit(given[:k], y[:k]), k)}
        product = {"X'X in float64": lambda k=k: repeated(lambda: exact[:k].T @ exact[:k], k)}
        runs = again | product
        table.part("one more row" if k == 1 else f"{k:,} more rows", runs, scale=dict.fromkeys(runs, 1 / calls(k)))

    moments = clf.moments_
    symmetric_matrix = exact[: 2 * d].T @ exact[: 2 * d]
    table.part(
        f"the solve, d = {d:,}",
        {
            '`alpha="auto"`': lambda: fast_weights(moments),
            "`alpha=1.0`": lambda: fast_weights(moments, alpha=1.0),
            "eigh in float64": lambda: torch.linalg.eigh(symmetric_matrix),
            "Cholesky in float64": lambda: torch.linalg.cholesky(symmetric_matrix + torch.eye(d).to(exact)),
        },
    )
    W = torch.as_tensor(clf.coef_.T).to(on_device)
    clf.predict(given[:2])
    for k in (n, 1):
        runs = {
            "`predict`": lambda k=k: repeated(lambda: clf.predict(given[:k]), k),
            "`predict_proba`": lambda k=k: repeated(lambda: clf.predict_proba(given[:k]), k),
            "X W in float32": lambda k=k: repeated(lambda: on_device[:k] @ W, k),
        }
        for name, other in others.items():
            runs[name] = lambda k=k, other=other: repeated(lambda: other.predict(X[:k]), k)
        title = f"predict {k:,} rows" if k > 1 else "predict one row"
        table.part(title, runs, scale=dict.fromkeys(runs, 1 / calls(k)))


def calls(k):
    return CALLS if k == 1 else 1


def repeated(run, k):
    for _ in range(calls(k)):
        run()


def episodes(table, args):
    X, y = features(min(args.rows, 2000), args.features, CLASSES)
    sizes = {"n_way": 5, "n_shot": 5, "n_query": 15, "random_state": 0}
    few = sample_episodes(y, n_episodes=min(LOOPED, args.episodes), **sizes)
    tasks = list(zip(*(part.reshape(len(part), -1) for part in few[:2]), strict=True))

    def loop(estimator):
        for support, query in tasks:
            clone(estimator).fit(X[support], y[support]).score(X[query], y[query])

    ours = FaastClassifier(device=args.device)
    looped = {
        "FaastClassifier in a loop": lambda: loop(ours),
        "NearestCentroid in a loop": lambda: loop(NearestCentroid()),
    }
    table.part(
        f"{args.episodes} episodes, 5-way 5-shot",
        {"`few_shot_score`": lambda: few_shot_score(ours, X, y, n_episodes=args.episodes, **sizes), **looped},
        scale=dict.fromkeys(looped, args.episodes / len(tasks)),
    )


def search(table, args):
    X, y = features(args.search_rows, args.features, CLASSES)
    alphas = np.logspace(-4, 2, 25)
    refits = GridSearchCV(RidgeClassifier(), {"alpha": alphas * args.search_rows}, cv=5)
    table.part(
        f"25 alphas, 5 folds, {args.search_rows:,} rows",
        {
            "`alpha_path`": lambda: alpha_path(FaastClassifier(device=args.device), X, y, alphas=alphas, cv=5),
            "GridSearchCV(RidgeClassifier)": lambda: refits.fit(X, y),
        },
        repeats=1,
    )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="such as cpu or cuda (default: the best there is)")
    parser.add_argument("--small", action="store_true", help="sizes that take seconds, to see that it runs")
    for name, value in SIZES["full"].items():
        help = f"default: {value}, {SIZES['small'][name]} with --small"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=help)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: as many as the libraries take")
    args = parser.parse_args(argv)
    for name, value in SIZES["small" if args.small else "full"].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    device = resolve_device(args.device)
    args.device = str(device)
    if args.threads:
        torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
        print(f"{device}, {where}; torch {torch.__version__}; medians of {args.repeats} runs in turn\n")
        table = Table(device, args.repeats)
        for part in (multiply, from_images, from_features, episodes, search):
            part(table, args)


if __name__ == "__main__":
    main()
