from typing import Any

import pytest
import torch

from cupre_d2.data.augmentation import TwoViews
from cupre_d2.errors import ConfigError

# Everything off but what chooses the crop, which covers the whole image, and how it is turned.
PLAIN: dict[str, Any] = {
    "size": 8,
    "scale": (1.0, 1.0),
    "jitter": (0, 0, 0, 0),
    "jitter_prob": 0.0,
    "gray_prob": 0.0,
    "blur_prob": 0.0,
    "blur_sigma": (0.1, 2.0),
}
MOCO_V2: dict[str, Any] = {
    **PLAIN,
    "size": 32,
    "scale": (0.2, 1.0),
    "jitter": (0.4, 0.4, 0.4, 0.1),
    "jitter_prob": 0.8,
    "gray_prob": 0.2,
    "blur_prob": 0.5,
}


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("height, width", [(40, 60), (32, 32), (20, 90)])
def test_shapes_and_types(height: int, width: int) -> None:
    for view in TwoViews(**MOCO_V2)(noise(height, width)):
        assert view.shape == (3, 32, 32) and view.dtype == torch.uint8 and view.is_contiguous()


def test_follows_torchs_seed() -> None:
    views, image = TwoViews(**MOCO_V2), noise(40, 60)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(torch.stack([view for _ in range(4) for view in views(image)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_two_views_differ_and_the_image_stays() -> None:
    torch.manual_seed(0)
    image = noise(40, 60)
    before = image.clone()
    query, key = TwoViews(**MOCO_V2)(image)
    assert not torch.equal(query, key)
    assert torch.equal(image, before)


def test_all_eight_flips_and_turns_and_nothing_else() -> None:
    torch.manual_seed(0)
    image = noise(8, 8)
    turned = [torch.rot90(image, k, (1, 2)) for k in range(4)]
    expected = {bytes(view.numpy().tobytes()) for turn in turned for view in (turn, turn.flip(2))}
    views = TwoViews(**PLAIN)
    seen = {view.numpy().tobytes() for _ in range(400) for view in views(image)}
    assert seen == expected and len(expected) == 8


def test_the_crop_covers_the_share_asked_for() -> None:
    """On an image of its own coordinates the spread of values tells how far the crop reached."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
    views = TwoViews(**{**PLAIN, "size": 100, "scale": (0.25, 0.25)})
    for _ in range(20):
        view = views(image)[0].float()
        height, width = (float(view[c].max() - view[c].min()) / 200 for c in (0, 1))
        assert height * width == pytest.approx(0.25, abs=0.03)


def test_grey_jitter_and_blur_happen() -> None:
    torch.manual_seed(0)
    image = noise(64, 64)
    grey = TwoViews(**{**PLAIN, "gray_prob": 1.0})(image)[0]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[1], grey[2])
    flat = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    jittered = TwoViews(**{**PLAIN, "jitter": (0.4, 0, 0, 0), "jitter_prob": 1.0})
    levels = [float(view.float().mean()) for _ in range(20) for view in jittered(flat)]
    assert 60 <= min(levels) < 90 and 110 < max(levels) <= 140
    sharp = {**PLAIN, "size": 64}
    blurred = {**sharp, "blur_prob": 1.0, "blur_sigma": (2.0, 2.0)}
    assert _roughness(TwoViews(**blurred)(image)[0]) < 0.4 * _roughness(TwoViews(**sharp)(image)[0])


def _roughness(view: torch.Tensor) -> float:
    return float(view.float().diff(dim=2).abs().mean())


@pytest.mark.parametrize(
    "key, value",
    [
        ("size", 0),
        ("scale", (0.0, 1.0)),
        ("scale", (0.5, 0.2)),
        ("scale", (0.5, 1.5)),
        ("scale", (0.5,)),
        ("jitter", (0.4, 0.4, 0.4)),
        ("jitter", (0.4, 0.4, 0.4, 0.6)),
        ("jitter", (-0.1, 0, 0, 0)),
        ("jitter_prob", 1.1),
        ("gray_prob", -0.1),
        ("blur_prob", 2.0),
        ("blur_sigma", (0.0, 1.0)),
        ("blur_sigma", (2.0, 1.0)),
        ("blur_sigma", (0.1, 3.0)),
    ],
)
def test_values_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"INPUT\.VIEWS\.{key.upper()} .*expected"):
        TwoViews(**{**PLAIN, key: value})
