"""Contrast, channels and order: what becomes of decoded samples. Decoding itself is in test_image_files."""

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import read_image as detectron2_read_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cupre_d2.config import add_cupre_config
from cupre_d2.data.catalog import datasets_root
from cupre_d2.data.image_files import image_size
from cupre_d2.data.images import check_percentiles, read_image, read_pixels, read_record
from cupre_d2.data.mappers import DetectionMapper
from cupre_d2.errors import ConfigError, DatasetError

WHOLE_NUMBERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
FLOATS = ("float16", "float32", "float64")


def pixels(*shape: int, dtype: str = "uint8") -> np.ndarray:
    info = np.iinfo(dtype)
    return np.random.default_rng(0).integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def save_tiff(path: Path, array: np.ndarray, **options: Any) -> Path:
    if array.ndim == 3:
        options = {"photometric": "rgb" if array.shape[2] == 3 else "minisblack", "planarconfig": "contig", **options}
    tifffile.imwrite(path, array, **options)
    return path


def read_grey(path: Path, **options: Any) -> np.ndarray:
    image = read_image(path, **options)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert (image == image[:, :, :1]).all()
    return image[:, :, 0]


def stretched(samples: np.ndarray, low: float, high: float) -> np.ndarray:
    """The obvious way; the reader takes tables, and care of overflow."""
    share = (np.clip(samples, low, high).astype(np.longdouble) - low) / (np.longdouble(high) - low)
    return np.rint(share * 255).astype(np.uint8)


# ---- order of channels


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_colours_and_grey(tmp_path: Path, suffix: str) -> None:
    colour, grey = pixels(5, 7, 3), pixels(5, 7)
    colour_file, grey_file = save(tmp_path / f"c.{suffix}", colour), save(tmp_path / f"g.{suffix}", grey)
    np.testing.assert_array_equal(read_image(colour_file), colour)
    np.testing.assert_array_equal(read_image(colour_file, "BGR"), colour[:, :, ::-1])
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    np.testing.assert_array_equal(read_image(colour_file, "L"), np.stack([luma] * 3, 2))
    for format in ("RGB", "BGR", "L"):
        np.testing.assert_array_equal(read_image(grey_file, format, percentiles=()), np.stack([grey] * 3, 2))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3), (4, 4, 4)])
def test_is_writable_and_contiguous(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for format in ("RGB", "BGR", "L"):
        image = read_image(save(tmp_path / "a.png", pixels(*shape)), format)
        assert image.dtype == np.uint8 and image.flags.writeable and image.flags.c_contiguous


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="INPUT.FORMAT 'YUV-BT.601'.*RGB, BGR, L"):
        read_image(save(tmp_path / "a.png", pixels(4, 4, 3)), "YUV-BT.601")


# ---- contrast


@pytest.mark.parametrize("dtype", WHOLE_NUMBERS)
@pytest.mark.parametrize("percentiles", [(0.1, 99.9), (2, 75.5), (0, 100)])
def test_grey_is_stretched_between_percentiles(tmp_path: Path, dtype: str, percentiles: tuple[float, float]) -> None:
    """The fast ways against NumPy's percentiles."""
    info = np.iinfo(dtype)
    grey = (np.random.default_rng(1).beta(2, 5, (40, 61)) * 0.4 * float(info.max)).astype(dtype)
    file = save_tiff(tmp_path / "a.tif", grey)
    low, high = (np.percentile(grey, share, method="inverted_cdf") for share in percentiles)
    np.testing.assert_array_equal(read_grey(file, percentiles=percentiles), stretched(grey, low, high))


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_are_stretched_between_percentiles(tmp_path: Path, dtype: str) -> None:
    grey = np.random.default_rng(1).normal(-3, 40, (40, 61)).astype(dtype)
    low, high = (np.percentile(grey, share, method="inverted_cdf") for share in (0.1, 99.9))
    ours = read_grey(save_tiff(tmp_path / "a.tif", grey)).astype(int)
    assert np.abs(ours - stretched(grey, low, high)).max() <= 1
    assert (np.diff(ours.ravel()[np.argsort(grey.ravel())]) >= 0).all()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 65535), min_size=1, max_size=60), st.sampled_from(["uint8", "uint16", "int16", "uint32"]))
def test_order_and_ends(tmp_path_factory: pytest.TempPathFactory, values: list[int], dtype: str) -> None:
    """Of an image too small for percentiles to cut: darkest to 0, lightest to 255, never a change of order."""
    grey = np.array(values).astype(dtype)[None]
    image = read_grey(save_tiff(tmp_path_factory.mktemp("order") / "a.tif", grey, photometric="minisblack")).ravel()
    assert (np.diff(image[np.argsort(grey.ravel(), kind="stable")].astype(int)) >= 0).all()
    if grey.min() < grey.max():
        assert image[grey.argmin()] == 0 and image[grey.argmax()] == 255


@pytest.mark.parametrize("dtype", WHOLE_NUMBERS)
def test_without_stretching_the_range_of_the_type_is_kept(tmp_path: Path, dtype: str) -> None:
    info = np.iinfo(dtype)
    grey = np.linspace(info.min, info.max, 12).clip(info.min, info.max).astype(np.longdouble)
    grey = np.array([info.min, info.max, *(int(value) for value in grey[1:-1])], dtype).reshape(3, 4)
    file = save_tiff(tmp_path / "a.tif", grey)
    expected = stretched(grey, info.min, info.max)
    for off in (None, ()):
        np.testing.assert_array_equal(read_grey(file, percentiles=off), expected)
    assert expected.min() == 0 and expected.max() == 255


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_without_stretching(tmp_path: Path, dtype: str) -> None:
    grey = np.array([[-1, 0, 0.5, 3]], dtype)
    image = read_grey(save_tiff(tmp_path / "a.tif", grey, photometric="minisblack"), percentiles=None)
    assert image.tolist() == [[0, 64, 96, 255]]


def test_colours_of_8_bits_are_left_alone(tmp_path: Path) -> None:
    dull = pixels(9, 9, 3) // 4 + 60
    for name in ("a.png", "a.tif", "a.bmp"):
        np.testing.assert_array_equal(read_image(save(tmp_path / name, dull)), dull)
    assert read_grey(save(tmp_path / "g.png", dull[:, :, 0])).max() == 255
    assert read_grey(save(tmp_path / "g.jpg", dull[:, :, 0])).max() == 255


def test_grey_saved_as_colour_is_read_as_grey(tmp_path: Path) -> None:
    dull = pixels(130, 9) // 4 + 60
    grey = read_image(save(tmp_path / "grey.png", dull))
    assert (grey.min(), grey.max()) == (0, 255)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", np.stack([dull] * 3, 2))), grey)
    # One pixel of colour, in a row that the first look leaves out.
    coloured = np.stack([dull] * 3, 2)
    coloured[77, 3, 2] += 1
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", coloured)), coloured)


def test_deep_colours_keep_their_hue(tmp_path: Path) -> None:
    deep = np.zeros((20, 20, 3), np.uint16)
    deep[..., 0] = np.linspace(1000, 3000, 400).reshape(20, 20)
    deep[..., 1] = 2000
    deep[..., 2] = 1000
    image = read_image(save_tiff(tmp_path / "a.tif", deep))
    assert (image[..., 1] == 128).all() and (image[..., 2] == 0).all() and image[..., 0].max() == 255


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_deep_colours_of_all_formats(tmp_path: Path, name: str) -> None:
    deep = pixels(6, 8, 3, dtype="uint16")
    cv2.imwrite(str(tmp_path / name), deep[:, :, ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / name, percentiles=()), stretched(deep, 0, 65535))


def test_one_grey_value(tmp_path: Path) -> None:
    for value, dtype, expected in ((200, "uint8", 200), (300, "uint16", 1), (65535, "uint16", 255), (7.5, "float32", 0)):
        file = save_tiff(tmp_path / "a.tif", np.full((4, 5), value, dtype))
        for percentiles in ((0.1, 99.9), None):
            assert (read_grey(file, percentiles=percentiles) == expected).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_few_bright_pixels_on_black(tmp_path: Path, dtype: str) -> None:
    """Both percentiles are the background; the spots must not vanish."""
    grey = np.zeros((100, 100), dtype)
    grey[5, 5], grey[6, 6] = 100, 50
    image = read_grey(save_tiff(tmp_path / "a.tif", grey))
    assert (image[5, 5], image[6, 6], image[0, 0]) == (255, 128, 0)


def test_values_that_are_not_finite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey = np.linspace(1, 2, 12, dtype=np.float32).reshape(3, 4)
    plain = read_grey(save_tiff(tmp_path / "a.tif", grey))
    grey[0, :3] = np.nan, np.inf, -np.inf
    with caplog.at_level(logging.WARNING):
        image = read_grey(save_tiff(tmp_path / "b.tif", grey), percentiles=(0, 100))
        read_grey(tmp_path / "b.tif")
    assert image[0, :3].tolist() == [0, 255, 0]
    assert np.ptp(image[1:]) > 0.6 * np.ptp(plain)
    assert caplog.text.count("b.tif: 3 of 12 values are not finite") == 1
    with pytest.raises(DatasetError, match="c.tif: no value is finite"):
        read_image(save_tiff(tmp_path / "c.tif", np.full((3, 4), np.nan, np.float32)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_floats(tmp_path: Path, dtype: str) -> None:
    info = np.finfo(dtype)
    for values in ([info.min, 0, info.max], [0, info.smallest_subnormal, info.tiny]):
        image = read_grey(save_tiff(tmp_path / "a.tif", np.array([values], dtype), photometric="minisblack"))
        assert image[0, 0] == 0 and image[0, 2] == 255


@pytest.mark.parametrize("percentiles", [(50,), (5, 5), (9, 1), (-1, 99), (1, 101), "ab", 5, (None, 1)])
def test_wrong_percentiles(tmp_path: Path, percentiles: Any) -> None:
    file = save(tmp_path / "a.png", pixels(4, 4))
    with pytest.raises(DatasetError, match="a.png: field percentiles"):
        read_record({"file_name": str(file), "percentiles": percentiles})
    with pytest.raises(ConfigError, match="INPUT.PERCENTILES"):
        check_percentiles(percentiles)


# ---- the whole way to a model


def ramp(levels: int) -> np.ndarray:
    """Horizontal, over the full range of 16 bits."""
    return np.tile(np.linspace(0, 65535, levels).astype(np.uint16).reshape(-1, 256), (1, 4))


@pytest.mark.parametrize("levels", [256, 65536])
def test_16_bit_ramp_reaches_the_model(tmp_path: Path, levels: int) -> None:
    grey = ramp(levels) if levels > 256 else np.repeat(ramp(256), 64, axis=0)
    file = save_tiff(tmp_path / "ramp.tif", grey)
    cfg = get_cfg()
    add_cupre_config(cfg)
    cfg.INPUT.MIN_SIZE_TEST = 0
    record = {"file_name": str(file), "image_id": 0, "height": grey.shape[0], "width": grey.shape[1]}
    image = DetectionMapper(cfg, False)(record)["image"].numpy()
    levels_out = image[0].ravel()[np.unique(grey, return_index=True)[1]].astype(int)
    assert len(levels_out) == levels
    assert (np.diff(levels_out) >= (1 if levels == 256 else 0)).all()
    assert set(levels_out) == set(range(256))

    saturated = detectron2_read_image(str(file), "RGB")
    assert (saturated[grey >= 255] == 255).all() and (grey >= 255).mean() > 0.99
    assert len(np.unique(DatasetMapper(cfg, False)(record)["image"])) < (3 if levels == 256 else 257)


def test_records_fields_win(tmp_path: Path) -> None:
    stack = pixels(2, 6, 8, 5, dtype="uint16") // 3
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", planarconfig="contig")
    record = {"file_name": str(tmp_path / "a.tif"), "page": 1, "channels": [3], "percentiles": None}
    image = read_record(record, "BGR", (0, 100))
    np.testing.assert_array_equal(image[:, :, 2], stretched(stack[1, :, :, 3], 0, 65535))
    del record["percentiles"]
    grey = stack[1, :, :, 3]
    np.testing.assert_array_equal(read_record(record, "BGR", (0, 100))[:, :, 1], stretched(grey, grey.min(), grey.max()))
    assert (read_record(record, "RGB", ()) != read_record(record, "RGB", (10, 90))).any()


# ---- choice of channels


def test_chosen_channels(tmp_path: Path) -> None:
    five = pixels(6, 8, 5, dtype="uint16") // np.array([1, 2, 4, 8, 16], np.uint16)
    file = save_tiff(tmp_path / "a.tif", five)
    for format, order in (("RGB", (4, 0, 2)), ("BGR", (2, 0, 4))):
        image = read_image(file, format, channels=(4, 0, 2))
        for place, channel in enumerate(order):
            grey = five[:, :, channel]
            np.testing.assert_array_equal(image[:, :, place], stretched(grey, grey.min(), grey.max()))
    assert (read_grey(file, channels=(3,)) == stretched(five[..., 3], five[..., 3].min(), five[..., 3].max())).all()


def test_chosen_channels_of_8_bit_colours(tmp_path: Path) -> None:
    colour = pixels(6, 8, 3) // 3
    file = save(tmp_path / "a.png", colour)
    np.testing.assert_array_equal(read_image(file, channels=(2, 1, 0)), colour[:, :, ::-1])
    assert read_grey(file, channels=(1,)).max() == 255
    np.testing.assert_array_equal(read_grey(file, channels=(1,), percentiles=None), colour[:, :, 1])


@pytest.mark.parametrize("channels", [(), (0, 1), (0, 1, 2, 3), (5,), (-1,), (0.5,), ("0",)])
def test_wrong_channels(tmp_path: Path, channels: Any) -> None:
    file = save_tiff(tmp_path / "a.tif", pixels(6, 8, 5))
    with pytest.raises(DatasetError, match=r"a.tif: field channels .* expected one or three, each from 0 to 4"):
        read_image(file, channels=channels)


@pytest.mark.parametrize("count", [2, 4, 5, 9])
def test_channels_that_need_a_choice(tmp_path: Path, count: int) -> None:
    with pytest.raises(DatasetError, match=rf"a.tif: {count} channels; expected .* field channels"):
        read_image(save_tiff(tmp_path / "a.tif", pixels(6, 8, count)))


# ---- alpha


def test_alpha_that_the_file_declares_is_dropped(tmp_path: Path) -> None:
    rgba = pixels(5, 7, 4)
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.png", rgba)), rgba[:, :, :3])
    for kind in ("unassalpha", "assocalpha"):
        file = save_tiff(tmp_path / f"{kind}.tif", rgba, photometric="rgb", extrasamples=kind)
        np.testing.assert_array_equal(read_image(file), rgba[:, :, :3])
    grey_alpha = pixels(5, 7, 2)
    Image.fromarray(grey_alpha, "LA").save(tmp_path / "la.png")
    tifffile.imwrite(tmp_path / "la.tif", grey_alpha, planarconfig="contig", extrasamples="unassalpha")
    for name in ("la.png", "la.tif"):
        np.testing.assert_array_equal(read_grey(tmp_path / name, percentiles=()), grey_alpha[:, :, 0])
        np.testing.assert_array_equal(read_grey(tmp_path / name, channels=[1], percentiles=()), grey_alpha[:, :, 1])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_fourth_channel_that_is_not_declared(tmp_path: Path, dtype: str) -> None:
    four = pixels(5, 7, 4, dtype=dtype)
    four[:, :, 3] = np.iinfo(dtype).max
    image = read_image(save_tiff(tmp_path / "opaque.tif", four), percentiles=())
    np.testing.assert_array_equal(image, stretched(four[:, :, :3], 0, np.iinfo(dtype).max))
    four[2, 2, 3] -= 1
    with pytest.raises(DatasetError, match="other.tif: 4 channels"):
        read_image(save_tiff(tmp_path / "other.tif", four))


# ---- real images


REAL = {
    "ctc/Fluo-N2DL-HeLa/02": ("t*.tif", "uint16"),
    "ctc/PhC-C2DL-PSC/01": ("t*.tif", "uint8"),
    "ctc/DIC-C2DH-HeLa/01": ("t*.tif", "uint8"),
    "livecell/images/livecell_train_val_images": ("**/*.tif", "uint8"),
    "coco/val2017": ("*.jpg", "uint8"),
    "bbbc038/stage1_train": ("*/images/*.png", "uint8"),
    "rosette/unlabeled": ("*", "uint8"),
    "sstem/stack1/raw": ("*", "uint8"),
    "bbbc005/BBBC005_v1_images": ("*.TIF", "uint8"),
    "tnbc": ("Slide_01/*.png", "uint8"),
}


@pytest.mark.real_data
@pytest.mark.parametrize("folder", REAL)
def test_real_images_have_contrast(folder: str) -> None:
    pattern, dtype = REAL[folder]
    files = sorted((datasets_root() / folder).glob(pattern))
    if not files:
        pytest.skip(f"needs {folder}")
    for file in files[:: max(1, len(files) // 5)]:
        image = read_image(file)
        samples = read_pixels(file)
        assert samples.dtype == dtype
        assert image.shape[:2] == image_size(file)
        low, high = np.percentile(image, (0.1, 99.9))
        assert high - low > 25, file
        # Alpha apart.
        samples = samples[:, :, :3] if samples.ndim == 3 else samples
        # Of an image with few grey values many pixels may be at a percentile; hardly any is beyond it.
        low, high = np.percentile(samples, (0.1, 99.9), method="inverted_cdf")
        assert (image == 0).mean() <= (samples <= low).mean() + 0.01, file
        assert (image == 255).mean() <= (samples >= high).mean() + 0.01, file


@pytest.mark.real_data
def test_bbbc038_is_as_pillow_reads_it() -> None:
    files = sorted((datasets_root() / "bbbc038/stage1_train").glob("*/images/*.png"))[::60]
    if not files:
        pytest.skip("needs bbbc038/stage1_train")
    for file in files:
        np.testing.assert_array_equal(read_image(file, percentiles=None), np.asarray(Image.open(file).convert("RGB")))
