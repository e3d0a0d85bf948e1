"""What is on disk of the catalogue, and what to do about the rest."""

from pathlib import Path

from tabulate import tabulate

from cupre_d2.data.builtin import CATALOGUE, PublicDataset


def overview(root: Path) -> str:
    """A table of all public data sets, and below it what to do for those that are not whole.

    No image is opened and no annotation read: images are counted by their names.
    """
    counts = {dataset.name: dataset.count_images(root) for dataset in CATALOGUE}
    rows = [
        (
            dataset.name,
            dataset.task,
            _state(dataset, counts[dataset.name], root),
            f"{counts[dataset.name]:,} / {dataset.images:,}",
            _names(dataset, root) or "-",
        )
        for dataset in CATALOGUE
    ]
    table = tabulate(rows, headers=("data set", "task", "state", "images / published", "names that work"))
    advice = [line for dataset in CATALOGUE for line in _advice(dataset, counts[dataset.name], root)]
    return "\n".join([f"below {root}", "", table, "", *advice])


def _state(dataset: PublicDataset, images: int, root: Path) -> str:
    if not any((root / part.path).exists() for part in dataset.parts):
        return "missing"
    return "present" if images >= dataset.images and not _absent(dataset, root) else "in part"


def _absent(dataset: PublicDataset, root: Path) -> list[str]:
    return [part.path for part in dataset.parts if not part.optional and not (root / part.path).exists()]


def _names(dataset: PublicDataset, root: Path) -> str:
    """Names of the splits whose files are there; LIVECell's eight cell types would fill the screen."""
    names = [split.name for split in dataset.splits if split.missing(root) is None]
    shown = [name for name in names if name.count("_") <= 1 or dataset.name != "livecell"]
    return " ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _advice(dataset: PublicDataset, images: int, root: Path) -> list[str]:
    if _state(dataset, images, root) == "present":
        return []
    absent = _absent(dataset, root)
    lines = [f"{dataset.name}: {dataset.title}", f"    licence: {dataset.licence}"]
    if absent:
        lines.append(f"    there is no {', '.join(absent)}")
    lines.append(f"    get {dataset.get}, from {dataset.homepage}")
    lines.append(f"    then: python tools/prepare_dataset.py {dataset.name} FOLDER_OF_THE_DOWNLOAD")
    return lines
