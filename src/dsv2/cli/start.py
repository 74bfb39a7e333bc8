"""What ``dsv2 run`` and ``dsv2 chat`` share: a model ready to answer, and what had to be done."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from dsv2.engine.llm import LLM
    from dsv2.engine.loading import Prepared
    from dsv2.engine.plan import MemoryPlan


class _Report(Protocol):
    def __call__(self, done: int, total: int) -> None: ...


def start(
    model: str,
    *,
    device: str,
    dtype: str,
    cache_dtype: str,
    cache_tokens: int | None,
    max_sequences: int,
    threads: int | None,
    pull: bool,
    hub: str,
) -> tuple[LLM, Prepared]:
    """Pull and convert what is needed, saying so on standard error, and load the model."""
    with _no_collection():
        from dsv2.engine.llm import LLM
        from dsv2.engine.loading import prepare

    console = Console(stderr=True, highlight=False)
    with _conversion_bar(console) as report:
        prepared = prepare(
            model, device=device, dtype=dtype, cache_dtype=cache_dtype, cache_tokens=cache_tokens,
            max_sequences=max_sequences, threads=threads, pull=pull, hub=hub,
            say=lambda line: console.print(line, markup=False, soft_wrap=True), progress=report,
        )  # fmt: skip
    console.print(plan_line(prepared.plan), markup=False, soft_wrap=True, style="dim")
    with _no_collection():
        llm = LLM(
            prepared.folder, device=device, threads=threads, max_sequences=max_sequences,
            plan=prepared.plan,
        )  # fmt: skip
    return llm, prepared


@contextmanager
def _no_collection() -> Iterator[None]:
    """Modules and vocabularies stay: to look for cycles among them takes a sixth of a start."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


@contextmanager
def _conversion_bar(console: Console) -> Iterator[_Report]:
    """A progress bar that appears with the first report."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
    task = bar.add_task("converting", total=None)

    def report(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        if bar.live.is_started:  # a bar that was never shown would end with an empty line
            bar.stop()


def plan_line(plan: MemoryPlan) -> str:
    """A plan in one line; what to change where something does not fit is said by itself."""
    from dsv2.engine.plan import size_text

    return (
        f"memory: weights {size_text(plan.weight_bytes)} in {plan.weights}, cache "
        f"{size_text(plan.cache_bytes)} in {plan.cache} for {plan.cache_tokens:,} tokens, "
        f"context {plan.context:,} of {plan.model_context:,}, {size_text(plan.free_bytes)} free"
    )


def plan_table(plan: MemoryPlan) -> Table:
    """A plan for people."""
    from dsv2.engine.plan import size_text

    table = Table("memory", "size", "", title=f"{size_text(plan.free_bytes)} free")
    table.columns[1].justify = "right"
    table.add_row("weights", size_text(plan.weight_bytes), plan.weights)
    table.add_row("scratch", size_text(plan.scratch_bytes), "for loading and for a step")
    table.add_row(
        "cache", size_text(plan.cache_bytes),
        f"{plan.cache_tokens:,} tokens of {plan.token_bytes:,} bytes, {plan.cache}",
    )  # fmt: skip
    table.add_row("context", "", f"{plan.context:,} of {plan.model_context:,} tokens")
    for line in plan.advice:
        table.add_row("for more", "", line)
    return table
