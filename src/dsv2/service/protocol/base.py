"""What all bodies share: strictness, sampling parameters, and fields that are refused."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

MAX_CHOICES = 16
"""Largest ``n`` and ``best_of``."""
MAX_SEQUENCES = 256
"""Most prompts times choices of one request."""
MAX_PROMPT_TOKENS = 1 << 20
"""Most tokens of all prompts of one request together."""

Count = Annotated[int, Field(ge=1, le=MAX_CHOICES)]


T = TypeVar("T")

Many = Annotated[list[T], Field(fail_fast=True)]
"""A list whose first bad entry is enough: a list of all of them could take seconds to write."""


def _numbers(value: Any) -> Any:
    """The same for a mapping."""
    if isinstance(value, dict):
        for key, number in value.items():
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise ValueError(f"{key!r:.60} has no number")
    return value


def only_type(allowed: str) -> BeforeValidator:
    """Says of tools that run on somebody's servers that there are none here."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value != allowed:
            raise PydanticCustomError(
                "unavailable", "Built-in tools are not available here, allowed is '{allowed}'",
                {"allowed": allowed},
            )  # fmt: skip
        return value

    return BeforeValidator(check)


class Strict(BaseModel):
    """Ignores unknown fields, converts nothing."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True, extra="ignore")


class Body(Strict):
    """The body of a request.

    Attributes:
        refused: fields that would change the answer's meaning if they were ignored, and what to
            say about each; harmless are None, False and nothing at all.
    """

    refused: ClassVar[dict[str, str]] = {}


class StreamOptions(Strict):
    """How a stream is sent; ``include_obfuscation`` is ignored."""

    include_usage: bool | None = None


class JsonSchema(Strict):
    """A named schema; ``strict`` is always meant."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


_NOT_HERE = "is not available here"
_USE_FORMAT = "is not available here; use response_format, regex or grammar"


class SamplingBody(Body):
    """Model and sampling; the meaning of each is :class:`dsv2.engine.request.SamplingParams`'s."""

    refused: ClassVar[dict[str, str]] = {
        "store": "is not available: answers are not stored",
        "chat_template": "is not available: the format of a conversation is the model's own",
        "chat_template_kwargs": "is not available: the format of a conversation is the model's own",
        "documents": _NOT_HERE,
        "use_beam_search": _NOT_HERE,
        "bad_words": "is not available here; use logit_bias",
        "allowed_token_ids": "is not available here; use logit_bias or grammar",
        "logprob_token_ids": _NOT_HERE,
        "prompt_logprobs": "is not available here; use completions with echo and logprobs",
        "truncate_prompt_tokens": "is not available: nothing is cut silently",
        "include_stop_str_in_output": _NOT_HERE,
        "logits_processors": _NOT_HERE,
        "prompt_embeds": _NOT_HERE,
        "guided_json": _USE_FORMAT,
        "guided_regex": _USE_FORMAT,
        "guided_choice": _USE_FORMAT,
        "guided_grammar": _USE_FORMAT,
        "structured_outputs": _USE_FORMAT,
        "ebnf": _USE_FORMAT,
        "stop_regex": _NOT_HERE,
    }

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Count | None = None
    seed: int | None = None
    stop: str | Many[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], BeforeValidator(_numbers)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Many[int] | None = None
    regex: str | None = None
    grammar: str | None = None

    @property
    def num_choices(self) -> int:
        """Answers per prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)
