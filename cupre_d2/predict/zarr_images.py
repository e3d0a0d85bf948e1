"""The images of a Zarr folder: OME-Zarr at its full size (plates too), or a plain array."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cupre_d2.data.image_files import PageHeader, Raster, decoding
from cupre_d2.errors import DatasetError

# Of version 2, and of 3.
_MARKS = (".zgroup", ".zarray", "zarr.json")
# Where OME-Zarr's metadata name none: its versions before 0.3.
_AXES = "tczyx"
# Of a plain array's last dimension.
_MAX_CHANNELS = 4


@dataclass(frozen=True)
class ZarrImage:
    """An array and what its dimensions are.

    Attributes:
        file: the folder of the image, within the Zarr folder or that itself.
        axes: a letter a dimension; y and x are among them, c for channels, and any others, which tell pages.
    """

    file: Path
    array: Any
    axes: str

    def headers(self) -> list[PageHeader]:
        lengths = dict(zip(self.axes, self.array.shape, strict=True))
        shape, channels, dtype = (lengths["y"], lengths["x"]), lengths.get("c", 1), np.dtype(self.array.dtype)
        nbytes = shape[0] * shape[1] * channels * dtype.itemsize
        return [PageHeader(shape, channels, 8 * dtype.itemsize, nbytes, True)] * int(np.prod(self._stack()))

    def read(self, page: int, top: int, left: int, bottom: int, right: int) -> Raster:
        """A part of a page, which decodes the chunks that it touches; chunks that are not there hold the fill value.

        Raises:
            DatasetError: a chunk cannot be decoded.
        """
        place = iter(np.unravel_index(page, self._stack()))
        parts = {"y": slice(top, bottom), "x": slice(left, right), "c": slice(None)}
        with decoding(self.file):
            samples = np.asarray(self.array[tuple(parts[axis] if axis in parts else int(next(place)) for axis in self.axes)])
            order = [axis for axis in self.axes if axis in parts]
            samples = samples if "c" in order else samples[..., None]
            order = order if "c" in order else [*order, "c"]
            samples = samples.transpose([order.index(axis) for axis in "yxc"])
            return Raster(samples.astype(samples.dtype.newbyteorder("=")), 8 * samples.dtype.itemsize, False)

    def _stack(self) -> tuple[int, ...]:
        return tuple(length for axis, length in zip(self.axes, self.array.shape, strict=True) if axis not in "cyx")


def is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / mark).is_file() for mark in _MARKS)


def read_zarr(path: Path) -> list[ZarrImage]:
    """The images of a Zarr folder; those of label images in it are none.

    Raises:
        DatasetError: it is broken, holds no image, or an array whose dimensions nothing explains.
    """
    # Takes half a second, for a format that few have.
    import zarr

    with decoding(path):
        root = zarr.open(str(path), mode="r")
        images = [_plain(path, root)] if hasattr(root, "shape") else list(_ome(path, root))
    for image in images:
        if np.dtype(image.array.dtype).kind not in "buif":
            raise DatasetError(f"{image.file}: samples of type {image.array.dtype}; expected numbers")
    if not images:
        raise DatasetError(f"{path}: a Zarr group without an image; expected OME-Zarr's multiscales, or an array")
    return images


def _plain(path: Path, array: Any) -> ZarrImage:
    axes = "yx" if array.ndim == 2 else "yxc"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] > _MAX_CHANNELS):
        shape = " x ".join(map(str, array.shape))
        raise DatasetError(
            f"{path}: an array {shape} without OME metadata; expected height x width, or height x width x up to "
            f"{_MAX_CHANNELS} channels"
        )
    return ZarrImage(path, array, axes)


def _ome(path: Path, group: Any) -> Iterator[ZarrImage]:
    """Of a group and, where it is none itself, as a plate's and a well's, of those in it."""
    attributes = dict(group.attrs)
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        for name, inner in sorted(group.groups()):
            if name not in ("labels", "OME"):
                yield from _ome(path / name, inner)
        return
    array = group[multiscales[0]["datasets"][0]["path"]]
    named = multiscales[0].get("axes") or _AXES[-array.ndim :]
    axes = "".join(axis["name"] if isinstance(axis, dict) else axis for axis in named)
    if len(axes) != array.ndim or not {"y", "x"} <= set(axes):
        raise DatasetError(
            f"{path}: axes {axes} of an array of {array.ndim} dimensions; expected a letter each, with y and x"
        )
    yield ZarrImage(path, array, axes)
