"""Fig. 3, 4 and 6 as PNG."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cupre_d2.experiments.cupre.series import Bar, Panel

DPI = 120


def draw_epochs(panels: Sequence[Panel], file: Path) -> None:
    """Fig. 3: side by side; thick the mean over seeds, thin each seed."""
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel, "epochs of fine-tuning", "mask AP, validation images (%)")
    figure.savefig(file, dpi=DPI)


def draw_fractions(panel: Panel, file: Path) -> None:
    """Fig. 4."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    _draw(figure.add_subplot(), panel, "annotated training images (%)", "mask AP, test images (%)")
    figure.savefig(file, dpi=DPI)


def draw_ablation(bars: Sequence[Bar], file: Path) -> None:
    """Fig. 6: the mean, its standard deviation over seeds, and a dot a seed."""
    figure = Figure(figsize=(1 + len(bars), 4), layout="constrained")
    axes = figure.add_subplot()
    for place, bar in enumerate(bars):
        axes.bar(place, bar.mean, width=0.6, color=f"C{bar.place}", alpha=0.6)
        if math.isfinite(bar.spread):
            axes.errorbar(place, bar.mean, bar.spread, color="black", capsize=4)
        axes.plot([place] * len(bar.values), bar.values, "o", color="black", markersize=3)
    axes.set(xticks=range(len(bars)), xticklabels=[bar.arm for bar in bars], ylabel="mask AP, test images (%)")
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(file, dpi=DPI)


def _draw(axes: Any, panel: Panel, x_label: str, y_label: str) -> None:
    for place, series in enumerate(panel.series):
        color = f"C{place}"
        for run in series.runs:
            if run:
                axes.plot(*zip(*run, strict=True), "o-", color=color, markersize=3, linewidth=0.8, alpha=0.5)
        if series.mean:
            axes.plot(*zip(*series.mean, strict=True), "o-", color=color, markersize=5, linewidth=2, label=series.arm)
    axes.set(xlabel=x_label, ylabel=y_label, title=panel.title, xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
