"""``/api/chat``: conversations as files, out and in.

| method, path | who | what |
|---|---|---|
| GET ``/api/chat/conversations/{id}/export`` | signed in | one as JSON, or its branch as Markdown |
| GET ``/api/chat/export`` | signed in | all as JSON |
| POST ``/api/chat/import`` | signed in | add those of exports, all or none |

JSON is ``{"conversations": [...]}`` in both, each whole; in an import one may be ``{"markdown":
"..."}``, with the text of its Markdown. Imported ones are the importer's, with ids of their own; an
answer that was running is interrupted.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from sqlalchemy import Connection

from dsv2.service.chats.markdown import conversation_in, markdown_of
from dsv2.service.chats.params import Params, SiteBody, checked_params
from dsv2.service.chats.shapes import conversation_shape, heading_shape
from dsv2.service.inference.answers import encode
from dsv2.service.platform.desk import Answers, Desk
from dsv2.service.platform.office import Office
from dsv2.service.protocol.base import Many
from dsv2.service.routes.chat_messages import File
from dsv2.service.serving import Models
from dsv2.service.store import chat_archive, chat_messages, chats
from dsv2.service.store.chat_archive import Archived
from dsv2.service.store.chat_messages import AnswerUsage, Attachment, Failure, Message
from dsv2.service.store.chats import Heading
from dsv2.service.store.errors import FieldError, NotFoundError
from dsv2.service.web.deps import SignedIn
from dsv2.service.web.errors import ApiError
from dsv2.service.web.json_body import json_body

router = APIRouter(prefix="/api/chat")


class UsageOf(SiteBody):
    """What an answer has taken."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: Annotated[float, Field(ge=0, le=1e9)]


class FailureOf(SiteBody):
    """Why an answer has failed."""

    code: str
    message: str


class ArchivedMessage(SiteBody):
    """A message as it was exported."""

    id: str
    parent_id: str | None
    role: str
    content: str
    attachments: Many[File] = []  # noqa: RUF012 - pydantic copies it
    status: str = "complete"
    failure: FailureOf | None = None
    finish: str | None = None
    model: str | None = None
    usage: UsageOf | None = None
    created_at: int = 0

    @property
    def message(self) -> Message:
        """As the store knows it."""
        usage, failure = self.usage, self.failure
        return Message(
            self.id, "", self.parent_id, self.role, self.content,
            tuple(Attachment(file.name, file.text) for file in self.attachments), self.status,
            None if failure is None else Failure(failure.code, failure.message),
            self.finish, self.model,
            None if usage is None else AnswerUsage(
                usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens,
                round(usage.seconds * 1000),
            ),
            self.created_at,
        )  # fmt: skip


class ArchivedConversation(SiteBody):
    """A conversation as it was exported; its id is not used."""

    id: str = ""
    title: str = ""
    tags: Many[str] = []  # noqa: RUF012 - pydantic copies it
    created_at: int | None = None
    updated_at: int | None = None
    is_pinned: bool = False
    system: str = ""
    params: Params = Params()
    leaf_id: str | None = None
    messages: Many[ArchivedMessage] = []  # noqa: RUF012 - pydantic copies it


class ArchivedMarkdown(SiteBody):
    """The branch of a conversation as it was exported to be read."""

    markdown: str


def _read(given: Any) -> Any:
    """What is in Markdown as it would be in JSON."""
    if not isinstance(given, dict) or "markdown" not in given:
        return given
    text = given["markdown"]
    if len(given) > 1 or not isinstance(text, str):
        raise PydanticCustomError("markdown", "allowed is a text, and nothing beside it")
    try:
        return conversation_in(text)
    except ValueError as error:
        raise PydanticCustomError("markdown", "{reason}", {"reason": str(error)}) from error


_Conversation = Annotated[
    ArchivedConversation,
    BeforeValidator(_read, json_schema_input_type=ArchivedConversation | ArchivedMarkdown),
]


class Archive(SiteBody):
    """Some conversations."""

    conversations: Annotated[Many[_Conversation], Field(max_length=chats.MAX_CONVERSATIONS)]


@router.get("/conversations/{conversation_id}/export")
async def export_conversation(
    conversation_id: str,
    caller: SignedIn,
    office: Desk,
    form: Annotated[Literal["json", "markdown"], Query(alias="format")] = "json",
) -> Response:
    """A conversation as a file: with all branches in JSON, as it is shown in Markdown."""

    def read(db: Connection) -> tuple[str, bytes]:
        found = chats.get_conversation(db, caller.user_id, conversation_id)
        said = chat_messages.messages_of(db, caller.user_id, conversation_id)
        if form == "markdown":
            return found.title, markdown_of(found, said).encode()
        return found.title, b'{"conversations":[' + encode(conversation_shape(found, said)) + b"]}"

    title, content = await office.read(read)
    name = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-")[:60] or "conversation"
    if form == "markdown":
        return _attached(content, f"{name}.md", "text/markdown; charset=utf-8")
    return _attached(content, f"{name}.json", "application/json")


@router.get("/export")
async def export_all(caller: SignedIn, office: Desk) -> StreamingResponse:
    """All conversations of the user, one after the other."""
    return StreamingResponse(
        _all_of(office, caller.user_id),
        media_type="application/json",
        headers={"Content-Disposition": 'attachment; filename="conversations.json"'},
    )


@router.post("/import")
async def import_conversations(
    caller: SignedIn,
    office: Desk,
    runs: Answers,
    body: Annotated[Archive, Depends(json_body(Archive))],
) -> Any:
    """Add conversations; where one is malformed, none is, and the answer names the place."""
    archived = [
        _archived(one, f"conversations[{place}]", runs.inference.models, now=office.clock())
        for place, one in enumerate(body.conversations)
    ]

    def add(db: Connection) -> list[Heading]:
        chats.check_room(db, caller.user_id, len(archived))
        added = []
        for place, one in enumerate(archived):
            try:
                now = office.clock()
                added.append(chat_archive.add_archived(db, caller.user_id, one, now=now))
            except FieldError as error:
                raise chat_archive.within(f"conversations[{place}]", error) from error
        return added

    return {"conversations": [heading_shape(one) for one in await office.write(add)]}


def _archived(given: ArchivedConversation, place: str, models: Models, *, now: int) -> Archived:
    """A conversation for the store; one without dates is of now.

    Its model may be one of another server's; then the user is told when the next answer is wanted.
    """
    params = given.params
    try:
        checked_params(params.model_copy(update={"model": None}), models)
    except ApiError as error:
        param = f"{place}.{error.param}"
        raise ApiError(400, f"{place}.{error}", param=param) from error
    return Archived(
        given.title, given.tags, given.system, params.model_dump(exclude_none=True),
        given.is_pinned, now if given.created_at is None else given.created_at,
        now if given.updated_at is None else given.updated_at, given.leaf_id,
        [one.message for one in given.messages],
    )  # fmt: skip


async def _all_of(office: Office, user_id: str) -> AsyncGenerator[bytes]:
    ids = await office.read(lambda db: chats.conversation_ids_of(db, user_id))
    start = b'{"conversations":['
    for conversation_id in ids:
        found = await office.read(_whole(user_id, conversation_id))
        if found is not None:  # it may have been deleted meanwhile
            yield start + found
            start = b","
    yield (b"" if start == b"," else start) + b"]}"


def _whole(user_id: str, conversation_id: str) -> Any:
    def read(db: Connection) -> bytes | None:
        try:
            found = chats.get_conversation(db, user_id, conversation_id)
        except NotFoundError:
            return None
        said = chat_messages.messages_of(db, user_id, conversation_id)
        return encode(conversation_shape(found, said))

    return read


def _attached(content: bytes, name: str, media_type: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=media_type, headers=headers)
