"""FaastClassifier: one state however it was reached, solved once, and left alone by whatever fails."""

import copy
import threading
import time

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

import faast_sklearn.readout.problem as compiled_module
from faast_sklearn import FaastClassifier
from faast_sklearn.backbones.device import available_devices
from faast_sklearn.errors import ForgetError, InputError, NonFiniteError

X, Y, W = (lambda rng: (rng.normal(size=(90, 7)), np.arange(90) % 3, rng.uniform(0.2, 3.0, 90)))(
    np.random.default_rng(0)
)
X[np.arange(90), Y] += 2.0
PARTS = np.split(np.random.default_rng(1).permutation(90), [3, 4, 30, 77])
OPTIONS = [{}, {"solver": "pinv", "alpha": 0.8, "normalize": True, "fit_intercept": False}]


class Squares(torch.nn.Module):
    """A backbone of rows; fails when it is told to, as memory or a user does."""

    def __init__(self):
        super().__init__()
        self.calls, self.fail_at, self.error = 0, None, None

    def forward(self, x):
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.error
        return torch.cat([x, x**2], 1).double()


def assert_same(a, b, rtol=1e-9):
    assert np.array_equal(a.classes_, b.classes_)
    assert a.n_samples_seen_ == b.n_samples_seen_
    scale = np.abs(a.coef_).max()
    np.testing.assert_allclose(a.coef_, b.coef_, rtol=0, atol=rtol * scale)
    np.testing.assert_allclose(a.intercept_, b.intercept_, rtol=0, atol=rtol * max(scale, np.abs(a.intercept_).max()))
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), atol=rtol * 100)
    assert np.array_equal(a.predict(X), b.predict(X))


def in_parts(clf, weights=None):
    for part in PARTS:
        clf.partial_fit(X[part], Y[part], sample_weight=None if weights is None else weights[part])
    return clf


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("backbone", [None, "module"])
def test_fit_in_one_go_in_pieces_from_an_iterator_and_from_a_loader_is_one_thing(options, backbone):
    if backbone:
        options = {**options, "backbone": Squares(), "device": "cpu"}
    whole = FaastClassifier(**options).fit(X, Y, sample_weight=W)
    assert_same(whole, in_parts(FaastClassifier(**options), W))
    batches = [(X[part], Y[part], W[part]) for part in PARTS]
    assert_same(whole, FaastClassifier(**options).fit(iter(batches)))
    assert_same(whole, FaastClassifier(**options).partial_fit(batch for batch in batches))
    tensors = torch.utils.data.TensorDataset(*map(torch.from_numpy, (X, Y, W)))
    assert_same(whole, FaastClassifier(**options).fit(torch.utils.data.DataLoader(tensors, batch_size=8, shuffle=True)))
    assert_same(whole, FaastClassifier(**options).fit(torch.from_numpy(X), torch.from_numpy(Y), torch.from_numpy(W)))


def test_fit_starts_anew_and_partial_fit_does_not():
    clf = FaastClassifier().partial_fit(X, Y, classes=[0, 1, 2, 9])
    clf.partial_fit(X[:, :], Y)
    assert clf.n_samples_seen_ == 180
    assert_same(clf.fit(X, Y), FaastClassifier().fit(X, Y))
    assert clf.classes_.tolist() == [0, 1, 2]
    assert clf.fit(X[:, :4], Y).n_features_in_ == 4
    with pytest.raises(InputError, match="4 features"):
        clf.partial_fit(X, Y)


def test_declared_classes_are_listed_and_never_predicted_until_seen():
    clf = FaastClassifier().partial_fit(X[Y < 2], Y[Y < 2], classes=[2, 1, 0])
    assert clf.classes_.tolist() == [0, 1, 2]
    P = clf.predict_proba(X)
    assert P.shape == (90, 3)
    assert np.array_equal(P[:, 2], np.zeros(90))
    assert set(clf.predict(X)) == {0, 1}
    assert clf.decision_function(X).shape == (90, 3)
    assert_same(clf.partial_fit(X[Y == 2], Y[Y == 2]), FaastClassifier().fit(X, Y))
    first_alone = FaastClassifier().partial_fit(X[Y == 0], Y[Y == 0], classes=[0, 1])
    assert set(first_alone.predict(X)) == {0}
    assert not np.isnan(first_alone.decision_function(X)).any()
    assert np.array_equal(first_alone.predict_proba(X), np.tile([1.0, 0.0], (90, 1)))


@pytest.mark.parametrize(
    "names",
    [
        np.array(["b", "a much longer name", "c"]),
        np.array(["b", "a much longer name", "c"], dtype=object),
        np.array([10, -3, 5]),
        np.array([7, 3, 1], dtype=np.uint8),
    ],
)
def test_labels_keep_their_kind_and_new_ones_grow_the_classes_exactly(names):
    whole = FaastClassifier().fit(X, names[Y])
    assert whole.classes_.tolist() == sorted(names.tolist())
    assert type(whole.predict(X)[0]) is type(np.array(names)[0])
    grown = FaastClassifier()
    for k in (2, 0, 1):
        rows = np.flatnonzero(np.equal(Y, k))
        grown.partial_fit(X[rows], list(names[Y[rows]]))
    assert_same(whole, grown)
    assert set(grown.predict(X).tolist()) <= set(names.tolist())


def test_booleans_are_two_classes():
    clf = FaastClassifier().fit(X, Y > 0)
    assert clf.classes_.tolist() == [False, True]
    assert clf.predict(X).dtype == bool
    assert clf.predict_proba(X).shape == (90, 2)
    assert clf.coef_.shape == (1, 7)
    assert clf.intercept_.shape == (1,)
    assert clf.decision_function(X).shape == (90,)


def test_labels_that_cannot_be_compared_do_not_mix():
    clf = FaastClassifier().fit(X, Y)
    for labels in (Y.astype(str), np.array(["a", "b", "c"], dtype=object)[Y]):
        with pytest.raises(InputError, match="one type"):
            clf.partial_fit(X, labels)
    assert_same(clf, FaastClassifier().fit(X, Y))


@pytest.mark.parametrize("options", OPTIONS)
def test_weight_zero_is_absent(options):
    counts = np.random.default_rng(0).integers(0, 4, 90)
    weighted = FaastClassifier(**options).fit(X, Y, sample_weight=counts)
    assert weighted.n_samples_seen_ == np.count_nonzero(counts)
    absent = FaastClassifier(**options).fit(X[counts > 0], Y[counts > 0], sample_weight=counts[counts > 0])
    assert_same(weighted, absent)
    assert 1 not in FaastClassifier().fit(X, Y, sample_weight=(Y != 1)).classes_


def test_class_weights_are_sample_weights():
    y = np.where(Y == 2, 1, Y)
    by_dict = FaastClassifier(class_weight={0: 3.0, 1: 0.5})
    rows = np.array([3.0, 0.5])[y]
    assert_same(FaastClassifier().fit(X, y, rows), copy.copy(by_dict).fit(X, y))
    assert_same(FaastClassifier().fit(X, y, rows * W), copy.copy(by_dict).fit(X, y, W))
    assert_same(
        FaastClassifier().fit(X, y, rows), copy.copy(by_dict).partial_fit(X[:9], y[:9]).partial_fit(X[9:], y[9:])
    )
    assert_same(FaastClassifier().fit(X[9:], y[9:], rows[9:]), copy.copy(by_dict).fit(X, y).forget(X[:9], y[:9]))
    balanced = np.array([90 / 2 / 30, 90 / 2 / 60])[y]
    assert_same(FaastClassifier().fit(X, y, balanced), FaastClassifier(class_weight="balanced").fit(X, y))
    totals = np.bincount(y, W)
    balanced = (W.sum() / 2 / totals)[y] * W
    assert_same(FaastClassifier().fit(X, y, balanced), FaastClassifier(class_weight="balanced").fit(X, y, W))
    noise = np.random.default_rng(0).normal(size=(90, 2))
    shares = FaastClassifier(class_weight="balanced").fit(noise, y).predict_proba(noise).mean(0)
    np.testing.assert_allclose(shares, 0.5, atol=0.03)


def test_balanced_weights_need_all_labels_at_once():
    clf = FaastClassifier(class_weight="balanced").fit(X, Y)
    for learn in (clf.partial_fit, clf.forget):
        with pytest.raises(ValueError, match="all labels at once"):
            learn(X, Y)
    with pytest.raises(InputError, match="all labels at once"):
        clf.fit((X[part], Y[part]) for part in PARTS)
    assert_same(clf, FaastClassifier(class_weight="balanced").fit(X, Y))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("gone", [np.arange(5), np.arange(0, 90, 2), np.flatnonzero(Y == 1)])
def test_forgetting_is_never_having_learnt(options, gone):
    kept = np.setdiff1d(np.arange(90), gone)
    never = FaastClassifier(**options).fit(X[kept], Y[kept], W[kept])
    assert_same(never, FaastClassifier(**options).fit(X, Y, W).forget(X[gone], Y[gone], W[gone]), rtol=1e-7)
    late = (
        FaastClassifier(**options)
        .fit(X, Y, W)
        .forget(X[gone], Y[gone], W[gone])
        .partial_fit(X[gone], Y[gone], sample_weight=W[gone])
    )
    assert_same(FaastClassifier(**options).fit(X, Y, W), late, rtol=1e-7)


def test_forgetting_one_of_two_copies_leaves_the_other():
    once = FaastClassifier().fit(X, Y)
    twice = FaastClassifier().fit(X, Y, sample_weight=np.full(90, 2.0)).forget(X, Y)
    np.testing.assert_allclose(twice.predict_proba(X), once.predict_proba(X), atol=1e-9)


def test_forgetting_everything_leaves_an_estimator_that_can_learn_again():
    clf = FaastClassifier().fit(X, Y).forget(X[PARTS[2]], Y[PARTS[2]])
    clf.forget(np.delete(X, PARTS[2], axis=0), np.delete(Y, PARTS[2]))
    assert clf.n_samples_seen_ == 0
    assert len(clf.classes_) == 0
    with pytest.raises(NotFittedError, match="forgotten"):
        clf.predict(X)
    assert_same(clf.partial_fit(X, Y), FaastClassifier().fit(X, Y))


def test_what_was_never_learnt_cannot_be_forgotten():
    clf = FaastClassifier().fit(X, Y)
    before = copy.deepcopy(clf)
    cases = {
        "never learnt: \\[7\\]": (X[:2], [0, 7], None),
        "31 samples": (np.r_[X[Y == 0], X[Y == 0][:1]], np.zeros(31, int), None),
        "weight 60": (X[Y == 0], np.zeros(30, int), np.full(30, 2.0)),
        "negative variance": (X[:2] + 100.0, Y[:2], None),
    }
    for message, (rows, labels, weights) in cases.items():
        with pytest.raises(ForgetError, match=message):
            clf.forget(rows, labels, weights)
        assert_same(clf, before, rtol=0)
    with pytest.raises(NotFittedError):
        FaastClassifier().forget(X, Y)


@pytest.fixture
def solves(monkeypatch):
    calls = []
    solve = compiled_module.fast_weights

    def counting(*args, **kwargs):
        calls.append(threading.get_ident())
        time.sleep(0.01)  # long enough for other threads to come in between
        return solve(*args, **kwargs)

    monkeypatch.setattr(compiled_module, "fast_weights", counting)
    return calls


def test_one_solve_for_each_change_however_much_is_asked(solves):
    clf = FaastClassifier().fit(X, Y)
    in_parts(clf)
    clf.forget(X[:5], Y[:5])
    assert (clf.classes_.tolist(), clf.n_samples_seen_, len(solves)) == ([0, 1, 2], 175, 0)
    for _ in range(3):
        (
            clf.predict(X),
            clf.predict_proba(X),
            clf.decision_function(X),
            clf.coef_,
            clf.intercept_,
            clf.alpha_,
            clf.solver_,
        )
    assert len(solves) == 1
    copy.deepcopy(clf).predict(X)
    assert len(solves) == 1
    clf.partial_fit(X[:5], Y[:5])
    assert len(solves) == 1
    clf.predict(X)
    assert len(solves) == 2


def test_predicting_writes_no_attribute():
    clf = FaastClassifier().partial_fit(X, Y)
    before = {name: id(value) for name, value in clf.__dict__.items()}
    clf.predict(X), clf.predict_proba(X), clf.score(X, Y), clf.coef_
    assert {name: id(value) for name, value in clf.__dict__.items()} == before


def test_threads_share_one_solve_and_never_see_half_a_change(solves):
    def learn(clf, k):
        clf.partial_fit(X[10 * k : 10 * k + 10], np.full(10, 5 + k))

    clf = FaastClassifier().fit(X, Y)
    twin = FaastClassifier().fit(X, Y)
    expected = {twin.predict_proba(X).tobytes()}
    for k in range(1, 6):
        learn(twin, k)
        expected.add(twin.predict_proba(X).tobytes())
    solves.clear()
    seen, failures, stop = set(), [], threading.Event()

    def ask():
        try:
            while not stop.is_set():
                seen.add(clf.predict_proba(X).tobytes())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for k in range(1, 6):
        time.sleep(0.02)
        learn(clf, k)
    time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert seen <= expected
    assert len(seen) >= 2
    assert len(solves) <= 6


def test_many_threads_asking_at_once_solve_once(solves):
    clf = FaastClassifier().fit(X, Y)
    start = threading.Barrier(8)
    results = []

    def ask():
        start.wait()
        results.append(clf.predict_proba(X))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(solves) == 1
    assert all(np.array_equal(result, results[0]) for result in results)


def interrupted(error):
    for i, part in enumerate(PARTS):
        if i == 3:
            raise error
        yield X[part] + 1.0, Y[part] + 5


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("worker died"), MemoryError()])
@pytest.mark.parametrize("call", ["fit", "partial_fit", "forget"])
@pytest.mark.parametrize("backbone", [None, "module"])
def test_an_iterator_that_fails_half_way_changes_nothing(error, call, backbone):
    clf = FaastClassifier(Squares() if backbone else None, device="cpu").fit(X, Y)
    before, proba = dict(clf.__dict__), clf.predict_proba(X)
    with pytest.raises(type(error)):
        getattr(clf, call)(interrupted(error))
    assert clf.__dict__.keys() == before.keys()
    assert all(clf.__dict__[name] is value for name, value in before.items())
    assert np.array_equal(clf.predict_proba(X), proba)
    new = FaastClassifier(Squares() if backbone else None, device="cpu")
    params = dict(new.__dict__)
    if call != "forget":
        with pytest.raises(type(error)):
            getattr(new, call)(interrupted(error))
        assert new.__dict__ == params


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("broken layer")])
@pytest.mark.parametrize("call", ["fit", "partial_fit", "forget"])
def test_a_backbone_that_fails_at_its_third_batch_changes_nothing(error, call):
    module = Squares()
    clf = FaastClassifier(module, device="cpu", batch_size=20).fit(X, Y)
    before, proba = dict(clf.__dict__), clf.predict_proba(X)
    module.calls, module.fail_at, module.error = 0, 3, error
    with pytest.raises(type(error)):
        getattr(clf, call)(X[::-1] * 2, Y)
    assert module.calls == 3
    assert clf.__dict__.keys() == before.keys()
    assert all(clf.__dict__[name] is value for name, value in before.items())
    assert np.array_equal(clf.predict_proba(X), proba)


def test_features_of_a_backbone_that_are_not_finite_change_nothing():
    class Diverging(torch.nn.Module):
        def forward(self, x):
            return torch.where(x > 2.5, torch.inf, x)

    clf = FaastClassifier(Diverging(), device="cpu", batch_size=8).fit(np.minimum(X, 2.0), Y)
    before, proba = dict(clf.__dict__), clf.predict_proba(np.minimum(X, 2.0))
    row = int(np.flatnonzero((X > 2.5).any(1))[0])
    for call in (clf.fit, clf.partial_fit, clf.forget, lambda rows, labels: clf.predict(rows)):
        with pytest.raises(NonFiniteError, match=rf"X\[{row}\]"):
            call(X, Y)
        assert all(clf.__dict__[name] is value for name, value in before.items())
    assert np.array_equal(clf.predict_proba(np.minimum(X, 2.0)), proba)


@pytest.mark.parametrize("backbone", [None, "module"])
def test_silent_unless_asked_and_then_on_stderr_alone(backbone, capfd):
    options = {"backbone": Squares() if backbone else None, "device": "cpu"}
    for verbose in (0, 1):
        clf = FaastClassifier(**options, verbose=verbose).fit(X, Y).partial_fit(X, Y).forget(X[:5], Y[:5])
        clf.predict(X), clf.predict_proba(X), clf.decision_function(X), clf.score(X, Y)
        clf.fit(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))))
        out, err = capfd.readouterr()
        assert out == ""
        assert bool(err) == bool(verbose)
    for word in ("fit", "partial_fit", "forget", "predict", "90/90"):
        assert word in err


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_are_learnt_as_arrays_are(dtype):
    rows = torch.from_numpy(X).to(getattr(torch, dtype))
    assert_same(FaastClassifier().fit(rows.double().numpy(), Y), FaastClassifier().fit(rows, torch.from_numpy(Y)))
    grad = torch.from_numpy(X).requires_grad_()
    assert_same(FaastClassifier().fit(X, Y), FaastClassifier().fit(grad, Y))
    assert grad.grad is None


@pytest.mark.parametrize("device", [d for d in available_devices() if d != "cpu"] or ["none"])
def test_devices_give_the_results_of_the_host(device):
    if device == "none":
        pytest.skip("no accelerator here")
    rows = X.astype(np.float32)
    host = FaastClassifier().fit(rows, Y, W)
    for clf in (
        FaastClassifier().fit(torch.from_numpy(rows).to(device), Y, W),
        FaastClassifier(device=device).fit(rows, Y, W),
        FaastClassifier(device=device).fit(rows[::-1], Y[::-1], W[::-1]),
    ):
        np.testing.assert_allclose(clf.predict_proba(rows), host.predict_proba(rows), atol=1e-7)
        np.testing.assert_allclose(
            clf.predict_proba(torch.from_numpy(rows).to(device)), host.predict_proba(rows), atol=1e-7
        )
        clf.partial_fit(rows, Y).forget(torch.from_numpy(rows).to(device), Y)
        np.testing.assert_allclose(clf.predict_proba(rows), host.predict_proba(rows), atol=1e-6)
    there = FaastClassifier(Squares(), device=device, dtype="float32").fit(rows, Y)
    here = FaastClassifier(Squares(), device="cpu", dtype="float32").fit(rows, Y)
    assert there.device_.startswith(device)
    np.testing.assert_allclose(there.predict_proba(rows), here.predict_proba(rows), atol=1e-4)
