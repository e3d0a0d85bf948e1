"""Small stand-ins for the data sets, in their publishers' layouts, drawn by the tests."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

# A program, which would register its parts in the process that tests.
collect_ignore = ["project"]

SIZE = 96


def draw_discs(seed: int, count: int = 6) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """A grey image with bright discs, and their (x, y, radius)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    image = rng.integers(10, 30, (SIZE, SIZE))
    discs = []
    for _ in range(count):
        x, y, radius = rng.integers(12, SIZE - 12), rng.integers(12, SIZE - 12), rng.integers(5, 11)
        image[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = rng.integers(120, 255)
        discs.append((int(x), int(y), int(radius)))
    return image.astype(np.uint8), discs


def _octagon(x: int, y: int, radius: int) -> list[float]:
    angles = np.arange(8) * np.pi / 4
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).round(2).ravel().tolist()


def write_coco(folder: Path, json_file: Path, names: list[str], categories: dict[int, str], first_id: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    category_ids = list(categories)
    for index, name in enumerate(names):
        image, discs = draw_discs(first_id + index)
        Image.fromarray(image).save(folder / name)
        images.append({"id": first_id + index, "file_name": name, "width": SIZE, "height": SIZE})
        for x, y, radius in discs:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": first_id + index,
                    "category_id": category_ids[len(annotations) % len(category_ids)],
                    "bbox": [x - radius, y - radius, 2 * radius, 2 * radius],
                    "area": 2.8 * radius**2,
                    "iscrowd": 0,
                    "segmentation": [_octagon(x, y, radius)],
                }
            )
    json_file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    json_file.write_text(json.dumps(content))


def write_bbbc038(root: Path, count: int) -> None:
    """Of three types; the commonest is the one that deep clustering knows."""
    for index in range(count):
        folder = root / "bbbc038" / "stage1_train" / f"{index:064x}"
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        image, discs = draw_discs(1000 + index)
        Image.fromarray(image).convert("RGBA").save(folder / "images" / f"{folder.name}.png")
        rows, columns = np.mgrid[:SIZE, :SIZE]
        for number, (x, y, radius) in enumerate(discs):
            mask = ((columns - x) ** 2 + (rows - y) ** 2 <= radius**2) * np.uint8(255)
            Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    rows = "".join(f"{i:064x},{'dim' if i < 0.7 * count else f'odd{i % 2}'}\n" for i in range(count))
    (root / "bbbc038/types.csv").write_text("image_id,type\n" + rows)


@pytest.fixture(scope="session")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO, LIVECell and BBBC038 in small."""
    root = tmp_path_factory.mktemp("datasets")
    coco = MetadataCatalog.get("coco_2017_train")
    coco_classes = dict(zip(coco.thing_dataset_id_to_contiguous_id, coco.thing_classes, strict=True))
    for split, count in (("train", 12), ("val", 2)):
        names = [f"{index:012d}.jpg" for index in range(count)]
        write_coco(root / f"coco/{split}2017", root / f"coco/annotations/instances_{split}2017.json", names, coco_classes)
        cells = [f"{kind}_Phase_{split}_{index}.tif" for index in range(max(count // 4, 1)) for kind in ("A172", "MCF7")]
        annotations = root / "livecell/annotations/LIVECell" / f"livecell_coco_{split}.json"
        write_coco(root / "livecell/images/livecell_train_val_images", annotations, cells, {1: "cell"}, first_id=100 + count)
    write_bbbc038(root, 20)
    return root


@pytest.fixture()
def small_datasets(dataset_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The built-in names read the small stand-ins, COCO's too, whose root Detectron2 fixes when it is imported."""
    from detectron2.data.datasets import load_coco_json

    monkeypatch.setenv("DETECTRON2_DATASETS", str(dataset_root))
    for split in ("train", "val"):
        name = f"coco_2017_{split}"
        metadata = MetadataCatalog.get(name)
        json_file = str(dataset_root / f"coco/annotations/instances_{split}2017.json")
        images = str(dataset_root / f"coco/{split}2017")
        monkeypatch.setitem(metadata.__dict__, "json_file", json_file)
        monkeypatch.setitem(metadata.__dict__, "image_root", images)
        monkeypatch.setitem(DatasetCatalog.data, name, lambda j=json_file, i=images, n=name: load_coco_json(j, i, n))
    return dataset_root


SLIM = {
    "MODEL.RESNETS.DEPTH": 14,
    "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.125,
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.RESNETS.GN_GROUPS": 4,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.FPN.NORM": "GN",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 64,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 64,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 32,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 32,
    "MODEL.MOCO.DIM": 16,
    "MODEL.MOCO.QUEUE_SIZE": 16,
    "MODEL.DEVICE": "cpu",
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.VIEWS.SIZE": 32,
    "INPUT.CROP.ENABLED": False,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "AMT2.MOCO_SOLVER.IMS_PER_BATCH": 2,
    "AMT2.ROUNDS": 2,
    "AMT2.MOCO_ITERS": 1,
    "AMT2.COCO_ITERS": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.OVERLAYS": 1,
    "TEST.TUNING.ENABLED": False,
    "INPUT.CELL_AUGMENTATION.SIZE": 64,
    "MODEL.UNET.CHANNELS": "(16, 16, 8, 8, 8)",
    "MODEL.UNET.GN_GROUPS": 4,
    "CLUSTERING.SAMPLES": 24,
    "CLUSTERING.CLUSTERS": 6,
    "CLUSTERING.COMPONENTS": 4,
    "CLUSTERING.CROP": 32,
}


@pytest.fixture()
def slim() -> list[str]:
    """Overrides that make any config of this project small enough to train a few steps in a second."""
    return [str(item) for pair in SLIM.items() for item in pair]


@pytest.fixture()
def amt2_cfg(small_datasets: Path, slim: list[str], tmp_path: Path):  # noqa: ANN201
    """Two rounds of AMT², one step a phase, writing to a folder that exists."""
    from cupre_d2.engine.stages import load_stages

    _, (stage,) = load_stages(
        "configs/mini/stages/amt2.yaml", [*slim, "PIPELINE.TARGET", "bbbc038", "OUTPUT_DIR", str(tmp_path)]
    )
    stage.folder.mkdir(parents=True)
    return stage.cfg
