"""
A grid search that encodes each image once
==========================================

A search fits and scores an estimator again and again on parts of the same images. A frozen network gives the same
features for an image each time, so with ``cache=`` it has to look at each only once, whatever the size of the search.
The cache counts the images.
"""

# %%
# The search
# ----------
# 300 handwritten digits, 16 candidates, five folds, and a last fit of the best candidate.

import tempfile

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from faast_sklearn import FaastClassifier, FeatureCache, backbone

plt.style.use("tableau-colorblind10")
digits = load_digits()
images, y = (digits.images[:300] * 255 / 16).astype(np.uint8), digits.target[:300]

folder = tempfile.mkdtemp()  # or any folder of yours, on a local disk
cache = FeatureCache(folder)
network = backbone("bundled:efficientnet-lite0", image_size=96)
grid = {"alpha": ["auto", 0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0], "normalize": [False, True]}
search = GridSearchCV(FaastClassifier(network, cache=cache), grid, cv=5).fit(images, y)
print("best:", search.best_params_, f"with {search.best_score_:.1%}")
print(f"encoded: {cache.misses} images")

# %%
# What it would have cost
# -----------------------
# Each fit needs the images that it learns from, each score those of the fold that was left out: without a cache the
# network would have to look at every image once for each fold and candidate, and once more at the end.

n_candidates, n_folds = len(search.cv_results_["params"]), search.n_splits_
without = len(images) * (n_candidates * n_folds + 1)
fig, ax = plt.subplots(figsize=(6.8, 1.8), layout="constrained")
bars = ax.barh(["without cache", "with cache"], [without, cache.misses], color=["C1", "C0"])
ax.bar_label(bars, [f"{without:,}", f"{cache.misses:,}"], padding=4)
ax.set(xlabel="images that the network looks at", xlim=(0, without * 1.15))
ax.xaxis.set_major_formatter("{x:,.0f}")
ax.invert_yaxis()
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# What was found
# --------------
# The regulariser matters; ``alpha="auto"``, which looks at no held-out fold, is about as good as the best of the
# others.

fig, ax = plt.subplots(figsize=(6.8, 4), layout="constrained")
results = search.cv_results_
for normalize, style in ((False, "o-"), (True, "s--")):
    mine = np.array([setting == normalize for setting in results["param_normalize"]])
    fixed = mine & np.array([alpha != "auto" for alpha in results["param_alpha"]])
    auto = mine & ~fixed
    (line,) = ax.plot(
        results["param_alpha"][fixed].astype(float),
        results["mean_test_score"][fixed],
        style,
        markersize=5,
        label=f"normalize={normalize!r}",
    )
    label = f"the same with alpha='auto': {results['mean_test_score'][auto][0]:.1%}"
    ax.axhline(results["mean_test_score"][auto][0], color=line.get_color(), linestyle=":", label=label)
ax.set(xscale="log", xlabel="alpha", ylabel="accuracy, five-fold cross-validation")
ax.legend(loc="lower left")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The next session
# ----------------
# The cache is a folder, so other processes and later sessions find what was encoded. They need not run the same search:
# features are found by the content of an image.

later = FeatureCache(folder)
other = GridSearchCV(FaastClassifier(network, cache=later), {"solver": ["ridge", "pinv"]}, cv=3).fit(images, y)
print("best:", other.best_params_, f"with {other.best_score_:.1%}")
print(f"encoded: {later.misses} images, found in the cache: {len(later)}, {later.nbytes / 1e6:.1f} MB")
