"""The bodies of tokenisation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dsv2.service.protocol.base import Body, Many
from dsv2.service.protocol.chat import ChatMessage, Tool


class TokenizeBody(Body):
    """A text, or a conversation with its tools; without ``model`` the first one's tokenizer.

    Control tokens in a text are read as such: the answer is for its sender alone. With
    ``add_special_tokens``, which is the default, a text gets one BOS.
    """

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[Many[ChatMessage], Field(min_length=1)] | None = None
    tools: Annotated[Many[Tool], Field(max_length=128)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """Tokens to be written out, control tokens too."""

    model: str | None = None
    tokens: Many[int]
