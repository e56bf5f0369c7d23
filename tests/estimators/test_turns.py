"""Threads that change one estimator: nothing that they learnt is lost, and nothing else waits."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from faast_sklearn import FaastClassifier, FaastSeq2Seq, merge
from faast_sklearn.errors import InputError
from faast_sklearn.estimators.turns import changing

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(410, 6)), np.arange(410) % 4


def in_threads(call, jobs, n=8):
    """Call with each of jobs, n at a time, all starting together; return what was raised."""
    gate = threading.Barrier(n)

    def worker(mine):
        gate.wait()
        raised = []
        for job in mine:
            try:
                call(job)
            except Exception as error:
                raised.append(error)
        return raised

    with ThreadPoolExecutor(n) as pool:
        return [error for found in pool.map(worker, [jobs[i::n] for i in range(n)]) for error in found]


@pytest.mark.parametrize("begun", [True, False])
def test_rows_that_several_threads_learn_are_all_there(begun):
    clf = FaastClassifier()
    if begun:
        clf.fit(X[:10], Y[:10])
    rows = np.arange(10 if begun else 0, 410)
    assert not in_threads(lambda i: clf.partial_fit(X[[i]], Y[[i]]), rows)
    assert clf.n_samples_seen_ == 410
    whole = FaastClassifier().fit(X, Y)
    np.testing.assert_allclose(clf.predict_proba(X), whole.predict_proba(X), atol=1e-9)


def test_rows_are_learnt_and_forgotten_side_by_side():
    clf = FaastClassifier().fit(X[:200], Y[:200])

    def change(i):
        if i < 100:
            clf.forget(X[[i]], Y[[i]])
        else:
            clf.partial_fit(X[[100 + i]], Y[[100 + i]])

    assert not in_threads(change, np.arange(300))
    kept = np.r_[100:400]
    np.testing.assert_allclose(
        clf.predict_proba(X), FaastClassifier().fit(X[kept], Y[kept]).predict_proba(X), atol=1e-8
    )
    assert clf.n_samples_seen_ == 300


def test_an_error_in_one_thread_takes_nothing_from_the_others():
    clf = FaastClassifier().fit(X[:10], Y[:10])

    def change(i):
        row = X[[i]].copy()
        row[0, 0] = np.nan if i % 3 == 0 else row[0, 0]
        clf.partial_fit(row, Y[[i]])

    rows = np.arange(10, 410)
    raised = in_threads(change, rows)
    assert len(raised) == (rows % 3 == 0).sum()
    assert clf.n_samples_seen_ == 10 + (rows % 3 != 0).sum()


def test_what_is_merged_or_copied_meanwhile_is_one_state_or_another():
    clf = FaastClassifier().fit(X[:10], Y[:10])
    seen = []

    def change(i):
        clf.partial_fit(X[[i]], Y[[i]])
        for twin in (merge([clf, FaastClassifier().fit(X[:10], Y[:10])]), pickle.loads(pickle.dumps(clf))):
            seen.append((twin.n_samples_seen_, twin.moments_.n_rows))

    assert not in_threads(change, np.arange(10, 90))
    assert all(a == b for a, b in seen)
    assert clf.n_samples_seen_ == 90


def test_texts_that_several_threads_learn_are_all_there(tiny_folder):
    words = ["the", "cat", "dog", "ran", "house"]
    texts = [f"{a} {b}" for a in words for b in words]
    seq2seq = FaastSeq2Seq(f"hf:{tiny_folder('llama')}", device="cpu")
    assert not in_threads(lambda i: seq2seq.partial_fit([texts[i]], ["cat ran"]), np.arange(24), n=4)
    assert seq2seq.n_samples_seen_ == 24
    whole = FaastSeq2Seq(f"hf:{tiny_folder('llama')}", device="cpu").fit(texts[:24], ["cat ran"] * 24)
    assert seq2seq.n_tokens_seen_ == whole.n_tokens_seen_
    assert not in_threads(lambda i: seq2seq.forget([texts[i]], ["cat ran"]), np.arange(12), n=4)
    assert seq2seq.n_samples_seen_ == 12


def test_copies_do_not_wait_for_each_other():
    clf = FaastClassifier().fit(X, Y)
    twin = copy.copy(clf)
    with changing(clf):
        done = ThreadPoolExecutor(1).submit(twin.partial_fit, X[:1], Y[:1])
        assert done.result(timeout=20) is twin
        assert clf.predict(X[:2]).shape == (2,)


def test_what_fails_is_as_it_was():
    clf = FaastClassifier().fit(X, Y)
    before = dict(clf.__dict__)

    def fail():
        with changing(clf):
            clf.classes_, clf.more = None, 1
            raise InputError("no")

    with pytest.raises(InputError):
        fail()
    assert clf.__dict__ == before
