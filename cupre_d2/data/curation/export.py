"""Writing records as a COCO instances file."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from cupre_d2.data.catalog import Record
from cupre_d2.data.curation.instance_checks import read_mask, to_box
from cupre_d2.data.few_shot import get_records
from cupre_d2.errors import DatasetError
from cupre_d2.files import write_whole

NOT_NORMALIZED = "register it with normalize=False, as the pixels of its images are taken as they are"


def write_subset(name: str, file: Path) -> str:
    """Writes a registered data set, as a rule a few-shot subset, as a COCO file of its own.

    Returns a line that says what was written, which folder its file names are relative to, and how to register it; errors
    as of `few_shot.get_records` and `write_coco_json`.
    """
    records = get_records(name)
    root = write_coco_json(records, MetadataCatalog.get(name).thing_classes, file)
    instances = sum(len(record["annotations"]) for record in records)
    line = f"{file}: {len(records)} images, {instances} instances of {name}; file names are relative to {root}"
    return line + ("; " + NOT_NORMALIZED if any(is_raw(record) for record in records) else "")


def is_raw(record: Mapping[str, Any]) -> bool:
    """Whether the record says that INPUT.PERCENTILES does not stretch its contrast, which COCO's format cannot."""
    return "percentiles" in record and not record["percentiles"]


def write_coco_json(records: Sequence[Record], classes: Sequence[str], file: Path) -> Path:
    """Writes annotated records of Detectron2's standard form as a COCO instances file.

    Polygons stay polygons and RLE stays RLE, a record's cell_type becomes its image's; an annotation without an
    area gets that of its mask in pixels; category ids count from 1.

    Args:
        records: as the catalogue returns them.
        classes: class names in order of category id.
        file: the JSON to write; it appears whole or not at all.

    Returns:
        The folder that the file names in it are relative to: the innermost one that holds all images.

    Raises:
        DatasetError: a record has no annotations, is a page of a stack or some channels of a file (which COCO's format
            cannot say), or an annotation has no mask; or the file cannot be written.
    """
    root = Path(os.path.commonpath([Path(record["file_name"]).parent for record in records]))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(records, start=1):
        images.append({"id": image_id, **_image(record, root)})
        for index, annotation in enumerate(record["annotations"]):
            try:
                described = to_coco(annotation, record["height"], record["width"])
            except ValueError as error:
                raise DatasetError(f"{record['file_name']}: annotation {index}, {error}") from error
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **described})
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    content = json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda stream: stream.write(content))
    except OSError as error:
        raise DatasetError(f"{file}: cannot be written ({error.strerror})") from error
    return root


def _image(record: Record, root: Path) -> dict[str, Any]:
    if "annotations" not in record:
        raise DatasetError(f"{record['file_name']}: record without annotations; expected an annotated data set")
    page, channels = record.get("page"), record.get("channels")
    if page is not None:
        raise DatasetError(f"{record['file_name']}: page {page} of a stack; expected one image a file, as COCO has it")
    if channels is not None:
        said = f"channels {list(channels)} of a file; expected all of them, as COCO has it"
        raise DatasetError(f"{record['file_name']}: {said}")
    return {
        "file_name": Path(record["file_name"]).relative_to(root).as_posix(),
        "height": record["height"],
        "width": record["width"],
        **({"cell_type": record["cell_type"]} if "cell_type" in record else {}),
    }


def to_coco(annotation: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """A record's annotation as COCO has it, without ids; a missing area or box is that of the mask.

    Raises:
        ValueError: it has no mask, a malformed one, or neither box nor a pixel; the message names the field.
    """
    segmentation, area = annotation.get("segmentation"), annotation.get("area")
    mask = read_mask(segmentation, height, width)
    for kind, message in mask.problems:
        if not segmentation or kind == "malformed mask" or (annotation.get("bbox") is None and mask.extent is None):
            raise ValueError(message)
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        plain: Any = {"size": [height, width], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    else:
        plain = [np.asarray(polygon).tolist() for polygon in segmentation or ()]
    if annotation.get("bbox") is None:
        box = to_box(mask.extent or ())
    else:
        box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
    return {
        "category_id": annotation["category_id"] + 1,
        "bbox": box,
        "area": mask.area if area is None else area,
        "iscrowd": annotation.get("iscrowd", 0),
        "segmentation": plain,
    }
