"""Reading training documents from files: text, and JSONL of texts, conversations or gaps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".pyi", ".c", ".cpp", ".h", ".js", ".ts", ".html")
JSONL = ".jsonl"


class SourceError(ValueError):
    """A source is missing, or a line of it is malformed; names the file and the line."""


@dataclass(frozen=True)
class Gap:
    """A middle to be learnt, and what stands around it."""

    prefix: str
    middle: str
    suffix: str


@dataclass(frozen=True)
class Document:
    """One document and where it came from.

    Attributes:
        place: file, and line within a JSONL file.
        text: its text; of a conversation or a gap, the canonical JSON that stands for it.
        messages: the conversation in OpenAI's form, or None.
        tools: functions offered in it.
        gap: the gap to fill, or None.
    """

    place: str
    text: str
    messages: tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    gap: Gap | None = None


@dataclass(frozen=True)
class Malformed:
    """A document that cannot be read, and why."""

    place: str
    problem: str


def files_of(path: Path) -> list[Path]:
    """The text and JSONL files of a folder in a fixed order, or the one file.

    Raises:
        SourceError: nothing is there, or nothing that can be read.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise SourceError(f"{path}: no such file or folder")
    allowed = (*TEXT_SUFFIXES, JSONL)
    found = sorted(f for f in path.rglob("*") if f.suffix in allowed and f.is_file())
    if not found:
        raise SourceError(f"{path}: no files in it end in one of {', '.join(allowed)}")
    return found


def read_documents(path: Path, *, conversations: bool) -> Iterator[Document | Malformed]:
    """Every document of a file or folder.

    A text file is one document. A line of a JSONL file is an object with ``text``, or when
    ``conversations`` are wanted with ``messages`` (and ``tools``), or with ``prefix``, ``middle``
    and ``suffix``.
    """
    for file in files_of(path):
        if file.suffix == JSONL:
            yield from _lines(file, conversations)
        elif conversations:
            yield Malformed(str(file), f"conversations come as {JSONL}, this is {file.suffix}")
        else:
            try:
                yield Document(str(file), file.read_bytes().decode("utf-8"))
            except UnicodeDecodeError as error:
                yield Malformed(str(file), f"not UTF-8 at byte {error.start}")


def _lines(file: Path, conversations: bool) -> Iterator[Document | Malformed]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{file}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Malformed(place, f"not valid JSON: {error}")
                continue
            document = _record(place, record, conversations)
            if isinstance(document, Document) and not _is_text(document.text):
                document = Malformed(place, "holds a lone surrogate, which is no character")
            yield document


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _record(place: str, record: Any, conversations: bool) -> Document | Malformed:
    if not isinstance(record, dict):
        return Malformed(place, f"must be an object, got {type(record).__name__}")
    if not conversations:
        text = record.get("text")
        if not isinstance(text, str):
            return Malformed(place, f"text must be a string, got {text!r:.60}")
        return Document(place, text)
    if "middle" in record:
        return _gap(place, record)
    messages, tools = record.get("messages"), record.get("tools") or []
    if not isinstance(messages, list) or not messages:
        return Malformed(place, f"messages must be a list that is not empty, got {messages!r:.60}")
    if not isinstance(tools, list):
        return Malformed(place, f"tools must be a list, got {tools!r:.60}")
    text = json.dumps({"messages": messages, "tools": tools}, ensure_ascii=False, sort_keys=True)
    return Document(place, text, tuple(messages), tuple(tools))


def _gap(place: str, record: dict[str, Any]) -> Document | Malformed:
    parts: dict[str, Any] = {name: record.get(name) for name in ("prefix", "middle", "suffix")}
    for name, part in parts.items():
        if not isinstance(part, str):
            return Malformed(place, f"{name} must be a string, got {part!r:.60}")
    if "messages" in record:
        return Malformed(place, "has messages and a middle, allowed is one of them")
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return Document(place, text, gap=Gap(**parts))
