import pathlib
import pickle

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import KFold, cross_val_score, train_test_split
from sklearn.utils import _safe_indexing

from faast_sklearn.errors import InputError
from faast_sklearn.inputs import as_samples
from faast_sklearn.inputs.datasets import as_indexable, image_folder
from faast_sklearn.inputs.samples import count_samples, iter_chunks


def picture(value, mode="RGB"):
    return Image.new(mode, (4, 5), value if mode == "L" else (value, 0, 0))


def as_objects(values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


TEXTS = ["zero", "", "two", "three"]


@pytest.mark.parametrize(
    "X",
    [
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        np.array(TEXTS, dtype=object)[:, None],
        pd.Series(TEXTS, index=[3, 2, 1, 0]),
        pd.Series(TEXTS, index=list("abcd")).astype("category"),
        pd.DataFrame({"text": TEXTS}, index=[7, 7, 0, 1]),
        datasets.Dataset.from_dict({"text": TEXTS})["text"],
        datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 0, 1]}),
        as_indexable(datasets.Dataset.from_dict({"text": [*TEXTS, "more"]}))[:4],
    ],
    ids=lambda X: type(X).__name__,
)
def test_texts_come_in_their_own_order_however_they_are_held(X):
    samples = as_samples(X, "text")
    assert [samples[i] for i in range(len(samples))] == TEXTS


def test_series_are_read_by_position_after_shuffling():
    frame = pd.DataFrame({"text": [f"t{i}" for i in range(20)]})
    train, _ = train_test_split(frame, random_state=0)
    samples = as_samples(train["text"], "text")
    assert list(samples) == train["text"].tolist()
    assert list(as_samples(train, "text")) == train["text"].tolist()


@pytest.mark.parametrize("kind", ["list", "objects", "series", "frame", "hf", "dataset"])
def test_images_are_passed_through_untouched(kind):
    images = [picture(i) for i in range(3)]

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return images[i], i

    X = {
        "list": lambda: images,
        "objects": lambda: as_objects(images),
        "series": lambda: pd.Series(images, index=[5, 4, 3]),
        "frame": lambda: pd.DataFrame({"image": images}, index=[5, 4, 3]),
        "hf": lambda: datasets.Dataset.from_dict(
            {"image": images, "name": ["a", "b", "c"], "label": [0, 1, 1]},
            features=datasets.Features(
                image=datasets.Image(), name=datasets.Value("string"), label=datasets.ClassLabel(names=["x", "y"])
            ),
        ),
        "dataset": Pairs,
    }[kind]()
    samples = as_samples(X, "image")
    assert [np.asarray(samples[i])[0, 0, 0] for i in range(len(samples))] == [0, 1, 2]


def test_mixed_images_and_paths_stay_as_they_are():
    X = [picture(1), "a.png", pathlib.Path("b.png"), np.zeros((4, 4, 3)), np.zeros((4, 4)), torch.zeros(3, 4, 4)]
    assert all(a is b for a, b in zip(as_samples(X, "image"), X, strict=True))


@pytest.mark.parametrize(
    ("shape", "kind", "one"),
    [
        ((2, 8, 9, 3), np.zeros, (8, 9, 3)),
        ((2, 3, 8, 9), np.zeros, (8, 9, 3)),
        ((2, 8, 9), np.zeros, (8, 9)),
        ((2, 3, 8, 9), torch.zeros, (3, 8, 9)),
        ((2, 1, 8, 9), torch.zeros, (1, 8, 9)),
        ((2, 8, 9, 3), torch.zeros, (3, 8, 9)),
    ],
)
def test_blocks_of_images_give_channels_last_arrays_and_channels_first_tensors(shape, kind, one):
    block = kind(shape)
    samples = as_samples(block, "image")
    assert len(samples) == 2
    assert tuple(samples[1].shape) == one
    if isinstance(block, np.ndarray):
        assert np.shares_memory(samples[1], block)


def test_tensor_samples_are_rows():
    for X in (np.eye(3), torch.eye(3), pd.DataFrame(np.eye(3)), [np.ones(3)] * 3):
        samples = as_samples(X, "tensor")
        assert len(samples) == 3
        assert np.shape(samples[0]) == (3,)


@pytest.mark.parametrize(
    ("X", "modality", "message"),
    [
        ("one text", "text", r"one str.*\[x\]"),
        ("folder", "image", r"image_folder\(path\)"),
        (pathlib.Path("x.png"), "image", r"put it into a list"),
        (b"bytes", "text", r"one bytes"),
        ({"text": TEXTS}, "text", r"keys \['text'\].*X\['KEY'\]"),
        (picture(0), "image", r"one image.*\[image\]"),
        (np.zeros((8, 8, 3)), "image", r"one image; pass X\[None\]"),
        (torch.zeros(3, 8, 8), "image", r"X\[:, None\] for grey"),
        (np.zeros((5, 64)), "image", r"reshape\(n, h, w\).*backbone=None"),
        (np.zeros((5, 7, 8, 9)), "image", r"1, 3 or 4 channels"),
        (np.zeros((5, 64)), "text", r"shape \(5, 64\).*backbone=None"),
        (pd.DataFrame({"a": TEXTS, "b": TEXTS}), "text", r"2 columns \(a, b\).*X\['NAME'\]"),
        (np.array([["a", "b"]], dtype=object), "text", r"one column, so pass X\[:, j\]"),
        ([], "text", r"0 samples"),
        (np.zeros((0, 8, 8)), "image", r"0 samples"),
        (None, "text", r"X is None"),
        (np.array("a"), "text", r"single value"),
        (["a", None], "text", r"X\[1\] is None, expected str; drop such samples or fill them with ''"),
        (["a", "b", float("nan")], "text", r"X\[2\] is nan \(float\), expected str; drop"),
        (pd.Series(["a", pd.NA]), "text", r"X\[1\] is .*(NAType|float).*expected str; drop"),
        (["a", 3], "text", r"X\[1\] is 3 \(int\), expected str; convert it"),
        (["a", b"b"], "text", r"X\[1\].*decode"),
        (np.arange(3), "text", r"X\[0\] is .*int64\), expected str; convert it"),
        (["a.png", None], "image", r"X\[1\] is None, expected an image or a path"),
        (["a.png", np.nan], "image", r"X\[1\] is nan \(float\), expected an image or a path"),
        ((t for t in TEXTS), "text", r"generator cannot be indexed.*read only once.*partial_fit"),
        (torch.utils.data.DataLoader(TEXTS), "text", r"DataLoader cannot be indexed.*predict"),
        (datasets.Dataset.from_dict({"a": TEXTS, "b": TEXTS}), "text", r"Which column.*\['a', 'b'\]"),
    ],
)
def test_wrong_input_names_what_to_pass_instead(X, modality, message):
    with pytest.raises(InputError, match=message):
        as_samples(X, modality)


def test_a_dataset_of_dicts_asks_for_its_keys():
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return {"x": f"t{i}", "y": i}

    with pytest.raises(InputError, match=r"column='KEY'"):
        as_samples(Rows(), "text")
    X = as_indexable(Rows(), column="x", label="y")
    assert as_samples(X, "text") == ["t0", "t1"]
    assert X.labels().tolist() == [0, 1]


class Counting(torch.utils.data.Dataset):
    """A dataset that records which items were read."""

    def __init__(self, n):
        self.n = n
        self.read = []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.read.append(i)
        return np.full((4, 4), i, dtype=np.uint8), i % 2


@pytest.mark.parametrize("key", [slice(2, 7, 2), [3, 1], np.array([0, 9, 9]), np.arange(10) % 3 == 0, [], -1, 4])
def test_indexing_a_dataset_agrees_with_indexing_an_array(key):
    X = as_indexable(Counting(10))
    expected = np.arange(10)[np.asarray(key, dtype=int) if key == [] else key] if isinstance(key, list) else None
    expected = np.arange(10)[key] if expected is None else expected
    found = X[key]
    if np.ndim(expected) == 0:
        assert found[0, 0] == expected
    else:
        assert X.dataset.read == []
        assert [int(image[0, 0]) for image in found] == expected.tolist()
        assert [int(image[0, 0]) for image in _safe_indexing(X, key)] == expected.tolist()


def test_splitting_a_dataset_reads_only_what_is_used():
    class Nearest(ClassifierMixin, BaseEstimator):
        def fit(self, X, y):
            self.classes_ = np.unique(y)
            return self

        def predict(self, X):
            return np.array([X[i][0, 0] % 2 for i in range(len(X))])

    dataset = Counting(12)
    X = as_indexable(dataset)
    y = X.labels()
    assert dataset.read == list(range(12))
    dataset.read.clear()
    scores = cross_val_score(Nearest(), X, y, cv=KFold(3))
    assert scores.tolist() == [1, 1, 1]
    assert dataset.read == list(range(12))  # the test folds, once each
    train, test, y_train, y_test = train_test_split(X, y, random_state=0)
    assert [int(image[0, 0]) % 2 for image in train] == y_train.tolist()
    assert len(test) == len(y_test)


def test_a_view_survives_pickling_and_further_slicing():
    X = as_indexable(datasets.Dataset.from_dict({"text": list("abcdef"), "label": [0, 1, 2, 3, 4, 5]}))[[5, 3, 1]]
    X = pickle.loads(pickle.dumps(X))
    assert list(X[1:]) == ["d", "b"]
    assert X[1:].labels().tolist() == [3, 1]


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: torch.utils.data.TensorDataset(x, y),
        lambda x, y: torch.utils.data.Subset(torch.utils.data.TensorDataset(x, y), range(len(y))),
        lambda x, y: torch.utils.data.ConcatDataset([torch.utils.data.TensorDataset(x, y)]),
        lambda x, y: datasets.Dataset.from_dict({"x": x.tolist(), "label": y.tolist()}),
        lambda x, y: datasets.Dataset.from_dict({"x": x.tolist(), "label": y.tolist()}).with_format("torch"),
    ],
)
def test_labels_of_a_view_match_its_samples(make):
    y = torch.tensor([4, 7, 4, 9, 1])
    X = as_indexable(make(torch.arange(5.0)[:, None] * 2, y))
    view = X[[4, 0, 3]]
    assert view.labels().tolist() == [1, 4, 9]
    assert [float(np.ravel(sample)[0]) for sample in view] == [8, 0, 6]


def test_stored_targets_are_not_trusted_where_a_transform_changes_them():
    dataset = Counting(4)
    dataset.targets = [9, 9, 9, 9]
    assert as_indexable(dataset).labels().tolist() == [9, 9, 9, 9]
    assert dataset.read == []
    dataset.target_transform = lambda label: label
    assert as_indexable(dataset).labels().tolist() == [0, 1, 0, 1]


def make_folder(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_image_folder_is_sorted_nested_and_sliceable(tmp_path):
    make_folder(
        tmp_path, ["dog/b.JPG", "dog/a.png", "cat/deep/er/x.jpeg", "cat/notes.txt", ".git/x.png", "cat/.ipynb/y.png"]
    )
    with pytest.warns(UserWarning, match=r"^1 files .*\(\.txt\) and were left out"):
        paths, labels = image_folder(str(tmp_path))
    assert [pathlib.Path(path).relative_to(tmp_path).as_posix() for path in paths] == [
        "cat/deep/er/x.jpeg",
        "dog/a.png",
        "dog/b.JPG",
    ]
    assert labels.tolist() == ["cat", "dog", "dog"]
    train, _ = train_test_split(paths, random_state=0)
    assert all(type(path) is str for path in train)
    paths, labels = image_folder(tmp_path, extensions=[".txt", ".png"])
    assert labels.tolist() == ["cat", "dog"]


def test_image_folder_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        image_folder(tmp_path / "no")
    with pytest.raises(InputError, match="no class folders"):
        image_folder(tmp_path)
    make_folder(tmp_path, ["a.png", "cat/notes.txt"])
    with pytest.raises(InputError, match="is a file"):
        image_folder(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"cat' holds no images.*extensions="):
        image_folder(tmp_path)


def test_image_folder_takes_every_ending_that_pillow_opens(tmp_path):
    from PIL import Image, features

    endings = sorted(e for e, kind in Image.registered_extensions().items() if kind in Image.OPEN)
    if "avif" in features.modules:  # Pillow 11.3
        assert ".avif" in endings
    assert {".jfif", ".jpe", ".jp2", ".tga", ".pgm", ".jpg", ".png", ".webp", ".tiff"} <= set(endings)
    make_folder(tmp_path, [f"cat/x{ending}" for ending in endings] + [f"dog/X{ending.upper()}" for ending in endings])
    paths, labels = image_folder(tmp_path)
    assert len(paths) == 2 * len(endings)
    assert (labels == "cat").sum() == len(endings)


def test_image_folder_says_once_what_it_leaves_out(tmp_path):
    make_folder(tmp_path, ["cat/a.png", "cat/a.heif2", "cat/in/b.heif2", "dog/b.png", "dog/README", "dog/x.mp4"])
    with pytest.warns(UserWarning, match=r"^4 files .*\(\.heif2, \.mp4, no ending\) and were left out") as caught:
        paths, _ = image_folder(tmp_path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert len(paths) == 2
    assert len(image_folder(tmp_path, extensions=(".png",))[0]) == 2  # who chooses is not told


def test_image_folder_follows_links_once_and_never_round(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    make_folder(root, ["cat/a.png", "cat/in/b.png", "dog/c.png"])
    make_folder(elsewhere, ["x/d.png", "e.png"])
    (root / "cat" / "more").symlink_to(elsewhere, target_is_directory=True)
    (root / "cat" / "again").symlink_to(elsewhere / "x", target_is_directory=True)  # twice in the class
    (root / "cat" / "in" / "self").symlink_to(root / "cat", target_is_directory=True)
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    (elsewhere / "x" / "round").symlink_to(elsewhere, target_is_directory=True)
    (root / "bird").symlink_to(elsewhere / "x", target_is_directory=True)  # a class may be a link
    paths, labels = image_folder(root)
    found = sorted((label, pathlib.Path(path).name) for path, label in zip(paths, labels, strict=True))
    assert found == [
        ("bird", "d.png"),
        ("cat", "a.png"),
        ("cat", "b.png"),
        ("cat", "d.png"),
        ("cat", "e.png"),
        ("dog", "c.png"),
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "val/dog/d.png"],
        ["Train/cat/a.png", "Validation/dog/d.png", "raw/x.png"],
        ["train/cat/a.png"],
        ["train/a.png", "test/b.png"],
    ],
)
def test_image_folder_refuses_the_parts_of_a_split_as_classes(names, tmp_path):
    make_folder(tmp_path, names)
    with pytest.raises(InputError, match=r"parts of a data set and not classes; list one of them, image_folder\("):
        image_folder(tmp_path)


def test_image_folder_of_one_part_and_of_classes_that_are_called_so(tmp_path):
    make_folder(tmp_path, ["set/train/cat/a.png", "set/train/dog/b.png", "toys/train/a.png", "toys/bus/b.png"])
    assert image_folder(tmp_path / "set" / "train")[1].tolist() == ["cat", "dog"]
    assert image_folder(tmp_path / "toys")[1].tolist() == ["bus", "train"]


def test_sized_data_are_one_chunk():
    for X in (TEXTS, np.zeros((4, 2)), pd.Series(TEXTS), torch.zeros(4, 2)):
        ((Xc, y, weight),) = iter_chunks(X, [0, 1, 0, 1], torch.ones(4))
        assert Xc is X
        assert y == [0, 1, 0, 1]
        assert isinstance(weight, np.ndarray)


def test_a_loader_gives_its_batches_lazily():
    taken = []

    def batches():
        for k in range(3):
            taken.append(k)
            yield TEXTS, [k] * 4, np.full(4, k)

    chunks = iter_chunks(batches())
    assert next(chunks)[1] == [0] * 4
    assert taken == [0]
    assert len(list(chunks)) == 2

    loader = torch.utils.data.DataLoader([(torch.ones(3, 2, 2) * i, i) for i in range(5)], batch_size=2)
    sizes = [(count_samples(X), y.tolist(), weight) for X, y, weight in iter_chunks(loader)]
    assert sizes == [(2, [0, 1], None), (2, [2, 3], None), (1, [4], None)]


def test_a_labelled_dataset_needs_no_y():
    dataset = datasets.Dataset.from_dict({"text": TEXTS, "label": [3, 2, 1, 0]})
    ((X, y, _),) = iter_chunks(dataset)
    assert as_samples(X, "text") == TEXTS
    assert y.tolist() == [3, 2, 1, 0]
    ((X, y, _),) = iter_chunks(Counting(3))
    assert (count_samples(X), y.tolist()) == (3, [0, 1, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TEXTS, [0]), r"X has 4 samples and y has 1"),
        ((TEXTS, [0] * 4, [1.0] * 3), r"X has 4 samples and sample_weight has 3"),
        ((TEXTS,), r"requires y to be passed, but the target y is None"),
        ((iter([]), [0]), r"y and sample_weight must be None"),
        ((iter([]),), r"yielded no batches"),
        ((iter([(TEXTS, [0])]),), r"Batch 0: X has 4 samples and y has 1"),
        ((iter([TEXTS]),), r"Batch 0 is a list, expected \(X, y\)"),
        ((iter([{"text": TEXTS}]),), r"Batch 0 is a dict with keys \['text'\]"),
        ((iter([("text", 1)]),), r"Batch 0 is a single labelled sample.*DataLoader"),
        ((torch.utils.data.TensorDataset(torch.zeros(3, 2)),), r"without labels, so pass y"),
        ((datasets.Dataset.from_dict({"text": TEXTS}),), r"no label column.*pass y"),
        ((7,), r"X is a int"),
    ],
)
def test_wrong_chunks_say_so(arguments, message):
    with pytest.raises(InputError, match=message):
        list(iter_chunks(*arguments))
