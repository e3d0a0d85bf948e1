"""A cleaned copy of a data set."""

import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import msgspec
import numpy as np
from detectron2.data import MetadataCatalog

from cupre_d2.data.curation.checked_splits import CheckedSplit
from cupre_d2.data.curation.contents import Contents, ImageEntry, read_contents
from cupre_d2.data.curation.export import NOT_NORMALIZED, is_raw, to_coco
from cupre_d2.data.curation.findings import Collector, Finding
from cupre_d2.data.curation.instance_checks import clip, is_degenerate, is_outside, points_of, read_mask, to_box
from cupre_d2.data.image_files import image_size
from cupre_d2.errors import DatasetError

_DROPPED_IMAGES = (
    "unusable entry",
    "file outside the folder",
    "missing image",
    "unreadable image",
    "repeated file",
    "repeated content",
    "leak",
)
# Entries that belong to no image.
_DROPPED_ELSEWHERE = ("unusable entry", "unknown image id", "duplicate category id")
# Findings about an annotation that leave nothing to repair.
_DROPPED = ("unusable entry", "unknown category id", "malformed mask", "empty mask", "double contour")
_OF_MASK = ("degenerate polygon", "polygon outside the image")
_OF_BOX = ("malformed box", "box without area", "box outside the image", "box contradicts mask")
_OF_AREA = "malformed area"
_REPAIRED = (*_OF_MASK, *_OF_BOX, _OF_AREA)
_LEFT = ("overlap", "few cells", "duplicate category name", "leak", "unusable file")


@dataclass
class _Copy:
    """What a split becomes: entries of a COCO file, the images, and a line for each change."""

    images: list[dict[str, Any]] = field(default_factory=list)
    # By position in the split.
    annotations: dict[int, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)

    def note(self, record: str, change: str) -> None:
        self.lines.append(f"{record}: {change}")
        self.changes[change] += 1


def fix(splits: Sequence[CheckedSplit], findings: Sequence[Finding], out: Path) -> list[str]:
    """Writes a cleaned copy of the splits; the originals are not touched.

    Each split becomes <out>/<name>.json, in COCO's format, with its images in <out>/images; one without instances
    becomes the folder <out>/<name> of its images. Images are hard links where the file system can, else copies.
    A record's cell_type becomes its image's.

    Left out are: images that are missing, cannot be read, occur twice (the one with most annotations stays), or leak
    into validation or test (the held-out one stays); annotations without a usable mask, double contours (the larger
    stays), and those whose image or category is unknown. Repaired are: polygons that reach beyond the image, boxes, image
    sizes, and ids that are missing, used twice, or off by one. Overlaps, images with few cells, and images common to
    validation and test are left, and counted: what is right about them cannot be told from the data.

    Args:
        splits: the splits.
        findings: what `check_splits` found in them.
        out: a new or an empty folder.

    Returns:
        A line for each change, then one for each kind of change with its count, and one for what was left.

    Raises:
        DatasetError: `out` is not empty or cannot be written, or a split has pages of stacks or some channels of files,
            which COCO's format cannot say.
    """
    out = check_empty(out)
    contents = [read_contents(split, Collector(split.name, split.file)) for split in splits]
    for image in (image for one in contents for image in one.images):
        part = "a page of a stack" if image.page is not None else "some channels" if image.channels is not None else None
        if part:
            raise DatasetError(f"{image.file}: {image.name}: {part}; expected one image a file, as COCO has it")
    lines: list[str] = []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            names: dict[str, Path] = {}
            for one in contents:
                lines += _fix(one, [finding for finding in findings if finding.split == one.split.name], new, names)
            new.rename(out)
    except OSError as error:
        raise DatasetError(f"{out}: cannot be written ({error})") from error
    return lines


def check_empty(out: Path) -> Path:
    """The absolute path of a new or an empty folder; raises DatasetError for another."""
    out = out.expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out}: expected a new or an empty folder")
    return out


def _fix(contents: Contents, findings: Sequence[Finding], out: Path, names: dict[str, Path]) -> Iterator[str]:
    split = contents.split
    copy = _Copy()
    annotated = any(image.annotations is not None for image in contents.images)
    of_image, of_annotation = _by_position(findings)
    folders = [image.file.parent for image in contents.images if image.file is not None]
    root = os.path.commonpath(folders) if folders else ""
    for index, image in enumerate(contents.images):
        kinds = of_image[index] - ({"leak"} if split.held_out else set())
        dropped = next((kind for kind in _DROPPED_IMAGES if kind in kinds), None)
        if dropped:
            copy.note(f"{image.name} with {len(image.annotations or ())} annotations", f"image left out ({dropped})")
            continue
        assert image.file is not None
        # Those of a COCO JSON are kept.
        file_name = PurePath(image.entry["file_name"]).as_posix()
        if split.json_file is None:
            file_name = image.file.relative_to(root).as_posix()
        # Splits share a folder; where two files have one name, the second goes to a sub-folder.
        while annotated and names.setdefault(file_name, image.file) != image.file:
            file_name = f"{split.name}/{file_name}"
        copy.files[file_name] = image.file
        if image.annotations is not None:
            entry = _image_entry(contents, image, index, file_name, of_image[index], copy)
            copy.images.append(entry)
            _fix_annotations(contents, image, entry, of_annotation, copy)
    usable = bool(copy.files) and (split.json_file is None or bool(contents.categories))
    if usable:
        _link_all(copy.files, out / ("images" if annotated else split.name))
    if usable and annotated:
        _write_json(contents, findings, copy, out / f"{split.name}.json")
    yield from (f"{split.name}: {line}" for line in copy.lines)
    yield from (f"{count:>8,} {split.name}: {change}" for change, count in copy.changes.items())
    left = Counter(finding.kind for finding in findings if finding.kind in _LEFT)
    if not split.held_out:
        left.pop("leak", None)
    yield from (f"{count:>8,} {split.name}: left as it is ({kind})" for kind, count in left.items())
    if not usable:
        yield f"{split.name}: nothing written, as no image or no category of it can be used"
    elif any(image.entry.keys() & {"count", "label"} for image in contents.images):
        yield f"{split.name}: the images only; COCO's format has no counts and no labels of images"
    if usable and any(is_raw(split.fields(image.name) | image.entry) for image in contents.images):
        yield f"{split.name}: {NOT_NORMALIZED}"


def _by_position(findings: Sequence[Finding]) -> tuple[dict[int, set[str]], dict[int, set[str]]]:
    """Kinds of finding about each image itself, and about each annotation."""
    of_image, of_annotation = defaultdict[int, set[str]](set), defaultdict[int, set[str]](set)
    for finding in findings:
        if finding.annotation is not None:
            of_annotation[finding.annotation].add(finding.kind)
        elif finding.image is not None:
            of_image[finding.image].add(finding.kind)
    return of_image, of_annotation


def _image_entry(
    contents: Contents, image: ImageEntry, index: int, file_name: str, kinds: set[str], copy: _Copy
) -> dict[str, Any]:
    assert image.file is not None
    height, width = image_size(image.file)
    fields = contents.split.fields(file_name) | image.entry
    cell_type = {key: fields[key] for key in ("cell_type",) if key in fields}
    if "size mismatch" in kinds:
        copy.note(image.name, "height and width set to those of the file")
    if contents.split.json_file is None:
        return {"id": index + 1, "file_name": file_name, "height": height, "width": width, **cell_type}
    entry = {**cell_type, **image.entry, "file_name": file_name, "height": height, "width": width}
    if "duplicate image id" in kinds:
        used = [other.entry["id"] for other in contents.images if other.entry] + [entry["id"] for entry in copy.images]
        entry["id"] = max((one for one in used if isinstance(one, int)), default=0) + 1
        copy.note(image.name, "given an id of its own, without annotations, which stay with the first of its old id")
    return entry


def _fix_annotations(
    contents: Contents, image: ImageEntry, entry: dict[str, Any], of_annotation: dict[int, set[str]], copy: _Copy
) -> None:
    size = entry["height"], entry["width"]
    of_record = contents.split.json_file is None
    for number, position in enumerate(image.annotations or ()):
        kinds = of_annotation.get(position, set())
        annotation: Any = contents.annotations[position]
        if not kinds.isdisjoint((*_DROPPED, *_REPAIRED)):
            decoded = {} if "unusable entry" in kinds else contents.annotation(position)
            annotation, done = _repair(decoded, kinds, *size)
            copy.note(f"{image.name}, annotation {decoded.get('id', f'number {number}')}", done)
        if annotation is not None and of_record:
            annotation = {"id": position + 1, "image_id": entry["id"], **to_coco(annotation, *size)}
        if annotation is not None:
            copy.annotations[position] = annotation


# Coordinates can be absurd.
@np.errstate(all="ignore")
def _repair(annotation: dict[str, Any], kinds: set[str], height: int, width: int) -> tuple[dict[str, Any] | None, str]:
    """The annotation without the defects `kinds`, as COCO has it, or None if it is to be dropped; and what was done."""
    dropped = next((kind for kind in _DROPPED if kind in kinds), None)
    if dropped:
        return None, f"dropped ({dropped})"
    repaired, done = annotation.copy(), []
    if not kinds.isdisjoint(_OF_MASK):
        repaired["segmentation"] = _whole_polygons(annotation["segmentation"], height, width)
        done.append("polygons cut to what is in the image" if _OF_MASK[1] in kinds else "degenerate polygons left out")
    mask = read_mask(repaired["segmentation"], height, width)
    if mask.rle is None or mask.extent is None:
        return None, "dropped (no pixel of it is in the image)"
    if done:
        repaired["area"] = mask.area
    if not kinds.isdisjoint(_OF_BOX):
        repaired["bbox"] = to_box(mask.extent)
        done.append("box computed from the mask")
    if _OF_AREA in kinds:
        repaired["area"] = mask.area
        done.append("area computed from the mask")
    return repaired, ", ".join(done)


def _whole_polygons(segmentation: list[Any], height: int, width: int) -> list[list[float]]:
    parts = []
    for part in segmentation:
        points = points_of(part)
        if points is None or is_degenerate(points):
            continue
        if is_outside(points, height, width):
            points = clip(points, height, width)
        if not is_degenerate(points):
            parts.append(points.ravel().tolist())
    return parts


def _write_json(contents: Contents, findings: Sequence[Finding], copy: _Copy, file: Path) -> None:
    annotations = [annotation for _, annotation in sorted(copy.annotations.items())]
    if contents.split.json_file is None:
        categories = _record_categories(contents.split, annotations)
    else:
        categories = contents.categories
        for finding in findings:
            if finding.kind in _DROPPED_ELSEWHERE and finding.image is None:
                copy.note(finding.record, f"dropped ({finding.kind})")
        annotations = _renumber(annotations, contents, findings, copy)
    content = {"images": copy.images, "annotations": annotations, "categories": categories}
    file.write_bytes(msgspec.json.encode({**contents.header, **content}))


def _record_categories(split: CheckedSplit, annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    metadata = MetadataCatalog.get(split.name) if split.name in MetadataCatalog.list() else None
    names = list(metadata.get("thing_classes", ["cell"])) if metadata else ["cell"]
    count = max([len(names), *(annotation["category_id"] for annotation in annotations)])
    names += [f"class {number}" for number in range(len(names) + 1, count + 1)]
    return [{"id": number, "name": name} for number, name in enumerate(names, start=1)]


def _renumber(annotations: list[Any], contents: Contents, findings: Sequence[Finding], copy: _Copy) -> list[Any]:
    """Annotations' ids that are missing or used twice, and category ids that are off by one."""
    kinds = {finding.kind for finding in findings}
    if kinds.isdisjoint(("duplicate annotation id", "missing annotation id", "category ids off by one")):
        return annotations
    decoded = [
        msgspec.json.decode(annotation) if isinstance(annotation, msgspec.Raw) else dict(annotation)
        for annotation in annotations
    ]
    if contents.category_shift:
        copy.note("field category_id", f"of all annotations raised by {contents.category_shift}")
    used: set[Any] = set()
    free = max((one["id"] for one in decoded if isinstance(one.get("id"), int)), default=0) + 1
    for annotation in decoded:
        identity = annotation.get("id")
        if not isinstance(identity, int | str) or identity in used:
            copy.note(f"annotation {identity}", "given an id of its own")
            annotation["id"], free = free, free + 1
        used.add(annotation["id"])
        annotation["category_id"] += contents.category_shift
    return decoded


def _link_all(files: dict[str, Path], folder: Path) -> None:
    for name, file in files.items():
        target = folder / name
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.resolve(), target)
        except OSError:
            shutil.copyfile(file, target)
