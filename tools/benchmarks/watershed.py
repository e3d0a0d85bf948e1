"""Post-processing of SemanticWatershed on a 520 x 704 prediction with 300 cells, beside scikit-image's `watershed` alone.

The peer gets what a user would give it: the markers, cells and background, and the relief of the same probabilities. Ours
is everything from probabilities to Detectron2's instances with masks, boxes and scores. A second figure has the very call
that ours makes, which leaves out background amid background, so that nothing hides in the difference; it has no bar.
Seconds are the processor's; the best of some turns, taken one after the other.
"""

import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks import Figure

HEIGHT, WIDTH, ROWS, COLUMNS = 520, 704, 15, 20
BORDER_WIDTH, TURNS = 2, 15
BAR = 1.5


def run() -> list[Figure]:
    import cv2

    from cupre_d2.modeling import watershed as module

    cv2.setNumThreads(1)
    probabilities = make()
    thresholds = module.Thresholds()
    calls: list[tuple[tuple, dict[str, Any]]] = []
    flood = module.watershed

    def recorded(*arguments: Any, **options: Any) -> np.ndarray:
        calls.append((tuple(np.copy(argument) for argument in arguments), options))
        return flood(*arguments, **options)

    with patch.object(module, "watershed", recorded):
        found = len(module.segment(probabilities, "inner", thresholds)[1])
    (relief, markers), options = calls[0]
    what: dict[str, Callable[[], object]] = {
        "ours": lambda: module.to_instances(*module.segment(probabilities, "inner", thresholds)),
        "watershed": lambda: flood(relief, markers),
        "its call": lambda: flood(relief, markers, **options),
    }
    best = dict.fromkeys(what, np.inf)
    for _ in range(TURNS):
        for name, do in what.items():
            started = time.process_time()
            do()
            best[name] = min(best[name], time.process_time() - started)
    took = f"({1000 * best['ours']:.1f} ms, {{:.1f}} ms; {found} cells)"
    alone, its_call = best["watershed"], best["its call"]
    return [
        Figure("all of it / watershed alone", best["ours"] / alone, took.format(1000 * alone), BAR),
        Figure("all of it / the call in it", best["ours"] / its_call, took.format(1000 * its_call)),
    ]


def make() -> np.ndarray:
    """3 x H x W float32: what a network sure of itself says of 300 ellipses, many of which touch, with some noise."""
    import torch

    from cupre_d2.modeling.watershed import to_target

    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    labels = np.zeros((HEIGHT, WIDTH), np.int64)
    for index in range(ROWS * COLUMNS):
        y = (index // COLUMNS + 0.5) * HEIGHT / ROWS + random.uniform(-3, 3)
        x = (index % COLUMNS + 0.5) * WIDTH / COLUMNS + random.uniform(-3, 3)
        a, b = random.uniform(11, 18, 2)
        labels[((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1] = index + 1
    target = to_target(torch.from_numpy(labels), "inner", BORDER_WIDTH).numpy()
    logits = 6 * np.eye(3)[target].transpose(2, 0, 1) + random.normal(0, 0.7, (3, HEIGHT, WIDTH))
    return torch.from_numpy(logits).softmax(0).float().numpy()
