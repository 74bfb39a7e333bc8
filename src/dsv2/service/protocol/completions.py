"""The body of a text completion."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dsv2.service.protocol.base import MAX_SEQUENCES, Count, Many, SamplingBody

Texts = Annotated[Many[str], Field(min_length=1, max_length=MAX_SEQUENCES)]
Ids = Annotated[Many[int], Field(min_length=1)]
IdLists = Annotated[Many[Ids], Field(min_length=1, max_length=MAX_SEQUENCES)]


class CompletionBody(SamplingBody):
    """Prompts to be continued, as text or tokens.

    A text gets one BOS before it unless ``add_special_tokens`` is false, and what looks like a
    control token in it is text unless ``parse_special`` is true. Tokens are taken as they are.
    With ``suffix`` the answer goes between a text and that.
    """

    prompt: str | Texts | Ids | IdLists
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: Count | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
