from pathlib import Path

import numpy as np
import pytest
import tifffile
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image

from cupre_d2.data.images import read_image
from cupre_d2.errors import ConfigError, DatasetError


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_colours_and_grey(tmp_path: Path, suffix: str) -> None:
    colour, grey = pixels(5, 7, 3), pixels(5, 7)
    colour_file, grey_file = save(tmp_path / f"c.{suffix}", colour), save(tmp_path / f"g.{suffix}", grey)
    np.testing.assert_array_equal(read_image(colour_file), colour)
    np.testing.assert_array_equal(read_image(colour_file, "BGR"), colour[:, :, ::-1])
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    np.testing.assert_array_equal(read_image(colour_file, "L"), np.stack([luma] * 3, 2))
    for format in ("RGB", "BGR", "L"):
        np.testing.assert_array_equal(read_image(grey_file, format), np.stack([grey] * 3, 2))


def test_is_writable_and_contiguous(tmp_path: Path) -> None:
    for format in ("RGB", "BGR", "L"):
        image = read_image(save(tmp_path / "a.png", pixels(4, 4, 3)), format)
        assert image.dtype == np.uint8 and image.flags.writeable and image.flags.c_contiguous


def test_alpha_is_dropped_palette_and_bits_are_expanded(tmp_path: Path) -> None:
    rgba = pixels(5, 7, 4)
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.png", rgba)), rgba[:, :, :3])
    grey_alpha = pixels(5, 7, 2)
    Image.fromarray(grey_alpha, "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png")[:, :, 2], grey_alpha[:, :, 0])
    palette = Image.fromarray(pixels(5, 7, 3)).quantize(8)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))
    bits = pixels(5, 7) > 127
    np.testing.assert_array_equal(read_image(save(tmp_path / "1.png", bits))[:, :, 0], bits * 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_as_detectron2(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", pixels(8, 16, 3), exif=exif)
    image = read_image(path, "BGR")
    assert image.shape == ((16, 8, 3) if orientation >= 5 else (8, 16, 3))
    np.testing.assert_array_equal(image, detectron2_read_image(str(path), "BGR"))


DEEP = {
    "grey.png": np.arange(12, dtype=np.uint16).reshape(3, 4) * 4000,
    "grey.tif": np.arange(12, dtype=np.uint16).reshape(3, 4) * 4000,
    "int32.tif": np.arange(12, dtype=np.int32).reshape(3, 4) * 4000,
    "float.tif": np.arange(12, dtype=np.float32).reshape(3, 4),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=rf"{name}.*not 8-bit"):
        read_image(save(tmp_path / name, DEEP[name]))


def test_colour_of_more_than_8_bits(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    deep = np.arange(36, dtype=np.uint16).reshape(3, 4, 3) * 1000
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    with pytest.raises(DatasetError, match="a.png.*not 8-bit"):
        read_image(tmp_path / "a.png")
    # Pillow may refuse these of itself; either way it is an error that names the file.
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    with pytest.raises(DatasetError, match="a.tif"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", pixels(64, 64, 3))
    whole = path.read_bytes()
    for share in (0, 0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DatasetError, match=rf"a\.{suffix}.*cannot be read") as error:
            read_image(path)
        assert "\n" not in str(error.value)


def test_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(DatasetError, match="a.png: cannot be read as an image"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="b.png: no such image"):
        read_image(tmp_path / "b.png")
    with pytest.raises(DatasetError, match="cannot be read as an image"):
        read_image(tmp_path)


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="INPUT.FORMAT 'YUV-BT.601'.*RGB, BGR, L"):
        read_image(save(tmp_path / "a.png", pixels(4, 4, 3)), "YUV-BT.601")
