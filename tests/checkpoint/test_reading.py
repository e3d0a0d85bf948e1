"""Files that may hold anything: read whole, or refused in one line, and never run."""

import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from cupre_d2.checkpoint.checkpointer import CellCheckpointer
from cupre_d2.checkpoint.loading import load_initial_weights
from cupre_d2.checkpoint.reading import TORCH_LEGACY, read_checkpoint
from cupre_d2.errors import CheckpointError


class Malicious:
    """Creates a folder when a pickle of it is read."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


def write_malicious(path: Path, form: str, target: Path) -> None:
    content = {"model": {"weight": Malicious(target)}}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 0", "pickle 2", "pickle 4", "pickle 5"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl"])
def test_malicious_pickle_is_refused_and_not_executed(form: str, suffix: str, tmp_path: Path) -> None:
    path, target = tmp_path / f"evil{suffix}", tmp_path / "executed"
    write_malicious(path, form, target)
    model = nn.Linear(2, 2)
    for load in (
        lambda: load_initial_weights(model, str(path)),
        lambda: CellCheckpointer(model).load(str(path)),
    ):
        with pytest.raises(CheckpointError) as caught:
            load()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not target.exists()
    # The same file is dangerous to those who read it otherwise, or this test shows nothing.
    if form == "zip":
        torch.load(path, weights_only=False)
        assert target.exists()
    elif form.startswith("pickle"):
        pickle.loads(path.read_bytes())
        assert target.exists()


def test_safetensors(tmp_path: Path) -> None:
    weights = {"conv1.0.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2, dtype=torch.bfloat16)}
    path = tmp_path / "timm.safetensors"
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    read = read_checkpoint(str(path))
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[key], value) for key, value in weights.items())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"timm.safetensors: truncated, or not .* or safetensors \(SafetensorError: "):
        read_checkpoint(str(path))


def test_a_torch_file_that_needs_code_is_named_with_the_code_and_the_remedy(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "whole_module.pth")
    with pytest.raises(CheckpointError, match=r"whole_module.pth: asks for torch\.nn\S+Linear, .* sandbox .*: python -c"):
        read_checkpoint(str(tmp_path / "whole_module.pth"))


def test_a_pickle_that_needs_code_is_named_with_the_code_and_the_remedy(tmp_path: Path) -> None:
    write_malicious(tmp_path / "zoo.pkl", "pickle 2", tmp_path / "executed")
    with pytest.raises(CheckpointError, match=r"zoo.pkl: asks for posix.mkdir, .* sandbox .*: python -c"):
        read_checkpoint(str(tmp_path / "zoo.pkl"))


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R.", "builtins.eval"),
        (b"\x80\x02cnumpy\nload\n.", "numpy.load"),
        (b"\x80\x02cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", "torch.storage._load_from_bytes"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.", "numpy.ndarray.dumps"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.", "codec zip"),
        # Extensions that other code has registered in this process.
        (b"\x80\x02\x82\x01.", "truncated"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "truncated"),
    ],
)
def test_functions_other_than_those_of_arrays(code: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "zoo.pkl").write_bytes(code)
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(str(tmp_path / "zoo.pkl"))


def test_a_pickle_cannot_change_what_reads_the_next_one(tmp_path: Path) -> None:
    """It may set attributes of what it builds, and of nothing else."""
    state = b"}X\x06\x00\x00\x00valuesK\x01s"
    poisoned = b"\x80\x02cnumpy\nndarray\nN" + state + b"\x86b."
    (tmp_path / "poison.pkl").write_bytes(poisoned)
    with pytest.raises(CheckpointError):
        read_checkpoint(str(tmp_path / "poison.pkl"))
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"a": np.arange(3.0)}, protocol=2))
    assert read_checkpoint(str(tmp_path / "zoo.pkl"))["a"].tolist() == [0, 1, 2]


ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "by column": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "slice": np.arange(12, dtype=np.int64).reshape(3, 4)[::2, 1:3],
    "other byte order": np.arange(4, dtype=">f4"),
    "half": np.ones(2, np.float16),
    "counter": np.array(7, np.int64),
    "flags": np.array([True, False]),
    "pixels": np.arange(3, dtype=np.uint8),
    "none": np.zeros((0, 4), np.float32),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_arrays_of_a_model_zoo_pickle(protocol: int, suffix: str, tmp_path: Path) -> None:
    if protocol < 2 and suffix == ".pth":
        pytest.skip("pickles without a mark are told by their suffix")
    path = tmp_path / f"zoo{suffix}"
    arrays = {key: value for key, value in ARRAYS.items() if value.size or protocol >= 3}
    content = {"model": OrderedDict(arrays), "__author__": "a", "matching_heuristics": True, "lr": np.float32(0.5)}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_checkpoint(str(path))
    assert (read["__author__"], read["matching_heuristics"], read["lr"]) == ("a", True, 0.5)
    assert list(read["model"]) == list(arrays)
    for key, array in arrays.items():
        tensor = read["model"][key]
        assert tensor.shape == array.shape, key
        assert str(tensor.dtype) == f"torch.{array.dtype.newbyteorder('=')}", key
        assert np.array_equal(tensor.numpy(), array), key


def test_python_2_pickle_of_an_array(tmp_path: Path) -> None:
    """There, an array's values are text."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01K\x02\x85" + dtype + b"\x89U\x08" + np.array([1.5, -2], "<f4").tobytes() + b"tb"
    (tmp_path / "old.pkl").write_bytes(b"\x80\x02}U\x01a" + array + state + b"s.")
    assert read_checkpoint(str(tmp_path / "old.pkl"))["a"].tolist() == [1.5, -2]


def test_numpy_2_pickle(tmp_path: Path) -> None:
    content = pickle.dumps({"a": np.arange(3.0)}, protocol=2).replace(b"numpy.core.multi", b"numpy._core.multi")
    (tmp_path / "new.pkl").write_bytes(content)
    assert read_checkpoint(str(tmp_path / "new.pkl"))["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("array", [np.array([{}]), np.array(["text"]), np.zeros(2, "f4,i8"), np.zeros(2, complex)])
def test_arrays_of_other_things_than_numbers(array: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"a": array}, protocol=2))
    with pytest.raises(CheckpointError, match=r"zoo.pkl: truncated, or not written by torch.save or as a pickle of arrays"):
        read_checkpoint(str(tmp_path / "zoo.pkl"))


@pytest.mark.parametrize(
    "code",
    [
        # A memo entry of number 2^31, for which the fast unpickler would set aside 32 GB.
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        # A text of 2^31 - 1 bytes, bytes of 2^50 and a frame of 2^50, none of which are there.
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x04\x8e\x00\x00\x00\x00\x00\x00\x04\x00abc.",
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x00\x04\x00abc.",
        b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x04\x00N.",
    ],
)
def test_a_small_pickle_takes_little_memory(code: bytes, tmp_path: Path) -> None:
    import resource

    (tmp_path / "greedy.pkl").write_bytes(code)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        read_checkpoint(str(tmp_path / "greedy.pkl"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_an_archive_that_unpacks_to_more_than_it_holds(tmp_path: Path) -> None:
    plain = io.BytesIO()
    torch.save({"weight": torch.zeros(1_000_000)}, plain)
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for member in source.namelist():
            bomb.writestr(member, source.read(member))
    assert path.stat().st_size < 10_000
    with pytest.raises(CheckpointError, match=r"bomb.pth: \d+ bytes that unpack to 400\d+; torch.save writes uncompressed"):
        read_checkpoint(str(path))


@pytest.mark.parametrize("keep", [1, 30, 200, 0.5, -1])
@pytest.mark.parametrize("form", ["zip", "legacy", "arrays"])
def test_truncated_file(keep: float, form: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if form == "arrays":
        path.write_bytes(pickle.dumps({"model": {"weight": np.random.rand(50, 50)}}, protocol=2))
    else:
        torch.save({"model": {"weight": torch.rand(50, 50)}}, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="weights.pth: truncated, or not written by torch.save"):
        read_checkpoint(str(path))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_any_broken_file_gives_one_line(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "weights.pth"
    originals = [pickle.dumps({"model": {"weight": np.random.default_rng(0).random((3, 3))}}, protocol=2)]
    for zipped in (True, False):
        torch.save({"model": {"weight": torch.eye(3)}}, path, _use_new_zipfile_serialization=zipped)
        originals.append(path.read_bytes())
    refused = 0
    for turn in range(600):
        content = bytearray(originals[turn % 3])
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            read_checkpoint(str(path))
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < len(str(path)) + 500
    assert refused > 300


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty; copy or download it again"),
        (b"<html>404 Not Found</html>", "is a web page"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b"\x89PNG\r\n", "truncated, or not written by torch.save"),
        (TORCH_LEGACY, "truncated, or not written by torch.save"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_not_a_checkpoint(content: bytes, reason: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"page.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"page.{suffix}: {reason}") as caught:
        read_checkpoint(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3)])
def test_not_a_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="expected a dict of weights"):
        read_checkpoint(str(tmp_path / "weights.pth"))
