"""Fig. 2 and 6-8 as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cupre_d2.experiments.deep_clustering.latents import Map
from cupre_d2.experiments.deep_clustering.series import Panel

DPI = 120
# Of the t-SNE map: its side in inches, and a thumbnail's as a share of it.
MAP_SIDE, THUMBNAIL = 9, 0.035


def draw_scores(panels: Sequence[Panel], file: Path) -> None:
    """Fig. 6 and 7, side by side: bars are standard deviations over seeds, dashed the baseline."""
    figure = Figure(figsize=(4.5 * len(panels), 4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel, "MAP (%)")
    figure.savefig(file, dpi=DPI)


def draw_entropies(panel: Panel, file: Path) -> None:
    """Fig. 8."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    _draw(figure.add_subplot(), panel, "std over types of the normalised entropy")
    figure.savefig(file, dpi=DPI)


def _draw(axes: Any, panel: Panel, y_label: str) -> None:
    for color, series in enumerate(panel.series):
        # Side by side, or their bars would hide each other.
        shifted = [place.clusters * 1.04**color for place in series.places]
        means, spreads = ([getattr(place, name) for place in series.places] for name in ("mean", "spread"))
        axes.errorbar(shifted, means, np.nan_to_num(spreads), fmt="o-", color=f"C{color}", capsize=3, label=series.algorithm)
    if panel.baseline is not None:
        axes.axhline(panel.baseline, color="black", linestyle="--", linewidth=1, label="baseline")
    axes.set(xlabel="clusters (k)", ylabel=y_label, title=panel.title, xscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def draw_map(found: Map, file: Path) -> None:
    """Fig. 2: each sample where t-SNE puts its latent, framed in the colour of its type."""
    figure = Figure(figsize=(MAP_SIDE, MAP_SIDE), layout="constrained")
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
    figure.savefig(file, dpi=DPI, bbox_inches="tight")
