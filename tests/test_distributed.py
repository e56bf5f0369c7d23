"""Ranks of a gloo group on this machine learn their shares, and each ends with what one process would have learnt."""

import datetime
import multiprocessing
import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits

from faast_sklearn import FaastClassifier, FaastSeq2Seq, distributed
from faast_sklearn.errors import FaastError, InputError, NonFiniteError

# Forks of a server that has imported what they need and computed nothing; see test_cache_processes.py.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
if hasattr(os, "fork"):
    CONTEXT.set_forkserver_preload(
        ["faast_sklearn.distributed", "pytest", "sklearn.datasets", "transformers.modeling_utils"]
    )

X, Y = load_digits(return_X_y=True)


def _run(job, rank, size, folder, arguments):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        result = job(rank, size, *arguments)
    except Exception as error:
        result = error
    with open(folder / f"{rank}.pickle", "wb") as file:
        pickle.dump(result, file)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture
def on_ranks(tmp_path):
    """Run a job on each rank of a group of processes and return what they return, or raise."""
    processes = []

    def run(job, size, *arguments):
        folder = tmp_path / str(len(processes))
        folder.mkdir()
        mine = [CONTEXT.Process(target=_run, args=(job, rank, size, folder, arguments)) for rank in range(size)]
        processes.extend(mine)
        for process in mine:
            process.start()
        for process in mine:
            process.join(120)
            assert process.exitcode == 0
        return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(size)]

    yield run
    for process in processes:
        process.kill()
        process.join()


def told(clf):
    """What an estimator knows, as it can be compared and sent."""
    moments = clf.moments_
    return SimpleNamespace(
        coef=clf.coef_,
        intercept=clf.intercept_,
        classes=clf.classes_,
        n_samples=clf.n_samples_seen_,
        n_features=clf.n_features_in_,
        scatter=moments.scatter.matrix().numpy(),
        means=moments.means,
        counts=moments.counts,
        rows=moments.rows,
        mean_weights=moments.mean_weights,
        probabilities=clf.predict_proba(X[:20]),
    )


def same(found, whole):
    """Each rank's the same bit for bit, and all that one process learnt."""
    for name, expected in vars(whole).items():
        values = [getattr(one, name) for one in found]
        for value in values[1:]:
            np.testing.assert_array_equal(value, values[0], err_msg=name)
        if np.asarray(expected).dtype.kind == "f":
            scale = np.abs(expected).max()
            np.testing.assert_allclose(values[0], expected, rtol=1e-9, atol=1e-9 * scale, err_msg=name)
        else:
            np.testing.assert_array_equal(values[0], expected, err_msg=name)


SETTINGS = {
    "ridge": {},
    "no intercept": {"solver": "pinv", "fit_intercept": False, "alpha": 0.5},
    "unit rows": {"normalize": True},
    "balanced": {"class_weight": "balanced"},
    "values": {"values": np.eye(10)[:, ::-1]},
}
# How rows are dealt: evenly, by class so that ranks hardly share one, all to the last, and few to each.
DEALS = {
    "evenly": lambda rank, size: np.arange(rank, len(Y), size),
    "by class": lambda rank, size: np.array_split(np.argsort(Y, kind="stable"), size)[rank],
    "all to the last": lambda rank, size: np.arange(len(Y) if rank == size - 1 else 0),
    "few": lambda rank, size: np.arange(20 + rank, 60, size),
    "two rows": lambda rank, size: np.arange(2)[rank : rank + 1],
}


def _fits(rank, size):
    weight = np.linspace(0, 2, len(Y)).round(1)  # some are zero
    out = {}
    for name, options in SETTINGS.items():
        at = DEALS["by class"](rank, size)
        out[name] = told(distributed.fit(FaastClassifier(**options), X[at], Y[at], weight[at]))
    for name, deal in DEALS.items():
        at = deal(rank, size)
        clf = distributed.fit(FaastClassifier(), torch.as_tensor(X[at]) if size == 2 and len(at) else X[at], Y[at])
        out["deal " + name] = told(clf)
    # A number of samples that no later rank has makes three ways of learning the same one result.
    at, more = DEALS["evenly"](rank, size)[:200], DEALS["evenly"](rank, size)[200:]
    clf = distributed.fit(FaastClassifier(), X[at], Y[at])
    out["partial_fit"] = told(distributed.partial_fit(clf, X[more], Y[more]))
    clf = FaastClassifier()
    if rank:
        clf.fit(X[rank - 1 :: size - 1], Y[rank - 1 :: size - 1])
    out["all_reduce"] = told(distributed.all_reduce(clf))
    clf = FaastClassifier(alpha=1.0).fit(X[at], Y[at])
    clf.partial_fit(X[:1], Y[:1], classes=[70 + rank])
    out["declared"] = distributed.all_reduce(clf).classes_.tolist()
    return out


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_learn_what_one_process_would(on_ranks, size):
    found = on_ranks(_fits, size)
    assert not [one for one in found if isinstance(one, Exception)], found
    weight = np.linspace(0, 2, len(Y)).round(1)
    for name, options in SETTINGS.items():
        same([one[name] for one in found], told(FaastClassifier(**options).fit(X, Y, weight)))
    for name, deal in DEALS.items():
        at = np.concatenate([deal(rank, size) for rank in range(size)])
        same([one["deal " + name] for one in found], told(FaastClassifier().fit(X[at], Y[at])))
    whole = told(FaastClassifier().fit(X, Y))
    same([one["partial_fit"] for one in found], whole)
    same([one["all_reduce"] for one in found], whole)
    assert [one["declared"] for one in found] == [[*range(10), *range(70, 70 + size)]] * size


def _learns_texts(rank, size):
    # Not above: the other tests' processes start without it.
    from helpers.seq2seq import chosen, logits, opened, pairs, some

    data, out = chosen(pairs(40), ["cat", "dog"]), {}
    shares = {"halves": [range(15), range(15, 40)][rank], "all to the first": range(0 if rank else 40)}
    for target in ("residual", "embedding"):
        for name, share in shares.items():
            seq2seq = FaastSeq2Seq(opened("llama"), target=target, batch_size=5, choices=["cat", "dog"])
            distributed.fit(seq2seq, *some(data, share))
            assert seq2seq.moments_.reserve.n_tokens > 0
            digests = [sample.digest for sample in seq2seq.moments_.reserve.samples]
            out[target, name] = (logits(seq2seq), seq2seq.n_samples_seen_, seq2seq.n_tokens_seen_, digests)
    return out


@pytest.mark.slow
def test_ranks_teach_one_language_model(on_ranks):
    from helpers.seq2seq import chosen, logits, opened, pairs

    first, second = on_ranks(_learns_texts, 2)
    for (target, name), (found, n, tokens, digests) in first.items():
        whole = FaastSeq2Seq(opened("llama"), target=target, batch_size=5, choices=["cat", "dog"])
        whole.fit(*chosen(pairs(40), ["cat", "dog"]))
        # The model runs in float32, whose features depend a little on what else is in a batch.
        torch.testing.assert_close(found, logits(whole), rtol=0, atol=1e-4)
        assert (n, tokens) == (whole.n_samples_seen_, whole.n_tokens_seen_)
        assert digests == [sample.digest for sample in whole.moments_.reserve.samples]
        assert torch.equal(found, second[target, name][0])
        assert second[target, name][1:] == (n, tokens, digests)


def _fails(rank, size, case):
    clf = FaastClassifier().fit(X[:50], Y[:50])
    before = clf.coef_
    rows, labels = X[rank::size].copy(), Y[rank::size]
    try:
        if case == "nan":
            rows[7 if rank == 1 else slice(0, 0)] = np.nan
            distributed.fit(clf, rows, labels)
        elif case == "columns":
            distributed.fit(clf, rows[:, : 60 + rank], labels)
        elif case == "parameters":
            distributed.fit(clf.set_params(alpha=float(rank)), rows, labels)
        elif case == "fitted":
            distributed.partial_fit(clf if rank else FaastClassifier(), rows, labels)
        elif case == "labels":
            distributed.fit(clf, rows, labels.astype(str) if rank else labels)
        elif case == "nothing":
            distributed.fit(clf, rows[:0], labels[:0])
        elif case == "weights":
            distributed.fit(clf, rows, labels, np.zeros(len(labels)))
    except Exception as error:
        clf.set_params(alpha="auto")
        return type(error), str(error), bool((clf.coef_ == before).all())
    return None


FAILURES = {
    "nan": ((FaastError, "rank 1 could not learn .* NonFiniteError: .* row 7"), (NonFiniteError, "row 7")),
    "columns": ((InputError, "numbers of features, 60 and 61"),) * 2,
    "parameters": ((InputError, "rank 1 has alpha=1.0 and rank 0 0.0"),) * 2,
    "fitted": ((InputError, "rank 1 has fitted=True and rank 0 False"),) * 2,
    "labels": ((InputError, "do not mix"),) * 2,
    "nothing": ((InputError, "0 samples in all"),) * 2,
    "weights": ((InputError, "every sample_weight is zero"),) * 2,
}


def _all_fail(rank, size):
    return {case: _fails(rank, size, case) for case in FAILURES}


def test_what_goes_wrong_on_one_rank_is_told_on_all_and_changes_nothing(on_ranks):
    found = on_ranks(_all_fail, 2)
    for case, expected in FAILURES.items():
        for one, (kind, message) in zip(found, expected, strict=True):
            raised, text, unchanged = one[case]
            assert issubclass(raised, kind), (case, raised, text)
            with pytest.raises(kind, match=message):
                raise raised(text)
            assert unchanged, case


def test_without_a_group_it_is_an_ordinary_fit():
    clf = distributed.fit(FaastClassifier(), X[:900], Y[:900], np.ones(900))
    distributed.all_reduce(distributed.partial_fit(clf, X[900:], Y[900:]))
    np.testing.assert_allclose(clf.coef_, FaastClassifier().fit(X, Y).coef_, rtol=1e-9, atol=1e-12)
    assert clf.n_samples_seen_ == len(X)
