"""``dsv2 tokenizer``: train a vocabulary, look at what it does to a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

tokenizer = typer.Typer(no_args_is_help=True, help="Train a tokenizer, or use one.")


@tokenizer.command()
def train(
    sources: Annotated[list[Path], typer.Argument(help="Files or folders of text or JSONL.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.json and its settings.")],
    vocab_size: Annotated[int, typer.Option(help="Ids in all, control tokens included.")] = 32000,
    chat: Annotated[str, typer.Option(help="Chat format of the template: v2 or v2.5.")] = "v2.5",
    model_max_length: Annotated[int, typer.Option(min=1)] = 16384,
) -> None:
    """Train a byte-level BPE with the published tokenizers' cuts and control tokens."""
    from dsv2.training.documents import Document, SourceError, files_of, read_documents

    def texts() -> Iterator[str]:
        for source in sources:
            for document in read_documents(source, conversations=False):
                if not isinstance(document, Document):
                    raise SourceError(f"{document.place}: {document.problem}")
                yield document.text

    from dsv2.tokenizer.train import train_bpe

    for source in sources:
        files_of(source)
    made = train_bpe(
        texts(), vocab_size, out, chat=chat, model_max_length=model_max_length, progress=True
    )
    typer.echo(f"{made.vocab_size} tokens in {out}")


@tokenizer.command()
def encode(
    text: Annotated[str, typer.Argument(help="Text; what looks like a control token is text.")],
    model: Annotated[str, typer.Option(help="A model, or a folder with a tokenizer.")] = "pocket",
) -> None:
    """Print the ids and pieces of TEXT as JSON."""
    from dsv2.checkpoint import resolve
    from dsv2.tokenizer import Tokenizer

    folder = Path(model).expanduser()
    if not (folder / "tokenizer.json").is_file():
        folder = resolve(model)
    loaded = Tokenizer.from_folder(folder)
    ids = loaded.encode(text)
    pieces = [loaded.decode([number]) for number in ids]
    typer.echo(json.dumps({"ids": ids, "pieces": pieces}, ensure_ascii=False))
