"""Curves of a run, drawn from its metrics file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from dsv2.training.metrics import METRICS_FILE, read_metrics


class PlotError(ValueError):
    """There is nothing to draw, or nothing to draw with."""


def draw(run: Path, out: Path) -> Path:
    """Draw loss, learning rate, tokens per second and expert load of ``run`` into ``out``.

    Raises:
        PlotError: the run has no metrics, or matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotError("plots need matplotlib: pip install 'dsv2[train]'")
    path = run / METRICS_FILE
    lines = list(read_metrics(path)) if path.exists() else []
    if not lines:
        raise PlotError(f"{path}: no metrics to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    _curves(axes[0, 0], lines, ["loss", "validation_loss"], "loss, nats per token")
    _curves(axes[0, 1], lines, ["learning_rate"], "learning rate")
    _curves(axes[1, 0], lines, ["tokens_per_second"], "tokens per second")
    _expert_load(axes[1, 1], lines)
    figure.suptitle(run.name)
    figure.savefig(out, dpi=110)
    return out


def _curves(axis: Any, lines: list[dict[str, Any]], keys: list[str], title: str) -> None:
    for key in keys:
        points = [(line["tokens"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), label=key, marker="." if len(points) < 30 else "")
    from matplotlib.ticker import EngFormatter

    axis.set_title(title)
    axis.set_xlabel("tokens")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.3)
    if len(keys) > 1:
        axis.legend()


def _expert_load(axis: Any, lines: list[dict[str, Any]]) -> None:
    """The last line's load of every expert, layer by layer, relative to the mean."""
    loads = [line["expert_load"] for line in lines if line.get("expert_load")]
    axis.set_title("expert load at the end, 1 = even")
    if not loads:
        axis.text(0.5, 0.5, "no routed experts", ha="center", va="center")
        axis.set_axis_off()
        return
    image = axis.imshow(loads[-1], aspect="auto", cmap="viridis", vmin=0, vmax=2)
    axis.set_yticks(range(len(loads[-1])))
    axis.set_xlabel("expert")
    axis.set_ylabel("MoE layer")
    axis.figure.colorbar(image, ax=axis)
