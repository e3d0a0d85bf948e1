"""Three sets of the Broad Bioimage Benchmark Collection: BBBC005, BBBC038 (Data Science Bowl 2018), BBBC039."""

import hashlib
import logging
import pickle
import re
from collections import Counter
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from cupre_d2.data.builtin.entry import Part, PublicDataset, Role, Split
from cupre_d2.data.catalog import Record
from cupre_d2.data.formats.csv_tables import read_rows
from cupre_d2.data.formats.image_folder import load_image_folder
from cupre_d2.data.formats.mask_images import list_ids, load_binary_masks, load_boundary_masks, load_images, load_mask_files
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

SPLITS: tuple[Role, ...] = ("train", "val", "test")

# ------------------------------------------------------------------------------------------------------------ BBBC038

_BBBC038 = "bbbc038/stage1_train"
_OWN_TYPES = "bbbc038/types.csv"
_OUR_TYPES = Path(__file__).with_name("bbbc038_types.csv")
# Grey values, of 255.
_COLOURED, _BRIGHT, _STAINED_GROUND = 3, 128, 25


def load_bbbc038(root: Path, role: Role) -> list[Record]:
    """One split with its masks."""
    return _with_types(_with_masks(root, tuple(bbbc038_ids(root, role))), root)


def _with_masks(root: Path, ids: tuple[str, ...]) -> list[Record]:
    """Records that the caller may change."""
    return pickle.loads(_pickled(root, ids))


@lru_cache(maxsize=2 * len(SPLITS) + 1)
def _pickled(root: Path, ids: tuple[str, ...]) -> bytes:
    """Kept in memory, as few-shot subsets of one set read it again: decoding its masks takes seconds, unpickling
    hundredths, copying the records in Python almost one."""
    return pickle.dumps(load_mask_files(root / _BBBC038, ids))


def load_bbbc038_images(root: Path, role: Role) -> list[Record]:
    """One split without its masks, which spares reading them."""
    return _with_types(load_images(root / _BBBC038, bbbc038_ids(root, role)), root)


def bbbc038_ids(root: Path, role: Role) -> list[str]:
    """The ids of one split: 80, 10 and 10 % of those on disk, 536/67/67 of all 670 as the CUPre paper says.

    Which images it had in which split the paper does not say. We order the ids by a hash, so that the split is
    random with respect to content and the same on every machine.
    """
    ids = sorted(list_ids(root / _BBBC038), key=lambda i: hashlib.sha256(f"bbbc038:{i}".encode()).hexdigest())
    cuts = [0, round(0.8 * len(ids)), round(0.9 * len(ids)), len(ids)]
    start, end = cuts[SPLITS.index(role) :][:2]
    if start == end:
        raise DatasetError(f"{root / _BBBC038}: {len(ids)} images, too few for a {role} split; expected at least 10")
    return ids[start:end]


def _with_types(records: list[Record], root: Path) -> list[Record]:
    """Sets cell_type from bbbc038/types.csv, or where there is none from our own list; returns the records."""
    file = root / _OWN_TYPES if (root / _OWN_TYPES).exists() else _OUR_TYPES
    types = _read_types(file)
    for record in records:
        if record["image_id"] in types:
            record["cell_type"] = types[record["image_id"]]
    typed = sum("cell_type" in record for record in records)
    # A file with the header alone turns types off.
    if types and typed < len(records):
        logger.warning("%s: no type for %d of %d images", file, len(records) - typed, len(records))
    return records


def _read_types(file: Path) -> dict[str, str]:
    """Type of each image id that has one; raises DatasetError as `read_rows`."""
    rows = read_rows(file, ("image_id", "type"))
    return {fields["image_id"]: fields["type"] for _, fields in rows if fields["type"]}


def load_bbbc038_types(root: Path, known: bool, roles: tuple[Role, ...]) -> list[Record]:
    """Images of these splits that are of the known type, or of the others; those without a type are in neither.

    The deep-clustering paper annotates its CT1 alone, by far the most frequent of its types, and clusters and tests on
    the others; the known type is the most frequent one of the list.

    Raises:
        DatasetError: types.csv names images that are not on disk, or no image on disk has a type.
    """
    types = bbbc038_types(root)
    counts = Counter(types.values())
    most = min(counts, key=lambda kind: (-counts[kind], kind))
    wanted = {image_id for image_id, kind in types.items() if (kind == most) == known}
    ids = tuple(image_id for role in roles for image_id in bbbc038_ids(root, role) if image_id in wanted)
    return [{**record, "cell_type": types[record["image_id"]]} for record in _with_masks(root, ids)]


def bbbc038_types(root: Path) -> dict[str, str]:
    """Type of each image on disk, by id: of bbbc038/types.csv, or where that is missing or has no row, of our own list.

    Raises:
        DatasetError: types.csv names images that are not on disk, or no image on disk has a type.
    """
    folder, own = root / _BBBC038, root / _OWN_TYPES
    ids = set(list_ids(folder))
    types = _read_types(own) if own.exists() else {}
    absent = sorted(types.keys() - ids)
    if absent:
        raise DatasetError(
            f"{own}: {len(absent)} of {len(types)} images are not in {folder}, the first {absent[0]}; expected the names "
            "of its sub-folders"
        )
    types = {image_id: kind for image_id, kind in (types or _read_types(_OUR_TYPES)).items() if image_id in ids}
    if not types:
        raise DatasetError(f"{folder}: no image is in {_OUR_TYPES.name}; expected a list of your own, {own} (image_id,type)")
    if len(types) < len(ids):
        logger.warning("%s: left out %d of %d images, which have no type", folder, len(ids) - len(types), len(ids))
    return types


def appearance(image: np.ndarray) -> str:
    """Type of an image of BBBC038, HxWx3 uint8 RGB, as bbbc038_types.csv has it: a stand-in for the list of the paper.

    The deep-clustering paper sorted stage1_train and stage1_test by hand into seven types of 592, 8, 7, 8, 66, 16 and 38
    images and never published the list. Five of them can be told by colour alone (fluorescence, bright_field,
    purple_on_white, purple_on_purple, pink_tissue); its two other types are fluorescence here. The CSV holds what this
    says of the images of a nearly whole copy.
    """
    pixels = image.reshape(-1, 3).astype(float)
    if np.mean(np.ptp(pixels, axis=1)) < _COLOURED:
        return "bright_field" if np.median(pixels) >= _BRIGHT else "fluorescence"
    lightness = pixels.mean(axis=1)
    red, _, blue = ground = np.median(pixels[lightness >= np.percentile(lightness, 80)], axis=0)
    if np.ptp(ground) < _STAINED_GROUND:
        return "purple_on_white"
    return "pink_tissue" if red > blue else "purple_on_purple"


_BY_TYPE: tuple[tuple[str, Role, bool, tuple[Role, ...]], ...] = (
    *((f"bbbc038_known_{role}", role, True, (role,)) for role in SPLITS),
    ("bbbc038_unknown", "all", False, SPLITS),
)

BBBC038 = PublicDataset(
    name="bbbc038",
    title="BBBC038, Data Science Bowl 2018",
    task="instances",
    licence="CC0",
    citation="Caicedo et al., Nucleus segmentation across imaging experiments, Nature Methods 2019",
    homepage="bbbc.broadinstitute.org, accession BBBC038",
    get="stage1_train.zip; below 200 MB",
    parts=(Part(_BBBC038, ("stage1_train.zip",), "*/images"),),
    image_files=(f"{_BBBC038}/*/images/*.png",),
    images=670,
    splits=(
        *(
            Split(f"bbbc038_{role}", role, (_BBBC038,), partial(load_bbbc038, role=role), images)
            for role, images in zip(SPLITS, (536, 67, 67), strict=True)
        ),
        *(
            Split(name, role, (_BBBC038,), partial(load_bbbc038_types, known=known, roles=roles), derived=True)
            for name, role, known, roles in _BY_TYPE
        ),
    ),
)

# ------------------------------------------------------------------------------------------------------------ BBBC039

_BBBC039 = tuple(f"bbbc039/{folder}" for folder in ("images", "masks", "metadata"))


def _load_bbbc039(root: Path, names: str) -> list[Record]:
    images, masks, metadata = (root / folder for folder in _BBBC039)
    return load_boundary_masks(images, masks, metadata / names)


BBBC039 = PublicDataset(
    name="bbbc039",
    title="BBBC039, U2OS nuclei, fluorescence, 16 bit",
    task="instances",
    licence="CC0",
    citation="Caicedo et al., Evaluation of deep learning strategies for nucleus segmentation in fluorescence images, 2019",
    homepage="bbbc.broadinstitute.org, accession BBBC039",
    get="images.zip, masks.zip and metadata.zip; below 100 MB",
    parts=tuple(
        Part(folder, (f"{Path(folder).name}.zip",), holds)
        for folder, holds in zip(_BBBC039, ("*.tif", "*.png", "*.txt"), strict=True)
    ),
    image_files=(f"{_BBBC039[0]}/*.tif",),
    images=200,
    splits=tuple(
        Split(f"bbbc039_{role}", role, _BBBC039, partial(_load_bbbc039, names=f"{file}.txt"), images)
        for role, file, images in zip(SPLITS, ("training", "validation", "test"), (100, 50, 50), strict=True)
    ),
)

# ------------------------------------------------------------------------------------------------------------ BBBC005

_BBBC005_IMAGES, _BBBC005_MASKS = "bbbc005/BBBC005_v1_images", "bbbc005/BBBC005_v1_ground_truth"
_BBBC005_COUNT = re.compile(r"_C(\d+)_")


def _load_bbbc005_counts(root: Path) -> list[Record]:
    """The number of cells stands in the file name, as in SIMCEPImages_A01_C1_F1_s01_w2.TIF: one cell."""
    records = load_image_folder(root / _BBBC005_IMAGES)
    for record in records:
        match = _BBBC005_COUNT.search(record["image_id"])
        if match is None:
            raise DatasetError(f"{record['file_name']}: no count in the file name; expected ..._C<count>_...")
        record["count"] = int(match[1])
    return records


BBBC005 = PublicDataset(
    name="bbbc005",
    title="BBBC005, simulated stained cells, with counts; foreground masks for the images in focus",
    task="semantic",
    licence="CC0",
    citation="Lehmussola et al., Computational framework for simulating fluorescence microscope images, 2007",
    homepage="bbbc.broadinstitute.org, accession BBBC005",
    get="BBBC005_v1_images.zip and BBBC005_v1_ground_truth.zip; 1.8 GB",
    parts=tuple(Part(folder, (f"{Path(folder).name}.zip",)) for folder in (_BBBC005_IMAGES, _BBBC005_MASKS)),
    image_files=(f"{_BBBC005_IMAGES}/*.TIF",),
    images=19_200,
    splits=(
        Split(
            "bbbc005",
            "all",
            (_BBBC005_IMAGES, _BBBC005_MASKS),
            lambda root: load_binary_masks(root / _BBBC005_IMAGES, root / _BBBC005_MASKS),
            1200,
        ),
        Split("bbbc005_counts", "all", (_BBBC005_IMAGES,), _load_bbbc005_counts, 19_200),
    ),
)
