"""``/v1/messages`` over a scripted engine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv2.engine.request import OverloadedError, Request
from dsv2.service.serving import EngineGoneError
from dsv2.service.web.errors import ApiError
from dsv2.service.worker.wire import Tokens
from dsv2.tokenizer import special
from tests.service.asgi import Reply, ask
from tests.service.fakes import Site, Step, make_site, pocket_tokenizer, words
from tests.service.test_tool_stream import CALL, answer_ids

URL = "/v1/messages"
TOKENIZER = pocket_tokenizer()
HI: dict[str, Any] = {
    "model": "pocket", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}],
}  # fmt: skip
TOOL = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
IDS = answer_ids("Let me see. ", CALL, ("get_weather", "{}"))


@pytest.fixture(scope="module")
def site() -> Site:
    return make_site(words(TOKENIZER, "Hello, 世界!"), TOKENIZER)


def last_request(site: Site) -> Request:
    return site.engine.requests[-1]


def prompt(site: Site) -> str:
    return site.tokenizer.decode(last_request(site).prompt_ids, skip_special_tokens=False)


def events(reply: Reply) -> list[dict[str, Any]]:
    """The events, whose names are their types."""
    found = []
    *blocks, end = reply.body.decode().split("\n\n")
    assert end == ""
    for block in blocks:
        if block.startswith(": "):
            continue
        name, data = block.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append(value)
    return found


def folded(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream's events make; checks their order."""
    start, *rest = [one for one in found if one["type"] != "ping"]
    assert start["type"] == "message_start"
    message: dict[str, Any] = start["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    content: list[dict[str, Any]] = message["content"]
    arguments: dict[int, str] = {}
    is_open = False
    for event in rest:
        match event["type"]:
            case "content_block_start":
                assert not is_open
                is_open = True
                assert event["index"] == len(content)
                content.append(event["content_block"])
            case "content_block_delta":
                assert is_open
                assert event["index"] == len(content) - 1
                delta = event["delta"]
                if delta["type"] == "text_delta":
                    content[-1]["text"] += delta["text"]
                else:
                    assert delta["type"] == "input_json_delta"
                    arguments.setdefault(event["index"], "")
                    arguments[event["index"]] += delta["partial_json"]
            case "content_block_stop":
                assert is_open
                is_open = False
            case "message_delta":
                assert not is_open
                message |= event["delta"]
                message["usage"] = event["usage"]
            case other:
                assert other == "message_stop"
                assert event is rest[-1]
    for index, text in arguments.items():
        try:
            content[index]["input"] = json.loads(text)
        except ValueError:  # cut off
            content[index]["input"] = ...
    return message


def text_of(message: dict[str, Any]) -> str:
    return "".join(one["text"] for one in message["content"] if one["type"] == "text")


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    """Names and inputs; ``...`` is one that was cut off."""
    return [(one["name"], one["input"]) for one in message["content"] if one["type"] != "text"]


def tool_site(ids: list[int], finish: str = "stop", split: tuple[int, ...] = ()) -> Site:
    """An engine that says ``ids``, in messages that end behind the places of ``split``."""

    def script(request: Request) -> Iterable[Step]:
        cuts = sorted({place for place in split if 0 < place < len(ids)} | {len(ids)})
        start = 0
        for cut in cuts:
            yield Tokens(request.id, ids[start:cut], None, finish if cut == len(ids) else None)
            start = cut

    return make_site(script, TOKENIZER)


@pytest.mark.parametrize("path", [URL, "/anthropic/v1/messages"])
def test_a_message(site: Site, path: str) -> None:
    reply = ask(site.app, path, HI)
    assert reply.status == 200
    assert reply.json == {
        "id": "msg_" + reply.headers["x-request-id"],
        "type": "message",
        "role": "assistant",
        "model": "pocket",
        "content": [{"type": "text", "text": "Hello, 世界!"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "output_tokens": len(TOKENIZER.encode("Hello, 世界!")),
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
        },
    }
    assert prompt(site) == f"{special.BOS}{special.USER}Hi{special.ASSISTANT}"
    assert site.admission.asked[-1] == ("pocket", 5, 9)
    assert site.admission.tickets[-1].closed == ["stop"]


def test_a_stream_is_the_message_in_pieces(site: Site) -> None:
    reply = ask(site.app, URL, HI | {"stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = events(reply)
    assert [one["type"] for one in found if one["type"] != "content_block_delta"] == [
        "message_start", "ping", "content_block_start", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    whole = ask(site.app, URL, HI).json
    assert folded(found) | {"id": ""} == whole | {"id": ""}


def test_cached_tokens_are_counted_apart() -> None:
    made = make_site(words(TOKENIZER, "Hello", cached=130), TOKENIZER)
    long = HI | {"messages": [{"role": "user", "content": "word " * 200}]}
    usage = ask(made.app, URL, long).json["usage"]
    size = len(last_request(made).prompt_ids)
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (size - 128, 128)
    first, *_ = events(ask(made.app, URL, long | {"stream": True}))
    assert first["message"]["usage"] == usage | {"output_tokens": 0}


@pytest.mark.parametrize("stream", [False, True])
def test_why_it_has_ended(site: Site, stream: bool) -> None:
    def end(made: Site, body: dict[str, Any]) -> tuple[str, str | None]:
        reply = ask(made.app, URL, HI | body | {"stream": stream})
        answer = folded(events(reply)) if stream else reply.json
        return answer["stop_reason"], answer["stop_sequence"]

    assert end(site, {}) == ("end_turn", None)
    assert end(site, {"stop_sequences": ["x", "世"]}) == ("stop_sequence", "世")
    assert end(tool_site(IDS), {"tools": [TOOL]}) == ("tool_use", None)
    cut = make_site(words(TOKENIZER, "Hello", "length"), TOKENIZER)
    assert end(cut, {}) == ("max_tokens", None)


def test_parameters_arrive(site: Site) -> None:
    given = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop_sequences": ["@"],
        "metadata": {"user_id": "x"}, "thinking": {"type": "disabled"},
    }  # fmt: skip
    assert ask(site.app, URL, HI | given).status == 200
    params = last_request(site).params
    assert (params.temperature, params.top_p, params.top_k) == (0.5, 0.9, 5)
    assert (params.stops, params.max_tokens) == (("@",), 9)
    assert (last_request(site).tenant, last_request(site).salt) == ("a1", "a1")


def test_turns_of_every_kind(site: Site) -> None:
    use = [
        {"type": "tool_use", "id": f"toolu_{place}", "name": "f", "input": {"n": place}}
        for place in range(2)
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1",
         "content": [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]},
        {"type": "tool_result", "tool_use_id": "toolu_0", "content": "41", "is_error": True},
        {"type": "text", "text": "Well?"},
    ]  # fmt: skip
    body = HI | {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "A"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Hm."}, *use]},
            {"role": "user", "content": results},
            {"role": "assistant", "content": "It i"},
        ],
    }
    assert ask(site.app, URL, body).status == 200
    text = prompt(site)
    assert text.startswith(f"{special.BOS}Be brief.{special.USER}A{special.ASSISTANT}Hm.")
    assert '{"n": 0}' in text
    assert text.index("41") < text.index("42")  # as the calls stand
    assert text.endswith(f"{special.USER}Well?{special.ASSISTANT}It i")


def test_text_never_becomes_control_tokens(site: Site) -> None:
    """Fault F08."""
    hostile = "".join(special.ALL)
    halves = [{"type": "text", "text": hostile[:9]}, {"type": "text", "text": hostile[9:]}]
    body = HI | {"system": halves, "messages": [{"role": "user", "content": halves}]}
    assert ask(site.app, URL, body).status == 200
    made = [one for one in last_request(site).prompt_ids if site.tokenizer.is_special(one)]
    names = (special.BOS, special.USER, special.ASSISTANT)
    assert made == [site.tokenizer.special_ids[name] for name in names]


def test_tool_calls() -> None:
    made = tool_site(IDS)
    answer = ask(made.app, URL, HI | {"tools": [TOOL]}).json
    text, *calls = answer["content"]
    assert text == {"type": "text", "text": "Let me see. "}
    assert [(call["name"], call["input"]) for call in calls] == [
        (CALL[0], json.loads(CALL[1])), ("get_weather", {}),
    ]  # fmt: skip
    assert all(call["id"].startswith("toolu_") for call in calls)
    assert '"name": "get_weather"' in prompt(made)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, len(IDS)), max_size=len(IDS)), st.integers(0, 30))
def test_streamed_calls_are_the_whole_ones_under_every_split(split: list[int], cut: int) -> None:
    ids, finish = IDS[: len(IDS) - cut], "length" if cut else "stop"
    made = tool_site(ids, finish, tuple(split))
    whole = ask(made.app, URL, HI | {"tools": [TOOL]}).json
    streamed = folded(events(ask(made.app, URL, HI | {"tools": [TOOL], "stream": True})))
    assert streamed["stop_reason"] == whole["stop_reason"] == ("max_tokens" if cut else "tool_use")
    assert text_of(streamed) == text_of(whole)
    mine, other = calls_of(streamed), calls_of(whole)
    assert [name for name, _ in mine] == [name for name, _ in other]
    assert all(one in (two, ...) for (_, one), (_, two) in zip(mine, other, strict=True))


def test_words_behind_a_call_are_not_lost() -> None:
    begin, end = (TOKENIZER.special_ids[name] for name in special.CALLS[:2])
    ids = [*answer_ids("", CALL), *TOKENIZER.encode(" Done."), begin, end, TOKENIZER.eos_id]
    streamed = folded(
        events(ask(tool_site(ids).app, URL, HI | {"tools": [TOOL], "stream": True}))
    )  # fmt: skip
    whole = ask(tool_site(ids).app, URL, HI | {"tools": [TOOL]}).json
    for answer in (streamed, whole):
        assert text_of(answer) == " Done."


@pytest.mark.parametrize(
    ("choice", "kind", "told"),
    [({"type": "any"}, "grammar", True), ({"type": "tool", "name": "get_weather"}, "grammar", True),
     ({"type": "auto"}, None, True), ({"type": "none"}, None, False)],
)  # fmt: skip
def test_tool_choice(choice: dict[str, Any], kind: str | None, told: bool) -> None:
    made = tool_site(IDS)
    assert ask(made.app, URL, HI | {"tools": [TOOL], "tool_choice": choice}).status == 200
    structure = last_request(made).params.structure
    assert (structure and structure.kind) == kind
    assert ("get_weather" in prompt(made)) == told


def test_one_call_alone() -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    made = tool_site(IDS)
    answer = ask(made.app, URL, HI | {"tools": [TOOL], "tool_choice": choice}).json
    assert [one["type"] for one in answer["content"]] == ["text", "tool_use"]


@pytest.mark.parametrize("base", ["", "/anthropic"])
def test_count_tokens(site: Site, base: str) -> None:
    before = len(site.engine.requests)
    for body in (HI, HI | {"system": "Be brief.", "tools": [TOOL]}):
        counted = ask(site.app, f"{base}/v1/messages/count_tokens", body).json
        assert len(site.engine.requests) == before
        usage = ask(site.app, URL, body).json["usage"]
        assert counted == {"input_tokens": usage["input_tokens"]}
        before += 1


# Errors


def error_of(reply: Reply) -> tuple[int, str, str]:
    assert set(reply.json) == {"type", "error"}
    assert reply.json["type"] == "error"
    assert set(reply.json["error"]) == {"type", "message"}
    return reply.status, reply.json["error"]["type"], reply.json["error"]["message"]


def turn(*content: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(content)}]}


RESULT = {"type": "tool_result", "tool_use_id": "toolu_9", "content": "x"}
USE = {"type": "tool_use", "id": "toolu_9", "name": "f", "input": {}}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": 1.5}, "temperature"), ({"top_p": 2}, "top_p"), ({"top_k": -2}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences"), ({"stop_sequences": "x"}, "stop_sequences"),
    ({"messages": []}, "messages"), (turn(role="system"), "messages[0].role"),
    (turn({"type": "image", "source": {}}), "messages[0].content[0]"),
    (turn({"type": "document", "source": {}}), "messages[0].content[0]"),
    (turn({"type": "text"}), "messages[0].content[0].text"),
    (turn({**RESULT, "content": [{"type": "image"}]}), "messages[0].content[0].content[0]"),
    (turn(RESULT), "messages[0].content[0].tool_use_id"), (turn(USE), "messages[0].content[0]"),
    (turn(RESULT, role="assistant"), "messages[0].content[0]"),
    ({"messages": [*turn(USE, role="assistant")["messages"], *HI["messages"]]}, "messages[1]"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"), ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type"),
    ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "param"), BAD)
def test_what_is_wrong_is_named(site: Site, given: dict[str, Any], param: str) -> None:
    before = len(site.engine.requests)
    status, kind, message = error_of(ask(site.app, URL, HI | given))
    assert (status, kind) == (400, "invalid_request_error")
    assert message.startswith(param)
    assert len(site.engine.requests) == before


def test_errors_before_the_route(site: Site) -> None:
    for path in (URL, f"{URL}/count_tokens", "/anthropic/v1/messages"):
        assert error_of(ask(site.app, path, HI, headers={}))[:2] == (401, "authentication_error")
        reply = ask(site.app, path, HI | {"model": "gpt-9"})
        assert error_of(reply)[:2] == (404, "not_found_error")
        assert error_of(ask(site.app, path, b"{"))[:2] == (400, "invalid_request_error")
        assert error_of(ask(site.app, path, method="GET"))[0] == 405
        packed = ask(site.app, path, HI, headers={"content-encoding": "gzip"})
        assert error_of(packed)[0] == 415
    assert error_of(ask(site.app, "/anthropic/v1/nothing", HI))[:2] == (404, "not_found_error")
    small = make_site(words(TOKENIZER, "x"), TOKENIZER, max_body_bytes=50)
    assert error_of(ask(small.app, URL, HI))[:2] == (413, "request_too_large")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "kind"), [(402, "billing_error"), (403, "permission_error"),
                         (429, "rate_limit_error"), (503, "overloaded_error")],
)  # fmt: skip
def test_what_admission_refuses(status: int, kind: str, stream: bool) -> None:
    made = make_site(words(TOKENIZER, "x"), TOKENIZER)
    made.admission.refusal = ApiError(status, "No", headers={"Retry-After": "3"})
    reply = ask(made.app, URL, HI | {"stream": stream})
    assert error_of(reply) == (status, kind, "No")
    assert reply.headers["retry-after"] == "3"


def test_an_engine_that_fails() -> None:
    def script(request: Request) -> Iterable[Step]:
        yield Tokens(request.id, TOKENIZER.encode("Hello")[:1])
        yield EngineGoneError("gone")

    made = make_site(script, TOKENIZER)
    assert error_of(ask(made.app, URL, HI))[:2] == (503, "overloaded_error")
    *_, last = events(ask(made.app, URL, HI | {"stream": True}))
    assert last["type"] == "error"
    assert last["error"]["type"] == "overloaded_error"
    full = make_site(lambda request: [OverloadedError("full")], TOKENIZER)
    for stream in (False, True):
        reply = ask(full.app, URL, HI | {"stream": stream})
        assert error_of(reply)[:2] == (503, "overloaded_error")
