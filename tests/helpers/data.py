"""A few rows, images and texts to learn from, and a real network for small images."""

import numpy as np
from sklearn.datasets import load_digits

from faast_sklearn import backbone

_chosen = np.concatenate([np.flatnonzero(load_digits().target == k)[:6] for k in (0, 1, 4)])


IMAGES, DIGITS = (load_digits().images[_chosen] * 15).astype(np.uint8), load_digits().target[_chosen]


ROWS = load_digits().data[_chosen]


ANIMALS = [f"the {a} {v}" for a in ("cat", "dog", "horse", "cow") for v in ("sleeps", "eats", "runs away")]


MONEY = [f"the {a} {v}" for a in ("bank", "loan", "stock", "tax") for v in ("is due", "went up", "was repaid")]


TEXTS, TOPICS = ANIMALS + MONEY, np.repeat(["animals", "money"], 12)


# A seventh of the usual side keeps real weights cheap.
SMALL_IMAGES = backbone("bundled:efficientnet-lite0", image_size=32)
