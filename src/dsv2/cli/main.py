"""The program ``dsv2``: a table of commands, each loaded when it is named."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("dsv2.cli.run:run", "Generate an answer to one prompt."),
    "chat": ("dsv2.cli.chat:chat", "Talk with a model in the terminal."),
    "serve": ("dsv2.cli.serve:serve", "Serve models through an API, with accounts and a ledger."),
    "info": ("dsv2.cli.info:info", "Parameters, operations and cache bytes of a model."),
    "pull": ("dsv2.cli.models:pull", "Fetch a model from a hub, or resume."),
    "list": ("dsv2.cli.models:list_models", "List the models on this machine."),
    "show": ("dsv2.cli.models:show", "Print a model's files and configuration."),
    "verify": ("dsv2.cli.models:verify", "Compare a pulled model with the hub's checksums."),
    "rm": ("dsv2.cli.models:rm", "Delete a pulled model."),
    "quantize": ("dsv2.cli.quantize:quantize", "Convert a checkpoint to 8 or 4 bits."),
    "bench": ("dsv2.cli.bench:bench", "Measure speed and memory on this machine."),
    "tokenizer": ("dsv2.cli.tokenizer:tokenizer", "Train a tokenizer, or use one."),
    "prepare": ("dsv2.cli.prepare:prepare", "Turn text into token shards."),
    "train": ("dsv2.cli.train:train", "Run a training recipe, or resume it."),
    "admin": ("dsv2.cli.admin:admin", "Users, keys, money and database of the API platform."),
    "plot": ("dsv2.cli.plot:plot", "Draw the curves of a training run."),
}
"""Each command's home, a function or a Typer app, and the line that ``--help`` shows."""


class LazyGroup(TyperGroup):
    """A group that imports a command's module only to run it or to show its own help."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with the command's name and summary: enough to list it."""
        if cmd_name not in COMMANDS:
            return None
        stand_in = typer.Typer(add_completion=False)
        stand_in.command(name=cmd_name, help=COMMANDS[cmd_name][1])(lambda: None)
        return get_command(stand_in)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that is about to run."""
        if not args or args[0] not in COMMANDS:
            return super().resolve_command(ctx, args)
        return args[0], load(args[0]), args[1:]


def load(name: str) -> Any:
    """The command ``name`` of the table, imported."""
    module, attribute = COMMANDS[name][0].split(":")
    target = getattr(importlib.import_module(module), attribute)
    if isinstance(target, typer.Typer):
        return get_command(target)
    single = typer.Typer(add_completion=False)
    single.command(name=name)(target)
    return get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    help="DeepSeek-V2: run, chat with, train and inspect models of its architecture.",
    pretty_exceptions_enable=False,
)


def _version(show: bool) -> None:
    if show:
        from dsv2 import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Run the program; what a user did wrong is one line on standard error and exit code 2."""
    # torch's threads otherwise spin while they wait; beside any other busy program that makes a
    # small model ten times slower. OpenMP reads this when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except (ValueError, OSError) as error:
        # Every error a user can cause is a ValueError with a message for them, or the system's.
        typer.secho(f"dsv2: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
