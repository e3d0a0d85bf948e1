"""What the catalogue knows of a public data set, and of each name that it registers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from cupre_d2.data.catalog import Record, datasets_root, missing_path_error

Task = Literal["instances", "semantic", "count", "classification"]
# "all" where the publisher does not split; "unlabeled" images may be those of a training split, never of a test split.
Role = Literal["train", "val", "test", "all", "unlabeled"]


def no_fields(file_name: str) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class CocoFiles:
    """A split that is one COCO JSON, for those who read it raw; paths relative to the root."""

    json_file: str
    image_root: str
    # Finds an image, given the absolute image_root and its file name.
    locate: Callable[[Path, str], Path] = Path.joinpath
    # What a record has beside what the JSON says, given the file name.
    fields: Callable[[str], dict[str, Any]] = no_fields


@dataclass(frozen=True)
class Split:
    """One registered name."""

    name: str
    role: Role
    # Files and folders it needs, relative to the root; without one of them the split counts as absent.
    requires: tuple[str, ...]
    # Reads the records, given the root.
    load: Callable[[Path], list[Record]]
    # How many images its publisher counts; None where we have no source for it.
    images: int | None = None
    classes: tuple[str, ...] = ("cell",)
    coco: CocoFiles | None = None
    # Whether its images are those of other splits, chosen anew; `check` of the whole data set passes it over.
    derived: bool = False

    def missing(self, root: Path) -> Path | None:
        """The first of the required paths that does not exist."""
        return next((root / path for path in self.requires if not (root / path).exists()), None)

    def records(self) -> list[Record]:
        """The records under the root of this moment.

        Raises:
            DatasetError: a required path is missing, or the reader finds something wrong.
        """
        root = datasets_root()
        missing = self.missing(root)
        if missing is not None:
            raise missing_path_error(self.name, missing)
        return self.load(root)


@dataclass(frozen=True)
class Part:
    """A file or folder of a data set, and what its publisher ships it in."""

    # Where it belongs, relative to the root.
    path: str
    # File names of the archives it comes in, as glob patterns; none if it is shipped as it is.
    archives: tuple[str, ...] = ()
    # What lies in the folder, as a glob pattern, where other data sets have folders or archives of the same name.
    holds: str = "*"
    # Whether the data set is whole without it.
    optional: bool = False

    @property
    def is_file(self) -> bool:
        return bool(PurePosixPath(self.path).suffix)


@dataclass(frozen=True)
class PublicDataset:
    """One entry of the catalogue."""

    name: str
    title: str
    task: Task
    licence: str
    citation: str
    homepage: str
    # What to get there, in a line.
    get: str
    parts: tuple[Part, ...]
    # Glob patterns of its images, relative to the root, and how many there should be.
    image_files: tuple[str, ...]
    images: int
    splits: tuple[Split, ...]

    def count_images(self, root: Path) -> int:
        """Image files on disk, without opening any."""
        return len({file for pattern in self.image_files for file in root.glob(pattern)})
