"""
Online learning: classes that arrive later, and forgetting
==========================================================

Images come one kind after the other, and are gone once they are learnt. Still, ``partial_fit`` gives what one fit of
all images would have given, and ``forget`` what a fit without the forgotten ones would have given: sums over images can
be added and subtracted.
"""

# %%
# A stream that never mixes
# -------------------------
# Handwritten digits, first the zeros and ones, then only twos, then only threes and so on. Images are encoded at 96
# pixels instead of the network's own 224, which is faster; the cache lets the scores below reuse what was encoded.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

from faast_sklearn import BackboneFeatures, FaastClassifier, backbone

plt.style.use("tableau-colorblind10")
digits = load_digits()
images, test_images, y, y_test = train_test_split(
    (digits.images * 255 / 16).astype(np.uint8),
    digits.target,
    train_size=600,
    test_size=200,
    stratify=digits.target,
    random_state=0,
)
stages = [np.flatnonzero(y <= 1), *(np.flatnonzero(y == label) for label in range(2, 10))]
batches = [part for stage in stages for part in np.array_split(stage, len(stage) // 20)]

# %%
# Learning it
# -----------
# No list of the classes is needed in advance: a label that was not there before becomes a class. After each batch both
# classifiers are tested on unseen images of all classes so far. The other one is a linear model trained by stochastic
# gradient descent on the same features; it has to be told all classes beforehand.

network = backbone("bundled:efficientnet-lite0", image_size=96)
encoder = BackboneFeatures(network, cache="memory").fit()
test_features = encoder.transform(test_images)

clf = FaastClassifier(network, cache="memory")
sgd = SGDClassifier(loss="log_loss", random_state=0)
learnt, scores, sgd_scores, n_classes = [], [], [], []
for batch in batches:
    clf.partial_fit(images[batch], y[batch])
    sgd.partial_fit(encoder.transform(images[batch]), y[batch], classes=range(10))
    so_far = np.isin(y_test, clf.classes_)
    learnt.append(clf.n_samples_seen_)
    scores.append(clf.score(test_images[so_far], y_test[so_far]))
    sgd_scores.append(sgd.score(test_features[so_far], y_test[so_far]))
    n_classes.append(len(clf.classes_))

fig, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
ax.plot(learnt, scores, "o-", markersize=4, label="FaastClassifier")
ax.plot(learnt, sgd_scores, "s--", markersize=4, label="stochastic gradient descent")
ax.step(learnt, 1 / np.array(n_classes), ":", where="post", color="0.45", label="guessing")
for first in [learnt[i] for i in range(1, len(learnt)) if n_classes[i] > n_classes[i - 1]]:
    ax.axvline(first, color="0.85", linewidth=1, zorder=0)
ax.set(xlabel="images learnt (grey lines: a class arrives)", ylabel="accuracy on all classes so far", ylim=(0, 1.03))
ax.legend(loc="center right", bbox_to_anchor=(1, 0.62))
ax.spines[["top", "right"]].set_visible(False)
plt.show()
print(f"after all {learnt[-1]} images: {scores[-1]:.1%}, gradient descent {sgd_scores[-1]:.1%}")

# %%
# The order does not matter
# -------------------------
# One fit of all images, in another order, gives the same weights up to rounding.

shuffled = np.random.default_rng(0).permutation(len(y))
at_once = FaastClassifier(network, cache="memory").fit(images[shuffled], y[shuffled])
difference = np.abs(clf.coef_ - at_once.coef_).max() / np.abs(at_once.coef_).max()
print(f"largest difference of the weights, relative: {difference:.0e}")

# %%
# Forgetting a mistake
# --------------------
# Two hundred images are learnt once more with a wrong label. Forgetting them undoes their effect and nothing else: the
# weights are those from before. The caller must still have the images; the classifier keeps none.

mistaken = np.random.default_rng(1).choice(len(y), 200, replace=False)
wrong_labels = (y[mistaken] + 1) % 10
course = {"before": clf.score(test_images, y_test)}
clf.partial_fit(images[mistaken], wrong_labels)
course["with 200 wrong labels"] = clf.score(test_images, y_test)
clf.forget(images[mistaken], wrong_labels)
course["after forgetting them"] = clf.score(test_images, y_test)
undone = np.abs(clf.coef_ - at_once.coef_).max() / np.abs(at_once.coef_).max()

fig, ax = plt.subplots(figsize=(6.4, 2.2), layout="constrained")
bars = ax.barh(list(course), list(course.values()), color=["C0", "C1", "C0"])
ax.bar_label(bars, [f"{score:.1%}" for score in course.values()], padding=3)
ax.set(xlabel="accuracy on unseen images", xlim=(0, 1.1), xticks=[0, 0.25, 0.5, 0.75, 1])
ax.invert_yaxis()
ax.spines[["top", "right"]].set_visible(False)
plt.show()
print(f"largest difference to the weights without the mistake, relative: {undone:.0e}")

# %%
# Forgetting a class
# ------------------
# When the last image of a class is forgotten, the class is gone. The classifier no longer knows what such images look
# like.

nines = y == 9
clf.forget(images[nines], y[nines])
without = FaastClassifier(network, cache="memory").fit(images[~nines], y[~nines])
print("classes:", clf.classes_)
print("same answers as without nines ever:", np.array_equal(clf.predict(test_images), without.predict(test_images)))
