"""What is to be segmented: files, folders, patterns and data sets, as pages that are read whole or by regions."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog

from cupre_d2.data.formats.image_folder import IMAGE_SUFFIXES, in_threads
from cupre_d2.data.image_files import PageHeader, Raster, read_headers, read_raster, read_region
from cupre_d2.data.images import choose_channels
from cupre_d2.data.targets import dataset_names, register_dataset_file
from cupre_d2.errors import ConfigError, DatasetError, closest
from cupre_d2.predict.zarr_images import is_zarr, read_zarr

# What a folder is searched for; a file that is named may end as it likes.
SUFFIXES = (*IMAGE_SUFFIXES, ".webp", ".lsm", ".btf", ".zarr")
# Bytes of a decoded page above which it is read by regions, where its format allows.
WHOLE_BYTES = 2**26
# Characters, which leaves room for what writers append.
_MAX_NAME = 180

Box = tuple[int, int, int, int]
Key = tuple[str, int]


@dataclass
class Page:
    """An image to segment: a file, or a page of a stack.

    Attributes:
        name: of its outputs, without an ending; unique among those of a job, whatever the case of its letters.
        file: absolute.
        page: from 0, of a file with several; else None.
        shape: height and width in pixels.
        bits: of a sample that count.
        state: size in bytes and time of the last change (ns) of the file; another one is to be segmented again.
        reading: what a record's fields "channels" and "percentiles" say, where it has them, as in `images.read_record`.
    """

    name: str
    file: Path
    page: int | None
    shape: tuple[int, int]
    bits: int
    state: tuple[int, int]
    reading: Mapping[str, Any] = field(default_factory=dict)
    # All of it, or a part.
    _decode: Callable[[Box | None], Raster] = field(kw_only=True, repr=False)
    _regions: bool = field(kw_only=True, repr=False)
    _whole: np.ndarray | None = field(default=None, init=False, repr=False)
    _opaque: bool | None = field(default=None, init=False, repr=False)

    @property
    def channels(self) -> tuple[int, ...] | None:
        """Those chosen, counted from 0: one, or three dyes whose contrast is stretched each on its own; None for all."""
        channels = self.reading.get("channels")
        return None if channels is None else tuple(channels)

    @property
    def pixels(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def key(self) -> Key:
        """What tells the page from others."""
        return str(self.file), self.page or 0

    def __str__(self) -> str:
        return str(self.file) if self.page is None else f"{self.file}, page {self.page}"

    def read(self, window: Box | None = None) -> np.ndarray:
        """The samples of a part of the page, top, left, bottom, right, or of all of it.

        A page of up to WHOLE_BYTES, or of a format without regions, is decoded once and kept until `close`.

        Returns:
            HxWxC in the file's type, C being 1 or 3: the channels chosen, alpha left out, as in `images.read_image`.

        Raises:
            DatasetError: the file cannot be read, or needs a choice of channels.
        """
        if self._regions and self._whole is None:
            raster = self._decode(window or (0, 0, *self.shape))
            return choose_channels(self._without_opaque(raster), self.channels, str(self))
        if self._whole is None:
            self._whole = choose_channels(self._decode(None), self.channels, str(self))
        if window is None:
            return self._whole
        top, left, bottom, right = window
        return self._whole[top:bottom, left:right]

    def close(self) -> None:
        """Frees what `read` keeps."""
        self._whole = None

    def _without_opaque(self, raster: Raster) -> Raster:
        """Whether a fourth channel is opaque everywhere, no part of the page can tell."""
        if raster.alpha or raster.samples.shape[2] != 4 or self.channels is not None:
            return raster
        if self._opaque is None:
            height, width = self.shape
            strips = (self._decode((top, 0, min(top + 256, height), width)).samples for top in range(0, height, 256))
            self._opaque = raster.samples.dtype.kind == "u" and all(
                strip[:, :, 3].min() == 2**self.bits - 1 for strip in strips
            )
        if self._opaque:
            return Raster(raster.samples, raster.bits, True)
        raise DatasetError(
            f"{self}: 4 channels, none of them alpha; expected grey or RGB, or one or three chosen by --channels"
        )


@dataclass
class Found:
    """What the inputs of a job come to.

    Attributes:
        pages: in order of the inputs, a folder's by name of the file; each once.
        failures: a line each, of inputs that cannot be read.
        remarks: a line each, of what was left out.
    """

    pages: list[Page] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Wanted:
    """A file to open; of a data set's record its page and how it is to be read."""

    file: Path
    page: int | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)


def find_pages(
    inputs: Sequence[str | os.PathLike[str]],
    datasets: str | os.PathLike[str] | None = None,
    channels: Sequence[int] | None = None,
    trained_channels: Sequence[int] | None = None,
    output: str | os.PathLike[str] | None = None,
    names: Mapping[Key, str] | None = None,
) -> Found:
    """Opens the headers of all inputs.

    Args:
        inputs: files, folders (images right in them; sub-folders are counted and left out, but for `.zarr`), patterns with
            "*", "?", "[...]", and "**" for any depth of folders, names of data sets. What exists as a path is one.
        datasets: a YAML file of data sets, as `register_dataset_file` takes it; without inputs, all of them.
        channels: to take of every image, instead of what a data set says.
        trained_channels: to take where nothing else is said, of the images that have these and more.
        output: the job's folder; what a pattern finds in it is left out.
        names: those that pages have already.

    Raises:
        DatasetError: the YAML file cannot be used.
        ConfigError: there is no input, or the output folder is where the images are.
    """
    found = Found()
    words = [str(word) for word in inputs]
    if datasets is not None:
        register_dataset_file(datasets)
        words = words or dataset_names(datasets)
    if not words:
        raise ConfigError("no input; expected files, folders, patterns or data sets")
    place = None if output is None else Path(output).expanduser().absolute()
    wanted = [one for word in words for one in _resolve(word, found, place)]
    if place is not None and any(one.file.parent == place for one in wanted):
        raise ConfigError(f"{place}: holds input images; expected another folder for the outputs")
    unique = {(str(one.file), one.page, str(one.reading)): one for one in wanted}
    chosen = None if channels is None else tuple(channels)
    for result in in_threads(lambda one: _open(one, chosen, tuple(trained_channels or ())), unique.values()):
        if isinstance(result, str):
            found.failures.append(result)
        else:
            found.pages += result
    once: dict[Key, Page] = {}
    for page in found.pages:
        once.setdefault(page.key, page)
    if more := len(wanted) - len(unique) + len(found.pages) - len(once):
        found.remarks.append(f"{more} images are named more than once; each is segmented once")
    found.pages = list(once.values())
    _name(found.pages, names or {})
    return found


def _resolve(word: str, found: Found, output: Path | None) -> list[_Wanted]:
    path = Path(word).expanduser().absolute()
    if path.is_dir() and not is_zarr(path):
        return _in_folder(path, found)
    if path.exists():
        return [_Wanted(path)]
    if glob.has_magic(word):
        return _matches(word, path, found, output)
    if word in DatasetCatalog.list():
        return _of_dataset(word, found)
    found.failures.append(f"{word}: no such file, folder or data set{_near(word)}")
    return []


def _near(word: str) -> str:
    """What may be meant, of what lies beside it and of data sets; "" where nothing is close."""
    path = Path(word)
    folder = path.expanduser().parent
    beside = [str(path.parent / name) for name in os.listdir(folder)] if folder.is_dir() else []
    hint = closest(word, [*beside, *DatasetCatalog.list()])
    return f"; {hint}" if hint.startswith("did you mean") else ""


def _in_folder(folder: Path, found: Found) -> list[_Wanted]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir() and not is_zarr(entry)]
    files = [entry for entry in entries if entry not in folders]
    images = _images(files, folder, found)
    if folders:
        found.remarks.append(f"{folder}: left out {len(folders)} sub-folders; '{folder}/**/*.tif' takes the images in them")
    if not images:
        found.failures.append(f"{folder}: no image; expected files that end in {', '.join(SUFFIXES)}")
    return [_Wanted(image) for image in images]


def _images(files: Sequence[Path], where: object, found: Found) -> list[Path]:
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    others = Counter(file.suffix or file.name for file in files if file.suffix.lower() not in SUFFIXES)
    if others:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        found.remarks.append(f"{where}: left out {others.total()} files that are no images: {listed}")
    return images


def _matches(word: str, path: Path, found: Found, output: Path | None) -> list[_Wanted]:
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    inside = {match for match in matches if output is not None and output in (match, *match.parents)}
    # The files in a Zarr folder are its own.
    matches = [match for match in matches if match not in inside and not any(map(is_zarr, match.parents))]
    folders = [match for match in matches if match.is_dir() and not is_zarr(match)]
    files = [match for match in matches if match not in folders]
    if inside:
        found.remarks.append(f"{word}: left out {len(inside)} matches in the output folder")
    if folders and not files:
        return [one for folder in folders for one in _in_folder(folder, found)]
    images = _images(files, word, found)
    if not images:
        found.failures.append(f"{word}: matches no image")
    return [_Wanted(image) for image in images]


def _of_dataset(name: str, found: Found) -> list[_Wanted]:
    try:
        records = DatasetCatalog.get(name)
    except DatasetError as error:
        found.failures.append(str(error))
        return []
    fields = ("channels", "percentiles")
    return [
        _Wanted(
            Path(record["file_name"]).absolute(),
            record.get("page"),
            {key: record[key] for key in fields if key in record},
        )
        for record in records
    ]


def _open(wanted: _Wanted, chosen: tuple[int, ...] | None, trained: tuple[int, ...]) -> list[Page] | str:
    """Its pages, or why there are none."""
    try:
        if is_zarr(wanted.file):
            images = [(image.file, image.headers(), image.read) for image in read_zarr(wanted.file)]
        else:
            images = [(wanted.file, read_headers(wanted.file), partial(read_region, wanted.file))]
        state = _state(wanted.file)
    except (DatasetError, OSError) as error:
        return str(error)
    reading = {**wanted.reading, **({} if chosen is None else {"channels": chosen})}
    pages = []
    for file, headers, read in images:
        for index, header in enumerate(headers):
            if wanted.page not in (None, index):
                continue
            has_more = bool(trained) and len(trained) < header.channels > max(trained)
            how = reading | ({"channels": trained} if has_more and "channels" not in reading else {})
            pages.append(_page(file, index if len(headers) > 1 else None, header, read, state, how))
    return pages or f"{wanted.file}: field page {wanted.page}: expected a page from 0 to {len(images[0][1]) - 1}"


def _page(
    file: Path,
    page: int | None,
    header: PageHeader,
    read: Callable[..., Raster],
    state: tuple[int, int],
    reading: Mapping[str, Any],
) -> Page:
    def decode(box: Box | None) -> Raster:
        if box is None and not is_zarr(file):
            return read_raster(file, page)
        return read(page or 0, *(box or (0, 0, *header.shape)))

    regions = header.regions and header.nbytes > WHOLE_BYTES
    return Page("", file, page, header.shape, header.bits, state, reading, _decode=decode, _regions=regions)


def _state(path: Path) -> tuple[int, int]:
    """Size and time of a file; of a folder the sum and the latest of all in it."""
    files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    stats = [os.stat(file) for file in files]
    return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)


def _name(pages: Sequence[Page], known: Mapping[Key, str]) -> None:
    """Gives pages their names: the file's stem; of files that share it, with the ending or the folders they differ in."""
    counts = Counter(page.file for page in pages)
    taken = {name.casefold() for name in known.values()}
    new = [page for page in pages if page.key not in known]
    prefixes = _prefixes(list(dict.fromkeys(page.file for page in new)))
    for page in pages:
        if page.key in known:
            page.name = known[page.key]
            continue
        digits = len(str(counts[page.file] - 1))
        number = "" if page.page is None else f"_p{page.page:0{digits}}"
        name = free = f"{prefixes[page.file]}{number}"
        again = 1
        while free.casefold() in taken:
            again += 1
            free = f"{name}_{again}"
        page.name = free
        taken.add(free.casefold())


def _prefixes(files: Sequence[Path]) -> dict[Path, str]:
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(_stem(file).casefold(), []).append(file)
    return {file: name for group in by_stem.values() for file, name in zip(group, _distinct(group), strict=True)}


def _distinct(files: Sequence[Path]) -> list[str]:
    """Names for files of one stem: the simplest kind that tells all of them apart."""
    kinds: list[Callable[[Path], str]] = [_stem, lambda file: f"{_stem(file)}_{file.suffix[1:]}"]
    depth = max(len(file.parts) for file in files)
    kinds += [lambda file, n=n: "_".join((*file.parent.parts[1:][-n:], _stem(file))) for n in range(1, depth)]  # type: ignore[misc]
    for kind in kinds:
        names = [kind(file)[-_MAX_NAME:] for file in files]
        if len({name.casefold() for name in names}) == len(files):
            return names
    return [_stem(file)[-_MAX_NAME:] for file in files]


def _stem(file: Path) -> str:
    stem = file.stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem
