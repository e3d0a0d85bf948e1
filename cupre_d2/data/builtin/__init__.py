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
