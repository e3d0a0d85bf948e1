"""Tiled prediction by a mini detector beside the whole image and beside SAHI; the merge alone; a page of 20,000 x 20,000 px.

The detector is configs/quickstart's fine-tune stage, trained from nothing on procedural nuclei for some minutes and kept in
output/benchmark_predict. Images of 4 x 4 tiles of its training size have cells as dense as in training. SAHI's sliced
prediction gets the same network and its own defaults; its merge is GreedyNMM, ours all from the windows' label images to the
finished one. A count error is a cell that is missed or made up, at an IoU of 0.5. The page is of 16 bits, on disk. Seconds
are the processor's; PREDICT_SIDE=4000 makes the page smaller.
"""

import contextlib
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import Figure, measure, read_memory

CONFIG = "configs/quickstart/finetune_cells_5pct.yaml"
FOLDER = "output/benchmark_predict"
ITERATIONS = 250
TRAINED, TILES, IMAGES = 192, 4, 4
SCORE = 0.5
DENSE, DENSE_SIDE = 7000, 1000
SIDE = int(os.environ.get("PREDICT_SIDE", "20000"))


def run() -> list[Figure]:
    segmenter = _segmenter(tile=TRAINED)
    figures = _whole(segmenter)
    figures += _sahi(segmenter) if importlib.util.find_spec("sahi") else [Figure("sahi is not installed; peers", 0, "")]
    figures += _merge(segmenter)
    canvas, page = measure("predict", f"canvas({SIDE})"), measure("predict", f"page({SIDE})")
    figures += [
        Figure(
            f"{SIDE} x {SIDE} px, {canvas['cells']} cells, the merge alone: cells missed or made up",
            abs(canvas["cells"] - canvas["true"]),
            f"({canvas['seconds']:.2f} s a megapixel)",
            0,
        ),
        Figure(f"{SIDE} x {SIDE} px, the merge alone, peak memory", canvas["peak"] / 2**30, "GiB", 8),
        Figure(
            f"{SIDE} x {SIDE} px, seconds a pixel / a single tile's",
            page["seconds"] / page["tile"],
            f"({page['seconds']:.2f} s a megapixel, {page['tile']:.2f} s; {page['cells']} cells)",
            1 / 0.85,
        ),
        Figure(f"{SIDE} x {SIDE} px, peak memory", page["peak"] / 2**30, "GiB", 8),
    ]
    return figures


def _segmenter(**options: Any) -> Any:
    from cupre_d2.engine import pipeline
    from cupre_d2.predict.segmenter import Segmenter, TrainedRun

    folder = Path(__file__).parents[2] / FOLDER
    if not list(folder.glob("*/model_final.pth")):
        settings = {"DATASETS.TRAIN": ("synthetic_cells_train",), "DATASETS.TEST": (), "SOLVER.MAX_ITER": ITERATIONS}
        pipeline.train(CONFIG, {**settings, "MODEL.DEVICE": "cpu", "OUTPUT_DIR": str(folder)})
    (checkpoint,) = folder.glob("*/model_final.pth")
    model = TrainedRun.load(checkpoint, "cpu")
    for predictor in model.model.roi_heads.box_predictor:  # type: ignore[union-attr]
        predictor.test_score_thresh = SCORE
    sides = (TRAINED, TRAINED, TRAINED)
    return Segmenter(replace(model, cell_diameter=19.0, heights=sides, widths=sides), **options)


def _drawings() -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and their true cells as label images."""
    from cupre_d2.data.synthetic import draw

    found = []
    for index in range(IMAGES):
        image, masks, _ = draw("cells", 77, index, TRAINED * TILES)
        labels = np.zeros(image.shape[:2], np.int32)
        for number, mask in enumerate(masks, start=1):
            labels[mask & (labels == 0)] = number
        found.append((image, labels))
    return found


def _whole(segmenter: Any) -> list[Figure]:
    tiled = [segmenter(image) for image, _ in _drawings()]
    segmenter._tile = TRAINED * TILES
    whole = [segmenter(image) for image, _ in _drawings()]
    segmenter._tile = TRAINED
    counts = [sum(len(one.table) for one in found) for found in (tiled, whole)]
    ious = np.concatenate([_matched(one.labels, two.labels) for one, two in zip(tiled, whole, strict=True)])
    seams = [sum(_borders_on_seams(one.labels) for one in found) for found in (tiled, whole)]
    return [
        Figure("tiled / whole, difference of the number of cells", abs(counts[0] / counts[1] - 1), f"{counts}", 0.01),
        Figure(
            "tiled against whole, mean IoU of matched cells", float(ious.mean()), f"({len(ious)} cells)", 0.97, "at least"
        ),
        Figure("borders of cells that lie along seams, tiled / whole", seams[0] / seams[1], f"{seams}", 1.1),
    ]


def _matched(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """IoUs above 0.5 of the cells of two label images."""
    from cupre_d2.predict.canvas import overlaps

    first, second, shared = overlaps(np.asarray(one), np.asarray(other))
    areas, others = (np.bincount(np.asarray(labels).ravel()) for labels in (one, other))
    ious = shared / (areas[first] + others[second] - shared)
    return ious[ious > 0.5]


def _borders_on_seams(labels: np.ndarray) -> int:
    """Pixels on either side of a seam that are not of the same cell, windows' edges and cores' alike."""
    from cupre_d2.predict.tiling import tiles

    total = 0
    cut = tiles((len(labels), len(labels)), TRAINED, 32)
    for axis in range(2):
        seams = {box[axis] for tile in cut for box in tile} | {box[axis + 2] for tile in cut for box in tile}
        for seam in sorted(seams - {0, labels.shape[axis]}):
            total += int((np.take(labels, seam - 1, axis) != np.take(labels, seam, axis)).sum())
    return total


def _sahi(segmenter: Any) -> list[Figure]:
    from sahi.models.detectron2 import Detectron2DetectionModel
    from sahi.postprocess.combine import GreedyNMMPostprocess
    from sahi.predict import get_sliced_prediction

    from cupre_d2.predict import segmenter as module
    from cupre_d2.predict.canvas import LabelCanvas

    peer = Detectron2DetectionModel(confidence_threshold=SCORE, category_mapping={"0": "cell"}, load_at_init=False)
    peer.model = _Predictor(segmenter)
    errors, true = [0, 0], 0
    merging: list[float] = []
    pasting: list[float] = []
    peers: list[float] = []
    for image, labels in _drawings():
        with _timed(GreedyNMMPostprocess, "__call__", peers):
            found = get_sliced_prediction(image, peer, slice_height=TRAINED, slice_width=TRAINED, verbose=0)
        theirs = np.zeros(labels.shape, np.int32)
        predictions = sorted(found.object_prediction_list, key=lambda one: one.score.value)
        for number, one in enumerate(predictions, start=1):
            theirs[one.mask.bool_mask] = number
        with (
            _timed(LabelCanvas, "add", merging),
            _timed(LabelCanvas, "finish", merging),
            _timed(module, "paint", pasting),
        ):
            ours = segmenter(image)
        true += labels.max()
        errors[0] += labels.max() + len(ours.table) - 2 * len(_matched(ours.labels, labels))
        errors[1] += labels.max() + len(predictions) - 2 * len(_matched(theirs, labels))
    merge, paste, peer_merge = sum(merging), sum(pasting), sum(peers)
    return [
        Figure("count errors / SAHI's", errors[0] / max(errors[1], 1), f"({errors[0]}, {errors[1]}; {true} cells)", 1),
        Figure("merge, time / SAHI's", merge / peer_merge, f"({merge:.2f} s, {peer_merge:.2f} s)", 0.5),
        Figure("merge and pasting of masks, time / SAHI's merge alone", (merge + paste) / peer_merge, ""),
    ]


class _Predictor:
    """The network as Detectron2's DefaultPredictor."""

    def __init__(self, segmenter: Any) -> None:
        self._model = segmenter.model
        self.input_format = self._model.cfg.INPUT.FORMAT

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        with torch.inference_mode():
            (found,) = self._model.model([{"image": tensor, "height": image.shape[0], "width": image.shape[1]}])
        return found


@contextlib.contextmanager
def _timed(holder: Any, name: str, spent: list[float]) -> Any:
    """Within, what a function takes is kept."""
    function = getattr(holder, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            spent.append(time.process_time() - started)

    setattr(holder, name, timed)
    try:
        yield
    finally:
        setattr(holder, name, function)


def _merge(segmenter: Any) -> list[Figure]:
    """A window of a megapixel with cells on all of it, onto a canvas that has seen a ring of it from all sides."""
    import pandas as pd

    from cupre_d2.predict.canvas import LabelCanvas
    from cupre_d2.predict.tiling import Window

    halo, side = 64, DENSE_SIDE + 200
    labels = _dense(side)
    canvas = LabelCanvas((side, side))
    inner = Window(100, 100, 100 + DENSE_SIDE, 100 + DENSE_SIDE)
    own = inner.top + halo
    around = [
        Window(0, 0, own, side),
        Window(own, 0, side - own, own),
        Window(own, side - own, side - own, side),
        Window(side - own, 0, side, side),
    ]
    took = np.inf
    for window in (*around, inner):
        _, inverse = np.unique(labels[window.slices], return_inverse=True)
        part = inverse.reshape(window.shape)
        table = pd.DataFrame({"score": np.ones(part.max() + 1), "category": 0})
        started = time.process_time()
        canvas.add(window, window, part + 1, table)
        took = time.process_time() - started
    from cupre_d2.data.synthetic import draw

    image = np.tile(draw("cells", 5, 0, TRAINED)[0], (6, 6, 1))[:DENSE_SIDE, :DENSE_SIDE]
    inference = _seconds(lambda: segmenter.predict_window(image))
    return [
        Figure(
            f"merge of {DENSE} cells a megapixel / inference",
            took / inference,
            f"({took:.2f} s, {inference:.2f} s a megapixel)",
            1,
        )
    ]


def _dense(side: int) -> np.ndarray:
    """Polygons that touch, of DENSE to a megapixel."""
    from scipy import ndimage

    points = np.zeros((side, side), np.int32)
    places = np.random.default_rng(0).choice(side**2, round(DENSE * side**2 / 1e6), replace=False)
    points.ravel()[places] = np.arange(1, len(places) + 1)
    return points[tuple(ndimage.distance_transform_edt(points == 0, return_distances=False, return_indices=True))]


def _seconds(do: Callable[[], object]) -> float:
    started = time.process_time()
    do()
    return time.process_time() - started


def canvas(side: int) -> None:
    """Prints what the merge of a page of that side, DENSE cells on all of it, takes a megapixel, its cells, and the peak."""
    import pandas as pd

    from cupre_d2.predict.canvas import LabelCanvas
    from cupre_d2.predict.tiling import tiles

    block = _dense(2 * DENSE_SIDE)
    length, most = len(block), int(block.max()) + 1
    page, seconds = LabelCanvas((side, side)), 0.0
    for window, core in tiles((side, side), 1536, 32):
        rows, columns = np.arange(window.top, window.bottom), np.arange(window.left, window.right)
        # The block again and again, each time of other cells.
        copies = (rows // length)[:, None] * (side // length + 1) + columns // length
        codes, names = pd.factorize((block[np.ix_(rows % length, columns % length)] + copies * most).ravel())
        table = pd.DataFrame({"score": np.ones(len(names)), "category": 0})
        labels = (codes + 1).reshape(window.shape)
        seconds += _seconds(lambda: page.add(window, core, labels, table))  # noqa: B023
    found: list[Any] = []
    seconds += _seconds(lambda: found.append(page.finish()))
    true = sum(
        len(np.unique(block[: side - top, : side - left]))
        for top in range(0, side, length)
        for left in range(0, side, length)
    )
    measured = {"seconds": seconds / side**2 * 1e6, "cells": len(found[0].table), "true": true, "peak": read_memory("VmHWM")}
    print(json.dumps(measured))


def page(side: int) -> None:
    """Prints what a page of that side takes a megapixel, beside a single tile, its cells, and the peak of this process."""
    from cupre_d2.data.synthetic import draw

    segmenter = _segmenter()
    with tempfile.TemporaryDirectory() as folder:
        image = np.memmap(Path(folder) / "page", np.uint16, "w+", shape=(side, side))
        block = draw("cells", 5, 0, 960)[0][:, :, 0].astype(np.uint16) * 200
        for top in range(0, side, 960):
            image[top : top + 960] = np.tile(block, (1, side // 960 + 1))[: side - top, :side]
        tile = np.array(image[: segmenter._tile, : segmenter._tile])
        one = min(_seconds(lambda: segmenter(tile)) for _ in range(2))
        found: list[Any] = []
        took = _seconds(lambda: found.append(segmenter(image)))
        cells = len(found[0].table)
    measured = {"seconds": took / side**2 * 1e6, "tile": one / tile.size * 1e6, "cells": cells, "peak": read_memory("VmHWM")}
    print(json.dumps(measured))
