"""Outlines of annotators: tracing masks exactly, and files as ImageJ, QuPath and LabelMe write them."""

import base64
import io
import json
import logging
import zipfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import shapely
from detectron2.data import MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as mask_util
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi, roiwrite
from scipy import ndimage

from cupre_d2.data.catalog import cell_dataset, register_cell_dataset
from cupre_d2.data.curation.checked_splits import splits_of
from cupre_d2.data.few_shot import get_records
from cupre_d2.data.formats.outlines import load_outlines, trace
from cupre_d2.errors import DatasetError
from cupre_d2.evaluation.cells import to_rles

HEIGHT, WIDTH = 12, 16
SQUARE = [[2, 3], [6, 3], [6, 7], [2, 7]]


def png() -> str:
    file = io.BytesIO()
    Image.fromarray(np.array([[1, 1, 1], [1, 0, 1]], np.uint8) * 255).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


PNG = png()


@pytest.fixture()
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "images/a.png")
    return tmp_path / "images"


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    (tmp_path / "annotations").mkdir()
    return tmp_path / "annotations"


def masks(record: dict[str, Any]) -> list[np.ndarray]:
    """Of the annotations, as evaluation has them."""
    height, width = record["height"], record["width"]
    segmentations = [annotation["segmentation"] for annotation in record["annotations"]]
    return [mask_util.decode(rle).astype(bool) for rle in to_rles(segmentations, height, width)]


def block(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def is_disc(mask: np.ndarray, x: float, y: float, radius: float) -> bool:
    """A pixel whose centre is within a fifth of a pixel of the border may be either."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    distance = np.hypot(columns - x, rows - y) - radius
    return bool((mask == (distance < 0))[np.abs(distance) > 0.2].all())


# ---------------------------------------------------------------------------------------------------------------- tracing


@settings(max_examples=150, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(np.any))
def test_traced_masks(mask: np.ndarray) -> None:
    polygons = trace(mask)
    shapes = [shapely.Polygon(outer, holes) for outer, *holes in polygons]
    assert all(shape.is_valid for shape in shapes)
    assert len(shapes) == ndimage.label(mask)[1]
    assert shapely.MultiPolygon(shapes).is_valid
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    inside = np.sum([shapely.contains_xy(shape, x, y) for shape in shapes], axis=0)
    assert np.array_equal(inside, mask) and sum(shape.area for shape in shapes) == mask.sum()
    for ring in (ring for polygon in polygons for ring in polygon):
        along = np.diff(ring, axis=0, append=ring[:1]) != 0
        assert (along.sum(axis=1) == 1).all() and (along[:, 0] != np.roll(along[:, 0], 1)).all()


def test_traced_corners() -> None:
    (polygon,) = trace(block(3, 2, 7, 6))
    assert sorted(polygon[0].tolist()) == sorted(SQUARE) and len(polygon) == 1


# ----------------------------------------------------------------------------------------------------------------- ImageJ


def polygon_roi(points: Any, name: str, **fields: Any) -> ImagejRoi:
    roi = ImagejRoi.frompoints(np.array(points), name=name)
    for field, value in fields.items():
        setattr(roi, field, value)
    return roi


def test_rois_of_all_kinds(images: Path, folder: Path) -> None:
    ring = [0, 1, 1, 1, 7, 1, 1, 7, 6, 1, 1, 6, 4, 0, 3, 2, 1, 3, 4, 1, 5, 4, 1, 5, 2, 4]
    rois = [
        polygon_roi(SQUARE, "0005-0004", roitype=ROI_TYPE.TRACED),
        polygon_roi(np.array(SQUARE) + 0.25, "sub-pixel", roitype=ROI_TYPE.POLYGON),
        ImagejRoi(roitype=ROI_TYPE.RECT, name="box", top=1, left=2, bottom=4, right=9),
        ImagejRoi(roitype=ROI_TYPE.OVAL, name="oval", top=0, left=4, bottom=10, right=14),
        ImagejRoi(
            roitype=ROI_TYPE.RECT,
            name="ring",
            top=1,
            left=1,
            bottom=6,
            right=7,
            shape_roi_size=len(ring),
            multi_coordinates=np.array(ring, np.float32),
        ),
    ]
    roiwrite(folder / "a.zip", rois)
    (record,), classes = load_outlines(images, folder)
    assert classes == ["cell"] and record["image_id"] == "a" and record["file_name"] == str(images / "a.png")
    square, shifted, box, oval, hole = masks(record)
    assert np.array_equal(square, block(3, 2, 7, 6)) and np.array_equal(box, block(1, 2, 4, 9))
    # A pixel belongs to what its centre is in.
    assert np.array_equal(shifted, block(3, 2, 7, 6))
    assert is_disc(oval, 9, 5, 5)
    assert np.array_equal(hole, block(1, 1, 6, 7) & ~block(2, 3, 4, 5))
    polygon, *_, rle = (annotation["segmentation"] for annotation in record["annotations"])
    assert isinstance(polygon, list) and isinstance(rle, dict)
    assert [annotation["bbox"] for annotation in record["annotations"]][::4] == [[2, 3, 4, 4], [1, 1, 6, 5]]


def test_one_roi_and_an_archive_of_none(images: Path, folder: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT)).save(images / "b.png")
    polygon_roi(SQUARE, "cell").tofile(folder / "a.roi")
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        archive.writestr("__MACOSX/._x.roi", "no ROI")
    (one, none), _ = load_outlines(images, folder)
    assert len(one["annotations"]) == 1 and none["annotations"] == []


def test_classes_of_rois(images: Path, folder: Path) -> None:
    names = ["round", "flat-1", "flat old-0012", "round 2", "flat_2"]
    roiwrite(folder / "a.zip", [polygon_roi(SQUARE, name) for name in names])
    (record,), classes = load_outlines(images, folder, ["round", "flat", "flat old"])
    assert classes == ["round", "flat", "flat old"]
    assert [annotation["category_id"] for annotation in record["annotations"]] == [0, 1, 2, 0, 1]
    with pytest.raises(DatasetError, match="a.zip: ROI 'flat-1', field name: 'flat-1'; expected one of round, flatter"):
        load_outlines(images, folder, ["round", "flatter"])


def test_rois_of_a_stack(images: Path, folder: Path) -> None:
    rois = [polygon_roi(SQUARE, f"{i}", **{field: i}) for i, field in enumerate(("position", "t_position", "z_position"), 1)]
    roiwrite(folder / "a.zip", [*rois, polygon_roi(SQUARE, "everywhere")])
    assert [len(load_outlines(images, folder, None, page)[0][0]["annotations"]) for page in (None, 0, 2)] == [4, 2, 2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"roitype": ROI_TYPE.POLYLINE}, "ROI 'x', field type: polyline; expected an area"),
        ({"roitype": ROI_TYPE.POINT}, "point; expected an area"),
        ({"roitype": ROI_TYPE.RECT, "subtype": ROI_SUBTYPE.TEXT}, "text; expected an area"),
        ({"roitype": ROI_TYPE.RECT, "rounded_rect_arc_size": 9}, "rounded rect; expected an area"),
        ({"options": ROI_OPTIONS.SPLINE_FIT}, "spline; expected an area"),
    ],
)
def test_rois_that_are_no_areas(images: Path, folder: Path, fields: dict[str, Any], message: str) -> None:
    roiwrite(folder / "a.zip", [polygon_roi(SQUARE, "x", **fields)])
    with pytest.raises(DatasetError, match=f"a.zip: .*{message}"):
        load_outlines(images, folder)


# --------------------------------------------------------------------------------------------------- QuPath and LabelMe


def feature(coordinates: Any, kind: str = "Polygon", **properties: Any) -> dict[str, Any]:
    """As QuPath 0.5 exports an annotation."""
    geometry = {"type": kind, "coordinates": coordinates}
    return {
        "type": "Feature",
        "id": str(uuid4()),
        "geometry": geometry,
        "properties": {"objectType": "annotation", **properties},
    }


def closed(points: list[list[int]]) -> list[list[int]]:
    return [*points, points[0]]


HOLE = [[3, 4], [3, 5], [4, 5], [4, 4]]
TUMOR = {"classification": {"name": "Tumor", "color": [200, 0, 0]}}


@pytest.mark.parametrize("as_list", [False, True])
def test_geojson(images: Path, folder: Path, as_list: bool) -> None:
    far = [[8, 8], [10, 8], [10, 9], [8, 9]]
    features = [
        feature([closed(SQUARE)], **TUMOR),
        feature([closed(SQUARE), closed(HOLE)], classification={"names": ["Tumor", "Positive"]}),
        feature([[closed(SQUARE)], [closed(far)]], "MultiPolygon", **TUMOR),
    ]
    content: Any = features if as_list else {"type": "FeatureCollection", "features": features}
    (folder / "a.geojson").write_text(json.dumps(content))
    (record,), classes = load_outlines(images, folder)
    assert classes == ["Tumor", "Tumor: Positive"]
    assert [annotation["category_id"] for annotation in record["annotations"]] == [0, 1, 0]
    square = block(3, 2, 7, 6)
    assert np.array_equal(masks(record), [square, square & ~block(4, 3, 5, 4), square | block(8, 8, 9, 10)])
    assert [type(annotation["segmentation"]) for annotation in record["annotations"]] == [list, dict, list]


def test_geojson_of_a_stack(images: Path, folder: Path) -> None:
    features = [feature([closed(SQUARE)]) for _ in range(4)]
    for one, plane in zip(features, ({"t": 2, "z": 0}, {"t": 0, "z": 2}, {"t": 0, "z": 0}), strict=False):
        one["geometry"]["plane"] = plane
    (folder / "a.geojson").write_text(json.dumps(features))
    assert [len(load_outlines(images, folder, None, page)[0][0]["annotations"]) for page in (None, 0, 2)] == [4, 2, 3]


def test_geojson_without_classes(images: Path, folder: Path) -> None:
    (folder / "a.geojson").write_text(json.dumps(feature([closed(SQUARE)])))
    assert load_outlines(images, folder)[1] == ["cell"]
    assert load_outlines(images, folder, ["nucleus"])[1] == ["nucleus"]
    with pytest.raises(
        DatasetError, match="a.geojson: feature 0, field properties.classification.name: missing; expected one"
    ):
        load_outlines(images, folder, ["a", "b"])


def test_labelme(images: Path, folder: Path) -> None:
    shapes = [
        {"label": "flat", "points": SQUARE, "group_id": None, "shape_type": "polygon", "flags": {}},
        {"label": "round", "points": [[8.0, 5.0], [8.0, 8.0]], "group_id": None, "shape_type": "circle"},
        {"label": "flat", "points": [[9, 1], [6, 0]], "group_id": 3, "shape_type": "rectangle"},
        {"label": "flat", "points": [[9, 5], [11, 5], [11, 7], [9, 7]], "group_id": 3, "shape_type": "polygon"},
        {"label": "round", "points": [[4, 9], [6, 10]], "shape_type": "mask", "mask": PNG},
    ]
    content = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": "a.png",
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    (folder / "a.json").write_text(json.dumps(content))
    (record,), classes = load_outlines(images, folder)
    assert classes == ["flat", "round"]
    assert [annotation["category_id"] for annotation in record["annotations"]] == [0, 1, 0, 1]
    polygon, circle, group, mask = masks(record)
    assert np.array_equal(polygon, block(3, 2, 7, 6)) and is_disc(circle, 8, 5, 3)
    assert np.array_equal(group, block(0, 6, 1, 9) | block(5, 9, 7, 11))
    assert np.array_equal(mask, block(9, 4, 11, 7) & ~block(10, 5, 11, 6))


def shape(**fields: Any) -> dict[str, Any]:
    return {"shapes": [{"label": "cell", "points": SQUARE, "shape_type": "polygon"} | fields]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"cannot be read as ImageJ ROIs, GeoJSON or LabelMe's JSON \("),
        ("[" * 99999, r"cannot be read as ImageJ ROIs"),
        ({"images": [], "annotations": []}, "expected GeoJSON .* or LabelMe's JSON"),
        ({"type": "FeatureCollection"}, "field features: missing; expected list"),
        ({"type": "Feature"}, "feature 0, field geometry: missing; expected dict"),
        (feature([1, 2], "Point"), "feature 0, field geometry.type: 'Point'; expected Polygon or MultiPolygon"),
        (feature(3), "feature 0, field geometry.coordinates: expected lists of rings"),
        (feature([[[1, "2"]]]), r"feature 0, field geometry.coordinates: expected points \[\[x, y\]"),
        (feature([[[1, 2], [3]]]), r"feature 0, field geometry.coordinates: expected points \[\[x, y\]"),
        (feature([[[1, 2], [float("nan"), 2], [4, 4]]]), "feature 0, .*expected numbers of at most 1000000"),
        (feature([SQUARE], classification={"name": 7}), "feature 0, field properties.classification.name: 7; expected text"),
        (
            feature([[[x + WIDTH, y] for x, y in SQUARE]]),
            r"feature 0: from \(18, 3\) to \(22, 7\); expected .* of 16x12 pixels",
        ),
        (shape() | {"imageHeight": 9}, "field imageHeight: 9; expected that of its image, 12"),
        (shape(label=None), "shape 0, field label: NoneType; expected str"),
        (shape(shape_type="linestrip"), "shape 0, field shape_type: 'linestrip'; expected polygon, rectangle"),
        (shape(shape_type="circle"), "shape 0, field points: 4; expected two of a circle"),
        (shape(shape_type="mask", points=[[1, 1], [2, 2]], mask="%"), "shape 0, field mask: cannot be read"),
        (shape(shape_type="mask", points=[[15, 1], [19, 2]], mask=PNG), r"shape 0: from \(15, 1\) to \(18, 3\); expected"),
        ({"shapes": [7]}, "shape 0: int; expected an object"),
    ],
)
def test_files_that_cannot_be_used(images: Path, folder: Path, content: Any, message: str) -> None:
    (folder / "a.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DatasetError, match=rf"a.json: {message}") as error:
        load_outlines(images, folder)
    assert "\n" not in str(error.value)


def test_broken_rois(images: Path, folder: Path) -> None:
    whole = polygon_roi(SQUARE, "x").tobytes()
    for size in (0, 10, 64, 70):
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            archive.writestr("x.roi", whole[:size])
        with pytest.raises(DatasetError, match="a.zip: ROI 'x': cannot be read"):
            load_outlines(images, folder)
    (folder / "a.zip").write_bytes(b"no archive")
    with pytest.raises(DatasetError, match="a.zip: cannot be read as ImageJ ROIs"):
        load_outlines(images, folder)


# -------------------------------------------------------------------------------------------------------------- data sets


def test_what_is_left_out(images: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("L", (4, 4)).save(images / "unannotated.png")
    line = [[1, 1], [5, 1], [3, 1]]
    (folder / "a.geojson").write_text(
        json.dumps([feature([closed(SQUARE)]), feature([closed(line)]), feature([SQUARE[:2]])])
    )
    (folder / "of_no_image.geojson").write_text("[]")
    with caplog.at_level(logging.WARNING):
        (record,), _ = load_outlines(images, folder)
    assert len(record["annotations"]) == 1
    assert "left out 2 outlines without area, the first in a.geojson" in caplog.text
    assert "left out 1 images without a ROI, GeoJSON or LabelMe file, the first unannotated" in caplog.text
    assert "left out 1 ROI, GeoJSON or LabelMe files without an image, the first of_no_image" in caplog.text


def test_registered(images: Path, folder: Path) -> None:
    name = f"mine_{uuid4().hex}"
    register_cell_dataset(name, images=images, annotations=folder)
    register_cell_dataset(f"{name}_file", images=images, annotations=folder / "a.geojson", classes=["Tumor", "Stroma"])
    (folder / "a.geojson").write_text(json.dumps([feature([closed(SQUARE)], **TUMOR)]))
    assert [len(record["annotations"]) for record in get_records(f"{name}_100pct")] == [1]
    assert MetadataCatalog.get(name).thing_classes == ["Tumor"]
    assert get_records(f"{name}_file")[0]["annotations"][0]["category_id"] == 0
    assert MetadataCatalog.get(f"{name}_file").thing_classes == ["Tumor", "Stroma"]
    assert "json_file" not in MetadataCatalog.get(name).as_dict()
    own = cell_dataset(name)
    assert own is not None and own.coco_json is None
    # cupre-d2 check reads its records, not a COCO JSON.
    (split,) = splits_of(name)
    assert split.json_file is None and split.load is not None and len(split.load()) == 1
