"""``dsv2 bench serve``: load on a server, and how it bears it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dsv2.service.load.client import Ask, Client
    from dsv2.service.load.report import Report, Spread
    from dsv2.service.load.run import Run

_ADVICE = {
    401: "give a key that is good: --key, or OPENAI_API_KEY",
    402: "the account has not enough money for this run",
    403: "the key is not for this model",
    429: "the key's limits are below this run's load",
}

_LEGEND = "TTFT: first token; TPOT: per token after it; ITL: between chunks; E2E: to the end"


@dataclass(frozen=True)
class Load:
    """How requests are sent: by ``concurrency`` users, or at ``rate`` whatever the server does."""

    concurrency: int | None
    rate: float | None
    requests: int | None
    seconds: float | None
    seed: int

    def __post_init__(self) -> None:
        if self.rate is not None and self.concurrency is not None:
            raise ValueError(
                "--rate sends whatever is under way, --concurrency waits for answers: give one"
            )
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"--rate is {self.rate}, allowed is a positive number or inf")
        if self.requests is None and self.seconds is None:
            object.__setattr__(self, "requests", 100)
        if self.rate == float("inf") and self.requests is None:
            raise ValueError("--rate inf sends all at once: say how many by --requests")

    @property
    def streams(self) -> int:
        """Most that can be under way at once, as far as is known."""
        return self.concurrency or self.requests or 4096

    @property
    def title(self) -> str:
        """For people."""
        if self.rate is None:
            return f"{self.concurrency or 16} at once"
        return "all at once" if self.rate == float("inf") else f"{self.rate:g} requests/s"


Panel = "Prompts and answers"


def serve(
    url: Annotated[
        str, typer.Option(help="Of any OpenAI-compatible server; /v1 is added.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option(help="Its name at the server.", show_default="the first listed")
    ] = None,
    endpoint: Annotated[str, typer.Option(help="completions or chat.")] = "completions",
    key: Annotated[
        str | None,
        typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="Never shown.",
                     show_default="none"),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, show_default="16",
                     help="Closed loop: so many users, each asks anew when an answer has ended."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(show_default="none",
                     help="Open loop: requests/s that wait for no answer, as a Poisson process; "
                     "inf for all at once."),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(min=1, show_default="100 without --seconds", help="To send in all."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.001, show_default="none",
                     help="Send none after that; answers under way are waited for."),
    ] = None,
    warmup: Annotated[
        int, typer.Option(min=0, help="Requests before, which do not count.")
    ] = 1,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Most seconds of one request.")
    ] = 600.0,
    seed: Annotated[int, typer.Option(help="Of prompts and arrivals.")] = 0,
    input_tokens: Annotated[
        int,
        typer.Option(min=1, rich_help_panel=Panel,
                     help="Of a random prompt: token ids; for chat words, about a token each."),
    ] = 128,
    input_spread: Annotated[
        float,
        typer.Option(min=0.0, rich_help_panel=Panel,
                     help="0.5: prompts are from half to one and a half times as long."),
    ] = 0.0,
    prefix_tokens: Annotated[
        int,
        typer.Option(min=0, rich_help_panel=Panel,
                     help="Before those, the same in all prompts: to see the server's cache."),
    ] = 0,
    vocab_size: Annotated[
        int, typer.Option(min=2, rich_help_panel=Panel, help="Random token ids are below it.")
    ] = 4096,
    prompts: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, rich_help_panel=Panel, show_default="random",
                     help="A prompt per line; .jsonl: strings, lists of messages, or objects "
                     "with prompt or messages."),
    ] = None,
    output_tokens: Annotated[
        int, typer.Option(min=1, rich_help_panel=Panel, help="max_tokens of every answer.")
    ] = 128,
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos/--respect-eos", rich_help_panel=Panel,
                     help="Answers of full length; servers that refuse the parameter need the "
                     "second."),
    ] = True,
    temperature: Annotated[
        float, typer.Option(min=0.0, rich_help_panel=Panel, help="0 is greedy.")
    ] = 0.0,
    save: Annotated[
        Path | None,
        typer.Option(dir_okay=False, show_default="none",
                     help="JSON file for each request's numbers, besides the report."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:  # fmt: skip
    """Load on a server, and how it bears it: any that speaks OpenAI's format.

    TTFT, time to first token: from sending, connecting included, to the first piece of the answer.
    TPOT, time per output token: (last piece - first piece) / (tokens - 1), for each answer.
    ITL, inter-token latency: gaps between pieces; one may hold several tokens.
    E2E: from sending to the answer's end.
    Failed requests are counted by kind and are in no latency. Tokens are the server's own count.
    Exit code 1 when no request succeeded.
    """
    try:
        from dsv2.service.load.client import Ask, Client, ServerError
        from dsv2.service.load.prompts import ENDPOINTS
        from dsv2.service.load.report import make_report
        from dsv2.service.load.report import save as save_run
        from dsv2.service.load.run import run_fast
    except ModuleNotFoundError as error:
        raise ValueError(f"bench serve needs {error.name}: pip install 'dsv2[serve]'") from error
    if endpoint not in ENDPOINTS:
        raise ValueError(f"--endpoint is {endpoint!r}, allowed are {', '.join(ENDPOINTS)}")
    for option, value in (("seconds", seconds), ("timeout", timeout), ("temperature", temperature)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"--{option} is {value}, allowed is a finite number")
    load = Load(concurrency, rate, requests, seconds, seed)
    asked = _prompts(prompts, endpoint, input_tokens, input_spread, prefix_tokens, vocab_size, seed)
    client = Client(url, key=key, timeout=timeout)

    async def measure() -> tuple[str, Run]:
        try:
            name = model or await _first_model(client)
            ask = Ask(name, endpoint, output_tokens, ignore_eos, temperature)
            await _warm_up(client, ask, asked, warmup, concurrency or 16)
            return name, await _send(client, ask, asked, load)
        finally:
            client.close()

    try:
        name, run = run_fast(measure, load.streams)
    except ServerError as error:
        advice = _ADVICE.get(error.status or 0)
        raise ValueError(f"{error}; {advice}" if advice else str(error)) from error
    report = make_report(run)
    facts = {
        "url": url, "model": name, "endpoint": endpoint, "load": load.title,
        "max_tokens": output_tokens, "seed": seed, **report.to_dict(),
    }  # fmt: skip
    if save is not None:
        save_run(save, run, facts)
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        show(f"{name} at {client.address.authority}, {load.title}", report)
    if not report.successful:
        raise typer.Exit(1)


def _prompts(
    path: Path | None, endpoint: str, tokens: int, spread: float, prefix: int, vocab: int, seed: int
) -> Iterator[dict[str, Any]]:
    from dsv2.service.load.prompts import Shape, file_prompts, random_prompts

    if path is not None:
        if prefix:
            raise ValueError("--prefix-tokens is for random prompts, not for those of a file")
        return file_prompts(path, endpoint)
    return random_prompts(Shape(tokens, spread, prefix, vocab, seed), endpoint)


async def _first_model(client: Client) -> str:
    names = await client.models()
    if not names:
        raise ValueError("the server lists no models")
    return names[0]


async def _warm_up(
    client: Client, ask: Ask, prompts: Iterator[dict[str, Any]], count: int, at_once: int
) -> None:
    """Requests that do not count; the first one's failure is everyone's."""
    from dsv2.service.load.client import ServerError
    from dsv2.service.load.run import closed_loop

    if not count:
        return
    first = (await closed_loop(client, ask, prompts, concurrency=1, requests=1)).records[0]
    if first.failure is not None:
        message = f"a first request failed: {first.failure}: {first.message}"
        if first.status == 404:
            message += await _listed(client)
        raise ServerError(message, first.status)
    if count > 1:
        await closed_loop(client, ask, prompts, concurrency=at_once, requests=count - 1)


async def _listed(client: Client) -> str:
    from dsv2.service.load.client import ServerError

    try:
        names = await client.models()
    except ServerError:
        return ""
    return f"; the server lists {', '.join(names) or 'no models'}"


async def _send(client: Client, ask: Ask, prompts: Iterator[dict[str, Any]], load: Load) -> Run:
    from dsv2.service.load.run import closed_loop, open_loop

    if load.rate is None:
        return await closed_loop(
            client, ask, prompts, concurrency=load.concurrency or 16, requests=load.requests,
            seconds=load.seconds,
        )  # fmt: skip
    return await open_loop(
        client, ask, prompts, rate=load.rate, seed=load.seed, requests=load.requests,
        seconds=load.seconds,
    )  # fmt: skip


def show(title: str, report: Report) -> None:
    """Two tables: counts and throughput, then latencies."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    counts = Table(title=escape(title), show_header=False)
    counts.add_column("figure")
    counts.add_column("value", justify="right")
    for name, value in _rows(report):
        counts.add_row(escape(name), value)
    latencies = Table("ms", title="whole answers", caption=_LEGEND)
    for column in ("mean", "median", "p90", "p95", "p99", "max"):
        latencies.add_column(column, justify="right")
    for name, spread in (
        ("TTFT", report.ttft_ms),
        ("TPOT", report.tpot_ms),
        ("ITL", report.itl_ms),
        ("E2E", report.e2e_ms),
    ):
        latencies.add_row(name, *_cells(spread))
    console = Console()
    console.print(counts)
    console.print(latencies)
    for kind, message in report.messages.items():
        console.print(f"{kind}, such as: {message}", markup=False, highlight=False)
    if report.uncounted:
        console.print(f"{report.uncounted} answers came without a count: chunks stand for tokens.")
    if report.client_cpu > 0.8:
        console.print(
            f"This client took {report.client_cpu:.0%} of a core: it may be what is measured.",
            style="yellow",
        )


def _rows(report: Report) -> list[tuple[str, str]]:
    rows = [("successful requests", f"{report.successful:,}")]
    rows += [(f"failed: {kind}", f"{count:,}") for kind, count in report.failures.items()]
    rows += [(f"ended by {kind}", f"{count:,}") for kind, count in report.finish_reasons.items()]
    rows += [
        ("duration, s", f"{report.duration_s:,.2f}"),
        ("input tokens", f"{report.input_tokens:,}"),
        ("of these from the cache", f"{report.cached_tokens:,}"),
        ("output tokens", f"{report.output_tokens:,}"),
        ("tokens per chunk", f"{report.tokens_per_chunk:.2f}"),
        ("requests/s", f"{report.request_throughput:,.2f}"),
        ("output tokens/s", f"{report.output_throughput:,.1f}"),
        ("all tokens/s", f"{report.total_throughput:,.1f}"),
        ("most requests at once", f"{report.peak_concurrency:,}"),
        ("latest start, ms", f"{report.latest_start_ms:,.1f}"),
        ("client's CPU", f"{report.client_cpu:.0%} of a core"),
    ]
    return rows


def _cells(spread: Spread | None) -> list[str]:
    if spread is None:
        return ["-"] * 6
    values = (spread.mean, spread.median, spread.p90, spread.p95, spread.p99, spread.max)
    return [f"{value:,.2f}" for value in values]
