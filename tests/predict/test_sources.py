"""What the inputs of a job come to: pages with names, and a line on everything else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from cupre_d2.errors import ConfigError, DatasetError
from cupre_d2.predict import sources
from cupre_d2.predict.sources import find_pages

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 60000, (40, 56)).astype(np.uint16)
COLOUR = RNG.integers(0, 256, (40, 56, 3)).astype(np.uint8)


def save(file: Path, samples: np.ndarray = GREY, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".tif":
        tifffile.imwrite(file, samples, photometric=options.pop("photometric", "minisblack"), **options)
    else:
        Image.fromarray(samples).save(file)
    return file


def test_folders_take_their_images_and_tell_the_rest(tmp_path: Path) -> None:
    for name in ("b.tif", "a.png", "inner/c.tif", ".hidden/d.tif"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "plan.csv").write_text("")
    found = find_pages([tmp_path])
    assert [page.name for page in found.pages] == ["a", "b"] and not found.failures
    assert found.remarks == [
        f"{tmp_path}: left out 2 files that are no images: 1 .txt, 1 .csv",
        f"{tmp_path}: left out 1 sub-folders; '{tmp_path}/**/*.tif' takes the images in them",
    ]
    found = find_pages([f"{tmp_path}/**/*.tif", tmp_path / "b.tif"])
    assert sorted(page.name for page in found.pages) == ["b", "c"]
    assert found.remarks == ["1 images are named more than once; each is segmented once"]


def test_home_is_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(save(tmp_path / "a.png").parent))
    assert [page.file for word in ("~/a.png", "~", "~/*.png") for page in find_pages([word]).pages] == [
        tmp_path / "a.png"
    ] * 3


def test_data_sets(tmp_path: Path) -> None:
    save(tmp_path / "dyes/a.tif", RNG.integers(0, 99, (5, 40, 56)).astype(np.uint16), planarconfig="separate")
    save(tmp_path / "other/b.png")
    (tmp_path / "own.yaml").write_text(
        "predict_dyes: {images: dyes, channels: [4, 0, 1], normalize: false}\npredict_other: {images: other}\n"
    )
    dyes, other = find_pages([], datasets=tmp_path / "own.yaml").pages
    assert dyes.reading == {"channels": (4, 0, 1), "percentiles": None} and other.reading == {}
    np.testing.assert_array_equal(dyes.read(), np.moveaxis(tifffile.imread(dyes.file), 0, -1)[:, :, [4, 0, 1]])
    (found,) = find_pages(["predict_other"]).pages
    assert found.file == other.file
    (page,) = find_pages(["predict_dyes"], channels=[2]).pages
    assert page.channels == (2,) and page.read().shape == (40, 56, 1)
    # What the model was trained on, of images that have it and more.
    trained = find_pages([tmp_path / "dyes", tmp_path / "other", "predict_dyes"], trained_channels=(3,)).pages
    assert [page.channels for page in trained] == [(3,), None]


def test_names_are_unique_and_stay(tmp_path: Path) -> None:
    files = [
        save(tmp_path / name) for name in ("A1/t.png", "A2/T.png", "x.tif", "x.png", "y.ome.tif", "s_p1.png", "t_p0.png")
    ]
    stack = save(tmp_path / "s.tif", np.stack([GREY] * 11))
    names = {page.key: page.name for page in find_pages([*files, stack]).pages}
    assert [names[str(file), 0] for file in files] == ["A1_t", "A2_T", "x_tif", "x_png", "y", "s_p1", "t_p0"]
    assert [names[str(stack), page] for page in (0, 10)] == ["s_p00", "s_p10"]
    # What has a name keeps it, whatever comes to it.
    assert {
        page.key: page.name for page in find_pages([save(tmp_path / "x.bmp", COLOUR), stack], names=names).pages
    }.items() >= {
        (str(tmp_path / "x.bmp"), 0): "x",
        (str(stack), 3): "s_p03",
    }.items()
    lone = find_pages([files[0]], names={("elsewhere", 0): "T"}).pages
    assert lone[0].name == "t_2"


def test_stacks_are_pages(tmp_path: Path) -> None:
    """Of five dimensions too: channels belong to a page, time and depth tell pages."""
    stack = RNG.integers(0, 60000, (2, 3, 3, 40, 56)).astype(np.uint16)
    save(tmp_path / "five.ome.tif", stack, metadata={"axes": "TZCYX"}, ome=True)
    pages = find_pages([tmp_path / "five.ome.tif"]).pages
    assert [(page.name, page.page) for page in pages] == [(f"five_p{n}", n) for n in range(6)]
    np.testing.assert_array_equal(pages[4].read(), np.moveaxis(stack[1, 1], 0, -1))
    assert str(pages[4]).endswith("five.ome.tif, page 4")


BOX = (3, 17, 29, 56)


def write_zarr(folder: Path, samples: np.ndarray, axes: str | None, version: int = 2) -> Path:
    group = zarr.open_group(str(folder), mode="w", zarr_format=version)
    chunks = (1,) * (samples.ndim - 2) + (16, 16)
    for level, step in (("0", 1), ("1", 2)):
        part = samples[..., ::step, ::step]
        group.create_array(level, shape=part.shape, dtype=part.dtype, chunks=chunks)[:] = part
    multiscales: dict[str, Any] = {"datasets": [{"path": "0"}, {"path": "1"}]}
    if axes:
        multiscales["axes"] = [{"name": axis} for axis in axes]
    group.attrs.update({"multiscales": [multiscales]} if version == 2 else {"ome": {"multiscales": [multiscales]}})
    return folder


@pytest.mark.parametrize("regions", [False, True])
def test_reading_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regions: bool) -> None:
    """From level 0 of pyramids, by regions where a page is large, equal to a part of the whole."""
    monkeypatch.setattr(sources, "WHOLE_BYTES", 0 if regions else 2**26)
    with tifffile.TiffWriter(tmp_path / "pyramid.ome.tif") as tiff:
        tiff.write(GREY, subifds=1, tile=(16, 16), compression="zlib")
        tiff.write(GREY[::2, ::2], subfiletype=1, tile=(16, 16))
    rgba = np.dstack([COLOUR, np.full((40, 56), 255, np.uint8)])
    stack = np.stack([np.stack([GREY, GREY + 1])] * 3)
    expected = {
        tmp_path / "pyramid.ome.tif": GREY[..., None],
        save(tmp_path / "strips.tif", GREY, rowsperstrip=7, compression="lzw"): GREY[..., None],
        save(tmp_path / "plain.tif"): GREY[..., None],
        save(tmp_path / "opaque.tif", rgba, photometric="rgb", extrasamples=["unspecified"]): COLOUR,
        save(tmp_path / "colour.png", COLOUR): COLOUR,
        write_zarr(tmp_path / "two.zarr", GREY, "yx"): GREY[..., None],
        write_zarr(tmp_path / "three.zarr", np.moveaxis(COLOUR, -1, 0), "cyx", 3): COLOUR,
        write_zarr(tmp_path / "old.zarr", stack[:, :1, None], None): GREY[..., None],
    }
    for file, whole in expected.items():
        page = find_pages([file], channels=None).pages[0]
        assert page.shape == whole.shape[:2], file
        np.testing.assert_array_equal(page.read(BOX), whole[3:29, 17:56], err_msg=str(file))
        np.testing.assert_array_equal(page.read(), whole)
        assert (page._whole is None) == (regions and page._regions)
        page.close()
        assert page._whole is None


def test_four_channels_that_are_no_alpha_need_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a part of the page is opaque."""
    monkeypatch.setattr(sources, "WHOLE_BYTES", 0)
    dyes = RNG.integers(0, 256, (600, 40, 4)).astype(np.uint8)
    dyes[:300, :, 3] = 255
    save(tmp_path / "dyes.tif", dyes, photometric="rgb", extrasamples=["unspecified"])
    with pytest.raises(DatasetError, match=r"dyes.tif: 4 channels, none of them alpha"):
        find_pages([tmp_path / "dyes.tif"]).pages[0].read((0, 0, 40, 40))
    (page,) = find_pages([tmp_path / "dyes.tif"], channels=[3]).pages
    np.testing.assert_array_equal(page.read((290, 0, 310, 40)), dyes[290:310, :, 3:])


def test_plates_in_zarr(tmp_path: Path) -> None:
    """Each field of each well is an image; label images in it are none."""
    plate = zarr.open_group(str(tmp_path / "plate.zarr"), mode="w", zarr_format=2)
    plate.attrs["plate"] = {}
    for well in ("A/1", "B/1"):
        write_zarr(tmp_path / "plate.zarr" / well / "0", np.stack([np.stack([GREY] * 2)] * 2), "tcyx")
        write_zarr(tmp_path / "plate.zarr" / well / "0/labels/cells", GREY, "yx")
        for parent in (Path(well), Path(well).parent):
            zarr.open_group(str(tmp_path / "plate.zarr" / parent), mode="a", zarr_format=2)
    found = find_pages([tmp_path], channels=[1])
    assert [page.name for page in found.pages] == ["A_1_0_p0", "A_1_0_p1", "B_1_0_p0", "B_1_0_p1"]
    np.testing.assert_array_equal(found.pages[3].read(BOX)[:, :, 0], GREY[3:29, 17:56])
    # A pattern that goes into the folder meets its chunks, which are no images.
    assert not find_pages([f"{tmp_path}/**/0.0*"]).pages


def bad(folder: Path) -> dict[str, str]:
    """Names of inputs, and what is said of each."""
    whole = save(folder / "whole/good.tif", compression="zlib").read_bytes()
    (folder / "text.tif").write_text("These are notes, not pixels.")
    (folder / "empty.tif").write_bytes(b"")
    (folder / "cut.tif").write_bytes(whole[:200])
    (folder / "nothing").mkdir()
    zarr.open_group(str(folder / "bare.zarr"), mode="w", zarr_format=2)
    zarr.open_array(str(folder / "cube.zarr"), mode="w", shape=(8, 9, 10), dtype="u1", zarr_format=2)
    (folder / "broken.zarr").mkdir()
    (folder / "broken.zarr/.zgroup").write_text("{")
    save(folder / "complex.tif", np.zeros((8, 8), np.complex64))
    return {
        "text.tif": "cannot be read as an image",
        "empty.tif": "cannot be read as an image",
        "cut.tif": "cannot be read as an image",
        "nothing": "no image; expected files that end in .png",
        "missing.tif": "no such file, folder or data set",
        "*.gif": "matches no image",
        "bare.zarr": "a Zarr group without an image",
        "cube.zarr": "an array 8 x 9 x 10 without OME metadata",
        "broken.zarr": "cannot be read as an image",
    }


def test_each_bad_input_is_one_line(tmp_path: Path) -> None:
    expected = bad(tmp_path)
    found = find_pages([tmp_path / "whole", *(tmp_path / name for name in expected)])
    assert [page.name for page in found.pages] == ["good"]
    assert len(found.failures) == len(expected)
    for line, (name, what) in zip(sorted(found.failures), sorted(expected.items()), strict=True):
        assert line.startswith(f"{tmp_path / name}: ") and what in line and "\n" not in line


def test_a_name_that_is_nearly_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "plate_1.tif")
    monkeypatch.chdir(tmp_path)
    assert find_pages(["plate1.tif"]).failures == ["plate1.tif: no such file, folder or data set; did you mean plate_1.tif?"]


def test_outputs_are_no_inputs(tmp_path: Path) -> None:
    save(tmp_path / "a.tif")
    save(tmp_path / "out/labels/a.tif")
    found = find_pages([f"{tmp_path}/**/*.tif"], output=tmp_path / "out")
    assert [page.file for page in found.pages] == [tmp_path / "a.tif"]
    assert found.remarks == [f"{tmp_path}/**/*.tif: left out 1 matches in the output folder"]
    with pytest.raises(ConfigError, match="holds input images; expected another folder for the outputs"):
        find_pages([tmp_path], output=tmp_path)
    with pytest.raises(ConfigError, match="no input"):
        find_pages([])
