"""The branch of a conversation that is shown as Markdown: to be read, and to be brought in again.

Every part begins with a comment, which nobody sees who sees the Markdown drawn::

    # Latent attention

    <!-- dsv2 chat {"tags": ["papers"]} -->

    <!-- dsv2 user {"created_at": 1767225600000} -->
    ## User

    What is MLA?

Only the comments divide a file, so a text may have headings, fences and comments of its own and
stands there as it is: as a fence is longer than those in it, the word behind ``<!--`` is one that
stands there in no text, ``dsv2`` or ``dsv2-2`` and so on. What the page does not say of a part is
JSON in its comment, with the names and the meaning that it has in a JSON export.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from dsv2.service.chats.shapes import conversation_shape, message_shape
from dsv2.service.store.chat_messages import Message
from dsv2.service.store.chats import Conversation
from dsv2.service.web.errors import ApiError
from dsv2.service.web.json_body import parse_json

_HEADINGS = {"system": "## System", "user": "## User", "assistant": "## Assistant"}
_OF_CHAT = ("tags", "created_at", "updated_at", "is_pinned", "params")
_OF_MESSAGE = ("model", "status", "finish", "failure", "created_at")
_UNTITLED = "Conversation"

_WORDS = re.compile(r"<!-- (dsv2(?:-[0-9]+)?) ")
_BEGIN = re.compile(r"^<!-- (dsv2(?:-[0-9]+)?) chat (?:\{.*\} )?-->(\r?)$", re.M)
_FILE = re.compile(r"File [^\n]*:\n\n(`{3,})\n(.*)\n\1", re.S)


def markdown_of(conversation: Conversation, messages: Sequence[Message]) -> str:
    """The branch of a conversation that is shown."""
    branch = _branch(conversation, messages)
    word = _unused_word(conversation, branch)
    whole = conversation_shape(conversation, ())
    heading = _heading(conversation.title)
    of_chat = {name: whole[name] for name in _OF_CHAT if whole[name]}
    if _title(heading) != conversation.title:
        of_chat["title"] = conversation.title
    parts = [heading, _comment(word, "chat", of_chat)]
    if conversation.system:
        parts += [_comment(word, "system") + "\n" + _HEADINGS["system"], conversation.system]
    for message in branch:
        shape = message_shape(message)
        of_message = {name: shape[name] for name in _OF_MESSAGE if shape[name]}
        if message.status == "complete":
            del of_message["status"]
        parts.append(_comment(word, message.role, of_message) + "\n" + _HEADINGS[message.role])
        for file in message.attachments:
            about = f"File `{' '.join(file.name.split())}`:"
            parts += [
                _comment(word, "file", {"name": file.name}) + "\n" + about,
                _fenced(file.text),
            ]
        if message.attachments and message.content:
            parts.append(_comment(word, "text"))
        if message.content:
            parts.append(message.content)
    return "\n\n".join(parts) + "\n"


def conversation_in(text: str) -> dict[str, Any]:
    """The conversation of a file, in the shape that a JSON export has; its values are not checked.

    Raises:
        ValueError: the file is not one that :func:`markdown_of` writes, and where it is not.
    """
    begin = _BEGIN.search(text)
    if begin is None:
        raise ValueError(
            "is no Markdown that was exported here: it has no line like <!-- dsv2 chat {…} -->"
        )
    if begin[2]:  # an editor has changed the ends of all lines
        return conversation_in(text.replace("\r\n", "\n"))
    lines = text[: begin.start()].removeprefix("\ufeff").split("\n")
    heading = next((line for line in lines if line.startswith("# ")), "")
    parts = _parts(text, begin[1])
    whole: dict[str, Any] = {"title": _title(heading)} | parts[0][1]
    said: list[dict[str, Any]] = []
    for place, (kind, fields, content) in enumerate(parts[1:], 1):
        last = said[-1] if said else None
        if kind == "system" and place == 1:
            whole["system"] = content
        elif kind in ("user", "assistant"):
            said.append(
                {"id": str(len(said)), "parent_id": last and last["id"], "role": kind}
                | fields | {"content": content, "attachments": []}
            )  # fmt: skip
        elif kind == "file" and last is not None and not last["content"]:
            last["attachments"].append(fields | {"text": _file_text(content, place)})
        elif kind == "text" and last is not None and not last["content"]:
            last["content"] = content
        else:
            _refuse(place, f"a part “{kind}” has no place here")
    return whole | {"messages": said, "leaf_id": said[-1]["id"] if said else None}


def _parts(text: str, word: str) -> list[tuple[str, dict[str, Any], str]]:
    """What stands behind each comment, with the comment's kind and fields."""
    starts = list(re.finditer(rf"^<!-- {word} (.*)$", text, re.M))
    ends = [one.start() - 1 for one in starts[1:]] + [len(text)]
    parts = []
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        found = re.fullmatch(r"([a-z]+) (?:(\{.*\}) )?-->", start[1].rstrip())
        if found is None or (found[1] == "chat") != (place == 0):
            _refuse(place, f"its comment is <!-- {word} {start[1]:.60}")
        kind = found[1]
        try:
            fields = parse_json(found[2].encode()) if found[2] else {}
        except (ApiError, UnicodeEncodeError) as error:
            _refuse(place, f"its comment has what is no JSON: {error!s:.100}")
        content = text[start.end() + 1 : end].removesuffix("\n")
        if kind in _HEADINGS:
            content = content.removeprefix(_HEADINGS[kind]).removeprefix("\n\n")
        elif kind == "text":
            content = content.removeprefix("\n")
        parts.append((kind, fields, content))
    return parts


def _refuse(place: int, why: str) -> NoReturn:
    raise ValueError(f"cannot be read at part {place + 1}: {why}")


def _file_text(content: str, place: int) -> str:
    found = _FILE.fullmatch(content)
    if found is None:
        _refuse(place, "a file is “File `name`:” and a fenced block")
    return found[2]


def _branch(conversation: Conversation, messages: Sequence[Message]) -> list[Message]:
    known = {message.id: message for message in messages}
    place = known.get(conversation.leaf_id or "", messages[-1] if messages else None)
    branch: list[Message] = []
    while place is not None:
        branch.append(place)
        place = known.get(place.parent_id or "")
    return branch[::-1]


def _unused_word(conversation: Conversation, branch: Sequence[Message]) -> str:
    """The first word for comments that stands in no text."""
    texts = [conversation.system, *(message.content for message in branch)]
    texts += [file.text for message in branch for file in message.attachments]
    used = {word for text in texts for word in _WORDS.findall(text)}
    number, word = 1, "dsv2"
    while word in used:
        number += 1
        word = f"dsv2-{number}"
    return word


def _comment(word: str, kind: str, fields: dict[str, Any] | None = None) -> str:
    if not fields:
        return f"<!-- {word} {kind} -->"
    # Inside strings alone, where it would end the comment for readers of Markdown.
    said = json.dumps(fields, ensure_ascii=False).replace(">", "\\u003e")
    return f"<!-- {word} {kind} {said} -->"


def _heading(title: str) -> str:
    return "# " + (" ".join(title.split()) or _UNTITLED)


def _title(heading: str) -> str:
    return heading.removeprefix("# ")


def _fenced(text: str) -> str:
    """A text in a fence that nothing in it can close."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
