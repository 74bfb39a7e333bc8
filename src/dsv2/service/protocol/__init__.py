"""What clients may send to the inference API, as pydantic models.

A body that is no such model, and a parameter that is out of bounds, both end in **400** with the
parameter's name. DeepSeek's own list has 422 for the second; OpenAI's clients know 400 alone, and
the harnesses that read error texts were written against them, so 400 it is throughout the inference
API. Shapes are checked here; bounds of what an engine can do are checked by the engine's own gate
(:func:`dsv2.engine.request.validate`), which the API calls as well before any work is done.

Types are strict: a bool is no integer, a number no string; NaN and infinities are refused. Unknown
fields are ignored, as every server of this protocol does, but a field that asks for something this
server does not do is refused when ignoring it would change what the answer means.
"""

from dsv2.service.protocol.base import Body, ResponseFormat, SamplingBody, StreamOptions
from dsv2.service.protocol.chat import ChatBody, ChatMessage, Tool, ToolChoice
from dsv2.service.protocol.completions import CompletionBody
from dsv2.service.protocol.messages import CountTokensBody, MessagesBody
from dsv2.service.protocol.responses import ResponsesBody
from dsv2.service.protocol.tokenize import DetokenizeBody, TokenizeBody

__all__ = [
    "Body",
    "ChatBody",
    "ChatMessage",
    "CompletionBody",
    "CountTokensBody",
    "DetokenizeBody",
    "MessagesBody",
    "ResponseFormat",
    "ResponsesBody",
    "SamplingBody",
    "StreamOptions",
    "TokenizeBody",
    "Tool",
    "ToolChoice",
]
