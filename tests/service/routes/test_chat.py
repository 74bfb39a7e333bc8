"""``/chat/completions`` over a scripted engine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv2.engine.request import Request
from dsv2.service.worker.wire import Logprobs, Tokens
from dsv2.tokenizer import Tokenizer, special
from tests.service.asgi import ask, folded
from tests.service.fakes import Script, Site, Step, make_site, pocket_tokenizer, words
from tests.service.test_tool_stream import CALL, answer_ids

URL = "/v1/chat/completions"
HI = {"model": "pocket", "messages": [{"role": "user", "content": "Hi"}]}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def site() -> Site:
    tokenizer = pocket_tokenizer()
    return make_site(words(tokenizer, "Hello, 世界!", cached=130), tokenizer)


def last_request(site: Site) -> Request:
    return site.engine.requests[-1]


def prompt(site: Site) -> str:
    return site.tokenizer.decode(last_request(site).prompt_ids, skip_special_tokens=False)


@pytest.mark.parametrize("path", ["/chat/completions", URL, "/beta/chat/completions"])
def test_an_answer_under_every_address(site: Site, path: str) -> None:
    reply = ask(site.app, path, HI)
    assert reply.status == 200
    answer = reply.json
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "pocket"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello, 世界!"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["id"] == "chatcmpl-" + reply.headers["x-request-id"]
    assert reply.headers["x-ratelimit-limit-requests"] == "9"
    assert site.admission.tickets[-1].closed == ["stop"]


def test_usage_in_both_spellings_and_whole_blocks(site: Site) -> None:
    long = {**HI, "messages": [{"role": "user", "content": "word " * 200}]}
    usage = ask(site.app, URL, long).json["usage"]
    size = len(last_request(site).prompt_ids)
    assert usage == {
        "prompt_tokens": size,
        "completion_tokens": len(site.tokenizer.encode("Hello, 世界!")),
        "total_tokens": size + len(site.tokenizer.encode("Hello, 世界!")),
        "prompt_tokens_details": {"cached_tokens": 128},
        "prompt_cache_hit_tokens": 128,
        "prompt_cache_miss_tokens": size - 128,
    }
    assert site.admission.tickets[-1].noted == (size, 128, usage["completion_tokens"])


def test_a_stream_is_the_answer_in_pieces(site: Site) -> None:
    reply = ask(site.app, URL, {**HI, "stream": True, "stream_options": {"include_usage": True}})
    *chunks, usage, done = reply.events
    assert done == "[DONE]"
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["prompt_cache_hit_tokens"] == 128
    assert folded(chunks)[0] == {
        "content": "Hello, 世界!", "calls": [], "finish": "stop", "logprobs": [],
    }  # fmt: skip
    plain = ask(site.app, URL, {**HI, "stream": True}).events
    assert all("usage" not in chunk for chunk in plain[:-1])


def test_choices_share_the_prompt_and_have_seeds_of_their_own(site: Site) -> None:
    before = len(site.engine.requests)
    answer = ask(site.app, URL, {**HI, "n": 10, "seed": 5}).json
    assert [choice["index"] for choice in answer["choices"]] == list(range(10))
    made = site.engine.requests[before:]
    assert made[0].params.seed == 5
    assert len({request.params.seed for request in made}) == len(made) == 10
    assert len({request.id for request in made}) == 10
    assert answer["usage"]["prompt_tokens"] == len(made[0].prompt_ids)
    again = len(site.engine.requests)
    ask(site.app, URL, {**HI, "n": 10, "seed": 5})
    assert [one.params.seed for one in site.engine.requests[again:]] == [
        one.params.seed for one in made
    ]


def test_the_caller_is_tenant_and_salt(site: Site) -> None:
    ask(site.app, URL, {**HI, "cache_salt": "mine", "priority": 900, "user": "x"})
    made = last_request(site)
    assert (made.tenant, made.salt, made.priority) == ("a1", "a1", 0)


def test_a_stop_string_ends_the_answer_and_the_request() -> None:
    tokenizer = pocket_tokenizer()
    script = words(tokenizer, "Hello, 世界!" + " and so on" * 100, cached=130)
    site = make_site(script, tokenizer)
    for stream in (False, True):
        reply = ask(site.app, URL, {**HI, "stop": ["世"], "stream": stream})
        if stream:
            answer = folded(reply.events)[0]
            found = (answer["content"], answer["finish"])
        else:
            choice = reply.json["choices"][0]
            found = (choice["message"]["content"], choice["finish_reason"])
        assert found == ("Hello, ", "stop")
        assert site.engine.cancelled[-1] == last_request(site).id
        assert site.admission.tickets[-1].closed == ["stop"]
        noted = site.admission.tickets[-1].noted
        assert noted is not None
        assert noted[2] == len(site.tokenizer.encode("Hello, 世"))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, 2043), ({"max_tokens": 7}, 7), ({"max_completion_tokens": 8}, 8),
     ({"max_tokens": 7, "max_completion_tokens": 8}, 8), ({"max_tokens": None}, 2043)],
)  # fmt: skip
def test_max_tokens(site: Site, given: dict[str, Any], wanted: int) -> None:
    assert ask(site.app, URL, HI | given).status == 200
    assert last_request(site).params.max_tokens == wanted
    assert site.admission.asked[-1] == ("pocket", 5, wanted)


def test_sampling_parameters_arrive(site: Site) -> None:
    given = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "presence_penalty": 1,
        "frequency_penalty": -1.5, "repetition_penalty": 1.1, "min_tokens": 1, "ignore_eos": True,
        "stop_token_ids": [7], "logit_bias": {"5": -100, "6": 3.5}, "stop": [], "seed": 1,
        "max_tokens": 9,
    }  # fmt: skip
    assert ask(site.app, URL, HI | given).status == 200
    params = last_request(site).params
    for name in set(given) - {"logit_bias", "stop", "stop_token_ids"}:
        assert getattr(params, name) == given[name], name
    assert (params.logit_bias, params.stops) == ({5: -100, 6: 3.5}, ())
    assert tuple(params.stop_token_ids) == (7,)
    assert ask(site.app, URL, HI | {"top_k": -1, "stop": None}).status == 200
    assert last_request(site).params.top_k == 0


MESSAGES = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, t"}]


@pytest.mark.parametrize(
    ("flags", "mark", "goes_on"),
    [({}, {}, True), ({}, {"prefix": True}, True), ({"continue_final_message": True}, {}, True),
     ({"continue_final_message": True, "add_generation_prompt": False}, {}, True),
     ({"continue_final_message": False}, {}, False), ({"add_generation_prompt": True}, {}, False)],
)  # fmt: skip
def test_an_assistants_last_message_is_continued(
    site: Site, flags: dict[str, Any], mark: dict[str, Any], goes_on: bool
) -> None:
    messages = [MESSAGES[0], MESSAGES[1] | mark]
    assert ask(site.app, URL, {"model": "pocket", "messages": messages, **flags}).status == 200
    turn = f"{special.BOS}{special.USER}Count{special.ASSISTANT}One, t"
    assert prompt(site) == (turn if goes_on else f"{turn}{special.EOS}{special.ASSISTANT}")


def test_turns_of_every_kind(site: Site) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
        {"role": "user", "content": "C", "name": "bob"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
    ]  # fmt: skip
    assert ask(site.app, URL, {"model": "pocket", "messages": messages}).status == 200
    text = prompt(site)
    assert text.startswith(f"{special.BOS}Be brief.{special.USER}AB{special.USER}C")
    assert text.endswith(f"{special.OUTPUT_BEGIN}42{special.OUTPUT_END}{special.OUTPUTS_END}")


def test_text_never_becomes_control_tokens(site: Site) -> None:
    """Fault F08."""
    hostile = "".join(special.ALL)
    body = {"model": "pocket", "messages": [{"role": role, "content": [
        {"type": "text", "text": hostile[:9]}, {"type": "text", "text": hostile[9:]}]}
        for role in ("system", "user")]}  # fmt: skip
    assert ask(site.app, URL, body).status == 200
    made = [one for one in last_request(site).prompt_ids if site.tokenizer.is_special(one)]
    names = (special.BOS, special.USER, special.ASSISTANT)
    assert made == [site.tokenizer.special_ids[name] for name in names]


# Tools


def tool_site(ids: list[int], finish: str = "stop", split: tuple[int, ...] = ()) -> Site:
    """An engine that says ``ids``, in messages that end behind the places of ``split``."""

    def script(request: Request) -> Iterable[Step]:
        cuts = sorted({place for place in split if 0 < place < len(ids)} | {len(ids)})
        start = 0
        for cut in cuts:
            yield Tokens(request.id, ids[start:cut], None, finish if cut == len(ids) else None)
            start = cut

    return make_site(script, TOKENIZER)


TOKENIZER = pocket_tokenizer()
IDS = answer_ids("Let me see. ", CALL, ("get_weather", "{}"))


def test_tool_calls_whole(site: Site) -> None:
    made = tool_site([*IDS, TOKENIZER.eos_id])
    choice = ask(made.app, URL, {**HI, "tools": [TOOL]}).json["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see. "
    calls = choice["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["get_weather"] * 2
    assert json.loads(calls[0]["function"]["arguments"]) == json.loads(CALL[1])
    assert '"name": "get_weather"' in prompt(made)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, len(IDS)), max_size=len(IDS)), st.integers(0, 30))
def test_streamed_calls_are_the_whole_ones_under_every_split(split: list[int], cut: int) -> None:
    ids, finish = IDS[: len(IDS) - cut], "length" if cut else "stop"
    made = tool_site(ids, finish, tuple(split))
    whole = ask(made.app, URL, {**HI, "tools": [TOOL]}).json["choices"][0]
    streamed = folded(ask(made.app, URL, {**HI, "tools": [TOOL], "stream": True}).events)[0]
    calls = whole["message"].get("tool_calls", [])
    assert streamed["content"] == whole["message"]["content"]
    assert streamed["calls"] == [
        [call["function"]["name"], call["function"]["arguments"]] for call in calls
    ]
    assert streamed["finish"] == whole["finish_reason"] == (finish if cut else "tool_calls")


def test_tool_choice_none_and_one_call_alone() -> None:
    made = tool_site(IDS)
    choice = ask(made.app, URL, {**HI, "tools": [TOOL], "tool_choice": "none"}).json["choices"][0]
    assert "tool_calls" not in choice["message"]
    assert "get_weather" not in prompt(made)
    body = {**HI, "tools": [TOOL], "parallel_tool_calls": False}
    choice = ask(made.app, URL, body).json["choices"][0]
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_forced_calls_are_a_grammar(choice: Any) -> None:
    made = tool_site(IDS)
    assert ask(made.app, URL, {**HI, "tools": [TOOL], "tool_choice": choice}).status == 200
    structure = last_request(made).params.structure
    assert structure is not None
    assert structure.kind == "grammar"
    assert "get_weather" in structure.text
    assert ("(" in structure.text.splitlines()[0]) == (choice == "required")


# Structures and logprobs


@pytest.mark.parametrize(
    ("given", "kind"),
    [({"response_format": {"type": "json_object"}}, "json_object"),
     ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
      "json_schema"),
     ({"regex": "a+"}, "regex"), ({"grammar": 'start: "a"'}, "grammar"),
     ({"response_format": {"type": "text"}}, None)],
)  # fmt: skip
def test_structures(site: Site, given: dict[str, Any], kind: str | None) -> None:
    assert ask(site.app, URL, HI | given).status == 200
    structure = last_request(site).params.structure
    assert (structure and structure.kind) == kind


def scored(text: str, tokenizer: Tokenizer) -> Script:
    ids = [*tokenizer.encode(text), tokenizer.eos_id]

    def script(request: Request) -> Iterable[Step]:
        for place, token in enumerate(ids):
            found = Logprobs(-0.5 * place, [(token, -0.5 * place), (9, -7.0), (10, -8.0)])
            finish = "stop" if place == len(ids) - 1 else None
            yield Tokens(request.id, [token], [found], finish)

    return script


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_have_text_bytes_and_the_best(stream: bool) -> None:
    made = make_site(scored("é好", TOKENIZER), TOKENIZER)
    body = {**HI, "logprobs": True, "top_logprobs": 2, "stream": stream}
    reply = ask(made.app, URL, body)
    if stream:
        entries = folded(reply.events)[0]["logprobs"]
    else:
        entries = reply.json["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == "é好"
    assert len(entries) == len(TOKENIZER.encode("é好"))  # the end of the answer is no content
    assert [len(entry["top_logprobs"]) for entry in entries] == [2] * len(entries)
    assert entries[1]["logprob"] == -0.5
    assert last_request(made).params.logprobs == 2


# Errors


def as_schema(schema: dict[str, Any]) -> dict[str, Any]:
    format_ = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return {"response_format": format_}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


BAD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1}, "temperature"), ({"temperature": 2.5}, "temperature"),
    ({"temperature": "0.5"}, "temperature"), ({"temperature": True}, "temperature"),
    ({"top_p": 1.5}, "top_p"), ({"min_p": -0.1}, "min_p"), ({"top_k": -2}, "top_k"),
    ({"presence_penalty": 3}, "presence_penalty"), ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"n": 0}, "n"), ({"n": -1}, "n"), ({"n": 10**6}, "n"), ({"n": 2**63}, "n"), ({"n": 1.5}, "n"),
    ({"n": True}, "n"), ({"n": "3"}, "n"), ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 2**63}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"min_tokens": 9, "max_tokens": 5}, "min_tokens"), ({"seed": -1}, "seed"),
    ({"top_logprobs": 5}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"), ({"logprobs": 1}, "logprobs"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"), ({"logit_bias": {"8192": 1}}, "logit_bias"),
    ({"logit_bias": {"abc": 1}}, "logit_bias"), ({"logit_bias": {"1": 101}}, "logit_bias[1]"),
    ({"logit_bias": {str(n): 1 for n in range(2000)}}, "logit_bias"),
    ({"stop_token_ids": [8192]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop": ["a"] * 65}, "stop"), ({"stop": [""]}, "stop[0]"),
    ({"stop": ["a" * 10**6]}, "stop[0]"),
    ({"stop": [1]}, "stop[0]"), ({"model": None}, "model"), ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"), ({"messages": [{"role": "king", "content": "a"}]},
                                       "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "http://x"}]}]},
     "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": "a", "prefix": True}]}, "messages[0].prefix"),
    ({"messages": [{"role": "user", "content": "a"}], "continue_final_message": True},
     "continue_final_message"),
    ({"store": True}, "store"), ({"audio": {"voice": "x"}}, "audio"), ({"modalities": ["audio"]},
                                                                     "modalities[0]"),
    ({"functions": [{"name": "f"}]}, "functions"), ({"chat_template": "x"}, "chat_template"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
    ({"guided_json": {"type": "object"}}, "guided_json"),
    ({"prompt_logprobs": 5}, "prompt_logprobs"),
    ({"tools": [TOOL] * 129}, "tools"), ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
     "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "required", "regex": "a"}, "regex"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    *((as_schema(given), "response_format") for given in (
        nested(50), {"enum": list(range(10**5))},
        {"properties": {f"p{n}": {} for n in range(3 * 10**4)}}, {"allOf": [{"multipleOf": 77777}]},
    )),
    ({"regex": "(a+)+b" * 12_000}, "regex"),
    ({"grammar": "%json" + "[" * 99 + "]" * 99}, "grammar"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(50)}}],
      "tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex"),
    ({"stream": "yes"}, "stream"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "param"), BAD, ids=[f"{n}-{bad[1]}" for n, bad in enumerate(BAD)]
)
def test_what_is_wrong_is_named(site: Site, given: dict[str, Any], param: str) -> None:
    """Faults F11 to F18, F22: nothing is computed, nothing admitted."""
    before, admitted = len(site.engine.requests), len(site.admission.tickets)
    for stream in (False, True):
        reply = ask(site.app, URL, {**HI, "stream": stream, **given})
        assert reply.status == 400
        assert (reply.error["param"], reply.error["type"]) == (param, "invalid_request_error")
    assert (len(site.engine.requests), len(site.admission.tickets)) == (before, admitted)


@pytest.mark.parametrize(
    "given",
    [{"max_tokens": 2045}, {"max_tokens": 2**31 - 1},
     {"messages": [{"role": "user", "content": "word " * 3000}]},
     {"messages": [{"role": "user", "content": "x" * 3_000_000}]}],
)  # fmt: skip
def test_too_long_says_so_in_the_words_that_clients_parse(site: Site, given: Any) -> None:
    error = ask(site.app, URL, HI | given).error
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"
    assert "maximum context length is 2048 tokens" in error["message"]
    assert "Please reduce the length of the messages or completion" in error["message"]


def test_unknown_model_and_unknown_fields(site: Site) -> None:
    reply = ask(site.app, URL, HI | {"model": "gpt-9"})
    assert reply.status == 404
    assert reply.error["code"] == "model_not_found"
    harmless = {
        "user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
        "reasoning_effort": "low", "whatever": {"x": 1}, "stream_options": None, "logit_bias": None,
        "modalities": ["text"], "prediction": None, "model": "deepseek-chat",
    }  # fmt: skip
    reply = ask(site.app, URL, HI | harmless)
    assert (reply.status, reply.json["model"]) == (200, "pocket")


def test_without_a_key_nothing_is_read(site: Site) -> None:
    reply = ask(site.app, URL, b"{", headers={})
    assert reply.status == 401
    assert reply.error["type"] == "authentication_error"
