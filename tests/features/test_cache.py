"""The cache gives what the backbone would give, once for each content and backbone, and keeps to its bound."""

import copy
import logging
import pickle
import sqlite3
import threading
import types

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_model, tiny_tokenizer
from joblib import Parallel, delayed
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from faast_sklearn import (
    BackboneFeatures,
    FaastClassifier,
    FeatureCache,
    as_indexable,
    backbone,
)
from faast_sklearn.backbones.fingerprints import fingerprint
from faast_sklearn.backbones.modules import ModuleBackbone
from faast_sklearn.errors import InputError, NonFiniteError, TruncationWarning
from faast_sklearn.features.cache import as_cache, directory_store, sample_keys


class Counting(torch.nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale
        self.weight = torch.nn.Parameter(torch.full((3,), 2.0))

    def forward(self, x):
        return x.flatten(1)[:, :3].float() * self.weight * self.scale


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of samples of the passes of modules in memory."""
    sizes, forward = [], ModuleBackbone.forward

    def noted(self, batch):
        sizes.append(batch.size)
        return forward(self, batch)

    monkeypatch.setattr(ModuleBackbone, "forward", noted)
    return sizes


@pytest.fixture(params=["memory", "directory"])
def cache(request, tmp_path):
    return FeatureCache(None if request.param == "memory" else tmp_path / "cache")


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).normal(size=(40, 2, 3))


def features(module, cache, **options):
    return BackboneFeatures(module, device="cpu", cache=cache, **options)


def test_cached_features_are_the_fresh_ones_in_the_order_of_the_samples(cache, rows, encoded):
    fresh = features(Counting(), None).fit_transform(rows)
    encoded.clear()
    cached = features(Counting(), cache, batch_size=7).fit(rows)
    assert np.array_equal(cached.transform(rows), fresh)
    assert np.array_equal(cached.transform(rows[::-1]), fresh[::-1])
    mixed = np.concatenate([rows[5:9], rows[:2] + 1, rows[5:7]])
    out = cached.transform(mixed)
    assert sum(encoded) == 42
    assert (len(cache), cache.misses) == (42, 42)
    assert cache.hits == 1 + 40 + 6  # the first one, seen in fit; all; all but two
    assert np.array_equal(out, features(Counting(), None).fit_transform(mixed))
    assert cache.nbytes == 42 * 3 * 4


def test_equal_samples_are_encoded_once_whatever_holds_them(cache, rows, encoded):
    cached = features(Counting(), cache).fit(rows[:1])
    again = [rows[0], rows[1].copy(), np.asfortranarray(rows[0]), rows[::-1][-2], rows.transpose(2, 1, 0).T[1]]
    out = cached.transform(again)
    assert sum(encoded) == 2
    assert np.array_equal(out, out[[0, 1, 0, 1, 1]])
    tensors = torch.from_numpy(rows[:2])
    cached.transform(tensors)
    cached.transform(tensors.flip(0))
    cached.transform(tensors.mT.contiguous().mT)
    assert sum(encoded) == 4
    cached.transform(rows[:2].astype(np.float32))
    cached.transform(rows[:2].reshape(2, 3, 2))
    assert sum(encoded) == 8


def test_float64_and_bfloat16_come_back_as_they_were(cache):
    class Double(torch.nn.Module):
        def forward(self, x):
            return x.double()

    rows = np.random.default_rng(1).normal(size=(5, 3))
    cached = features(Double(), cache, dtype="float64")
    assert np.array_equal(cached.fit_transform(rows), rows)
    again = cached.transform(rows)
    assert again.dtype == np.float64
    assert np.array_equal(again, rows)
    cache.store.put(b"half", "bfloat16", torch.ones(2, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes())
    assert cache.store.get([b"half"])[b"half"][0] == "bfloat16"


def test_paths_count_by_the_bytes_of_their_files(cache, tmp_path, encoded):
    handle = backbone(Counting(), modality="image")
    images = [Image.fromarray((image * 15).astype(np.uint8)) for image in load_digits().images[:3]]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    cached = features(handle, cache).fit(paths)
    one = cached.transform(paths)
    paths[0].rename(tmp_path / "elsewhere.png")
    moved = cached.transform([str(tmp_path / "elsewhere.png"), *paths[1:]])
    assert np.array_equal(one, moved)
    contents = [path.read_bytes() for path in (tmp_path / "elsewhere.png", *paths[1:])]
    assert np.array_equal(one, cached.transform(contents))
    assert sum(encoded) == 3
    images[0].save(paths[1])
    assert np.array_equal(cached.transform(paths[1:]), one[[0, 2]])
    assert sum(encoded) == 3
    with pytest.raises(InputError, match=r"X\[1\] \('.*0.png'\) does not exist"):
        cached.transform([paths[1], paths[0]])


def test_images_in_memory_count_by_all_that_reading_uses(cache, encoded):
    handle = backbone(Counting(), modality="image")

    def images():
        pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
        plain, turned = Image.fromarray(pixels), Image.fromarray(pixels)
        turned.getexif()[0x0112] = 3
        palettes = []
        for shift in (0, 9):
            indexed = Image.new("P", (6, 4))
            indexed.putdata(pixels.ravel().tolist())
            indexed.putpalette([(value * 7 + shift) % 256 for value in range(768)])
            palettes.append(indexed)
        return [plain, turned, *palettes]

    out = features(handle, cache).fit_transform(images())
    assert len(cache) == 4
    assert np.array_equal(out, features(handle, None).fit_transform(images()))
    assert np.array_equal(features(handle, cache).fit_transform(images()), out)
    assert len(cache) == 4


def test_dataset_items_and_what_read_gives_are_recognised(cache, encoded):
    pairs = as_indexable([(torch.full((4,), float(i)), i) for i in range(6)])
    module = (Counting(), lambda sample: torch.tensor([float(len(sample)), 0.0, 1.0]))
    cached = features(module[0], cache).fit(pairs)
    assert np.array_equal(cached.transform(pairs[[3, 1]]), cached.transform(pairs)[[3, 1]])
    assert sum(encoded) == 6
    handle = backbone(module, modality="tensor")
    out = features(handle, cache).fit_transform(as_indexable(["ab", "cd", "efg"]))
    assert out[:, 0].tolist() == [4, 4, 6]
    assert sum(encoded) == 8  # both of length two are the same to the module

    opaque = types.SimpleNamespace(modality="tensor", read=lambda sample: object())
    with pytest.raises(InputError, match=r"X\[1\]: .*content, which is unknown for object; .* or use cache=None"):
        sample_keys.sample_keys([torch.ones(1), "a"], opaque, "")


def test_texts_are_found_in_any_order_and_company(cache):
    texts = ["a cat sat on the mat", "", "the red house", "one two three " * 3, "green", "a cat sat on the mat"]
    handle = backbone("bundled:minilm-l6", max_length=16)
    fresh = features(handle, None, batch_size=2).fit().transform(texts)
    cached = features(handle, cache, batch_size=2).fit()
    first = cached.transform(texts)
    np.testing.assert_allclose(first, fresh, atol=2e-6)
    assert cache.misses == 5
    assert np.array_equal(cached.transform(texts[::-1]), first[::-1])
    assert cache.misses == 5


def test_found_texts_count_as_done_and_cut_ones_are_refused_where_cutting_is(cache):
    texts = ["the cat ran far away", "dog"]
    module = (tiny_model("bert"), tiny_tokenizer())
    cached = features(backbone(module, max_length=5), cache).fit(["dog"])
    with pytest.warns(TruncationWarning, match="1 of 2 texts"):
        cached.transform(texts)
    cached.transform(texts)
    with pytest.raises(InputError, match=r"X\[0\] has 7 tokens"):
        features(backbone(module, max_length=5, truncation="error"), cache).fit(["dog"]).transform(texts)
    assert cached.n_features_out_ == 16


def test_every_change_of_what_decides_a_feature_misses(cache, tiny_folder):
    texts = ["the cat", "dog ran far away", "a red house"]
    path = tiny_folder("bert")
    model, tokenizer = tiny_model("bert"), tiny_tokenizer()
    variants = [
        (backbone(path), "auto"),
        (backbone(path, pooling="cls"), "auto"),
        (backbone(path, max_length=9), "auto"),
        (backbone(path, layer=1), "auto"),
        (backbone(path, truncation="error"), "auto"),
        (backbone(path), "float64"),
        (backbone(tiny_folder("roberta")), "auto"),
        (backbone((model, tokenizer), pooling="max"), "auto"),
    ]
    for n, (handle, dtype) in enumerate(variants, 1):
        features(handle, cache, dtype=dtype).fit(texts).transform(texts)
        assert len(cache) == 3 * n
    other = tiny_tokenizer()
    other.add_tokens(["zebra"])
    features(backbone((model, other), pooling="max"), cache).fit_transform(texts)
    assert len(cache) == 3 * (len(variants) + 1)


def test_a_module_in_memory_is_looked_at_anew_at_every_call(cache, rows, encoded):
    module = Counting()
    cached = features(module, cache).fit(rows)
    one = cached.transform(rows)
    module.scale = 3.0
    np.testing.assert_allclose(cached.transform(rows), one * 3, rtol=1e-6)
    with torch.no_grad():
        module.weight.data.mul_(2)  # not even the version of the tensor changes
    np.testing.assert_allclose(cached.transform(rows), one * 6, rtol=1e-6)
    module.weight.data[[0, 1]] = torch.tensor([7.0, 4.0 - 3.0])  # the same sum
    assert np.array_equal(cached.transform(rows), features(module, None).fit_transform(rows))
    module.forward = lambda x: x.flatten(1)[:, :3].float()
    assert np.array_equal(cached.transform(rows), rows.reshape(40, -1)[:, :3].astype(np.float32))
    misses = cache.misses
    del module.forward
    cached.transform(rows)
    assert cache.misses == misses


OFFSET = 1.0


def shifted(x):
    return x + OFFSET


class Different(torch.nn.Module):
    """Makes modules whose only difference is one line."""

    @staticmethod
    def of(line, **names):
        space = {"torch": torch, "__name__": "__main__", **names}
        exec(f"class Same(torch.nn.Module):\n    def forward(self, x):\n        return {line}", space)
        return space["Same"]()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning", "ignore:.*torch.jit.script:DeprecationWarning")
def test_fingerprints_tell_apart_what_computes_something_else():
    relu, tanh = Different.of("x.relu()"), Different.of("x.tanh()")
    things = [
        relu,
        tanh,
        Different.of("x * 2.0"),
        Different.of("x * 3.0"),
        Different.of("f(x)", f=torch.relu),
        Different.of("f(x)", f=torch.tanh),
        Different.of("x * k", k=2.0),
        Different.of("x * k", k=np.array([2.0, 3.0])),
        Different.of("(lambda z: z * k)(x)", k=4),
        Different.of("(lambda z: z * k)(x)", k=5),
        torch.nn.LeakyReLU(0.1),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Tanh()),
        torch.nn.Sequential(torch.nn.Tanh(), torch.nn.ReLU()),
        torch.jit.script(torch.nn.ReLU()),
        torch.jit.script(torch.nn.Tanh()),
        lambda x: x / 255,
        lambda x: x / 127,
        *((lambda x, by=by: x / by) for by in (1, 2)),
        *(_divided(by) for by in (1, 2)),
        shifted,
        torch.ones(3),
        torch.ones(3, dtype=torch.float64),
        torch.tensor([1.0, 2.0, 3.0]),
        torch.tensor([2.0, 1.0, 3.0]),
        torch.complex(torch.ones(2), torch.zeros(2)),
        [[1], [2]],
        [[1, 2]],
        "12",
        12,
    ]
    prints = [fingerprint(thing) for thing in things]
    assert len(set(prints)) == len(things)
    hooked = Different.of("x.relu()")
    hooked.register_forward_hook(lambda module, args, output: output * 2)
    buffered = Different.of("x.relu()")
    buffered.register_buffer("offset", torch.ones(1), persistent=False)
    assert len({fingerprint(relu), fingerprint(hooked), fingerprint(buffered)}) == 3
    large = torch.zeros(3000, 7)
    one, other = large.clone(), large.clone()
    one[5, 3], other[2900, 3] = 1, 1
    assert fingerprint(one) != fingerprint(other)


def _divided(by):
    return lambda x: x / by


def test_fingerprints_leave_out_a_hash_that_differs_between_processes():
    import transformers

    configs = [transformers.GenerationConfig(max_new_tokens=n) for n in (3, 3, 4)]
    for number, config in enumerate(configs):  # as transformers does with a configuration that it reads
        config._original_object_hash = number
    one, same, other = map(fingerprint, configs)
    assert one == same != other


def test_fingerprints_survive_copies_passes_and_threads(tiny_folder):
    module = Counting()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), Counting()):
        assert fingerprint(twin) == fingerprint(module)
    assert fingerprint({"b", "a"}, types.SimpleNamespace(a=1)) == fingerprint({"a", "b"}, types.SimpleNamespace(a=1))
    for name in ("bert", "vit", "clip"):
        opened = backbone(tiny_folder(name)).open("cpu")
        before = opened.fingerprint()
        sample = "the cat ran" if opened.modality == "text" else np.zeros((40, 30, 3), np.uint8)
        opened.forward(opened.collate([opened.read(sample)]))
        assert opened.fingerprint() == before


def test_what_is_not_finite_is_refused_and_not_stored(cache, rows):
    bad = rows.copy()
    bad[3, 0, 1] = np.nan
    cached = features(Counting(), cache, batch_size=2).fit(rows[:1])
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=r"X\[3\] gives NaN"):
            cached.transform(bad)
    assert np.isfinite(cached.transform(np.delete(bad, 3, 0))).all()
    assert len(cache) == 39


def test_errors_name_the_sample_by_its_place_in_x(cache, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(good)
    bad.write_bytes(b"no image")
    cached = features(backbone(Counting(), modality="image"), cache).fit([good])
    with pytest.raises(InputError, match=r"X\[2\]: cannot read image"):
        cached.transform([good, good, bad])


@pytest.mark.parametrize("n_jobs", [1, 4])
def test_threads_share_the_work(cache, rows, encoded, n_jobs):
    X = np.repeat(rows[:, None], 25, axis=1).reshape(1000, 2, 3) + np.arange(1000)[:, None, None]
    barrier = threading.Barrier(n_jobs)

    def run():
        barrier.wait()
        return features(Counting(), cache, batch_size=8).fit(X[:1]).transform(X)

    out = Parallel(n_jobs=n_jobs, backend="threading")(delayed(run)() for _ in range(n_jobs))
    assert sum(encoded) == 1000
    for each in out:
        assert np.array_equal(each, features(Counting(), None).fit_transform(X))


def test_what_a_broken_pass_had_claimed_others_encode(cache, rows):
    cached = features(Counting(), cache, batch_size=3)
    stream = cached._reader(rows, "", {}).stream(rows)
    indices, _ = next(stream)
    assert len(indices) == 3
    waiting = threading.Thread(target=lambda: out.append(clone(cached).fit(rows[:1]).transform(rows)))
    out = []
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()  # for what the suspended pass has claimed
    stream.close()
    waiting.join(10)
    assert np.array_equal(out[0], features(Counting(), None).fit_transform(rows))


def test_a_pass_within_a_pass_of_the_same_thread_does_not_wait_for_itself(cache, rows):
    cached = features(Counting(), cache, batch_size=3)
    outer = cached._reader(rows, "", {}).stream(rows)
    next(outer)
    inner = clone(cached).fit_transform(rows)
    assert sum(len(indices) for indices, _ in outer) == len(rows) - 3
    assert np.array_equal(inner, cached.fit_transform(rows))


@pytest.mark.parametrize("kind", ["memory", "directory"])
def test_the_bound_holds_and_the_least_recently_used_go_first(kind, tmp_path, rows):
    cache = FeatureCache(tmp_path if kind == "directory" else None, max_bytes=120)  # ten rows of three float32
    cached = features(Counting(), cache, batch_size=1).fit(rows[:1])
    for i in range(10):
        cached.transform(rows[i : i + 1])
    assert len(cache) == 10
    misses = cache.misses
    cached.transform(rows[:1])
    cached.transform(rows[10:11])
    assert cache.nbytes <= 120
    cached.transform(rows[:1])
    assert cache.misses == misses + 1
    cached.transform(rows[1:2])
    assert cache.misses == misses + 2
    assert np.array_equal(cached.transform(rows), features(Counting(), None).fit_transform(rows))
    assert cache.nbytes <= 120
    too_small = FeatureCache(cache.directory and tmp_path / "small", max_bytes=11)
    assert np.array_equal(features(Counting(), too_small).fit_transform(rows), cached.transform(rows))
    assert len(too_small) == 0
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)


def test_a_damaged_row_is_encoded_again(tmp_path, rows, encoded, caplog):
    cache = FeatureCache(tmp_path)
    cached = features(Counting(), cache)
    fresh = cached.fit_transform(rows)
    (file,) = tmp_path.glob("features-*.sqlite")
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE blobs SET data = zeroblob(12) WHERE id = 5")
        connection.execute("UPDATE blobs SET data = substr(data, 1, 8) WHERE id = 7")
        connection.execute("UPDATE blobs SET dtype = 'int32' WHERE id = 9")
        whole = connection.execute("SELECT data, checksum FROM blobs WHERE id = 12").fetchone()
        connection.execute("UPDATE blobs SET data = ?, checksum = ? WHERE id = 11", whole)  # another sample's
        connection.execute("DELETE FROM blobs WHERE id = 20")
    connection.close()
    encoded.clear()
    with caplog.at_level(logging.WARNING, "faast_sklearn"):
        assert np.array_equal(cached.transform(rows), fresh)
    assert "4 damaged rows" in caplog.text
    assert sum(encoded) == 5
    assert np.array_equal(cached.transform(rows), fresh)
    assert sum(encoded) == 5


@pytest.mark.parametrize(
    ("damage", "where"),
    [(damage, where) for damage in ("header", "everything", "deleted") for where in ("open", "reopened")]
    + [("emptied", "reopened")],
)
def test_a_damaged_file_is_begun_anew(tmp_path, rows, damage, where, caplog):
    cache = FeatureCache(tmp_path)
    fresh = features(Counting(), cache).fit_transform(rows)
    (file,) = tmp_path.glob("features-*.sqlite")
    if where == "reopened":
        cache.store._close()
    if damage == "deleted":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        stop = {"header": 100, "everything": len(data), "emptied": 0}[damage]
        data[:stop] = b"\x7f" * stop
        file.write_bytes(b"" if damage == "emptied" else data)
    with caplog.at_level(logging.WARNING, "faast_sklearn"):
        for _ in range(2):
            assert np.array_equal(features(Counting(), cache).fit_transform(rows), fresh)
    misses = cache.misses
    assert np.array_equal(features(Counting(), cache).fit_transform(rows), fresh)
    assert cache.misses == misses
    assert len(FeatureCache(tmp_path)) == 40
    if damage in ("header", "everything") and where == "reopened":
        assert "a new one begun" in caplog.text


def test_a_file_that_cannot_be_used_is_left_out(tmp_path, rows, monkeypatch, caplog):
    cache = FeatureCache(tmp_path)
    monkeypatch.setattr(directory_store, "_put", lambda *args: (_ for _ in ()).throw(sqlite3.OperationalError("full")))
    with caplog.at_level(logging.WARNING, "faast_sklearn"):
        out = features(Counting(), cache).fit_transform(rows)
    assert np.array_equal(out, features(Counting(), None).fit_transform(rows))
    assert caplog.text.count("skipped for a minute: full") == 1
    # Others do not wait for what this process could not give back.
    monkeypatch.undo()
    other = FeatureCache(tmp_path)
    assert np.array_equal(features(Counting(), other).fit_transform(rows), out)
    assert len(other) == 40


def test_clones_copies_and_pickles(tmp_path, rows):
    memory, directory = FeatureCache(max_bytes=99), FeatureCache(tmp_path, max_bytes=12_000)
    for cache in (memory, directory):
        estimator = features(Counting(), cache).fit(rows)
        assert clone(estimator).cache is copy.deepcopy(estimator).cache is copy.copy(cache) is cache
        assert repr(cache.max_bytes) in repr(cache)
    empty = pickle.loads(pickle.dumps(memory))
    assert (len(empty), empty.max_bytes, empty.directory) == (0, 99, None)
    arrived = pickle.loads(pickle.dumps(directory))
    assert (arrived.directory, arrived.max_bytes, len(arrived)) == (directory.directory, 12_000, 1)
    assert pickle.loads(pickle.dumps(directory)) is arrived
    assert pickle.loads(pickle.dumps(features(Counting(), "memory"))).cache == "memory"


def test_names_of_a_cache_are_one_cache_in_a_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert as_cache("memory") is as_cache("memory")
    assert as_cache("here") is as_cache(str(tmp_path / "here")) is as_cache(tmp_path / "other" / ".." / "here")
    assert as_cache("here") is not as_cache("there")
    assert not list(tmp_path.iterdir())  # made when it is used
    assert bool(FeatureCache())
    assert as_cache(None) is None


@pytest.mark.parametrize("wrong", [True, 5, "", [], FeatureCache])
@pytest.mark.parametrize("module", [Counting(), None])
def test_anything_else_is_refused_at_fit(wrong, module, rows):
    if module is None:
        with pytest.raises(ValueError, match="cache must be None, 'memory', a directory or a FeatureCache"):
            FaastClassifier(cache=wrong)._reader(rows, "", {})
        return
    with pytest.raises(ValueError, match="cache must be None, 'memory', a directory or a FeatureCache"):
        features(module, wrong).fit(rows)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "1 GB"])
def test_a_bound_is_a_positive_number(wrong):
    with pytest.raises(ValueError, match="max_bytes must be a positive integer"):
        FeatureCache(max_bytes=wrong)


def test_a_directory_that_cannot_be_written_is_named(tmp_path, rows):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cache='.*file.*' cannot be written"):
        features(Counting(), tmp_path / "file" / "cache").fit(rows)
    with pytest.raises(InputError, match=r"cache='.*file' cannot be written"):
        features(Counting(), str(tmp_path / "file")).fit(rows)


def test_another_width_for_the_same_module_is_still_refused(cache, rows):
    class Wide(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1).float()

    cached = features(Wide(), cache).fit(rows)
    cached.transform(rows)
    other = features(Wide(), cache).fit(rows[:, :1])
    for X in (rows, rows[:1]):
        with pytest.raises(InputError, match="now gives 6 features"):
            other.transform(X)


@pytest.mark.parametrize("batch_size", [0, "large", 2.5])
def test_a_wrong_batch_size_is_refused_also_where_nothing_is_encoded(cache, rows, batch_size):
    features(Counting(), cache).fit_transform(rows)
    with pytest.raises(ValueError, match="batch_size must be"):
        features(Counting(), cache, batch_size=batch_size).fit(rows)


def test_a_search_in_a_pipeline_encodes_each_image_once(cache, encoded):
    digits = load_digits()
    images, y = (digits.images[:120] * 15).astype(np.uint8), digits.target[:120]
    pipeline = make_pipeline(features(backbone(Counting(), modality="image"), cache), RidgeClassifier())
    search = GridSearchCV(pipeline, {"ridgeclassifier__alpha": [0.1, 1, 10, 100]}, cv=5)
    search.fit(images, y)
    search.predict(images)
    assert sum(encoded) == len(np.unique(images, axis=0)) == 120


def test_a_search_over_the_classifier_encodes_each_image_once(cache, encoded):
    digits = load_digits()
    images, y = (digits.images[:120] * 15).astype(np.uint8), digits.target[:120]
    clf = FaastClassifier(backbone(Counting(), modality="image"), device="cpu", cache=cache)
    search = GridSearchCV(clf, {"alpha": [0.1, 1, 10, 100]}, cv=5)
    search.fit(images, y)
    search.predict_proba(images)
    assert sum(encoded) == 120
    plain = FaastClassifier(backbone(Counting(), modality="image"), device="cpu", alpha=search.best_params_["alpha"])
    # The same features in other blocks: sums in another order.
    np.testing.assert_allclose(plain.fit(images, y).predict_proba(images), search.predict_proba(images), rtol=1e-9)


def test_digests_are_of_the_rows_and_the_backbone(rows):
    table = rows.reshape(40, -1)
    plain = FaastClassifier()._reader(table, "", {})
    one = plain.digest(table)
    assert plain.digest(np.asfortranarray(table)) == plain.digest(table.repeat(2, 0)[::2]) == one
    assert len({one, plain.digest(table[::-1]), plain.digest(table[:-1]), plain.digest(table.astype(np.float32))}) == 4
    assert plain.digest(table.reshape(80, 3)) != one
    source = features(Counting(), None)._reader(rows, "", {})
    assert source.digest(rows) == source.digest(rows.copy()) != source.digest(rows[::-1])
    assert source.digest(rows) != features(Counting(2.0), None)._reader(rows, "", {}).digest(rows)


def test_long_tables_are_digested_in_blocks(monkeypatch, rows):
    table = rows.reshape(40, -1)
    monkeypatch.setattr(sample_keys, "_ROW_BYTES", 100)
    one = sample_keys.digest_of_rows(table, threads=3)
    assert one == sample_keys.digest_of_rows(table.copy(), threads=1)
    swapped = table.copy()
    swapped[[30, 3]] = swapped[[3, 30]]
    assert one != sample_keys.digest_of_rows(swapped)
    assert sample_keys.digest_of_rows(torch.from_numpy(table)) == sample_keys.digest_of_rows(torch.from_numpy(table))


@pytest.mark.slow
def test_real_images_and_texts_come_back_exactly(cache):
    images = (load_digits().images[:20] * 15).astype(np.uint8)
    for handle, X in ((backbone("bundled:efficientnet-lite0"), images), ("bundled:minilm-l6", ["a b", "c", "d e f"])):
        cached = features(handle, cache).fit()
        first = cached.transform(X)
        assert np.array_equal(cached.transform(X), first)
        assert np.array_equal(features(handle, None).fit().transform(X), first)
