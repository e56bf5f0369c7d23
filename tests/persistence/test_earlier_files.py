"""Files that an earlier commit wrote (2b7dfa9, before the package was put into rooms): read, they predict the same."""

from pathlib import Path

import numpy as np
import pytest
from helpers.seq2seq import chosen, opened, pairs
from sklearn.datasets import load_digits

from faast_sklearn import FaastClassifier, load
from faast_sklearn.errors import InputError

# The files name the releases that wrote them, and reading them with later ones warns, as it has to.
pytestmark = pytest.mark.filterwarnings("ignore:saved with .*, here .*:faast_sklearn.errors.SavedFileWarning")
DATA = Path(__file__).parent / "data"
X, Y = load_digits(return_X_y=True)
X = X[:, 18:26]


@pytest.fixture
def answers():
    with np.load(DATA / "answers.npz") as file:
        return dict(file)


def test_a_classifier_of_before_predicts_and_learns_as_it_did(answers):
    clf = load(DATA / "classifier.safetensors")
    # Every bit of the weights is in the file; a product of matrices may differ by rounding between processors.
    np.testing.assert_allclose(clf.decision_function(X[200:230]), answers["scores"], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(clf.predict_proba(X[200:230]), answers["proba"], rtol=1e-12)
    more = clf.partial_fit(X[200:400], Y[200:400])
    whole = FaastClassifier().fit(X[:400], Y[:400])
    np.testing.assert_allclose(more.coef_, whole.coef_, rtol=1e-9, atol=1e-12)


def test_a_language_model_of_before_writes_and_learns_as_it_did(answers):
    seq2seq = load(DATA / "seq2seq.safetensors", backbone=opened("gpt2"))
    sources, targets = pairs(10, seed=1)
    assert list(seq2seq.predict(sources)) == list(answers["texts"])
    assert seq2seq.token_scores(sources, targets)["nll"] == pytest.approx(float(answers["nll"]), rel=1e-5)
    tokens = seq2seq.n_tokens_seen_
    seq2seq.partial_fit(sources, targets)
    assert seq2seq.forget(sources, targets).n_tokens_seen_ == tokens
    assert seq2seq.token_scores(sources, targets)["nll"] == pytest.approx(float(answers["nll"]), rel=1e-5)


def test_choices_of_before_are_chosen_and_cannot_be_added_to():
    # Written by commit 52f65bd, which learnt whole answers from the whole vocabulary.
    seq2seq = load(DATA / "choices.safetensors", backbone=opened("gpt2"))
    sources, targets = chosen(pairs(10, seed=1), seq2seq.choices)
    assert seq2seq.token_scores(sources, targets)["nll"] == pytest.approx(1.5895700821509728, rel=1e-5)
    assert set(seq2seq.predict(sources)) <= set(seq2seq.choices)
    np.testing.assert_allclose(np.exp(seq2seq.choice_log_probabilities(sources)).sum(1), 1.0, rtol=1e-6)
    for method in (seq2seq.partial_fit, seq2seq.forget):
        with pytest.raises(InputError, match="learnt its choices with an earlier version"):
            method(sources, targets)
    assert seq2seq.fit(sources, targets).n_samples_seen_ == 10
