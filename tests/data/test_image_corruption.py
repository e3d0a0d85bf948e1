"""Broken image files, of every format, in thousands of ways: each ends in one line, or in an image."""

import io
import random
import resource
import signal
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from cupre_d2.data.image_files import image_size, page_count, read_headers, read_region
from cupre_d2.data.images import read_image
from cupre_d2.errors import DatasetError

HEIGHT, WIDTH = 24, 36
SECONDS = 5
KILOBYTES = 700_000
DAMAGES = 40


def encoded(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def by_pillow(array: np.ndarray, format: str, **options: Any) -> bytes:
    return encoded(lambda file: Image.fromarray(array).save(file, format, **options))


def by_tifffile(array: np.ndarray, **options: Any) -> bytes:
    return encoded(lambda file: tifffile.imwrite(file, array, **options))


def whole_files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    deep = cv2.GaussianBlur(rng.integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16), (0, 0), 1)
    colour, grey, deep_grey = (deep >> 8).astype(np.uint8), (deep[:, :, 0] >> 8).astype(np.uint8), deep[:, :, 0].copy()
    files = {
        "colour.png": by_pillow(colour, "PNG"),
        "grey.png": by_pillow(grey, "PNG"),
        "palette.png": encoded(lambda file: Image.fromarray(colour).quantize(16).save(file, "PNG")),
        "deep.png": cv2.imencode(".png", deep)[1].tobytes(),
        "colour.jpg": by_pillow(colour, "JPEG"),
        "progressive.jpg": by_pillow(colour, "JPEG", progressive=True),
        "grey.jpg": by_pillow(grey, "JPEG"),
        "colour.bmp": by_pillow(colour, "BMP"),
        "grey.bmp": by_pillow(grey, "BMP"),
        "colour.webp": by_pillow(colour, "WEBP"),
        "ome.tif": by_tifffile(np.stack([deep_grey] * 3), ome=True, metadata={"axes": "CYX"}),
        "imagej.tif": by_tifffile(np.stack([deep_grey] * 3), imagej=True, metadata={"axes": "CYX"}),
        "stack.tif": by_tifffile(np.stack([deep_grey] * 3), photometric="minisblack"),
        "big.tif": by_tifffile(deep_grey, bigtiff=True),
        "planar.tif": by_tifffile(np.moveaxis(colour, -1, 0), photometric="rgb", planarconfig="separate"),
        "bits.tif": by_tifffile(grey > 120),
        "predictor.tif": by_tifffile(deep_grey, predictor=True, compression="zlib"),
    }
    for compression in (None, "lzw", "zlib", "zstd", "packbits", "jpeg", "jpeg2000", "webp"):
        image = colour if compression in ("jpeg", "webp") else deep_grey
        files[f"{compression}_strips.tif"] = by_tifffile(image, compression=compression, rowsperstrip=8)
        files[f"{compression}_tiles.tif"] = by_tifffile(image, compression=compression, tile=(16, 16))
    return files


WHOLE = whole_files()


class Hang(BaseException):
    """No decoder's error handling catches it."""


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    def hang(*_: object) -> None:
        raise Hang

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, hang)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    signal.signal(signal.SIGALRM, old)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < KILOBYTES


def attempt(read: Callable[[Path], Any], file: Path) -> Any:
    """What `read` makes of the file, None where it refuses it in one line."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return read(file)
    except DatasetError as error:
        assert str(file) in str(error) and "\n" not in str(error)
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def check(file: Path) -> np.ndarray | None:
    """That every reader ends well, and what is read is an image of the size that was announced."""
    size, pages = attempt(image_size, file), attempt(page_count, file)
    assert size is None or (len(size) == 2 and min(size) > 0)
    assert pages is None or pages >= 0
    header, *_ = attempt(read_headers, file) or [None]
    if header and header.regions:
        height, width = (min(length, HEIGHT) for length in header.shape)
        region = attempt(lambda path: read_region(path, 0, height // 2, 0, height, width), file)
        assert region is None or region.samples.shape[:2] == (height - height // 2, width)
    image = attempt(lambda path: read_image(path, page=0), file)
    if image is not None:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and size == image.shape[:2]
    return image


def damaged(data: bytes, rng: random.Random) -> bytes:
    copy = bytearray(data)
    place = rng.randrange(len(copy))
    match rng.randrange(6):
        case 0:
            for _ in range(rng.choice((1, 2, 8, 40))):
                copy[rng.randrange(len(copy))] ^= 1 << rng.randrange(8)
        case 1:
            for _ in range(rng.choice((1, 2, 4))):
                copy[rng.randrange(min(len(copy), 400))] = rng.randrange(256)
        case 2:
            copy[place:place] = rng.randbytes(rng.randrange(1, 9))
        case 3:
            copy[place : place + rng.choice((2, 4, 8, 64))] = bytes(4)
        case 4:
            copy[place : place + 4] = b"\xff" * 4
        case 5:
            del copy[place : place + rng.randrange(1, 30)]
    return bytes(copy)


@pytest.mark.parametrize("name", WHOLE)
def test_damage(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    for _ in range(DAMAGES):
        file = tmp_path / f"a{rng.choice((Path(name).suffix, '.png', '.tif', '.jpg'))}"
        file.write_bytes(damaged(WHOLE[name], rng))
        check(file)


@pytest.mark.parametrize("name", WHOLE)
def test_truncation(tmp_path: Path, name: str) -> None:
    """A file that is cut is refused, unless what was cut off holds no pixel."""
    data = WHOLE[name]
    file = tmp_path / name
    file.write_bytes(data)
    whole = check(file)
    assert whole is not None
    for length in {*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 30, len(data))}:
        file.write_bytes(data[:length])
        image = check(file)
        assert image is None or np.array_equal(image, whole)
        assert image is None or length > len(data) * 0.5


EXTREMES = (0, 1, 2, 3, 17, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1)


@pytest.mark.parametrize("name", [name for name in WHOLE if name.endswith(".tif") and name != "big.tif"])
def test_absurd_tiff_tags(tmp_path: Path, name: str) -> None:
    """Every field of every entry of the first directory, one at a time."""
    data = WHOLE[name]
    start = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[start : start + 2])[0]
    rng = random.Random(name)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        for offset, format in ((2, "<H"), (4, "<I"), (8, "<I")):
            for extreme in rng.sample(EXTREMES, 3):
                copy = bytearray(data)
                struct.pack_into(format, copy, entry + offset, extreme % 256 ** struct.calcsize(format))
                (tmp_path / name).write_bytes(copy)
                check(tmp_path / name)


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    chunks = ((b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colour", [0, 2, 6])
@pytest.mark.parametrize("side", [5_000, 30_000, 2**31 - 1])
def test_png_bombs(tmp_path: Path, side: int, colour: int, depth: int) -> None:
    (tmp_path / "a.png").write_bytes(png(side, side, depth, colour, zlib.compress(bytes(10_000_000))))
    assert check(tmp_path / "a.png") is None


def test_jpeg_and_bmp_of_absurd_sizes(tmp_path: Path) -> None:
    for name, format, offset in (("colour.jpg", ">H", WHOLE["colour.jpg"].index(b"\xff\xc0") + 5), ("colour.bmp", "<i", 18)):
        size = struct.calcsize(format)
        for width in (0, 1, 5_000, 32_767):
            for height in (0, 1, 5_000, 32_767):
                copy = bytearray(WHOLE[name])
                struct.pack_into(format, copy, offset, height)
                struct.pack_into(format, copy, offset + size, width)
                (tmp_path / name).write_bytes(copy)
                check(tmp_path / name)


@pytest.mark.parametrize("pages", [1, 3, 150])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_tiff_directories_in_a_circle(tmp_path: Path, pages: int, bigtiff: bool) -> None:
    stack = np.zeros((pages, 4, 4), np.uint8)
    data = bytearray(by_tifffile(stack, photometric="minisblack", metadata=None, byteorder=">", bigtiff=bigtiff))
    (tmp_path / "a.tif").write_bytes(data)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        first, last = tiff.pages[0].offset, tiff.pages[-1]
        end = last.offset + (8 + 20 * len(last.tags) if bigtiff else 2 + 12 * len(last.tags))
    struct.pack_into(">Q" if bigtiff else ">I", data, end, first)
    (tmp_path / "a.tif").write_bytes(data)
    for read in (page_count, image_size, read_image):
        with pytest.raises(DatasetError, match="a.tif.*circle"):
            read(tmp_path / "a.tif")
