"""How well unseen classes are told from seen ones: ``novelty_score`` beside scores made of probabilities.

    python examples/benchmarks/novelty.py [--photos DIR] [--draws 6]

The data are those of ``auto_alpha.py``. In each draw six tenths of the classes are learnt; the area under the ROC curve
says how often a test sample of another class scores higher than one of the learnt classes.
"""

import argparse
import itertools
import warnings

import numpy as np
from auto_alpha import SHOTS, datasets
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from faast_sklearn import FaastClassifier


def areas(X, y, n_test, shots, seed):
    rng = np.random.default_rng(seed)
    labels = np.unique(y)
    seen = rng.permutation(labels)[: round(0.6 * len(labels))]
    train, test = train_test_split(np.arange(len(y)), test_size=n_test, stratify=y, random_state=seed)
    train = train[np.isin(y[train], seen)]
    if shots is not None:
        train = np.concatenate([rng.permutation(train[y[train] == label])[:shots] for label in seen])
    new = ~np.isin(y[test], seen)
    clf = FaastClassifier().fit(X[train], y[train])
    p = clf.predict_proba(X[test])
    scores = {
        "largest probability": 1 - p.max(1),
        "entropy": -(p * np.log(p + 1e-300)).sum(1),
        "novelty_score": clf.novelty_score(X[test]),
    }
    return {name: 100 * roc_auc_score(new, score) for name, score in scores.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="an image folder, one folder per class")
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--cache", help="a directory to keep features in, for another run")
    parser.add_argument("--sets", type=int, help="only this many data sets; the first is pixels of digits")
    args = parser.parse_args()
    print("| data | shots | largest probability | entropy | novelty_score |\n|---|---|---|---|---|")
    for name, X, y, n_test in itertools.islice(datasets(args.photos, args.cache), args.sets):
        for shots in SHOTS:
            if shots is not None and shots > np.unique(y, return_counts=True)[1].min() * (1 - n_test / len(y)):
                continue
            found = [areas(X, y, n_test, shots, seed) for seed in range(args.draws)]
            means = [np.mean([area[key] for area in found]) for key in found[0]]
            print(f"| {name} | {shots or 'all'} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
