"""Images in every form, orientation and depth: the same pixels."""

import base64
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from faast_sklearn import FaastClassifier, FeatureCache, backbone
from faast_sklearn.backbones.image_reading import open_image, read_image
from faast_sklearn.errors import InputError

RNG = np.random.default_rng(0)
# Blocks of eight pixels, which JPEG keeps nearly as they are.
GREY = np.kron(RNG.integers(0, 256, (2, 3), dtype=np.uint8), np.ones((8, 8), np.uint8))
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: np.rot90(stored, 2),
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored.swapaxes(0, 1), 2),
    8: lambda stored: np.rot90(stored, 1),
}


def picture(mode):
    if mode == "I;16":
        return Image.fromarray(GREY.astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(GREY.astype(np.float32) / 255)
    return Image.fromarray(GREY).convert(mode)


def encoded(image, kind, orientation=None, **options):
    file = io.BytesIO()
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(sample):
    return read_image(sample).permute(1, 2, 0).numpy().astype(float)


TAGGED = [
    *(("TIFF", mode, {"compression": c}) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F")
      for c in (None, "tiff_lzw")),
    *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(("JPEG", mode, {"quality": 95}) for mode in ("L", "RGB", "CMYK")),
    *(("WEBP", mode, {"lossless": True}) for mode in ("L", "RGB", "RGBA")),
    ("MPO", "RGB", {"quality": 95}),
    ("AVIF", "RGB", {"quality": 100}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "mode", "options"), TAGGED, ids=lambda value: str(value))
def test_every_orientation_of_every_format_is_upright_from_everywhere(kind, mode, options, tmp_path):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    image = picture(mode)
    stored = pixels(encoded(image, kind, **options))
    assert np.abs(stored[..., 0] - (GREY if mode != "1" else stored[..., 0])).max() <= 6
    for orientation, upright in UPRIGHT.items():
        data = encoded(image, kind, orientation, **options)
        path = tmp_path / f"{orientation}.{kind.lower()}"
        path.write_bytes(data)
        expected = upright(stored)
        with Image.open(path) as waiting, Image.open(io.BytesIO(data)) as of_bytes, open(path, "rb") as file:
            forms = {"path": path, "bytes": data, "waiting": waiting, "of bytes": of_bytes, "file": file}
            for name, form in forms.items():
                found = pixels(form)
                assert found.shape == expected.shape, (orientation, name)
                assert np.abs(found - expected).max() <= 2, (orientation, name)
            assert waiting.filename == str(path)
            again = pixels(waiting)  # by now it is loaded
            assert np.abs(again - expected).max() <= 2, orientation
        eight = np.asarray(open_image(path).convert("L"), dtype=float)
        assert np.abs(eight - np.asarray(Image.fromarray(expected[..., :3].round().astype(np.uint8).squeeze())
                                         .convert("L"), dtype=float)).max() <= 2  # fmt: skip


def test_a_picture_that_was_turned_already_is_not_turned_again():
    from PIL import ImageOps

    with Image.open(io.BytesIO(encoded(picture("RGB"), "JPEG", 6, quality=95))) as image:
        expected = pixels(image)
        assert np.array_equal(pixels(ImageOps.exif_transpose(image)), expected)


def test_a_reduced_photograph_is_upright(tmp_path):
    large = Image.fromarray(np.kron(GREY, np.ones((40, 40), np.uint8)))
    for orientation, upright in UPRIGHT.items():
        large.save(tmp_path / "large.jpg", exif=(e := Image.Exif(), e.__setitem__(0x0112, orientation))[0])
        small = read_image(tmp_path / "large.jpg", (32, 32))[0].numpy().astype(float)
        expected = upright(GREY).astype(float)
        assert max(small.shape) < 960
        step = small.shape[0] / expected.shape[0]
        at = [np.floor((np.arange(n) + 0.5) * step).astype(int) for n in expected.shape]
        assert np.abs(small[np.ix_(*at)] - expected).max() <= 8, orientation


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_integers_are_read_by_their_type_and_not_by_their_values(dtype, as_tensor):
    top = min(np.iinfo(dtype).max, 70_000)
    values = [v for v in (0, 1, 2, 100, 127, 254, 255, 256, 257, 1023, 4095, 32767, 65535, 65536) if v <= top]
    white = 65535 if dtype == np.uint16 else 255
    read = {}
    for value in values:
        image = np.full((4, 4), value, dtype)
        given = torch.from_numpy(image)[None] if as_tensor else image
        if value > white:
            with pytest.raises(InputError, match="uint16"):
                read_image(given)
            continue
        read[value] = float(read_image(given)[0, 3, 3])
        image[0, 0] = values[0]  # which does not change what the others are
        image[0, 1] = min(values[-1], white)
        assert float(read_image(given)[0, 3, 3]) == pytest.approx(read[value], rel=1e-6)
    assert {v: pytest.approx(255 * v / white, rel=1e-6) for v in read} == read
    assert set(read) == {v for v in values if v <= white}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_keep_what_is_between_two_bytes(dtype):
    values = np.array([0.0, 0.2, 0.2 + 1 / 1024, 0.5, 1.0], dtype)
    found = read_image(np.repeat(values[None], 3, 0))
    assert found.dtype == torch.float32
    assert np.allclose(found[0, 0].numpy(), values.astype(np.float64) * 255, rtol=1e-6)


def test_16_bit_files_have_one_scale(tmp_path):
    deep = np.array([[0, 1, 255, 256], [257, 1023, 40_000, 65_535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    (tmp_path / "deep.pgm").write_bytes(b"P5 4 2 65535\n" + deep.astype(">u2").tobytes())
    (tmp_path / "ten.pgm").write_bytes(b"P5 4 2 1023\n" + (deep % 1024).astype(">u2").tobytes())
    for name in ("deep.png", "deep.tiff", "deep.pgm"):
        assert np.allclose(read_image(tmp_path / name)[0].numpy(), deep / 257, rtol=1e-6), name
        with Image.open(tmp_path / name) as image:
            assert np.allclose(read_image(image)[0].numpy(), deep / 257, rtol=1e-6), name
    # A file says its own white.
    assert np.allclose(read_image(tmp_path / "ten.pgm")[0].numpy(), (deep % 1024) * (255 / 1023), atol=0.01)
    dark = np.full((2, 4), 200, np.uint16)
    (tmp_path / "dark.pgm").write_bytes(b"P5 4 2 65535\n" + dark.astype(">u2").tobytes())
    assert np.allclose(read_image(tmp_path / "dark.pgm").numpy(), 200 / 257, rtol=1e-6)
    assert np.array_equal(np.asarray(open_image(tmp_path / "deep.png")), np.rint(deep / 257))


def test_mode_i_whose_scale_is_unknown_is_refused():
    for value in (1, 255, -1, 70_000):
        with pytest.raises(InputError, match=r"scale is unknown; pass image\.convert\('L'\)"):
            read_image(Image.fromarray(np.full((4, 4), value, np.int32)))
    assert not read_image(Image.fromarray(np.zeros((4, 4), np.int32))).any()
    assert float(read_image(Image.fromarray(np.full((4, 4), 256, np.int32))).max()) == pytest.approx(256 / 257)


def test_depth_reaches_the_features():
    opened = backbone("timm:test_resnet.r160_in1k", pretrained=False).open("cpu")
    ten_bits = RNG.integers(0, 1024, (40, 30, 3)).astype(np.uint16)
    exact = opened.forward(opened.collate([opened.read(ten_bits / 65535)]))
    found = opened.forward(opened.collate([opened.read(ten_bits)]))
    assert torch.allclose(found, exact, atol=1e-6)
    # Together with 8-bit images of the same size each is what it is alone.
    eight = (ten_bits >> 2).astype(np.uint8)
    both = opened.forward(opened.collate([opened.read(eight), opened.read(ten_bits)]))
    alone = opened.forward(opened.collate([opened.read(eight)]))
    assert torch.allclose(both, torch.cat([alone, found]), atol=1e-5)
    scaled = opened.forward(opened.collate([opened.read(ten_bits / 1023)]))
    assert float((scaled - alone).norm() / alone.norm()) < 0.1 < float((found - alone).norm() / alone.norm())


CONTAINERS = {
    "path": lambda path, data: path,
    "string": lambda path, data: str(path),
    "bytes": lambda path, data: data,
    "bytearray": lambda path, data: bytearray(data),
    "memoryview": lambda path, data: memoryview(data),
    "BytesIO": lambda path, data: io.BytesIO(data),
    "read BytesIO": lambda path, data: (f := io.BytesIO(data), f.read())[0],
    "dict of bytes": lambda path, data: {"bytes": data, "path": None},
    "dict of both": lambda path, data: {"bytes": data, "path": "gone.png"},
    "dict of a path": lambda path, data: {"bytes": None, "path": str(path)},
    "data URL": lambda path, data: "data:image/png;base64," + base64.b64encode(data).decode(),
    "base64": lambda path, data: base64.b64encode(data).decode(),
    "base64 in lines": lambda path, data: base64.encodebytes(data).decode(),
    "pil": lambda path, data: Image.open(io.BytesIO(data)),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "image.png"
    Image.fromarray(RNG.integers(0, 256, (12, 9, 3), dtype=np.uint8)).save(path)
    return path, path.read_bytes()


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_of_one_image_are_that_image(name, stored):
    expected = read_image(stored[0])
    made = CONTAINERS[name](*stored)
    assert torch.equal(read_image(made), expected)
    assert torch.equal(read_image(made), expected)  # a second time
    assert np.array_equal(np.asarray(open_image(made)), expected.permute(1, 2, 0))


@pytest.mark.parametrize("cache", [None, "memory"])
def test_containers_in_an_estimator(cache, stored):
    cache = FeatureCache() if cache == "memory" else None
    images = [make(*stored) for make in CONTAINERS.values()]
    labels = ["a", "b"] * (len(images) // 2)
    clf = FaastClassifier(backbone("timm:test_resnet.r160_in1k", pretrained=False), device="cpu", cache=cache)
    proba = clf.fit(images, labels).predict_proba(images)
    assert np.allclose(proba, proba[0], atol=1e-6)
    with open(stored[0], "rb") as file:
        assert np.allclose(clf.predict_proba([file, file]), proba[:2], atol=1e-6)


def test_home_is_found(stored, monkeypatch):
    monkeypatch.setenv("HOME", str(stored[0].parent))
    monkeypatch.setenv("USERPROFILE", str(stored[0].parent))
    assert torch.equal(read_image(os.path.join("~", "image.png")), read_image(stored[0]))


def closed(path):
    with Image.open(path) as image:
        pass
    return image


LONG = "/9j/" + "A?" * 200_000
REFUSED = {
    "closed image": (lambda path: closed(path), "closed"),
    "closed file": (lambda path: (f := open(path, "rb"), f.close())[0], "its bytes or its path"),  # noqa: SIM115
    "text file": (lambda path: io.StringIO("x"), "text mode"),
    "address": (lambda path: "https://example.org/cat.png", "download"),
    "not base64": (lambda path: LONG, "neither a path nor"),
    "long path": (lambda path: "no/" * 100_000, "X[1]"),
    "broken data URL": (lambda path: "data:image/png;base64,!!", "base64"),
    "other data URL": (lambda path: "data:text/plain,hello", "not a data URL of an image"),
    "no image in base64": (lambda path: base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(90)).decode(), "cannot read"),
    "dict": (lambda path: {"image": 1}, "'bytes'"),
    "empty dict": (lambda path: {"bytes": None, "path": None}, "'bytes'"),
    "half": (lambda path: path.read_bytes()[:200], "cannot read"),
    "half, open": (lambda path: Image.open(io.BytesIO(path.read_bytes()[:200])), "X[1]"),
    "object": (lambda path: object(), "is not an image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_named_in_few_words(name, stored):
    make, told = REFUSED[name]
    clf = FaastClassifier(backbone("timm:test_resnet.r160_in1k", pretrained=False), device="cpu")
    for cache in (None, FeatureCache()):
        with pytest.raises(InputError, match=r"X\[1\]") as caught:
            clf.set_params(cache=cache).fit([stored[0], make(stored[0])], [0, 1])
        assert told in str(caught.value)
        assert len(str(caught.value)) <= 500
