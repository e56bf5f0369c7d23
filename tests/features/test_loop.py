import gc
import logging
import sys
import threading
import time
import warnings
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from faast_sklearn.backbones import Backbone
from faast_sklearn.errors import (
    BackboneError,
    InputError,
    MissingDependencyError,
    NonFiniteError,
    OutOfMemoryError,
    TruncationWarning,
)
from faast_sklearn.features.loop import stream_features
from faast_sklearn.features.progress import Report
from faast_sklearn.inputs import as_samples


class Fake(Backbone):
    """A backbone whose features are (value, value squared); it records what is asked of it."""

    n_features = 2
    device = torch.device("cpu")

    def __init__(self, modality="tensor", *, fits=10**9, default=4, limit=None, truncation="warn", dtype=torch.float32):
        self.modality = modality
        self.default_batch_size = default
        self.fits = fits
        self.limit = limit
        self.truncation = truncation
        self.dtype = dtype
        self.batches = []
        self.loaded = 0
        self.threads = set()

    def read(self, sample):
        self.loaded += 1
        self.threads.add(threading.current_thread().name)
        if isinstance(sample, str) and self.modality == "image":
            with Image.open(sample) as image:
                return float(np.asarray(image).max())
        return sample

    def sort_key(self, item):
        return len(item)

    def collate(self, items):
        if self.modality == "text":
            lengths = np.array([len(item) for item in items])
            return SimpleNamespace(inputs=lengths, size=len(items), lengths=lengths, limit=self.limit)
        return SimpleNamespace(inputs=np.array(items, dtype=float), size=len(items), lengths=None, limit=None)

    def forward(self, batch):
        self.batches.append(batch.size)
        if batch.size > self.fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        values = torch.as_tensor(batch.inputs, dtype=self.dtype)
        return torch.stack([values, values**2], dim=1)


def collect(backbone, samples, **options):
    """Features in the order of samples; each must come exactly once."""
    features = torch.full((len(samples), 2), -1.0, dtype=backbone.dtype)
    seen = np.zeros(len(samples), dtype=int)
    for indices, block in stream_features(backbone, samples, **options):
        features[indices] = block
        seen[indices] += 1
    assert (seen == 1).all()
    return features


def threads_alive():
    return {thread for thread in threading.enumerate() if thread.name.startswith("faast")}


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64, "auto"])
@pytest.mark.parametrize("n", [1, 4, 5, 20])
def test_every_sample_comes_once_with_its_own_features(batch_size, n):
    values = np.arange(float(n))
    for modality in ("tensor", "image"):
        features = collect(Fake(modality), values, batch_size=batch_size)
        assert torch.equal(features[:, 0], torch.arange(float(n)))
        assert torch.equal(features[:, 1], torch.arange(float(n)) ** 2)
    texts = ["x" * (5 * i % n) for i in range(n)]
    features = collect(Fake("text"), texts, batch_size=batch_size)
    assert features[:, 0].tolist() == [len(text) for text in texts]


def test_images_keep_their_order_and_texts_come_longest_first():
    order = np.concatenate([indices for indices, _ in stream_features(Fake("image"), np.zeros(10))])
    assert order.tolist() == list(range(10))
    texts = ["aa", "b", "cccc", "dd", ""]
    order = np.concatenate([indices for indices, _ in stream_features(Fake("text", default=2), texts)])
    assert order.tolist() == [2, 0, 3, 1, 4]


def test_the_number_of_threads_does_not_change_results(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    found = []
    for n_threads in (0, 1, 5):
        monkeypatch.setattr("faast_sklearn.features.loader._n_threads", lambda *_, n=n_threads: n)
        found.append([(i.tolist(), f.tolist()) for i, f in stream_features(Fake("image"), values, batch_size=7)])
    assert found[0] == found[1] == found[2]


def test_threads_read_ahead_but_only_a_few_batches():
    backbone = Fake("image", default=5)
    stream = stream_features(backbone, np.zeros(200))
    next(stream)
    time.sleep(0.2)
    assert 5 < backbone.loaded <= 15
    assert threading.current_thread().name not in backbone.threads
    stream.close()


def test_a_single_sample_needs_no_thread():
    for modality, samples in (("image", np.zeros(1)), ("text", ["one", "two"])):
        backbone = Fake(modality)
        collect(backbone, samples)
        assert backbone.threads == {threading.current_thread().name}


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("ending", ["exhausted", "closed", "error", "interrupt", "collected"])
def test_no_thread_outlives_the_stream(modality, ending):
    samples = np.zeros(100) if modality == "image" else ["x"] * 100
    stream = stream_features(Fake(modality), samples)
    next(stream)
    assert threads_alive()
    if ending == "exhausted":
        list(stream)
    elif ending == "closed":
        stream.close()
    elif ending == "collected":
        del stream
        gc.collect()
    else:
        with pytest.raises(KeyboardInterrupt if ending == "interrupt" else ZeroDivisionError):
            stream.throw(KeyboardInterrupt() if ending == "interrupt" else ZeroDivisionError())
    assert not threads_alive()


def test_an_interrupt_during_the_forward_pass_is_not_swallowed():
    class Interrupted(Fake):
        def forward(self, batch):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(Interrupted("image"), np.zeros(50))
    assert not threads_alive()


def test_closing_does_not_wait_for_what_is_not_needed(monkeypatch):
    class Slow(Fake):
        def read(self, sample):
            time.sleep(0.002)
            return super().read(sample)

    monkeypatch.setattr("faast_sklearn.features.loader._n_threads", lambda *_: 2)
    backbone = Slow("image")
    stream = stream_features(backbone, np.zeros(1000), batch_size=200)
    next(stream)
    before = backbone.loaded
    stream.close()
    assert backbone.loaded - before <= 2 * 2  # not the two batches that were under way


@pytest.mark.parametrize("batch_size", ["auto", 16])
def test_out_of_memory_halves_until_it_fits_and_is_remembered(batch_size, caplog):
    values = np.arange(40.0)
    backbone = Fake("image", fits=5, default=16)
    with caplog.at_level(logging.INFO, "faast_sklearn"):
        features = collect(backbone, values, batch_size=batch_size)
    assert torch.equal(features[:, 0], torch.arange(40.0))
    assert backbone.batches == [16, 8] + [4] * 10
    assert [record.args[-1] for record in caplog.records] == [8, 4]
    backbone.batches.clear()
    collect(backbone, values, batch_size=batch_size)
    assert backbone.batches == [4] * 10
    backbone.batches.clear()
    collect(backbone, values, batch_size=2)
    assert backbone.batches == [2] * 20
    other = Fake("image", default=16)
    collect(other, values)
    assert other.batches == [16, 16, 8]


def test_an_explicit_batch_size_that_is_halved_is_logged_louder(caplog):
    collect(Fake("image", fits=2, default=4), np.zeros(4))
    collect(Fake("image", fits=2), np.zeros(4), batch_size=4)
    assert [record.levelno for record in caplog.records if record.name == "faast_sklearn"] == [logging.WARNING]


def test_running_out_half_way_repeats_no_sample():
    class Filling(Fake):
        def forward(self, batch):
            self.fits = 10 if len(self.batches) < 3 else 3
            return super().forward(batch)

    backbone = Filling("image", default=10)
    features = collect(backbone, np.arange(45.0))
    assert torch.equal(features[:, 0], torch.arange(45.0))
    assert backbone.batches[:6] == [10, 10, 10, 10, 5, 2]


def test_one_sample_that_does_not_fit_is_an_error_with_a_remedy():
    with pytest.raises(OutOfMemoryError, match=r"X\[0\].*cpu.*smaller backbone"):
        collect(Fake("image", fits=0), np.zeros(9))
    assert not threads_alive()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("MPS backend out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_other_devices_run_out_of_memory_too(error):
    class Full(Fake):
        def forward(self, batch):
            if batch.size > 2:
                raise error
            return super().forward(batch)

    assert torch.equal(collect(Full("image"), np.arange(9.0))[:, 0], torch.arange(9.0))


def test_other_errors_of_the_model_are_raised_as_they_are():
    class Broken(Fake):
        def forward(self, batch):
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        collect(Broken(), np.zeros(9))


def test_a_failed_attempt_holds_no_memory():
    activations = weakref.WeakSet()
    before = []

    class Leaky(Fake):
        def forward(self, batch):
            before.append(len(activations))
            held = torch.zeros(1)
            activations.add(held)
            if batch.size > 1:
                raise torch.cuda.OutOfMemoryError(f"out of memory beside {held}")
            return super().forward(batch)

    collect(Leaky("image", default=8), np.zeros(8))
    assert before == [0] * (3 + 8)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "all", None])
def test_an_invalid_batch_size_is_refused_at_once(batch_size):
    with pytest.raises(ValueError, match="batch_size must be 'auto' or a positive integer"):
        stream_features(Fake(), np.zeros(3), batch_size=batch_size)


@pytest.mark.parametrize("n", [3, 30])
def test_the_first_unreadable_image_is_named_with_its_path(tmp_path, n):
    for i in range(n):
        Image.new("L", (64, 64), i).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(n)]
    assert collect(Fake("image"), as_samples(paths, "image"))[:, 0].tolist() == list(range(n))

    whole = (tmp_path / "1.png").read_bytes()
    for bad in (1, n - 1):
        (tmp_path / f"{bad}.png").write_bytes(whole[: len(whole) // 2])
    for _ in range(5):
        with pytest.raises(InputError, match=r"X\[1\] \('.*1\.png'\) cannot be read.*repair") as caught:
            collect(Fake("image"), as_samples(paths, "image"), batch_size=n)
    assert isinstance(caught.value.__cause__, (OSError, SyntaxError))
    assert not threads_alive()


def test_missing_files_and_folders_are_told_apart(tmp_path):
    for path, message in ((tmp_path / "no.png", "does not exist"), (tmp_path, r"is a folder.*image_folder")):
        with pytest.raises(InputError, match=rf"X\[0\].*{message}"):
            collect(Fake("image"), [str(path)])


def test_errors_of_the_backbone_are_numbered_and_name_a_path_once():
    class Strict(Fake):
        def read(self, sample):
            raise InputError(f"cannot read image {sample!r}." if self.limit else "float image above 1.")

    with pytest.raises(InputError, match=r"^X\[0\]: cannot read image 'a.png'\.$"):
        collect(Strict("image", limit=1), ["a.png"])
    with pytest.raises(InputError, match=r"^X\[0\] \('a.png'\): float image above 1\.$"):
        collect(Strict("image"), ["a.png"])


def test_errors_that_are_not_about_the_sample_keep_their_type():
    class Bare(Fake):
        def read(self, sample):
            raise MissingDependencyError("pip install pillow")

    with pytest.raises(MissingDependencyError, match=r"^pip install pillow$"):
        collect(Bare("image"), np.zeros(20))


def test_an_error_while_collating_reaches_the_caller():
    class Ragged(Fake):
        def collate(self, items):
            raise ValueError("sizes differ")

    for n in (2, 20):
        with pytest.raises(ValueError, match="sizes differ"):
            collect(Ragged("image"), np.zeros(n))


@pytest.mark.parametrize(("dtype", "remedy"), [(torch.float16, "try dtype='float32'"), (torch.float32, "check that")])
@pytest.mark.parametrize("bad", [0, 6, 9])
def test_non_finite_features_name_the_sample(dtype, remedy, bad):
    values = np.ones(10)
    values[bad] = 300.0 if dtype == torch.float16 else np.nan  # 300 squared overflows float16
    with pytest.raises(NonFiniteError, match=rf"X\[{bad}\].*NaN or infinite.*{remedy}"):
        collect(Fake("image", dtype=dtype), values)


def test_features_of_another_shape_blame_the_backbone():
    class Short(Fake):
        def forward(self, batch):
            return super().forward(batch)[:-1]

    with pytest.raises(BackboneError, match=r"Short.forward returned shape \(3, 2\), expected \(4, 2\)"):
        collect(Short(), np.zeros(4))
    unknown = Short()
    unknown.n_features = None
    with pytest.raises(BackboneError, match=r"expected \(4, n_features\)"):
        collect(unknown, np.zeros(4))


def test_cut_texts_are_told_once_with_how_many_and_how_long():
    texts = ["x" * n for n in (3, 9, 12, 8, 10, 1)]
    with pytest.warns(TruncationWarning, match=r"3 of 6 texts.*longest has 12 tokens.*reads 8") as caught:
        collect(Fake("text", limit=8), texts, batch_size=2)
    assert len(caught) == 1
    collect(Fake("text", limit=12), texts)


def test_cut_texts_add_up_over_streams_that_share_a_report():
    backbone = Fake("text", limit=3)
    report = Report()
    for texts in (["aaaa", "b"], ["cccccc", "dd", "eeee"]):
        list(stream_features(backbone, texts, report=report))
    with pytest.warns(TruncationWarning, match=r"3 of 5 texts.*longest has 6") as caught:
        report.__exit__(None, None, None)
    assert len(caught) == 1
    assert (report.n_samples, report.n_truncated, report.longest, report.limit) == (5, 3, 6, 3)


def test_no_truncation_warning_on_top_of_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = stream_features(Fake("text", limit=1), ["long"] * 9)
        next(stream)
        with pytest.raises(ZeroDivisionError):
            stream.throw(ZeroDivisionError())


def test_refusing_cut_texts_names_one_before_the_model_runs():
    backbone = Fake("text", limit=8, truncation="error")
    with pytest.raises(InputError, match=r"X\[1\] has 9 tokens and the backbone reads 8.*truncation='warn'"):
        collect(backbone, ["x" * n for n in (3, 9, 8)])
    assert backbone.batches == []


def test_progress_is_silent_unless_asked_for(capfd):
    threads = set(threading.enumerate())
    collect(Fake(), np.zeros(10))
    assert capfd.readouterr() == ("", "")
    with Report(verbose=1, description="fit", total=10) as report:
        collect(Fake(), np.zeros(10), report=report)
    out, err = capfd.readouterr()
    assert out == ""
    assert "fit: 100%" in err
    assert "10/10" in err
    assert set(threading.enumerate()) <= threads  # tqdm would leave a monitor running


def test_a_bar_without_tqdm_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    collect(Fake(), np.zeros(2))
    with pytest.raises(MissingDependencyError, match="pip install tqdm"):
        Report(verbose=1)


def test_grad_mode_is_left_alone():
    assert torch.is_grad_enabled()
    for _ in stream_features(Fake("image"), np.zeros(20)):
        assert torch.is_grad_enabled()


def test_one_image_object_may_occur_many_times_and_in_many_streams(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300), dtype=np.uint8)).save(tmp_path / "x.png")

    class Decoding(Fake):
        def read(self, sample):
            return float(np.asarray(sample.convert("L"), dtype=float).mean())

    for _ in range(5):
        image = Image.open(tmp_path / "x.png")  # not decoded yet
        found = [None] * 3

        def work(k, image=image, found=found):
            found[k] = collect(Decoding("image"), [image] * 40)

        workers = [threading.Thread(target=work, args=(k,)) for k in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert all(features is not None and (features == features[0]).all() for features in found)
