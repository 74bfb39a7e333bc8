"""What a run tells: lines of JSON, which are the truth, a progress display, TensorBoard."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """The metrics of one run, as a context manager.

    On a resume the lines of steps that will be trained again are cut off, so that the file always
    holds one line per logged step.
    """

    def __init__(self, folder: Path, total_tokens: int, resumed_step: int, quiet: bool) -> None:
        self._path = folder / METRICS_FILE
        self._keep_until(resumed_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = _tensorboard(folder)
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[line]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._progress.add_task("train", total=total_tokens, line="")
        self._plain = not quiet and not self._console.is_terminal

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def log(self, line: dict[str, Any]) -> None:
        """Append one line; ``step`` and ``tokens`` are required."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in line.items():
                if isinstance(value, (int, float)) and key != "step":
                    self._board.add_scalar(key, value, line["step"])
        shown = " ".join(
            f"{key} {_short(line[key])}"
            for key in ("loss", "validation_loss", "learning_rate", "tokens_per_second")
            if line.get(key) is not None
        )
        if self._plain:
            self._console.print(f"step {line['step']} {shown}", highlight=False)
        self.advance(line["tokens"], shown)

    def advance(self, tokens: int, shown: str | None = None) -> None:
        """Move the progress bar to ``tokens``."""
        fields = {} if shown is None else {"line": shown}
        self._progress.update(self._task, completed=tokens, **fields)  # type: ignore[arg-type]

    def say(self, message: str) -> None:
        """A line for the person watching, above the progress bar."""
        self._progress.console.print(message, highlight=False)

    def _keep_until(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = [
            json.dumps(line) + "\n" for line in read_metrics(self._path) if line["step"] <= step
        ]
        self._path.write_text("".join(kept), encoding="utf-8")


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file; a last line that a kill cut short is left out."""
    with path.open(encoding="utf-8") as file:
        for text in file:
            if text.endswith("\n"):
                yield json.loads(text)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _tensorboard(folder: Path) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
