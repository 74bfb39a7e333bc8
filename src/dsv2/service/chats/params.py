"""Parameters of the site's conversations, checked as those of ``/v1`` are, and their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict, ValidationError

from dsv2.engine.request import RequestError, validate_params
from dsv2.service.inference.params import sampling_params
from dsv2.service.protocol import ChatBody
from dsv2.service.protocol.base import Body, Many, SamplingBody
from dsv2.service.protocol.chat import ChatMessage
from dsv2.service.serving import Models, ServedModel
from dsv2.service.store.chat_messages import Attachment, Message
from dsv2.service.store.chats import Conversation
from dsv2.service.web.errors import ApiError, unknown_model

TOP_LOGPROBS = 5
"""Alternatives that are kept of each token, where its logprobs are wanted."""


DEFAULTS = {"temperature": 0.3, "top_p": 0.95}
"""Sampling where a conversation says nothing of it: the temperature of the published models' own
examples, and no long tail. The API itself has 1 for both, as DeepSeek's has."""


class SiteBody(Body):
    """A body of the chat site: what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Params(SiteBody):
    """How answers are generated; what is left out is the server's to choose.

    Attributes:
        model: by name or alias; the server's first by default.
        logprobs: whether the tokens are kept with their logprobs.
    """

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Many[str] | None = None
    logprobs: bool | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """What is given of sampling, by the names of ``/v1``."""
        return self.model_dump(exclude_none=True, exclude={"model", "logprobs"})


def find_model(models: Models, name: str | None, param: str = "params.model") -> ServedModel:
    """The model of a name or an alias, or the first.

    Raises:
        ApiError: 404.
    """
    if name is None:
        return models.all[0]
    found = models.find(name)
    if found is None:
        error = unknown_model(name, models.names)
        error.param = param
        raise error
    return found


def checked_params(params: Params, models: Models) -> dict[str, Any]:
    """Parameters as they are kept.

    Raises:
        ApiError: 400 naming the one that is out of bounds; 404: there is no such model.
    """
    model = find_model(models, params.model)
    body = SamplingBody(model=model.name, **params.sampling)
    top = TOP_LOGPROBS if params.logprobs else None
    wanted = sampling_params(body, max_tokens=1 if body.max_tokens is None else body.max_tokens,
                             logprobs=top)  # fmt: skip
    try:
        validate_params(wanted, model.engine.limits)
    except RequestError as error:
        param = f"params.{error.field}"
        raise ApiError(400, f"{param}: {error.problem}", param=param) from error
    return params.model_dump(exclude_none=True)


def kept_params(kept: dict[str, Any], models: Models) -> Params:
    """Parameters that were kept, for models that may be others by now.

    Raises:
        ApiError: as :func:`checked_params`.
    """
    try:
        params = Params.model_validate(kept)
    except ValidationError as error:
        raise ApiError(400, "params: are none that this server knows", param="params") from error
    checked_params(params, models)
    return params


def file_text(file: Attachment) -> str:
    """A file as the model is shown it: in DeepSeek's own form."""
    return f"[file name]: {file.name}\n[file content begin]\n{file.text}\n[file content end]\n"


def chat_body(
    conversation: Conversation, path: Sequence[Message], params: Params, model: ServedModel
) -> ChatBody:
    """The request that an answer is.

    Args:
        conversation: where it is.
        path: the messages up to the answer, which is the last and may have begun.
        params: of the conversation.
        model: that is to answer.
    """
    turns = [("system", conversation.system)] if conversation.system else []
    for message in path[:-1]:
        text = "".join(map(file_text, message.attachments)) + message.content
        if text or message.role == "user":  # an answer that came to nothing is none
            turns.append((message.role, text))
    begun = path[-1].content
    if begun:
        turns.append(("assistant", begun))
    messages = [ChatMessage.model_validate({"role": role, "content": text}) for role, text in turns]
    return ChatBody(
        model=model.name,
        messages=messages,
        continue_final_message=True if begun else None,
        logprobs=params.logprobs,
        **(DEFAULTS | params.sampling),
    )
