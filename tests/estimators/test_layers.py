"""Inner layers and views: what is read, that it is one pass, and that every promise holds with them."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers.data import DIGITS, IMAGES, SMALL_IMAGES, TEXTS, TOPICS
from helpers.tiny import tiny_model, tiny_tokenizer
from sklearn.base import clone
from sklearn.model_selection import cross_val_predict

from faast_sklearn import BackboneFeatures, FaastClassifier, FeatureCache, backbone, load, merge, save
from faast_sklearn.backbones import release_backbones
from faast_sklearn.backbones.base import Backbone
from faast_sklearn.backbones.layers import with_layers
from faast_sklearn.backbones.views import view
from faast_sklearn.errors import BackboneError
from faast_sklearn.few_shot import few_shot_score, sample_episodes
from faast_sklearn.moments import ClassMoments
from faast_sklearn.moments.blocks import Blocks
from faast_sklearn.selection import alpha_path

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(60, 5)).astype(np.float32)
Y = np.arange(60) % 3
ROWS[np.arange(60), Y] += 1.5
TEST = RNG.normal(size=(20, 5)).astype(np.float32)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.map = torch.nn.Linear(5, 5)

    def forward(self, x):
        return torch.tanh(self.map(x)) + x


class Blocked(torch.nn.Module):
    """Three blocks and a narrow head, which loses what the blocks know."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = torch.nn.ModuleList(Block() for _ in range(3))
            self.head = torch.nn.Linear(5, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def by_hand(module, rows):
    """The head's output and the outputs of the blocks, first to last."""
    with torch.no_grad():
        x, blocks = torch.from_numpy(rows), []
        for block in module.blocks:
            blocks.append(x := block(x))
        return [module.head(x).numpy(), *(part.numpy() for part in blocks)]


def test_layers_come_after_the_features_in_one_pass():
    module = Blocked()
    parts = by_hand(module, ROWS)
    seen = []
    module.head.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for layers, wanted in (
        ("last", parts[:1]),
        ("auto", parts),
        (1, [parts[0], parts[3]]),
        (2, [parts[0], *parts[2:]]),
    ):
        seen.clear()
        found = BackboneFeatures(module, device="cpu", layers=layers, batch_size=7).fit_transform(ROWS)
        np.testing.assert_allclose(found, np.concatenate(wanted, 1), rtol=1e-6, atol=1e-6)
        assert sum(seen) == len(ROWS) + 1  # fit reads one row
        assert not any(block._forward_hooks for block in module.blocks)


def test_a_compiled_forward_is_read_as_the_bare_one():
    plain, compiled = Blocked(), Blocked()
    compiled.forward = torch.compile(compiled.forward, backend="eager")
    rows = torch.from_numpy(ROWS)
    with torch.inference_mode():  # compiled without hooks, in the mode of the library's passes and for any batch
        for n in (32, 8, 20):
            compiled(rows[:n])
    scores = [
        FaastClassifier(module, layers="auto", device="cpu").fit(ROWS, Y).decision_function(TEST)
        for module in (plain, compiled)
    ]
    np.testing.assert_array_equal(*scores)


def test_layers_are_scaled_by_the_moments():
    """As if blocks had been scaled to the last layer's mean variance before they were learnt."""
    module = Blocked()
    clf = FaastClassifier(module, normalize=False, device="cpu", layers=3).fit(ROWS, Y)
    scaled = [part / np.sqrt(part.var(0).mean()) for part in by_hand(module, ROWS)]
    weights = [1.0, 0.4, 0.4, 0.4]  # outputs of such blocks are no feature maps
    own = FaastClassifier().fit(np.concatenate([w * part for w, part in zip(weights, scaled, strict=True)], 1), Y)
    assert clf.alpha_ == own.alpha_
    np.testing.assert_allclose(
        clf.predict_proba(ROWS),
        own.predict_proba(np.concatenate([w * part for w, part in zip(weights, scaled, strict=True)], 1)),
        atol=1e-6,
    )
    assert clf.reads_inner_layers_
    assert clf.coef_.shape == (3, 17)


def test_inner_layers_tell_more_and_are_left_out_where_they_do_not():
    module = Blocked()
    auto, last = (FaastClassifier(module, device="cpu", layers=layers).fit(ROWS, Y) for layers in ("auto", "last"))
    assert auto.reads_inner_layers_
    assert not last.reads_inner_layers_
    assert auto.score(ROWS, Y) > last.score(ROWS, Y) + 0.1

    class Noise(Block):
        def __init__(self):
            super().__init__()
            self.map = torch.nn.Linear(5, 300)

        def forward(self, x):
            return torch.sin(1e4 * self.map(x))

    class Noisy(Blocked):
        """Its features say it all; its blocks give noise that is fixed by the row."""

        def __init__(self):
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.blocks = torch.nn.ModuleList(Noise() for _ in range(3))

        def forward(self, x):
            for block in self.blocks:
                block(x)
            return x

    noisy, few = Noisy(), (ROWS[:24], Y[:24])
    auto, last = (FaastClassifier(noisy, device="cpu", layers=layers).fit(*few) for layers in ("auto", "last"))
    assert not auto.reads_inner_layers_
    np.testing.assert_allclose(auto.predict_proba(TEST), last.predict_proba(TEST), rtol=1e-9)
    assert FaastClassifier(noisy, device="cpu", layers=1).fit(*few).reads_inner_layers_


def test_threads_that_run_the_first_batch_read_the_same():
    for _ in range(5):
        opened = backbone(Blocked()).open("cpu")
        layered = with_layers(opened, "auto")
        batch = layered.collate([layered.read(row) for row in ROWS])
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(layered.forward, [batch] * 4))
        for one in found:
            torch.testing.assert_close(one, layered.forward(batch), rtol=0, atol=0)


def test_a_released_backbone_is_freed_with_what_was_derived_from_it():
    release_backbones()
    opened = backbone("bundled:minilm-l6").open("cpu")
    with_layers(opened, "auto")
    alive = weakref.ref(opened)
    del opened
    release_backbones()
    assert alive() is None


def test_modules_in_memory_are_freed_when_others_are_opened():
    gc.collect()
    gc.disable()
    try:
        alive = []
        for _ in range(6):
            opened = backbone(Blocked()).open("cpu")
            with_layers(opened, "auto")
            alive.append(weakref.ref(opened))
        del opened
        assert [ref() is None for ref in alive] == [True, True, False, False, False, False]
    finally:
        gc.enable()


def test_blocks_of_a_transformer_count_less():
    moments = ClassMoments.from_rows(np.concatenate([ROWS[:3], 9 * ROWS[:3]], 1), Y[:3])
    assert Blocks((5, 5)).scales(moments).tolist() == pytest.approx([1] * 5 + [1 / 9] * 5)
    assert Blocks((5, 5), feature_maps=False).scales(moments).tolist() == pytest.approx([1] * 5 + [0.4 / 9] * 5)


def kinds():
    images = {"backbone": SMALL_IMAGES, "device": "cpu"}
    yield "rows", {"backbone": Blocked(), "device": "cpu"}, ROWS, Y
    yield "images", images, IMAGES, DIGITS
    yield "two views", {**images, "views": 2}, IMAGES, DIGITS
    yield "texts", {"backbone": "bundled:minilm-l6", "device": "cpu"}, TEXTS, TOPICS


@pytest.fixture(params=list(kinds()), ids=lambda kind: kind[0])
def kind(request):
    _, options, X, y = request.param
    return FaastClassifier(**options, layers="auto", batch_size=8), X, np.asarray(y)


def take(X, at):
    return X[at] if isinstance(X, np.ndarray) else [X[i] for i in at]


def test_split_merged_forgotten_and_saved_are_the_whole(kind, tmp_path):
    clf, X, y = kind
    whole = clone(clf).set_params(alpha=1.0).fit(X, y)
    wanted = whole.predict_proba(X)
    order = np.random.default_rng(1).permutation(len(y))
    parts = np.array_split(order, 3)
    pieces = clone(whole)
    for part in parts:
        pieces.partial_fit(take(X, part), y[part])
    assert pieces.reads_inner_layers_ == whole.reads_inner_layers_
    merged = merge([clone(whole).fit(take(X, part), y[part]) for part in parts])
    without = copy.deepcopy(whole).forget(take(X, parts[0]), y[parts[0]])
    rest = np.concatenate(parts[1:])
    for found, expected in (
        (pieces, whole),
        (merged, whole),
        (without, clone(whole).fit(take(X, rest), y[rest])),
    ):
        # Features of float32 backbones differ in the last digits with the batch they are in.
        np.testing.assert_allclose(found.predict_proba(X), expected.predict_proba(X), atol=2e-3)
    path = tmp_path / "clf.safetensors"
    save(whole, path)
    again = load(path) if isinstance(clf.backbone, str) else load(path, backbone=clf.backbone)
    np.testing.assert_array_equal(again.predict_proba(X), wanted)
    np.testing.assert_array_equal(again.novelty_score(X), whole.novelty_score(X))
    again.forget(take(X, parts[0]), y[parts[0]])
    np.testing.assert_allclose(again.predict_proba(X), without.predict_proba(X), atol=1e-6)
    save(whole, path, moments=False)
    again = load(path) if isinstance(clf.backbone, str) else load(path, backbone=clf.backbone)
    np.testing.assert_array_equal(again.predict_proba(X), wanted)


def test_a_cache_keeps_layers_and_views_apart(kind):
    clf, X, y = kind
    cache = FeatureCache()
    wanted = clone(clf).fit(X, y).predict_proba(X)
    for _ in range(2):
        np.testing.assert_allclose(clone(clf).set_params(cache=cache).fit(X, y).predict_proba(X), wanted, atol=1e-3)
    assert cache.misses == len(y)
    clone(clf).set_params(cache=cache, layers="last").fit(X, y)
    assert cache.misses == 2 * len(y)


def test_evaluations_equal_refits(kind):
    clf, X, y = kind
    rows = isinstance(clf.backbone, torch.nn.Module)
    if not rows:
        X, y = take(X, range(18)), y[:18]
    path = alpha_path(clf, X, y, alphas=[0.1, 10.0], cv=2, scoring="accuracy")
    for alpha, score in zip((0.1, 10.0), path.cv_results_["mean_test_score"], strict=True):
        found = cross_val_predict(clone(clf).set_params(alpha=alpha), X, y, cv=2)
        assert score == pytest.approx(np.mean(found == y), abs=1e-12)
    if rows:
        folds = np.arange(60) % 2
        errors = alpha_path(
            clf,
            X,
            y,
            alphas=[0.1, 10.0],
            cv=[(np.flatnonzero(folds == 1 - k), np.flatnonzero(folds == k)) for k in (0, 1)],
        )
        for a, alpha in enumerate((0.1, 10.0)):
            for k in (0, 1):
                one = clone(clf).set_params(alpha=alpha).fit(X[folds != k], y[folds != k])
                solved, scales = one._problem.solved, one._problem.scales
                F = BackboneFeatures(clf.backbone, normalize=True, device="cpu", layers="auto").fit_transform(X)
                train, test = scales.rows(F[folds != k].astype(float)), scales.rows(F[folds == k].astype(float))
                V = np.eye(3)[y]
                shares = V[folds != k].mean(0)
                guess = (test - train.mean(0)) @ solved.solution.weights.numpy() + shares
                error = ((guess - V[folds == k]) ** 2).sum(1).mean()
                assert -errors.cv_results_[f"split{k}_test_score"][a] == pytest.approx(error, rel=1e-5)
    result = few_shot_score(clf, X, y, n_way=2, n_shot=2, n_query=2, n_episodes=3, random_state=0)
    drawn = sample_episodes(y, n_way=2, n_shot=2, n_query=2, n_episodes=3, random_state=0)
    for score, learnt, asked in zip(result.scores, *(part.reshape(3, -1) for part in drawn[:2]), strict=True):
        assert score == clone(clf).fit(take(X, learnt), y[learnt]).score(take(X, asked), y[asked])


def test_views_are_means_over_images():
    options = {"device": "cpu", "layers": "auto", "batch_size": 4}
    whole = BackboneFeatures(SMALL_IMAGES, views=6, **options).fit_transform(IMAGES[:4])
    seen = []
    for i in range(6):
        images = view(torch.from_numpy(np.stack(IMAGES[:4])), i).numpy()
        seen.append(BackboneFeatures(SMALL_IMAGES, **options).fit_transform(images))
    np.testing.assert_allclose(whole, np.mean(seen, 0), atol=1e-4)
    with pytest.raises(BackboneError, match=r"views=2 is for images, and this backbone reads texts"):
        BackboneFeatures("bundled:minilm-l6", device="cpu", views=2).fit()


# What is read of every family


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "t5", "vit", "resnet", "clip", "siglip"])
def test_every_kind_of_transformer_gives_its_blocks(name, tiny_folder):
    opened = backbone(tiny_folder(name)).open("cpu")
    layered = with_layers(opened, "auto")
    assert layered.n_layers >= 1
    sample = "the cat sat" if opened.modality == "text" else np.full((32, 32, 3), 99, np.uint8)
    batch = layered.collate([layered.read(sample)] * 2)
    found = layered.forward(batch)
    assert found.shape == (2, sum(layered.blocks)) == (2, layered.n_features)
    torch.testing.assert_close(found[:, : opened.n_features], opened.forward(batch))
    assert layered.feature_maps == (name == "resnet")
    assert with_layers(opened, "auto") is layered
    with pytest.raises(BackboneError, match=r"layers=99, but .* inner layers"):
        with_layers(opened, 99)


def test_blocks_of_a_text_encoder_are_its_hidden_states():
    model, tokenizer = tiny_model("bert"), tiny_tokenizer()
    texts = ["the cat sat on a mat", "red", "one two three"]
    found = BackboneFeatures(backbone((model, tokenizer)), device="cpu", layers=1).fit_transform(texts)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    mask = inputs["attention_mask"][:, :, None]
    mean = [((state * mask).sum(1) / mask.sum(1)).numpy() for state in states]
    # The last block's mean is the features themselves, so that the one before it is the last inner layer.
    inner = mean[1] / np.linalg.norm(mean[1], axis=1, keepdims=True)
    np.testing.assert_allclose(found, np.concatenate([mean[2], inner], 1), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet10t", 3),
        ("test_vit", 3),
        ("test_efficientnet", 3),
        ("test_convnext", 3),
    ],
)
def test_timm_models_give_their_stages(name, blocks):
    opened = backbone(f"timm:{name}", pretrained=False, image_size=None).open("cpu")
    layered = with_layers(opened, "auto")
    assert 1 <= layered.n_layers <= blocks
    assert layered.blocks[0] == opened.n_features
    assert layered.n_features <= 4096


def test_a_registered_backbone_says_what_is_read():
    class Own(Backbone):
        modality, n_features, dtype, device = "tensor", 2, torch.float32, torch.device("cpu")

        def __init__(self):
            self.module = Blocked()

        def read(self, sample):
            return torch.as_tensor(sample)

        def collate(self, items):
            from faast_sklearn.backbones.base import Batch

            return Batch(torch.stack(items), len(items))

        def forward(self, batch):
            with torch.inference_mode():
                return self.module(batch.inputs).clone()

    own = Own()
    batch = own.collate([own.read(row) for row in ROWS[:4]])
    own.n_features = None  # of a tensor no sample is known beforehand
    layered = with_layers(own, 2)
    parts = by_hand(own.module, ROWS[:4])
    np.testing.assert_allclose(layered.forward(batch), np.concatenate([parts[0], parts[2], parts[3]], 1), atol=1e-6)
    assert layered.blocks == (2, 5, 5)

    class Silent(Own):
        def inner_layers(self):
            return []

    silent = Silent()
    assert with_layers(silent, "auto") is silent
