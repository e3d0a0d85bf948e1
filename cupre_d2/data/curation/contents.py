"""A split's images, annotations and categories, read without giving up at the first defect."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import msgspec
from detectron2.structures import BoxMode

from cupre_d2.data.curation.checked_splits import CheckedSplit
from cupre_d2.data.curation.findings import Collector
from cupre_d2.errors import DatasetError

# Pixels of a side: more than any image that can be read has, and few enough to draw polygons on.
_MAX_SIDE = 2**17


@dataclass
class ImageEntry:
    """One image of a split.

    Attributes:
        name: how findings call it.
        entry: what the JSON or the record says of it.
        file: where it is; None if its name cannot be used.
        size: height and width in pixels that the entry states, if they can be used.
        group: cell type; or else what the file name begins with, up to the first "_".
        annotations: positions in `Contents.annotations`; None if the image is not annotated with instances.
        listed_in: what findings name as the file: the JSON, or without one the image.
        page, channels: as in a record; None in a COCO JSON, which cannot say them.
    """

    name: str
    entry: dict[str, Any]
    file: Path | None
    size: tuple[int, int] | None
    group: str
    annotations: list[int] | None
    listed_in: Path
    page: int | None = None
    channels: Sequence[int] | None = None


@dataclass
class Contents:
    """What a split holds.

    Attributes:
        annotations: as objects, or undecoded.
        categories: usable ones, each with "id" and "name"; empty where the split does not tell them.
        header: whatever else the JSON holds, undecoded.
        category_shift: what to add to the annotations' category ids where they are off by one; else 0.
    """

    split: CheckedSplit
    images: list[ImageEntry] = field(default_factory=list)
    annotations: Sequence[Any] = ()
    categories: list[dict[str, Any]] = field(default_factory=list)
    header: dict[str, Any] = field(default_factory=dict)
    category_shift: int = 0

    def annotation(self, index: int) -> dict[str, Any]:
        """One annotation, decoded: kept undecoded, those of LIVECell take a tenth of the memory."""
        annotation = self.annotations[index]
        return msgspec.json.decode(annotation) if isinstance(annotation, msgspec.Raw) else annotation


class _Head(msgspec.Struct):
    """What of an annotation is looked at before its image's turn."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    iscrowd: Any = 0


def read_contents(split: CheckedSplit, collector: Collector) -> Contents:
    """Reads a split; what cannot be used of it is left out and reported to the collector."""
    if split.load is not None:
        return _read_records(split, collector)
    contents = Contents(split)
    try:
        content = _read_json(split.file)
    except DatasetError as error:
        collector.add("unusable file", "all", str(error))
        return contents
    contents.header = {key: value for key, value in content.items() if key not in ("images", "annotations", "categories")}
    lists = {key: _entries(content, key, collector) for key in ("images", "annotations", "categories")}
    contents.annotations = lists["annotations"]
    contents.categories = _categories(lists["categories"], collector)
    contents.images = _images(lists["images"], split, collector)
    _assign(contents, collector)
    return contents


def _read_json(file: Path) -> dict[str, Any]:
    """The top level; its values undecoded, unless the file holds what JSON does not allow, such as NaN."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror})") from error
    try:
        content: Any = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"is no JSON ({error}); expected COCO's instances format") from error
    if not isinstance(content, dict):
        raise DatasetError("expected an object with images, annotations and categories")
    return content


def _entries(content: dict[str, Any], key: str, collector: Collector) -> list[Any]:
    """A list of the top level: of annotations undecoded, of all else decoded."""
    value = content.get(key)
    try:
        if isinstance(value, msgspec.Raw):
            value = msgspec.json.decode(value, type=list[msgspec.Raw] if key == "annotations" else Any)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, list):
        return value
    collector.add("unusable file", f"field {key}", "expected a list of objects")
    return []


def _categories(entries: list[Any], collector: Collector) -> list[dict[str, Any]]:
    categories: dict[int, dict[str, Any]] = {}
    names: dict[str, int] = {}
    for index, entry in enumerate(entries):
        record = f"category number {index}"
        if not isinstance(entry, dict) or not _is_id(entry.get("id"), int) or not isinstance(entry.get("name"), str):
            collector.add("unusable entry", record, "expected a whole number id and a name")
        elif entry["id"] in categories:
            collector.add("duplicate category id", record, f"id {entry['id']} is taken; expected unique ids")
        else:
            categories[entry["id"]] = entry
            if entry["name"] in names:
                message = f"{entry['name']!r} is the name of category {names[entry['name']]} too"
                collector.add("duplicate category name", f"category {entry['id']}", message)
            names.setdefault(entry["name"], entry["id"])
    if not categories:
        collector.add("unusable file", "field categories", "expected at least one category")
    elif sorted(categories) != list(range(1, len(categories) + 1)):
        ids = ", ".join(map(str, sorted(categories)[:5])) + (", ..." if len(categories) > 5 else "")
        collector.add("unusual category ids", "field categories", f"{ids}; ids are usually 1 to {len(categories)}")
    return list(categories.values())


def _images(entries: list[Any], split: CheckedSplit, collector: Collector) -> list[ImageEntry]:
    images = []
    if not entries:
        collector.add("unusable file", "field images", "expected at least one image")
    for index, entry in enumerate(entries):
        file_name: Any = entry.get("file_name") if isinstance(entry, dict) else None
        is_name = isinstance(file_name, str) and bool(PurePath(file_name).parts) and "\0" not in file_name
        if not is_name or not _is_id(entry.get("id"), (int, str)):
            # It keeps its place: `fix` goes by positions.
            images.append(ImageEntry(f"image number {index}", {}, None, None, "", [], split.file))
            message = "expected an id, a whole number or a text, and a file_name"
            collector.add("unusable entry", images[-1].name, message, image=index)
            continue
        name = f"image {entry['id']} ({file_name})"
        file = _locate(split, file_name)
        if file is None:
            message = f"field file_name; expected a path below {split.image_root}"
            collector.add("file outside the folder", name, message, image=index)
        images.append(ImageEntry(name, entry, file, _size(entry), _group(entry), [], split.file))
    return images


def _locate(split: CheckedSplit, name: str) -> Path | None:
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts:
        return None
    try:
        return split.locate(split.image_root, name)
    except (OSError, ValueError):
        return split.image_root / name


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    sides: Any = entry.get("height"), entry.get("width")
    return sides if all(_is_id(side, int) and 1 <= side <= _MAX_SIDE for side in sides) else None


def _group(entry: dict[str, Any]) -> str:
    return str(entry.get("cell_type") or PurePath(entry["file_name"]).name.split("_")[0])


def _is_id(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _assign(contents: Contents, collector: Collector) -> None:
    """Gives each image its annotations; of images that share an id the first gets them."""
    by_id: dict[Any, ImageEntry] = {}
    for index, image in enumerate(contents.images):
        if not image.entry:
            continue
        first = by_id.setdefault(image.entry["id"], image)
        if first is not image:
            message = f"the id of {first.name} too, which the annotations are taken to belong to; expected unique ids"
            collector.add("duplicate image id", image.name, message, image=index)
    heads = [_head(annotation) for annotation in contents.annotations]
    _check_ids(heads, collector)
    _check_categories(heads, contents, collector)
    for index, head in enumerate(heads):
        if head is None:
            message = "expected an object with a whole number category_id, an image_id, and iscrowd 0 or 1, if any"
            collector.add("unusable entry", f"annotation number {index}", message, annotation=index)
        elif head.image_id not in by_id:
            message = f"image_id {head.image_id!r}; expected the id of an image in the file"
            collector.add("unknown image id", _name(head, index), message, annotation=index)
        else:
            annotations = by_id[head.image_id].annotations
            assert annotations is not None
            annotations.append(index)


def _head(annotation: Any) -> _Head | None:
    try:
        is_raw = isinstance(annotation, msgspec.Raw)
        head = msgspec.json.decode(annotation, type=_Head) if is_raw else msgspec.convert(annotation, _Head)
    except (ValueError, RecursionError):
        return None
    usable = _is_id(head.image_id, (int, str)) and _is_id(head.category_id, int) and head.iscrowd in (0, 1)
    return head if usable else None


def _name(head: _Head, index: int) -> str:
    return f"annotation number {index}" if head.id is None else f"annotation {head.id}"


def _check_ids(heads: list[_Head | None], collector: Collector) -> None:
    seen: dict[Any, int] = {}
    missing = []
    for index, head in enumerate(heads):
        if head is None:
            continue
        if head.id is None:
            missing.append(index)
            continue
        # Lists and the like are no ids either, and cannot be looked up.
        first = seen.setdefault(head.id if _is_id(head.id, (int, str)) else repr(head.id), index)
        if first != index:
            message = f"the id of annotation number {first} too; expected unique ids"
            collector.add("duplicate annotation id", f"annotation {head.id} (number {index})", message, annotation=index)
    if missing:
        message = f"{len(missing)} of {len(heads)} annotations have no id, which Detectron2's own reader needs"
        collector.add("missing annotation id", f"annotation number {missing[0]}", message)


def _check_categories(heads: list[_Head | None], contents: Contents, collector: Collector) -> None:
    used = {head.category_id for head in heads if head is not None}
    known = {category["id"]: category["name"] for category in contents.categories}
    shift = contents.category_shift = _category_shift(used, set(known))
    if shift:
        message = f"annotations have {_span(used)}, the categories {_span(known)}; off by one?"
        collector.add("category ids off by one", "field category_id", message)
    else:
        expected = ", ".join(map(str, sorted(known)[:10])) + (", ..." if len(known) > 10 else "")
        for index, head in enumerate(heads):
            if head is not None and head.category_id not in known:
                message = f"category_id {head.category_id}; expected one of {expected}"
                collector.add("unknown category id", _name(head, index), message, annotation=index)
    for category, name in known.items():
        if category - shift not in used:
            collector.add("category without instances", f"category {category}", f"{name!r} has none")


def _category_shift(used: set[int], known: set[int]) -> int:
    """1 or -1 where the annotations' ids count from 0 and the categories' from 1, or the reverse; else 0."""
    for first, shift in ((1, 1), (0, -1)):
        whole = set(range(first, first + len(known)))
        if used and known == whole and not used <= known and {one + shift for one in used} <= known:
            return shift
    return 0


def _span(ids: Any) -> str:
    low, high = min(ids), max(ids)
    return f"id {low}" if low == high else f"ids {low} to {high}"


def _read_records(split: CheckedSplit, collector: Collector) -> Contents:
    assert split.load is not None
    try:
        records = split.load()
    except DatasetError as error:
        collector.add("unusable file", "all", str(error))
        return Contents(split)
    images: list[ImageEntry] = []
    annotations: list[dict[str, Any]] = []
    for record in records:
        positions = None
        if "annotations" in record:
            positions = list(range(len(annotations), len(annotations) + len(record["annotations"])))
            annotations.extend(map(_standard, record["annotations"]))
        page, channels = record.get("page"), record.get("channels")
        name = f"image {record['image_id']}" + ("" if page is None else f" (page {page})")
        file = Path(record["file_name"])
        images.append(ImageEntry(name, record, file, _size(record), _group(record), positions, file, page, channels))
    return Contents(split, images, annotations)


def _standard(annotation: dict[str, Any]) -> dict[str, Any]:
    """With its box as COCO has it."""
    box = annotation.get("bbox")
    if box is not None:
        box = [float(number) for number in BoxMode.convert(list(box), annotation["bbox_mode"], BoxMode.XYWH_ABS)]
    return {**annotation, "bbox": box, "bbox_mode": BoxMode.XYWH_ABS}
