"""The clients that people have: openai's new and old ones, and langchain's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from dsv2.engine.request import Request
from dsv2.service.web.errors import ApiError
from dsv2.service.worker.wire import Logprobs, Tokens
from tests.service.fakes import HEADERS, Site, Step, make_site, pocket_tokenizer
from tests.service.test_tool_stream import answer_ids

TOKENIZER = pocket_tokenizer()
HI = [{"role": "user", "content": "Hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        },
    },
}


def script(request: Request) -> Iterable[Step]:
    """Greets; calls a tool, or says JSON, where it reads of one."""
    text = TOKENIZER.decode(request.prompt_ids, skip_special_tokens=False)
    if "forever" in text:
        while True:
            yield Tokens(request.id, TOKENIZER.encode("a")[:1])
            yield 0.001
    structure = request.params.structure
    if structure is not None and structure.kind == "grammar":
        ids = answer_ids("", ("Person", '{"name": "Ann", "age": 7}'))
    elif structure is not None:
        ids = TOKENIZER.encode('{"name": "Ann", "age": 7}')
    elif "`add`" in text:
        ids = answer_ids("", ("add", '{"a": 1, "b": 2}'))
    else:
        ids = TOKENIZER.encode("Hello, 世界!")
    for place, token in enumerate(ids):
        logprobs = None if request.params.logprobs is None else [Logprobs(-1.0, [(token, -1.0)])]
        finish = "stop" if place == len(ids) - 1 else None
        yield Tokens(request.id, [token], logprobs, finish)


@pytest.fixture(scope="module")
def site() -> Site:
    return make_site(script, TOKENIZER)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="sk-test", max_retries=0) as made:
        yield made


def test_openai_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="pocket", messages=HI, n=2)  # type: ignore[arg-type,call-overload]
    assert [choice.message.content for choice in answer.choices] == ["Hello, 世界!"] * 2
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id == answer.id.removeprefix("chatcmpl-")


def test_openai_stream_with_usage_and_logprobs(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        model="gpt-4", messages=HI, stream=True, logprobs=True, top_logprobs=1,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert "".join(one.choices[0].delta.content or "" for one in chunks[:-1]) == "Hello, 世界!"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == len(TOKENIZER.encode("Hello, 世界!"))
    assert any(one.choices[0].logprobs for one in chunks[:-1])


def test_openai_tools(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="pocket", messages=HI, tools=[TOOL])  # type: ignore[arg-type,call-overload]
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 1, "b": 2})
    assert answer.choices[0].finish_reason == "tool_calls"
    messages = [*HI, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id,
                                                 "content": "3"}]  # fmt: skip
    again = client.chat.completions.create(model="pocket", messages=messages)
    assert again.choices[0].message.content == "Hello, 世界!"
    with client.chat.completions.stream(model="pocket", messages=HI, tools=[TOOL]) as stream:  # type: ignore[arg-type]
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls
    assert json.loads(calls[0].function.arguments) == {"a": 1, "b": 2}


class Person(BaseModel):
    name: str
    age: int


def test_openai_parses_a_schema(client: openai.OpenAI, site: Site) -> None:
    answer = client.chat.completions.parse(model="pocket", messages=HI, response_format=Person)  # type: ignore[arg-type]
    assert answer.choices[0].message.parsed == Person(name="Ann", age=7)
    structure = site.engine.requests[-1].params.structure
    assert structure is not None
    assert json.loads(structure.text)["required"] == ["name", "age"]


def test_openai_completions_models_and_errors(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="pocket", prompt="x", echo=True, logprobs=1)
    assert answer.choices[0].text == "xHello, 世界!"
    assert [one.id for one in client.models.list()] == ["pocket"]
    assert client.models.retrieve("gpt-4").id == "pocket"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="pocket", prompt="x", max_tokens=10**6)
    assert (bad.value.code, bad.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_openai_tries_again_when_told_to(client: openai.OpenAI, site: Site) -> None:
    site.admission.refusal = ApiError(429, "Rate limit reached", headers={"Retry-After": "0"})
    try:
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="pocket", messages=HI)  # type: ignore[arg-type,call-overload]
    finally:
        site.admission.refusal = None


@pytest.mark.parametrize("stream", [True, False])
def test_a_closed_socket_ends_the_request(address: str, site: Site, stream: bool) -> None:
    """Fault F25 over real sockets."""
    body = {
        "model": "pocket", "stream": stream, "messages": [{"role": "user", "content": "forever"}],
    }  # fmt: skip
    before = len(site.engine.cancelled)
    with httpx.Client(base_url=address, headers=HEADERS, timeout=5) as plain:
        if stream:
            with plain.stream("POST", "/v1/chat/completions", json=body) as reply:
                next(reply.iter_bytes())
        else:
            with pytest.raises(httpx.ReadTimeout):
                plain.post("/v1/chat/completions", json=body, timeout=0.3)
    for _ in range(200):
        if len(site.engine.cancelled) > before and site.engine.open == 0:
            break
        time.sleep(0.01)
    assert len(site.engine.cancelled) == before + 1
    time.sleep(0.02)
    assert site.admission.tickets[-1].closed == ["cancelled"]


def test_openai_028_as_it_speaks(address: str) -> None:
    """The client before 1.0: its headers, its path, and what it reads of a stream."""
    headers = {
        "Authorization": "Bearer sk-test", "Content-Type": "application/json",
        "X-OpenAI-Client-User-Agent": "{}", "User-Agent": "OpenAI/v1 PythonBindings/0.28.1",
        "OpenAI-Organization": "org-x",
    }  # fmt: skip
    body = {
        "model": "deepseek-chat",
        "messages": HI,
        "n": 1,
        "temperature": 0.1,
        "max_tokens": 1024,
    }
    with httpx.Client(headers=headers) as old:
        reply = old.post(f"{address}/v1/chat/completions", json=body)
        assert reply.json()["choices"][0]["message"]["content"] == "Hello, 世界!"
        with old.stream(
            "POST", f"{address}/v1/chat/completions", json=body | {"stream": True}
        ) as r:
            lines = [line for line in r.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)


OLD_PROGRAM = """
import sys
import openai

openai.api_base, openai.api_key = sys.argv[1] + "/v1", "sk-test"
ask = {"model": "deepseek-chat", "messages": [{"role": "user", "content": "Hi"}]}
whole = openai.ChatCompletion.create(**ask)
print(openai.__version__, whole.choices[0].message.content, whole.usage.completion_tokens > 0)
parts = openai.ChatCompletion.create(stream=True, **ask)
print("".join(part.choices[0].delta.get("content") or "" for part in parts))
print([model.id for model in openai.Model.list().data])
try:
    openai.ChatCompletion.create(**ask | {"temperature": 9})
except openai.error.InvalidRequestError as error:
    print(error.param)
"""


@pytest.mark.net
def test_openai_028_itself(address: str, tmp_path: Path) -> None:
    """Installed into a folder of its own, since the new one has its name."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tmp_path)]
    subprocess.run([*install, "openai==0.28.1"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", OLD_PROGRAM, address], check=True, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "0.28.1 Hello, 世界! True", "Hello, 世界!", "['pocket']", "temperature",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def chain(address: str) -> ChatOpenAI:
    return ChatOpenAI(
        model="deepseek-chat", openai_api_base=f"{address}/v1", openai_api_key="sk-test",  # type: ignore[call-arg]
        max_retries=0,
    )  # fmt: skip


def test_langchain(chain: ChatOpenAI) -> None:
    answer = chain.invoke([HumanMessage("Hi")])
    assert answer.content == "Hello, 世界!"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == len(TOKENIZER.encode("Hello, 世界!"))
    assert "".join(str(one.content) for one in chain.stream("Hi")) == "Hello, 世界!"


def test_langchain_tools_and_structures(chain: ChatOpenAI) -> None:
    answer = chain.bind_tools([TOOL]).invoke("Hi")
    assert [(one["name"], one["args"]) for one in answer.tool_calls] == [("add", {"a": 1, "b": 2})]
    for method in ("json_schema", "function_calling"):
        made = chain.with_structured_output(Person, method=method)
        assert made.invoke("Hi") == Person(name="Ann", age=7)
