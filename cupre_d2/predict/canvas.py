"""Putting the cells of overlapping windows together to one label image, each cell once and whole."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from cupre_d2.errors import DatasetError
from cupre_d2.predict.tiling import Window

# Of the label image while it is made: no window has decided yet; a window has, and there is no cell. Cells come after.
UNDECIDED, BACKGROUND = 0, 1
FIRST = 2
# Pixels that are looked at in one go in the end, about.
STRIP = 2**22
COLUMNS = ("label", "score", "category", "top", "left", "bottom", "right", "area", "edge", "stitched")


@dataclass(frozen=True)
class Segmentation:
    """The cells of an image.

    Attributes:
        labels: H x W uint32, 0 for background, 1..N for cells; may be a memory map of a file without a name, whose space is
            free once nothing holds it.
        table: a row a cell, by label: "label", "score", "category", the box "top", "left", "bottom", "right" (pixels; bottom
            and right are the first outside), "area" (pixels), "edge" (touches the image's border), "stitched" (larger than
            any window that saw it, put together from parts), and whatever columns the windows' tables had beside these.
    """

    labels: np.ndarray
    table: pd.DataFrame


class LabelCanvas:
    """The label image of a page, on disk, which windows are added to one after the other.

    A cell is *cut* if it touches a border of its window that is none of the image. What a window says of a cell is settled
    so, by counting pixels of window and canvas that lie on each other, once:

    1. Cut cells without a pixel in the window's core are left to the neighbours: each pixel of a cell lies in one core, and
       the window of that core sees it.
    2. A cell i of the window and cells g of the canvas are the same if i has more than half of g's pixels in the window
       and their IoU is above 0.5 where both could be seen, which leaves out pixels of i that no window before has decided on
       (so too those of rule 1). Cells of a label image are disjoint: touching cells are never the same, a cell seen twice
       is, however large. Two whole ones are the same, too, if i has more than half of g and of no other whole one.
    3. Of the same cell seen whole twice the one stays whose box has its centre in its own window's core: there a model saw
       most of the surroundings. (All are alike where the label images are exact.) A whole one replaces cut ones that it has
       more than half of; a cut one is dropped where there is a whole one, and is added to another cut one. It joins several
       cut ones, unless one window saw two of these apart.
    4. What is none of these is a new cell, in pixels that no other has; with half of its pixels or less it is a duplicate
       and is dropped.

    For label images that are cut into windows and put together again this is exact for each cell that is connected
    (8 neighbours), whatever its size, if the halo is at least 1.

    Memory is that of a window and some 60 bytes a cell.

    Args:
        shape: height and width of the page, pixels.
        folder: for the file of 4 bytes a pixel; it has no name, so that nothing is left of it, however the process ends.

    Raises:
        DatasetError: no room for that file.
    """

    def __init__(self, shape: tuple[int, int], folder: str | os.PathLike[str] | None = None) -> None:
        self.shape = shape
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        try:
            # Without it a full disk would kill the process, as memory maps have no other way to say so.
            os.posix_fallocate(self._file.fileno(), 0, max(4 * shape[0] * shape[1], 1))
        except OSError as error:
            self._file.close()
            where = Path(folder or tempfile.gettempdir())
            raise DatasetError(
                f"{where}: no room for a label image of {shape[1]}x{shape[0]} pixels ({error.strerror})"
            ) from error
        self._tables: list[pd.DataFrame] = []
        # A cell's pixels, box, whether it is cut, whether stitched, the window it came from, and the cell it is part of.
        self._cells = np.zeros(
            FIRST,
            [("area", "i8"), ("box", "i4", 4), ("cut", "?"), ("stitched", "?"), ("window", "i4"), ("same", "i8")],
        )
        self._cells["same"] = range(FIRST)
        self._count = FIRST
        # Of stitched cells, the other windows that saw them.
        self._windows: dict[int, set[int]] = {}
        self._added = 0

    def _open(self) -> np.ndarray:
        # Anew each time, as pages of a map count as the process's memory until it is closed.
        return np.memmap(self._file, np.uint32, "r+", shape=self.shape)

    def add(self, window: Window, core: Window, labels: np.ndarray, table: pd.DataFrame) -> None:
        """Adds what a window sees.

        Args:
            window: in the page.
            core: the part of it that is in no other window's core, in the page.
            labels: whole numbers of the window's shape; 0 for background, k + 1 for row k of the table.
            table: a row a cell, with "score" and "category" at least.
        """
        found = _Found.of(window, core, labels, len(table), self.shape)
        canvas = self._open()
        old = self._current(canvas[window.slices])
        values = np.where(found.left_out[found.labels], 0, found.labels)
        target, erased = self._match(window, found, values, old)
        # Their pixels are background to whoever reads them next.
        self._cells["area"][erased] = 0
        old[np.isin(old, erased)] = BACKGROUND
        self._paint(window, found, target, values, old, table)
        # What is no cell is background, but where a cell was left to others.
        old[(old == UNDECIDED) & (found.labels == values)] = BACKGROUND
        canvas[window.slices] = old
        self._added += 1

    def _current(self, values: np.ndarray) -> np.ndarray:
        """What part of the canvas holds by now: cells that were joined have one value, those that went are background."""
        codes, names = pd.factorize(values.ravel())
        names = names.astype(np.int64)
        while not np.array_equal(names, above := self._cells["same"][names]):
            names = above
        names[(names >= FIRST) & (self._cells["area"][names] == 0)] = BACKGROUND
        return names[codes].reshape(values.shape)

    def _match(self, window: Window, found: "_Found", values: np.ndarray, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rules 2 and 3.

        Returns:
            Of each cell of the window: the cell it is added to, FIRST - 1 if it is new, 0 if it is dropped; and the cells of
            the canvas that are to go.
        """
        count = len(found.cut)
        target = np.full(count, BACKGROUND, np.int64)
        target[found.left_out] = 0
        target[0] = 0
        mine, theirs, shared = overlaps(values, np.where(old >= FIRST, old, 0))
        if not len(mine):
            return target, mine
        # Pixels that canvas cells have in the window, and window cells where others decided before.
        names, sizes = np.unique(old[old >= FIRST], return_counts=True)
        size = sizes[np.searchsorted(names, theirs)]
        decided = np.bincount(values[old != UNDECIDED], minlength=count)
        most = 2 * shared > size
        mine, theirs, shared, size = mine[most], theirs[most], shared[most], size[most]
        alike = 2 * shared > decided[mine] + size - shared
        whole = ~self._cells["cut"][theirs]

        # The same, whole on the canvas: one of the two goes.
        inside = whole & ~found.cut[mine] & (2 * shared > self._cells["area"][theirs])
        pick = (alike & whole) | (inside & (np.bincount(mine[inside], minlength=count)[mine] == 1))
        better = pick & ~found.cut[mine] & found.central[mine]
        target[mine[pick & ~better]] = 0
        erased = [theirs[better]]

        # Cut on the canvas, and no whole one that is the same.
        open_ = ~whole & (target[mine] == BACKGROUND) & ~np.isin(mine, mine[pick])
        replaced = open_ & ~found.cut[mine] & (2 * shared > self._cells["area"][theirs])
        erased.append(theirs[replaced])
        rest = open_ & found.cut[mine]
        both, seen = np.bincount(mine[rest], shared[rest], count), np.bincount(mine[rest], size[rest], count)
        same = 2 * both > decided + seen - both
        for i in np.flatnonzero(same & (both > 0)):
            parts = theirs[rest & (mine == i)]
            order = np.argsort(-shared[rest & (mine == i)], kind="stable")
            target[i] = self._join(parts[order])
        return target, np.concatenate(erased)

    def _join(self, parts: np.ndarray) -> int:
        """One cell of parts, the first of which is the largest; parts that one window saw apart stay apart."""
        first = int(parts[0])
        windows = self._windows.setdefault(first, {int(self._cells["window"][first])})
        for part in parts[1:].tolist():
            others = self._windows.get(part, {int(self._cells["window"][part])})
            if windows & others:
                continue
            windows |= others
            one, other = self._cells[first], self._cells[part]
            other["same"] = first
            one["area"] += other["area"]
            one["box"] = _hull(one["box"], other["box"])
            self._windows.pop(part, None)
        windows.add(self._added)
        self._cells["stitched"][first] = True
        return first

    def _paint(
        self,
        window: Window,
        found: "_Found",
        target: np.ndarray,
        values: np.ndarray,
        old: np.ndarray,
        table: pd.DataFrame,
    ) -> None:
        """Rule 4, and the pixels of all cells that stay."""
        free = np.where(old < FIRST, values, 0)
        gained = np.bincount(free.ravel(), minlength=len(target))
        new = (target == BACKGROUND) & (2 * gained > found.areas)
        target[target == BACKGROUND] = 0
        number = int(new.sum())
        self._grow(number)
        created = np.arange(self._count, self._count + number)
        target[new] = created
        cells = self._cells[self._count : self._count + number]
        cells["area"], cells["box"], cells["cut"] = gained[new], found.boxes[new], found.cut[new]
        cells["window"], cells["same"] = self._added, created
        self._count += number
        if number:
            self._tables.append(table.iloc[np.flatnonzero(new) - 1])
        for i in np.flatnonzero((target > 0) & ~new):
            cell = self._cells[target[i]]
            cell["area"] += gained[i]
            cell["box"] = _hull(cell["box"], found.boxes[i])
        painted = target[free]
        np.copyto(old, painted, where=painted > 0)

    def _grow(self, number: int) -> None:
        if self._count + number > len(self._cells):
            grown = np.zeros(max(2 * len(self._cells), self._count + number), self._cells.dtype)
            grown[: self._count] = self._cells[: self._count]
            self._cells = grown

    def _roots(self) -> np.ndarray:
        same = self._cells["same"][: self._count]
        while not np.array_equal(same, above := same[same]):
            same = above
        return same

    def finish(self) -> Segmentation:
        """The cells, numbered from 1 without gaps in the order they were found in; the canvas takes no more windows."""
        cells, roots = self._cells[: self._count], self._roots()
        left = (cells["area"] > 0) & (roots == np.arange(self._count))
        left[:FIRST] = False
        number = np.where(left, np.cumsum(left), 0)[roots].astype(np.uint32)
        areas = np.zeros(int(left.sum()) + 1, np.int64)
        boxes = np.tile(np.array([*self.shape, 0, 0]), (len(areas), 1))
        height = max(STRIP // max(self.shape[1], 1), 1)
        for top in range(0, self.shape[0], height):
            strip = self._open()[top : top + height]
            values = number[strip]
            strip[:] = values
            _measure(values, top, areas, boxes)
        table = pd.concat(self._tables, ignore_index=True) if self._tables else pd.DataFrame(columns=["score", "category"])
        columns = {name: table[name].array[left[FIRST:]] for name in table}
        top, left_, bottom, right = boxes[1:].T
        columns |= {"label": np.arange(1, len(areas)), "area": areas[1:], "stitched": cells["stitched"][left]}
        columns |= {"top": top, "left": left_, "bottom": bottom, "right": right}
        columns["edge"] = (top == 0) | (left_ == 0) | (bottom == self.shape[0]) | (right == self.shape[1])
        labels = self._open()
        self._file.close()
        return Segmentation(labels, pd.DataFrame({name: columns[name] for name in (*COLUMNS, *columns)}))


@dataclass(frozen=True)
class _Found:
    """The cells of a window, the first entry of each array that of the background.

    Attributes:
        labels: H x W int64.
        areas: pixels.
        boxes: top, left, bottom, right in the page.
        cut: touches a border of the window that is none of the page.
        left_out: cut, and without a pixel in the core.
        central: the centre of its box is in the core.
    """

    labels: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    cut: np.ndarray
    left_out: np.ndarray
    central: np.ndarray

    @classmethod
    def of(cls, window: Window, core: Window, labels: np.ndarray, count: int, page: tuple[int, int]) -> "_Found":
        labels = labels.astype(np.int64)
        boxes = np.concatenate([np.zeros((1, 4), np.int64), _boxes(labels, count)])
        present = boxes[:, 2] > 0
        ends = np.array(window.shape)
        open_start = np.array([window.top > 0, window.left > 0])
        open_end = np.array([window.bottom < page[0], window.right < page[1]])
        cut = present & (((boxes[:, :2] == 0) & open_start) | ((boxes[:, 2:] == ends) & open_end)).any(1)
        boxes += (window.top, window.left, window.top, window.left)
        in_core = np.zeros(count + 1, bool)
        in_core[labels[core.within(window).slices]] = True
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        central = ((centre >= core[:2]) & (centre < core[2:])).all(1)
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        return cls(labels, areas, boxes, cut, cut & ~in_core, central)


def overlaps(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which labels of two label images lie on each other, 0 left out: those of the first, of the second, pixels shared."""
    both = (first > 0) & (second > 0)
    one, other = first[both].astype(np.int64), second[both].astype(np.int64)
    base = int(one.max(initial=0)) + 1
    pairs, counts = np.unique(other * base + one, return_counts=True)
    return pairs % base, pairs // base, counts


def _hull(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.concatenate([np.minimum(one[:2], other[:2]), np.maximum(one[2:], other[2:])])


def _measure(strip: np.ndarray, top: int, areas: np.ndarray, boxes: np.ndarray) -> None:
    """Adds the pixels of a strip of the final label image to areas and boxes."""
    counts = np.bincount(strip.ravel(), minlength=len(areas))
    areas += counts
    present = np.flatnonzero(counts)
    present = present[present > 0]
    compact = np.zeros(len(areas), np.int32)
    compact[present] = np.arange(1, len(present) + 1)
    found = _boxes(compact[strip], len(present)) + (top, 0, top, 0)
    boxes[present, :2] = np.minimum(boxes[present, :2], found[:, :2])
    boxes[present, 2:] = np.maximum(boxes[present, 2:], found[:, 2:])


def _boxes(labels: np.ndarray, count: int) -> np.ndarray:
    """Top, left, bottom and right of labels 1 to `count`, count x 4 int64; zeros for one that is not there."""
    nothing = (slice(0, 0), slice(0, 0))
    places = [place or nothing for place in ndimage.find_objects(labels, count)]
    return np.array([(y.start, x.start, y.stop, x.stop) for y, x in places], np.int64).reshape(-1, 4)
