"""``dsv2 pull``, ``list``, ``show``, ``rm``, ``verify``: the models of a hub on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dsv2.checkpoint.hub import PulledModel

Name = Annotated[str, typer.Argument(help="A release such as v2-lite-chat, or owner/model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def pull(
    name: Name,
    hub: Annotated[str, typer.Option(help="huggingface or modelscope.")] = "huggingface",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    check: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare checksums afterwards.")
    ] = True,
) -> None:
    """Fetch a model; the same command resumes where it stopped."""
    from dsv2.checkpoint.hub import PulledModel, repository_of
    from dsv2.checkpoint.hub import pull as fetch

    folder = fetch(name, hub, revision)
    if check:
        # The copy just fetched, not one of the same name from another hub or revision.
        _compare(PulledModel(repository_of(name) or name, hub, revision or "", folder, 0))
    typer.echo(str(folder))


def list_models(as_json: AsJson = False) -> None:
    """List the models on this machine."""
    from dsv2.checkpoint.hub import pocket_folder, pulled_models

    rows = [("pocket", "shipped", str(pocket_folder()), _size(pocket_folder()))]
    rows += [
        (one.release or one.repository, one.hub, str(one.folder), one.size)
        for one in pulled_models()
    ]
    if as_json:
        keys = ("model", "hub", "folder", "bytes")
        typer.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "from", "size")
    for model, hub, _, size in rows:
        table.add_row(model, hub, f"{size / 1e9:.2f} GB")
    Console().print(table)


def show(
    name: Annotated[str, typer.Argument(help="pocket, a pulled model or a folder.")],
) -> None:
    """Print a model's folder, files and configuration as JSON."""
    from dsv2.checkpoint import resolve
    from dsv2.model.config import ModelConfig

    folder = resolve(name)
    config = ModelConfig.from_file(folder / "config.json")
    content = {
        "folder": str(folder),
        "files": {
            path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()
        },
        "config": config.to_published(),
    }
    typer.echo(json.dumps(content, indent=2))


def rm(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a pulled model."""
    from dsv2.checkpoint.hub import find_pulled, remove

    model = find_pulled(name)
    if not yes:
        typer.confirm(f"delete {model.repository} ({model.size / 1e9:.2f} GB)?", abort=True)
    typer.echo(f"freed {remove(model) / 1e9:.2f} GB")


def verify(name: Name) -> None:
    """Compare a pulled model's files with the hub's checksums."""
    from dsv2.checkpoint.hub import find_pulled

    _compare(find_pulled(name))


def _compare(model: PulledModel) -> None:
    from dsv2.checkpoint.hub import HubError
    from dsv2.checkpoint.hub import verify as compare

    damaged = compare(model)
    if damaged:
        raise HubError(
            f"{model.repository}: damaged files: {', '.join(damaged)}; delete the model with "
            f"dsv2 rm {model.repository} and pull it again"
        )
    typer.echo(f"{model.repository}: all files are whole", err=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
