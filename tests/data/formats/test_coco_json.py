"""COCO's instances JSON: what is read, what is left out, and the one line that says what is wrong with bad input."""

import copy
import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

from cupre_d2.data.catalog import register_cell_dataset
from cupre_d2.data.curation.export import write_subset
from cupre_d2.data.few_shot import get_records
from cupre_d2.data.formats import coco_cache
from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.data.formats.rle import box_of_runs, check_rle, decode_counts
from cupre_d2.errors import DatasetError
from cupre_d2.evaluation.cells import TrueCells

HEIGHT, WIDTH = 12, 20
TRIANGLE = [1.0, 1.0, 5.0, 1.0, 5.0, 7.0]


def save_image(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(file)
    return file


def one_line(error: pytest.ExceptionInfo[DatasetError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def annotation(**fields: Any) -> dict[str, Any]:
    base = {"id": 7, "image_id": 1, "category_id": 3, "bbox": [1.0, 1.0, 4.0, 6.0], "segmentation": [TRIANGLE]}
    return {**base, **fields}


def listed(annotation: dict[str, Any]) -> dict[str, Any]:
    """With lists where a polygon is an array."""
    return annotation | {"segmentation": [polygon.tolist() for polygon in annotation["segmentation"]]}


def write_coco(folder: Path, annotations: list[dict[str, Any]], /, **fields: Any) -> Path:
    """A COCO file of two images and two categories whose ids are neither ordered nor contiguous."""
    for name in ("a.png", "b.png"):
        save_image(folder / name)
    images = [{"id": i, "file_name": n, "height": HEIGHT, "width": WIDTH} for i, n in ((1, "a.png"), (2, "b.png"))]
    categories = [{"id": 9, "name": "late"}, {"id": 3, "name": "early"}]
    content = {"images": images, "annotations": annotations, "categories": categories, **fields}
    json_file = folder / "coco.json"
    json_file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return json_file


def test_cell_types(tmp_path: Path) -> None:
    types: list[Any] = ["a172", 3, None, ""]
    for name in "abcd":
        save_image(tmp_path / f"{name}.png")
    images = [
        {"id": i, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH, "cell_type": cell_type}
        for i, (name, cell_type) in enumerate(zip("abcd", types, strict=True))
    ]
    for more in ({}, {"note": float("nan")}):
        records, _ = load_coco_json(write_coco(tmp_path, [annotation()], images=images, **more), tmp_path)
        assert [record.get("cell_type") for record in records] == ["a172", "3", None, None]
        assert list(records[0])[-1] == "annotations"


def test_coco_keeps_polygons_and_sorts_categories(tmp_path: Path) -> None:
    json_file = write_coco(tmp_path, [annotation(), annotation(category_id=9, iscrowd=1)])
    records, categories = load_coco_json(json_file, tmp_path)
    assert categories == {3: "early", 9: "late"}
    first, second = records
    assert first["file_name"] == str(tmp_path / "a.png")
    assert (first["image_id"], first["height"], first["width"]) == (1, HEIGHT, WIDTH)
    assert [listed(one) for one in first["annotations"]] == [
        {
            "bbox": [1.0, 1.0, 4.0, 6.0],
            "bbox_mode": BoxMode.XYWH_ABS,
            "segmentation": [TRIANGLE],
            "category_id": category,
            **({"iscrowd": 1} if category else {}),
        }
        for category in (0, 1)
    ]
    assert second["annotations"] == []


def test_coco_compresses_run_lengths(tmp_path: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:5, 3:9] = 1
    runs = [3 * HEIGHT + 2, *[3, HEIGHT - 3] * 6]
    runs[-1] = HEIGHT * WIDTH - sum(runs[:-1])
    compressed = mask_util.encode(np.asfortranarray(mask))["counts"].decode()
    size = [HEIGHT, WIDTH]
    both = [annotation(segmentation={"size": size, "counts": counts}, bbox=None) for counts in (runs, compressed)]
    records, _ = load_coco_json(write_coco(tmp_path, both), tmp_path)
    for instance in records[0]["annotations"]:
        np.testing.assert_array_equal(mask_util.decode(instance["segmentation"]), mask)
        assert instance["bbox"] == [3, 2, 6, 3]
        json.dumps(instance)


def test_coco_computes_the_box_of_polygons(tmp_path: Path) -> None:
    polygons = [TRIANGLE, [8, 2, 9, 2, 9, 10]]
    records, _ = load_coco_json(write_coco(tmp_path, [annotation(bbox=None, segmentation=polygons)]), tmp_path)
    assert records[0]["annotations"][0]["bbox"] == [1, 1, 8, 9]


def test_coco_counts_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    annotations = [
        annotation(segmentation=[[1, 1, 2, 2]]),
        annotation(segmentation=[]),
        annotation(segmentation=empty),
        annotation(bbox=[1, 1, 0, 6]),
        annotation(segmentation=[TRIANGLE, [1, 1, 2, 2]]),
        annotation(),
    ]
    with caplog.at_level(logging.WARNING):
        json_file = write_coco(tmp_path, [{**one, "id": number} for number, one in enumerate(annotations)])
        records, _ = load_coco_json(json_file, tmp_path)
    assert [listed(instance)["segmentation"] for instance in records[0]["annotations"]] == [[TRIANGLE], [TRIANGLE]]
    (message,) = caplog.messages
    for part in (
        "1 annotations with only degenerate polygons",
        "1 annotations without a mask",
        "1 annotations with an empty mask",
        "1 annotations with a box without area",
        "1 degenerate parts",
        "of 6 annotations",
    ):
        assert part in message


IMAGE = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}


@pytest.mark.parametrize(
    ("annotations", "fields", "said"),
    [
        ([], {"images": []}, ["field images", "at least one image"]),
        ([], {"images": None}, ["field images", "list"]),
        ([], {"images": [{**IMAGE, "width": 0}]}, ["image 1", "width"]),
        ([], {"images": [{**IMAGE, "height": None}]}, ["image 1", "field height"]),
        ([], {"images": [{"id": 1, "height": 3, "width": 3}]}, ["image 1", "field file_name", "missing"]),
        ([], {"images": [IMAGE, IMAGE]}, ["image 1", "field id", "twice"]),
        ([], {"images": [IMAGE, {**IMAGE, "id": 5, "file_name": "gone.png"}]}, ["image 5", "gone.png", "1 of 2"]),
        ([], {"categories": []}, ["field categories"]),
        ([], {"categories": [{"id": 1}]}, ["category 1", "field name"]),
        ([], {"annotations": {"1": annotation()}}, ["field annotations", "list"]),
        ([annotation(image_id=77)], {}, ["annotation 7", "field image_id", "77"]),
        ([annotation(category_id=1)], {}, ["annotation 7", "field category_id", "1", "3, 9"]),
        ([annotation(bbox=[1, 2, 3])], {}, ["annotation 7", "field bbox"]),
        ([annotation(bbox=[1, 2, 3, float("nan")])], {}, ["annotation 7", "field bbox"]),
        ([annotation(iscrowd="no")], {}, ["annotation 7", "field iscrowd"]),
        *(([annotation(area=area)], {}, ["annotation 7", "field area"]) for area in ("9", -1, True, float("nan"))),
        ([annotation(segmentation=TRIANGLE)], {}, ["annotation 7", "field segmentation"]),
        ([annotation(segmentation=[[*TRIANGLE, None, 1]])], {}, ["annotation 7", "field segmentation"]),
        (
            [annotation(segmentation={"size": [3, 3], "counts": "a"})],
            {},
            ["annotation 7", "size", f"[{HEIGHT}, {WIDTH}]"],
        ),
        ([annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [5]})], {}, ["annotation 7", "counts", "240"]),
    ],
)
def test_coco_errors_name_file_record_and_field(
    tmp_path: Path, annotations: list[dict[str, Any]], fields: dict[str, Any], said: list[str]
) -> None:
    json_file = write_coco(tmp_path, annotations, **fields)
    with pytest.raises(DatasetError) as error:
        load_coco_json(json_file, tmp_path)
    text = one_line(error)
    for part in (str(json_file), *said):
        assert part in text


@pytest.mark.parametrize(("content", "said"), [("{", "is no JSON"), ("[1]", "expected an object"), ("", "is no JSON")])
def test_coco_file_that_is_no_coco_json(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "coco.json").write_text(content)
    with pytest.raises(DatasetError, match=said) as error:
        load_coco_json(tmp_path / "coco.json", tmp_path)
    assert "coco.json" in one_line(error)


def test_coco_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none.json: no such file"):
        load_coco_json(tmp_path / "none.json", tmp_path)
    with pytest.raises(DatasetError, match="gone: no such folder"):
        load_coco_json(write_coco(tmp_path, []), tmp_path / "gone")


# ------------------------------------------------------------------------------------------------------------- exactly


def random_polygons(count: int) -> list[list[list[float]]]:
    """Of one to three parts, some overlapping, with as many digits as a float has, or none."""
    rng = np.random.default_rng(0)
    polygons = []
    for _ in range(count):
        parts = [(rng.uniform(-1, 1, 2 * rng.integers(3, 12)) * 9 + 8).tolist() for _ in range(rng.integers(1, 4))]
        polygons.append([[round(x) for x in part] if rng.random() < 0.2 else part for part in parts])
    return polygons


def test_coco_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    source = random_polygons(50)
    boxes = np.random.default_rng(1).uniform(0.1, 1e4, (50, 4)).tolist()
    annotations = [
        annotation(id=number, image_id=1 + number % 2, segmentation=polygons, bbox=box)
        for number, (polygons, box) in enumerate(zip(source, boxes, strict=True))
    ]
    records, _ = load_coco_json(write_coco(tmp_path, annotations), tmp_path)
    for image, record in enumerate(records):
        found = [listed(one) for one in record["annotations"]]
        assert [one["segmentation"] for one in found] == source[image::2]
        assert [one["bbox"] for one in found] == boxes[image::2]
        assert all(polygon.dtype == np.float64 for one in record["annotations"] for polygon in one["segmentation"])


def test_coco_copies_of_a_record_take_its_own_polygons_only(tmp_path: Path) -> None:
    annotations = [annotation(id=1, image_id=2), *(annotation(id=number) for number in range(2, 2000))]
    _, record = load_coco_json(write_coco(tmp_path, annotations), tmp_path)[0]
    assert len(pickle.dumps(record)) < 2000
    (polygon,) = copy.deepcopy(record)["annotations"][0]["segmentation"]
    assert polygon.base is None or polygon.base.nbytes < 2000
    assert polygon.tolist() == TRIANGLE


def test_coco_mixed_masks_stay_with_their_annotations(tmp_path: Path) -> None:
    """Polygons and RLEs are kept apart; what is left out in between must not shift them."""
    size = [HEIGHT, WIDTH]
    annotations = []
    for number in range(40):
        start = 3 * number
        masks = (
            {"size": size, "counts": [start, 5, HEIGHT * WIDTH - start - 5]},
            [[number, 1, number + 2, 1, number, 4]] * (1 + number % 3),
            [[1, 1, 2, 2]],
        )
        box = [number, 0, 1, 1]
        annotations.append(annotation(id=number, image_id=1 + number // 7 % 2, segmentation=masks[number % 3], bbox=box))
    records, _ = load_coco_json(write_coco(tmp_path, annotations), tmp_path)
    found = [one for record in records for one in record["annotations"]]
    assert sorted(one["bbox"][0] for one in found) == [number for number in range(40) if number % 3 != 2]
    for one in found:
        number = int(one["bbox"][0])
        if number % 3:
            assert listed(one)["segmentation"] == [[number, 1, number + 2, 1, number, 4]] * (1 + number % 3)
        else:
            mask = mask_util.decode(one["segmentation"]).ravel(order="F")
            assert np.flatnonzero(mask).tolist() == list(range(3 * number, 3 * number + 5))


def draw(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects([list(polygon) for polygon in segmentation], height, width))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("json_file", "images", "least"),
    [
        ("coco/annotations/instances_val2017.json", "coco/val2017", 400),
        (
            "livecell/annotations/LIVECell/livecell_coco_train.json",
            "livecell/images/livecell_train_val_images",
            2000,
        ),
    ],
)
def test_coco_real_masks_are_those_of_the_file(json_file: str, images: str, least: int) -> None:
    """Holes, parts, crowds and overlaps: each instance's pixels, box and image are what pycocotools makes of the file."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    if not (root / json_file).is_file():
        pytest.skip(f"no {root / json_file}")
    records, categories = load_coco_json(root / json_file, root / images)
    content = json.loads((root / json_file).read_text())
    source: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for entry in content["annotations"]:
        source[entry["image_id"]].append(entry)
    compared = 0
    for record in records:
        size = record["height"], record["width"]
        assert len(record["annotations"]) == len(source[record["image_id"]])
        for found, stated in zip(record["annotations"], source[record["image_id"]], strict=True):
            assert found["bbox"] == stated["bbox"] and found.get("iscrowd", 0) == stated["iscrowd"]
            assert found["area"] == stated["area"]
            assert list(categories)[found["category_id"]] == stated["category_id"]
            ours, theirs = draw(found["segmentation"], *size), draw(stated["segmentation"], *size)
            assert mask_util.area(ours) == mask_util.area(theirs) and mask_util.iou([ours], [theirs], [0]) == 1
            compared += 1
    assert compared > least


# ----------------------------------------------------------------------------------------------------------------- RLE


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (12, 20), (300, 211)])
@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.999])
def test_rle_as_pycocotools_has_it(shape: tuple[int, int], density: float) -> None:
    rng = np.random.default_rng(sum(shape))
    for _ in range(20):
        mask = (rng.random(shape) < density).astype(np.uint8)
        mask.flat[rng.integers(mask.size)] = 1
        rle = mask_util.encode(np.asfortranarray(mask))
        counts, lengths = check_rle({"size": list(shape), "counts": rle["counts"].decode()}, *shape)
        assert counts == rle["counts"].decode()
        np.testing.assert_array_equal(np.repeat(np.arange(len(lengths)) % 2, lengths), mask.ravel(order="F"))
        assert box_of_runs(lengths, shape[0]) == mask_util.toBbox(rle).tolist()
        assert check_rle({"size": list(shape), "counts": lengths.tolist()}, *shape)[0] == counts


def test_rle_with_empty_runs() -> None:
    """As no encoder writes them, but valid."""
    for runs, box in (
        ([0, 0, 14, 2, 224], [1, 2, 1, 2]),
        ([14, 2, 0, 2, 222], [1, 2, 1, 4]),
        ([11, 1, 0, 1, 227], [0, 0, 2, 12]),
    ):
        _, lengths = check_rle({"size": [HEIGHT, WIDTH], "counts": runs}, HEIGHT, WIDTH)
        assert box_of_runs(lengths, HEIGHT) == box


def test_rle_random_strings_are_refused_or_add_up() -> None:
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(3000):
        text = "".join(map(chr, rng.integers(48, 112 if rng.random() < 0.5 else 64, rng.integers(1, 9))))
        try:
            _, lengths = check_rle({"size": [3, 5], "counts": text}, 3, 5)
        except ValueError:
            continue
        accepted += 1
        assert lengths.min() >= 0 and lengths.sum() == 15
        assert mask_util.decode({"size": [3, 5], "counts": text}).sum() == lengths[1::2].sum()
    assert accepted > 10


@pytest.mark.parametrize("text", ["", "o", "0o", "ooooooo0", "\x2f", "p", "0\n", "é", "٣"])
def test_rle_malformed_strings(text: str) -> None:
    with pytest.raises(ValueError):
        decode_counts(text)


@pytest.mark.parametrize(
    "counts", ["", "oooo", "?", "é", "1", [], [240.0], [True, 239], ["240"], [-1, 241], [10**30], None, 5, [[240]]]
)
def test_coco_refuses_corrupt_run_lengths(tmp_path: Path, counts: Any) -> None:
    json_file = write_coco(tmp_path, [annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": counts})])
    with pytest.raises(DatasetError, match="annotation 7, field segmentation.counts: expected .* add up to 240"):
        load_coco_json(json_file, tmp_path)


def test_coco_refuses_run_lengths_of_more_pixels_than_can_be_counted(tmp_path: Path) -> None:
    image = {**IMAGE, "height": 100_000, "width": 100_000}
    rle = {"size": [100_000, 100_000], "counts": [0, 10**10]}
    with pytest.raises(DatasetError, match="annotation 7, field segmentation: RLE of 10000000000 pixels"):
        load_coco_json(write_coco(tmp_path, [annotation(segmentation=rle)], images=[image]), tmp_path)


# --------------------------------------------------------------------------------------------------- names, ids, bounds


@pytest.mark.parametrize("file_name", ["/etc/passwd", "../coco/a.png", "sub/../../a.png", "..", ".", "", "a\0.png"])
def test_coco_images_stay_below_their_folder(tmp_path: Path, file_name: str) -> None:
    json_file = write_coco(tmp_path / "coco", [], images=[{**IMAGE, "file_name": file_name}])
    with pytest.raises(DatasetError, match="image 1, field file_name: .*; expected a path below") as error:
        load_coco_json(json_file, tmp_path / "coco")
    assert str(json_file) in one_line(error)


@pytest.mark.parametrize("file_name", ["a\nb.png", "x" * 300, "x" * 5000, "a.png/b.png", "sub"])
def test_coco_images_that_are_no_files(tmp_path: Path, file_name: str) -> None:
    (tmp_path / "sub").mkdir()
    json_file = write_coco(tmp_path, [], images=[{**IMAGE, "file_name": file_name}])
    with pytest.raises(DatasetError, match="image 1, field file_name: .*is not on disk") as error:
        load_coco_json(json_file, tmp_path)
    assert len(one_line(error)) < 1000


def test_coco_images_in_folders_of_their_own(tmp_path: Path) -> None:
    save_image(tmp_path / "x/y/c.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "x/y/c.png")
    names = ["x/y/c.png", "./a.png", "link.png"]
    images = [{**IMAGE, "id": number, "file_name": name} for number, name in enumerate(names)]
    records, _ = load_coco_json(write_coco(tmp_path, [], images=images), tmp_path)
    assert [record["file_name"] for record in records] == [str(tmp_path / name) for name in names]


def test_coco_finds_images_where_it_is_told_to(tmp_path: Path) -> None:
    json_file = write_coco(tmp_path, [])
    (tmp_path / "a.png").rename(tmp_path / "other.png")
    records, _ = load_coco_json(json_file, tmp_path, lambda root, name: root / name.replace("a.png", "other.png"))
    assert records[0]["file_name"] == str(tmp_path / "other.png")


def test_coco_ids_of_annotations_that_are_there_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    annotations = [annotation(id=one) for one in (1, 2, 1, "1", 1)]
    without = [{key: value for key, value in annotation().items() if key != "id"}] * 2
    with caplog.at_level(logging.WARNING):
        records, _ = load_coco_json(write_coco(tmp_path, [*annotations, *without]), tmp_path)
    assert len(records[0]["annotations"]) == 7
    (message,) = caplog.messages
    assert "2 of 7 annotations have the id of another" in message


def test_coco_refuses_coordinates_that_no_image_has(tmp_path: Path) -> None:
    for fields in ({"segmentation": [[*TRIANGLE, 1e7, 1]]}, {"bbox": [1, 1, 2e6, 3]}, {"bbox": [-1e300, 1, 2, 3]}):
        field = next(iter(fields))
        with pytest.raises(DatasetError, match=f"annotation 7, field {field}: .*expected at most 1000000 pixels"):
            load_coco_json(write_coco(tmp_path, [annotation(**fields)]), tmp_path)


def test_coco_box_stays_as_the_file_has_it(tmp_path: Path) -> None:
    box = [-3.5, 100, 2.25, 7]
    records, _ = load_coco_json(write_coco(tmp_path, [annotation(bbox=box)]), tmp_path)
    assert records[0]["annotations"][0]["bbox"] == box


def test_coco_area_is_the_one_that_the_file_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed, from the cache, in a subset, and in a subset that was written: what the evaluator goes by."""
    monkeypatch.setattr(coco_cache, "SMALLEST", 1)
    json_file = write_coco(tmp_path / "set", [annotation(area=324.5), annotation(id=8), annotation(id=9, area=None)])
    name = f"areas_{uuid4().hex}"
    register_cell_dataset(name, tmp_path / "set", json_file)
    drawn = float(mask_util.area(draw([TRIANGLE], HEIGHT, WIDTH)))
    write_subset(f"{name}_100pct", tmp_path / "written.json")
    written, _ = load_coco_json(tmp_path / "written.json", tmp_path / "set")
    for records in (
        get_records(name),
        load_coco_json(json_file, tmp_path / "set")[0],
        get_records(f"{name}_100pct"),
        written,
    ):
        assert TrueCells.of(records[0], name).areas.tolist() == [324.5, drawn, drawn]
        assert TrueCells.of(records[1], name).areas.tolist() == []
    assert ["area" in one for one in get_records(name)[0]["annotations"]] == [True, False, False]
