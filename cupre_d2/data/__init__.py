from cupre_d2.data.builtin import register_builtin_datasets
from cupre_d2.data.catalog import check_images, check_same_classes, register_cell_dataset, register_records
from cupre_d2.data.few_shot import ensure_registered, get_records

__all__ = [
    "check_images",
    "check_same_classes",
    "ensure_registered",
    "get_records",
    "register_cell_dataset",
    "register_records",
]

register_builtin_datasets()
