"""Sets that say something of each image as a whole: CHO-K1 its number of cells, the C. elegans rosettes its class."""

from functools import partial
from pathlib import Path

from cupre_d2.data.builtin.entry import Part, PublicDataset, Role, Split
from cupre_d2.data.catalog import Record
from cupre_d2.data.formats.csv_tables import load_count_table
from cupre_d2.data.formats.image_folder import load_class_folders, load_image_folder

# -------------------------------------------------------------------------------------------------------------- CHO-K1

# Suspension cells, natural and synthetic, as the Twin-VAE paper counts them.
_TECHNIQUES = {"bf": ("bright_field", 2983), "pc": ("phase_contrast", 3944)}


def _load_counts(root: Path, table: str) -> list[Record]:
    """Of a table `path,count` without header, paths relative to it; as published, 0 stands for "not counted"."""
    file = root / table
    records = load_count_table(file.parent, file, columns=None)
    for record in records:
        if record["count"] == 0:
            del record["count"]
    return records


def _dataset(short: str, technique: str, images: int) -> PublicDataset:
    folder = f"chok1/{technique}"
    return PublicDataset(
        name=f"chok1_{short}",
        title=f"CHO-K1 suspension cells, {technique.replace('_', ' ')}, 128x128, 1 to 30 cells",
        task="count",
        licence="none stated with the paper",
        citation="the Twin-VAE papers (Transfer Twin-VAE, facts/twin_vae.md)",
        homepage="the authors' repository of Transfer Twin-VAE",
        get=f"natural and synthetic images and their tables path,count into {folder}/{{natural,synthetic}}",
        parts=tuple(Part(f"{folder}/{origin}", holds="train.csv") for origin in ("natural", "synthetic")),
        image_files=(f"{folder}/natural/**/*.png",),
        images=images,
        splits=tuple(
            Split(
                f"chok1_{short}_{origin}_{role}",
                role,
                (f"{folder}/{origin}/{role}.csv",),
                partial(_load_counts, table=f"{folder}/{origin}/{role}.csv"),
            )
            for origin in ("natural", "synthetic")
            for role in ("train", "test")
        ),
    )


CHOK1 = tuple(_dataset(short, technique, images) for short, (technique, images) in _TECHNIQUES.items())

# ------------------------------------------------------------------------------------------------------------ rosettes

# Embryos: 128-px images in class folders, unlabeled ones, and their 32-px patches.
CLASSES = ("rosette", "non_rosette")
_UNLABELED = "rosette/unlabeled"
_PATCHES = "rosette/patches"


def _classes(name: str, role: Role, folder: str, images: int | None = None) -> Split:
    return Split(name, role, (folder,), lambda root: load_class_folders(root / folder, CLASSES), images, CLASSES)


def _unlabeled(name: str, folder: str, images: int) -> Split:
    return Split(name, "unlabeled", (folder,), lambda root: load_image_folder(root / folder), images)


# The authors' split is by acquisition date: train 20170711 and 20170715, test 20170720 (facts/rosette_gan.md §2.5).
# Their hand-cut 32-px crops were never published: patches/{train,test} are for a user's own.
ROSETTE = PublicDataset(
    name="rosette",
    title="C. elegans rosettes, membrane images",
    task="classification",
    licence="none stated",
    citation="the rosette paper (facts/rosette_gan.md)",
    homepage="the authors' repository",
    get="supervised_split as train and test, the 11,250 unlabeled images; "
    "`prepare_dataset.py rosette RAW_DIR` cuts those into 32-px patches",
    parts=(*(Part(f"rosette/{role}", holds=CLASSES[0]) for role in ("train", "test")), Part(_UNLABELED)),
    image_files=(f"{_UNLABELED}/*.jpg",),
    images=11_250,
    splits=(
        _classes("rosette_train", "train", "rosette/train", 274 + 844),
        _classes("rosette_test", "test", "rosette/test", 112 + 348),
        _unlabeled("rosette_unlabeled", _UNLABELED, 11_250),
        _classes("rosette_patches_train", "train", f"{_PATCHES}/train"),
        _classes("rosette_patches_test", "test", f"{_PATCHES}/test"),
        _unlabeled("rosette_patches_unlabeled", f"{_PATCHES}/unlabeled", 180_000),
    ),
)
