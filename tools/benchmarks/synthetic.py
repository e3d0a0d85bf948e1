"""Images of 256 px a second that two processes draw, masks included, of each kind of procedural image."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from benchmarks.figure import Figure

IMAGES, SIZE, PROCESSES = 200, 256, 2
# The bar of the issue, an absolute number; on a machine of two cores that do nothing else.
BAR = 200


def run() -> list[Figure]:
    from cupre_d2.data.synthetic import DRAW

    figures = []
    with ProcessPoolExecutor(PROCESSES, get_context("fork")) as pool:
        for kind in DRAW:
            list(pool.map(_draw, [(kind, 10)] * PROCESSES))
            started = time.perf_counter()
            list(pool.map(_draw, [(kind, IMAGES)] * PROCESSES))
            rate = PROCESSES * IMAGES / (time.perf_counter() - started)
            figures.append(Figure(f"{kind}, images of {SIZE} px on {PROCESSES} cores", rate, "a second", BAR, "at least"))
    return figures


def _draw(job: tuple[str, int]) -> None:
    import cv2

    from cupre_d2.data.synthetic import DRAW

    cv2.setNumThreads(1)
    kind, count = job
    for index in range(count):
        DRAW[kind][0](0, index, SIZE)
