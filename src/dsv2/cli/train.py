"""``dsv2 train``: run a recipe."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A YAML recipe.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: state, metrics, model.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a field, as optimizer.learning_rate=1e-3."),
    ] = None,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many steps, with the state saved.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Train from RECIPE into --out; run it again to resume where it stopped."""
    from dsv2.training.config import load_recipe
    from dsv2.training.loop import MODEL_FOLDER, run

    config = load_recipe(recipe, overrides or ())
    asked: list[int] = []

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # A second Ctrl-C does not wait.
        typer.echo("stopping after this step", err=True)

    before = signal.signal(signal.SIGINT, stop)
    try:
        trainer = run(
            config, out, quiet=as_json, stop_after=stop_after, should_stop=lambda: bool(asked)
        )
    finally:
        signal.signal(signal.SIGINT, before)
    progress = trainer.progress
    summary = {
        "steps": progress.step,
        "tokens": progress.tokens,
        "skipped_steps": progress.total_skipped,
        "done": trainer.done,
        "model": str(out / MODEL_FOLDER) if trainer.done else None,
    }
    if as_json:
        typer.echo(json.dumps(summary))
    elif trainer.done:
        typer.echo(
            f"{progress.step} steps, {progress.tokens:,} tokens; model in {summary['model']}"
        )
    else:
        typer.echo(f"stopped at step {progress.step}; the same command goes on from here")
