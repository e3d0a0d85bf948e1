"""COCO 2017. Detectron2 registers its names; the entry says what they need."""

from pathlib import Path

from detectron2.data import DatasetCatalog

from cupre_d2.data.builtin.entry import CocoFiles, Part, PublicDataset, Role, Split
from cupre_d2.data.catalog import Record


def _json(role: str) -> str:
    return f"coco/annotations/instances_{role}2017.json"


def _split(role: Role, images: int) -> Split:
    name, json_file, folder = f"coco_2017_{role}", _json(role), f"coco/{role}2017"

    def load(root: Path) -> list[Record]:
        return DatasetCatalog.get(name)

    return Split(name, role, (json_file, folder), load, images, (), CocoFiles(json_file, folder))


COCO = PublicDataset(
    name="coco",
    title="COCO 2017",
    task="instances",
    licence="annotations CC BY 4.0; each image under the licence that its entry in the JSON names",
    citation="Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014",
    homepage="cocodataset.org",
    get="2017 Train images, 2017 Val images, 2017 Train/Val annotations; about 20 GB",
    parts=(
        Part("coco/train2017", ("train2017.zip",)),
        Part("coco/val2017", ("val2017.zip",)),
        *(Part(_json(role), ("annotations_trainval2017.zip",)) for role in ("train", "val")),
    ),
    image_files=("coco/train2017/*.jpg", "coco/val2017/*.jpg"),
    images=123_287,
    splits=(_split("train", 118_287), _split("val", 5_000)),
)
