"""The real samples, and LIVECell's known defects planted in its sample."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cupre_d2.data.catalog import datasets_root
from cupre_d2.data.curation.checked_splits import splits_of, splits_of_path
from cupre_d2.data.curation.checking import check_splits
from cupre_d2.data.curation.cleaning import fix
from cupre_d2.data.curation.findings import exit_code

pytestmark = pytest.mark.real_data


def need(path: str) -> Path:
    folder = datasets_root() / path
    if not folder.exists():
        pytest.skip(f"no {folder}")
    return folder


@pytest.mark.parametrize(
    ("name", "path", "code"),
    [
        ("livecell", "livecell/annotations", 1),
        ("coco_2017_val", "coco/annotations", 1),
        ("sstem", "sstem/stack1", 0),
        ("tnbc", "tnbc/Slide_01", 1),
        ("bbbc005", "bbbc005", 0),
        ("rosette", "rosette/train", 0),
        ("bbbc038", "bbbc038/stage1_train", 1),
        ("ctc_dic_c2dh_hela", "ctc/DIC-C2DH-HeLa", 0),
        ("ctc_fluo_n2dl_hela", "ctc/Fluo-N2DL-HeLa", 0),
        ("ctc_phc_c2dl_psc", "ctc/PhC-C2DL-PSC", 0),
    ],
)
def test_samples(name: str, path: str, code: int) -> None:
    need(path)
    assert exit_code(check_splits(splits_of(name))) == code


@pytest.fixture()
def livecell(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The sample's two splits, to plant defects in; images beside them."""
    folder = need("livecell/images/livecell_train_val_images")
    (tmp_path / "images").mkdir()
    for file in folder.iterdir():
        os.symlink(file, tmp_path / "images" / file.name)
    annotations = need("livecell/annotations/LIVECell")
    return {split: json.loads((annotations / f"livecell_coco_{split}.json").read_text()) for split in ("train", "val")}


def test_known_defects_of_livecell(livecell: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    train, val = livecell["train"], livecell["val"]
    repeated, leaked, bare = train["images"][0], val["images"][0], train["images"][8]
    # A second entry of the same file, annotated anew.
    train["images"].append({**repeated, "id": 1})
    for split, image, number in ((train, repeated, 10_000_000), (train, leaked, 20_000_000)):
        origin = train if image is repeated else val
        new_id = 1 if image is repeated else 2
        copies = [dict(a) for a in origin["annotations"] if a["image_id"] == image["id"]][:300]
        split["annotations"] += [{**copy, "id": number + i, "image_id": new_id} for i, copy in enumerate(copies)]
    train["images"].append({**leaked, "id": 2})
    # Nearly un-annotated.
    of_bare = [a for a in train["annotations"] if a["image_id"] == bare["id"]]
    train["annotations"] = [a for a in train["annotations"] if a["image_id"] != bare["id"]] + of_bare[:4]
    # A contour drawn twice, the second half a pixel beside the first.
    double = json.loads(json.dumps(next(a for a in val["annotations"] if a["image_id"] == val["images"][1]["id"])))
    double["id"] = 5
    double["segmentation"] = [(np.array(double["segmentation"][0]) + 0.5).tolist()]
    double["bbox"][0] += 0.5
    double["bbox"][1] += 0.5
    val["annotations"].append(double)
    for split, content in livecell.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    splits = splits_of_path(tmp_path)
    findings = check_splits(splits)
    found = {(f.kind, f.split, f.record.split(" (")[0]) for f in findings if f.kind != "overlap"}
    assert found == {
        ("repeated file", "train", "image 1"),
        ("leak", "train", "image 2"),
        ("few cells", "train", f"image {bare['id']}"),
        ("double contour", "val", f"image {double['image_id']}"),
    }
    fix(splits, findings, tmp_path / "out")
    left = check_splits(splits_of_path(tmp_path / "out"))
    assert {finding.kind for finding in left} == {"overlap", "few cells"}
    cleaned = json.loads((tmp_path / "out/train.json").read_text())
    assert cleaned["images"] == train["images"][:10]
    kept = {image["id"] for image in cleaned["images"]}
    assert cleaned["annotations"] == [a for a in train["annotations"] if a["image_id"] in kept]
