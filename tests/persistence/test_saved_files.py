"""Files that are damaged, made up, or half written when the power goes: refused by name, or whole."""

import itertools
import json
import multiprocessing
import os
import pickle
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.saving_worker import save_for_ever
from helpers.seq2seq import opened, pairs
from sklearn.datasets import load_digits

from faast_sklearn import BackboneFeatures, FaastClassifier, FaastSeq2Seq, load, save
from faast_sklearn.errors import SavedFileError, SavedFileWarning
from faast_sklearn.persistence import archive
from faast_sklearn.persistence.archive import read_archive, write_archive

X, Y = load_digits(return_X_y=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a saved classifier, and what it predicts."""
    path = tmp_path_factory.mktemp("saved") / "digits"
    clf = FaastClassifier(alpha=1.0).fit(X[:60, 20:30], Y[:60])
    save(clf, path)
    return path.read_bytes(), clf.predict_proba(X[:20, 20:30])


def loads_the_same_or_is_refused(path, data, expected):
    path.write_bytes(data)
    try:
        clf = load(path)
    except SavedFileError:
        return False
    np.testing.assert_array_equal(clf.predict_proba(X[:20, 20:30]), expected)
    return True


def test_no_change_of_a_byte_goes_unnoticed(saved, tmp_path):
    data, expected = saved
    assert loads_the_same_or_is_refused(tmp_path / "file", data, expected)
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(data[:8], "little")
    # As many in the header, where there are names, shapes and the checksum itself, as in the numbers.
    places = np.r_[np.arange(8), rng.integers(header, size=992), rng.integers(header, len(data), 1000)]
    for place, change in zip(places.tolist(), rng.integers(1, 256, size=2000).tolist(), strict=True):
        changed = bytearray(data)
        changed[place] ^= change
        assert not loads_the_same_or_is_refused(tmp_path / "file", bytes(changed), expected)


def test_no_truncation_goes_unnoticed(saved, tmp_path):
    data, expected = saved
    lengths = np.random.default_rng(1).integers(len(data), size=190).tolist()
    for length in [*lengths, *range(10)]:
        assert not loads_the_same_or_is_refused(tmp_path / "file", data[:length], expected)
    for longer in (data + b"\0", data * 2):
        assert not loads_the_same_or_is_refused(tmp_path / "file", longer, expected)


def test_no_length_of_its_header_makes_a_file_look_foreign(tmp_path):
    # A file begins with that length, and 1,152 are the bytes of a pickle.
    for n in range(0, 1200, 8):
        save(FaastClassifier(values={"a": n * "x"}), tmp_path / "file")
        assert len(load(tmp_path / "file").values["a"]) == n


def test_foreign_files_are_named_for_what_they_are(tmp_path):
    path = tmp_path / "file"
    foreign = {
        "pickle": pickle.dumps(FaastClassifier()),
        "is a pickle or a compressed archive, which load never opens": pickle.dumps({}, protocol=2),
        "was not written by faast_sklearn.save": b"\x00" * 100,
        "not written": (2).to_bytes(8, "little") + b"{}",
        "is cut short": b"",
        "not written by faast_sklearn": safetensors.torch.save({"weight": torch.ones(3)}),
    }
    for message, data in foreign.items():
        path.write_bytes(data)
        with pytest.raises(SavedFileError, match=message):
            load(path)
    torch.save(torch.ones(3), path)
    with pytest.raises(SavedFileError, match="never opens"):
        load(path)


def test_files_of_a_later_format_ask_for_a_later_version(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_VERSION", 3)
    save(FaastClassifier(), tmp_path / "file")
    monkeypatch.undo()
    with pytest.raises(SavedFileError, match="has format '3', and this version of faast_sklearn reads format 2"):
        load(tmp_path / "file")


# Files that somebody made up, with the checksum that belongs to them


class Runs:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def at(node, place):
    for name in filter(None, place.split(".")):
        node = node[int(name) if isinstance(node, list) else name]
    return node


def setting(place, value):
    def change(manifest, tensors):
        where, _, name = place.rpartition(".")
        at(manifest["estimator"], where)[name] = value

    return change


def tensor(name, make):
    def change(manifest, tensors):
        tensors[f"state._problem.{name}"] = make(tensors[f"state._problem.{name}"])

    return change


def with_value(value):
    def make(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return make


STATE = "state._problem"
MOMENTS = f"{STATE}.moments"
NESTED = json.loads("[" * 400 + "]" * 400)
MADE_UP = {
    "another kind": (setting("kind", "Unpickler"), "'Unpickler', which is not an estimator"),
    "a class": (setting("class", "os.system"), "'os.system', a class outside this library"),
    "no state": (lambda m, t: m["estimator"].pop("state"), "not an estimator that this version knows"),
    "another state": (setting("state.device_", "cuda"), "attributes other than"),
    "no weights": (setting(STATE, {}), r"state\._problem is \[\], expected"),
    "a path": (setting("parameters.backbone", "hf:/etc"), "asks for a local folder or file"),
    "a path that is not there": (setting("parameters.backbone", "hf:/nowhere/at/all"), "asks for a path or address"),
    "a step up": (setting("parameters.backbone", "hf:../secret"), "asks for a path or address"),
    "a step up inside": (setting("parameters.backbone", "hf:a/../../b"), "asks for a path or address"),
    "a home": (setting("parameters.backbone", "hf:~/model"), "asks for a path or address"),
    "a folder of timm": (setting("parameters.backbone", "timm:local-dir:model"), "asks for a path or address"),
    "a share": (setting("parameters.backbone", r"hf:\\host\share"), "asks for a path or address"),
    "no prefix": (setting("parameters.backbone", "model"), "asks for a path or address"),
    "an address": (setting("parameters.backbone", "hf:https://host/x"), "asks for a path or address"),
    "code": (
        setting("parameters.backbone", {"spec": "hf:a/b", "options": [["trust_remote_code", True]]}),
        "asks for a repository whose code would run",
    ),
    "a file of weights": (
        setting("parameters.backbone", {"spec": "timm:resnet18", "options": [["weights", "x.pth"]]}),
        "asks for a local file, weights=",
    ),
    "a file elsewhere": (
        setting("parameters.backbone", {"spec": "hf:a/b", "options": [["gguf_file", "../x.gguf"]]}),
        "asks for a path or address, gguf_file=",
    ),
    "an option that is none": (
        setting("parameters.backbone", {"spec": "timm:resnet18", "options": [["os.system", 1]]}),
        "is not known here",
    ),
    "weights elsewhere": (
        setting("parameters.backbone", {"stored": {"folder": "../x", "files": {}}, "spec": "hf", "options": []}),
        "in an unknown way",
    ),
    "weights that are not there": (
        setting(
            "parameters.backbone",
            {"stored": {"folder": "backbone-0123456789abcdef", "files": {}}, "spec": "hf", "options": []},
        ),
        "are not beside it",
    ),
    "another parameter": (setting("parameters.shell", "rm"), "parameters other than"),
    "a parameter of no kind": (setting("parameters.alpha", {"code": "1"}), "expected a parameter"),
    "a solver": (setting(f"{STATE}.settings.solver", "svd"), r"settings\.solver is 'svd', expected one of"),
    "a negative alpha": (setting(f"{STATE}.settings.alpha", -1.0), "expected at least 0"),
    "a huge number": (setting(f"{STATE}.settings.alpha", 10**400), "expected a number"),
    "a truth value": (setting(f"{STATE}.settings.alpha", True), "expected a number"),
    "a count": (setting("state.n_samples_seen_", -1), "expected an integer of at least 0"),
    "a text": (setting("state.n_samples_seen_", "1"), "expected an integer"),
    "nested": (setting("parameters.alpha", NESTED), "expected a parameter"),
    "unsorted classes": (setting(f"{STATE}.classes.labels", [3, 2, 1, 0, 4, 5, 6, 7, 8, 9]), "not sorted"),
    "classes of another type": (setting(f"{STATE}.classes.labels", ["a"] * 10), "labels that are not int64"),
    "classes without a type": (setting(f"{STATE}.classes.dtype", "O,O"), "labels that are not"),
    "too few classes": (setting(f"{STATE}.classes.labels", [0, 1]), "moments have classes that are not listed"),
    "another width": (setting("state.n_features_in_", 9), "9 features are expected, and there are weights for 10"),
    "no such tensor": (setting(f"{MOMENTS}.means", "elsewhere"), "names no tensor of the file: 'elsewhere'"),
    "a tensor twice": (
        setting(f"{MOMENTS}.means", "state._problem.solved.readout.coef"),
        "names no tensor|tensors that it does not use",
    ),
    "a tensor too many": (lambda m, t: t.update(more=torch.ones(1)), "tensors that it does not use, .'more'"),
    "nan": (tensor("solved.readout.coef", with_value(np.nan)), r"readout\.coef has values that are not finite"),
    "infinity": (tensor("solved.solution.weights", with_value(np.inf)), "values that are not finite"),
    "a weight below zero": (tensor("moments.counts", with_value(-1.0)), "values below 0"),
    "another precision": (
        tensor("solved.readout.coef", torch.Tensor.float),
        "is torch.float32, expected",
    ),
    "another shape": (tensor("solved.readout.coef", lambda t: t[:, :5]), "different numbers of features"),
    "another number of axes": (tensor("solved.readout.coef", torch.ravel), r"has shape \(100,\), expected 2 axes"),
    "fewer rows": (tensor("moments.scatter.factors", lambda t: t[:-1]), "do not match the lengths of its parts"),
    "narrower rows": (tensor("moments.scatter.factors", lambda t: t[:, :-1]), "length 9, expected 10"),
    "a pickle instead of a step": (
        lambda m, t: (
            m.update(estimator={"kind": "skops", "data": "data", "parts": []}),
            t.clear(),
            t.update(data=torch.frombuffer(bytearray(pickle.dumps(Runs())), dtype=torch.uint8)),
        ),
        "a step that skops wrote cannot be read",
    ),
    "no pipeline": (lambda m, t: m.update(estimator={"kind": "Pipeline"}), "is not a pipeline"),
    "no manifest": (lambda m, t: m.clear(), "has no estimator"),
    "no versions": (lambda m, t: m.update(versions=[]), "has no versions"),
}


@pytest.mark.parametrize("name", MADE_UP)
def test_what_a_file_must_not_hold_is_refused_and_nothing_runs(name, saved, tmp_path, monkeypatch):
    change, message = MADE_UP[name]
    if "skops" in message:
        pytest.importorskip("skops")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    path.write_bytes(saved[0])
    manifest, tensors = read_archive(path)
    change(manifest, tensors)
    write_archive(path, manifest, {key: value.contiguous() for key, value in tensors.items()})
    with pytest.raises(SavedFileError, match=message):
        load(path)
    assert os.listdir(tmp_path) == ["file"]


def test_values_of_any_kind_in_any_place_are_refused_or_harmless(saved, tmp_path):
    """Every entry of a manifest, replaced by each of a list of odd values."""
    path, (data, _) = tmp_path / "file", saved
    path.write_bytes(data)
    manifest, tensors = read_archive(path)

    def places(node, place=()):
        yield place
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, inner in items:
            yield from places(inner, (*place, key))

    text = json.dumps(manifest)
    odd = [None, True, -1, 1.5, 1e308, 1 << 70, "", "x" * 300, "__class__", [], {}, [[]], {"a": 1}, ["a", 1], "inf"]
    loaded = refused = 0
    for place, value in itertools.product(places(manifest), odd):
        changed = json.loads(text)
        if not place:
            changed = value
        else:
            node = changed
            for key in place[:-1]:
                node = node[key]
            node[place[-1]] = value
        write_archive(path, changed, tensors)
        try:
            result = load(path)
        except (SavedFileError, SavedFileWarning):
            refused += 1
        else:
            loaded += 1
            assert isinstance(result, FaastClassifier)
    assert refused > 1000
    assert loaded > 10


# Power cuts


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    save(FaastClassifier().fit(X[:50], Y[:50]), path)
    before = path.read_bytes()
    whole = safetensors.torch.save_file

    def full(tensors, name, metadata):
        whole(tensors, name, metadata)
        os.truncate(name, 1000)
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        save(FaastClassifier().fit(X, Y), path)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
def test_a_failure_at_the_last_moment_leaves_the_old_file(step, error, tmp_path, monkeypatch):
    path = tmp_path / "file"
    save(FaastClassifier().fit(X[:50], Y[:50]), path)
    before = path.read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(archive.os, step, fail)
    with pytest.raises(type(error)):
        save(FaastClassifier().fit(X, Y), path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == before


def test_what_a_killed_process_left_is_removed_an_hour_later(tmp_path):
    left, fresh = tmp_path / ".file.0123.part", tmp_path / ".file.4567.part"
    left.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(left, (time.time() - 7200,) * 2)
    save(FaastClassifier().fit(X, Y), tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == [fresh.name, "file"]


def test_permissions_are_those_of_any_new_file_and_links_are_followed(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    save(FaastClassifier().fit(X, Y), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
if hasattr(os, "fork"):
    CONTEXT.set_forkserver_preload(["faast_sklearn", "sklearn.datasets"])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("times", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_file(times, tmp_path):
    old, new, target = tmp_path / "old", tmp_path / "new", tmp_path / "target"
    small, large = FaastClassifier().fit(X[:300], Y[:300]), FaastClassifier().fit(X, Y)
    save(small, old), save(large, new), save(small, target)
    expected = {300: small.coef_, len(X): large.coef_}
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(times):
        started = CONTEXT.Event()
        process = CONTEXT.Process(target=save_for_ever, args=(old, new, target, started))
        process.start()
        assert started.wait(60)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        found = load(target)  # refuses whatever is not whole
        seen.append(found.n_samples_seen_)
        np.testing.assert_array_equal(found.coef_, expected[seen[-1]])
    if times > 50:
        assert len(set(seen)) == 2


def test_other_estimators_are_as_well_guarded(tmp_path):
    model = opened("llama")
    save(FaastSeq2Seq(model).fit(*pairs(8)), tmp_path / "lm")
    save(BackboneFeatures("bundled:minilm-l6").fit(), tmp_path / "features")
    rng = np.random.default_rng(2)
    for name, given in (("lm", {"backbone": model}), ("features", {})):
        data = (tmp_path / name).read_bytes()
        for place in rng.integers(len(data), size=100).tolist():
            changed = bytearray(data)
            changed[place] ^= 1 << (place % 8)
            (tmp_path / name).write_bytes(changed)
            with pytest.raises(SavedFileError):
                load(tmp_path / name, **given)
