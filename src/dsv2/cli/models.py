"""``dsv2 pull``, ``list``, ``show``, ``rm``, ``verify``: the models of a hub on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

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
    from dsv2.checkpoint.hub import pull as fetch
    from dsv2.checkpoint.hub import pull_verified, repository_of

    if check:
        folder = pull_verified(name, hub, revision)
        typer.echo(f"{repository_of(name)}: all files are whole", err=True)
    else:
        folder = fetch(name, hub, revision)
    typer.echo(str(folder))


def list_models(as_json: AsJson = False) -> None:
    """List the models on this machine, and the converted copies of them."""
    from dsv2.checkpoint.converted import converted_copies
    from dsv2.checkpoint.hub import pocket_folder, pulled_models, release_of
    from dsv2.checkpoint.quantised import stored_scheme

    rows = [_row("pocket", "shipped", None, pocket_folder(), _size(pocket_folder()))]
    rows += [
        _row(
            one.release or one.repository, one.hub, stored_scheme(one.folder), one.folder, one.size
        )
        for one in pulled_models()
    ]
    rows += [
        _row(release_of(one.origin.name) or one.origin.name, "converted", one.scheme, one.folder,
             one.size)
        for one in converted_copies()
    ]  # fmt: skip
    if as_json:
        typer.echo(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "from", "format", "size")
    for row in rows:
        table.add_row(row["model"], row["hub"], row["format"], f"{row['bytes'] / 1e9:.2f} GB")
    Console().print(table)


def _row(model: str, hub: str, scheme: str | None, folder: Path, size: int) -> dict[str, Any]:
    return {
        "model": model, "hub": hub, "format": scheme or _dtype(folder), "folder": str(folder),
        "bytes": size,
    }  # fmt: skip


def _dtype(folder: Path) -> str:
    """The dtype that a published configuration names."""
    content = json.loads((folder / "config.json").read_text("utf-8"))
    return str(content.get("torch_dtype") or content.get("dtype") or "as published")


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
    """Delete a pulled model and the converted copies of it; of a folder, only the copies."""
    from dsv2.checkpoint.converted import converted_copies, leftovers, remove_copy
    from dsv2.checkpoint.hub import ModelNotFoundError, find_pulled, remove

    copies = [*converted_copies(name), *leftovers(name)]
    try:
        model = find_pulled(name)
    except ModelNotFoundError:
        if not copies:
            raise
        model = None
    sizes = {} if model is None else {f"{model.repository} from {model.hub}": model.size}
    sizes |= {f"{one.origin.name} in {one.scheme}, {one.folder}": one.size for one in copies}
    for what, size in sizes.items():
        typer.echo(f"{what}: {size / 1e9:.2f} GB", err=True)
    if not yes:
        typer.confirm("delete all of this?" if len(sizes) > 1 else "delete this?", abort=True)
    freed = 0 if model is None else remove(model)
    for one in copies:
        remove_copy(one)
        freed += one.size
    typer.echo(f"freed {freed / 1e9:.2f} GB")


def verify(name: Name) -> None:
    """Compare a pulled model's files with the hub's checksums."""
    from dsv2.checkpoint.hub import HubError, find_pulled
    from dsv2.checkpoint.hub import verify as compare

    model = find_pulled(name)
    damaged = compare(model)
    if damaged:
        raise HubError(
            f"{model.repository}: damaged files: {', '.join(damaged)}; delete the model with "
            f"dsv2 rm {model.repository} and pull it again"
        )
    typer.echo(f"{model.repository}: all files are whole", err=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
