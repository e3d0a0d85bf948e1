"""What a big COCO JSON was parsed into, kept beside it, so that it is parsed once.

A cache holds flat arrays and nothing that could run. It is valid for one content of the JSON, told by a hash; a checksum
tells damage.
"""

import contextlib
import glob
import hashlib
import logging
import mmap
import os
import time
import uuid
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec
import numpy as np

from cupre_d2.data.formats.coco_arrays import ARRAYS, CocoArrays, Image
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Bytes; smaller files are parsed in less than a second, and shall leave no files behind.
SMALLEST = 10 * 2**20
SUFFIX = ".cupre_d2.cache"
# Mapped pages, unlike read ones, are shared by all processes; asked for one by one they cost more time than all at once.
_MAP = mmap.MAP_PRIVATE | getattr(mmap, "MAP_POPULATE", 0)
# Raise it when CocoArrays, what is taken into it, or the file changes.
_MAGIC = b"cupre_d2 COCO arrays 4\n"
# Behind it: the bytes of the header and the checksum of all that follows, 8 bytes each; the header; the arrays.
_PREFIX = len(_MAGIC) + 16
_ALIGNMENT = 64
# Seconds; a file of a million instances is written in a few.
_ABANDONED = 3600


class _Header(msgspec.Struct):
    size: int
    sha256: str
    images: list[Image]
    categories: list[tuple[int, str]]
    skipped: dict[str, int]
    total: int
    repeated: int
    lengths: dict[str, int]


@dataclass(frozen=True)
class _Cache:
    """A cache that looks like one of a JSON of some size."""

    header: _Header
    arrays: CocoArrays
    content: memoryview
    checksum: int

    def holds(self, digest: Callable[[], str]) -> bool:
        """Whether it is undamaged, and made of a JSON of this digest."""
        return zlib.crc32(self.content[_PREFIX:]) == self.checksum and self.header.sha256 == digest()


def cached(
    json_file: Path, stream: BinaryIO, parse: Callable[[Path, Any], CocoArrays], use: Callable[[CocoArrays], Result]
) -> Result:
    """What `use` makes of the arrays of a JSON: of its cache, if that fits its content, else of the parsed file.

    A big file is put in the cache when it is parsed. The cache lies beside the JSON, or where that folder cannot be
    written, below $XDG_CACHE_HOME or ~/.cache. Whatever is wrong with a cache, it is made anew; if none can be written,
    that is logged. A cache is put to use while it and the JSON are still being hashed, and what came of it dropped if
    it does not fit.

    Args:
        json_file: the JSON.
        stream: the same file, opened.
        parse: makes arrays of its path and its content.
        use: called with arrays; without side effects.

    Raises:
        OSError: the JSON cannot be read. DatasetError: as `parse` and `use`.
    """
    size = os.fstat(stream.fileno()).st_size
    if size < SMALLEST:
        return use(parse(json_file, stream.read()))
    places = _places(json_file)
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content, ThreadPoolExecutor(1) as pool:
        digest = pool.submit(lambda: hashlib.sha256(content).hexdigest())
        for place in places:
            cache = _read(place, size)
            if cache is None:
                continue
            holds = pool.submit(cache.holds, digest.result)
            try:
                result = use(cache.arrays)
            except DatasetError:
                if holds.result():
                    raise
                continue
            if holds.result():
                return result
        parsed = parse(json_file, content)
        if not any(_write(place, parsed, size, digest.result()) for place in places):
            folders = " or ".join(str(place.parent) for place in places)
            logger.warning("%s: no cache can be written to %s", json_file, folders)
    return use(parsed)


def _places(json_file: Path) -> list[Path]:
    beside = json_file.with_name(f".{json_file.name}{SUFFIX}")
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cupre_d2"
    except RuntimeError:
        return [beside]
    name = hashlib.sha256(os.fsencode(json_file.absolute())).hexdigest()[:16]
    return [beside, home / f"{name}{SUFFIX}"]


def _read(place: Path, size: int) -> _Cache | None:
    """The cache at a place, whose arrays fit together; None where there is none for a JSON of this size."""
    try:
        with place.open("rb") as stream:
            content = memoryview(mmap.mmap(stream.fileno(), 0, flags=_MAP, prot=mmap.PROT_READ))
        header_bytes, checksum = (int.from_bytes(content[end - 8 : end], "little") for end in (_PREFIX - 8, _PREFIX))
        if content[: len(_MAGIC)] != _MAGIC:
            return None
        header = msgspec.json.decode(content[_PREFIX : _PREFIX + header_bytes], type=_Header)
        if header.size != size:
            return None
        arrays = CocoArrays(
            images=header.images,
            categories=dict(header.categories),
            skipped=header.skipped,
            total=header.total,
            repeated=header.repeated,
            **_take(content, _PREFIX + header_bytes, header.lengths),
        )
        return _Cache(header, arrays, content, checksum) if arrays.is_consistent() else None
    except (OSError, ValueError, LookupError, OverflowError, msgspec.MsgspecError):
        return None


def _take(content: memoryview, position: int, lengths: dict[str, int]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, dtype in ARRAYS.items():
        position += -position % _ALIGNMENT
        length = lengths[name]
        arrays[name] = np.frombuffer(content[position:], dtype, length) if length else np.empty(0, dtype)
        position += arrays[name].nbytes
    return arrays


def _write(place: Path, parsed: CocoArrays, size: int, digest: str) -> bool:
    """Whether it could be written. It appears whole or not at all."""
    arrays = {name: getattr(parsed, name) for name in ARRAYS}
    header = msgspec.json.encode(
        _Header(
            size=size,
            sha256=digest,
            images=parsed.images,
            categories=list(parsed.categories.items()),
            skipped=parsed.skipped,
            total=parsed.total,
            repeated=parsed.repeated,
            lengths={name: len(array) for name, array in arrays.items()},
        )
    )
    pieces: list[Any] = [header]
    position = _PREFIX + len(header)
    for array in arrays.values():
        pieces += [bytes(-position % _ALIGNMENT), array.data]
        position += len(pieces[-2]) + array.nbytes
    checksum = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    prefix = _MAGIC + len(header).to_bytes(8, "little") + checksum.to_bytes(8, "little")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _replace(place, [prefix, *pieces])
    except OSError:
        return False
    return True


def _replace(place: Path, pieces: list[Any]) -> None:
    _remove_abandoned(place)
    # A name of its own, as several processes may write at once.
    partial = place.with_name(f"{place.name}-{uuid.uuid4().hex}")
    try:
        with partial.open("xb") as stream:
            stream.writelines(pieces)
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(partial, place)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _remove_abandoned(place: Path) -> None:
    """Removes what writers that were killed left: nobody has written to it for long."""
    for partial in place.parent.glob(f"{glob.escape(place.name)}-*"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _ABANDONED:
                partial.unlink()
