"""A directory serves several processes: they share the work, survive each other's deaths and the forks of their own."""

import contextlib
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.processes import CONTEXT
from joblib import parallel_config
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from faast_sklearn import BackboneFeatures, FaastClassifier, FeatureCache, backbone
from faast_sklearn.features.cache.processes import forsake, is_alive, process_owner

# Newer versions of Python warn of forks beside threads.
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="new interpreters would take most of the time"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
if hasattr(os, "fork"):
    CONTEXT.set_forkserver_preload(["faast_sklearn", "sklearn.datasets"])


class Logging(torch.nn.Module):
    """Appends the sums of what it encodes to a file, whatever process it runs in, at a pace."""

    def __init__(self, log, seconds=0.0):
        super().__init__()
        self.log = str(log)
        self.seconds = seconds  # part of its fingerprint, as any attribute

    def forward(self, x):
        x = x.flatten(1).float()
        with open(self.log, "ab", buffering=0) as file:  # one write of an appended line is not torn
            file.write("".join(f"{float(total):.6f}\n" for total in x.double().sum(1)).encode())
        time.sleep(self.seconds * len(x))
        return x[:, ::5].clone()


def logged(path):
    return sorted(Path(path).read_text().split())


def images(n):
    """Images whose sums all differ."""
    out = (load_digits().images[:n] * 3).astype(np.uint8)
    out[:, 0, 0], out[:, 0, 7] = np.arange(n) // 200, np.arange(n) % 200
    _, first = np.unique([image.sum() for image in out], return_index=True)
    return out[np.sort(first)], load_digits().target[:n][np.sort(first)]


def search(estimator, grid, X, y):
    return GridSearchCV(estimator, grid, cv=5).fit(X, y)


@pytest.mark.parametrize("kind", [pytest.param("pipeline", marks=pytest.mark.slow), "classifier"])
def test_a_search_with_two_workers_encodes_each_image_once(tmp_path, kind):
    X, y = images(400)
    handle = backbone(Logging(tmp_path / "log"), modality="image")
    if kind == "pipeline":
        features = BackboneFeatures(handle, device="cpu", batch_size=4, cache=tmp_path / "cache")
        estimator, name = make_pipeline(features, RidgeClassifier()), "ridgeclassifier__alpha"
    else:
        estimator, name = FaastClassifier(handle, device="cpu", batch_size=4, cache=str(tmp_path / "cache")), "alpha"
    # New interpreters: in a fork of a process whose threads have computed, theirs wait for ever.
    with parallel_config(backend="loky", n_jobs=2):
        found = search(estimator, {name: [0.1, 1, 10, 100]}, X, y)
    found.predict(X)
    assert len(logged(tmp_path / "log")) == len(X) == len(set(logged(tmp_path / "log")))
    again = search(estimator, {name: [0.1, 1, 10, 100]}, X, y)
    np.testing.assert_array_equal(again.cv_results_["mean_test_score"], found.cv_results_["mean_test_score"])
    assert len(logged(tmp_path / "log")) == len(X)


def _work(folder, name, seconds):
    features = BackboneFeatures(Logging(folder / "log", seconds), device="cpu", batch_size=4, cache=folder / "cache")
    X = np.load(folder / "X.npy")
    np.save(folder / f"{name}.npy", features.fit(X).transform(X))


@pytest.fixture
def start(tmp_path):
    """Start a process that encodes rows through the directory ``cache``; it is killed at the end if it still runs."""
    running = []
    np.save(tmp_path / "X.npy", np.random.default_rng(0).normal(size=(120, 2, 20)))

    def started(name, seconds=0.0):
        running.append(CONTEXT.Process(target=_work, args=(tmp_path, name, seconds)))
        running[-1].start()
        return running[-1]

    yield started
    for process in running:
        process.kill()
        process.join()


def expected(tmp_path):
    return np.load(tmp_path / "X.npy").reshape(120, -1)[:, ::5].astype(np.float32)


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def n_logged(tmp_path):
    with contextlib.suppress(OSError):
        return len(logged(tmp_path / "log"))
    return 0


@pytest.mark.slow
def test_two_processes_at_once_share_the_work(tmp_path, start):
    processes = [start(str(i), seconds=0.004) for i in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for i in range(2):
        assert np.array_equal(np.load(tmp_path / f"{i}.npy"), expected(tmp_path))
    assert len(logged(tmp_path / "log")) == len(set(logged(tmp_path / "log"))) == 120
    # Nothing is left behind.
    (file,) = (tmp_path / "cache").glob("features-*.sqlite")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM claims").fetchone() == (0,)


def test_a_killed_process_loses_only_the_samples_in_hand(tmp_path, start):
    killed = start("killed", seconds=0.004)
    wait_for(lambda: n_logged(tmp_path) >= 41)
    killed.kill()
    killed.join()
    n_before = n_logged(tmp_path)
    cache = FeatureCache(tmp_path / "cache")
    assert n_before - 4 <= len(cache) <= n_before  # a batch of four was being encoded or stored
    heir = start("heir", seconds=0.004)
    heir.join(60)  # what was claimed is anybody's
    assert heir.exitcode == 0
    assert np.array_equal(np.load(tmp_path / "heir.npy"), expected(tmp_path))  # what is there is whole
    assert n_logged(tmp_path) <= 120 + 4
    (file,) = (tmp_path / "cache").glob("features-*.sqlite")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_waiting_process_takes_over_from_one_that_is_killed(tmp_path, start):
    first = start("first", seconds=0.02)
    wait_for(lambda: n_logged(tmp_path) >= 9)  # it has claimed the first 32
    second = start("second", seconds=0.02)
    wait_for(lambda: n_logged(tmp_path) >= 40)
    first.kill()
    second.join(60)
    assert second.exitcode == 0
    assert np.array_equal(np.load(tmp_path / "second.npy"), expected(tmp_path))


def _encode(path, log, X, results):
    features = BackboneFeatures(Logging(log), device="cpu", batch_size=4, cache=path)
    results.put(features.fit(X[:1]).transform(X))


def _fork(tmp_path):
    X = np.random.default_rng(1).normal(size=(40, 2, 20))
    path = str(tmp_path / "cache")
    features = BackboneFeatures(Logging(tmp_path / "log"), device="cpu", batch_size=4, cache=path)
    half = features.fit(X[:1]).transform(X[:20])
    forking = multiprocessing.get_context("fork")
    results = forking.SimpleQueue()
    children = [forking.Process(target=_encode, args=(path, tmp_path / "log", X, results)) for _ in range(2)]
    for child in children:
        child.start()
    outs = [results.get() for _ in children]
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    for out in outs:
        assert np.array_equal(out[:20], half)
        assert np.array_equal(out, features.transform(X))
    assert n_logged(tmp_path) == 40


def test_forks_use_the_cache_of_their_parent(tmp_path):
    parent = CONTEXT.Process(target=_fork, args=(tmp_path,))
    parent.start()
    parent.join(60)
    assert parent.exitcode == 0


@pytest.mark.slow
def test_an_owner_is_alive_while_its_process_is(tmp_path):
    mine = process_owner(tmp_path)
    assert process_owner(tmp_path) == mine
    assert is_alive(tmp_path, mine)
    assert not is_alive(tmp_path, "never")
    code = (
        "from faast_sklearn.features.cache.processes import process_owner, is_alive; from pathlib import Path;"
        f"d = Path({str(tmp_path)!r}); assert is_alive(d, {mine!r}); print(process_owner(d), flush=True); input()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    name = other.stdout.readline().strip()
    assert name
    assert is_alive(tmp_path, name)
    other.kill()
    other.communicate()
    assert not is_alive(tmp_path, name)
    forsake(tmp_path)
    assert not is_alive(tmp_path, mine)
    assert not list(tmp_path.glob("owner-*"))


@pytest.mark.slow
def test_a_child_does_not_keep_its_dead_parent_alive(tmp_path):
    code = textwrap.dedent(f"""
        import os, sys, time
        from pathlib import Path
        from faast_sklearn.features.cache.processes import process_owner, is_alive
        name = process_owner(Path({str(tmp_path)!r}))
        if os.fork() == 0:
            parent = os.getppid()
            assert is_alive(Path({str(tmp_path)!r}), name)
            print(name, flush=True)
            while os.getppid() == parent:
                time.sleep(0.01)
            end = time.monotonic() + 20  # until it is waited for, the dead process is still listed
            while is_alive(Path({str(tmp_path)!r}), name) and time.monotonic() < end:
                time.sleep(0.01)
            print(is_alive(Path({str(tmp_path)!r}), name), flush=True)
            sys.stdin.readline()
            os._exit(0)
        time.sleep(60)
    """)
    parent = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    name = parent.stdout.readline().strip()
    assert is_alive(tmp_path, name)
    parent.kill()
    parent.wait()
    assert parent.stdout.readline().strip() == "False"
    assert not is_alive(tmp_path, name)  # while the child still runs
    parent.communicate("\n")
