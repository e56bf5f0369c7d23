"""Dask collections teach what local rows do, whatever the scheduler, the partitions and the worker that is lost."""

import os
import pickle
import signal
import threading
import time

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster
from sklearn.datasets import load_digits

import faast_sklearn.dask as fd
from faast_sklearn import FaastClassifier, FaastSeq2Seq, backbone
from faast_sklearn.backbones.open_backbones import open_count
from faast_sklearn.errors import InputError, NonFiniteError

X, Y = load_digits(return_X_y=True)
W = np.linspace(0, 2, len(Y)).round(1)  # some are zero
FRAME = pd.DataFrame(X, columns=[f"pixel {i}" for i in range(64)]).assign(label=Y, weight=W)


@pytest.fixture
def local():
    """Dask runs in this thread."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def client():
    """Two workers, processes of one thread each, which are started anew when they are killed."""
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50)
    with cluster, Client(cluster) as connected:
        yield connected


def same(found, whole):
    """Equal in all that ``fit`` leaves, and coefficients to 1e-9."""
    scale = np.abs(whole.coef_).max()
    np.testing.assert_allclose(found.coef_, whole.coef_, rtol=1e-9, atol=1e-9 * scale)
    np.testing.assert_allclose(
        found.intercept_, whole.intercept_, rtol=1e-9, atol=1e-9 * np.abs(whole.intercept_).max()
    )
    assert found.classes_.dtype == whole.classes_.dtype
    assert found.classes_.tolist() == whole.classes_.tolist()
    for name in ("n_samples_seen_", "n_features_in_", "device_"):
        assert getattr(found, name) == getattr(whole, name), name
    names = [getattr(clf, "feature_names_in_", np.array([])).tolist() for clf in (found, whole)]
    assert names[0] == names[1]
    assert found.get_params() == whole.get_params()


def blocks(values, size=300):
    return da.from_array(values, chunks=(size, *values.shape[1:]))


def unknown(values):
    """An array of which nobody knows how long its chunks are."""
    return blocks(values)[blocks(np.ones(len(values), bool))]


def frames(n=5):
    return dd.from_pandas(FRAME, npartitions=n)


def bag(values, n=4):
    return db.from_sequence(list(values), npartitions=n)


# What X, y and weights may be: (collections, how the same is said without Dask).
PIXELS = FRAME.columns[:64].tolist()
COLLECTIONS = {
    "array": lambda: (blocks(X), blocks(Y)),
    "chunks of columns": lambda: (da.from_array(X, chunks=(400, 20)), Y),
    "other chunks": lambda: (blocks(X), da.from_array(Y, chunks=77), da.from_array(W, chunks=1000)),
    "lists beside an array": lambda: (blocks(X), Y.tolist(), W.tolist()),
    "a column of labels": lambda: (blocks(X), blocks(Y)[:, None][:, 0]),
    "unknown lengths": lambda: (unknown(X), unknown(Y), unknown(W)),
    "frame": lambda: (frames()[PIXELS], frames().label, frames().weight),
    "frame as arrays": lambda: (frames()[PIXELS].to_dask_array(), frames().label.to_dask_array()),
    "array and bag": lambda: (
        blocks(X, 450),
        db.from_delayed([dask.delayed(y.tolist()) for y in np.split(Y, [450, 900, 1350])]),
    ),
    "bags": lambda: (bag(X), bag(Y.tolist()), bag(W.tolist())),
    "bag of pairs": lambda: (bag(zip(X, Y, strict=True)),),
    "bag of triples": lambda: (bag(zip(X, Y, W, strict=True)),),
    "lazy bag": lambda: (bag(X).map(lambda x: x), bag(Y).map(lambda y: y)),
    "one partition": lambda: (blocks(X, len(X)), Y),
}


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_every_kind_of_collection_teaches_what_its_rows_do(local, kind):
    given = COLLECTIONS[kind]()
    weight = W if len(given) == 3 or kind == "bag of triples" else None
    rows = FRAME[PIXELS] if kind == "frame" else X
    same(fd.fit(FaastClassifier(), *given), FaastClassifier().fit(rows, Y, weight))


SETTINGS = {
    "paper": {"solver": "pinv", "alpha": 0.8, "normalize": True, "fit_intercept": False},
    "unit rows": {"normalize": True},
    "balanced": {"class_weight": "balanced"},
    "class weights": {"class_weight": {3: 5.0}},
    "values": {"values": np.eye(10)[:, ::-1].copy()},
    "values with a prior": {"values": np.random.default_rng(0).normal(size=(10, 64)), "prior_strength": "auto"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_parameters_mean_what_they_mean_locally(local, name):
    order = np.argsort(Y, kind="stable")  # partitions of one or two classes
    found = fd.fit(FaastClassifier(**SETTINGS[name]), blocks(X[order], 150), Y[order], W[order])
    whole = FaastClassifier(**SETTINGS[name]).fit(X[order], Y[order], W[order])
    np.testing.assert_allclose(found.predict_proba(X), whole.predict_proba(X), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.coef_, whole.coef_, rtol=1e-9, atol=1e-9 * np.abs(whole.coef_).max())
    assert found.get_params().keys() == whole.get_params().keys()
    assert found.class_weight is SETTINGS[name].get("class_weight")


def test_partitions_may_be_empty_or_without_weight(local):
    weight = np.where(np.arange(len(Y)) < 600, 0.0, 1.0)
    chunks = (0, 600, 0, 1000, 0, 1, 196)
    given = [da.from_array(values, chunks=(chunks, *values.shape[1:])) for values in (X, Y, weight)]
    for class_weight in (None, "balanced"):
        clf = FaastClassifier(class_weight=class_weight)
        same(fd.fit(clf, *given), FaastClassifier(class_weight=class_weight).fit(X, Y, weight))
    emptied = bag(zip(X, Y, strict=True), 6).filter(lambda pair: pair[1] == 9)
    same(fd.fit(FaastClassifier(), emptied), FaastClassifier().fit(X[Y == 9], Y[Y == 9]))


def test_partial_fit_may_begin_without_weight(local):
    clf = fd.partial_fit(FaastClassifier(), blocks(X[:300]), Y[:300], sample_weight=np.zeros(300))
    assert clf.n_samples_seen_ == 0
    same(fd.partial_fit(clf, blocks(X[300:]), Y[300:]), FaastClassifier().fit(X[300:], Y[300:]))


def test_what_was_learnt_before_stays_in_partial_fit_and_not_in_fit(local):
    clf = FaastClassifier().fit(X[:500], Y[:500])
    more = fd.partial_fit(clf, blocks(X[500:]), Y[500:], classes=[11])
    assert more is clf
    assert clf.classes_.tolist() == [*range(10), 11]
    same(fd.fit(clf, blocks(X[500:]), Y[500:]), FaastClassifier().fit(X[500:], Y[500:]))
    same(fd.partial_fit(FaastClassifier(), blocks(X), Y), FaastClassifier().fit(X, Y))
    fd.partial_fit(clf, blocks(X[:500]), Y[:500]).forget(X[500:], Y[500:])
    np.testing.assert_allclose(
        clf.predict_proba(X), FaastClassifier().fit(X[:500], Y[:500]).predict_proba(X), atol=1e-6
    )


def test_texts_teach_a_backbone_classifier_from_frames_and_bags(local, tiny_folder):
    texts = [f"the {a} {b}" for a in ("cat", "dog", "house") for b in ("sat", "ran", "far", "red") for _ in range(5)]
    labels = [text.split()[1] for text in texts]
    options = {"backbone": f"hf:{tiny_folder('bert')}", "values": "text", "prior_strength": 4.0}
    whole = FaastClassifier(**options).fit(texts, labels)
    table = dd.from_pandas(pd.DataFrame({"text": texts, "label": labels}), npartitions=4)
    before = open_count()
    for given in [(table.text, table.label), (table[["text"]], table.label), (bag(zip(texts, labels, strict=True)),)]:
        found = fd.fit(FaastClassifier(**options), *given)
        # The backbone is float32, and a text is padded with other ones in a partition than in the whole.
        np.testing.assert_allclose(found.predict_proba(texts), whole.predict_proba(texts), atol=1e-5)
        assert (found.classes_.tolist(), found.n_samples_seen_) == (["cat", "dog", "house"], 60)
    assert fd.predict(found, table.text).compute().tolist() == whole.predict(texts).tolist()
    assert open_count() == before


@pytest.mark.parametrize("plain", [False, True])
def test_texts_teach_a_language_model(local, plain):
    from helpers.seq2seq import chosen, logits, opened, pairs

    sources, targets = chosen(pairs(40), ["cat", "dog"])
    model, options = opened("llama"), {"batch_size": 5}
    options |= {"max_new_tokens": 4} if plain else {"choices": ["cat", "dog"]}
    if plain:
        given, whole = (bag([*sources, "cat"], 7),), FaastSeq2Seq(model, **options).fit([*sources, "cat"])
    else:
        given = (bag(zip(sources, targets, strict=True), 7),)
        whole = FaastSeq2Seq(model, **options).fit(sources, targets)
        series = dd.from_pandas(pd.DataFrame({"x": sources, "y": targets}), npartitions=3)
        parts = fd.fit(FaastSeq2Seq(model, **options), series.x, series.y)
        torch.testing.assert_close(logits(parts), logits(whole), rtol=0, atol=1e-4)
    found = fd.fit(FaastSeq2Seq(model, **options), *given)
    torch.testing.assert_close(logits(found), logits(whole), rtol=0, atol=1e-4)
    assert (found.n_samples_seen_, found.n_tokens_seen_) == (whole.n_samples_seen_, whole.n_tokens_seen_)
    asked = fd.predict(found, bag(sources, 3))
    assert asked.compute() == whole.predict(sources).tolist()
    fd.partial_fit(found, *given)
    assert found.n_samples_seen_ == 2 * whole.n_samples_seen_


def test_a_partition_of_single_tokens_is_no_error_but_all_of_them_are(local):
    from helpers.seq2seq import opened

    model = opened("llama")
    # Its end would be a token to learn.
    model[0].config.eos_token_id = model[0].generation_config.eos_token_id = model[1].eos_token = None
    found = fd.fit(FaastSeq2Seq(model), bag(["cat", "dog", "the cat sat", "mat"], 4))
    assert (found.n_samples_seen_, found.n_tokens_seen_) == (4, 2)
    with pytest.raises(InputError, match="each is a single token"):
        fd.fit(found, bag(["cat", "dog"], 2))
    assert found.n_tokens_seen_ == 2


@pytest.mark.parametrize("binary", [False, True])
def test_predictions_are_lazy_and_of_the_kind_of_x(local, binary):
    labels = np.array(["odd" if y % 2 else "even" for y in Y]) if binary else Y
    clf = FaastClassifier().fit(FRAME[PIXELS], labels)
    rows = FRAME[PIXELS]
    for method in ("predict", "predict_proba", "decision_function"):
        expected = getattr(clf, method)(rows)
        answers = getattr(fd, method)(clf, frames()[PIXELS])
        found = answers.compute()
        assert found.index.equals(rows.index)
        if method == "predict":
            np.testing.assert_array_equal(found.to_numpy(), expected)
        else:  # products of other numbers of rows differ in the last digit with some BLAS
            np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-9, atol=1e-12)
        assert answers._meta.ndim == expected.ndim
        if expected.ndim == 2:
            assert answers.columns.tolist() == clf.classes_.tolist()
        arrays = FaastClassifier().fit(X, labels)
        for chunked in (da.from_array(X, chunks=(400, 30)), unknown(X)):
            answers = getattr(fd, method)(arrays, chunked)
            assert isinstance(answers, da.Array)
            assert answers.dtype == expected.dtype
            assert answers.ndim == expected.ndim
            found = answers.compute()
            assert found.shape == expected.shape
            assert method != "predict" or found.tolist() == expected.tolist()
            assert method == "predict" or np.allclose(found, expected, rtol=1e-9, atol=1e-12)
        some = np.array(getattr(fd, method)(arrays, bag(X, 3)).compute())
        assert some.shape == expected.shape
        if method == "predict":
            assert some.tolist() == expected.tolist()
        else:
            np.testing.assert_allclose(some, expected, rtol=1e-9, atol=1e-12)
    # What the workers get predicts, and is as small as that.
    sent, kept = (len(pickle.dumps(one)) for one in (clf._without_moments(), clf))
    assert sent < kept / 2
    empty = fd.predict_proba(clf, frames()[PIXELS].query("`pixel 0` > 5"))
    assert empty.compute().shape == (0, len(clf.classes_))


def _paired(n, width):
    return bag([(x,) * width for x in X[:n]])


FAILURES = {
    "a bad row": (
        lambda: (blocks(np.where(np.arange(len(X))[:, None] == 650, np.nan, X)), Y),
        NonFiniteError,
        "^Partition 2: .* row 50",
    ),
    "lengths known": (lambda: (blocks(X), Y[:-1]), InputError, "X has 1797 samples and y has"),
    "lengths unknown": (
        lambda: (unknown(X), unknown(np.append(Y, 0))),
        InputError,
        "Partition 5: X has 297 samples and y has 298",
    ),
    "partitions": (lambda: (frames(5)[PIXELS], frames(3).label), InputError, "X has 5 partitions and y has 3"),
    "array beside a frame": (lambda: (frames()[PIXELS], Y), InputError, "number of samples in each partition of X"),
    "list beside unknown": (lambda: (unknown(X), Y), InputError, "compute_chunk_sizes"),
    "rows": (lambda: (X, Y), InputError, "X is a ndarray, expected a dask array"),
    "no labels": (lambda: (blocks(X),), InputError, "requires y"),
    "no labels in a bag": (lambda: (bag(X),), InputError, r"^Partition \d: .*requires y"),
    "too long tuples": (lambda: (_paired(20, 4),), InputError, "expected \\(x, y\\)"),
    "widths": (
        lambda: (bag([*X[:20], *X[20:40, :50]], 2), bag(Y[:40].tolist(), 2)),
        InputError,
        "numbers of features, 64 and 50|has 50 features",
    ),
    "weights": (lambda: (blocks(X), Y, np.zeros(len(Y))), InputError, "every sample_weight is zero"),
    "nothing": (
        lambda: (bag(X).filter(lambda x: False), bag(Y).filter(lambda y: False)),
        InputError,
        "0 samples in all",
    ),
    "labels": (lambda: (blocks(X), np.where(Y == 3, Y, Y.astype(str).astype(object))), InputError, "mix"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_errors_name_the_partition_and_change_nothing(local, case):
    make, kind, message = FAILURES[case]
    clf = FaastClassifier().fit(X[:100], Y[:100])
    before = dict(vars(clf))
    with pytest.raises(kind, match=message):
        fd.fit(clf, *make())
    assert vars(clf) == before
    if case not in ("weights", "nothing"):
        with pytest.raises(kind, match=message):
            fd.partial_fit(clf, *make())
        assert vars(clf) == before


def test_what_needs_all_samples_in_one_place_is_refused(local):
    with pytest.raises(ValueError, match="needs all labels at once"):
        fd.partial_fit(FaastClassifier(class_weight="balanced"), blocks(X), Y)
    with pytest.raises(ValueError, match="solver must be"):
        fd.fit(FaastClassifier(solver="none"), blocks(X), Y)
    with pytest.raises(ValueError, match="70 features"):
        fd.partial_fit(FaastClassifier().fit(np.ones((4, 70)), [0, 1, 0, 1]), blocks(X), Y)


class Counting(torch.nn.Module):
    """Counts how many passes run at once."""

    def __init__(self):
        super().__init__()
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def forward(self, x):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.02)
        with self.lock:
            self.now -= 1
        return x.float()


@pytest.mark.parametrize(("threads", "most"), [(1, 4), (2, 2), (4, 1), (9, 1)])
def test_threads_of_one_process_take_turns_where_each_starts_others(monkeypatch, threads, most):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(fd, "CPU_COUNT", 4)
    fd._turns.cache_clear()
    module, before = Counting(), open_count()
    with dask.config.set(scheduler="threads", num_workers=6):
        fd.fit(FaastClassifier(backbone(module), device="cpu"), da.from_array(X[:960], chunks=(80, 64)), Y[:960])
    fd._turns.cache_clear()
    assert module.most <= most
    assert (module.most > 1) == (most > 1)
    assert open_count() == before + 1


def test_labels_are_counted_without_computing_samples(local):
    computed = []

    def seen(block):
        computed.append(len(block))
        return block

    rows = da.from_array(X, chunks=(300, 64)).map_blocks(seen, meta=np.empty((0, 0)))
    found = fd.fit(FaastClassifier(class_weight="balanced"), rows, Y)
    same(found, FaastClassifier(class_weight="balanced").fit(X, Y))
    assert sorted(computed) == [297] + [300] * 5  # once each


# Workers


@pytest.mark.slow
def test_workers_give_what_one_process_gives_with_one_backbone_each(client):
    same(fd.fit(FaastClassifier(), da.from_array(X, chunks=(100, 20)), Y, W), FaastClassifier().fit(X, Y, W))
    table = frames(7)
    given = (table[PIXELS], table.label, table.weight)
    options = {"class_weight": "balanced"}
    same(fd.fit(FaastClassifier(**options), *given), FaastClassifier(**options).fit(FRAME[PIXELS], Y, W))
    clf = FaastClassifier().fit(X, Y)
    found = fd.predict_proba(clf, da.from_array(X, chunks=(100, 64))).compute()
    np.testing.assert_allclose(found, clf.predict_proba(X), rtol=1e-9, atol=1e-12)

    # A module in memory travels with the call, and is opened once for all partitions of a worker.
    model, before = torch.nn.Flatten(), client.run(open_count)
    found = fd.fit(FaastClassifier(model, normalize=False, device="cpu"), blocks(X, 100), Y)
    assert all(count - before[worker] <= 1 for worker, count in client.run(open_count).items())
    np.testing.assert_allclose(found.coef_, FaastClassifier().fit(X.astype(np.float32), Y).coef_, rtol=1e-6, atol=1e-9)


def test_errors_of_workers_reach_the_caller(client):
    bad = X.copy()
    bad[450, 3] = np.inf
    with pytest.raises(NonFiniteError, match=r"^Partition 4: .*row 50, column 3"):
        fd.fit(FaastClassifier(), blocks(bad, 100), Y)


def test_verbose_shows_the_bars_of_dask(client, capsys):
    fd.fit(FaastClassifier(verbose=1), blocks(X), Y)
    assert "100% Completed" in capsys.readouterr().out
    with dask.config.set(scheduler="synchronous"):
        fd.fit(FaastClassifier(verbose=1), blocks(X), Y)
    out, err = capsys.readouterr()
    assert "100% Completed" in out
    assert not err


class Logging(torch.nn.Module):
    """Notes the first number of each batch and the process that it was in, at a pace."""

    def __init__(self, log, seconds):
        super().__init__()
        self.log, self.seconds = str(log), seconds

    def forward(self, x):
        time.sleep(self.seconds)
        with open(self.log, "ab", buffering=0) as file:
            file.write(f"{int(x[0, 0])} {os.getpid()}\n".encode())
        return x[:, 1:].float()


def passes(log):
    """(partition, process) of each pass so far."""
    return [tuple(map(int, line.split())) for line in log.read_text().splitlines()] if log.exists() else []


class Killer(threading.Thread):
    """Kills one worker, without warning, as soon as a condition holds."""

    def __init__(self, client, condition):
        super().__init__()
        self.victim = min(client.run(os.getpid).values())
        self.condition = condition

    def run(self):
        until = time.monotonic() + 120
        while not self.condition(self.victim) and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(self.victim, signal.SIGKILL)


@pytest.mark.slow
def test_a_lost_worker_costs_its_own_partitions_and_nothing_else(client, tmp_path):
    n, size, log = 40, 30, tmp_path / "log"
    rows = np.column_stack([np.repeat(np.arange(n), size), X[: n * size]])
    clf = FaastClassifier(backbone(Logging(log, 0.05)), normalize=False, device="cpu", batch_size=size)
    killer = Killer(client, lambda victim: sum(pid == victim for _, pid in passes(log)) >= 10)
    killer.start()
    fd.fit(clf, da.from_array(rows, chunks=(size, 65)), Y[: n * size])
    killer.join()
    seen = passes(log)
    lost = {partition for partition, pid in seen if pid == killer.victim}
    counts = np.bincount([partition for partition, _ in seen], minlength=n)
    assert len(lost) >= 10
    assert counts.min() == 1, "every partition was learnt"
    assert set(np.flatnonzero(counts > 1)) <= lost
    assert counts.max() == 2
    whole = FaastClassifier().fit(rows[:, 1:].astype(np.float32), Y[: n * size])
    np.testing.assert_allclose(clf.coef_, whole.coef_, rtol=1e-9, atol=1e-9 * np.abs(whole.coef_).max())
    assert clf.n_samples_seen_ == n * size


def read_images(start, stop, log):
    """Digits, as images; the partition and its process are noted."""
    with open(log, "ab", buffering=0) as file:
        file.write(f"{start} {os.getpid()}\n".encode())
    return np.kron(X[start:stop].reshape(-1, 8, 8) * 15, np.ones((4, 4))).astype(np.uint8)


@pytest.mark.slow
def test_two_workers_learn_images_as_one_process_does(client, tmp_path):
    n, size, labels = 300, 50, Y[:300]

    def images(log):
        blocks = [
            da.from_delayed(dask.delayed(read_images)(i, i + size, tmp_path / log), (size, 32, 32), np.uint8)
            for i in range(0, n, size)
        ]
        return da.concatenate(blocks)

    def estimator():
        # Batches of one size: the kernels of float32 backbones are chosen by it.
        encoder = backbone("bundled:efficientnet-lite0", image_size=32)
        return FaastClassifier(encoder, device="cpu", batch_size=size)

    local = read_images(0, n, tmp_path / "local")
    whole = estimator().fit(local, labels)
    assert whole.score(local, labels) > 0.7
    opened_before = client.run(open_count)
    same(fd.fit(estimator(), images("undisturbed"), labels), whole)
    assert sorted(partition for partition, _ in passes(tmp_path / "undisturbed")) == list(range(0, n, size))
    opened = client.run(open_count)
    fd.fit(estimator(), images("again")[: 2 * size], labels[: 2 * size])
    assert client.run(open_count) == opened, "the backbone that a worker has is the one for all calls"
    assert all(opened[worker] - opened_before[worker] == 1 for worker in opened)
