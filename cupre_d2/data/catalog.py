"""Registering data sets with Detectron2, whatever format they are in."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from detectron2.data import DatasetCatalog, MetadataCatalog

from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.data.formats.csv_tables import load_count_table, load_rle_csv
from cupre_d2.data.formats.image_folder import image_sizes, load_class_folders, load_image_folder
from cupre_d2.data.formats.mask_images import load_label_images
from cupre_d2.data.formats.outlines import OUTLINE_SUFFIXES, load_outlines
from cupre_d2.data.images import read_record
from cupre_d2.errors import DatasetError

Record = dict[str, Any]


@dataclass(frozen=True)
class CellDataset:
    """What `register_cell_dataset` was told about one data set."""

    name: str
    images: Path
    annotations: Path | None
    labels: Path | None
    counts: Path | None
    classes: tuple[str, ...] | None
    # Fields of every record that say how to read its image.
    reading: tuple[tuple[str, Any], ...]

    @property
    def coco_json(self) -> Path | None:
        """`annotations`, if they are COCO's."""
        return self.annotations if self.annotations and _is_coco(self.annotations) else None

    def load(self) -> list[Record]:
        """Reads the records; see `register_cell_dataset`."""
        return [record | dict(self.reading) for record in self._read()]

    def _read(self) -> list[Record]:
        if self.coco_json:
            records, categories = load_coco_json(self.coco_json, self.images)
            self._set_categories(self.coco_json, categories)
            return records
        if self.annotations and _is_csv(self.annotations):
            return load_rle_csv(self.annotations, self.images)
        if self.annotations:
            page = dict(self.reading).get("page")
            records, classes = load_outlines(self.images, self.annotations, self.classes, page)
            MetadataCatalog.get(self.name).thing_classes = classes
            return records
        if self.labels:
            return load_label_images(self.images, self.labels)
        if self.counts:
            return load_count_table(self.images, self.counts)
        if self.classes and len(self.classes) > 1:
            return load_class_folders(self.images, self.classes)
        return load_image_folder(self.images)

    def _set_categories(self, json_file: Path, categories: dict[int, str]) -> None:
        metadata = MetadataCatalog.get(self.name)
        metadata.thing_classes = check_categories(json_file, categories, metadata.get("thing_classes"))
        # Detectron2's own COCO evaluator translates category ids back to those of json_file with it.
        metadata.thing_dataset_id_to_contiguous_id = {category: i for i, category in enumerate(categories)}


_registered: dict[str, CellDataset | None] = {}

PATH = (str,)
# What a data set of one's own is told by, and of which types in a YAML file: the arguments of `register_cell_dataset`.
OPTIONS: dict[str, tuple[type, ...]] = {
    "images": PATH,
    "annotations": PATH,
    "labels": PATH,
    "counts": PATH,
    "classes": (list,),
    "channels": (list,),
    "page": (int,),
    "normalize": (bool,),
}


def register_cell_dataset(
    name: str,
    images: str | os.PathLike[str],
    annotations: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    counts: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    channels: Sequence[int] | None = None,
    page: int | None = None,
    normalize: bool = True,
) -> None:
    """Registers a data set of your own with Detectron2. It is read when it is first used, not now.

    Registering it again with the same arguments does nothing.

    Args:
        name: what configs call it; NAME_5pct and NAME_5pct_seed3 then name subsets of it (see few_shot).
        images: a folder of images: png, jpg, tif or bmp.
        annotations: a COCO instances JSON, whose file names are relative to `images`; or a CSV of run lengths, a row an
            instance, as Kaggle's Sartorius competition has it; or a folder of outlines (ImageJ's ROIs, QuPath's GeoJSON,
            LabelMe's JSON), a file an image, the stem of it; see `outlines.load_outlines`.
        labels: a folder of label images (8, 16 or 32-bit PNG or TIFF, the stem of their image; 0 is background, every
            other value one cell).
        counts: a CSV with the header `image,count`. With none of these three the images are unlabeled, or
        classes: names two or more sub-folders of `images`, one a class. Otherwise they are class names: of a COCO JSON
            those of the file in order of category id, read from it if None; of outlines those that they are called by, in
            any order, see `outlines.load_outlines` if None; else, of a CSV of run lengths too, one class, "cell" if None.
        channels: one or three channels of the images to take, counted from 0; all if None.
        page: of image files with several pages the one to take, counted from 0.
        normalize: whether INPUT.PERCENTILES stretches the contrast of each image; see `images.read_image`.

    Raises:
        DatasetError: the name stands for another data set already, more than one of `annotations`, `labels` and
            `counts` is given, or `classes` names several classes where there can be only one. When it is read: see the
            readers in formats.
    """
    given = {"annotations": annotations, "labels": labels, "counts": counts}
    kinds = [kind for kind, path in given.items() if path is not None]
    if len(kinds) > 1:
        raise DatasetError(f"dataset {name!r}: {' and '.join(kinds)} are given; expected at most one of them")
    if annotations is None or _is_csv(annotations):
        classes = ("cell",) if classes is None else classes
        if len(classes) != 1 and kinds:
            what = "annotations in a CSV" if annotations else kinds[0]
            raise DatasetError(
                f"dataset {name!r}: classes {list(classes)}; expected one, as {what} cannot tell classes apart"
            )
    reading: dict[str, Any] = {} if normalize else {"percentiles": None}
    reading |= {} if channels is None else {"channels": tuple(channels)}
    reading |= {} if page is None else {"page": page}
    dataset = CellDataset(
        name,
        _absolute(images),
        _absolute(annotations),
        _absolute(labels),
        _absolute(counts),
        None if classes is None else tuple(classes),
        tuple(reading.items()),
    )
    if name in DatasetCatalog and _registered.get(name) == dataset:
        return
    paths = {"image_root": str(dataset.images)}
    if dataset.coco_json:
        paths["json_file"] = str(dataset.coco_json)
    register_records(name, dataset.load, dataset.classes, **paths)
    _registered[name] = dataset


def register_records(
    name: str, load: Callable[[], list[Record]], classes: Sequence[str] | None = ("cell",), **metadata: Any
) -> None:
    """Registers a function that reads or makes records; for data sets in a format of their own.

    Args:
        name: as in `register_cell_dataset`.
        load: returns Detectron2's standard records, the same ones each time; called when the set is first used.
        classes: class names, in order of category id; None if `load` sets them.
        metadata: more of what MetadataCatalog shall hold.

    Raises:
        DatasetError: the name is taken.
    """
    if name in DatasetCatalog:
        raise DatasetError(f"dataset {name!r} is registered already, with other arguments; expected a new name")
    DatasetCatalog.register(name, load)
    if classes is not None:
        metadata["thing_classes"] = list(classes)
    MetadataCatalog.get(name).set(evaluator_type="cell_coco", **metadata)
    _registered[name] = None


def check_categories(json_file: Path, categories: dict[int, str], classes: Sequence[str] | None) -> list[str]:
    """The names of a COCO JSON's categories, in order of their ids.

    Args:
        classes: those that the data set was registered with; None if it takes the file's.

    Raises:
        DatasetError: they are not the file's, or in another order.
    """
    found = list(categories.values())
    if classes is not None and list(classes) != found:
        raise DatasetError(
            f"{json_file}: field categories: {found} in order of their ids; "
            f"expected {list(classes)}, the classes that the data set was registered with"
        )
    return found


def check_same_classes(names: Sequence[str]) -> None:
    """Compares the classes of data sets that one model is to learn or be tested on; to be called when they were read.

    A model knows classes by number alone. Where there is only one, sets may call it differently.

    Raises:
        DatasetError: a set has other classes than the first, or in another order.
    """
    classes = [list(MetadataCatalog.get(name).get("thing_classes", ())) for name in names]
    for name, others in zip(names, classes, strict=True):
        if others != classes[0] and not len(others) == len(classes[0]) == 1:
            raise DatasetError(
                f"dataset {name!r}: classes {others}; expected {classes[0]} in that order, those of {names[0]!r}"
            )


def is_registered_here(name: str) -> bool:
    """Whether the name was registered through this module, rather than by Detectron2 or its user."""
    return name in _registered


def cell_dataset(name: str) -> CellDataset | None:
    """What `register_cell_dataset` was told about a data set; None for a name that it did not register."""
    return _registered.get(name)


def check_images(records: Sequence[Record], name: str) -> None:
    """Opens the header of each image and decodes the first; to be called before training starts.

    The first tells whether images of this data set need a choice of channels or of a page.

    Raises:
        DatasetError: an image is missing, cannot be read, or has another size than its record says.
    """
    by_file = {record["file_name"]: record for record in records}
    sizes = image_sizes([Path(file) for file in by_file])
    try:
        for record in records[:1]:
            read_record(record)
        for record, (height, width) in zip(by_file.values(), sizes, strict=True):
            if (record["height"], record["width"]) != (height, width):
                raise DatasetError(
                    f"image {record['image_id']}: {record['file_name']} is {width}x{height} pixels; "
                    f"expected the record's width and height, {record['width']}x{record['height']}"
                )
    except DatasetError as error:
        raise DatasetError(f"dataset {name!r}: {error}") from error


def datasets_root() -> Path:
    """The folder of the built-in data sets: $DETECTRON2_DATASETS, or "datasets" where it is not set."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser().absolute()


def missing_path_error(name: str, *paths: Path) -> DatasetError:
    """The error for a built-in data set that is not, or not whole, where it is looked for; `paths` are alternatives."""
    expected = " or ".join(str(path.absolute()) for path in paths)
    absent = ", ".join(dict.fromkeys(str(_first_missing(path.absolute())) for path in paths))
    value = os.environ.get("DETECTRON2_DATASETS")
    root = 'is not set, which means "datasets"' if value is None else f"is {value!r}"
    return DatasetError(
        f"dataset {name!r}: expected {expected}, but there is no {absent}; "
        f"DETECTRON2_DATASETS {root}; datasets/README.md says what goes where in it"
    )


def _first_missing(path: Path) -> Path:
    """The outermost folder on the way to a missing path that does not exist: where the user has to look."""
    return next(step for step in (*reversed(path.parents), path) if not step.exists())


def _is_csv(annotations: str | os.PathLike[str]) -> bool:
    return Path(annotations).suffix.lower() == ".csv"


def _is_coco(annotations: Path) -> bool:
    """Whether it is a file that is neither a CSV nor one of outlines; a folder may be made after it is registered."""
    suffix = annotations.suffix.lower()
    if suffix == ".json":
        return not annotations.is_dir()
    return suffix != ".csv" and suffix not in OUTLINE_SUFFIXES and annotations.is_file()


@overload
def _absolute(path: str | os.PathLike[str]) -> Path: ...
@overload
def _absolute(path: str | os.PathLike[str] | None) -> Path | None: ...
def _absolute(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path).expanduser().absolute()
