"""``dsv2 quantize``: a checkpoint in 8 or 4 bits, or in fp8."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


def quantize(
    model: Annotated[str, typer.Argument(help="A folder, pocket or the name of a pulled model.")],
    output: Annotated[Path, typer.Argument(help="The folder to write, which must not exist.")],
    scheme: Annotated[
        str,
        typer.Option(
            help="int4 (4.14 bits per weight), int8 (8.27), or fp8 (8.00) for any engine."
        ),
    ] = "int4",
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one per core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Convert MODEL to OUTPUT, one layer in memory at a time, and report the error by kind."""
    from dsv2.checkpoint.hub import resolve
    from dsv2.checkpoint.quantised import quantise_checkpoint
    from dsv2.kernels.executor import make_executor

    executor = make_executor("cpu", "cpu", threads)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(f"{scheme} by {executor.description}", total=None)
        report = quantise_checkpoint(
            resolve(model), output, scheme, executor,
            lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    weights = sum(kind.weights for kind in report)
    bits = sum(kind.bits * kind.weights for kind in report) / weights
    if as_json:
        kinds = [asdict(kind) for kind in report]
        typer.echo(json.dumps({"scheme": scheme, "bits_per_weight": bits, "kinds": kinds}))
        return
    table = Table(title=f"{output}: {weights / 1e6:,.1f}M weights at {bits:.3f} bits")
    for title in ("kind", "weights", "bits", "relative RMSE"):
        table.add_column(title, justify="left" if title == "kind" else "right")
    for kind in report:
        table.add_row(
            kind.kind, f"{kind.weights:,}", f"{kind.bits:.3f}", f"{kind.relative_rmse:.2%}"
        )
    Console().print(table)
