from typing import Any

import numpy as np
from scipy import ndimage

from cupre_d2.data import synthetic

cells = [synthetic.draw_microscope(7, index) for index in range(20)]


def test_numbers_and_sizes_of_cells() -> None:
    counts = [len(masks) for _, masks, _ in cells]
    assert min(counts) >= 5 and max(counts) <= 25 and len(set(counts)) > 5
    whole = [mask for _, masks, _ in cells for mask in masks if not touches_border(mask)]
    diameters = [2 * np.sqrt(mask.sum() / np.pi) for mask in whole]
    assert min(diameters) > 9 and max(diameters) < 31
    assert np.ptp(diameters) > 10
    assert {kind for *_, classes in cells for kind in classes} == {0}


def touches_border(mask: np.ndarray) -> bool:
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


def test_every_mask_is_one_piece_of_some_size() -> None:
    for _, masks, _ in cells:
        for mask in masks:
            assert mask.sum() >= 40 and ndimage.label(mask)[1] == 1


def test_cells_touch_and_overlap_but_none_is_hidden() -> None:
    overlapping = touching = pairs = 0
    for _, masks, _ in cells:
        for index, mask in enumerate(masks):
            for other in masks[:index]:
                shared = (mask & other).sum()
                pairs += 1
                overlapping += shared > 0
                touching += shared == 0 and bool((ndimage.binary_dilation(mask) & other).any())
                assert shared <= 0.25 * min(mask.sum(), other.sum())
    assert overlapping > 40 and touching > 5 and overlapping + touching < 0.5 * pairs


def test_cells_are_bright_on_a_dark_grey_image() -> None:
    for image, masks, _ in cells:
        assert (image[:, :, 0] == image[:, :, 2]).all()
        covered = np.any(masks, axis=0)
        away = ~ndimage.binary_dilation(covered, iterations=5)
        assert image[away].mean() < 60
        for mask in masks:
            assert image[mask].mean() > 1.5 * image[away].mean()


def test_light_adds_up_where_cells_overlap() -> None:
    ratios = []
    for image, masks, _ in cells:
        depth = np.sum(masks, axis=0)
        if (depth > 1).sum() > 20:
            ratios.append(image[depth > 1].mean() / image[depth == 1].mean())
    assert len(ratios) > 10 and np.mean(ratios) > 1.1


def test_the_noise_is_shot_noise() -> None:
    """What a 3x3 median takes away is larger where it is bright."""
    noise = [np.abs(image[:, :, 0] - ndimage.median_filter(image[:, :, 0].astype(float), 3)) for image, *_ in cells]
    inside = [
        n[ndimage.binary_erosion(np.any(m, axis=0), iterations=3)].mean() for n, (_, m, _) in zip(noise, cells, strict=True)
    ]
    outside = [n[~np.any(m, axis=0)].mean() for n, (_, m, _) in zip(noise, cells, strict=True)]
    assert np.mean(inside) > 1.5 * np.mean(outside)


def drawn(index: int = 0, **changes: Any) -> np.ndarray:
    return synthetic.draw("cells", 1, index, 192, **changes)[0][:, :, 0].astype(float)


def test_gain_and_photons() -> None:
    dim, bright = drawn(gain=(20.0, 20.0)), drawn(gain=(80.0, 80.0))
    assert 3.5 < bright.mean() / dim.mean() < 5.5
    smooth = drawn(photons=(1e6, 1e6), read_noise=0.0)
    noise = [np.abs(drawn(photons=(n, n), read_noise=0.0) - smooth).mean() for n in (1000.0, 250.0)]
    # A quarter of the photons, twice the noise.
    assert 1.7 < noise[1] / noise[0] < 2.3


def test_blur_of_the_lens_and_out_of_focus() -> None:
    quiet = {"photons": (1e6, 1e6), "read_noise": 0.0, "out_of_focus": 0.0}
    for changes in ({"defocus": (3.0, 3.0)}, {"out_of_focus": 1.0, "out_of_focus_blur": (3.0, 3.0)}):
        steepest = [np.abs(np.diff(drawn(index, **quiet), axis=1)).max() for index in range(5)]
        blurred = [np.abs(np.diff(drawn(index, **{**quiet, **changes}), axis=1)).max() for index in range(5)]
        assert np.mean(blurred) < 0.6 * np.mean(steepest)


def test_uneven_light() -> None:
    """Beside the same image in even light, parts of it are brighter and parts darker."""
    spreads = []
    for index in range(5):
        even, uneven = (ndimage.uniform_filter(drawn(index, unevenness=u, gain=(60.0, 60.0)), 48) for u in (0.0, 0.5))
        spreads.append(np.ptp(uneven / even))
    assert min(spreads) > 0.15 and np.mean(spreads) > 0.4


def test_number_and_size() -> None:
    masks = synthetic.draw("cells", 1, 0, 192, nuclei=(3, 3), diameter=(40.0, 40.0), limits=(38.0, 42.0))[1]
    assert len(masks) == 3 and all(mask.sum() < 1.3 * np.pi * 21**2 for mask in masks)
    assert max(mask.sum() for mask in masks) > 0.75 * np.pi * 19**2


def test_no_clusters_no_overlap() -> None:
    for index in range(5):
        masks = synthetic.draw("cells", 1, index, 192, clustering=0.0, overlap=0.0)[1]
        assert masks.sum(axis=0).max() == 1


def test_no_room_ends_with_fewer() -> None:
    masks = synthetic.draw("cells", 1, 0, 64, nuclei=(2000, 2000), overlap=0.0)[1]
    assert 2 < len(masks) < 30
