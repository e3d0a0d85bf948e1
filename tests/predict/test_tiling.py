import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupre_d2.errors import ConfigError
from cupre_d2.predict.tiling import Window, tiles


@settings(max_examples=50, deadline=None)
@given(shape=st.tuples(st.integers(1, 90), st.integers(1, 90)), size=st.integers(3, 40), halo=st.integers(0, 12))
def test_cores_cover_each_pixel_once_and_windows_fit(shape: tuple[int, int], size: int, halo: int) -> None:
    if size <= 2 * halo:
        with pytest.raises(ConfigError, match=f"tiles of {size} pixels with a halo of {halo}"):
            tiles(shape, size, halo)
        return
    covered = np.zeros(shape, int)
    cut = tiles(shape, size, halo)
    for window, core in cut:
        covered[core.slices] += 1
        assert max(window.shape) <= size and window.top <= core.top < core.bottom <= window.bottom
        assert window == (
            max(core.top - halo, 0),
            max(core.left - halo, 0),
            min(core.bottom + halo, shape[0]),
            min(core.right + halo, shape[1]),
        )
        assert core.within(window) == (core.top - window.top, core.left - window.left, *np.subtract(core[2:], window[:2]))
    assert (covered == 1).all()
    for axis in range(2):
        sides = {core.shape[axis] for _, core in cut}
        assert max(sides) - min(sides) <= 1


def test_an_image_of_one_tile_is_not_cut() -> None:
    assert tiles((64, 60), 64, 16) == [((0, 0, 64, 60), (0, 0, 64, 60))]
    assert Window(2, 3, 5, 9).shape == (3, 6) and np.zeros((9, 9))[Window(2, 3, 5, 9).slices].shape == (3, 6)
