"""The seven sets of the Cell Tracking Challenge that CUPre pre-trains on: training videos only."""

from functools import partial
from pathlib import Path

from cupre_d2.data.builtin.entry import Part, PublicDataset, Split
from cupre_d2.data.catalog import Record
from cupre_d2.data.formats.ctc_videos import Truth, load_ctc, load_ctc_images

# Frames of both training videos (facts §3.5, point 7), and what they show.
_FRAMES = {
    "DIC-C2DH-HeLa": (166, "HeLa cells, differential interference contrast"),
    "Fluo-C2DL-MSC": (96, "rat mesenchymal stem cells, fluorescence"),
    "Fluo-N2DH-GOWT1": (184, "mouse stem cell nuclei, fluorescence"),
    "Fluo-N2DH-SIM+": (215, "simulated nuclei, fluorescence"),
    "Fluo-N2DL-HeLa": (184, "HeLa nuclei, fluorescence"),
    "PhC-C2DH-U373": (230, "glioblastoma cells, phase contrast"),
    "PhC-C2DL-PSC": (600, "pancreatic stem cells, phase contrast"),
}
# Of which the challenge publishes exact masks instead of computer-made ones.
_SIMULATED = "Fluo-N2DH-SIM+"
_VIDEOS = ("01", "02")


def _name(folder: str) -> str:
    return "ctc_" + folder.lower().replace("-", "_").replace("+", "")


def _load(root: Path, folder: str, video: str | None = None) -> list[Record]:
    """With the truth of a video, or all frames without."""
    path = root / "ctc" / folder
    truth: Truth = "gold" if folder == _SIMULATED else "silver"
    return [one | {"cell_type": folder} for one in (load_ctc(path, (video,), truth) if video else load_ctc_images(path))]


def _dataset(folder: str, frames: int, content: str) -> PublicDataset:
    path, name = f"ctc/{folder}", _name(folder)
    truth = "GT" if folder == _SIMULATED else "ST"
    return PublicDataset(
        name=name,
        title=f"{folder} ({content})",
        task="instances",
        licence="terms of the Cell Tracking Challenge",
        citation="Maška et al., The Cell Tracking Challenge: 10 years of objective benchmarking, Nature Methods 2023",
        homepage="celltrackingchallenge.net",
        get=f"{folder}.zip of the training data sets (the test data sets' file has the same name)",
        parts=(Part(path, (f"{folder}.zip",)),),
        image_files=tuple(f"{path}/{video}/t*.tif" for video in _VIDEOS),
        images=frames,
        splits=(
            *(
                Split(
                    f"{name}_{video}",
                    "all",
                    (f"{path}/{video}", f"{path}/{video}_{truth}"),
                    partial(_load, folder=folder, video=video),
                )
                for video in _VIDEOS
            ),
            Split(f"{name}_unlabeled", "unlabeled", (path,), partial(_load, folder=folder), frames),
        ),
    )


CTC = tuple(_dataset(folder, frames, content) for folder, (frames, content) in _FRAMES.items())
