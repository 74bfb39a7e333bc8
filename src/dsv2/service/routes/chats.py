"""``/api/chat``: a user's conversations. The guest of this machine has some too.

| method, path | who | what |
|---|---|---|
| GET ``/api/chat/models`` | signed in | the models that answer |
| GET ``/api/chat/conversations`` | signed in | a page of one's conversations, or of those found |
| POST ``/api/chat/conversations`` | signed in | begin one |
| GET ``/api/chat/conversations/{id}`` | signed in | one with all of its messages |
| PATCH ``/api/chat/conversations/{id}`` | signed in | change what the body names |
| DELETE ``/api/chat/conversations/{id}`` | signed in | delete it; what is under way in it ends |

What is another's is not found, like what does not exist.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from sqlalchemy import Connection

from dsv2.service.chats.params import Params, SiteBody, checked_params
from dsv2.service.chats.shapes import conversation_shape, heading_shape
from dsv2.service.inference.answers import encode
from dsv2.service.platform.desk import Answers, Desk
from dsv2.service.protocol.base import Many
from dsv2.service.serving import Models
from dsv2.service.store import chat_messages, chats
from dsv2.service.web.deps import SignedIn
from dsv2.service.web.errors import ApiError
from dsv2.service.web.json_body import json_body

router = APIRouter(prefix="/api/chat")


class NewConversation(SiteBody):
    """A conversation to begin."""

    title: str = ""
    tags: Many[str] = []  # noqa: RUF012 - pydantic copies it
    system: str = ""
    params: Params = Params()


class ChangedConversation(SiteBody):
    """What is to be another way; only ``leaf_id`` can be null."""

    title: str | None = None
    tags: Many[str] | None = None
    system: str | None = None
    params: Params | None = None
    leaf_id: str | None = None
    is_pinned: bool | None = None


def changes_of(body: SiteBody, models: Models, *, may_be_null: str = "") -> dict[str, Any]:
    """What a body names, its parameters checked.

    Raises:
        ApiError: 400: a value is null, or a parameter is not allowed.
    """
    changes: dict[str, Any] = {}
    for name in body.model_fields_set:
        value = getattr(body, name)
        if value is None and name != may_be_null:
            raise ApiError(400, f"{name}: must not be null", param=name)
        changes[name] = checked_params(value, models) if isinstance(value, Params) else value
    return changes


@router.get("/models")
async def list_models(caller: SignedIn, runs: Answers) -> Any:
    """The models that are served; the first one answers where none is named."""
    return {
        "models": [
            {
                "name": model.name,
                "max_context": model.engine.limits.max_context,
                "description": model.engine.description,
            }
            for model in runs.inference.models.all
            if caller.may_use(model.name)
        ]
    }


@router.get("/conversations")
async def list_conversations(
    caller: SignedIn,
    office: Desk,
    query: Annotated[str, Query(max_length=chats.MAX_QUERY)] = "",
    tag: Annotated[str, Query(max_length=chats.MAX_TAG)] = "",
    before: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=chats.MAX_PAGE)] = 50,
) -> Any:
    """Pinned ones first, then by their last message. ``next`` is the next page's ``before``.

    ``tags`` are those of all one's conversations, whatever was looked for.
    """

    def read(db: Connection) -> dict[str, Any]:
        page, following = chats.list_conversations(
            db, caller.user_id, query=query, tag=tag, before=before, limit=limit
        )
        return {
            "conversations": [heading_shape(one) for one in page],
            "next": following,
            "tags": chats.tags_of(db, caller.user_id),
        }

    return await office.read(read)


@router.post("/conversations", status_code=201)
async def create_conversation(
    caller: SignedIn,
    office: Desk,
    runs: Answers,
    body: Annotated[NewConversation, Depends(json_body(NewConversation))],
) -> Any:
    """Begin a conversation without messages."""
    params = checked_params(body.params, runs.inference.models)
    made = await office.write(
        lambda db: chats.create_conversation(
            db, caller.user_id, title=body.title, tags=body.tags, system=body.system,
            params=params, now=office.clock(),
        )
    )  # fmt: skip
    return conversation_shape(made, [])


@router.get("/conversations/{conversation_id}")
async def get_conversation(conversation_id: str, caller: SignedIn, office: Desk) -> Response:
    """All branches; ``leaf_id`` is the end of the one that is shown."""

    def read(db: Connection) -> bytes:
        found = chats.get_conversation(db, caller.user_id, conversation_id)
        said = chat_messages.messages_of(db, caller.user_id, conversation_id)
        return encode(conversation_shape(found, said))

    return Response(await office.read(read), media_type="application/json")


@router.patch("/conversations/{conversation_id}")
async def change_conversation(
    conversation_id: str,
    caller: SignedIn,
    office: Desk,
    runs: Answers,
    body: Annotated[ChangedConversation, Depends(json_body(ChangedConversation))],
) -> Any:
    """Change what the body names; ``params`` and ``tags`` as a whole."""
    changes = changes_of(body, runs.inference.models, may_be_null="leaf_id")
    changed = await office.write(
        lambda db: chats.change_conversation(db, caller.user_id, conversation_id, changes)
    )
    return heading_shape(changed)


@router.delete("/conversations/{conversation_id}", status_code=204)
async def delete_conversation(conversation_id: str, caller: SignedIn, runs: Answers) -> None:
    """Delete a conversation with all of its messages."""
    await runs.delete_conversation(caller, conversation_id)
