"""The sets of few-shot meta-learning that are not of the Broad collection: TNBC, EM (EPFL hippocampus), ssTEM."""

from pathlib import Path

from cupre_d2.data.builtin.entry import Part, PublicDataset, Role, Split
from cupre_d2.data.catalog import Record
from cupre_d2.data.formats.mask_images import load_binary_masks, load_binary_stack
from cupre_d2.errors import DatasetError

# --------------------------------------------------------------------------------------------------------------- TNBC


def _load_tnbc(root: Path) -> list[Record]:
    """Slide_XX with GT_XX beside it, one folder each a patient."""
    slides = sorted((root / "tnbc").glob("Slide_*"))
    if not slides:
        raise DatasetError(f"{root / 'tnbc'}: no folder Slide_XX; expected Slide_XX and GT_XX, a pair a patient")
    return [
        record
        for slide in slides
        for record in load_binary_masks(slide, slide.with_name(slide.name.replace("Slide", "GT")), instances="components")
    ]


TNBC = PublicDataset(
    name="tnbc",
    title="TNBC, breast cancer tissue, H&E",
    task="instances",
    licence="CC BY 4.0",
    citation="Naylor et al., Segmentation of nuclei in histopathology images by deep regression of the distance map, 2018",
    homepage="zenodo.org, Segmentation of Nuclei in Histopathology Images",
    get="TNBC_NucleiSegmentation.zip",
    parts=(Part("tnbc", ("TNBC_*.zip",), "Slide_*"),),
    image_files=("tnbc/Slide_*/*.png",),
    images=50,
    splits=(Split("tnbc", "all", ("tnbc",), _load_tnbc, 50),),
)

# ----------------------------------------------------------------------------------------------------------------- EM


def _em_split(role: Role) -> Split:
    images, masks = paths = f"em/{role}ing.tif", f"em/{role}ing_groundtruth.tif"
    return Split(f"em_{role}", role, paths, lambda root: load_binary_stack(root / images, root / masks, "components"), 165)


EM = PublicDataset(
    name="em",
    title="EPFL hippocampus, mitochondria, electron microscopy, stacks of 165 slices of 1024x768",
    task="instances",
    licence="free for research, with citation",
    citation="Lucchi et al., Supervoxel-based segmentation of mitochondria in EM image stacks, 2012",
    homepage="epfl.ch/labs/cvlab, Electron Microscopy Dataset",
    get="training.tif, training_groundtruth.tif, testing.tif, testing_groundtruth.tif",
    parts=tuple(Part(f"em/{role}ing{kind}.tif") for role in ("train", "test") for kind in ("", "_groundtruth")),
    image_files=("em/training.tif", "em/testing.tif"),
    images=2,
    splits=(_em_split("train"), _em_split("test")),
)

# -------------------------------------------------------------------------------------------------------------- ssTEM

_RAW, _MITOCHONDRIA = "sstem/stack1/raw", "sstem/stack1/mitochondria"

SSTEM = PublicDataset(
    name="sstem",
    title="ssTEM, Drosophila nerve cord, mitochondria, electron microscopy",
    task="instances",
    licence="CC BY-NC-SA 3.0",
    citation="Gerhard et al., Segmented anisotropic ssTEM dataset of neural tissue, 2013",
    homepage="figshare.com, Segmented anisotropic ssTEM dataset of neural tissue",
    get="the groundtruth-drosophila-vnc archive: stack1/raw and stack1/mitochondria",
    parts=(Part(_RAW, ("*drosophila*",)), Part(_MITOCHONDRIA, ("*drosophila*",))),
    image_files=(f"{_RAW}/*",),
    images=20,
    splits=(
        Split(
            "sstem",
            "all",
            (_RAW, _MITOCHONDRIA),
            lambda root: load_binary_masks(root / _RAW, root / _MITOCHONDRIA, instances="components"),
            20,
        ),
    ),
)
