"""The latent space of a network, laid out in two dimensions (Fig. 2 of the paper)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch.nn.functional import interpolate

from cupre_d2.checkpoint.loading import load_initial_weights
from cupre_d2.data import get_records
from cupre_d2.data.loaders import draw_samples
from cupre_d2.engine.pseudo_labels import LATENT_BATCH
from cupre_d2.engine.single_phase import build_network
from cupre_d2.modeling.latent import PooledLatent, encoder_of

SAMPLES = 400
THUMBNAIL_PIXELS = 48
# Of the drawing: its side in inches, and a thumbnail's as a share of it.
SIDE, THUMBNAIL = 9, 0.035


@dataclass(frozen=True)
class LatentMap:
    """
    Attributes:
        positions: N x 2 float32.
        thumbnails: N x 48 x 48 x 3 uint8, RGB.
        cell_types: of each, "" where it has none.
    """

    positions: np.ndarray
    thumbnails: np.ndarray
    cell_types: list[str]


def latent_map(cfg: CfgNode, checkpoint: Path, datasets: Sequence[str], seed: int = 0) -> LatentMap:
    """t-SNE of the principal components of 400 samples' pooled latents, which are those that are clustered.

    Args:
        cfg: of the clustering stage, complete.
        checkpoint: of a network with its config's architecture.
        datasets: the same number of samples are drawn of each.

    Raises:
        DatasetError: an image cannot be read.
        CheckpointError: the checkpoint is of another network.
    """
    network = build_network(cfg)
    load_initial_weights(network, str(checkpoint))
    latent = PooledLatent(encoder_of(network), cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD).to(cfg.MODEL.DEVICE)
    parts = [
        draw_samples(cfg, get_records(name), SAMPLES // len(datasets), (seed, place)) for place, name in enumerate(datasets)
    ]
    latents = np.concatenate([latent.of_samples(part.images, LATENT_BATCH).numpy() for part in parts])
    components = PCA(min(cfg.CLUSTERING.COMPONENTS, *latents.shape), svd_solver="full").fit_transform(latents)
    positions = TSNE(perplexity=min(30.0, (len(components) - 1) / 3), random_state=seed).fit_transform(components)
    small = [interpolate(part.images.float(), (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), mode="area") for part in parts]
    thumbnails = np.concatenate([part.byte().permute(0, 2, 3, 1).numpy() for part in small])
    if cfg.INPUT.FORMAT == "BGR":
        thumbnails = thumbnails[..., ::-1]
    return LatentMap(positions, thumbnails, [cell_type for part in parts for cell_type in part.cell_types])


def draw_map(found: LatentMap) -> Figure:
    """Fig. 2: each sample where t-SNE puts its latent, framed in the colour of its type."""
    figure = Figure(figsize=(SIDE, SIDE), layout="constrained")
    axes = figure.add_subplot()
    low, high = found.positions.min(0), found.positions.max(0)
    side = THUMBNAIL * (high - low).max()
    types = sorted(set(found.cell_types))
    samples = zip(found.thumbnails, found.positions, found.cell_types, strict=True)
    for layer, (thumbnail, (x, y), cell_type) in enumerate(samples):
        extent = (x - side / 2, x + side / 2, y - side / 2, y + side / 2)
        axes.imshow(thumbnail, extent=extent, aspect="auto", zorder=layer)
        left, right, bottom, top = extent
        frame = [left, right, right, left, left], [bottom, bottom, top, top, bottom]
        axes.plot(*frame, color=f"C{types.index(cell_type) % 10}", linewidth=1.2, zorder=layer)
    for color, name in enumerate(types):
        axes.plot([], [], "s", color=f"C{color % 10}", label=name or "no type")
    axes.set(
        xlim=(low[0] - side, high[0] + side), ylim=(low[1] - side, high[1] + side), xticks=[], yticks=[], aspect="equal"
    )
    axes.legend(loc="upper right", fontsize=8).set_zorder(len(types) + len(found.cell_types))
    return figure
