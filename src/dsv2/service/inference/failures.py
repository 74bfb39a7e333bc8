"""What goes wrong in an engine, as an answer to the client."""

from __future__ import annotations

import logging

from dsv2.engine.request import OverloadedError, RequestError
from dsv2.service.inference.generation import AnswerError
from dsv2.service.inference.params import refused
from dsv2.service.serving import EngineGoneError
from dsv2.service.web.errors import ApiError

log = logging.getLogger("dsv2.service")

_AGAIN = {"Retry-After": "5"}


def overloaded(message: str) -> ApiError:
    """503: the same request may be taken later."""
    return ApiError(503, message, code="overloaded", headers=_AGAIN)


def queue_timeout(seconds: float) -> ApiError:
    """503: nothing was computed for too long."""
    return ApiError(
        503, f"The request has waited {seconds:.0f} seconds in line; try again later",
        code="queue_timeout", headers=_AGAIN,
    )  # fmt: skip


def as_api_error(error: Exception, *, prompt: str, names: dict[str, str]) -> ApiError:
    """An error of the engine's in OpenAI's words; unforeseen ones are logged and become 500.

    Args:
        error: what was raised.
        prompt: what the body calls the prompt.
        names: the body's names of other fields of the engine's.
    """
    match error:
        case ApiError():
            return error
        case RequestError():
            return refused(error, prompt=prompt, names=names)
        case OverloadedError():
            return overloaded(f"The server is overloaded: {error}")
        case EngineGoneError():
            return ApiError(
                503, "The model is not available at the moment; try again",
                code="engine_unavailable", headers=_AGAIN,
            )  # fmt: skip
        case AnswerError():
            return _no_answer(error, prompt=prompt, names=names)
    log.error("unforeseen error", exc_info=error)
    return ApiError(500, "The server failed; the request can be sent again")


def _no_answer(error: AnswerError, *, prompt: str, names: dict[str, str]) -> ApiError:
    output, choice = error.output, error.choice
    words = output.error or "no reason was given"
    if output.finish_reason == "rejected":
        if output.field is None:
            return overloaded(f"The server is overloaded: {words}")
        return refused(
            RequestError(output.field, words.removeprefix(f"{output.field} ")),
            prompt=prompt, names=names,
        )  # fmt: skip
    # Before the first token nothing but the compilation of what the client sent can fail, and a
    # model whose numbers are not finite.
    is_compilation = choice.request.params.structure is not None and not choice.has_begun
    if is_compilation and "not finite" not in words:
        param = names.get("structure", "response_format")
        return ApiError(400, f"{param}: {words}", param=param)
    return ApiError(500, f"The answer could not be computed: {words}", code="numerical_error")
