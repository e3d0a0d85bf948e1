"""Reading COCO JSON at LIVECell's full scale, beside Detectron2's reader: time, memory, cache, loader processes.

The file is the sample of LIVECell's training annotations, repeated to 3,253 images and a million instances; its images
are links to one. Each reading is a fresh process, in turns, and memory is the peak of the process (VmHWM) above what it
had before it read.
"""

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import Figure, measure, read_memory
from cupre_d2.errors import DatasetError

IMAGES, INSTANCES, REPETITIONS = 3253, 1_000_000, 3
SAMPLE = "livecell/annotations/LIVECell/livecell_coco_train.json"


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        json_file = _make(Path(folder))
        ours, peer, cached = [], [], []
        for _ in range(REPETITIONS):
            peer.append(_measure("detectron2", json_file))
            for cache in json_file.parent.glob(".*.cache"):
                cache.unlink()
            ours.append(_measure("ours", json_file))
            cached.append(_measure("ours", json_file))
        registering = _measure("register", json_file)
        two, four = (_measure(f"{count} workers", json_file) for count in (2, 4))
    seconds = [_median(runs, "seconds") for runs in (ours, peer, cached)]
    peaks = [_median(runs, "bytes") for runs in (ours, peer, cached)]
    return [
        Figure("registering", registering["bytes"] / 2**20, "MiB", 1.0),
        Figure(
            "first load, our time / Detectron2's", seconds[0] / seconds[1], f"({seconds[0]:.1f} s, {seconds[1]:.1f} s)", 1.0
        ),
        Figure("first load, our peak memory / Detectron2's", peaks[0] / peaks[1], _gib(peaks[0], peaks[1]), 0.6),
        Figure("later load from the cache, times faster", seconds[0] / seconds[2], f"({seconds[2]:.2f} s)", 10, "at least"),
        Figure("later load, peak memory / Detectron2's", peaks[2] / peaks[1], _gib(peaks[2], peaks[1])),
        Figure(
            "each loader process, memory it adds / that of the records",
            (four["bytes"] - two["bytes"]) / 2 / two["held"],
            f"{_gib(two['bytes'], four['bytes'])} with two and four, the one copy that all share included",
            0.2,
        ),
    ]


def _median(runs: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def _gib(*sizes: float) -> str:
    return f"({', '.join(f'{size / 2**30:.2f} GiB' for size in sizes)})"


def _make(folder: Path) -> Path:
    """The JSON and its images."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    if not (root / SAMPLE).is_file():
        raise DatasetError(f"{root / SAMPLE}: no such file; expected LIVECell below $DETECTRON2_DATASETS")
    sample = json.loads((root / SAMPLE).read_text())
    by_image: dict[int, list[dict]] = {image["id"]: [] for image in sample["images"]}
    for annotation in sample["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    picture = folder / "picture.tif"
    picture.write_bytes((root / "livecell/images/livecell_train_val_images" / sample["images"][0]["file_name"]).read_bytes())
    # An image without annotations has nothing to repeat.
    sources = [image for image in sample["images"] if by_image[image["id"]]]
    images: list[dict] = []
    annotations: list[dict] = []
    for number in range(IMAGES):
        source = sources[number % len(sources)]
        images.append({**source, "id": number, "file_name": f"{number}.tif"})
        os.link(picture, folder / f"{number}.tif")
        # What an image lacks to its share of the instances, its own once more.
        while len(annotations) < INSTANCES * (number + 1) / IMAGES:
            annotations += [
                {**one, "id": len(annotations) + k, "image_id": number} for k, one in enumerate(by_image[source["id"]])
            ]
    json_file = folder / "annotations.json"
    json_file.write_text(json.dumps({**sample, "images": images, "annotations": annotations}))
    return json_file


def _measure(what: str, json_file: Path) -> dict[str, float]:
    return measure("data", f"child({what!r}, {str(json_file)!r})", OMP_NUM_THREADS="1")


def child(what: str, json_file: str) -> None:
    """One measurement, in a process of its own; prints it as JSON."""
    from detectron2.data.datasets.coco import load_coco_json as peer

    from cupre_d2.data import get_records, register_cell_dataset
    from cupre_d2.data.formats.coco_json import load_coco_json

    folder = str(Path(json_file).parent)
    before, started = read_memory("VmRSS"), time.perf_counter()
    if what == "detectron2":
        records = peer(json_file, folder)
    elif what == "ours":
        records, _ = load_coco_json(Path(json_file), Path(folder))
    else:
        register_cell_dataset("big", images=folder, annotations=json_file)
        records = None
    measured = {
        "seconds": time.perf_counter() - started,
        "bytes": read_memory("VmHWM") - before if records else read_memory("VmRSS") - before,
    }
    if records is not None:
        assert sum(len(record["annotations"]) for record in records) >= INSTANCES
    if what.endswith("workers"):
        records = get_records("big")
        measured = {"held": read_memory("VmRSS") - before, "bytes": _added_by_workers(records, int(what.split()[0]))}
    print(json.dumps(measured))


def _added_by_workers(records: list[dict], count: int) -> int:
    """What loader processes add to the memory of their parent (PSS of all) once they have read some images."""
    from detectron2.config import get_cfg

    from cupre_d2 import add_cupre_config
    from cupre_d2.data.loaders import build_detection_loader

    cfg = get_cfg()
    add_cupre_config(cfg)
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = count, 2
    loader = build_detection_loader(cfg, records)
    alone = _pss("self")
    batches = iter(loader)
    for _ in range(20):
        next(batches)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert len(children) >= count
    return _pss("self") + sum(map(_pss, children)) - alone


def _pss(process: str) -> int:
    return read_memory("Pss", f"/proc/{process}/smaps_rollup")
