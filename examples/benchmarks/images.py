"""What learning costs beside running the network: ``fit`` against the bare loop of preprocessing and forward passes.

Both read the same images (or texts) in the same run, in turn, and the ratio of the median seconds is printed. The bare
loop is what one would write by hand: read, collate and run one batch after the other, in batches of the same size, and
keep nothing. ``fit`` does all of that, adds up the statistics, and here also solves, since ``coef_`` is asked for.

Without ``--images``: made-up photographs of 320 by 240 pixels, saved as JPEG files in a temporary folder.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import numpy as np

from faast_sklearn import FaastClassifier, backbone, image_folder


def main():
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        images, labels = image_folder(args.images) if args.images else made_up_images(folder, args.n)
        # Evenly over the classes, which lie one after the other.
        chosen = np.unique(np.linspace(0, len(images) - 1, args.n).astype(int))
        network = backbone("bundled:efficientnet-lite0")
        measure("images", network, images[chosen].tolist(), labels[chosen], args)
    measure("texts", backbone("bundled:minilm-l6"), *made_up_texts(args.n), args)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="DIR", help="folder with one folder of images per class (default: made up)")
    parser.add_argument("--n", type=int, default=512, help="images, and texts (default: 512)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--device", help="such as cpu or cuda (default: the best there is)")
    return parser.parse_args()


def measure(what, network, samples, labels, args):
    opened = network.open(args.device)
    size = opened.default_batch_size

    # Texts of like length share a batch, as in fit; otherwise padding alone would decide.
    ordered = sorted(samples, key=len, reverse=True) if what == "texts" else samples

    def bare():
        bare_pass(opened, ordered, size)

    def fit():
        classifier = FaastClassifier(network, batch_size=size, device=args.device)
        return classifier.fit(samples, labels).coef_

    seconds = {bare: [], fit: []}
    for run in (bare, fit):
        run()  # the first run of either allocates and warms up
    for _ in range(args.repeats):
        for run, taken in seconds.items():
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    loop, learning = statistics.median(seconds[bare]), statistics.median(seconds[fit])
    print(
        f"{what}: {len(samples)} on {opened.device}, batches of {size}: "
        f"bare loop {loop:.3f} s ({len(samples) / loop:.0f}/s), fit {learning:.3f} s, ratio {learning / loop:.3f}"
    )


def bare_pass(opened, samples, size):
    """Run an open backbone over samples, batch by batch, and keep nothing."""
    for start in range(0, len(samples), size):
        items = [opened.read(sample) for sample in samples[start : start + size]]
        features = opened.forward(opened.collate(items))
    features.cpu()  # waits for the device


def made_up_images(folder, n):
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(n):
        # Smooth blobs compress like photographs; noise would make decoding slower than it really is.
        blobs = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((320, 240), Image.BICUBIC)
        file = pathlib.Path(folder, "abcdefgh"[i % 8], f"{i:06d}.jpg")
        file.parent.mkdir(exist_ok=True)
        blobs.save(file, quality=90)
    return image_folder(folder)


def made_up_texts(n):
    rng = np.random.default_rng(0)
    words = ["time", "year", "people", "way", "day", "thing", "child", "world", "school", "family", "group", "country"]
    lengths = rng.integers(5, 60, n)
    return [" ".join(rng.choice(words, length)) for length in lengths], np.arange(n) % 8


if __name__ == "__main__":
    main()
