"""``dsv2 chat``: a conversation in the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dsv2.cli import options
from dsv2.cli.start import plan_table, start

if TYPE_CHECKING:
    from dsv2.engine.llm import LLM
    from dsv2.engine.request import SamplingParams

HELP = """\
/help             this list
/clear            forget the conversation
/system TEXT      set the system message and start over; without TEXT, remove it
/set NAME VALUE   change a sampling parameter; without arguments, show them
/save FILE        write the conversation as JSON
/exit             leave (also Ctrl-D)
Enter sends, Alt-Enter or a line ending in \\ goes on. Ctrl-C stops an answer."""

SETTABLE = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "seed",
)  # fmt: skip


def chat(
    model: Annotated[
        str, typer.Argument(help="A folder, a release, owner/model of a hub, or pocket.")
    ] = "pocket",
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.3,
    top_p: options.TopP = 0.95,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: options.Dtype = "auto",
    cache_dtype: options.CacheDtype = "auto",
    cache_tokens: options.CacheTokens = None,
    max_sequences: Annotated[
        int, typer.Option(min=1, help="Full-length sequences that the cache should hold.")
    ] = 1,
    threads: options.Threads = None,
    pull: options.Pull = True,
    hub: options.HubName = "huggingface",
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print the memory plan on stderr.")
    ] = False,
) -> None:
    """Talk with MODEL; /help lists the commands. A published model is pulled and converted."""
    from dsv2.engine.request import SamplingParams

    llm, prepared = start(
        model, device=device, dtype=dtype, cache_dtype=cache_dtype, cache_tokens=cache_tokens,
        max_sequences=max_sequences, threads=threads, pull=pull, hub=hub,
    )  # fmt: skip
    if verbose:
        Console(stderr=True, highlight=False).print(plan_table(prepared.plan))
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    Conversation(llm, params, system, Console(highlight=False)).run(_reader())


class Conversation:
    """The messages so far and what the next line does to them."""

    def __init__(
        self, llm: LLM, params: SamplingParams, system: str | None, console: Console
    ) -> None:
        self.llm = llm
        self.params = params
        self.console = console
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.open = True

    def run(self, read: Callable[[], str]) -> None:
        """Read and answer lines until /exit or the end of input."""
        self.console.print(f"[dim]{self.llm.description}[/dim]")
        self.console.print("[dim]/help lists the commands, /exit leaves.[/dim]")
        while self.open:
            try:
                line = read()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            self.take(line)

    def take(self, line: str) -> None:
        """One line of input: a command or a message."""
        if not line.strip():
            return
        if not line.startswith("/"):
            self.answer(line)
            return
        name, _, rest = line[1:].partition(" ")
        command = getattr(self, f"_do_{name}", None) if name.isidentifier() else None
        if command is None:
            self.console.print(f"unknown command /{name}; /help lists them", markup=False)
            return
        try:
            command(rest.strip())
        except (ValueError, OSError) as error:
            self.console.print(str(error), style="red", markup=False)

    def answer(self, text: str) -> None:
        """Send a message and print the answer as it comes; Ctrl-C keeps what came so far."""
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        asked = [*self.messages, {"role": "user", "content": text}]
        pieces: list[str] = []
        stream = self.llm.stream([*head, *asked], self.params)
        try:
            for delta in stream:
                pieces.append(delta.text)
                self.console.print(delta.text, end="", markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            self.console.print("\n[dim](stopped)[/dim]", end="")
        except ValueError as error:
            self.console.print(str(error), style="red", markup=False)
            return
        finally:
            stream.close()
        self.console.print()
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    def _do_help(self, rest: str) -> None:
        self.console.print(HELP, markup=False)

    def _do_clear(self, rest: str) -> None:
        self.messages = []
        self.console.print("conversation cleared")

    def _do_system(self, rest: str) -> None:
        self.system = rest or None
        self.messages = []
        self.console.print("system message set" if rest else "system message removed")

    def _do_set(self, rest: str) -> None:
        if not rest:
            for name in SETTABLE:
                self.console.print(f"{name} = {getattr(self.params, name)}", markup=False)
            return
        name, _, text = rest.partition(" ")
        if name not in SETTABLE:
            raise ValueError(f"{name!r} cannot be set, allowed are {', '.join(SETTABLE)}")
        try:
            value: Any = json.loads(text)
        except json.JSONDecodeError:
            raise ValueError(f"{name} must be a number, got {text!r}") from None
        changed = replace(self.params, **{name: value})
        self.llm.check(changed)
        self.params = changed
        self.console.print(f"{name} = {value}", markup=False)

    def _do_save(self, rest: str) -> None:
        if not rest:
            raise ValueError("/save needs a file name")
        saved = {
            "system": self.system,
            "messages": self.messages,
            "params": {f.name: getattr(self.params, f.name) for f in fields(self.params)
                       if f.name in SETTABLE},
        }  # fmt: skip
        path = Path(rest).expanduser()
        path.write_text(json.dumps(saved, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        self.console.print(f"saved to {path}", markup=False)

    def _do_exit(self, rest: str) -> None:
        self.open = False


def _reader() -> Callable[[], str]:
    """Lines from a prompt with history and multi-line input, or plainly from a pipe."""
    import sys

    if not sys.stdin.isatty():
        return input
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _newline(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter")
    def _send(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\"):
            buffer.delete_before_cursor(1)
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    session: PromptSession[str] = PromptSession(
        history=InMemoryHistory(), key_bindings=keys, multiline=True
    )
    return lambda: session.prompt("> ")
