"""What a bug report needs: versions, devices, where Detectron2 came from, and which data sets are found."""

import argparse
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import detectron2
import torch

import cupre_d2
from cupre_d2.data.builtin import CATALOGUE
from cupre_d2.data.catalog import datasets_root
from cupre_d2.data.targets import dataset_names, register_dataset_file
from cupre_d2.engine.results import checkout, versions
from cupre_d2.engine.stages import SHIPPED


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", type=Path, metavar="FILE", help="a YAML file of your own data sets")
    args = parser.parse_args(words)
    root = datasets_root()
    rows = [
        ("cupre_d2", f"{cupre_d2.__version__}, commit {checkout()}, {Path(cupre_d2.__file__).parent}"),
        ("configs", str(SHIPPED)),
        ("python", f"{platform.python_version()}, {sys.executable}"),
        ("system", f"{platform.platform()}, {len(os.sched_getaffinity(0))} cores, {_memory():.0f} GiB"),
        ("detectron2", f"{Path(detectron2.__file__).parent}, {_compiled()}"),
        *((name, number) for name, number in versions().items() if name != "cupre_d2"),
        ("GPUs", ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))) or "none"),
        ("data sets below", f"{root} (DETECTRON2_DATASETS {os.environ.get('DETECTRON2_DATASETS', 'is not set')})"),
    ]
    for dataset in CATALOGUE:
        there = [split.name for split in dataset.splits if split.missing(root) is None and not split.derived]
        rows.append((f"  {dataset.name}", f"{dataset.count_images(root)} images: {', '.join(there)}" if there else "-"))
    if args.datasets:
        target = register_dataset_file(args.datasets)
        rows.append(("own data sets", f"{args.datasets}: {', '.join(dataset_names(args.datasets))}"))
        rows += [(f"  {role}", ", ".join(names)) for role, names in (target.roles if target else {}).items()]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:{width}}  {value}" for name, value in rows))


def _compiled() -> str:
    """Detectron2 runs without its compiled part, but for rotated boxes and deformable convolution of its own."""
    if importlib.util.find_spec("detectron2._C") is None:
        return "without compiled operators"
    try:
        importlib.import_module("detectron2._C")
    except ImportError as error:
        return f"compiled operators do not load ({' '.join(str(error).split())[:80]})"
    return "with compiled operators"


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
