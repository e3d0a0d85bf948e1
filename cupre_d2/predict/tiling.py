"""Cutting a page into tiles that a model takes one after the other."""

from typing import NamedTuple

from cupre_d2.errors import ConfigError


class Window(NamedTuple):
    """A rectangle of pixels; bottom and right are the first ones outside."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def within(self, other: "Window") -> "Window":
        """The same pixels, counted from the corner of another window."""
        return Window(self.top - other.top, self.left - other.left, self.bottom - other.top, self.right - other.left)


class Tile(NamedTuple):
    """What a model sees at a time, and the part of it that is no other tile's."""

    window: Window
    core: Window


def tiles(shape: tuple[int, int], size: int, halo: int) -> list[Tile]:
    """Tiles of an image, row by row.

    Cores are disjoint, cover the image and are as equal as whole pixels allow. A window is its core and `halo` pixels around
    it, as far as the image goes. An image that is at most `size` along an axis is not cut there.

    Args:
        shape: height and width of the image, pixels.
        size: the longest side a window may have.
        halo: at least 0; with 0, a cell on a seam falls apart.

    Raises:
        ConfigError: no room for a core between the halos.

    >>> [tile.window[1::2] for tile in tiles((5, 10), size=6, halo=1)]
    [(0, 4), (2, 7), (5, 10)]
    """
    if halo < 0 or size <= 2 * halo:
        raise ConfigError(f"tiles of {size} pixels with a halo of {halo}: expected a halo of at least 0, below half a tile")
    rows, columns = (_spans(length, size, halo) for length in shape)
    return [
        Tile(Window(top, left, bottom, right), Window(core_top, core_left, core_bottom, core_right))
        for top, core_top, core_bottom, bottom in rows
        for left, core_left, core_right, right in columns
    ]


def _spans(length: int, size: int, halo: int) -> list[tuple[int, int, int, int]]:
    """Along an axis: the start of each window, of its core, and their ends."""
    count = 1 if length <= size else -(-length // (size - 2 * halo))
    edges = [length * index // count for index in range(count + 1)]
    return [
        (max(start - halo, 0), start, end, min(end + halo, length)) for start, end in zip(edges, edges[1:], strict=False)
    ]
