"""What is asked: random prompts of given lengths, or those of a file."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDPOINTS = ("completions", "chat")

_TEXT = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line"
)
_WORDS = _TEXT.split()


class PromptError(ValueError):
    """A prompt cannot be made or read; the message says which and why."""


@dataclass(frozen=True)
class Shape:
    """Lengths of random prompts.

    Token ids are drawn from the lower part of the vocabulary but above the first 256, where
    tokenizers have their most common tokens. Conversations, which must be text, are made of common
    words, about a token each: how many tokens the server saw stands in the report.

    Attributes:
        tokens: of each prompt's own part.
        spread: own parts are from ``1 - spread`` to ``1 + spread`` times as long, evenly.
        prefix: tokens at the beginning of all prompts, the same in all, besides ``tokens``.
        vocab_size: ids are below it.
        seed: makes the prompts repeatable.
    """

    tokens: int = 128
    spread: float = 0.0
    prefix: int = 0
    vocab_size: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("tokens", 1), ("prefix", 0), ("vocab_size", 2)):
            if getattr(self, name) < low:
                raise PromptError(f"{name} is {getattr(self, name)}, allowed is {low} or more")
        if not 0 <= self.spread < 1:
            raise PromptError(f"spread is {self.spread}, allowed is a number from 0 to below 1")


def random_prompts(shape: Shape, endpoint: str) -> Iterator[dict[str, Any]]:
    """Bodies' fields ``prompt`` or ``messages``, without end."""
    draw = random.Random(shape.seed)
    low = min(256, shape.vocab_size // 2)

    def units(count: int) -> list[Any]:
        if endpoint == "chat":
            return draw.choices(_WORDS, k=count)
        return [draw.randrange(low, shape.vocab_size) for _ in range(count)]

    shared = units(shape.prefix)
    least = max(1, round(shape.tokens * (1 - shape.spread)))
    most = max(least, round(shape.tokens * (1 + shape.spread)))
    while True:
        own = shared + units(draw.randint(least, most))
        yield _asked(" ".join(own), endpoint) if endpoint == "chat" else {"prompt": own}


def file_prompts(path: Path, endpoint: str) -> Iterator[dict[str, Any]]:
    """The prompts of a file in order, over and over.

    A line is a prompt. In a file that ends with ``.jsonl`` it is JSON: a string, a list of
    messages, or an object with ``messages`` or ``prompt``; other fields of the object are ignored.

    Raises:
        PromptError: the file has no prompts, or a line is none for this endpoint.
        OSError: the file cannot be read.
    """
    is_json = path.suffix == ".jsonl"
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 text: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_asked(json.loads(line) if is_json else line, endpoint))
            except ValueError as error:
                raise PromptError(f"{path}, line {number}: {error}") from error
    if not found:
        raise PromptError(f"{path} has no prompts")
    return itertools.cycle(found)


def _asked(value: Any, endpoint: str) -> dict[str, Any]:
    if isinstance(value, dict):
        value = value.get("messages", value.get("prompt"))
    is_messages = _is_list_of(value, dict)
    if endpoint == "chat":
        if isinstance(value, str):
            return {"messages": [{"role": "user", "content": value}]}
        if is_messages:
            return {"messages": value}
        raise PromptError("allowed are text and messages")
    if isinstance(value, str) or _is_list_of(value, int):
        return {"prompt": value}
    if is_messages:
        raise PromptError("messages are for --endpoint chat")
    raise PromptError("allowed are text and lists of token ids")


def _is_list_of(value: Any, kind: type) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and bool(value)
    return is_list and all(isinstance(one, kind) for one in value)
