import re
from pathlib import Path

from setuptools import find_packages, setup

# Not imported, as that takes Detectron2.
VERSION = re.search(r'^__version__ = "(.+)"$', (Path(__file__).parent / "cupre_d2/__init__.py").read_text(), re.M)[1]

setup(
    name="cupre_d2",
    version=VERSION,
    description="A good cell segmenter from a handful of annotated microscope images: CUPre as a Detectron2 plugin",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["cupre_d2", "cupre_d2.*"]), "cupre_d2.configs"],
    py_modules=["cupre_d2_cli"],
    entry_points={"console_scripts": ["cupre-d2 = cupre_d2_cli:main"]},
    # The configs lie beside the package in a checkout, and in it in a wheel.
    package_dir={"cupre_d2.configs": "configs"},
    package_data={
        "cupre_d2": ["py.typed"],
        "cupre_d2.configs": ["*.yaml", "**/*.yaml"],
        "cupre_d2.data.builtin": ["*.csv"],
        "cupre_d2.report": ["templates/*"],
    },
    # Detectron2 is not on PyPI under its name: see README. Tested versions: requirements.txt.
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy<2",
        "opencv-python-headless<4.12",
        "setuptools<81",
        "scipy",
        "scikit-image",
        # Clustering; numba matches detections with cells, too.
        "scikit-learn>=1.6",
        "numba>=0.60",
        # LAMB.
        "timm>=1.0",
        # The weights that timm ships.
        "safetensors",
        "pillow",
        "tifffile",
        # The compressions that TIFF files come in.
        "imagecodecs",
        # OME-Zarr; newer ones need numpy 2.
        "zarr<3.1.6",
        # ImageJ's ROIs.
        "roifile",
        "msgspec",
        "pycocotools",
        "shapely",
        "fvcore",
        "iopath",
        "omegaconf<2.4",
        "matplotlib",
        # The tables of experiments.
        "pandas>=2",
        "pyyaml",
        "tabulate",
        "tensorboard",
        "tqdm",
        # The report.
        "jinja2>=3.1",
    ],
    extras_require={
        # tools/reproduce.py --engine ray.
        "ray": ["ray>=2.40"],
        "dev": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "types-PyYAML",
            "types-tabulate",
            # With timm, what our ResNeSt is measured against.
            "resnest",
            # What our evaluation is measured against.
            "faster-coco-eval",
            # The report in a browser, where there is chromium.
            "playwright",
        ],
    },
)
