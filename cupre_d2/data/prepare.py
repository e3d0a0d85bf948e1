"""Putting a publisher's archives where the catalogue reads them."""

import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import cv2
from tqdm import tqdm

from cupre_d2.data.builtin import PublicDataset
from cupre_d2.data.builtin.entry import Part
from cupre_d2.data.formats.image_folder import list_images
from cupre_d2.data.images import read_image
from cupre_d2.errors import DatasetError

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Side of a rosette patch, pixels, and its folders below the root.
_PATCH = 32
_ROSETTE, _ROSETTE_PATCHES = "rosette/unlabeled", "rosette/patches/unlabeled"


def prepare(dataset: PublicDataset, raw: Path, root: Path) -> Iterator[str]:
    """Puts every part of a data set that `raw` holds below `root`; yields a line for each part.

    A part that is there already stays as it is. Files are linked where the file system can, copied where not;
    archives are unpacked beside their place and moved into it when they are whole.

    Args:
        dataset: the entry of the catalogue.
        raw: the folder with the publisher's archives, or with what was unpacked from them.
        root: the folder of all data sets.

    Raises:
        DatasetError: there is no folder `raw`, an archive is broken or would write outside its folder, or `root`
            cannot be written.
    """
    if not raw.is_dir():
        raise DatasetError(f"{raw}: no such folder; expected the archives of {dataset.name}, or what they hold")
    for part in dataset.parts:
        target = root / part.path
        if target.exists():
            yield f"{part.path}: is there, kept"
            continue
        source = _find(part, raw)
        if source is None:
            expected = " or ".join((PurePosixPath(part.path).name, *part.archives))
            yield f"{part.path}: not in {raw}; expected {expected}"
            continue
        try:
            _place(source, target)
        except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise DatasetError(f"{source}: cannot be put into {target} ({type(error).__name__}: {reason})") from error
        yield f"{part.path}: from {source}"
    if dataset.name == "rosette":
        yield from _cut_rosettes(root)


def _find(part: Part, raw: Path) -> Path | None:
    """The file or folder named as the part, with as much of its path as there is, or else an archive that holds it."""
    names = PurePosixPath(part.path).parts
    for length in range(len(names), 0, -1):
        found = sorted(raw.rglob("/".join(names[-length:])))
        if found:
            return found[0]
    if raw.name == names[-1]:
        return raw
    archives = sorted(file for pattern in part.archives for file in raw.rglob(pattern))
    return next((file for file in archives if file.name.endswith(_ARCHIVES)), None)


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        new = Path(temporary) / "new"
        if source.is_dir():
            shutil.copytree(source, new, copy_function=_link)
        elif source.name.endswith(_ARCHIVES):
            unpacked = Path(temporary) / "unpacked"
            _unpack(source, target.name, unpacked)
            new = _inside(unpacked, target.name)
        else:
            _link(str(source), str(new))
        new.rename(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _inside(unpacked: Path, name: str) -> Path:
    """The part in an unpacked archive: what is named as it, or all, if nothing is."""
    found = sorted(unpacked.rglob(name), key=lambda path: len(path.parts))
    return found[0] if found else unpacked


def _unpack(archive: Path, part: str, target: Path) -> None:
    """What lies in a folder (or is a file) named as the part, or every member; none of them outside `target`."""
    opened: zipfile.ZipFile | tarfile.TarFile
    with zipfile.ZipFile(archive) if archive.suffix == ".zip" else tarfile.open(archive) as opened:
        names = opened.namelist() if isinstance(opened, zipfile.ZipFile) else opened.getnames()
        _check_names(archive, names)
        wanted = [name for name in names if part in PurePosixPath(name).parts] or names
        for name in tqdm(wanted, desc=f"unpacking {archive.name}", unit="file"):
            if isinstance(opened, zipfile.ZipFile):
                opened.extract(name, target)
            else:
                # "data" refuses links that lead outside, and devices.
                opened.extract(name, target, filter="data")


def _check_names(archive: Path, names: Sequence[str]) -> None:
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in name:
            raise DatasetError(f"{archive}: member {name!r} points outside the archive; expected a path below it")


def _cut_rosettes(root: Path) -> Iterator[str]:
    """Cuts the 128-px unlabeled images into 4 x 4 patches, which is how the authors got theirs (facts §2.5)."""
    folder, target = root / _ROSETTE, root / _ROSETTE_PATCHES
    if target.exists():
        yield f"{_ROSETTE_PATCHES}: is there, kept"
        return
    if not folder.is_dir():
        yield f"{_ROSETTE_PATCHES}: not cut, as there is no {folder}"
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".patches-", dir=target.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        images = list_images(folder)
        for image in tqdm(images, desc="cutting patches", unit="image"):
            _cut(image, new)
        new.rename(target)
    yield f"{_ROSETTE_PATCHES}: cut from {len(images)} images"


def _cut(image: Path, target: Path) -> None:
    pixels = read_image(image, "L", percentiles=None)[:, :, 0]
    for top in range(0, pixels.shape[0] - _PATCH + 1, _PATCH):
        for left in range(0, pixels.shape[1] - _PATCH + 1, _PATCH):
            _, png = cv2.imencode(".png", pixels[top : top + _PATCH, left : left + _PATCH])
            (target / f"{image.stem}_y{top:03d}_x{left:03d}.png").write_bytes(png.tobytes())
