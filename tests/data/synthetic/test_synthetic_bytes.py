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
    "cells": ("cells", 96, {}, "4e0a30b5625e7840b0df0f3d6c79c4c360203d332403c0fc6a873526c2058366"),
    "larger": ("cells", 192, {}, "f79709df38eb4b68c31795cf391ee9f228c8a0179dbf9cc0aac9a40a3f39be3f"),
    "lonely": (
        "cells",
        130,
        {"clustering": 0.0, "diameter": (30.0, 40.0), "limits": (20.0, 50.0)},
        "34d91d6ea57e32e8f69585ad79a38f2a50c942be5902e55d9d23cd796a15110c",
    ),
    "dim": (
        "cells",
        128,
        {"photons": (5.0, 9.0), "out_of_focus": 1.0, "unevenness": 0.9, "defocus": (2.0, 4.0)},
        "5b9c47e5c153999998f88f7c6b3291f1e3318c0b5d4c7ef108bffd52936d1ff3",
    ),
    "bright_field": ("bright_field", 128, {}, "99b2c7693c5e7d6d8bfa0a6aaa810d382876780aa99c45d90dd613bf90087495"),
    "bright_field, larger": ("bright_field", 256, {}, "8f30ce2da6ee23c6bf1ff0995b38bc860f266dff0672ed815f452a624ec74789"),
    "bright_field, sharp": (
        "bright_field",
        100,
        {"blur": (0.0, 0.0), "rim_width": 3.0, "largest_count": 60},
        "8dcc6556ee539b57c3310a9eb5c5501f758dc8ec4ac51763755593345481d232",
    ),
    "phase_contrast": ("phase_contrast", 128, {}, "9b61b132b79ebd6d82a8f6246df66b6795a5d056f6bd5eef1a6bb3b1f1e13e37"),
    "phase_contrast, blurred": (
        "phase_contrast",
        200,
        {"blur": (2.0, 5.0), "overlap": 4, "noise": (9.0, 9.0)},
        "288be35346a8feb741fdaf7b3edfa0f97b2a977d60777f13c74c4993fc8bde19",
    ),
    "shapes": ("shapes", 96, {}, "1ec14349af1dbe8aa76a86325701693bb14e10cbb30b2104cc7754fc902b374a"),
    "shapes, larger": (
        "shapes",
        192,
        {"stripes": 1.0, "shapes": (8, 20)},
        "426899ab1ec276c4a33ad78c48ddf3ec2e6d725177d9692f2e00f7f53f41e9b7",
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
