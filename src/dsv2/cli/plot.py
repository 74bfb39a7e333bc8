"""``dsv2 plot``: the curves of a training run as a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plot(
    run: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="The PNG; by default in the run.")] = None,
) -> None:
    """Draw loss, learning rate, throughput and expert load of RUN."""
    from dsv2.training.plot import draw

    path = draw(run, out or run / "training.png")
    typer.echo(str(path))
