"""Anthropic's client, and OpenAI's at its newer route."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import anthropic
import openai
import pytest

from dsv2.engine.request import Request
from dsv2.service.serving import EngineGoneError
from dsv2.service.web.errors import ApiError
from dsv2.service.worker.wire import Tokens
from tests.service.fakes import Site, Step, make_site, pocket_tokenizer
from tests.service.test_clients import Person
from tests.service.test_clients import script as greet

TOKENIZER = pocket_tokenizer()
HI: Any = [{"role": "user", "content": "Hi"}]
ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
}
TOOL: Any = {"name": "add", "description": "Adds numbers.", "input_schema": ADD}
FUNCTION: Any = {
    "type": "function",
    "name": "add",
    "description": "Adds numbers.",
    "parameters": ADD,
}


def script(request: Request) -> Iterable[Step]:
    """As for the other clients, but it can break down."""
    text = TOKENIZER.decode(request.prompt_ids, skip_special_tokens=False)
    if "break" in text:
        yield Tokens(request.id, TOKENIZER.encode("Hello")[:1])
        yield EngineGoneError("gone")
    yield from greet(request)


@pytest.fixture(scope="module")
def site() -> Site:
    return make_site(script, TOKENIZER)


@pytest.fixture(scope="module")
def claude(address: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=address, api_key="sk-test", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="sk-test", max_retries=0) as made:
        yield made


def test_anthropic_messages(claude: Any, address: str) -> None:
    answer = claude.messages.create(model="pocket", max_tokens=20, messages=HI)
    assert [(block.type, block.text) for block in answer.content] == [("text", "Hello, 世界!")]
    assert (answer.stop_reason, answer.usage.input_tokens) == ("end_turn", 5)
    assert answer.usage.output_tokens == len(TOKENIZER.encode("Hello, 世界!"))
    with anthropic.Anthropic(
        base_url=f"{address}/anthropic", auth_token="sk-test", api_key=None, max_retries=0
    ) as other:
        count = other.messages.count_tokens(model="deepseek-chat", messages=HI)
    assert count.input_tokens == answer.usage.input_tokens


def test_anthropic_stream(claude: Any) -> None:
    with claude.messages.stream(
        model="pocket",
        max_tokens=20,
        messages=HI,
        stop_sequences=["界"],
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == "Hello, 世"
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "界")
    assert final.usage.output_tokens > 0


def test_anthropic_tools(claude: Any) -> None:
    answer = claude.messages.create(model="pocket", max_tokens=50, messages=HI, tools=[TOOL])
    (use,) = answer.content
    assert use.type == "tool_use"
    assert (answer.stop_reason, use.name, use.input) == ("tool_use", "add", {"a": 1, "b": 2})
    with claude.messages.stream(model="pocket", max_tokens=50, messages=HI, tools=[TOOL]) as stream:
        final = stream.get_final_message()
    assert [(one.name, one.input) for one in final.content] == [("add", {"a": 1, "b": 2})]
    back: Any = [
        *HI,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": use.id, "content": "3"}]},
    ]  # fmt: skip
    again = claude.messages.create(model="pocket", max_tokens=20, messages=back)
    assert again.content[0].text == "Hello, 世界!"


def test_anthropic_errors(claude: Any, site: Site) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(model="pocket", max_tokens=0, messages=HI)
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="gpt-9", max_tokens=9, messages=HI)
    body: Any = missing.value.body
    assert body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="wrong").messages.create(
            model="pocket",
            max_tokens=9,
            messages=HI,
        )
    site.admission.refusal = ApiError(429, "Rate limit reached", headers={"Retry-After": "0"})
    try:
        with pytest.raises(anthropic.RateLimitError):
            claude.messages.create(model="pocket", max_tokens=9, messages=HI)
    finally:
        site.admission.refusal = None
    broken: Any = [{"role": "user", "content": "break"}]
    with (
        pytest.raises(anthropic.APIStatusError, match="overloaded_error"),
        claude.messages.stream(model="pocket", max_tokens=9, messages=broken) as stream,
    ):
        stream.get_final_message()


def test_openai_responses(client: Any) -> None:
    answer = client.responses.create(model="gpt-4", input="Hi", instructions="Greet.")
    assert (answer.output_text, answer.status) == ("Hello, 世界!", "completed")
    assert answer.usage is not None
    assert answer.usage.output_tokens == len(TOKENIZER.encode("Hello, 世界!"))
    again = client.responses.create(
        model="pocket", store=False,
        input=[*HI, *answer.output, {"role": "user", "content": "More"}],
    )  # fmt: skip
    assert again.output_text == "Hello, 世界!"


def test_openai_responses_stream(client: Any) -> None:
    events = list(client.responses.create(model="pocket", input="Hi", stream=True))
    text = "".join(one.delta for one in events if one.type == "response.output_text.delta")
    assert text == "Hello, 世界!"
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == text
    with client.responses.stream(model="pocket", input="Hi") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == text


def test_openai_responses_tools(client: Any) -> None:
    answer = client.responses.create(model="pocket", input="Hi", tools=[FUNCTION])
    (call,) = answer.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1, "b": 2})
    with client.responses.stream(model="pocket", input="Hi", tools=[FUNCTION]) as stream:
        (streamed,) = stream.get_final_response().output
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
    again = client.responses.create(model="pocket", input=[*HI, call, output])
    assert again.output_text == "Hello, 世界!"


def test_openai_responses_parse_a_schema(client: Any) -> None:
    answer = client.responses.parse(model="pocket", input="Hi", text_format=Person)
    assert answer.output_parsed == Person(name="Ann", age=7)


def test_openai_responses_errors(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.responses.create(model="pocket", input="Hi", previous_response_id="resp_1")
    assert (bad.value.code, bad.value.param) == ("unsupported_parameter", "previous_response_id")
    with pytest.raises(openai.BadRequestError, match="Built-in tools"):
        client.responses.create(model="pocket", input="Hi", tools=[{"type": "web_search"}])
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt-9", input="Hi")
    *_, last = client.responses.create(model="pocket", input="break", stream=True)
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.code == "server_error"
