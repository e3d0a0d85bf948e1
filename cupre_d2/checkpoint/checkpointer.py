"""Saving the state of a run so that it is never lost, and going on from it."""

import logging
import os
import re
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from cupre_d2.checkpoint.reading import check_path, read_checkpoint
from cupre_d2.errors import CheckpointError
from cupre_d2.files import write_whole

logger = logging.getLogger(__name__)

PERIODIC = re.compile(r"model_\d{7}\.pth")
BEST = "model_best"


class CellCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer: writes beside the file and renames, reads with `read_checkpoint`.

    A process that is killed while it writes leaves the checkpoint before, which `last_checkpoint` still names. Of the
    periodic checkpoints (`model_0000099.pth`) the last `keep` stay, None for all; other names are never removed.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, keep: int | None = None, save_to_disk: bool = True, **items: Any
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **items)
        self._keep = keep
        self._resuming = False

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Detectron2's; the path is a local file's.

        Raises:
            CheckpointError: the file cannot be read.
        """
        if path:
            # Detectron2 would download before it reads, and fail on a missing file with an assertion.
            check_path(path)
        try:
            return super().load(path, *args, **kwargs)
        finally:
            # Detectron2 leaves it set after a failure, and then loads no other file.
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_checkpoint(filename)
        content = content if "model" in content else {"model": content}
        if self._resuming and (missing := [key for key in self.checkpointables if key not in content]):
            raise CheckpointError(f"{filename}: holds no {', '.join(missing)}; expected the whole state of a run")
        return content

    def _load_model(self, checkpoint: Any) -> Any:
        found = super()._load_model(checkpoint)
        other = [*found.missing_keys, *found.unexpected_keys, *(key for key, *_ in found.incorrect_shapes)]
        if self._resuming and other:
            raise CheckpointError(f"weights of another network: {len(other)} tensors do not fit, the first {other[0]}")
        return found

    def resume(self) -> bool:
        """Loads the last checkpoint of the folder; one that cannot be used is passed over for the one before, with an error.

        Returns:
            False where the folder has none.

        Raises:
            CheckpointError: there are some, and none can be used. torch.OutOfMemoryError: the GPU's memory is too small.
        """
        paths = self._by_age()
        for path in paths:
            try:
                self._resuming = True
                self.load(str(path))
            except torch.OutOfMemoryError:
                # The checkpoint before would fit no better.
                raise
            except (CheckpointError, KeyError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                logger.error(f"checkpoint {path} cannot be used ({reason[:300]}); going on from the one before, if any")
            else:
                return True
            finally:
                self._resuming = False
        if paths:
            raise CheckpointError(f"{self.save_dir}: none of its checkpoints can be used, as logged; --restart starts over")
        return False

    def _by_age(self) -> list[Path]:
        """The latest first: that of `last_checkpoint`, then by time."""
        folder = Path(self.save_dir)
        paths = [path for path in folder.glob("*.pth") if path.stem != BEST and path.is_file()]
        last = self.get_checkpoint_file() if self.has_checkpoint() else ""
        return sorted(paths, key=lambda path: (path.name == os.path.basename(last), path.stat().st_mtime), reverse=True)

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes `<save_dir>/<name>.pth`, then names it in `last_checkpoint`; both as a whole or not at all.

        Raises:
            CheckpointError: it cannot be written, e.g. as the disk is full; the checkpoints of before are as they were.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info(f"saving checkpoint {path}")
        state = {key: item.state_dict() for key, item in self.checkpointables.items()}
        self._write(path, {**state, **kwargs})
        self._remove_old()

    def save_best(self, **kwargs: Any) -> None:
        """Writes the model to `model_best.pth`, a result and not where training goes on from; raises as `save`."""
        if self.save_dir and self.save_to_disk:
            self._write(os.path.join(self.save_dir, f"{BEST}.pth"), kwargs)

    def _write(self, path: str, more: dict[str, Any]) -> None:
        content = {"model": self.model.state_dict(), **more}
        try:
            write_whole(path, lambda file: torch.save(content, file))
            if Path(path).stem != BEST:
                self.tag_last_checkpoint(os.path.basename(path))
        except (OSError, RuntimeError) as error:
            if "DataLoader worker" in str(error):
                raise
            # Where writing fails, torch.save raises an error of its own about the archive that it cannot close.
            cause = error if isinstance(error, OSError) else error.__context__ or error
            kept = f"; {self.get_checkpoint_file()} is intact" if self.has_checkpoint() else ""
            raise CheckpointError(f"{path}: cannot be written ({' '.join(str(cause).split())}){kept}") from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_whole(path, lambda file: file.write(last_filename_basename.encode()))

    def _remove_old(self) -> None:
        if self._keep is None:
            return
        periodic = [path for path in Path(self.save_dir).iterdir() if PERIODIC.fullmatch(path.name)]
        # By time, as after a fall-back to an earlier one the last written has not the highest number.
        for path in sorted(periodic, key=lambda path: path.stat().st_mtime_ns)[: -self._keep]:
            path.unlink(missing_ok=True)

    def remove_partial(self) -> None:
        """Removes what a process that was killed left of files it was writing."""
        if self.save_dir and self.save_to_disk:
            for path in Path(self.save_dir).glob("*.partial"):
                path.unlink(missing_ok=True)
