"""What is on disk of the catalogue, and putting a publisher's archives where it reads them."""

import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path, PurePosixPath

import cv2
from tabulate import tabulate
from tqdm import tqdm

from cupre_d2.data.builtin import CATALOGUE, PublicDataset
from cupre_d2.data.builtin.entry import Part
from cupre_d2.data.formats.image_folder import list_images
from cupre_d2.data.images import read_image
from cupre_d2.errors import DatasetError

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# What macOS adds to archives.
_MACOS = "__MACOSX"
# Side of a rosette patch, pixels, and its folders below the root.
_PATCH = 32
_ROSETTE, _ROSETTE_PATCHES = "rosette/unlabeled", "rosette/patches/unlabeled"


def overview(root: Path) -> str:
    """A table of all public data sets, and below it what to do for those that are not whole.

    No image is opened and no annotation read: images are counted by their names.
    """
    counts = {dataset.name: dataset.count_images(root) for dataset in CATALOGUE}
    rows = [
        (
            dataset.name,
            dataset.task,
            _state(dataset, counts[dataset.name], root),
            f"{counts[dataset.name]:,} / {dataset.images:,}",
            _names(dataset, root) or "-",
        )
        for dataset in CATALOGUE
    ]
    table = tabulate(rows, headers=("data set", "task", "state", "images / published", "names that work"))
    advice = [line for dataset in CATALOGUE for line in _advice(dataset, counts[dataset.name], root)]
    return "\n".join([f"below {root}", "", table, "", *advice])


def prepare(dataset: PublicDataset, raw: Path, root: Path) -> Iterator[str]:
    """Puts every part of a data set that `raw` holds below `root`; yields a line for each part.

    A part that is there already stays as it is. Files are linked where the file system can, copied where not;
    archives are unpacked beside their place and moved into it when they are whole. `raw` may hold other data sets too:
    a folder or an archive that might be a part by its name, but holds something else, is left and named.

    Args:
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
        refused = []
        for source in dict.fromkeys(_sources(part, raw)):
            with _one_line(source, target):
                inside = _inside(part, source)
                if inside is not None:
                    _place(source, inside, target)
                    break
            refused.append(str(source))
        else:
            expected = " or ".join((PurePosixPath(part.path).name, *part.archives))
            line = f"{part.path}: not in {raw}; expected {expected}" + (" (optional)" if part.optional else "")
            yield line + (f"; not taken, as it is not in them: {', '.join(refused)}" if refused else "")
            continue
        yield f"{part.path}: from {source}"
    if dataset.name == "rosette":
        yield from _cut_rosettes(root)


@contextmanager
def _one_line(source: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{source}: cannot be put into {target} ({type(error).__name__}: {reason})") from error


def _sources(part: Part, raw: Path) -> Iterator[Path]:
    """Where a part might be: what is named as it, with as much of its path as there is; `raw` itself; its archives."""
    names = PurePosixPath(part.path).parts
    for length in range(len(names), 0, -1):
        # A word alone, such as "images", names folders of other data sets too.
        word = length == 1 and PurePosixPath(names[-1]).stem.isalpha()
        name = "/".join(names[-length:])
        yield from sorted(raw.glob(name) if word else raw.rglob(name))
    if raw.name == names[-1]:
        yield raw
    for pattern in part.archives:
        yield from sorted(file for file in raw.rglob(pattern) if _is_archive(file))


def _is_archive(file: Path) -> bool:
    return file.name.endswith(_ARCHIVES) and file.is_file()


def _inside(part: Part, source: Path) -> PurePosixPath | None:
    """Where in a file, folder or archive the part is, "." for the whole; None if it is not there."""
    if _is_archive(source):
        return _inside_archive(part, source)
    fits = source.is_file() if part.is_file else source.is_dir() and any(source.glob(part.holds))
    return PurePosixPath() if fits else None


def _inside_archive(part: Part, archive: Path) -> PurePosixPath | None:
    """What is named as the part; or of an archive that is, or that shows what the part holds, its only folder or all."""
    files = [path for path, is_folder in _members(archive).values() if not is_folder and path.parts[0] != _MACOS]
    name = PurePosixPath(part.path).name
    if part.is_file:
        return min((file for file in files if file.name == name), key=_depth, default=None)
    folders = {folder for file in files for folder in file.parents}
    candidates = sorted((folder for folder in folders if folder.name == name), key=_depth)
    if part.holds != "*" or archive.name.startswith(f"{name}."):
        tops = {PurePosixPath(file.parts[0]) for file in files}
        candidates += [*(tops & folders if len(tops) == 1 else ()), PurePosixPath()]
    return next((folder for folder in candidates if _holds(folder, files, part.holds)), None)


def _depth(path: PurePosixPath) -> tuple[int, str]:
    return len(path.parts), str(path)


def _holds(folder: PurePosixPath, files: Sequence[PurePosixPath], pattern: str) -> bool:
    """Whether files lie in what fits the pattern, right in the folder."""
    names, start = pattern.split("/"), len(folder.parts)
    below = (file.parts[start : start + len(names)] for file in files if file.parts[:start] == folder.parts)
    return any(len(found) == len(names) and all(map(fnmatchcase, found, names)) for found in below)


def _place(source: Path, inside: PurePosixPath, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        new = Path(temporary) / "new"
        if source.is_dir():
            shutil.copytree(source, new, copy_function=_link)
        elif _is_archive(source):
            _unpack(source, inside, new)
            new = new / inside
        else:
            _link(str(source), str(new))
        new.rename(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _open(archive: Path) -> zipfile.ZipFile | tarfile.TarFile:
    return zipfile.ZipFile(archive) if archive.suffix == ".zip" else tarfile.open(archive)


def _members(archive: Path) -> dict[str, tuple[PurePosixPath, bool]]:
    """Path of each member and whether it is a folder, by name; all of them lie below the archive."""
    with _open(archive) as opened:
        if isinstance(opened, zipfile.ZipFile):
            folders = {member.filename: member.is_dir() for member in opened.infolist()}
        else:
            folders = {member.name: member.isdir() for member in opened.getmembers()}
    for name in folders:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in name:
            raise DatasetError(f"{archive}: member {name!r} points outside the archive; expected a path below it")
    return {name: (path, is_folder) for name, is_folder in folders.items() if (path := PurePosixPath(name)).parts}


def _unpack(archive: Path, inside: PurePosixPath, target: Path) -> None:
    paths = {name: path for name, (path, _) in _members(archive).items() if path.parts[0] != _MACOS}
    wanted = [name for name, path in paths.items() if path.parts[: len(inside.parts)] == inside.parts]
    with _open(archive) as opened:
        for name in tqdm(wanted, desc=f"unpacking {archive.name}", unit="file"):
            if isinstance(opened, zipfile.ZipFile):
                opened.extract(name, target)
            else:
                # "data" refuses links that lead outside, and devices.
                opened.extract(name, target, filter="data")


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
            pixels = read_image(image, "L", percentiles=None)[:, :, 0]
            for top, left in product(*(range(0, side - _PATCH + 1, _PATCH) for side in pixels.shape)):
                _, png = cv2.imencode(".png", pixels[top : top + _PATCH, left : left + _PATCH])
                (new / f"{image.stem}_y{top:03d}_x{left:03d}.png").write_bytes(png.tobytes())
        new.rename(target)
    yield f"{_ROSETTE_PATCHES}: cut from {len(images)} images"


def _state(dataset: PublicDataset, images: int, root: Path) -> str:
    if not any((root / part.path).exists() for part in dataset.parts):
        return "missing"
    return "present" if images >= dataset.images and not _absent(dataset, root) else "in part"


def _absent(dataset: PublicDataset, root: Path) -> list[str]:
    return [part.path for part in dataset.parts if not part.optional and not (root / part.path).exists()]


def _names(dataset: PublicDataset, root: Path) -> str:
    """Names of the splits whose files are there; LIVECell's eight cell types would fill the screen."""
    names = [split.name for split in dataset.splits if split.missing(root) is None]
    shown = [name for name in names if name.count("_") <= 1 or dataset.name != "livecell"]
    return " ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _advice(dataset: PublicDataset, images: int, root: Path) -> list[str]:
    if _state(dataset, images, root) == "present":
        return []
    absent = _absent(dataset, root)
    lines = [f"{dataset.name}: {dataset.title}", f"    licence: {dataset.licence}"]
    if absent:
        lines.append(f"    there is no {', '.join(absent)}")
    lines.append(f"    get {dataset.get}, from {dataset.homepage}")
    lines.append(f"    then: python tools/prepare_dataset.py {dataset.name} FOLDER_OF_THE_DOWNLOAD")
    return lines
