"""What a big COCO JSON was parsed into, kept beside it, so that it is parsed once.

The file holds flat arrays and nothing that could run; it is valid for one content of the JSON, told by a hash.
"""

import contextlib
import hashlib
import logging
import mmap
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec
import numpy as np

from cupre_d2.data.formats.coco_arrays import CocoArrays, Image
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Smaller files are parsed in no time, and shall leave no files behind.
SMALLEST = 10 * 2**20
SUFFIX = ".cupre_d2.cache"
# Raise it when CocoArrays or the file changes.
_MAGIC = b"cupre_d2 COCO arrays 1\n"
_ALIGNMENT = 64


class _Header(msgspec.Struct):
    size: int
    sha256: str
    images: list[Image]
    categories: list[tuple[int, str]]
    skipped: dict[str, int]
    total: int
    # Name, dtype and shape of each array.
    arrays: list[tuple[str, str, list[int]]]


def cached(
    json_file: Path, stream: BinaryIO, parse: Callable[[Path, Any], CocoArrays], use: Callable[[CocoArrays], Result]
) -> Result:
    """What `use` makes of the arrays of a JSON: of its cache, if that fits its content, else of the parsed file.

    A big file is put in the cache when it is parsed. The cache lies beside the JSON, or where that folder cannot be
    written, below $XDG_CACHE_HOME or ~/.cache. Whatever is wrong with a cache, it is made anew; if none can be written,
    that is logged. A cache is put to use while the JSON is still being hashed, and what came of it dropped if it does
    not fit.

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
            found = _read(place, size)
            if found is None:
                continue
            header, arrays = found
            try:
                result = use(arrays)
            except DatasetError:
                if digest.result() == header.sha256:
                    raise
                continue
            if digest.result() == header.sha256:
                return result
        parsed = parse(json_file, content)
        if not any(_write(place, parsed, size, digest.result()) for place in places):
            folders = " or ".join(str(place.parent) for place in places)
            logger.warning("%s: no cache can be written to %s", json_file, folders)
    return use(parsed)


def _places(json_file: Path) -> list[Path]:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cupre_d2"
    name = hashlib.sha256(str(json_file.absolute()).encode(errors="surrogateescape")).hexdigest()[:16]
    return [json_file.with_name(f".{json_file.name}{SUFFIX}"), home / f"{name}{SUFFIX}"]


def _read(place: Path, size: int) -> tuple[_Header, CocoArrays] | None:
    try:
        with place.open("rb") as stream:
            content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        if bytes(content[: len(_MAGIC)]) != _MAGIC:
            return None
        length, start = int.from_bytes(content[len(_MAGIC) : len(_MAGIC) + 8], "little"), len(_MAGIC) + 8
        header = msgspec.json.decode(content[start : start + length], type=_Header)
        if header.size != size:
            return None
        arrays = _arrays(header, content, start + length)
        parsed = CocoArrays(header.images, dict(header.categories), header.skipped, header.total, **arrays)
        return (header, parsed) if parsed.is_consistent() else None
    except (OSError, ValueError, TypeError, OverflowError, msgspec.MsgspecError):
        return None


def _arrays(header: _Header, content: memoryview, position: int) -> dict[str, np.ndarray]:
    arrays = {}
    for name, dtype, shape in header.arrays:
        position += -position % _ALIGNMENT
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(content, np.dtype(dtype), count, position).reshape(shape)
        position += arrays[name].nbytes
    if position != len(content):
        raise ValueError("truncated, or longer than its header says")
    return arrays


def _write(place: Path, parsed: CocoArrays, size: int, digest: str) -> bool:
    """Whether it could be written. It appears whole or not at all."""
    named = {field.name: getattr(parsed, field.name) for field in fields(parsed)}
    arrays = {name: value for name, value in named.items() if isinstance(value, np.ndarray)}
    header = msgspec.json.encode(
        _Header(
            size,
            digest,
            parsed.images,
            list(parsed.categories.items()),
            parsed.skipped,
            parsed.total,
            [(name, value.dtype.str, list(value.shape)) for name, value in arrays.items()],
        )
    )
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=f"{place.name}-", delete=False) as stream:
            try:
                stream.write(_MAGIC + len(header).to_bytes(8, "little") + header)
                for value in arrays.values():
                    stream.write(bytes(-stream.tell() % _ALIGNMENT))
                    stream.write(np.ascontiguousarray(value).data)
                stream.flush()
                os.fsync(stream.fileno())
                os.replace(stream.name, place)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(stream.name)
                raise
    except OSError:
        return False
    return True
