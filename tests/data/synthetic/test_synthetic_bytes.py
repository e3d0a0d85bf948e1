"""The same arguments give the same bytes, with whatever instructions the processor has."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.core._multiarray_umath import __cpu_dispatch__, __cpu_features__

from cupre_d2.data import synthetic

# SHA-256 of pixels and masks of images 0 to 2 of seed 11; made on x86-64 with AVX-512.
CASES: dict[str, tuple[str, int, dict[str, Any], str]] = {
    "cells": ("cells", 96, {}, "a774d3d79a9b14fab24385924dea3e3e5ee7f968ab963b73144b3960d6d3c9f4"),
    "larger": ("cells", 192, {}, "ef4362b1771f00a94361ff6c6a7d32b2004795e176321bec7cb3c2a909a22ee9"),
    "lonely": (
        "cells",
        130,
        {"clustering": 0.0, "diameter": (30.0, 40.0), "limits": (20.0, 50.0)},
        "387498b31855929ac751d74c24f512099a5d8871bc500feed9610c2c9e3efa2b",
    ),
    "dim": (
        "cells",
        128,
        {"photons": (5.0, 9.0), "out_of_focus": 1.0, "unevenness": 0.9, "defocus": (2.0, 4.0)},
        "cb2bd8457333e6b605f4d428df6e183a76ccf747ae5c035f8bd9bf69bce51523",
    ),
    "bright_field": ("bright_field", 128, {}, "99b87c582af12eb1822dc118096fbbdee90fc4d08de256e1062cd8e2bf05c856"),
    "bright_field, larger": ("bright_field", 256, {}, "0f79c294783532c70d26653bf07b2b1386ada6d8843924b58b213fdaceaf977d"),
    "bright_field, sharp": (
        "bright_field",
        100,
        {"blur": (0.0, 0.0), "rim_width": 3.0, "largest_count": 60},
        "f58d40418f122a474ce947efbe62b1a13b60d269000f537cfc4c08104c5b6f9c",
    ),
    "phase_contrast": ("phase_contrast", 128, {}, "608eb70a317ed4fa665735abb48f8f101cc083922e7be8bb86d90e3d3d684da7"),
    "phase_contrast, blurred": (
        "phase_contrast",
        200,
        {"blur": (2.0, 5.0), "overlap": 4, "noise": (9.0, 9.0)},
        "a143a9d5d5301e8b7571c7622dd4c4d533b6fdc7fd7aa6a9e971c65c192c0d49",
    ),
    "shapes": ("shapes", 96, {}, "69b46e0fc17350c2adf30f88b29e431b43100a697641264483f07796933777bb"),
    "shapes, larger": (
        "shapes",
        192,
        {"stripes": 1.0, "shapes": (8, 20)},
        "7a8d6d2d366c1856f302f111a62ecec3a64780d176ed9f3ed614bf86ee7bea50",
    ),
}


def digest(kind: str, size: int, parameters: dict[str, Any]) -> str:
    parts = hashlib.sha256()
    for index in range(3):
        image, masks, classes = synthetic.draw(kind, 11, index, size, **parameters)
        parts.update(image.tobytes() + np.packbits(masks).tobytes() + bytes(classes))
    return parts.hexdigest()


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    kind, size, parameters, expected = CASES[case]
    assert digest(kind, size, parameters) == expected


def test_every_kind_has_golden_bytes() -> None:
    assert {kind for kind, *_ in CASES.values()} == set(synthetic.KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["baseline", "AVX2"])
def test_processor_does_not_matter(level: str) -> None:
    """Without what is above a level, in another process; IPP is off at the lowest."""
    above = [name for name in __cpu_dispatch__ if __cpu_features__[name] and (level == "baseline" or "AVX512" in name)]
    if not above:
        pytest.skip(f"this processor has nothing above {level}")
    program = (
        "import cv2, numpy as np\n"
        "from numpy.core._multiarray_umath import __cpu_features__ as features\n"
        f"assert not [name for name in {above} if features[name]]\n"
        f"cv2.setUseOptimized({level != 'baseline'})\n"
        "from test_synthetic_bytes import CASES, digest\n"
        "print(*(digest(kind, size, parameters) for kind, size, parameters, _ in CASES.values()))\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parents[3], Path(__file__).parent))),
        "NPY_DISABLE_CPU_FEATURES": " ".join(above),
        "OPENBLAS_CORETYPE": {"baseline": "Prescott", "AVX2": "Haswell"}[level],
        "OPENCV_CPU_DISABLE": {"baseline": "AVX512-SKX,AVX2,FMA3,FP16,AVX,SSE4.2,SSE4.1", "AVX2": "AVX512-SKX"}[level],
        "OPENCV_IPP": {"baseline": "disabled", "AVX2": "avx2"}[level],
    }
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [expected for *_, expected in CASES.values()], done.stderr


def test_threads_do_not_matter() -> None:
    threads = cv2.getNumThreads()
    try:
        digests = []
        for number in (1, 4):
            cv2.setNumThreads(number)
            digests.append([digest(kind, 256, {}) for kind in synthetic.KINDS])
    finally:
        cv2.setNumThreads(threads)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_other_seed_or_index_other_bytes(kind: str) -> None:
    keys = [(5, 3), (5, 4), (4, 3), (3, 5), (0, 0)]
    assert len({synthetic.draw(kind, *key, 128)[0].tobytes() for key in keys}) == len(keys)
