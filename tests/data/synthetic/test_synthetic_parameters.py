import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from cupre_d2.data import synthetic
from cupre_d2.data.synthetic import BRIGHT_FIELD, PHASE_CONTRAST
from cupre_d2.errors import DatasetError


@pytest.mark.parametrize("size", [64, 97, 192])
@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_shapes_and_types(kind: str, size: int) -> None:
    image, masks, classes = synthetic.draw(kind, 0, 1, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert masks.shape == (len(classes), size, size) and masks.dtype == bool
    assert len(classes) >= 1 and masks.any(axis=(1, 2)).all()
    assert max(classes) < len(synthetic.KINDS[kind].classes)


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_every_parameter_changes_the_drawing(kind: str) -> None:
    defaults = synthetic.KINDS[kind].defaults
    before = [synthetic.draw(kind, 0, index, 128)[0].tobytes() for index in range(4)]
    for field in fields(defaults):
        value = getattr(defaults, field.name)
        # More, of the same type and in order.
        step = 1 if isinstance(np.max(value), np.integer) else float(np.max(value))
        changed = tuple(one + type(one)(step) for one in value) if isinstance(value, tuple) else value + type(value)(step)
        after = [synthetic.draw(kind, 0, index, 128, **{field.name: changed})[0].tobytes() for index in range(4)]
        assert after != before, field.name


def test_by_name_is_as_by_dataclass() -> None:
    by_name = synthetic.draw("phase_contrast", 3, 1, 128, radius=[5, 6], rim=200)
    by_class = synthetic.draw_phase_contrast(3, 1, 128, replace(PHASE_CONTRAST, radius=(5, 6), rim=200))
    assert all(np.array_equal(one, other) for one, other in zip(by_name, by_class, strict=True))


def bad(kind: str, message: str, **changes: Any) -> Any:
    return pytest.param(kind, changes, message, id=f"{kind}-{next(iter(changes))}={next(iter(changes.values()))}")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        bad("cells", "'colour' does not exist; expected one of nuclei, diameter", colour=3),
        bad("cells", "'nuclei' is 5; expected numbers of \\(5, 25\\)'s types", nuclei=5),
        bad("cells", "'nuclei' is \\(9, 5\\)", nuclei=(9, 5)),
        bad("cells", "'nuclei' is \\(1.5, 3\\)", nuclei=(1.5, 3)),
        bad("cells", "'nuclei' is \\(True, 3\\)", nuclei=(True, 3)),
        bad("cells", "'overlap' is nan", overlap=math.nan),
        bad("cells", "'overlap' is inf", overlap=math.inf),
        bad("cells", "'overlap' is -1", overlap=-1),
        bad("cells", "'overlap' is '0.1'", overlap="0.1"),
        bad("cells", "'overlap' is 1000", overlap=10**400),
        bad("cells", "above 0", photons=(0.0, 3.0)),
        bad("cells", "more than 120 pixels", limits=(10.0, 200.0)),
        bad("shapes", "expected at least 1", shapes=(0, 2)),
        bad("bright_field", "margins \\(70, 70, 1, 1\\) leave less than 8 of 128", margins=(70, 70, 1, 1)),
        bad("bright_field", "'margins' is \\(1, 2\\)", margins=(1, 2)),
        bad("phase_contrast", "expected at least 2 and 1", radius=(1, 2)),
        bad("phase_contrast", "expected at least 2 and 1", largest_count=0),
        bad("phase_contrast", "blurred", blurred=1.5),
        bad("plants", "'plants': expected one of cells, bright_field, phase_contrast, shapes", any=1),
    ],
)
def test_what_cannot_be_is_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message) as raised:
        synthetic.draw(kind, 0, 0, 128, **changes)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000


@pytest.mark.parametrize("numbers", [(-1, 0, 128), (0, -1, 128), (0, 0, 63), (0, 0, 128.0), ("0", 0, 128)])
def test_seed_index_and_size(numbers: tuple) -> None:
    with pytest.raises(DatasetError, match="expected a whole number of at least"):
        synthetic.draw("cells", *numbers)


def test_defaults_are_what_the_facts_say() -> None:
    assert (BRIGHT_FIELD.inner, BRIGHT_FIELD.inner_spread, BRIGHT_FIELD.rim) == (180, 29, 80)
    assert (PHASE_CONTRAST.inner, PHASE_CONTRAST.inner_spread, PHASE_CONTRAST.rim) == (50, 9, 160)
    assert BRIGHT_FIELD.rim_spread == PHASE_CONTRAST.rim_spread == 49
    assert BRIGHT_FIELD.margins == (26, 20, 12, 6) and PHASE_CONTRAST.margins == (12, 11, 11, 10)
    assert abs(BRIGHT_FIELD.ground / 255 - 0.744) < 0.003 and abs(PHASE_CONTRAST.ground / 255 - 0.24) < 0.003
