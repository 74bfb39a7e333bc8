"""``/responses`` over a scripted engine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv2.engine.request import OverloadedError, Request
from dsv2.service.inference.sse import Patience
from dsv2.service.serving import EngineGoneError
from dsv2.service.web.errors import ApiError
from dsv2.service.worker.wire import Tokens
from dsv2.tokenizer import special
from tests.service.asgi import ask
from tests.service.fakes import Site, Step, make_site, pocket_tokenizer, words
from tests.service.routes.test_messages import events, last_request, prompt, tool_site
from tests.service.test_tool_stream import CALL, answer_ids

URL = "/v1/responses"
TOKENIZER = pocket_tokenizer()
HI: dict[str, Any] = {"model": "pocket", "input": "Hi"}
TOOL = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
IDS = answer_ids("Let me see. ", CALL, ("get_weather", "{}"))
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}}


@pytest.fixture(scope="module")
def site() -> Site:
    return make_site(words(TOKENIZER, "Hello, 世界!"), TOKENIZER)


def anonymous(value: Any) -> Any:
    """A value without what differs between two requests."""
    if isinstance(value, dict):
        left = set(value) - {"id", "call_id", "created_at"}
        return {name: anonymous(value[name]) for name in left}
    return [anonymous(one) for one in value] if isinstance(value, list) else value


def folded(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The response at the end of a stream; checks that the other events make the same output."""
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    created, begun, *rest, last = found
    assert (created["type"], begun["type"]) == ("response.created", "response.in_progress")
    assert (created["response"]["output"], created["response"]["status"]) == ([], "in_progress")
    items: list[dict[str, Any]] = []
    text = ""
    for event in rest:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            items.append(event["item"])
            text = ""
            continue
        assert event["output_index"] == len(items) - 1
        if kind == "output_item.done":
            assert event["item"]["id"] == items[-1]["id"]
            whole = event["item"].get("arguments")
            assert text == (event["item"]["content"][0]["text"] if whole is None else whole)
            items[-1] = event["item"]
            continue
        assert event["item_id"] == items[-1]["id"]
        match kind:
            case "output_text.delta" | "function_call_arguments.delta":
                text += event["delta"]
            case "output_text.done":
                assert event["text"] == text
            case "function_call_arguments.done":
                assert (event["arguments"], event["name"]) == (text, items[-1]["name"])
            case "content_part.added":
                assert event["part"]["text"] == ""
            case other:
                assert other == "content_part.done"
                assert event["part"]["text"] == text
    response: dict[str, Any] = last["response"]
    assert last["type"] == f"response.{response['status']}"
    assert response["id"] == created["response"]["id"]
    assert response["output"] == items
    return response


@pytest.mark.parametrize("path", [URL, "/responses"])
def test_a_response(site: Site, path: str) -> None:
    reply = ask(site.app, path, HI | {"metadata": {"a": "b"}, "instructions": "Be brief."})
    assert reply.status == 200
    answer = reply.json
    assert answer["id"] == "resp_" + reply.headers["x-request-id"]
    assert (answer["object"], answer["status"]) == ("response", "completed")
    (item,) = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [
        {"type": "output_text", "text": "Hello, 世界!", "annotations": [], "logprobs": []}
    ]
    size = len(TOKENIZER.encode("Hello, 世界!"))
    asked = len(last_request(site).prompt_ids)
    assert answer["usage"] == {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": size,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": asked + size,
    }
    assert (answer["metadata"], answer["instructions"]) == ({"a": "b"}, "Be brief.")
    assert prompt(site) == f"{special.BOS}Be brief.{special.USER}Hi{special.ASSISTANT}"
    assert site.admission.tickets[-1].closed == ["stop"]


def test_a_stream_is_the_response_in_pieces(site: Site) -> None:
    reply = ask(site.app, URL, HI | {"stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = events(reply)
    kinds = [one["type"].removeprefix("response.") for one in found]
    assert [one for one in kinds if one != "output_text.delta"] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert anonymous(folded(found)) == anonymous(ask(site.app, URL, HI).json)


def test_parameters_arrive(site: Site) -> None:
    given = {
        "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 7, "store": False, "user": "x",
        "reasoning": {"effort": "low"}, "truncation": "disabled", "include": [],
    }  # fmt: skip
    answer = ask(site.app, URL, HI | given).json
    params = last_request(site).params
    assert (params.temperature, params.top_p, params.max_tokens) == (0.5, 0.9, 7)
    assert (answer["temperature"], answer["top_p"], answer["max_output_tokens"]) == (0.5, 0.9, 7)
    assert site.admission.asked[-1] == ("pocket", 5, 7)
    assert ask(site.app, URL, HI).status == 200
    assert last_request(site).params.max_tokens == 2048 - 5


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_off(stream: bool) -> None:
    made = make_site(words(TOKENIZER, "Hello", "length"), TOKENIZER)
    reply = ask(made.app, URL, HI | {"stream": stream})
    answer = folded(events(reply)) if stream else reply.json
    assert answer["status"] == answer["output"][0]["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}


def call(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": name, "name": "f", "arguments": "{}"} | fields


def output(name: str, value: Any = "x") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": name, "output": value}


def test_items_of_every_kind(site: Site) -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "A"}, {"type": "input_text", "text": "B"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "Hm.", "annotations": []}]},
        call("c1", arguments='{"n": 1}'), call("c2", arguments='{"n": 2}'),
        output("c2", [{"type": "input_text", "text": "42"}]), output("c1", "41"),
        call("c3"), output("c3", "43"),
        {"role": "user", "content": "Well?"},
    ]  # fmt: skip
    assert ask(site.app, URL, {"model": "pocket", "input": items}).status == 200
    text = prompt(site)
    assert text.startswith(f"{special.BOS}Be brief.{special.USER}AB{special.ASSISTANT}Hm.")
    places = [text.index(part) for part in ('{"n": 1}', '{"n": 2}', "41", "42", "43")]
    assert places == sorted(places)
    assert text.count(special.CALLS[0]) == 2
    assert text.endswith(f"{special.USER}Well?{special.ASSISTANT}")


def test_text_never_becomes_control_tokens(site: Site) -> None:
    """Fault F08."""
    hostile = "".join(special.ALL)
    assert ask(site.app, URL, HI | {"input": hostile, "instructions": hostile}).status == 200
    made = [one for one in last_request(site).prompt_ids if site.tokenizer.is_special(one)]
    names = (special.BOS, special.USER, special.ASSISTANT)
    assert made == [site.tokenizer.special_ids[name] for name in names]


def test_function_calls() -> None:
    made = tool_site(IDS)
    answer = ask(made.app, URL, HI | {"tools": [TOOL]}).json
    text, *calls = answer["output"]
    assert text["content"][0]["text"] == "Let me see. "
    assert [(one["type"], one["name"], one["arguments"]) for one in calls] == [
        ("function_call", *CALL), ("function_call", "get_weather", "{}"),
    ]  # fmt: skip
    assert len({one["call_id"] for one in calls}) == len({one["id"] for one in calls}) == 2
    assert '"name": "get_weather"' in prompt(made)
    assert answer["tools"] == [TOOL]
    back = [{"role": "user", "content": "Hi"}, *answer["output"]]
    back += [output(one["call_id"]) for one in calls]
    assert ask(made.app, URL, HI | {"input": back}).status == 200


def text_of(answer: dict[str, Any]) -> str:
    return "".join(
        item["content"][0]["text"] for item in answer["output"] if item["type"] == "message"
    )


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, len(IDS)), max_size=len(IDS)), st.integers(0, 30))
def test_streamed_calls_are_the_whole_ones_under_every_split(split: list[int], cut: int) -> None:
    ids, finish = IDS[: len(IDS) - cut], "length" if cut else "stop"
    made = tool_site(ids, finish, tuple(split))
    whole = ask(made.app, URL, HI | {"tools": [TOOL]}).json
    streamed = folded(events(ask(made.app, URL, HI | {"tools": [TOOL], "stream": True})))
    assert streamed["status"] == whole["status"] == ("incomplete" if cut else "completed")
    assert text_of(streamed) == text_of(whole)
    one, other = (
        [anonymous(item) for item in answer["output"] if item["type"] == "function_call"]
        for answer in (streamed, whole)
    )
    assert one == other


def test_words_behind_a_call_are_a_message_of_their_own() -> None:
    begin, end = (TOKENIZER.special_ids[name] for name in special.CALLS[:2])
    ids = [*answer_ids("", CALL), *TOKENIZER.encode(" Done."), begin, end, TOKENIZER.eos_id]
    made = tool_site(ids, split=tuple(range(len(ids))))
    streamed = folded(events(ask(made.app, URL, HI | {"tools": [TOOL], "stream": True})))
    assert [item["type"] for item in streamed["output"]] == ["function_call", "message"]
    assert text_of(streamed) == " Done."


@pytest.mark.parametrize(
    ("choice", "kind", "told"),
    [("required", "grammar", True), ({"type": "function", "name": "get_weather"}, "grammar", True),
     ("auto", None, True), ("none", None, False)],
)  # fmt: skip
def test_tool_choice(choice: Any, kind: str | None, told: bool) -> None:
    made = tool_site(IDS)
    reply = ask(made.app, URL, HI | {"tools": [TOOL], "tool_choice": choice})
    assert reply.json["tool_choice"] == choice
    structure = last_request(made).params.structure
    assert (structure and structure.kind) == kind
    assert ("get_weather" in prompt(made)) == told


def test_one_call_alone() -> None:
    body = HI | {"tools": [TOOL], "parallel_tool_calls": False}
    answer = ask(tool_site(IDS).app, URL, body).json
    assert [item["type"] for item in answer["output"]] == ["message", "function_call"]


@pytest.mark.parametrize(
    ("form", "kind"),
    [({"type": "text"}, None), ({"type": "json_object"}, "json_object"),
     ({"type": "json_schema", "name": "p", "schema": PERSON, "strict": True}, "json_schema")],
)  # fmt: skip
def test_formats(site: Site, form: dict[str, Any], kind: str | None) -> None:
    answer = ask(site.app, URL, HI | {"text": {"format": form, "verbosity": "low"}}).json
    assert answer["text"] == {"format": form}
    structure = last_request(site).params.structure
    assert (structure and structure.kind) == kind
    if kind == "json_schema":
        assert structure is not None
        assert json.loads(structure.text) == PERSON


# Errors


def items(*given: dict[str, Any]) -> dict[str, Any]:
    return {"input": list(given)}


USER = {"role": "user", "content": "x"}
FORMAT = {"text": {"format": {"type": "json_object"}}}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"), ({"input": []}, "input"), ({"input": [3]}, "input[0]"),
    (items({"type": "item_reference", "id": "x"}), "input[0]"),
    (items({"type": "reasoning", "summary": []}), "input[0]"),
    (items({"role": "user", "content": [{"type": "input_image"}]}), "input[0].content[0]"),
    (items({"role": "user", "content": [{"type": "input_file"}]}), "input[0].content[0]"),
    (items({"role": "tool", "content": "x"}), "input[0].role"),
    (items({"role": "user"}), "input[0].content"),
    (items(output("c1")), "input[0].call_id"), (items(call("c1")), "input"),
    (items(call("c1"), USER), "input"), (items(call("c1"), call("c1")), "input[1].call_id"),
    (items(call("c1"), output("c1"), output("c1")), "input[2].call_id"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"store": True}, "store"),
    ({"background": True}, "background"), ({"conversation": "c"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"), ({"top_logprobs": 2}, "top_logprobs"),
    ({"truncation": "auto"}, "truncation"), ({"include": ["x"]}, "include[0]"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type"),
    ({"tools": [TOOL, TOOL]}, "tools"), ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "required", **FORMAT}, "text.format"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"max_output_tokens": 0}, "max_output_tokens"), ({"temperature": 3}, "temperature"),
    ({"top_p": -1}, "top_p"), ({"metadata": {"a": 1}}, "metadata.a"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "param"), BAD)
def test_what_is_wrong_is_named(site: Site, given: dict[str, Any], param: str) -> None:
    before = len(site.engine.requests)
    reply = ask(site.app, URL, HI | given)
    assert reply.status == 400
    assert reply.error["param"] == param
    assert reply.error["message"].startswith(param)
    assert len(site.engine.requests) == before


def test_built_in_tools_are_refused_in_plain_words(site: Site) -> None:
    error = ask(site.app, URL, HI | {"tools": [{"type": "web_search"}]}).error
    assert error["message"] == (
        "tools[0].type: Built-in tools are not available here, allowed is 'function'"
    )


def test_too_long_for_the_context(site: Site) -> None:
    error = ask(site.app, URL, HI | {"max_output_tokens": 10**5}).error
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


def test_a_structure_that_cannot_be_compiled() -> None:
    def script(request: Request) -> Iterable[Step]:
        yield Tokens(request.id, [], None, "error", error="bad schema")

    made = make_site(script, TOKENIZER)
    assert ask(made.app, URL, HI | FORMAT).error["param"] == "text.format"
    forced = HI | {"tools": [TOOL], "tool_choice": "required"}
    assert ask(made.app, URL, forced).error["param"] == "tool_choice"


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_before_the_answer(stream: bool) -> None:
    made = make_site(lambda request: [OverloadedError("full")], TOKENIZER)
    assert ask(made.app, URL, HI | {"stream": stream}).status == 503
    assert ask(made.app, URL, HI | {"stream": stream}, headers={}).error["code"] == (
        "authentication_error"
    )
    made.admission.refusal = ApiError(429, "Slow down", headers={"Retry-After": "3"})
    reply = ask(made.app, URL, HI | {"stream": stream})
    assert (reply.status, reply.error["type"]) == (429, "rate_limit_error")


def test_an_engine_that_fails_midway() -> None:
    def script(request: Request) -> Iterable[Step]:
        yield Tokens(request.id, TOKENIZER.encode("Hello")[:1])
        yield EngineGoneError("gone")

    made = make_site(script, TOKENIZER)
    assert ask(made.app, URL, HI).status == 503
    *_, last = events(ask(made.app, URL, HI | {"stream": True}))
    assert last["type"] == "response.failed"
    failed = last["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert failed["output"][0]["content"][0]["text"] == "Hello"
    assert failed["output"][0]["status"] == "incomplete"


def test_an_engine_that_fails_while_the_client_waits() -> None:
    def script(request: Request) -> Iterable[Step]:
        yield 0.2
        yield EngineGoneError("gone")

    made = make_site(script, TOKENIZER, patience=Patience(keep_alive=0.02))
    (only,) = events(ask(made.app, URL, HI | {"stream": True}))
    assert (only["type"], only["code"]) == ("error", "engine_unavailable")
