"""Evaluation of 200 images of 300 cells and 400 detections, boxes and masks, beside pycocotools and what replaces it.

Images have LIVECell's size. True cells are polygons in a COCO JSON, detections RLEs in a file with a line an image: the
peers take all of them at once, ours one image at a time, as they come during inference. Each evaluation is a fresh
process that reads both files. Seconds are the processor's, so that other work on the machine does not count, and are given
with and without reading the true cells, which ours checks and keeps in a cache for all later runs; memory is the peak of
the process above what it had before it read. What a library loads for its first call counts as import. pycocotools runs
once, on all 200 images, which takes minutes; the others take turns.
"""

import contextlib
import gc
import importlib.util
import io
import json
import pkgutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import Figure, measure, read_memory

IMAGES, CELLS, DETECTIONS = 200, 300, 400
HEIGHT, WIDTH = 520, 704
MAX_DETS = [100, 500, 2000]
AREA_RANGES = [[0, 1e10], [0, 324], [324, 961], [961, 1e10]]
TASKS = ("bbox", "segm")
REFERENCE, TURNS = "pycocotools", 3
# With COCO's own interface: where its two classes are.
PEERS = {
    REFERENCE: ("pycocotools.coco.COCO", "pycocotools.cocoeval.COCOeval"),
    "ultrafast_pycocotools": ("ultrafast_pycocotools.COCO", "ultrafast_pycocotools.COCOeval"),
    "hotcoco": ("hotcoco.COCO", "hotcoco.COCOeval"),
    "faster_coco_eval": ("faster_coco_eval.COCO", "faster_coco_eval.COCOeval_faster"),
}
# Times faster, all of it and without reading; peak memory.
BARS = {REFERENCE: (40, None, 0.5), "ultrafast_pycocotools": (None, 1, 1)}

Numbers = dict[str, dict[str, float]]


def run() -> list[Figure]:
    installed = [peer for peer in PEERS if importlib.util.find_spec(peer)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make(folder)
        quick = ["ours", *(peer for peer in installed if peer != REFERENCE)]
        turns = [{what: _measure(what, folder) for what in quick} for _ in range(TURNS)]
        reference = _measure(REFERENCE, folder)
    best = {what: {key: min(turn[what][key] for turn in turns) for key in ("seconds", "alone", "bytes")} for what in quick}
    best[REFERENCE] = reference
    numbers = turns[0]["ours"]["numbers"]
    apart = max(abs(numbers[task][name] - value) for task in TASKS for name, value in reference["numbers"][task].items())
    figures = [Figure("largest difference from pycocotools, of AP and AR in percent", apart, "", 1e-9)]
    for peer in PEERS:
        figures += (
            _compared(best["ours"], peer, best[peer]) if peer in best else [Figure(peer, float("nan"), "(not installed)")]
        )
    return figures


def _compared(ours: dict[str, float], name: str, peer: dict[str, float]) -> list[Figure]:
    # The bars: of the issue that asked for the evaluator, and of the one that asked whether a library does better.
    faster, alone, memory_bar = BARS.get(name, (None, None, None))
    figures = []
    for what, key, bar in (("all of it", "seconds", faster), ("the true cells read before", "alone", alone)):
        took = f"({ours[key]:.2f} s, {peer[key]:.2f} s)"
        figures.append(Figure(f"times faster than {name}, {what}", peer[key] / ours[key], took, bar, "at least"))
    sizes = _mib(ours["bytes"], peer["bytes"])
    return [*figures, Figure(f"peak memory / that of {name}", ours["bytes"] / peer["bytes"], sizes, memory_bar)]


def _mib(*sizes: float) -> str:
    return f"({', '.join(f'{size / 2**20:.0f} MiB' for size in sizes)})"


def _make(folder: Path) -> None:
    """truth.json, detections.jsonl, and empty files for the images, whose pixels nobody reads.

    Cells are ellipses of 10 to 44 pixels with LIVECell's 24 or so points, overlapping as they fall. Each is detected, off
    by a pixel or two; the other hundred detections are second ones. Scores have four decimals, so that some are equal.
    """
    from pycocotools import mask as mask_util

    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    images = [{"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in range(1, IMAGES + 1)]
    with (folder / "detections.jsonl").open("w") as lines:
        for image in images:
            (folder / str(image["file_name"])).touch()
            cells = rng.uniform([8, 8, 5, 5, 0], [WIDTH - 8, HEIGHT - 8, 22, 14, np.pi], (CELLS, 5))
            again = rng.permutation(CELLS)[: DETECTIONS - CELLS]
            found = np.concatenate([cells, cells[again]])[rng.permutation(DETECTIONS)]
            found += rng.normal(0, [1.5, 1.5, 1, 1, 0.1], found.shape)
            for polygon in map(_ellipse, cells):
                (rle,) = mask_util.frPyObjects([polygon], HEIGHT, WIDTH)
                area, box = float(mask_util.area(rle)), mask_util.toBbox(rle).tolist()
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": image["id"], "category_id": 0, "iscrowd": 0}
                    | {"segmentation": [polygon], "area": area, "bbox": box}
                )
            rles = mask_util.frPyObjects([_ellipse(cell) for cell in found], HEIGHT, WIDTH)
            detections = [
                {"image_id": image["id"], "category_id": 0, "bbox": mask_util.toBbox(rle).tolist(), "score": score}
                | {"segmentation": {**rle, "counts": rle["counts"].decode()}}
                for rle, score in zip(rles, rng.random(DETECTIONS).round(4).tolist(), strict=True)
            ]
            lines.write(json.dumps(detections) + "\n")
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "cell"}]}
    (folder / "truth.json").write_text(json.dumps(truth))


def _ellipse(cell: np.ndarray) -> list[float]:
    """Polygon within the image, of (x, y, half axes, angle)."""
    x, y, a, b, angle = cell
    around = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = np.stack([max(a, 2) * np.cos(around), max(b, 2) * np.sin(around)], axis=1)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (points @ turn + (x, y)).clip(0, (WIDTH, HEIGHT)).round(2).ravel().tolist()


def _measure(what: str, folder: Path) -> dict[str, Any]:
    # Our reader's cache is to be of no help.
    for cache in folder.glob(".*.cache"):
        cache.unlink()
    return measure("evaluation", f"child({what!r}, {str(folder)!r})", OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1")


def child(what: str, folder: str) -> None:
    """One evaluation, in a process of its own; prints what it took, and AP and AR, as JSON."""
    evaluate = _ours() if what == "ours" else _peer(what)
    # What the imports left would be gone through by garbage collections, and far more of it with Detectron2 than without.
    gc.freeze()
    Path("/proc/self/clear_refs").write_text("5")  # The peak so far is that of the imports.
    before, started = read_memory("VmRSS"), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        read, numbers = evaluate(Path(folder))
    ended = time.process_time()
    measured = {"seconds": ended - started, "alone": ended - read, "bytes": read_memory("VmHWM") - before}
    print(json.dumps({**measured, "numbers": numbers}))


def _ours() -> Callable[[Path], tuple[float, Numbers]]:
    from detectron2.data import DatasetCatalog

    from cupre_d2.data import get_records, register_cell_dataset
    from cupre_d2.evaluation.cell_coco import CellCOCOEvaluator
    from cupre_d2.evaluation.cells import Detections
    from cupre_d2.evaluation.coco_metrics import match

    nothing = np.zeros(0)
    match(np.zeros((0, 0)), nothing, nothing, nothing, nothing.astype(bool), [(0, 1)])

    def evaluate(folder: Path) -> tuple[float, Numbers]:
        register_cell_dataset("cells", images=folder, annotations=folder / "truth.json")
        records = get_records("cells")
        read = time.process_time()
        DatasetCatalog.register("cells read", lambda: records)
        evaluator = CellCOCOEvaluator("cells read", MAX_DETS)
        evaluator.reset()
        with (folder / "detections.jsonl").open() as lines:
            for line in lines:
                detections = json.loads(line)
                evaluator.add(detections[0]["image_id"], Detections.of_results(detections, HEIGHT, WIDTH))
        results = evaluator.evaluate()
        assert results is not None
        return read, results

    return evaluate


def _peer(what: str) -> Callable[[Path], tuple[float, Numbers]]:
    api, evaluation_class = map(pkgutil.resolve_name, PEERS[what])
    return lambda folder: _evaluate_at_once(folder, api, evaluation_class)


def _evaluate_at_once(folder: Path, api: Any, evaluation_class: Any) -> tuple[float, Numbers]:
    """With COCO's own interface, as LIVECell's script does."""
    truth = api(str(folder / "truth.json"))
    read = time.process_time()
    with (folder / "detections.jsonl").open() as lines:
        detections = [detection for line in lines for detection in json.loads(line)]
    numbers = {}
    for task in TASKS:
        if task == "segm":
            for detection in detections:
                # Its area shall be its mask's.
                del detection["bbox"]
        evaluation = evaluation_class(truth, truth.loadRes(detections), task)
        evaluation.params.maxDets = MAX_DETS
        evaluation.params.areaRng = AREA_RANGES
        evaluation.params.areaRngLbl = ["all", "small", "medium", "large"]
        evaluation.evaluate()
        evaluation.accumulate()
        numbers[task] = _numbers(evaluation.eval["precision"], evaluation.eval["recall"])
    return read, numbers


def _numbers(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """Of one category, all defined."""
    values = {"AP": precision[:, :, 0, 0, -1], "AP50": precision[0, :, 0, 0, -1], "AP75": precision[5, :, 0, 0, -1]}
    for index, area in enumerate("sml", start=1):
        values |= {f"AP{area}": precision[:, :, 0, index, -1], f"AR{area}": recall[:, 0, index, -1]}
    values |= {f"AR{limit}": recall[:, 0, 0, index] for index, limit in enumerate(MAX_DETS)}
    return {name: float(100 * value.mean()) for name, value in values.items()}
