"""Evaluation of 200 images of 300 cells and 400 detections, boxes and masks, beside pycocotools and faster-coco-eval.

Images have LIVECell's size. True cells are polygons in a COCO JSON, detections RLEs in a file with a line an image: the
two peers take all of them at once, ours one image at a time, as they come during inference. Each evaluation is a fresh
process that reads both files. Seconds are the processor's, so that other work on the machine does not count; memory is
the peak of the process above what it had before it read. pycocotools runs once, on all 200 images, which takes minutes;
ours runs before and after it.
"""

import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figure import Figure
from benchmarks.process import measure, memory

IMAGES, CELLS, DETECTIONS = 200, 300, 400
HEIGHT, WIDTH = 520, 704
MAX_DETS = [100, 500, 2000]
AREA_RANGES = [[0, 1e10], [0, 324], [324, 961], [961, 1e10]]
TASKS = ("bbox", "segm")

Numbers = dict[str, dict[str, float]]


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make(folder)
        ours = [_measure("ours", folder) for _ in range(2)]
        fast = _measure("faster_coco_eval", folder)
        peer = _measure("pycocotools", folder)
        ours.append(_measure("ours", folder))
    seconds = statistics.median(one["seconds"] for one in ours)
    peak = statistics.median(one["bytes"] for one in ours)
    apart = max(
        abs(ours[0]["numbers"][task][metric] - value) for task in TASKS for metric, value in peer["numbers"][task].items()
    )
    return [
        Figure("largest difference from pycocotools, of AP and AR in percent", apart, "", 1e-9),
        Figure(
            "boxes and masks, times faster than pycocotools",
            peer["seconds"] / seconds,
            f"({seconds:.1f} s, {peer['seconds']:.0f} s)",
            40,
            "at least",
        ),
        Figure("peak memory / pycocotools'", peak / peer["bytes"], _mib(peak, peer["bytes"]), 0.5),
        Figure(
            "boxes and masks, times faster than faster-coco-eval", fast["seconds"] / seconds, f"({fast['seconds']:.1f} s)"
        ),
        Figure("peak memory / faster-coco-eval's", peak / fast["bytes"], _mib(peak, fast["bytes"])),
    ]


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
    return measure("evaluation", f"child({what!r}, {str(folder)!r})", OMP_NUM_THREADS="1")


def child(what: str, folder: str) -> None:
    """One evaluation, in a process of its own; prints what it took, and AP and AR, as JSON."""
    evaluate = {"ours": _ours, "pycocotools": _pycocotools, "faster_coco_eval": _faster_coco_eval}[what]()
    Path("/proc/self/clear_refs").write_text("5")  # The peak so far is that of the imports.
    before, started = memory("VmRSS"), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        numbers = evaluate(Path(folder))
    measured = {"seconds": time.process_time() - started, "bytes": memory("VmHWM") - before}
    print(json.dumps({**measured, "numbers": numbers}))


def _ours() -> Callable[[Path], Numbers]:
    from cupre_d2.data import register_cell_dataset
    from cupre_d2.evaluation.cell_coco import CellCOCOEvaluator
    from cupre_d2.evaluation.cells import Detections

    def evaluate(folder: Path) -> Numbers:
        register_cell_dataset("cells", images=folder, annotations=folder / "truth.json")
        evaluator = CellCOCOEvaluator("cells", MAX_DETS)
        evaluator.reset()
        with (folder / "detections.jsonl").open() as lines:
            for line in lines:
                detections = json.loads(line)
                evaluator.add(detections[0]["image_id"], Detections.of_results(detections, HEIGHT, WIDTH))
        results = evaluator.evaluate()
        assert results is not None
        return results

    return evaluate


def _pycocotools() -> Callable[[Path], Numbers]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return lambda folder: _evaluate_at_once(folder, COCO, COCOeval)


def _faster_coco_eval() -> Callable[[Path], Numbers]:
    from faster_coco_eval import COCO, COCOeval_faster

    return lambda folder: _evaluate_at_once(folder, COCO, COCOeval_faster)


def _evaluate_at_once(folder: Path, api: Any, evaluation_class: Any) -> Numbers:
    """With COCO's own interface, as LIVECell's script does."""
    truth = api(str(folder / "truth.json"))
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
    return numbers


def _numbers(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """Of one category, all defined."""
    values = {"AP": precision[:, :, 0, 0, -1], "AP50": precision[0, :, 0, 0, -1], "AP75": precision[5, :, 0, 0, -1]}
    for index, area in enumerate("sml", start=1):
        values |= {f"AP{area}": precision[:, :, 0, index, -1], f"AR{area}": recall[:, 0, index, -1]}
    values |= {f"AR{limit}": recall[:, 0, 0, index] for index, limit in enumerate(MAX_DETS)}
    return {name: float(100 * value.mean()) for name, value in values.items()}
