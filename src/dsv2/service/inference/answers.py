"""What the inference API answers: OpenAI's objects as msgspec structs, encoded without a detour."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class PromptTokensDetails(msgspec.Struct):
    """Of the prompt's tokens, how many were found in the prefix cache."""

    cached_tokens: int


class Usage(msgspec.Struct):
    """Tokens of a request, in OpenAI's words and in DeepSeek's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int


def usage_of(prompt: int, cached: int, completion: int) -> Usage:
    """The usage of a request, whose cached tokens are part of its prompt's."""
    details = PromptTokensDetails(cached)
    return Usage(prompt, completion, prompt + completion, details, cached, prompt - cached)


class FunctionDelta(msgspec.Struct):
    """A piece of a call: its name with the first, its arguments bit by bit."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CallDelta(msgspec.Struct):
    """A piece of the tool call at ``index``."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionDelta | UnsetType = UNSET


class CalledFunction(msgspec.Struct):
    """A function that the assistant calls."""

    name: str
    arguments: str


class Call(msgspec.Struct):
    """A whole tool call."""

    id: str
    type: str
    function: CalledFunction


class TopLogprob(msgspec.Struct):
    """One of the best tokens at a step, with its natural logarithm and its UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    """The token that was taken and the best ones."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """Logprobs of a chat's answer."""

    content: list[TokenLogprob]


class TextLogprobs(msgspec.Struct):
    """Logprobs of a completion: four lists of equal length; a prompt's first token has none."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class Delta(msgspec.Struct):
    """A piece of a chat's answer."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """A piece of one of a chat's answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct):
    """One event of a chat's stream; ``usage`` is there where it was asked for."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class AssistantMessage(msgspec.Struct):
    """An answer of a chat."""

    role: str
    content: str
    tool_calls: list[Call] | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    """One of a chat's answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(msgspec.Struct):
    """The answer to a chat request."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(msgspec.Struct):
    """One of a completion's answers, or a piece of it in a stream."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None


class TextCompletion(msgspec.Struct):
    """The answer to a completion request, and each event of its stream."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET


class ModelCard(msgspec.Struct):
    """A model that is served."""

    id: str
    created: int
    owned_by: str
    object: str = "model"


class ModelList(msgspec.Struct):
    """All models that are served."""

    data: list[ModelCard]
    object: str = "list"


class TokenList(msgspec.Struct):
    """A text as tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct):
    """Tokens as a text."""

    prompt: str


class BalanceInfo(msgspec.Struct):
    """An account's money in one currency, as decimals."""

    currency: str
    total_balance: str
    granted_balance: str
    topped_up_balance: str


class UserBalance(msgspec.Struct):
    """What an account has, as DeepSeek's API tells it."""

    is_available: bool
    balance_infos: list[BalanceInfo]


class TokenizerInfo(msgspec.Struct):
    """What programs ask about a tokenizer."""

    tokenizer_class: str
    bos_token: str
    eos_token: str
    pad_token: str
    model_max_length: int
    vocab_size: int
    add_bos_token: bool
    chat_template: None = None


encode = msgspec.json.Encoder().encode
