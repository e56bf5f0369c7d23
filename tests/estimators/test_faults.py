"""Faults without loss: whatever breaks, a change is made as a whole or not at all, and nothing else changes."""

import errno
import itertools
import logging
import os
import random
import sqlite3
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.language import hook_count
from helpers.processes import CONTEXT
from helpers.seq2seq import chosen, opened, pairs
from helpers.tiny import tiny_model, tiny_tokenizer
from helpers.unchanged import everything_as_before
from PIL import Image

from faast_sklearn import BackboneFeatures, FaastClassifier, FaastSeq2Seq, FeatureCache, backbone
from faast_sklearn.backbones.base import Backbone, ForwardPass
from faast_sklearn.backbones.modules import ModuleBackbone
from faast_sklearn.errors import InputError, MissingDependencyError, NonFiniteError, OutOfMemoryError
from faast_sklearn.estimators import classifier
from faast_sklearn.estimators.base import LearningMixin
from faast_sklearn.features import labelled, readers
from faast_sklearn.features import loop as batching
from faast_sklearn.features.cache import directory_store
from faast_sklearn.features.cache.directory_store import DirectoryStore
from faast_sklearn.features.cache.memory_store import MemoryStore
from faast_sklearn.features.loader import Loader
from faast_sklearn.features.progress import Report
from faast_sklearn.language import fast_weights, passes
from faast_sklearn.language import problem as compiling
from faast_sklearn.language.generation import Generator
from faast_sklearn.language.moments import LanguageMoments
from faast_sklearn.language.passes import LearningPass, LikelihoodPass
from faast_sklearn.language.prompts import Prompts
from faast_sklearn.moments import ClassMoments
from faast_sklearn.moments.collect import recent
from faast_sklearn.readout import LinearReadout
from faast_sklearn.readout import problem as compiled

RNG = np.random.default_rng(0)
N = 14
Y = np.arange(N) % 3
X = RNG.normal(size=(N, 4)).astype(np.float32)
X[np.arange(N), Y] += 2.0
TEST = RNG.normal(size=(9, 4)).astype(np.float32)

# What stands for an interrupt, the end of the program, a bug, and a memory that is exhausted.
ERRORS = (KeyboardInterrupt, SystemExit, RuntimeError, MemoryError)


# Everything as before


class Squares(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Dropout(0.5)  # whose flag would show that a pass left it in another mode

    def forward(self, x):
        x = self.inner(x.flatten(1).float())
        return torch.cat([x, x * x], 1)


def test_the_harness_sees_every_kind_of_change():
    """A test of the tests: each thing that a fault could leave behind is told."""
    module = Squares()
    clf = FaastClassifier(module, device="cpu").fit(X, Y)
    changes = {
        "n_samples_seen_": lambda: setattr(clf, "n_samples_seen_", N + 1),
        "_more": lambda: setattr(clf, "_more", 1),
        "_problem": lambda: clf._problem.moments.counts.__setitem__(0, 9.0),
        "flags": lambda: module.eval(),
        "hook": lambda: module.register_forward_hook(print),
        "weights": lambda: clf.partial_fit(X, Y),
        "numpy random": lambda: np.random.seed(3),  # noqa: NPY002
        "python random": lambda: random.seed(3),
        "torch random": lambda: torch.manual_seed(3),
        "modes": lambda: torch.set_grad_enabled(False),
        "default dtype": lambda: torch.set_default_dtype(torch.float64),
        "warnings": lambda: warnings.simplefilter("ignore"),
        "environment": lambda: os.environ.__setitem__("FAAST_TEST", "1"),
        "logging": lambda: logging.getLogger("faast_sklearn").setLevel(logging.CRITICAL),
    }
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    level = logging.getLogger("faast_sklearn").level
    try:
        for name, change in changes.items():
            with warnings.catch_warnings(), pytest.raises(AssertionError) as told, everything_as_before(clf, module):
                change()
            assert name not in ("_problem", "environment", "logging") or name in str(told.value)
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)
        random.setstate(states[0])
        torch.set_rng_state(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
        os.environ.pop("FAAST_TEST", None)
        logging.getLogger("faast_sklearn").setLevel(level)


# An error at each stage of each call


class Fault:
    """Counts the calls of a function in place, and raises at one of them."""

    def __init__(self, monkeypatch, owner, name, at=None, error=None):
        self.count, self.fired, self.at, self.error = 0, 0, at, error
        function = vars(owner)[name]
        self.function = function.__func__ if isinstance(function, classmethod) else function
        self.lock = threading.Lock()

        def replaced(*args, **options):
            with self.lock:
                self.count += 1
                strikes = self.count == self.at
            if strikes:
                self.fired += 1
                raise self.error("injected")
            return self.function(*args, **options)

        monkeypatch.setattr(owner, name, classmethod(replaced) if isinstance(function, classmethod) else replaced)


STAGES = {
    "open the source": (readers.BackboneReader, "__init__"),
    "open the rows": (readers.TableReader, "__init__"),
    "check the samples": (readers.BackboneReader, "samples"),
    "check the rows": (readers.TableReader, "samples"),
    "check the labels": (labelled, "check_labels"),
    "begin a report": (Report, "__init__"),
    "hand a batch to the threads": (Loader, "submit"),
    "read a sample": (ModuleBackbone, "read"),
    "collate": (ModuleBackbone, "collate"),
    "run the model": (ModuleBackbone, "forward"),
    "check the form": (Backbone, "check"),
    "check the features": (ForwardPass, "finite"),
    "read the flags": (batching._Flags, "rows"),
    "count a batch": (Report, "add"),
    "take a batch of rows": (readers, "moments_device"),
    "digest samples": (readers.BackboneReader, "_sample_keys"),
    "look up": (MemoryStore, "get"),
    "claim": (MemoryStore, "claim"),
    "store": (MemoryStore, "put"),
    "look up in the file": (DirectoryStore, "get"),
    "claim in the file": (DirectoryStore, "claim"),
    "store in the file": (directory_store, "_put"),
    "moments of a batch": (ClassMoments, "from_codes"),
    "sum of moments": (ClassMoments, "__add__"),
    "difference of moments": (ClassMoments, "__sub__"),
    "look for overflow": (classifier, "refuse_overflow"),
    "join with the parameters": (classifier, "ReadoutProblem"),
    "publish": (LearningMixin, "_publish"),
    "solve": (compiled, "fast_weights"),
    "read out": (compiled, "discriminant_readout"),
    "score": (LinearReadout, "scores"),
    "probabilities": (LinearReadout, "log_probabilities"),
    "end a report": (Report, "__exit__"),
}

# What a cache in a file adds to one in memory, and what it might be left half-way by.
OF_A_FILE = [name for name in STAGES if "file" in name] + ["digest samples", "run the model", "score", "publish"]

CALLS = {
    "fit": lambda clf: clf.fit(X[::-1] * 2, Y[::-1]),
    "partial_fit": lambda clf: clf.partial_fit(X[:9] + 1, Y[:9], classes=[7]),
    "forget": lambda clf: clf.forget(X[:5], Y[:5]),
    "predict": lambda clf: clf.predict(TEST),
    "predict_proba": lambda clf: clf.predict_proba(TEST),
    "score": lambda clf: clf.score(TEST, Y[:9]),
}

KINDS = {
    "rows": lambda module, folder: {},
    "batches": lambda module, folder: {"backbone": module, "batch_size": 4},
    "memory": lambda module, folder: {"backbone": module, "batch_size": 4, "cache": FeatureCache()},
    "directory": lambda module, folder: {"backbone": module, "batch_size": 4, "cache": FeatureCache(folder)},
}


def learner(kind, module, folder):
    """An estimator that has learnt and not solved yet: a fault may come while it does."""
    recent._entries.clear()  # moments of the same rows that other estimators left to this process
    return FaastClassifier(device="cpu", **KINDS[kind](module, folder)).fit(X, Y)


def answers(clf):
    return [clf.classes_, clf.predict_proba(TEST), clf.coef_, clf.intercept_, np.array(clf.n_samples_seen_)]


def outcome(clf, result):
    """What a call gave: for those that learn, what the estimator answers now."""
    return answers(clf) if result is clf else [np.asarray(result)]


def assert_same(found, wanted, kind, where):
    # What a broken call has put into a cache comes back in other batches, whose sums differ in the last bits.
    tolerance = 1e-9 if kind in ("memory", "directory") else 0.0
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=str(where))


def count_of(monkeypatch, stage, clf, call):
    """How often a call comes to a stage. One stage at a time: a cache sees that a backbone has been tampered with."""
    with monkeypatch.context() as patch:
        fault = Fault(patch, *STAGES[stage])
        call(clf)
    return fault.count


def cases():
    """One error at each stage, in turn, and once all of them; all answers pass the same stages, so rows try each."""
    seldom = {("memory", "partial_fit"), ("memory", "forget"), ("memory", "predict"), ("directory", "predict")}
    for kind, call in itertools.product(KINDS, CALLS):
        of_answers = kind != "rows" and call in ("predict_proba", "score")
        if (kind, call) in seldom:
            yield pytest.param(kind, call, 1, marks=pytest.mark.slow)
        elif not of_answers and (kind != "directory" or call == "fit"):
            yield kind, call, 1
    yield pytest.param("batches", "fit", 4, marks=pytest.mark.slow)


@pytest.mark.parametrize(("kind", "call", "n_errors"), list(cases()))
def test_an_error_at_any_stage_changes_nothing(kind, call, n_errors, monkeypatch, tmp_path):
    module, folders = Squares(), (tmp_path / str(i) for i in itertools.count())
    twin = learner(kind, module, next(folders))
    before = answers(learner(kind, module, next(folders)))
    wanted = outcome(twin, CALLS[call](twin))
    turn, n_faults = itertools.cycle(ERRORS), 0
    for stage in STAGES if kind != "directory" else OF_A_FILE:
        count = count_of(monkeypatch, stage, learner(kind, module, next(folders)), CALLS[call])
        for at in sorted({1, count}) if n_errors == 1 and count else [(count + 1) // 2] if count else []:
            for error in itertools.islice(turn, n_errors):
                where = (stage, at, error)
                clf = learner(kind, module, next(folders))
                if stage == "run the model" and error is MemoryError:
                    continue  # no fault: the batch is halved, see below
                with everything_as_before(clf, module), monkeypatch.context() as patch:
                    fault = Fault(patch, *STAGES[stage], at, error)
                    # A sample that cannot be read is an InputError that says why, whatever it was.
                    told = InputError if stage == "read a sample" and error is RuntimeError else error
                    with pytest.raises(told, match="injected"):
                        CALLS[call](clf)
                    assert fault.fired == 1, where
                assert_same(answers(clf), before, kind, where)
                assert_same(outcome(clf, CALLS[call](clf)), wanted, kind, where)
                n_faults += 1
    assert n_faults >= (9 if kind != "directory" else 3)


def test_every_stage_is_a_part_of_some_call(monkeypatch, tmp_path):
    reached = set()
    for kind in KINDS:
        for call in CALLS.values():
            clf = learner(kind, Squares(), tmp_path / kind)
            with monkeypatch.context() as patch:
                faults = {stage: Fault(patch, *place) for stage, place in STAGES.items()}
                call(clf)
            reached |= {stage for stage, fault in faults.items() if fault.count}
    assert reached == STAGES.keys()


def test_an_interrupted_solve_is_done_by_whoever_asks_next(monkeypatch):
    clf, twin = learner("rows", None, None), learner("rows", None, None)
    with monkeypatch.context() as patch:
        fault = Fault(patch, *STAGES["solve"], 1, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            clf.predict(TEST)
        assert fault.fired == 1
        # The lock of the solve is free again, for other threads too, and the next one solves.
        found = []
        thread = threading.Thread(target=lambda: found.append(clf.predict_proba(TEST)))
        thread.start()
        thread.join(20)
        assert fault.count == 2
    assert np.array_equal(found[0], twin.predict_proba(TEST))


def test_what_an_interrupted_pass_had_claimed_is_free(monkeypatch):
    """Else other threads would wait for samples that nobody encodes."""
    cache = FeatureCache()
    features = BackboneFeatures(Squares(), device="cpu", batch_size=4, cache=cache).fit(X[:1])
    for stage in ("claim", "run the model", "store"):
        cache.clear()
        with monkeypatch.context() as patch:
            fault = Fault(patch, *STAGES[stage], 2 if stage != "claim" else 1, KeyboardInterrupt)
            with pytest.raises(KeyboardInterrupt):
                features.transform(X)
            assert fault.fired == 1
        found = []
        thread = threading.Thread(target=lambda found=found: found.append(features.transform(X)), daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert np.array_equal(found[0], BackboneFeatures(Squares(), device="cpu").fit_transform(X))


# The same for language models

TOLD = pairs(6)
ASKED = pairs(3, 9)

LANGUAGE_STAGES = {
    "open the model": (FaastSeq2Seq, "_open_backbone"),
    "read the template": (Prompts, "__init__"),
    "write the prompts": (Prompts, "_fit"),
    "hand a batch to the threads": (Loader, "submit"),
    "collate": (passes._AnswerPass, "collate"),
    "collate questions": (Generator, "collate"),
    "run the model to learn": (LearningPass, "forward"),
    "run the model to score": (LikelihoodPass, "forward"),
    "generate": (Generator, "forward"),
    "decode": (Generator, "_decode"),
    "find hidden states": (passes, "hidden_states"),
    "moments of a batch": (passes, "token_moments"),
    "sum of moments": (LanguageMoments, "__add__"),
    "difference of moments": (LanguageMoments, "__sub__"),
    "publish": (LearningMixin, "_publish"),
    "solve": (compiling, "solve_weights"),
    "place hooks": (fast_weights, "hooked"),
    "adapt states": (fast_weights.FastWeights, "adapt"),
    "count a batch": (Report, "add"),
}

WITHIN_A_PASS = {
    "run the model to learn",
    "run the model to score",
    "generate",
    "decode",
    "find hidden states",
    "moments of a batch",
    "place hooks",
    "adapt states",
}

LANGUAGE_CALLS = {
    "fit": lambda s: s.fit(TOLD[0][::-1], TOLD[1]),
    "partial_fit": lambda s: s.partial_fit(*ASKED),
    "forget": lambda s: s.forget(TOLD[0][:2], TOLD[1][:2]),
    "predict": lambda s: list(s.predict(ASKED[0])),
    "perplexity": lambda s: s.perplexity(*ASKED),
}


def language_learner(source):
    return FaastSeq2Seq(source, batch_size=2, max_new_tokens=2, alpha=0.1, memory_weight=1.0).fit(*TOLD)


def said(seq2seq, result):
    return (seq2seq.perplexity(*ASKED), seq2seq.n_tokens_seen_) if result is seq2seq else result


def language_cases():
    seldom = [("llama", "partial_fit"), ("llama", "perplexity"), ("t5", "fit"), ("t5", "predict")]
    usual = [("llama", "fit"), ("llama", "forget"), ("llama", "predict")]
    return [*usual, *(pytest.param(*case, marks=pytest.mark.slow) for case in seldom)]


@pytest.mark.parametrize(("name", "call"), language_cases())
def test_an_error_at_any_stage_changes_nothing_in_a_language_model(name, call, monkeypatch):
    source = opened(name)
    twin = language_learner(source)
    before = said(twin, twin)
    with monkeypatch.context() as patch:
        faults = {stage: Fault(patch, *place) for stage, place in LANGUAGE_STAGES.items()}
        wanted = LANGUAGE_CALLS[call](twin)
    reached = {stage: fault.count for stage, fault in faults.items() if fault.count}
    wanted = said(twin, wanted)
    turn = itertools.cycle(ERRORS)
    assert len(reached) >= 7
    for stage, count in reached.items():
        error = next(turn)
        if error is MemoryError and stage in WITHIN_A_PASS:
            error = next(turn)  # no fault: the batch is halved
        seq2seq = language_learner(source)
        with everything_as_before(seq2seq, source[0]), monkeypatch.context() as patch:
            fault = Fault(patch, *LANGUAGE_STAGES[stage], count, error)
            with pytest.raises(error, match="injected"):
                LANGUAGE_CALLS[call](seq2seq)
            assert fault.fired == 1, stage
        if call == "predict":  # what answers follow from is the same state as for what is learnt
            assert said(seq2seq, LANGUAGE_CALLS[call](seq2seq)) == wanted, stage
            continue
        assert said(seq2seq, seq2seq) == before, stage
        assert said(seq2seq, LANGUAGE_CALLS[call](seq2seq)) == wanted, stage


# Memory


class Fits(Squares):
    """A model on a device that holds so many samples at a time."""

    def __init__(self, most):
        super().__init__()
        self.most = most
        self.sizes = []

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 byte.")
        self.sizes.append(len(x))
        return super().forward(x)


M = 7


@pytest.mark.parametrize(("most", "batch_size"), [(0, "auto"), (1, "auto"), (3, "auto"), (M, "auto"), (5, M)])
def test_out_of_memory_at_every_batch_size(most, batch_size):
    module = Fits(M)
    whole = FaastClassifier(module, device="cpu", batch_size=batch_size).fit(X[:M], Y[:M])
    assert module.sizes == [M]
    small = Fits(most)
    clf = FaastClassifier(small, device="cpu", batch_size=batch_size)
    if most == 0:
        with everything_as_before(clf, small), pytest.raises(OutOfMemoryError, match=r"one sample, X\[0\], fits"):
            clf.fit(X[:M], Y[:M])
        module.most = 0
        for call in ("partial_fit", "forget", "predict"):
            with everything_as_before(whole, module), pytest.raises(OutOfMemoryError, match=r"X\[0\]"):
                getattr(whole, call)(*((X[:M], Y[:M]) if "fit" in call or call == "forget" else (X[:M],)))
        return
    clf.fit(X[:M], Y[:M])
    assert max(small.sizes) <= most
    assert sum(small.sizes) == M  # none twice
    np.testing.assert_allclose(clf.predict_proba(TEST), whole.predict_proba(TEST), rtol=1e-9)
    np.testing.assert_allclose(clf.coef_, whole.coef_, rtol=1e-8, atol=1e-9)
    small.most = max(1, most // 2)  # another program takes some of it
    clf.partial_fit(X[:M] + 1, Y[:M]).forget(X[:M] + 1, Y[:M])
    np.testing.assert_allclose(clf.predict_proba(TEST), whole.predict_proba(TEST), rtol=1e-6)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_out_of_memory_at_every_batch_size_of_a_language_model(most):
    model, tokenizer = opened("llama")
    whole = FaastSeq2Seq((model, tokenizer), alpha=0.1, memory_weight=1.0, batch_size=4).fit(*TOLD)
    wanted = whole.perplexity(*ASKED)

    def short(part, args, kwargs):
        if len(kwargs["input_ids"]) > most:
            raise torch.OutOfMemoryError("out of memory")

    with model.register_forward_pre_hook(short, with_kwargs=True):
        seq2seq = FaastSeq2Seq((model, tokenizer), alpha=0.1, memory_weight=1.0, batch_size=4)
        if most == 0:
            for estimator in (seq2seq, whole):
                with everything_as_before(estimator, model), pytest.raises(OutOfMemoryError, match=r"X\[\d\]"):
                    estimator.partial_fit(*TOLD)
            return
        assert seq2seq.fit(*TOLD).perplexity(*ASKED) == pytest.approx(wanted, rel=1e-5)


# A full disk


def full(error):
    def fail(*args, **options):
        raise error

    return fail


DISK_FULL = sqlite3.OperationalError("database or disk is full")


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (directory_store, "_put", DISK_FULL),
        (directory_store, "_claim", DISK_FULL),
        (directory_store, "_touch", DISK_FULL),
        (directory_store, "_evict", DISK_FULL),
        (directory_store, "_release", sqlite3.OperationalError("disk I/O error")),
        (directory_store, "_get", sqlite3.OperationalError("disk I/O error")),
        (directory_store, "exclusively", sqlite3.OperationalError("unable to open database file")),
        (directory_store, "process_owner", sqlite3.OperationalError("unable to open database file")),
        (directory_store.Path, "mkdir", OSError(errno.ENOSPC, "No space left on device")),
        (directory_store.Path, "mkdir", OSError(errno.EMFILE, "Too many open files")),
    ],
)
def test_a_full_disk_costs_the_cache_and_not_the_update(owner, name, error, monkeypatch, tmp_path, caplog):
    wanted = FaastClassifier(Squares(), device="cpu", batch_size=4).fit(X, Y).partial_fit(X[:5] + 1, Y[:5])
    cache = FeatureCache(tmp_path / "cache", max_bytes=600)
    if name == "_touch":  # needs something to be found
        FaastClassifier(Squares(), device="cpu", batch_size=4, cache=cache).fit(X[:4], Y[:4])
    clf = FaastClassifier(Squares(), device="cpu", batch_size=4, cache=cache)
    recent._entries.clear()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "faast_sklearn"):
        patch.setattr(owner, name, full(error))
        clf.fit(X, Y)
        if name == "_release":  # which only a pass that breaks needs
            with pytest.raises(NonFiniteError):
                clf.partial_fit(X[:, None] * np.float32(np.inf), Y)
        clf.partial_fit(X[:5] + 1, Y[:5])
        np.testing.assert_allclose(clf.predict_proba(TEST), wanted.predict_proba(TEST), rtol=1e-9)
    assert "skipped for a minute" in caplog.text
    assert caplog.text.count("skipped for a minute") == 1  # told once, not once a row
    np.testing.assert_allclose(clf.coef_, wanted.coef_, rtol=1e-8, atol=1e-9)


def test_a_wrong_directory_is_still_an_error(tmp_path):
    (tmp_path / "file").touch()
    recent._entries.clear()
    clf = FaastClassifier(Squares(), device="cpu", cache=str(tmp_path / "file"))
    with everything_as_before(clf), pytest.raises(InputError, match="cannot be written"):
        clf.fit(X, Y)


def _beyond_the_limit(folder):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # no file of this process grows further
    rows, labels = np.random.default_rng(1).normal(size=(300, 100)).astype(np.float32), np.arange(300) % 3
    plain = FaastClassifier(torch.nn.Identity(), device="cpu", alpha=0.1).fit(rows, labels)
    cached = FaastClassifier(torch.nn.Identity(), device="cpu", alpha=0.1, cache=folder).fit(rows, labels)
    np.testing.assert_allclose(cached.predict_proba(rows), plain.predict_proba(rows), rtol=1e-9)
    with pytest.raises(OSError, match="large"):
        Path(folder, "probe").write_bytes(bytes(70_000))  # the limit is real
    assert sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)) < 4 * 60_000


@pytest.mark.slow  # starts an interpreter
@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes are those of POSIX")
def test_a_file_system_that_takes_no_more_costs_the_cache_and_not_the_update(tmp_path):
    child = CONTEXT.Process(target=_beyond_the_limit, args=(str(tmp_path),))
    child.start()
    child.join(60)
    assert child.exitcode == 0


# Samples that cannot be read (two processes that share a folder, and one that is killed: test_cache_processes.py)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(9):
        Image.new("RGB", (12, 12), (20 * i, 255 * (i % 2), 99)).save(folder / f"{i}.png")
    Image.fromarray(RNG.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(folder / "cut.png")
    whole = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no image")
    return folder


def thumbnail(image):
    return torch.from_numpy(np.asarray(image.resize((2, 2)), dtype=np.float32).ravel())


@pytest.mark.parametrize("at", [0, 4, 8])
@pytest.mark.parametrize("name", ["cut.png", "text.png", "missing.png"])
@pytest.mark.parametrize("call", ["fit", "partial_fit", "forget"])
@pytest.mark.parametrize("form", ["list", "batches"])
def test_an_unreadable_image_anywhere_teaches_nothing(at, name, call, form, photographs):
    paths, labels = [str(photographs / f"{i}.png") for i in range(9)], np.arange(9) % 2
    module = torch.nn.Identity()
    clf = FaastClassifier(backbone((module, thumbnail)), device="cpu", batch_size=2).fit(paths, labels)
    before = clf.predict_proba(paths)
    bad = [*paths[:at], str(photographs / name), *paths[at + 1 :]]
    data = (bad, labels)
    place = at
    if form == "batches":
        data = (iter([(bad[i : i + 3], labels[i : i + 3]) for i in (0, 3, 6)]),)
        place = at % 3
    with everything_as_before(clf, module), pytest.raises(InputError) as caught:
        getattr(clf, call)(*data)
    assert f"X[{place}]" in str(caught.value)
    assert str(photographs / name) in str(caught.value)
    assert np.array_equal(clf.predict_proba(paths), before)
    if os.path.isdir("/proc/self/fd"):
        held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)]
        assert not [path for path in held if path.startswith(str(photographs))]


def _is_link(fd):
    return os.path.islink(f"/proc/self/fd/{fd}") and os.path.lexists(os.readlink(f"/proc/self/fd/{fd}"))


# Threads


def predicting(ask, change, n_threads, n_changes):
    """Ask in several threads while another changes the estimator; return all answers that were seen."""
    seen, failures, stop = [set() for _ in range(n_threads)], [], threading.Event()

    def run(k):
        try:
            while not stop.is_set():
                seen[k].add(ask())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(n_threads)]
    for thread in threads:
        thread.start()
    for k in range(n_changes):
        time.sleep(0.002)
        change(k)
    until = time.monotonic() + 30
    while not failures and not all(seen) and time.monotonic() < until:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert all(seen)  # each has answered at least once
    return set().union(*seen)


@pytest.mark.parametrize("kind", ["rows", "batches", "memory"])
def test_threads_that_predict_see_one_state_or_another_while_one_learns(kind, tmp_path):
    def change_of(clf):
        steps = [(clf.partial_fit, slice(i, i + 5)) for i in range(8)]
        steps += [(clf.forget, slice(i, i + 5)) for i in range(8)]
        return lambda k: steps[k % 16][0](X[steps[k % 16][1]] + 1, Y[steps[k % 16][1]])

    def ask(clf):
        return clf.predict_proba(TEST).tobytes()

    module, n = Squares(), 32
    twin = FaastClassifier(device="cpu", **KINDS[kind](module, tmp_path)).fit(X, Y)
    change, expected = change_of(twin), {ask(twin)}
    for k in range(n):
        change(k)
        expected.add(ask(twin))
    assert len(expected) > n // 2
    clf = FaastClassifier(device="cpu", **KINDS[kind](module, tmp_path)).fit(X, Y)
    if kind == "memory":
        clf.cache = twin.cache  # what was computed once, so that the states are the same to the bit
    seen = predicting(lambda: ask(clf), change_of(clf), n_threads=4, n_changes=n)
    assert seen <= expected
    assert ask(clf) == ask(twin)


def test_threads_that_ask_a_language_model_see_one_state_or_another_while_one_learns():
    source = opened("llama")
    told = chosen(TOLD, ["red", "the cat"])
    parts = [([told[0][i]] * 2, [told[1][i]] * 2) for i in range(4)]

    def ask(seq2seq):
        return seq2seq.choice_log_probabilities(ASKED[0]).tobytes()

    def fresh():
        options = {"choices": ["red", "the cat"], "alpha": 0.1, "memory_weight": 1.0}
        return FaastSeq2Seq(source, **options).fit(*told)

    twin = fresh()
    expected = {ask(twin)}
    for part in parts:
        twin.partial_fit(*part)
        expected.add(ask(twin))
    assert len(expected) == 5
    seq2seq = fresh()
    seen = predicting(lambda: ask(seq2seq), lambda k: seq2seq.partial_fit(*parts[k]), n_threads=3, n_changes=4)
    assert seen <= expected
    assert ask(seq2seq) == ask(twin)
    assert hook_count(source[0]) == 0


# Half precision


def test_features_that_overflow_in_half_precision_name_the_sample_and_the_remedy():
    """Real weights; the hook stands for a model whose activations are large for some texts, as many are."""
    texts = ["a good film", "no plot at all", "what a loud volcano", "splendid", "dull", "I slept"]
    labels = ["+", "-", "-", "+", "-", "-"]

    def loud(module, args, kwargs, output):
        rows = (kwargs["input_ids"] == volcano).any(1)
        output.last_hidden_state[rows] *= 1e6
        return output

    handle = backbone("bundled:minilm-l6")
    half, single = (handle.open("cpu", dtype) for dtype in ("float16", "float32"))
    volcano = half.tokenizer("volcano")["input_ids"][1]
    clf = FaastClassifier(handle, device="cpu", dtype="float16", batch_size=2).fit(texts[:2], labels[:2])
    with half.module.register_forward_hook(loud, with_kwargs=True):
        for call in (clf.fit, clf.partial_fit, clf.forget):
            with everything_as_before(clf, half.module), pytest.raises(NonFiniteError) as caught:
                call(texts, labels)
            message = str(caught.value)
            assert "X[2] ('what a loud volcano')" in message
            assert "in float16; try dtype='float32'" in message
        with pytest.raises(NonFiniteError, match=r"X\[2\]"):
            clf.predict(texts)
    with single.module.register_forward_hook(loud, with_kwargs=True):
        remedied = FaastClassifier(handle, device="cpu", dtype="float32").fit(texts, labels)
    assert np.isfinite(remedied.coef_).all()


@pytest.mark.parametrize("target", ["residual", "embedding"])
def test_hidden_states_that_overflow_in_half_precision_name_the_sample_and_the_remedy(target):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer("decoder")
    mat = tokenizer("mat")["input_ids"][0]
    with torch.no_grad():
        # The first coordinate is written by the embedding of one word alone, and doubled beyond float16 by ...
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0.0
        model.model.embed_tokens.weight[:, 0] = 0.0
        model.model.embed_tokens.weight[mat, 0] = 60000.0
        model.model.norm.weight[0] = 30000.0  # ... the final norm; or by adding itself, in front of it
    first = torch.eye(16, dtype=torch.float16)[0]
    if target == "embedding":
        model.model.layers[1].mlp.register_forward_hook(lambda part, args, output: output + 10000 * first * args[0])
    model.to(torch.float16)
    seq2seq = FaastSeq2Seq((model, tokenizer), batch_size=2, target=target).fit(["a cat", "the dog"] * 3, ["red"] * 6)
    X, y = ["a cat", "the dog", "one tree", "the mat", "a cat"], ["red"] * 5
    for call in (seq2seq.fit, seq2seq.partial_fit, seq2seq.forget):
        with everything_as_before(seq2seq, model), pytest.raises(NonFiniteError) as caught:
            call(X, y)
        assert "X[3]" in str(caught.value)
        assert "in float16; try dtype='float32'" in str(caught.value)
    remedied = FaastSeq2Seq((model, tokenizer), dtype="float32", target=target, memory_weight=0.5).fit(X, y)
    assert np.isfinite(remedied.perplexity(["a cat"], ["red"]))


# Packages


def test_missing_packages_come_with_the_line_that_installs_them(monkeypatch):
    clf = FaastClassifier(verbose=1).fit(X, Y)
    with everything_as_before(clf), monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tqdm", None)
        for call in (clf.fit, clf.partial_fit, clf.forget):
            with pytest.raises(MissingDependencyError, match="pip install tqdm"):
                call(X, Y)
    clf.set_params(verbose=0)
    assert clf.predict(TEST).shape == (9,)
    new = FaastClassifier("timm:resnet18", device="cpu")
    monkeypatch.setitem(sys.modules, "timm", None)
    with everything_as_before(new), pytest.raises(MissingDependencyError, match="pip install timm"):
        new.fit(X, Y)
