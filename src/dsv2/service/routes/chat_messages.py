"""``/api/chat``: messages, and answers that run whether or not a page is open.

| method, path | who | what |
|---|---|---|
| POST ``/api/chat/conversations/{id}/messages`` | signed in | say something; an answer begins |
| POST ``/api/chat/messages/{id}/regenerate`` | signed in | another answer beside one |
| POST ``/api/chat/messages/{id}/continue`` | signed in | let an answer go on where it ended |
| POST ``/api/chat/messages/{id}/stop`` | signed in | end an answer; what there is stays |
| GET ``/api/chat/messages/{id}/events`` | signed in | its text as it comes, from any place on |
| GET ``/api/chat/messages/{id}/tokens`` | signed in | its tokens with logprobs, where kept |

What goes wrong with an answer is in the message's ``failure``: the question is kept, and the answer
can be asked for again.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field

from dsv2.service.chats.events import EventsResponse, events_of
from dsv2.service.chats.params import SiteBody
from dsv2.service.chats.shapes import message_shape
from dsv2.service.platform.desk import Answers, Desk
from dsv2.service.protocol.base import Many
from dsv2.service.store import chat_messages
from dsv2.service.store.chat_messages import MAX_ATTACHMENTS, Attachment
from dsv2.service.web.deps import SignedIn
from dsv2.service.web.errors import ApiError
from dsv2.service.web.json_body import json_body

router = APIRouter(prefix="/api/chat")

Place = Annotated[int, Query(alias="from", ge=0, le=2**31, description="In code points.")]


class File(SiteBody):
    """A text file."""

    name: str
    text: str


class NewMessage(SiteBody):
    """What somebody says, after an answer or at the beginning."""

    parent_id: str | None
    content: str
    attachments: Annotated[Many[File], Field(max_length=MAX_ATTACHMENTS)] = []  # noqa: RUF012


@router.post("/conversations/{conversation_id}/messages", status_code=201)
async def send_message(
    conversation_id: str,
    caller: SignedIn,
    runs: Answers,
    body: Annotated[NewMessage, Depends(json_body(NewMessage))],
) -> Any:
    """Add a message and begin to answer it. Another with the same parent is another branch."""
    files = [Attachment(file.name, file.text) for file in body.attachments]
    question, answer = await runs.ask(
        caller, conversation_id, parent_id=body.parent_id, content=body.content, attachments=files
    )
    return {"user": message_shape(question), "answer": message_shape(answer)}


@router.post("/messages/{message_id}/regenerate")
async def regenerate(message_id: str, caller: SignedIn, runs: Answers) -> Any:
    """Begin another answer to what this one answers."""
    return {"answer": message_shape(await runs.answer_again(caller, message_id))}


@router.post("/messages/{message_id}/continue")
async def resume(message_id: str, caller: SignedIn, runs: Answers) -> Any:
    """Let an answer go on that was stopped, has failed or has reached its length."""
    return {"answer": message_shape(await runs.resume(caller, message_id))}


@router.post("/messages/{message_id}/stop")
async def stop(message_id: str, caller: SignedIn, runs: Answers) -> Any:
    """End an answer; one that has ended is returned as it is."""
    return {"answer": message_shape(await runs.stop_answer(caller, message_id))}


_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


@router.get("/messages/{message_id}/events", response_class=Response, responses=_EVENTS)
async def events(
    message_id: str, caller: SignedIn, office: Desk, runs: Answers, start: Place = 0
) -> Response:
    """``delta`` events, then ``done`` with the whole message. Leaving ends nothing."""
    message = await office.read(
        lambda db: chat_messages.get_message(db, caller.user_id, message_id)
    )
    leave = runs.let_in(caller.user_id)
    return EventsResponse(events_of(runs, caller, message, start), runs.inference.patience, leave)


@router.get("/messages/{message_id}/tokens")
async def tokens(message_id: str, caller: SignedIn, office: Desk, runs: Answers) -> Response:
    """The tokens of an answer; 404 where ``params.logprobs`` was off."""
    kept = await office.read(lambda db: chat_messages.tokens_of(db, caller.user_id, message_id))
    run = runs.find(message_id)
    if run is not None:
        kept = run.tokens
    if kept is None:
        raise ApiError(404, "The tokens of this message were not kept", code="no_tokens")
    return Response(b'{"tokens":' + kept.encode() + b"}", media_type="application/json")
