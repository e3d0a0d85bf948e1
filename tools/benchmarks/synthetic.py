"""Images of 256 px a second that two processes draw, masks included, of each kind of procedural image.

The best of some rounds: what else runs on the machine makes a round slower, never faster.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from benchmarks import Figure

IMAGES, SIZE, PROCESSES, ROUNDS = 150, 256, 2, 5
# The bar of the issue, an absolute number.
BAR = 200


def run() -> list[Figure]:
    from cupre_d2.data.synthetic import KINDS

    figures = []
    with ProcessPoolExecutor(PROCESSES, get_context("fork")) as pool:
        for kind in KINDS:
            rate = max(_rate(pool, kind) for _ in range(ROUNDS))
            figures.append(Figure(f"{kind}, images of {SIZE} px on {PROCESSES} cores", rate, "a second", BAR, "at least"))
    return figures


def _rate(pool: ProcessPoolExecutor, kind: str) -> float:
    started = time.perf_counter()
    list(pool.map(_draw, [kind] * PROCESSES))
    return PROCESSES * IMAGES / (time.perf_counter() - started)


def _draw(kind: str) -> None:
    import cv2

    from cupre_d2.data.synthetic import draw

    cv2.setNumThreads(1)
    for index in range(IMAGES):
        draw(kind, 0, index, SIZE)
