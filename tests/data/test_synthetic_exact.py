"""The same bytes on every machine, and suspension cells."""

import csv
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cupre_d2.data import synthetic
from cupre_d2.data.few_shot import get_records
from cupre_d2.data.formats.count_table import load_count_table
from cupre_d2.data.synthetic import BRIGHT_FIELD, PHASE_CONTRAST
from cupre_d2.data.synthetic.exact import Dice, blur, uneven

# Of images 0 to 4 of seed 11, 96 px, pixels and masks; made on x86-64 with AVX-512.
GOLDEN = {
    "cells": "c6e8f3ee210865c370e95273de1ea2523ede5b2272725dd63faeda72dc8d5bb8",
    "bright_field": "21fff6bf7495252e57556982b749f5532ec5f5647f554bed174973eba714b289",
    "phase_contrast": "0413abdf1a42bdfd8b90d7ea3b5c67bb343897c4ef7a7c9ea5d54b56f921a7e4",
    "shapes": "ccddaa587f331499a05d9a3c19b027b5fab765dc44cffb6dff05710d3776646e",
}
SUSPENSION = [(synthetic.draw_bright_field, BRIGHT_FIELD), (synthetic.draw_phase_contrast, PHASE_CONTRAST)]


def digest(kind: str) -> str:
    draw, _ = synthetic.DRAW[kind]
    parts = hashlib.sha256()
    for index in range(5):
        image, masks, _ = draw(11, index, 96)
        parts.update(image.tobytes() + np.packbits(masks).tobytes())
    return parts.hexdigest()


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden(kind: str) -> None:
    assert digest(kind) == GOLDEN[kind]


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX2 FMA3 F16C AVX"},
        {"OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FMA3,AVX,SSE4.2", "OPENCV_IPP": "disabled"},
    ],
)
def test_processor_does_not_matter(environment: dict[str, str]) -> None:
    program = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import cv2\n"
        "cv2.setUseOptimized('OPENCV_IPP' not in __import__('os').environ)\n"
        "from tests.data import test_synthetic_exact as exact\n"
        "print(*map(exact.digest, exact.GOLDEN))\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(Path.cwd()), **environment}
    # NumPy warns of features that the processor does not have.
    output = subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=variables, capture_output=True, text=True)
    assert output.stdout.split() == list(GOLDEN.values()), output.stderr


@pytest.mark.parametrize(("draw", "parameters"), SUSPENSION)
def test_suspension_cells(draw, parameters) -> None:
    counts = []
    for index in range(60):
        image, masks, classes = draw(3, index)
        assert image.shape == (128, 128, 3) and masks.shape == (len(classes), 128, 128)
        counts.append(len(masks))
        left, right, top, bottom = parameters.margins
        for mask in masks:
            rows, columns = np.nonzero(mask)
            # Two pixels more for cells that are deformed.
            reach = parameters.radius[1] + 2
            assert left - reach <= columns.min() and columns.max() <= 128 - right + reach
            assert top - reach <= rows.min() and rows.max() <= 128 - bottom + reach
            assert np.sqrt(mask.sum() / np.pi) * 1.35 >= 3 and np.sqrt(mask.sum() / np.pi) <= parameters.radius[1] + 2
    assert min(counts) >= 1 and max(counts) <= 30
    # 11.85 were there room for all.
    assert 8 < np.mean(counts) < 15


def test_rim_and_inside() -> None:
    """Bright field: dark rim, bright inside, on a bright ground; phase contrast the other way round."""
    for (draw, parameters), rim_is_darker in zip(SUSPENSION, (True, False), strict=True):
        clean = replace(parameters, blur=0, noise=0, unevenness=0)
        image, masks, _ = draw(5, 0, 128, clean)
        covered = masks.any(axis=0)
        assert (image[~covered] == parameters.ground).all()
        for mask in masks[masks.sum((1, 2)) > 60]:
            alone = mask & (masks.sum(axis=0) == 1)
            rows, columns = np.nonzero(mask)
            middle = image[int(np.median(rows)), int(np.median(columns)), 0]
            low, high = (parameters.rim, parameters.rim + parameters.rim_spread)
            rim = [value for value in image[alone][:, 0] if low <= value <= high]
            assert len(rim) > 10
            assert (max(rim) < middle) == rim_is_darker


def test_parameters_do_what_they_say() -> None:
    few = replace(BRIGHT_FIELD, largest_count=3)
    assert max(len(synthetic.draw_bright_field(1, i, 128, few)[1]) for i in range(20)) <= 3
    apart = replace(PHASE_CONTRAST, overlap=-6)
    _, masks, _ = synthetic.draw_phase_contrast(1, 4, 128, apart)
    assert masks.sum(axis=0).max() == 1
    dim = synthetic.draw_microscope(1, 0, 96, synthetic.Fluorescence(gain=(20, 20)))[0]
    bright = synthetic.draw_microscope(1, 0, 96, synthetic.Fluorescence(gain=(160, 160)))[0]
    assert dim.max() < bright.max() and dim.mean() < bright.mean() / 4
    lonely = synthetic.Fluorescence(clustering=0.0, overlap=0.0)
    for index in range(5):
        _, masks, _ = synthetic.draw_microscope(1, index, 192, lonely)
        assert masks.sum(axis=0).max() == 1


def test_no_room_ends() -> None:
    crowded = replace(PHASE_CONTRAST, radius=(20, 20), largest_count=30)
    counts = [len(synthetic.draw_phase_contrast(2, index, 128, crowded)[1]) for index in range(5)]
    assert min(counts) >= 1 and max(counts) < 15


def test_counts_are_written(tmp_path: Path) -> None:
    synthetic.make_dataset("bright_field", tmp_path / "made", 4, 9, 128)
    records = load_count_table(tmp_path / "made/images", tmp_path / "made/counts.csv")
    expected = [len(synthetic.draw_bright_field(9, index, 128)[1]) for index in range(4)]
    assert [record["count"] for record in records] == expected
    with (tmp_path / "made/counts.csv").open(newline="") as stream:
        assert next(csv.reader(stream)) == ["image", "count"]


def test_dice() -> None:
    dice = Dice(4, 2)
    normal = np.array([dice.normal(2.0) for _ in range(4000)])
    assert abs(normal.mean()) < 0.12 and abs(normal.std() - 2) < 0.1
    directions = np.array([dice.direction() for _ in range(4000)])
    assert np.allclose((directions**2).sum(axis=1), 1) and np.abs(directions.mean(axis=0)).max() < 0.05
    angles = np.arctan2(directions[:, 1], directions[:, 0])
    assert np.histogram(angles, 8, (-np.pi, np.pi))[0].min() > 400
    noise = dice.noise(200, 200)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.02
    assert np.abs(uneven(dice, 64)).max() < 2.6


def test_blur_is_a_gaussian_s() -> None:
    point = np.zeros((33, 33), np.float32)
    point[16, 16] = 10
    blurred = blur(point, 2.0)
    offsets = np.arange(33) - 16
    weights = np.exp(-(offsets**2) / 8)
    expected = 10 * np.outer(weights, weights) / weights.sum() ** 2
    assert np.abs(blurred - expected).max() < 0.01


def test_quickstart_records_are_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPRE_SYNTHETIC_ROOT", str(tmp_path))
    assert len(get_records("synthetic_cells_val")) == 24
