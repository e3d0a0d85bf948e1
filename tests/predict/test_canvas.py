"""Label images cut into windows and put together again."""

import os
import resource
import signal
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cupre_d2.errors import DatasetError
from cupre_d2.predict.canvas import LabelCanvas, Segmentation, overlaps
from cupre_d2.predict.tiling import Window, tiles

DATASETS = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
EIGHT = np.ones((3, 3), int)


def connected(labels: np.ndarray) -> np.ndarray:
    """The same label image, parts of a label that do not touch being cells of their own."""
    parts, count = np.zeros(labels.shape, np.int32), 0
    for label, place in enumerate(ndimage.find_objects(labels), start=1):
        if place:
            own, number = ndimage.label(labels[place] == label, EIGHT)
            parts[place][own > 0] = own[own > 0] + count
            count += number
    return parts


def renumbered(labels: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
    """As a segmenter gives them: 1..N, with a table whose scores tell the cells."""
    names, inverse = np.unique(labels, return_inverse=True)
    names = names if names[0] == 0 else np.concatenate([[0], names])
    numbers = np.searchsorted(names, labels).astype(np.int32)
    scores = names[1:].astype(float)
    return numbers, pd.DataFrame({"score": scores, "category": np.zeros(len(scores), int)})


def put_together(labels: np.ndarray, size: int, halo: int) -> Segmentation:
    canvas = LabelCanvas(labels.shape)
    for window, core in tiles(labels.shape, size, halo):
        canvas.add(window, core, *renumbered(labels[window.slices]))
    return canvas.finish()


def equal_up_to_numbering(found: np.ndarray, truth: np.ndarray) -> bool:
    one, other, _ = overlaps(found, truth)
    pairs_are_unique = len(one) == len(np.unique(one)) == len(np.unique(other))
    return pairs_are_unique and np.array_equal(found > 0, truth > 0)


def check_table(found: Segmentation, truth: np.ndarray) -> None:
    labels, table = np.asarray(found.labels), found.table
    assert table["label"].tolist() == list(range(1, labels.max() + 1))
    assert table["area"].tolist() == np.bincount(labels.ravel())[1:].tolist()
    boxes = [(y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(labels.astype(int))]
    assert table[["top", "left", "bottom", "right"]].to_numpy().tolist() == [list(box) for box in boxes]
    edges = set(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]).tolist()) - {0}
    assert set(table.loc[table["edge"], "label"]) == edges
    # Scores are the true labels here.
    places = [np.unravel_index(np.argmax(labels == label), labels.shape) for label in table["label"][:20]]
    assert [truth[place] for place in places] == table["score"][:20].tolist()


def voronoi(seed: int, height: int, width: int, cells: int, background: float) -> np.ndarray:
    """Cells that touch their neighbours everywhere, some of which are then background."""
    rng = np.random.default_rng(seed)
    points = np.zeros((height, width), np.int32)
    places = rng.choice(height * width, min(cells, height * width), replace=False)
    points.ravel()[places] = np.arange(1, len(places) + 1)
    nearest = ndimage.distance_transform_edt(points == 0, return_distances=False, return_indices=True)
    labels = points[tuple(nearest)]
    labels[np.isin(labels, np.flatnonzero(rng.random(len(places) + 1) < background))] = 0
    return connected(labels)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    shape=st.tuples(st.integers(1, 48), st.integers(1, 48)),
    cells=st.integers(1, 120),
    background=st.sampled_from([0.0, 0.3, 0.8]),
    halo=st.integers(1, 9),
    core=st.integers(1, 20),
)
def test_touching_cells_are_neither_joined_nor_split(
    seed: int, shape: tuple[int, int], cells: int, background: float, halo: int, core: int
) -> None:
    """With any halo, those of cells far larger than it included."""
    truth = voronoi(seed, *shape, cells, background)
    found = put_together(truth, core + 2 * halo, halo)
    assert equal_up_to_numbering(np.asarray(found.labels), truth)
    check_table(found, truth)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), shape=st.tuples(st.integers(1, 30), st.integers(1, 30)), halo=st.integers(1, 4))
def test_any_connected_shape(seed: int, shape: tuple[int, int], halo: int) -> None:
    """Spirals, rings and diagonals of noise, whose parts meet only in other windows."""
    rng = np.random.default_rng(seed)
    truth = connected(rng.choice(3, shape, p=[0.4, 0.35, 0.25]).astype(np.int32))
    assert equal_up_to_numbering(np.asarray(put_together(truth, 2 * halo + 3, halo).labels), truth)


def halves(shape: tuple[int, int], row: int | None, column: int | None) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    one = 0 if row is None else (rows >= row) * 1
    return (1 + one + (0 if column is None else (columns >= column) * 2)).astype(np.int32)


@pytest.mark.parametrize(("row", "column"), [(16, None), (None, 16), (16, 16), (17, 15)], ids=str)
@pytest.mark.parametrize("halo", [1, 4])
def test_cells_that_touch_along_the_seams_and_at_their_corner(row: int | None, column: int | None, halo: int) -> None:
    disc = np.hypot(*(np.mgrid[:32, :32] - 15.5)) < 9
    truth = np.where(disc, halves((32, 32), row, column), 0).astype(np.int32)
    found = put_together(truth, 16 + 2 * halo, halo)
    assert equal_up_to_numbering(np.asarray(found.labels), truth)


def test_a_cell_in_four_tiles_is_one_and_stitched_only_where_no_window_saw_it_whole() -> None:
    truth = (np.hypot(*(np.mgrid[:32, :32] - 15.5)) < 6).astype(np.int32)
    for halo, stitched in ((2, True), (8, False)):
        table = put_together(truth, 16 + 2 * halo, halo).table
        assert len(table) == 1 and table["area"][0] == truth.sum() and table["stitched"].tolist() == [stitched]


def real_label_images() -> list:
    """Of each data set the densest at hand, as parameters: name and a function."""

    def bbbc038() -> np.ndarray:
        folder = max((DATASETS / "bbbc038/stage1_train").iterdir(), key=lambda one: len(list((one / "masks").iterdir())))
        masks = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in sorted((folder / "masks").iterdir())]
        labels = np.zeros(masks[0].shape, np.int32)
        for number, mask in enumerate(masks, start=1):
            labels[mask > 0] = number
        return labels

    def livecell() -> np.ndarray:
        from pycocotools.coco import COCO

        from cupre_d2.evaluation.cells import paint, to_rles

        truth = COCO(str(DATASETS / "livecell/annotations/LIVECell/livecell_coco_val.json"))
        image = max(truth.imgs.values(), key=lambda one: len(truth.imgToAnns[one["id"]]))
        size = image["height"], image["width"]
        rles = to_rles([one["segmentation"] for one in truth.imgToAnns[image["id"]]], *size)
        return paint(rles, np.linspace(1, 0, len(rles)), *size)

    def ctc() -> np.ndarray:
        file = max((DATASETS / "ctc").glob("PhC-C2DL-PSC/*ST/SEG/*.tif"), key=lambda one: one.stat().st_size)
        return cv2.imread(str(file), cv2.IMREAD_UNCHANGED).astype(np.int32)

    def hela() -> np.ndarray:
        file = min((DATASETS / "ctc").glob("DIC-C2DH-HeLa/*ST/SEG/*.tif"))
        return cv2.imread(str(file), cv2.IMREAD_UNCHANGED).astype(np.int32)

    return [bbbc038, livecell, ctc, hela]


@pytest.mark.real_data
@pytest.mark.parametrize("make", real_label_images(), ids=lambda make: make.__name__)
def test_real_ground_truth_comes_back(make) -> None:  # noqa: ANN001
    """Six sizes of tiles, three halos: exact as it is where the halo is as large as a cell, and, where it is not, for each
    cell that is in one piece.
    """
    if not (DATASETS / "ctc").is_dir():
        pytest.skip("no real data")
    given, _ = renumbered(make()[:420, :520])
    boxes = ndimage.find_objects(given)
    extent = max(part.stop - part.start for place in boxes for part in place)
    parts = connected(given)
    assert given.max() > 5
    for core in (32, 57, 64, 100, 128, 200):
        for halo in (2, 16, extent):
            found = np.asarray(put_together(given, core + 2 * halo, halo).labels)
            if halo >= extent:
                assert equal_up_to_numbering(found, given), (core, halo)
                continue
            # A cell in pieces can be several where no window sees how they belong together; none is joined to another.
            assert np.array_equal(found > 0, given > 0)
            one, other, _ = overlaps(found, given)
            assert len(one) == len(np.unique(one)), (core, halo)
            differ = np.flatnonzero(np.bincount(other) > 1)
            pieces = np.bincount(overlaps(parts, given)[1])
            assert (pieces[differ] > 1).all(), (core, halo)


@pytest.mark.parametrize("change", ["dilated", "eroded", "either"])
def test_windows_that_see_cells_differently(change: str) -> None:
    """Each window has every cell larger or smaller by a pixel, as it falls: none is lost, and none doubled.

    Where the halo is half a cell, windows may agree so little on the strip they share that one cell of 90 is doubled.
    """
    truth = voronoi(5, 240, 260, 150, 0.3)
    inner = np.where(ndimage.grey_erosion(truth, size=5) == ndimage.grey_dilation(truth, size=5), truth, 0)
    truth, _ = renumbered(np.where(np.isin(truth, np.flatnonzero(np.bincount(inner.ravel()) > 60)), truth, 0))
    count = truth.max()
    centres = np.rint(ndimage.center_of_mass(truth > 0, truth, range(1, count + 1))).astype(int)
    rng = np.random.default_rng(0)
    for size, halo in ((64, 8), (80, 16), (110, 24)):
        canvas = LabelCanvas(truth.shape)
        for window, core in tiles(truth.shape, size, halo):
            seen = truth[window.slices]
            large = np.where(seen == 0, ndimage.grey_dilation(seen, size=3), seen)
            small = np.where(ndimage.grey_erosion(seen, size=3) == seen, seen, 0)
            grows = {"dilated": 1.0, "eroded": 0.0, "either": 0.5}[change] > rng.random(count + 1)
            labels = np.where(grows[large], large, np.where(grows[seen], seen, small))
            canvas.add(window, core, *renumbered(labels))
        found = canvas.finish()
        assert count <= len(found.table) <= count + (halo < 16), (size, halo)
        hit = np.asarray(found.labels)[tuple(centres.T)]
        inside = truth[tuple(centres.T)] == np.arange(1, count + 1)
        assert len(np.unique(hit[inside])) == inside.sum() and (hit[inside] > 0).all()


def test_what_one_window_told_apart_is_not_joined_by_another_that_does_not() -> None:
    """A cell that two windows see as two, and a third as one cut at its border: the two stay."""
    canvas = LabelCanvas((20, 60))
    table = pd.DataFrame({"score": [0.9, 0.8], "category": [0, 0]})
    labels = np.zeros((20, 40), np.int32)
    labels[2:9, 20:40], labels[9:16, 20:40] = 1, 2
    canvas.add(Window(0, 0, 20, 40), Window(0, 0, 20, 30), labels, table)
    merged = np.zeros((20, 40), np.int32)
    merged[2:16] = 1
    canvas.add(Window(0, 20, 20, 60), Window(0, 30, 20, 60), merged, table[:1])
    assert len(canvas.finish().table) == 2


def test_of_two_whole_views_the_central_one_stays() -> None:
    canvas = LabelCanvas((20, 40))
    table = pd.DataFrame({"score": [0.9], "category": [3], "mine": ["first"]})
    labels = np.zeros((20, 28), np.int32)
    labels[5:12, 19:25] = 1
    canvas.add(Window(0, 0, 20, 28), Window(0, 0, 20, 20), labels, table)
    labels = np.zeros((20, 28), np.int32)
    labels[4:12, 7:14] = 1
    canvas.add(Window(0, 12, 20, 40), Window(0, 20, 20, 40), labels, table.assign(mine="second", score=0.7))
    found = canvas.finish().table
    assert len(found) == 1 and found["mine"][0] == "second" and found["area"][0] == 56 and found["score"][0] == 0.7


def test_a_page_without_cells_and_a_page_of_one_pixel() -> None:
    found = put_together(np.zeros((30, 40), np.int32), 16, 2)
    assert not found.labels.any() and found.labels.dtype == np.uint32 and len(found.table) == 0
    assert {"label", "score", "category", "area", "edge", "stitched"} <= set(found.table)
    assert len(put_together(np.ones((1, 1), np.int32), 16, 2).table) == 1


def test_memory_is_that_of_a_window() -> None:
    """A page of 36 million pixels, whose label image alone has 137 MiB: the peak of what is allocated stays far below."""
    page, (labels, table) = (6000, 6000), renumbered(voronoi(0, 264, 264, 300, 0.5))
    tracemalloc.start()
    canvas = LabelCanvas(page)
    for top in range(0, 6000, 1000):
        window = Window(top, top, min(top + 264, 6000), min(top + 264, 6000))
        canvas.add(window, window, labels, table)
    found = canvas.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.table) == 6 * len(table)
    assert peak < 100 * 2**20


def test_the_file_has_no_name_and_no_room_is_said(tmp_path: Path) -> None:
    canvas = LabelCanvas((50, 50), tmp_path)
    assert not list(tmp_path.iterdir())
    del canvas
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(DatasetError, match=r"no room for a label image of 2000x1000 pixels \(File too large\)"):
            LabelCanvas((1000, 2000), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_dense_window_is_added_in_well_under_a_second() -> None:
    """7,000 cells a megapixel, with neighbours on all sides."""
    truth = voronoi(1, 1200, 1200, 10_000, 0.1)
    canvas = LabelCanvas(truth.shape)
    for window, core in tiles(truth.shape, 700, 100):
        canvas.add(window, core, *renumbered(truth[window.slices]))
    window = Window(100, 100, 1100, 1100)
    started = time.process_time()
    canvas.add(window, window, *renumbered(truth[window.slices]))
    assert time.process_time() - started < 1
    assert equal_up_to_numbering(np.asarray(canvas.finish().labels), truth)
