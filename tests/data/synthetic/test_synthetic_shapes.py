import numpy as np
from scipy import ndimage

from cupre_d2.data import synthetic

shapes = [synthetic.draw_shapes(7, index) for index in range(40)]


def touches_border(mask: np.ndarray) -> bool:
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


def test_numbers_and_classes_of_shapes() -> None:
    assert all(1 <= len(masks) <= 8 for _, masks, _ in shapes)
    assert {kind for *_, classes in shapes for kind in classes} == set(range(len(synthetic.SHAPES)))


def test_masks_of_shapes_are_what_is_visible() -> None:
    for _, masks, _ in shapes:
        assert np.sum(masks, axis=0).max() == 1


def test_shapes_occlude_each_other() -> None:
    """Neighbours whose masks meet along more than a point or two."""
    meeting = 0
    for _, masks, _ in shapes:
        for index, mask in enumerate(masks):
            meeting += sum((ndimage.binary_dilation(mask) & other).sum() > 8 for other in masks[:index])
    assert meeting > 20


def test_shapes_look_like_their_class() -> None:
    """Holes only in rings; whole discs as full as a disc, whole stars far from it."""
    filled: dict[str, list[float]] = {name: [] for name in synthetic.SHAPES}
    holes = {name: 0 for name in synthetic.SHAPES}
    for index in range(200):
        _, masks, classes = synthetic.draw_shapes(11, index, 96)
        visible = np.any(masks, axis=0)
        for mask, kind in zip(masks, classes, strict=True):
            if touches_border(mask) or (ndimage.binary_dilation(mask) & visible & ~mask).any():
                continue
            name = synthetic.SHAPES[kind]
            holes[name] += bool((ndimage.binary_fill_holes(mask) ^ mask).sum() > 5)
            rows, columns = np.nonzero(mask)
            reach = np.hypot(rows - rows.mean(), columns - columns.mean()).max()
            filled[name].append(mask.sum() / (np.pi * reach**2))
    assert all(len(values) > 3 for values in filled.values())
    assert holes.pop("ring") == len(filled["ring"]) and not any(holes.values())
    assert np.mean(filled["disc"]) > 0.9
    assert np.mean(filled["star"]) < 0.5 and np.mean(filled["triangle"]) < 0.6
