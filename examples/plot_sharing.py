"""
Saving, sharing and merging what was learnt
===========================================

A fitted classifier is one file: numbers and JSON, without pickle, without images, without a path of your machine. It
loads elsewhere, learns on, and merges with what others have learnt, as if all images had been in one place.
"""

# %%
# Two sites
# ---------
# Two sites have handwritten digits that they may not give away. The first sees mostly low digits, the second mostly
# high ones. (With ``cache="memory"`` this process encodes each image once for both sites; real sites need no cache.)

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from faast_sklearn import FaastClassifier, backbone, load, merge, save

plt.style.use("tableau-colorblind10")
digits = load_digits()
images, y = (digits.images[:600] * 255 / 16).astype(np.uint8), digits.target[:600]
test_images, y_test = images[400:], y[400:]
rng = np.random.default_rng(0)
at_first = rng.random(400) < np.where(y[:400] < 5, 0.95, 0.05)
network = backbone("bundled:efficientnet-lite0", image_size=96)
first = FaastClassifier(network, cache="memory").fit(images[:400][at_first], y[:400][at_first])
second = FaastClassifier(network, cache="memory").fit(images[:400][~at_first], y[:400][~at_first])

# %%
# Saving
# ------
# By default the file can predict and learn on. ``moments=False`` leaves out the statistics of the images: the file can
# then only predict.

folder = Path(tempfile.mkdtemp())
save(first, folder / "first.safetensors")
save(second, folder / "second.safetensors")
save(first, folder / "predicts-only.safetensors", moments=False)
for path in sorted(folder.iterdir()):
    print(f"{path.name:28}{path.stat().st_size / 1e6:8.2f} MB")

# %%
# What is in the file
# -------------------
# Any reader of safetensors can look into it: names, shapes and numbers of arrays, and JSON beside them. There is no
# image in it. But statistics of fewer images than there are features hold the features of each image, so protect a file
# with statistics as you protect the images.

import json

from safetensors import safe_open

for path in (folder / "predicts-only.safetensors", folder / "first.safetensors"):
    print(path.name)
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - it is not a dict
            part = file.get_slice(name)
            print(f"  {name:50}{part.get_dtype():5}{part.get_shape()}")
        manifest = json.loads(file.metadata()["manifest"])
print("versions:", manifest["versions"])
print("backbone:", manifest["estimator"]["parameters"]["backbone"])

# %%
# Elsewhere
# ---------
# Another process, which has only the library, reads the file and predicts the same. It opens the network by its name,
# and warns if the weights under that name are not those used for learning.

import subprocess
import sys

np.save(folder / "images.npy", test_images[:50])
elsewhere = """
import numpy, faast_sklearn
clf = faast_sklearn.load("predicts-only.safetensors")
print(*clf.predict(numpy.load("images.npy")))
"""
printed = subprocess.run(
    [sys.executable, "-c", elsewhere], cwd=folder, capture_output=True, text=True, check=True
).stdout
same = np.array_equal(np.array(printed.split(), dtype=int), first.predict(test_images[:50]))
print("the same predictions there and here:", same)

# %%
# Merging
# -------
# Statistics add up. Together the two have learnt what one would have learnt from all images, up to rounding, although
# no image has left its site and neither site has seen many images of every digit.

both = merge([load(folder / "first.safetensors"), load(folder / "second.safetensors")])
pooled = FaastClassifier(network, cache="memory").fit(images[:400], y[:400])
difference = np.abs(both.coef_ - pooled.coef_).max() / np.abs(pooled.coef_).max()
print(f"largest difference of the weights, relative: {difference:.0e}")

scores = {
    f"first site, {first.n_samples_seen_} images": first.score(test_images, y_test),
    f"second site, {second.n_samples_seen_} images": second.score(test_images, y_test),
    f"merged, {both.n_samples_seen_} images": both.score(test_images, y_test),
    "one fit of all images": pooled.score(test_images, y_test),
}
fig, ax = plt.subplots(figsize=(6.8, 2.5), layout="constrained")
bars = ax.barh(list(scores), list(scores.values()), color=["C1", "C1", "C0", "C2"])
ax.bar_label(bars, [f"{score:.1%}" for score in scores.values()], padding=4)
ax.set(xlabel="accuracy on unseen images of all digits", xlim=(0, 1.1), xticks=[0, 0.25, 0.5, 0.75, 1])
ax.invert_yaxis()
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Learning on
# -----------
# A loaded classifier goes on as if it had never stopped. One without statistics says why it cannot.

again = load(folder / "first.safetensors").partial_fit(images[:400][~at_first], y[:400][~at_first])
print("learnt on:", again.n_samples_seen_, f"images, {again.score(test_images, y_test):.1%}")
try:
    load(folder / "predicts-only.safetensors").partial_fit(images[:1], y[:1])
except Exception as error:
    print(f"{type(error).__name__}: {error}")
