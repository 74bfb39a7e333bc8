"""``tool_choice`` ``required`` and by name: a grammar that leaves the model nothing but calls."""

from __future__ import annotations

import json
from collections.abc import Sequence

from dsv2.engine.request import Structure
from dsv2.service.protocol.chat import Tool
from dsv2.service.web.errors import ApiError
from dsv2.tokenizer import Tokenizer, special


def call_grammar(tokenizer: Tokenizer, tools: Sequence[Tool], *, many: bool) -> Structure:
    """A structure of one call, or of ``many``, whose arguments follow the function's schema.

    It is the form that :mod:`dsv2.tokenizer.tool_calls` reads, in Lark's notation with control
    tokens by their ids.

    Raises:
        ApiError: 400: the model has no control tokens for calls.
    """
    ids = tokenizer.special_ids
    if any(name not in ids for name in special.CALLS):
        raise ApiError(400, "tool_choice: this model has no tool calls", param="tool_choice")
    calls_begin, calls_end, call_begin, call_end, separator = (
        f"<[{ids[name]}]>" for name in special.CALLS
    )
    more = ' ("\\n" call)*' if many else ""
    lines = [
        f"start: {calls_begin} call{more} {calls_end}",
        "call: " + " | ".join(f"call_{place}" for place in range(len(tools))),
    ]
    for place, tool in enumerate(tools):
        schema = dict(tool.function.parameters or {"type": "object"})
        # As for response_format: free whitespace lets a lost model fill its answer with it.
        schema["x-guidance"] = {"whitespace_flexible": False}
        opening = json.dumps(f"{tool.function.name}\n```json\n")
        lines += [
            f'call_{place}: {call_begin} "function" {separator} {opening} arguments_{place} '
            f'"\\n```" {call_end}',
            f"arguments_{place}: %json {json.dumps(schema)}",
        ]
    return Structure("grammar", "\n".join(lines) + "\n")
