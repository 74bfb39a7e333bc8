"""``dsv2 prepare``: text to token shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(help="Files or folders of text or JSONL; PATH@2.5 gives a mixture weight."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write: train, validation, report.json.")],
    tokenizer: Annotated[
        str, typer.Option(help="Tokenizer folder, or a model by name.")
    ] = "pocket",
    stage: Annotated[str, typer.Option(help="pretrain (texts) or sft (conversations, gaps).")] = (
        "pretrain"
    ),
    validation: Annotated[float, typer.Option(help="Share held out by hash.")] = 0.01,
    fim_rate: Annotated[float, typer.Option(help="Share turned to prefix, suffix, middle.")] = 0.0,
    split_chars: Annotated[
        int | None, typer.Option(help="Cut longer texts at line ends into such documents.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Leave out conversations and gaps with more tokens.")
    ] = None,
    chat: Annotated[
        str | None, typer.Option(help="Chat format: v2 or v2.5; default the tokenizer's.")
    ] = None,
    near_duplicate: Annotated[
        float, typer.Option(help="Jaccard similarity that makes a near-duplicate; 0 is off.")
    ] = 0.8,
    languages: Annotated[
        str, typer.Option(help="Allowed languages of prose, as en,zh; empty for all.")
    ] = "",
    min_chars: Annotated[int, typer.Option()] = 1,
    max_chars: Annotated[int | None, typer.Option()] = None,
    max_line_chars: Annotated[int | None, typer.Option(help="Longest mean line.")] = None,
    max_repeated_lines: Annotated[
        float | None, typer.Option(help="Largest share of repeated lines.")
    ] = None,
    min_letters: Annotated[
        float | None, typer.Option(help="Smallest share of letters, digits and spaces.")
    ] = None,
    skip_malformed: Annotated[
        bool, typer.Option("--skip-malformed", help="Count malformed documents, do not stop.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of FIM cuts and fractional weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Turn SOURCES into token shards that dsv2 train reads."""
    from dsv2.checkpoint import resolve
    from dsv2.training.prepare import PrepareConfig
    from dsv2.training.prepare import prepare as build

    config = PrepareConfig.model_validate(
        {
            "sources": [_source(source) for source in sources],
            "tokenizer": _tokenizer_folder(tokenizer) or resolve(tokenizer),
            "stage": stage,
            "validation": validation,
            "fim_rate": fim_rate,
            "split_chars": split_chars,
            "max_tokens": max_tokens,
            "chat": chat,
            "malformed": "skip" if skip_malformed else "stop",
            "seed": seed,
            "filters": {
                "near_duplicate": near_duplicate,
                "languages": [name for name in languages.split(",") if name],
                "min_chars": min_chars,
                "max_chars": max_chars,
                "max_line_chars": max_line_chars,
                "max_repeated_lines": max_repeated_lines,
                "min_letters": min_letters,
            },
        }
    )
    reports = build(config, out, overwrite=overwrite)
    if validation > 0 and not any(report.tokens["validation"] for report in reports):
        typer.echo(f"no document fell into the validation share of {validation}", err=True)
    if as_json:
        typer.echo(json.dumps([vars(report) for report in reports]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{out}")
    for column in ("source", "read", "kept", "dropped", "train tokens", "validation tokens"):
        table.add_column(column, justify="left" if column in ("source", "dropped") else "right")
    for report in reports:
        reasons = ", ".join(f"{name} {count:,}" for name, count in report.dropped.most_common())
        table.add_row(
            report.path, f"{report.read:,}", f"{report.kept:,}", reasons or "none",
            f"{report.tokens['train']:,}", f"{report.tokens['validation']:,}",
        )  # fmt: skip
    Console().print(table)


def _tokenizer_folder(name: str) -> Path | None:
    folder = Path(name).expanduser()
    return folder if (folder / "tokenizer.json").is_file() else None


def _source(text: str) -> dict[str, object]:
    path, separator, weight = text.rpartition("@")
    try:
        return {"path": path, "weight": float(weight)} if separator else {"path": text}
    except ValueError:
        return {"path": text}
