"""What is written of predictions: read back by other libraries, and back in as training data."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely
import shapely.geometry
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from roifile import ImagejRoi
from scipy import ndimage
from skimage.measure import regionprops_table

from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.data.formats.csv_tables import load_count_table
from cupre_d2.data.formats.mask_images import load_label_images
from cupre_d2.data.formats.outlines import load_outlines
from cupre_d2.data.mappers import DetectionMapper
from cupre_d2.errors import ConfigError
from cupre_d2.evaluation.cells import to_rles
from cupre_d2.predict import measure, outputs
from cupre_d2.predict.canvas import COLUMNS, Segmentation
from cupre_d2.predict.outputs import FORMATS, Outputs
from cupre_d2.predict.sources import Page, find_pages

CLASSES = ("round", "flat")


def label_image() -> np.ndarray:
    """Cells with a hole, of one pixel, at the border, in two parts, meeting at a corner and within another's hole."""
    labels = np.zeros((30, 41), np.uint32)
    labels[2:12, 3:13] = 1
    labels[4:7, 5:9] = 0
    labels[9, 10] = 0
    labels[5, 6] = 2
    labels[0:3, 38:41] = 3
    labels[28:30, 0:7] = 4
    labels[12:15, 13:16] = 5
    labels[15:18, 16:19] = 5
    labels[20, 20] = 6
    labels[14:16, 25:30] = 7
    labels[22:24, 25:27] = 7
    labels[16:20, 25:30] = 8
    return labels


def segmentation(labels: np.ndarray) -> Segmentation:
    boxes = ndimage.find_objects(labels.astype(np.int64))
    rows = [
        {
            "label": label,
            "score": 1 / (1 + label),
            "category": (label - 1) % 2,
            "top": rows.start,
            "left": columns.start,
            "bottom": rows.stop,
            "right": columns.stop,
            "area": int((labels[rows, columns] == label).sum()),
            "edge": bool(rows.start == 0 or columns.start == 0 or (rows.stop, columns.stop) == labels.shape),
            "stitched": False,
        }
        for label, (rows, columns) in enumerate(boxes, start=1)
    ]
    return Segmentation(labels, pd.DataFrame(rows, columns=[*COLUMNS]))


def make_page(folder: Path, shape: tuple[int, ...], name: str = "a.tif", **options: Any) -> Page:
    folder.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).integers(90, 4000, shape).astype(np.uint16)
    tifffile.imwrite(folder / name, image, **options)
    (page,) = find_pages([folder / name]).pages
    return page


def entry(page: Page, written: Any, formats: Sequence[str] = tuple(FORMATS)) -> dict[str, Any]:
    """As predictions.json has it."""
    size = {"height": page.shape[0], "width": page.shape[1]}
    about = {"name": page.name, "file": str(page.file), "page": page.page, "formats": list(formats), **size}
    return json.loads(json.dumps(about | {"outputs": written.files, "summary": written.summary}))


def write(folder: Path, page: Page, labels: np.ndarray, formats: Sequence[str] = tuple(FORMATS)) -> list[dict[str, Any]]:
    writer = Outputs(folder, CLASSES, formats)
    entries = [entry(page, writer.write(page, segmentation(labels)), formats)]
    writer.finish(entries, [])
    return entries


def masks(labels: np.ndarray) -> list[np.ndarray]:
    return [labels == label for label in range(1, int(labels.max(initial=0)) + 1)]


def masks_of(record: dict[str, Any]) -> list[np.ndarray]:
    segmentations = [annotation["segmentation"] for annotation in record["annotations"]]
    return [mask_util.decode(rle).astype(bool) for rle in to_rles(segmentations, record["height"], record["width"])]


def centres(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return x, y


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """All formats of an image of 0.5 by 0.25 µm a pixel."""
    folder = tmp_path_factory.mktemp("job")
    size = {"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm"}
    labels = label_image()
    write(folder / "out", make_page(folder / "images", labels.shape, "a.ome.tif", metadata=size), labels)
    return folder / "out", labels


# ------------------------------------------------------------------------------------------------ by independent libraries


def test_files(written: tuple[Path, np.ndarray]) -> None:
    folder, _ = written
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    pages = {f"{name}/a{one.suffix}" for name, one in FORMATS.items() if one.write}
    assert files == pages | {"counts.csv", "coco.json", "report.html"}


def test_label_image(written: tuple[Path, np.ndarray]) -> None:
    folder, labels = written
    with tifffile.TiffFile(folder / "labels/a.tif") as tiff:
        assert np.array_equal(tiff.asarray(), labels) and tiff.pages[0].dtype == np.uint16
        assert tiff.pages[0].compression == 8
        assert tiff.pages[0].tags["YResolution"].value == (20000, 1) and tiff.pages[0].tags["XResolution"].value == (
            40000,
            1,
        )
    assert measure.pixel_size(folder / "labels/a.tif") == (0.5, 0.25)


def test_label_image_in_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "LARGE", 32)
    monkeypatch.setattr(outputs, "TILE", 16)
    labels = label_image()
    write(tmp_path / "out", make_page(tmp_path, labels.shape), labels, ["labels"])
    with tifffile.TiffFile(tmp_path / "out/labels/a.tif") as tiff:
        assert tiff.pages[0].is_tiled and np.array_equal(tiff.asarray(), labels)


def test_more_cells_than_16_bits_count(tmp_path: Path) -> None:
    labels = np.zeros((560, 500), np.uint32)
    labels[::2, ::2] = np.arange(1, 70001).reshape(280, 250)
    rows, columns = np.nonzero(labels)
    table = {
        "label": labels[rows, columns],
        "top": rows,
        "left": columns,
        "bottom": rows + 1,
        "right": columns + 1,
        "area": 1,
    }
    cells = Segmentation(labels, pd.DataFrame(table).assign(score=0.5, category=0, edge=False, stitched=False))
    page = make_page(tmp_path, labels.shape)
    written = Outputs(tmp_path / "out", CLASSES, ["labels"]).write(page, cells)
    back = tifffile.imread(tmp_path / "out/labels/a.tif")
    assert back.dtype == np.uint32 and np.array_equal(back, labels) and written.summary["cells"] == 70000


@pytest.mark.parametrize("name", ["coco.json", "coco/a.json"])
def test_coco(written: tuple[Path, np.ndarray], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, labels = written
    coco = COCO(folder / name)
    annotations = coco.loadAnns(coco.getAnnIds())
    assert np.array_equal([coco.annToMask(one) for one in annotations], masks(labels))
    assert [one["area"] for one in annotations] == [mask.sum() for mask in masks(labels)]
    assert [coco.cats[one["category_id"]]["name"] for one in annotations] == [*CLASSES] * 4
    assert annotations[1]["score"] == pytest.approx(1 / 3) and annotations[1]["bbox"] == [6, 5, 1, 1]
    assert coco.imgs[1]["file_name"] == "a.ome.tif"


def test_rois(written: tuple[Path, np.ndarray]) -> None:
    folder, labels = written
    rois = ImagejRoi.fromfile(folder / "rois/a.zip")
    assert isinstance(rois, list)
    assert [roi.name for roi in rois] == [f"{CLASSES[number % 2]}-{number + 1}" for number in range(8)]
    with zipfile.ZipFile(folder / "rois/a.zip") as archive:
        assert archive.namelist()[0] == "round-1.roi"
    for roi, mask in zip(rois, masks(labels), strict=True):
        rings = [shapely.Polygon(ring) for ring in roi.coordinates(multi=True)]
        inside = np.sum([shapely.contains_xy(ring, *centres(labels.shape)) for ring in rings], axis=0) % 2
        assert np.array_equal(inside, mask)
        rows, columns = np.nonzero(mask)
        assert (roi.top, roi.left, roi.bottom, roi.right)[:2] == (rows.min(), columns.min())
    assert "score: 0.3333" in rois[1].props


def test_geojson(written: tuple[Path, np.ndarray]) -> None:
    folder, labels = written
    features = json.loads((folder / "geojson/a.geojson").read_text())["features"]
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in features]
    assert all(shape.is_valid for shape in shapes)
    assert np.array_equal([shapely.contains_xy(shape, *centres(labels.shape)) for shape in shapes], masks(labels))
    assert [len(shape.interiors) for shape in shapes if isinstance(shape, shapely.Polygon)][0] == 2
    properties = features[1]["properties"]
    assert properties["classification"]["name"] == "flat" and properties["objectType"] == "annotation"
    assert properties["measurements"]["score"] == pytest.approx(1 / 3) and properties["measurements"]["area_um2"] == 0.125


def test_measurements(written: tuple[Path, np.ndarray]) -> None:
    """Equal to those of the whole image at once."""
    folder, labels = written
    table = pd.read_csv(folder / "measurements/a.csv")
    image = tifffile.imread(folder.parent / "images/a.ome.tif")
    names = {
        "label": "label",
        "area": "area",
        "centroid-0": "centroid_y",
        "centroid-1": "centroid_x",
        "bbox-0": "top",
        "bbox-3": "right",
        "equivalent_diameter_area": "equivalent_diameter",
        "eccentricity": "eccentricity",
        "solidity": "solidity",
        "intensity_mean": "mean_intensity",
    }
    asked = ("label", "area", "centroid", "bbox", "equivalent_diameter_area", "eccentricity", "solidity", "intensity_mean")
    expected = regionprops_table(labels.astype(np.int32), image, properties=asked)
    for theirs, ours in names.items():
        np.testing.assert_allclose(table[ours], expected[theirs], 1e-6, err_msg=ours)
    np.testing.assert_allclose(table["area_um2"], table["area"] * 0.125, 1e-6)
    np.testing.assert_allclose(table["centroid_y_um"], table["centroid_y"] * 0.5, 1e-6)
    np.testing.assert_allclose(table["equivalent_diameter_um"], np.sqrt(4 / np.pi * table["area_um2"]), 1e-6)
    assert table["class"].tolist() == [*CLASSES] * 4 and set(table["image"]) == {"a.ome.tif"}
    assert table["edge"].tolist() == [False, False, True, True, False, False, False, False]


def test_measurements_by_block_and_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BLOCK", 7)
    labels = label_image()
    page = make_page(tmp_path, (*labels.shape, 3), photometric="rgb")
    table = measure.measure(segmentation(labels), page.read, CLASSES)
    expected = regionprops_table(labels.astype(np.int32), page.read(), properties=("area", "intensity_mean"))
    np.testing.assert_array_equal(table["area"], expected["area"])
    for channel in range(3):
        np.testing.assert_allclose(table[f"mean_intensity_{channel}"], expected[f"intensity_mean-{channel}"])
    assert "area_um2" not in table


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.2, "PhysicalSizeY": 0.3}}, (0.3, 0.2)),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "micron"}}, (0.5, 0.25)),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "\\u00B5m"}}, (0.25, 0.25)),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "pixel"}}, None),
        ({"ome": True, "metadata": {"axes": "YX"}}, None),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
    ],
)
def test_pixel_sizes(tmp_path: Path, options: dict[str, Any], expected: tuple[float, float] | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint16), **options)
    assert measure.pixel_size(tmp_path / "a.tif") == pytest.approx(expected)
    (tmp_path / "a.png").write_bytes(b"no TIFF")
    assert measure.pixel_size(tmp_path / "a.png") is None


# --------------------------------------------------------------------------------------------------------- back to training


def test_round_trip(written: tuple[Path, np.ndarray]) -> None:
    folder, labels = written
    images = folder.parent / "images"
    (by_labels,) = load_label_images(images, folder / "labels")
    (by_coco,), _ = load_coco_json(folder / "coco.json", images)
    (by_geojson,), classes = load_outlines(images, folder / "geojson")
    (by_rois,), _ = load_outlines(images, folder / "rois", CLASSES)
    assert classes == sorted(CLASSES)
    for record in (by_labels, by_coco, by_geojson, by_rois):
        assert record["image_id"] in ("a", 1) and np.array_equal(masks_of(record), masks(labels))
    for record, names in ((by_coco, CLASSES), (by_geojson, classes), (by_rois, CLASSES)):
        assert [names[annotation["category_id"]] for annotation in record["annotations"]] == [*CLASSES] * 4


def test_a_model_sees_the_same_cells(written: tuple[Path, np.ndarray]) -> None:
    folder, labels = written
    mapper = DetectionMapper(
        True, (), augmentations=[], image_format="RGB", use_instance_mask=True, instance_mask_format="bitmask"
    )
    for kind in ("rois", "geojson"):
        (record,), _ = load_outlines(folder.parent / "images", folder / kind)
        instances = mapper(record)["instances"]
        assert np.array_equal(instances.gt_masks.tensor.numpy(), masks(labels))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays(np.uint32, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(0, 3)))
def test_any_label_image_comes_back(tmp_path: Path, labels: np.ndarray) -> None:
    labels = np.searchsorted(np.union1d(labels, [0]), labels).astype(np.uint32)
    page = make_page(tmp_path / "images", labels.shape)
    write(tmp_path, page, labels, ["rois", "geojson", "coco"])
    for kind in ("rois", "geojson"):
        (record,), _ = load_outlines(tmp_path / "images", tmp_path / kind)
        assert [mask.tolist() for mask in masks_of(record)] == [mask.tolist() for mask in masks(labels)]
    (record,), _ = load_coco_json(tmp_path / "coco.json", tmp_path / "images")
    assert [mask.tolist() for mask in masks_of(record)] == [mask.tolist() for mask in masks(labels)]


def test_an_image_without_cells(tmp_path: Path) -> None:
    labels = np.zeros((20, 30), np.uint32)
    write(tmp_path / "out", make_page(tmp_path / "images", labels.shape), labels)
    assert not tifffile.imread(tmp_path / "out/labels/a.tif").any()
    assert len(pd.read_csv(tmp_path / "out/measurements/a.csv")) == 0
    (record,), _ = load_coco_json(tmp_path / "out/coco.json", tmp_path / "images")
    assert record["annotations"] == []
    for kind in ("rois", "geojson"):
        assert load_outlines(tmp_path / "images", tmp_path / "out" / kind)[0][0]["annotations"] == []
    assert "1 image, 0 cells" in (tmp_path / "out/report.html").read_text()


def test_pages_of_a_stack(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((2, 20, 20), np.uint16), metadata={"axes": "TYX"})
    pages = find_pages([tmp_path / "stack.tif"]).pages
    labels = np.zeros((20, 20), np.uint32)
    labels[3:5, 3:5] = 1
    writer = Outputs(tmp_path / "out", ["cell"], ["rois", "geojson", "coco", "counts"])
    entries = [entry(page, writer.write(page, segmentation(labels))) for page in pages]
    writer.finish(entries, [])
    (roi,) = ImagejRoi.fromfile(tmp_path / "out/rois/stack_p1.zip")  # type: ignore[misc]
    assert roi.position == 2 and roi.name == "cell-1"
    (feature,) = json.loads((tmp_path / "out/geojson/stack_p1.geojson").read_text())["features"]
    assert feature["geometry"]["plane"] == {"c": -1, "z": 0, "t": 1}
    assert [image["page"] for image in json.loads((tmp_path / "out/coco.json").read_text())["images"]] == [0, 1]
    assert pd.read_csv(tmp_path / "out/counts.csv")["page"].tolist() == [0, 1]


def test_counts(written: tuple[Path, np.ndarray]) -> None:
    folder, labels = written
    (row,) = pd.read_csv(folder / "counts.csv").to_dict("records")
    assert (row["count"], row["count_round"], row["count_flat"], row["edge"]) == (8, 4, 4, 2)
    assert row["median_area"] == np.median(np.bincount(labels.ravel())[1:])
    assert row["cells_per_mm2"] == pytest.approx(8 / (30 * 41 * 0.125e-6))
    (record,) = load_count_table(folder.parent / "images", folder / "counts.csv")
    assert record["count"] == 8


# ------------------------------------------------------------------------------------------------------------------- others


def test_the_same_cells_make_the_same_files(tmp_path: Path) -> None:
    labels = label_image()
    page = make_page(tmp_path, labels.shape)
    for folder in ("one", "two"):
        write(tmp_path / folder, page, labels)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*") if path.name != "report.html"]
    assert len(files) == 9 and all(
        (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files
    )


def test_formats() -> None:
    assert Outputs("x", CLASSES).formats == ("labels", "measurements", "counts", "report")
    with pytest.raises(ConfigError, match="format 'roi': unknown; did you mean rois"):
        Outputs("x", CLASSES, ["roi"])


def test_a_page_that_fails_leaves_no_file(tmp_path: Path) -> None:
    labels = label_image()
    broken = segmentation(labels)
    broken.table.loc[3, "category"] = 9
    with pytest.raises(IndexError):
        Outputs(tmp_path / "out", CLASSES, ["rois"]).write(make_page(tmp_path, labels.shape), broken)
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))
