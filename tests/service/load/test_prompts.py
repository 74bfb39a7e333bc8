"""Random prompts, and those of files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from dsv2.service.load.prompts import PromptError, Shape, file_prompts, random_prompts


def test_random_prompts_have_the_lengths_and_ids_asked_for() -> None:
    shape = Shape(tokens=20, spread=0.5, prefix=6, vocab_size=600, seed=4)
    drawn = [one["prompt"] for one in itertools.islice(random_prompts(shape, "completions"), 300)]
    lengths = {len(ids) - 6 for ids in drawn}
    assert (min(lengths), max(lengths)) == (10, 30)
    assert len({tuple(ids[:6]) for ids in drawn}) == 1
    assert len({tuple(ids[6:12]) for ids in drawn}) == 300
    assert all(256 <= token < 600 for ids in drawn for token in ids)
    assert next(random_prompts(shape, "completions"))["prompt"] == drawn[0]
    (message,) = next(random_prompts(Shape(tokens=9), "chat"))["messages"]
    assert message["role"] == "user"
    assert len(message["content"].split()) == 9
    tiny = next(random_prompts(Shape(tokens=50, vocab_size=8), "completions"))["prompt"]
    assert set(tiny) <= set(range(4, 8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"spread": 1.0}, "spread is 1.0"),
        ({"spread": float("nan")}, "spread is nan"),
        ({"prefix": -1}, "prefix is -1"),
        ({"vocab_size": 1}, "vocab_size is 1"),
    ],
)
def test_shapes_that_are_none(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Shape(**fields)


def test_prompts_of_a_file_go_round(tmp_path: Path) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("one\n\n{2}\n", "utf-8")
    found = file_prompts(text, "completions")
    assert [next(found)["prompt"] for _ in range(3)] == ["one", "{2}", "one"]
    chat = [{"role": "user", "content": "hi"}]
    lines.write_text(
        "\n".join(json.dumps(one) for one in (chat, {"messages": chat}, "text", {"prompt": "p"})),
        "utf-8",
    )
    found = file_prompts(lines, "chat")
    assert [next(found)["messages"][0]["content"] for _ in range(4)] == ["hi", "hi", "text", "p"]
    lines.write_text('{"prompt": [5, 6]}\n', "utf-8")
    assert next(file_prompts(lines, "completions")) == {"prompt": [5, 6]}


@pytest.mark.parametrize(
    ("content", "endpoint", "message"),
    [
        (b"\n\n", "chat", "has no prompts"),
        (b'"a"\n{', "chat", "line 2: "),
        (b"[7]", "chat", "line 1: allowed are text and messages"),
        (b'[{"role": "user"}]', "completions", "messages are for --endpoint chat"),
        (b"{}", "completions", "allowed are text and lists of token ids"),
        (b"\xff", "completions", "not UTF-8"),
    ],
)
def test_files_without_prompts(tmp_path: Path, content: bytes, endpoint: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(PromptError, match=message):
        file_prompts(path, endpoint)
