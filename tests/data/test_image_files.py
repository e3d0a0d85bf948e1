"""Decoding: every format and layout to the same samples, and stacks, channels and broken files told as such."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image

from cupre_d2.data.image_files import MAX_BYTES, image_size, page_count, read_headers, read_raster, read_region
from cupre_d2.data.images import read_image, read_pixels
from cupre_d2.errors import DatasetError

HEIGHT, WIDTH = 20, 36


def samples(*shape: int, dtype: Any = np.uint16) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 256 ** np.dtype(dtype).itemsize, shape or (HEIGHT, WIDTH), dtype=np.uint64)
    return values.astype(dtype)


def check(file: Path, expected: np.ndarray, page: int | None = None) -> None:
    found = read_pixels(file, page)
    assert found.dtype == expected.dtype and found.dtype.isnative
    np.testing.assert_array_equal(found, expected)
    assert image_size(file) == expected.shape[:2]
    headers = read_headers(file)
    header, raster = headers[page or 0], read_raster(file, page)
    assert len(headers) == page_count(file)
    assert (header.shape, header.bits) == (raster.samples.shape[:2], raster.bits)
    assert header.channels >= raster.samples.shape[2] and header.nbytes >= raster.samples.nbytes
    if header.regions:
        top, left, bottom, right = (length // part for part in (3, 2) for length in header.shape)
        for box in ((top, left, bottom, right), (bottom - 1, 0, *header.shape)):
            region = read_region(file, page, *box)
            assert (region.bits, region.alpha) == (raster.bits, raster.alpha)
            np.testing.assert_array_equal(region.samples, raster.samples[box[0] : box[2], box[1] : box[3]])


# ---- TIFF


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "?"])
def test_types_keep_their_values(tmp_path: Path, dtype: str, byteorder: str) -> None:
    grey = samples().astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", grey, byteorder=byteorder, bigtiff=byteorder == ">", photometric="minisblack")
    check(tmp_path / "a.tif", grey)


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "packbits", "lzma", "jpeg2000", "png"])
def test_compressions(tmp_path: Path, compression: str | None, tile: tuple[int, int] | None) -> None:
    options = {"compression": compression, "tile": tile, "rowsperstrip": None if tile else 7}
    tifffile.imwrite(tmp_path / "a.tif", samples(), **options)
    check(tmp_path / "a.tif", samples())
    colour = samples(HEIGHT, WIDTH, 3, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "b.tif", colour, photometric="rgb", **options)
    check(tmp_path / "b.tif", colour)


def test_predictors(tmp_path: Path) -> None:
    for grey in (samples(), samples().astype(np.float32)):
        tifffile.imwrite(tmp_path / "a.tif", grey, predictor=True, compression="zlib")
        check(tmp_path / "a.tif", grey)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_jpeg_in_tiff_is_rgb(tmp_path: Path, subsampling: tuple[int, int]) -> None:
    rows, columns = np.mgrid[:64, :64]
    colour = np.stack([rows * 4, columns * 4, 255 - rows * 4], 2).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", colour, photometric="rgb", compression="jpeg", subsampling=subsampling)
    assert np.abs(read_pixels(tmp_path / "a.tif").astype(int) - colour).max() < 30


def test_ycbcr_without_jpeg_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", samples(8, 8, 3, dtype=np.uint8), photometric="ycbcr", subsampling=(1, 1))
    with pytest.raises(DatasetError, match="a.tif.*YCbCr"):
        read_pixels(tmp_path / "a.tif")


@pytest.mark.parametrize("photometric", ["separated", "cielab"])
def test_other_colour_spaces_are_refused(tmp_path: Path, photometric: str) -> None:
    channels = 4 if photometric == "separated" else 3
    tifffile.imwrite(tmp_path / "a.tif", samples(8, 8, channels, dtype=np.uint8), photometric=photometric)
    with pytest.raises(DatasetError, match=f"a.tif.*{photometric.upper()}; expected grey, RGB or a palette"):
        read_pixels(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "bool", "int16", "float32"])
def test_min_is_white_is_inverted(tmp_path: Path, dtype: str) -> None:
    ramp = np.linspace(0, 250, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    grey = (ramp > 100) if dtype == "bool" else ramp.astype(dtype)
    tifffile.imwrite(tmp_path / "white.tif", grey, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "black.tif", grey, photometric="minisblack")
    white, black = (read_image(tmp_path / name) for name in ("white.tif", "black.tif"))
    assert np.abs(white.astype(int) - (255 - black.astype(int))).max() <= 1
    if np.dtype(dtype).kind == "u":
        check(tmp_path / "white.tif", np.iinfo(dtype).max - grey)


@pytest.mark.parametrize("bits", [4, 12])
def test_packed_bits_fill_8(tmp_path: Path, bits: int) -> None:
    """White of 4 or 12 bits is white, though the samples come in 8 or 16."""
    grey = samples(HEIGHT, WIDTH, dtype=np.uint16) % 2**bits
    grey[0, :2] = 0, 2**bits - 1
    binary = (grey[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    packed = np.packbits(binary.reshape(HEIGHT, -1).astype(np.uint8), axis=1)
    tifffile.imwrite(tmp_path / "a.tif", packed, metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        tiff.pages[0].tags["ImageWidth"].overwrite(WIDTH)
        tiff.pages[0].tags["BitsPerSample"].overwrite(bits)
    check(tmp_path / "a.tif", grey.astype(np.uint8 if bits == 4 else np.uint16))
    image = read_image(tmp_path / "a.tif", percentiles=None)[:, :, 0]
    np.testing.assert_array_equal(image, np.rint(grey / (2**bits - 1) * 255))


def test_one_bit(tmp_path: Path) -> None:
    bits = samples() > 30000
    for name in ("a.png", "a.tif", "a.bmp"):
        Image.fromarray(bits).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name)[:, :, 0], bits * 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_orientation_as_pillow(tmp_path: Path, orientation: int) -> None:
    colour = samples(8, 16, 3, dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "a.tif", tiffinfo={274: orientation})
    image = read_pixels(tmp_path / "a.tif")
    assert image.shape[:2] == image_size(tmp_path / "a.tif") == ((16, 8) if orientation >= 5 else (8, 16))
    with Image.open(tmp_path / "a.tif") as upright:
        np.testing.assert_array_equal(image, np.asarray(upright))


# ---- pages and channels of TIFF


LAYOUTS: dict[str, tuple[tuple[int, ...], dict[str, Any], int, int]] = {
    # shape, options, pages, channels
    "ome.ome.tif": ((3, 2, HEIGHT, WIDTH), {"ome": True, "metadata": {"axes": "TCYX"}}, 3, 2),
    "ome_z.ome.tif": ((2, 3, HEIGHT, WIDTH), {"ome": True, "metadata": {"axes": "CZYX"}}, 3, 2),
    "imagej.tif": ((3, 2, HEIGHT, WIDTH), {"imagej": True, "metadata": {"axes": "ZCYX"}}, 3, 2),
    "imagej_stack.tif": ((3, HEIGHT, WIDTH), {"imagej": True, "metadata": {"axes": "ZYX"}}, 3, 1),
    "imagej_channels.tif": ((3, HEIGHT, WIDTH), {"imagej": True, "metadata": {"axes": "CYX"}}, 1, 3),
    "named.tif": ((2, 5, HEIGHT, WIDTH), {"metadata": {"axes": "TCYX"}, "photometric": "minisblack"}, 2, 5),
    "unnamed.tif": ((5, HEIGHT, WIDTH), {"photometric": "minisblack"}, 5, 1),
    "no_metadata.tif": ((5, HEIGHT, WIDTH), {"photometric": "minisblack", "metadata": None}, 5, 1),
    "compressed.tif": ((4, HEIGHT, WIDTH), {"photometric": "minisblack", "compression": "zlib"}, 4, 1),
    "last.tif": ((HEIGHT, WIDTH, 5), {"photometric": "minisblack", "planarconfig": "contig"}, 1, 5),
    "first.tif": ((5, HEIGHT, WIDTH), {"photometric": "minisblack", "planarconfig": "separate"}, 1, 5),
    "rgb_first.tif": ((3, HEIGHT, WIDTH), {"photometric": "rgb", "planarconfig": "separate"}, 1, 3),
    "rgb_stack.tif": ((4, HEIGHT, WIDTH, 3), {"photometric": "rgb"}, 4, 3),
    "one_of_many_axes.tif": ((1, 1, HEIGHT, WIDTH), {"photometric": "minisblack", "metadata": {"axes": "TZYX"}}, 1, 1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path: Path, name: str) -> None:
    shape, options, pages, channels = LAYOUTS[name]
    stack = samples(*shape)
    tifffile.imwrite(tmp_path / name, stack, **options)
    assert page_count(tmp_path / name) == pages
    axes = {"metadata": {}, **options}["metadata"] or {}
    if axes.get("axes") == "CZYX":
        stack = np.moveaxis(stack, 0, 1)
    channels_last = stack.shape[-1] == channels and shape[-1] != WIDTH
    stack = stack.reshape(pages, HEIGHT, WIDTH, channels) if channels_last else stack.reshape(pages, channels, HEIGHT, WIDTH)
    if not channels_last:
        stack = np.moveaxis(stack, 1, -1)
    for page in range(pages):
        expected = stack[page] if channels > 1 else stack[page, :, :, 0]
        check(tmp_path / name, expected, page)
    if pages == 1:
        check(tmp_path / name, stack[0] if channels > 1 else stack[0, :, :, 0])


def test_stack_needs_a_page(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", samples(4, HEIGHT, WIDTH), photometric="minisblack")
    with pytest.raises(DatasetError, match="a.tif: a stack of 4 pages; expected the field page, from 0 to 3"):
        read_image(tmp_path / "a.tif")
    for page in (4, -1, "1", 0.5):
        with pytest.raises(DatasetError, match=f"a.tif: field page {page!r}: expected a page from 0 to 3"):
            read_image(tmp_path / "a.tif", page=page)  # type: ignore[arg-type]
    assert image_size(tmp_path / "a.tif") == (HEIGHT, WIDTH)
    Image.fromarray(samples(4, 4, dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="a.png: field page 1"):
        read_image(tmp_path / "a.png", page=1)
    assert page_count(tmp_path / "a.png") == 1


def test_pages_of_different_sizes(tmp_path: Path) -> None:
    arrays = [samples(HEIGHT, WIDTH), samples(8, 9), samples(5, 6, 3, dtype=np.uint8)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for array in arrays:
            tiff.write(array)
    assert page_count(tmp_path / "a.tif") == 3
    for page, array in enumerate(arrays):
        np.testing.assert_array_equal(read_pixels(tmp_path / "a.tif", page), array)


def test_thumbnails_and_pyramids_are_no_pages(tmp_path: Path) -> None:
    grey = samples()
    with tifffile.TiffWriter(tmp_path / "thumbnail.tif") as tiff:
        tiff.write(grey)
        tiff.write(grey[::5, ::7], subfiletype=1)
    with tifffile.TiffWriter(tmp_path / "pyramid.ome.tif") as tiff:
        tiff.write(grey, subifds=1)
        tiff.write(grey[::2, ::2], subfiletype=1)
    with tifffile.TiffWriter(tmp_path / "thumbnail_first.tif") as tiff:
        tiff.write(grey[::5, ::7], subfiletype=1)
        tiff.write(grey)
    for name in ("thumbnail.tif", "thumbnail_first.tif", "pyramid.ome.tif"):
        assert page_count(tmp_path / name) == 1
        check(tmp_path / name, grey)


def test_stack_described_by_its_first_page_alone(tmp_path: Path) -> None:
    """As ImageJ writes stacks of more than 4 GB."""
    stack = samples(6, HEIGHT, WIDTH)
    options = {"imagej": True, "metadata": {"axes": "ZYX"}, "byteorder": ">"}
    tifffile.imwrite(tmp_path / "a.tif", stack, **options)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        tiff.filehandle.seek(tiff.pages[0].offset + 2 + 12 * len(tiff.pages[0].tags))
        tiff.filehandle.write(bytes(4))
    assert page_count(tmp_path / "a.tif") == 6
    for page in range(6):
        check(tmp_path / "a.tif", stack[page], page)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(DatasetError, match="b.tif"):
        read_pixels(tmp_path / "b.tif", 5)


def test_other_files_of_a_set_are_not_opened(tmp_path: Path) -> None:
    """OME metadata may name files anywhere."""
    secret = tmp_path / "secret.tif"
    tifffile.imwrite(secret, np.full((HEIGHT, WIDTH), 7, np.uint16))
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0"><Pixels '
        f'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="{WIDTH}" SizeY="{HEIGHT}" SizeC="1" SizeZ="1" SizeT="2">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        '<TiffData IFD="0" FirstT="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>'
        f'<TiffData IFD="0" FirstT="1" PlaneCount="1"><UUID FileName="{secret}">urn:uuid:2</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    folder = tmp_path / "set"
    folder.mkdir()
    grey = samples()
    tifffile.imwrite(folder / "a.ome.tif", grey, description=xml, metadata=None)
    with tifffile.TiffFile(folder / "a.ome.tif") as tiff:
        assert (tiff.asarray()[1] == 7).all()
    assert page_count(folder / "a.ome.tif") == 1
    check(folder / "a.ome.tif", grey)


# ---- other formats


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_keeps_its_depth(tmp_path: Path, dtype: Any, channels: int) -> None:
    array = samples(HEIGHT, WIDTH, channels, dtype=dtype)
    order = [2, 1, 0, 3][:channels] if channels > 1 else [0]
    cv2.imwrite(str(tmp_path / "a.png"), array[:, :, order])
    check(tmp_path / "a.png", array if channels > 1 else array[:, :, 0])
    assert read_raster(tmp_path / "a.png").alpha == (channels == 4)


def test_palettes(tmp_path: Path) -> None:
    colour = Image.fromarray(samples(5, 7, 3, dtype=np.uint8)).quantize(8)
    for name in ("p.png", "p.bmp", "p.tif"):
        colour.save(tmp_path / name)
        check(tmp_path / name, np.asarray(colour.convert("RGB")))
    indices = samples(5, 7, dtype=np.uint8) % 16
    grey = Image.fromarray(indices, "P")
    grey.putpalette([value for index in range(16) for value in [255 - 3 * index] * 3])
    for name in ("g.png", "g.tif"):
        grey.save(tmp_path / name)
        check(tmp_path / name, 255 - 3 * indices)
        assert read_image(tmp_path / name).max() == 255


def test_tiff_palette_of_8_bits(tmp_path: Path) -> None:
    """Against the standard, but libtiff reads it too."""
    table = np.tile(np.arange(256, dtype=np.uint16), (3, 1))
    table[1] //= 2
    indices = samples(HEIGHT, WIDTH, dtype=np.uint8)
    for name, colormap in (("eight.tif", table), ("sixteen.tif", table << 8)):
        tifffile.imwrite(tmp_path / name, indices, photometric="palette", colormap=colormap)
        check(tmp_path / name, np.stack([indices, indices // 2, indices], 2))


def test_cmyk(tmp_path: Path) -> None:
    image = Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0))
    image.save(tmp_path / "a.jpg")
    assert np.abs(read_pixels(tmp_path / "a.jpg").astype(int) - (0, 255, 255)).max() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation_as_detectron2(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(samples(8, 16, 3, dtype=np.uint8)).save(path, exif=exif)
    image = read_image(path, "BGR")
    assert image.shape[:2] == image_size(path) == ((16, 8) if orientation >= 5 else (8, 16))
    np.testing.assert_array_equal(image, detectron2_read_image(str(path), "BGR"))


def test_broken_exif_is_passed_over(tmp_path: Path) -> None:
    colour = samples(8, 16, 3, dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), colour)
    assert image_size(tmp_path / "a.png") == (8, 16)


def test_animations_are_stacks(tmp_path: Path) -> None:
    frames = [Image.fromarray(array) for array in samples(3, 8, 16, 3, dtype=np.uint8)]
    for name, options in (("a.png", {}), ("a.webp", {"lossless": True})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert page_count(tmp_path / name) == 3
        for page, frame in enumerate(frames):
            check(tmp_path / name, np.asarray(frame), page)
        with pytest.raises(DatasetError, match=f"{name}: a stack of 3 pages"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_the_ending_does_not_matter(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(samples(8, 16, 3, dtype=np.uint8)).save(tmp_path / f"a.{suffix}")
    expected = read_pixels(tmp_path / f"a.{suffix}")
    for other in ("png", "tif", "jpg", "dat"):
        file = (tmp_path / f"a.{suffix}").rename(tmp_path / f"b.{other}")
        check(file, expected)
        file.rename(tmp_path / f"a.{suffix}")


# ---- what is no image


def test_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image")
    (tmp_path / "empty.tif").write_bytes(b"")
    for read in (read_image, image_size, page_count):
        for name in ("a.png", "empty.tif", "."):
            with pytest.raises(DatasetError, match="cannot be read as an image"):
                read(tmp_path / name)
        with pytest.raises(DatasetError, match=r"a.png: cannot be read as an image \(expected TIFF, PNG, JPEG, BMP or WebP"):
            read(tmp_path / "a.png")
        with pytest.raises(DatasetError, match="b.png: no such image"):
            read(tmp_path / "b.png")


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.complex64))
    with pytest.raises(DatasetError, match="a.tif: cannot be read as an image"):
        read_pixels(tmp_path / "a.tif")


def test_too_large(tmp_path: Path) -> None:
    """Refused by the header, not after half a gigabyte was filled."""
    side = int((MAX_BYTES / 3) ** 0.5) + 1
    Image.new("RGB", (side, side)).save(tmp_path / "a.png", compress_level=1)
    tifffile.imwrite(
        tmp_path / "a.tif",
        shape=(2 * side, 2 * side),
        dtype=np.uint8,
        data=iter([b""]),
        rowsperstrip=2 * side,
        compression="zlib",
    )
    for name in ("a.png", "a.tif"):
        with pytest.raises(DatasetError, match=f"{name}: .*expected at most 256 MiB, so it has to be cut into tiles"):
            read_image(tmp_path / name)
