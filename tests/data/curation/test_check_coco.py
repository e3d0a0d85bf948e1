"""Each kind of defect of a COCO file, planted in a set that has none."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_util

from cupre_d2.data.curation.checked_splits import splits_of_path
from cupre_d2.data.curation.checking import check_splits
from cupre_d2.data.curation.cleaning import fix
from cupre_d2.data.curation.findings import KINDS, Finding, exit_code

HEIGHT, WIDTH = 60, 80
CODES = {"note": 0, "warning": 1, "error": 2}


def findings_of(coco: Any, **options: Any) -> list[Finding]:
    return check_splits(splits_of_path(coco.write()), **options)


def kinds_of(coco: Any) -> dict[str, int]:
    return dict(Counter(finding.kind for finding in findings_of(coco)))


def put(field: str, value: Any, which: str = "annotations", index: int = 5) -> Callable[[Any], None]:
    return lambda coco: coco.content[which][index].update({field: value})


def remove(field: str, which: str = "annotations", index: int = 5) -> Callable[[Any], None]:
    return lambda coco: coco.content[which][index].pop(field)


def put_polygons(*polygons: list[float]) -> Callable[[Any], None]:
    return put("segmentation", list(polygons))


def rle(runs: list[int], size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"size": list(size), "counts": runs}


def repeat(which: str, index: int = 0, **fields: Any) -> Callable[[Any], None]:
    return lambda coco: coco.content[which].append({**coco.content[which][index], **fields})


def spoil_image(change: Callable[[Path], object]) -> Callable[[Any], None]:
    return lambda coco: (change(coco.folder / "A172_2.png"), None)[1]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-400])


def add_image_with(cells: int, images: int = 4) -> Callable[[Any], None]:
    """Images of 40 cells each, and one of few; ids from 10."""

    def plant(coco: Any) -> None:
        for image in range(10, 11 + images):
            Image.fromarray(np.full((HEIGHT, WIDTH), image, np.uint8)).save(coco.folder / f"BV2_{image}.png")
            coco.content["images"].append({"id": image, "file_name": f"BV2_{image}.png", "height": HEIGHT, "width": WIDTH})
            for cell in range(cells if image == 10 else 40):
                x, y = 1 + 9 * (cell % 8), 1 + 9 * (cell // 8)
                coco.add_cell(image, [x, y, x + 5, y, x + 5, y + 5, x, y + 5])

    return plant


def off_by_one(coco: Any) -> None:
    for annotation in coco.content["annotations"]:
        annotation["category_id"] = 0


# The first cell of the first image is the square from 2, 2 to 12, 12.
DEFECTS: list[tuple[str, Callable[[Any], Any]]] = [
    ("unusable file", lambda coco: coco.content.update(annotations={})),
    ("unusable file", lambda coco: coco.content.pop("images")),
    ("unusable entry", lambda coco: coco.content["annotations"].append(7)),
    ("unusable entry", put("category_id", "1")),
    ("unusable entry", put("iscrowd", 2)),
    ("unusable entry", remove("image_id")),
    ("unusable entry", remove("file_name", "images", 1)),
    ("unusable entry", lambda coco: coco.content["categories"].append({"id": 2})),
    ("file outside the folder", put("file_name", "../images/A172_2.png", "images", 1)),
    ("file outside the folder", put("file_name", "/A172_2.png", "images", 1)),
    ("missing image", put("file_name", "gone.png", "images", 1)),
    ("missing image", put("file_name", "n" * 300, "images", 1)),
    ("unreadable image", spoil_image(truncate)),
    ("unreadable image", spoil_image(lambda file: file.write_bytes(b"no image"))),
    ("size mismatch", put("height", HEIGHT + 1, "images", 1)),
    ("size mismatch", put("width", None, "images", 1)),
    ("size mismatch", put("width", 10**12, "images", 1)),
    ("duplicate image id", put("id", 1, "images", 2)),
    ("duplicate annotation id", put("id", 1)),
    ("missing annotation id", remove("id")),
    ("duplicate category id", repeat("categories", name="other")),
    ("duplicate category name", repeat("categories", id=2)),
    ("unknown image id", put("image_id", 99)),
    ("unknown category id", put("category_id", 2)),
    ("category ids off by one", off_by_one),
    ("malformed mask", put("segmentation", "polygon")),
    ("malformed mask", put("segmentation", False)),
    ("malformed mask", put_polygons([1, 2, 3, 4, 5])),
    ("malformed mask", put_polygons([1, 2, 3, 4, 5, "6"])),
    ("malformed mask", put_polygons([1, 2, 3, 4, 5, float("nan")])),
    ("malformed mask", put("segmentation", rle([10, 10]))),
    ("malformed mask", put("segmentation", rle([10, HEIGHT * WIDTH - 10], (WIDTH, HEIGHT)))),
    ("malformed mask", put("segmentation", {"size": [HEIGHT, WIDTH], "counts": "a[b"})),
    ("malformed box", put("bbox", [1, 2, 3])),
    ("malformed box", put("bbox", [1, 2, 3, "4"])),
    ("malformed box", put("bbox", [1, 2, 3, float("inf")])),
    ("malformed area", put("area", -1)),
    ("malformed area", put("area", "100")),
    ("malformed area", put("area", float("nan"))),
    ("repeated file", repeat("images", id=50)),
    ("empty mask", put("segmentation", [])),
    ("empty mask", remove("segmentation")),
    ("empty mask", put("segmentation", rle([HEIGHT * WIDTH]))),
    ("empty mask", put_polygons([5.1, 5.1, 5.2, 5.1, 5.2, 5.2])),
    ("degenerate polygon", put_polygons([2, 2, 12, 12])),
    ("degenerate polygon", put_polygons([2, 2, 7, 7, 12, 12])),
    ("polygon outside the image", lambda coco: coco.add_cell(1, [-9, 20, 1, 20, 1, 28, -9, 28]).update(bbox=[0, 20, 1, 8])),
    ("polygon outside the image", lambda coco: coco.add_cell(1, [1e300, 2, 8e9, 9, 1e300, 1e300]).pop("bbox")),
    ("box outside the image", put("bbox", [-2, 2, 14, 10], index=0)),
    ("box outside the image", put("bbox", [70, 50, 10, 12])),
    ("box without area", put("bbox", [2, 2, 0, 10], index=0)),
    ("box contradicts mask", put("bbox", [2, 2, 10, 12.5], index=0)),
    ("double contour", lambda coco: coco.add_cell(1, [2, 2, 12, 2, 12, 11, 2, 11])),
    ("overlap", lambda coco: coco.add_cell(1, [2, 2, 12, 2, 12, 8, 2, 8])),
    ("few cells", add_image_with(cells=3)),
    ("few cells", add_image_with(cells=0)),
    ("no cell", add_image_with(cells=0, images=0)),
    (
        "unusual category ids",
        lambda coco: (put("id", 5, "categories", 0)(coco), [put("category_id", 5, index=i)(coco) for i in range(36)]),
    ),
    ("category without instances", lambda coco: coco.content["categories"].append({"id": 2, "name": "other"})),
]
# What these cannot but bring along.
ALONGSIDE = {
    "unusable file": {"unusable file", "unknown image id", "no cell", "category without instances"},
    "unusable entry": {"unknown image id"},
    "duplicate image id": {"unknown image id", "no cell"},
    "duplicate category name": {"category without instances"},
    "repeated file": {"no cell"},
}


@pytest.mark.parametrize(("kind", "plant"), DEFECTS, ids=[f"{kind}-{index}" for index, (kind, _) in enumerate(DEFECTS)])
def test_planted_defect(make_set: Any, kind: str, plant: Callable[[Any], Any]) -> None:
    coco = make_set()
    plant(coco)
    findings = findings_of(coco)
    planted = [finding for finding in findings if finding.kind == kind]
    assert planted and {finding.kind for finding in findings} <= {kind} | ALONGSIDE.get(kind, set())
    assert {finding.severity for finding in planted} == {KINDS[kind]}
    assert exit_code(planted) == CODES[KINDS[kind]]
    for finding in findings:
        assert "\n" not in str(finding) and str(coco.file) in str(finding)


def test_every_kind_is_planted_somewhere() -> None:
    assert set(KINDS) - {kind for kind, _ in DEFECTS} == {"leak", "shared images", "repeated content"}


def test_clean_set(make_set: Any) -> None:
    coco = make_set()
    coco.content["annotations"][3]["segmentation"] = rle([HEIGHT * 59 + 2, 10, HEIGHT * WIDTH - HEIGHT * 59 - 12])
    coco.content["annotations"][3]["bbox"] = [59, 2, 1, 10]
    coco.add_cell(1, [2, 2, 12, 2, 12, 6, 2, 6])["iscrowd"] = 1
    coco.add_cell(1, [0, -0.9, 1, -0.9, 1, 1, 0, 1])
    assert findings_of(coco) == []


def test_where_and_what(make_set: Any) -> None:
    coco = make_set()
    put("bbox", [1, 2, 3])(coco)
    (finding,) = findings_of(coco)
    assert (finding.file, finding.record) == (coco.file, "image 1 (A172_1.png), annotation 6")
    assert str(finding) == (
        f"error: malformed box: {coco.file}: image 1 (A172_1.png), annotation 6: "
        "field bbox: [1, 2, 3]; expected [x, y, width, height]"
    )


def test_overlap_threshold_and_categories(make_set: Any) -> None:
    coco = make_set()
    coco.add_cell(1, [2, 8, 12, 8, 12, 17, 2, 17])
    shared = 10 * 4 / 90
    assert findings_of(coco, overlap=shared + 0.02) == []
    (finding,) = findings_of(coco, overlap=shared - 0.02)
    assert (finding.kind, finding.record) == ("overlap", "image 1 (A172_1.png), annotation 37")
    assert "annotation 1 share 44% of the smaller one" in finding.message
    coco.content["categories"].append({"id": 2, "name": "nucleus"})
    coco.content["annotations"][-1]["category_id"] = 2
    assert findings_of(coco, overlap=0.1) == []


def test_overlaps_against_full_masks(make_set: Any) -> None:
    rng = np.random.default_rng(0)
    coco = make_set(images=1, cells=0)
    for _ in range(60):
        centre, radii = rng.uniform(8, 52, 2), rng.uniform(2, 12, 12)
        angles = np.arange(12) * np.pi / 6
        polygon = centre[:, None] + radii * [np.cos(angles), np.sin(angles)]
        coco.add_cell(1, polygon.T.ravel().clip(0, HEIGHT).tolist())
    found = {frozenset((f.record.split()[-1], f.message.split()[2])) for f in findings_of(coco) if f.kind == "overlap"}
    masks = {
        str(a["id"]): mask_util.decode(mask_util.merge(mask_util.frPyObjects(a["segmentation"], HEIGHT, WIDTH)))
        for a in coco.content["annotations"]
    }
    expected = set()
    for one, mask in masks.items():
        for other, second in masks.items():
            shared = (mask & second).sum()
            double = shared / (mask | second).sum() >= 0.8
            if one < other and not double and shared > 0.5 * min(mask.sum(), second.sum()):
                expected.add(frozenset((one, other)))
    assert found == expected and len(expected) > 20


def test_double_of_a_double_is_reported_once(make_set: Any) -> None:
    coco = make_set()
    for bottom in (11.0, 10.5):
        coco.add_cell(1, [2, 2, 12, 2, 12, bottom, 2, bottom])
    assert [finding.record.split()[-1] for finding in findings_of(coco)] == ["37", "38"]


def test_few_cells_are_told_by_cell_type(make_set: Any) -> None:
    coco = make_set(images=8)
    add_image_with(cells=5)(coco)
    assert kinds_of(coco) == {}
    add_image_with(cells=3)(coco := make_set(images=8))
    (finding,) = findings_of(coco)
    assert "3 annotations, where images alike have 40" in finding.message


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"{}", b"null", b'{"images": 1}', b"\xff\xfe", b"[" * 100_000, b'{"a":' + b"[" * 100_000]
)
def test_no_coco_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    findings = check_splits(splits_of_path(file))
    assert {finding.kind for finding in findings} == {"unusable file"} and exit_code(findings) == 2


def test_file_with_nan_is_read_all_the_same(make_set: Any) -> None:
    coco = make_set()
    coco.content["info"]["year"] = float("nan")
    assert kinds_of(coco) == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from([0, 1, 1e30, -5, 2**70]),
    lambda children: st.lists(children, max_size=8) | st.dictionaries(st.sampled_from(["size", "counts", "id"]), children),
    max_leaves=12,
)
SPOTS = st.sampled_from(
    [
        *(("annotations", field) for field in ("id", "image_id", "category_id", "bbox", "area", "segmentation", "iscrowd")),
        *(("images", field) for field in ("id", "file_name", "height", "width")),
        ("categories", "id"),
        ("categories", "name"),
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(st.lists(st.tuples(SPOTS, st.integers(0, 40), JSON), min_size=1, max_size=4), st.booleans())
def test_anything_in_any_field_is_no_other_exception(
    make_set: Any, tmp_path_factory: pytest.TempPathFactory, spoiled: list[Any], as_polygon: bool
) -> None:
    coco = make_set()
    for (which, field), index, value in spoiled:
        entries = coco.content[which]
        entries[index % len(entries)][field] = [value] if field == "segmentation" and as_polygon else value
    splits = splits_of_path(coco.write())
    findings = check_splits(splits)
    out = tmp_path_factory.mktemp("out")
    fix(splits, findings, out)
    assert exit_code(check_splits(splits_of_path(out)) if (out / "train.json").exists() else []) < 2
