"""The public data sets of the five papers, by name. Each is read from $DETECTRON2_DATASETS, in its publisher's layout,
when used. The table of names, sizes, licences and layouts: datasets/README.md, or tools/prepare_dataset.py list.
"""

from detectron2.data import DatasetCatalog

from cupre_d2.data.builtin.bbbc import BBBC005, BBBC038, BBBC039
from cupre_d2.data.builtin.coco import COCO, EVICAN
from cupre_d2.data.builtin.ctc import CTC
from cupre_d2.data.builtin.entry import PublicDataset, Split
from cupre_d2.data.builtin.few_shot_sets import EM, SSTEM, TNBC
from cupre_d2.data.builtin.image_labels import CHOK1, ROSETTE
from cupre_d2.data.builtin.livecell import LIVECELL
from cupre_d2.data.builtin.unlabeled import CELLS_UNLABELED
from cupre_d2.data.catalog import register_records
from cupre_d2.data.targets import register_target

__all__ = ["CATALOGUE", "CELLS_UNLABELED", "PublicDataset", "Split", "register_builtin_datasets"]

CATALOGUE: tuple[PublicDataset, ...] = (
    COCO,
    LIVECELL,
    EVICAN,
    *CTC,
    BBBC038,
    BBBC039,
    BBBC005,
    TNBC,
    EM,
    SSTEM,
    *CHOK1,
    ROSETTE,
)


def register_builtin_datasets() -> None:
    """Registers every split of the catalogue and cells_unlabeled; doing it again does nothing."""
    for split in (*(split for dataset in CATALOGUE for split in dataset.splits), CELLS_UNLABELED):
        if split.name not in DatasetCatalog:
            register_records(split.name, split.records, split.classes)
    _register_targets()


def _register_targets() -> None:
    """Each data set with a training split; AMT² learns from the cell images of all of them, as the paper has it."""
    splits = {split.name for dataset in CATALOGUE for split in dataset.splits}
    for name in splits:
        base, _, role = name.rpartition("_")
        if role == "train":
            roles = {role: [f"{base}_{role}"] for role in ("train", "val", "test") if f"{base}_{role}" in splits}
            register_target(base, **roles, unlabeled=[CELLS_UNLABELED.name])
    # Deep clustering: one type annotated, the others clustered and evaluated too.
    known, unknown = "bbbc038_known", "bbbc038_unknown"
    register_target("bbbc038_types", train=[f"{known}_train"], val=[f"{known}_test", unknown], unlabeled=[unknown])
