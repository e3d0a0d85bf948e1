"""Reading checkpoint files without running code that they may hold."""

import mmap
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import torch

from cupre_d2.errors import CheckpointError

ZIP = b"PK"
# Before version 1.6, torch.save wrote several pickles, the first of them a number.
TORCH_LEGACY = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
PICKLE = b"\x80"
# Of files that a download left in a checkpoint's place.
OTHER_CONTENT = {
    rb"\s*<(!doctype|html|\?xml)": "is a web page, an error message of the server in most cases; download the file again",
    rb"version https://git-lfs": "is a Git LFS pointer; fetch the file that it stands for with git lfs pull",
}
BROKEN = "truncated, or not written by torch.save or as a pickle of arrays or safetensors"
SANDBOX = (
    "if you trust it, convert it in a sandbox (no network, nothing of worth in reach): python -c "
    "\"import torch; c = torch.load('IN', weights_only=False); torch.save(c.get('model', c), 'OUT.pth')\""
)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint to the CPU without running code that it may hold; what it is, its content tells, not its name.

    Three formats are read: torch.save's, safetensors, and Detectron2's model zoo's, a pickle of NumPy arrays and plain
    values. Arrays of the last become tensors, at the top and one level below it.

    Raises:
        CheckpointError: missing, empty, truncated, a compressed archive, of another format, or holding more than tensors,
            arrays of numbers and plain values.
    """
    check_path(path)
    try:
        content = _reader(path)(path)
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # A broken file, or one of another kind, can make the parser raise almost anything.
        raise CheckpointError(f"{path}: {_why_unreadable(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; expected a dict of weights")
    return content


def check_path(path: str) -> None:
    """Raises CheckpointError unless the path is a local file's."""
    if "://" in path:
        raise CheckpointError(f"{path}: nothing is downloaded; fetch the file and give its path")
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such checkpoint file")


def _reader(path: str) -> Callable[[str], Any]:
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path}: is empty; copy or download it again")
    for beginning, what in OTHER_CONTENT.items():
        if re.match(beginning, head, re.IGNORECASE):
            raise CheckpointError(f"{path}: {what}")
    if head.startswith(ZIP):
        return _read_archive
    if head.startswith(TORCH_LEGACY):
        return _read_torch
    # Pickles of protocols 0 and 1, which Python 2 wrote, begin with no mark.
    if head.startswith(PICKLE) or path.endswith(".pkl"):
        return _read_arrays
    # Behind the length of a header of JSON, eight bytes.
    if head[8:9] == b"{":
        return safetensors.torch.load_file
    raise CheckpointError(f"{path}: {BROKEN}; copy or make it again")


def _read_torch(path: str) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_archive(path: str) -> Any:
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    # torch.save compresses nothing, so that its files can be mapped to memory; torch.load unpacks whatever it is given.
    if unpacked > size:
        raise CheckpointError(f"{path}: {size} bytes that unpack to {unpacked}; torch.save writes uncompressed files")
    return _read_torch(path)


def _read_arrays(path: str) -> Any:
    # Of a mapped file no more than there is can be read, however much a broken one asks for.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _tensors(_ArrayUnpickler(content, encoding="latin1").load(), levels=2)
        except MemoryError as error:
            raise pickle.UnpicklingError("asks for more memory than there is") from error


def _tensors(content: Any, levels: int) -> Any:
    if isinstance(content, _Array):
        return torch.from_numpy(content.values).contiguous()
    if isinstance(content, dict) and levels:
        return {key: _tensors(value, levels - 1) for key, value in content.items()}
    return content


class _ForeignGlobal(pickle.UnpicklingError):
    """A pickle asks for a class or function that arrays do not need."""


# Stand-ins for NumPy's classes: Detectron2's model zoo is pickles of arrays, which torch's safe reader does not take and
# which pickle would read by running whatever a file names.
class _Dtype:
    """Stands in for numpy.dtype, whose own way out of a pickle trusts the file."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = str(code)
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])

    def plain(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[fiub]\d", self.code) or self.order not in "<>=|":
            raise pickle.UnpicklingError(f"an array of {self.code[:20]}, expected numbers")
        return np.dtype(self.order + self.code)


class _Array:
    """Stands in for numpy.ndarray."""

    values = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_column, data = state
        self.values = _numbers(data, dtype).reshape(shape, order="F" if by_column else "C")


def _numbers(data: Any, dtype: _Dtype) -> np.ndarray[Any, Any]:
    # Python 2 had no bytes apart from text.
    raw = data.encode("latin1") if isinstance(data, str) else data
    values = np.frombuffer(raw, dtype.plain())
    return values.astype(values.dtype.newbyteorder("="))


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def _scalar(dtype: _Dtype, data: Any) -> Any:
    return _numbers(data, dtype)[0].item()


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _ForeignGlobal(f"the codec {encoding}")
    return text.encode(encoding)


class _ArrayUnpickler(pickle._Unpickler):
    """Knows dicts, lists, plain values and arrays of numbers; every other class or function is refused.

    It is Python's slow unpickler: the fast one sets aside as much memory as a file names, whatever the file's size.
    """

    KNOWN = {
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _bytes,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    }

    def find_class(self, module: str, name: str) -> Any:
        # NumPy 2 moved its core.
        known = self.KNOWN.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise _ForeignGlobal(f"{module}.{name}")
        return known


def _why_unreadable(error: Exception) -> str:
    message = " ".join(str(error).split())
    code = re.search(r"GLOBAL (\S+)", message)
    if code or isinstance(error, _ForeignGlobal):
        needed = code[1] if code else message
        return f"asks for {needed[:100]}, and files of more than arrays and plain values can run code when read; {SANDBOX}"
    # Of PyTorch's message, which goes on to advise reading the file unsafely, only what is wrong.
    reason = message.rpartition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0][:200]
    cause = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return f"{BROKEN} ({cause}); copy or make it again"
