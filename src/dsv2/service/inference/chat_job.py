"""From a chat's body to the work that it is, whichever address it came by."""

from __future__ import annotations

from dsv2.service.inference.context import Job
from dsv2.service.inference.conversation import conversation_ids, tool_use
from dsv2.service.inference.params import default_max_tokens, sampling_params
from dsv2.service.inference.sse import Writer
from dsv2.service.inference.tool_stream import AnswerReader
from dsv2.service.protocol import ChatBody
from dsv2.service.serving import ServedModel

DEFAULT_MAX_TOKENS = 4096
"""DeepSeek's; less where the context leaves less."""


async def chat_job(
    identity: str,
    model: ServedModel,
    body: ChatBody,
    writer: Writer | None,
    *,
    top_logprobs: int | None = None,
    prompt_name: str = "messages",
    names: dict[str, str] | None = None,
) -> Job:
    """The work.

    Args:
        identity: the request's, made by the server.
        model: that is to answer.
        body: the conversation.
        writer: of the answer; None where it is not sent from here.
        top_logprobs: alternatives per token, or None without logprobs.
        prompt_name: what the client calls the conversation.
        names: the client's own names of fields, where they are not a chat's.

    Raises:
        ApiError: 400.
    """
    use = tool_use(body, model)
    prompt = await conversation_ids(
        model,
        body.messages,
        use.tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final=body.continue_final_message,
        name=prompt_name,
    )
    wanted, limit_name = body.max_completion_tokens, "max_completion_tokens"
    if wanted is None:
        wanted, limit_name = body.max_tokens, "max_tokens"
    if wanted is None:
        wanted = default_max_tokens(model.engine.limits, len(prompt), DEFAULT_MAX_TOKENS)
    params = sampling_params(
        body, max_tokens=wanted, logprobs=top_logprobs, structure=use.structure
    )
    structure_name = next(
        (name for name in ("regex", "grammar") if getattr(body, name) is not None),
        "tool_choice" if use.structure is not None else "response_format",
    )
    usual = {
        "max_tokens": limit_name, "logprobs": "top_logprobs", "structure": structure_name,
    }  # fmt: skip
    return Job(
        id=identity,
        model=model,
        prompts=[prompt],
        params=params,
        per_prompt=body.num_choices,
        make_reader=lambda: AnswerReader(
            model.tokenizer, params, tools=use.are_read, max_calls=use.max_calls
        ),
        writer=writer,
        prompt_name=prompt_name,
        names=usual | (names or {}),
    )
