"""CHO-K1 suspension cells with their number, natural and synthetic, as the Twin-VAE paper counts them."""

from functools import partial
from pathlib import Path

from cupre_d2.data.builtin.entry import Part, PublicDataset, Split
from cupre_d2.data.catalog import Record
from cupre_d2.data.formats.tables import load_count_table

_TECHNIQUES = {"bf": ("bright_field", 2983), "pc": ("phase_contrast", 3944)}


def _load(root: Path, table: str) -> list[Record]:
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
                partial(_load, table=f"{folder}/{origin}/{role}.csv"),
            )
            for origin in ("natural", "synthetic")
            for role in ("train", "test")
        ),
    )


CHOK1 = tuple(_dataset(short, technique, images) for short, (technique, images) in _TECHNIQUES.items())
