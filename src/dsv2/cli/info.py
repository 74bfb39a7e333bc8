"""``dsv2 info``: what a model costs, computed from its configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dsv2.engine.cache import token_bytes
from dsv2.kernels.latent import LATENT_FORMATS
from dsv2.model.config import ModelConfig
from dsv2.model.counts import (
    CACHE_BITS,
    DENSE_67B,
    PUBLISHED_GPU_HOURS,
    Counts,
    count,
    count_dense,
    saving,
)


def info(
    model: Annotated[
        str, typer.Argument(help="A release such as v2-lite, or a folder.")
    ] = "pocket",
    context: Annotated[
        int, typer.Option(min=1, help="Tokens of context that the operations are counted at.")
    ] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters, operations and cache bytes of MODEL beside the dense 67B; no weights needed."""
    facts = describe(model, find_config(model), context)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        show(facts)


def find_config(model: str) -> ModelConfig:
    """The configuration of a release by name, of a folder or of the shipped model."""
    from dsv2.checkpoint.hub import resolve
    from dsv2.checkpoint.releases import RELEASES, config_of

    if model in RELEASES and not Path(model).exists():
        return config_of(model)
    return ModelConfig.from_file(resolve(model) / "config.json")


def describe(name: str, config: ModelConfig, context: int) -> dict[str, Any]:
    """Everything the command prints, as plain data."""
    own, dense = count(config), count_dense(DENSE_67B)
    spent, before = PUBLISHED_GPU_HOURS["DeepSeek-V2"], PUBLISHED_GPU_HOURS["DeepSeek 67B"]
    return {
        "model": name,
        "context": context,
        "this": _facts(own, context),
        "dense": {"model": DENSE_67B.name, **_facts(dense, context)},
        "stored_cache_bytes_per_token": {
            name: token_bytes(config, name) for name in LATENT_FORMATS
        },
        "cache_saving": {
            "by_elements": saving(own.cache_elements, dense.cache_elements),
            "6-bit_against_bf16": saving(own.cache_bytes("6-bit"), dense.cache_bytes("bf16")),
            "int6_against_bf16": saving(token_bytes(config, "int6"), dense.cache_bytes("bf16")),
        },
        "training_flops_saving": saving(own.training_flops(context), dense.training_flops(context)),
        "published_gpu_hours_per_trillion_tokens": {
            **PUBLISHED_GPU_HOURS,
            "saving": saving(spent, before),
        },
        "architecture": config.to_published(),
    }


def _facts(counts: Counts, context: int) -> dict[str, Any]:
    return {
        "total_parameters": counts.total,
        "active_parameters": counts.active,
        "active_parameters_without_embedding": counts.active_without_embedding,
        "forward_flops_per_token": counts.forward_flops(context),
        "training_flops_per_token": counts.training_flops(context),
        "cache_elements_per_token": counts.cache_elements,
        "cache_bytes_per_token": {kind: counts.cache_bytes(kind) for kind in CACHE_BITS},
    }


def show(facts: dict[str, Any]) -> None:
    """Print the facts as a table and what follows from them."""
    own, dense = facts["this"], facts["dense"]
    table = Table(title=f"{facts['model']} beside the dense {dense['model']}")
    table.add_column("")
    table.add_column(facts["model"], justify="right")
    table.add_column(dense["model"], justify="right")

    def row(label: str, key: str, shown: str = "{:,}") -> None:
        table.add_row(label, shown.format(own[key]), shown.format(dense[key]))

    row("parameters", "total_parameters")
    row("active per token", "active_parameters")
    row("  without input embedding", "active_parameters_without_embedding")
    row(f"FLOPs per token at {facts['context']:,}", "forward_flops_per_token", "{:.4g}")
    row(
        f"FLOPs per trained token, rows of {facts['context']:,}",
        "training_flops_per_token",
        "{:.4g}",
    )
    row("cached elements per token", "cache_elements_per_token")
    for kind in CACHE_BITS:
        table.add_row(
            f"cache bytes per token, {kind}",
            f"{own['cache_bytes_per_token'][kind]:,.0f}",
            f"{dense['cache_bytes_per_token'][kind]:,.0f}",
        )
    for kind in ("int8", "int6"):
        stored = facts["stored_cache_bytes_per_token"][kind]
        table.add_row(f"  stored as {kind}, with scales", f"{stored:,}", "")
    console = Console()
    console.print(table)
    cache, hours = facts["cache_saving"], facts["published_gpu_hours_per_trillion_tokens"]
    console.print(
        f"Cache against the dense model: {cache['by_elements']:.1%} fewer elements; "
        f"{cache['6-bit_against_bf16']:.1%} fewer bytes with 6 bits against bf16, "
        f"{cache['int6_against_bf16']:.1%} as int6 with its scales."
    )
    console.print(
        f"Training FLOPs against the dense model: {facts['training_flops_saving']:.1%} fewer."
    )
    console.print(
        "Published for V2, H800 GPU hours per trillion tokens: "
        f"{hours['DeepSeek-V2'] / 1e3:.1f}K against {hours['DeepSeek 67B'] / 1e3:.1f}K, "
        f"{hours['saving']:.1%} fewer."
    )
