"""Conversations and messages as the chat site sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsv2.service.store.chat_messages import AnswerUsage, Message
from dsv2.service.store.chats import Conversation, Heading


def heading_shape(heading: Heading) -> dict[str, Any]:
    """A conversation in a list."""
    return {
        "id": heading.id, "title": heading.title, "tags": list(heading.tags),
        "created_at": heading.created_at, "updated_at": heading.updated_at,
        "is_pinned": heading.is_pinned,
    }  # fmt: skip


def conversation_shape(conversation: Conversation, messages: Sequence[Message]) -> dict[str, Any]:
    """A conversation with all of its branches."""
    return heading_shape(conversation) | {
        "system": conversation.system, "params": conversation.params,
        "leaf_id": conversation.leaf_id, "messages": [message_shape(one) for one in messages],
    }  # fmt: skip


def message_shape(message: Message) -> dict[str, Any]:
    """A message."""
    failure = message.failure
    return {
        "id": message.id,
        "parent_id": message.parent_id,
        "role": message.role,
        "content": message.content,
        "attachments": [{"name": one.name, "text": one.text} for one in message.attachments],
        "status": message.status,
        "failure": failure and {"code": failure.code, "message": failure.message},
        "finish": message.finish,
        "model": message.model,
        "usage": None if message.usage is None else usage_shape(message.usage),
        "created_at": message.created_at,
    }


def usage_shape(usage: AnswerUsage) -> dict[str, Any]:
    """What an answer has taken; ``seconds`` from its first token to its last."""
    return {
        "prompt_tokens": usage.prompt_tokens, "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens, "seconds": usage.milliseconds / 1000,
    }  # fmt: skip
