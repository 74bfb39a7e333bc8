"""``/completions`` over a scripted engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from dsv2.engine.request import Request
from dsv2.service.worker.wire import Logprobs, Tokens
from dsv2.tokenizer import special
from tests.service.asgi import Reply, ask
from tests.service.fakes import Site, Step, make_site, pocket_tokenizer, words

URL = "/v1/completions"
TOKENIZER = pocket_tokenizer()
A, B, EOS = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0], TOKENIZER.eos_id


def scored(request: Request) -> Iterable[Step]:
    """Says ``a`` and ends; every token of the prompt has -1, every one of the answer -0.5."""
    params = request.params
    prompt: list[Logprobs | None] | None = None
    if params.prompt_logprobs is not None:
        prompt = [
            None,
            *(Logprobs(-1.0, [(one, -1.0), (B, -2.0)]) for one in request.prompt_ids[1:]),
        ]
    tokens = [A, EOS][: params.max_tokens]
    for place, token in enumerate(tokens):
        found = None if params.logprobs is None else [Logprobs(-0.5, [(token, -0.5), (B, -3.0)])]
        last = place == len(tokens) - 1
        finish = ("stop" if token == EOS else "length") if last else None
        yield Tokens(
            request.id, [token], found, finish, prompt_logprobs=prompt if place == 0 else None
        )


@pytest.fixture(scope="module")
def site() -> Site:
    return make_site(scored, TOKENIZER)


def post(site: Site, path: str = URL, **given: Any) -> Reply:
    return ask(site.app, path, {"model": "pocket", "max_tokens": 2, **given})


def last_prompt(site: Site) -> list[int]:
    return list(site.engine.requests[-1].prompt_ids)


@pytest.mark.parametrize("path", ["/completions", URL, "/beta/completions"])
@pytest.mark.parametrize(
    ("prompt", "count"), [("x", 1), (["x", "y"], 2), ([5, 6], 1), ([[5, 6], [7]], 2)]
)
def test_prompts_of_every_kind_in_prompt_major_order(
    site: Site, path: str, prompt: Any, count: int
) -> None:
    before = len(site.engine.requests)
    reply = post(site, path, prompt=prompt, n=3)
    assert [one["index"] for one in reply.json["choices"]] == list(range(3 * count))
    made = site.engine.requests[before:]
    assert sorted(one.id.rpartition("-")[2] for one in made) == [str(n) for n in range(3 * count)]
    by_index = {int(one.id.rpartition("-")[2]): one.prompt_ids for one in made}
    assert all(by_index[3 * n + k] == by_index[3 * n] for n in range(count) for k in range(3))
    assert reply.json["usage"]["prompt_tokens"] == sum(len(by_index[3 * n]) for n in range(count))


def test_text_gets_one_bos_and_tokens_are_taken_as_they_are(site: Site) -> None:
    bos = TOKENIZER.bos_id
    post(site, prompt="x")
    assert last_prompt(site) == [bos, *TOKENIZER.encode("x")]
    post(site, prompt=[5, bos, 6])
    assert last_prompt(site) == [5, bos, 6]
    post(site, prompt="x", add_special_tokens=False)
    assert last_prompt(site) == TOKENIZER.encode("x")
    hostile = special.BOS + "x" + special.EOS
    post(site, prompt=hostile)
    assert last_prompt(site) == [bos, *TOKENIZER.encode(hostile)]
    post(site, prompt=hostile, parse_special=True)
    assert last_prompt(site) == [bos, *TOKENIZER.encode("x"), EOS]


def test_the_defaults_are_openais(site: Site) -> None:
    ask(site.app, URL, {"model": "pocket", "prompt": "x"})
    params = site.engine.requests[-1].params
    assert (params.max_tokens, params.temperature, params.logprobs) == (16, 1.0, None)


def test_echo_and_logprobs_are_what_harnesses_read(site: Site) -> None:
    ids = [TOKENIZER.bos_id, *TOKENIZER.encode("hé你x")]
    reply = post(site, prompt=[ids, ids[:2]], echo=True, logprobs=1, max_tokens=1, temperature=0)
    first, second = reply.json["choices"]
    assert first["text"] == "hé你xa"
    found = first["logprobs"]
    assert len({len(values) for values in found.values()}) == 1
    assert found["token_logprobs"] == [None] + [-1.0] * (len(ids) - 1) + [-0.5]
    assert found["top_logprobs"][0] is None
    for value, best in zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True):
        assert value == max(best.values())
    assert found["text_offset"][:2] == [0, 0]
    assert found["text_offset"][-1] == len("hé你x")
    assert found["tokens"][0] == special.BOS
    assert len(second["logprobs"]["tokens"]) == 3
    assert site.engine.requests[-1].params.prompt_logprobs == 1


def test_the_end_of_an_answer_has_an_entry(site: Site) -> None:
    found = post(site, prompt="x", logprobs=0).json["choices"][0]["logprobs"]
    assert found["tokens"] == ["a", special.EOS]
    assert found["top_logprobs"] == [{"a": -0.5}, {special.EOS: -0.5}]
    assert found["text_offset"] == [0, 1]


def test_tokens_that_read_alike_keep_the_larger_value() -> None:
    halves = [one for one in range(8000) if TOKENIZER.decode([one]) == "�"][:3]

    def script(request: Request) -> Iterable[Step]:
        top = [(halves[0], -0.1), (halves[1], -0.2)]
        yield Tokens(request.id, [halves[2]], [Logprobs(-4.0, top)], "stop")

    found = post(make_site(script, TOKENIZER), prompt="x", logprobs=2).json["choices"][0][
        "logprobs"
    ]
    assert found["top_logprobs"] == [{"�": -0.1}]
    assert found["token_logprobs"] == [-4.0]


@pytest.mark.parametrize("stream", [False, True])
def test_no_tokens_with_echo_rates_the_prompt_alone(site: Site, stream: bool) -> None:
    reply = post(site, prompt="hi", echo=True, logprobs=1, max_tokens=0, stream=stream)
    answer = reply.events[0] if stream else reply.json
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("hi", "length")
    size = len(last_prompt(site))
    assert len(choice["logprobs"]["tokens"]) == size
    assert site.admission.tickets[-1].noted == (size, 0, 0)
    assert site.admission.asked[-1] == ("pocket", size, 0)


def test_a_stream_is_the_answer_in_pieces(site: Site) -> None:
    given = {"prompt": ["hi", "yo"], "echo": True, "logprobs": 1}
    whole = post(site, **given).json
    *chunks, usage, done = post(
        site, **given, stream=True, stream_options={"include_usage": True}
    ).events
    assert done == "[DONE]"
    assert usage["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [
            one for chunk in chunks for one in chunk["choices"] if one["index"] == choice["index"]
        ]
        assert "".join(one["text"] for one in parts) == choice["text"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        for name, values in choice["logprobs"].items():
            assert [value for one in parts for value in one["logprobs"][name]] == values


def test_the_best_of_several(site: Site) -> None:
    def script(request: Request) -> Iterable[Step]:
        place = int(request.id.rpartition("-")[2])
        value = [-3.0, -1.0, -2.0, -0.5][place]
        yield Tokens(request.id, TOKENIZER.encode(str(place)), [Logprobs(value)], "stop")

    made = make_site(script, TOKENIZER)
    answer = post(made, prompt="x", n=2, best_of=4).json
    assert [one["text"] for one in answer["choices"]] == ["3", "1"]
    assert answer["usage"]["completion_tokens"] == 4
    assert all(one["logprobs"] is None for one in answer["choices"])


def test_fill_in_the_middle(site: Site) -> None:
    post(site, "/beta/completions", prompt="def f():", suffix="return x")
    text = TOKENIZER.decode(last_prompt(site), skip_special_tokens=False)
    assert text == (
        f"{special.BOS}{special.FIM_BEGIN}def f():{special.FIM_HOLE}return x{special.FIM_END}"
    )


def test_fill_in_the_middle_after_its_echo() -> None:
    made = make_site(words(TOKENIZER, "a + b"), TOKENIZER)
    for stream in (False, True):
        reply = post(made, "/beta/completions", prompt="x = ", suffix=";", echo=True, stream=stream)
        told = reply.events[:-1] if stream else [reply.json]
        assert "".join(part["choices"][0]["text"] for part in told) == "x = a + b"


def test_many_stops(site: Site) -> None:
    assert post(site, prompt="x", stop=[]).status == 200
    made = make_site(words(TOKENIZER, "one two three"), TOKENIZER)
    stops = [f"stop{n}" for n in range(63)] + [" th"]
    assert post(made, prompt="x", stop=stops).json["choices"][0]["text"] == "one two"


@pytest.mark.parametrize(
    ("given", "param"),
    [({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt[0]"), ({"prompt": None}, "prompt"),
     ({"prompt": ["a", 1]}, "prompt[0]"), ({"prompt": [1.5]}, "prompt[0]"),
     ({"prompt": [True]}, "prompt[0]"),
     ({"prompt": [-1]}, "prompt[0]"), ({"prompt": [8192]}, "prompt[0]"), ({"prompt": {}}, "prompt"),
     ({"prompt": ["a"] * 257}, "prompt"), ({"prompt": ["a"] * 200, "n": 2}, "n"),
     ({"prompt": [[1]] * 100_000}, "prompt"), ({"logprobs": 21}, "logprobs"),
     ({"logprobs": -1}, "logprobs"), ({"logprobs": True}, "logprobs"),
     ({"logprobs": 10**6, "echo": True}, "logprobs"), ({"max_tokens": 0}, "max_tokens"),
     ({"best_of": 1, "n": 2}, "best_of"), ({"best_of": 17}, "best_of"),
     ({"best_of": 2, "stream": True}, "best_of"), ({"suffix": "b", "prompt": [1]}, "suffix"),
     ({"suffix": "b", "echo": True, "logprobs": 0}, "suffix"),
     ({"prompt": "", "add_special_tokens": False}, "prompt"),
     ({"prompt": "x " * 3000}, "prompt"), ({"use_beam_search": True}, "use_beam_search")],
)  # fmt: skip
def test_what_is_wrong_is_named(site: Site, given: dict[str, Any], param: str) -> None:
    before = len(site.engine.requests)
    reply = post(site, **{"prompt": "x", **given})
    assert (reply.status, (reply.error["param"] or "").partition("[")[0]) == (
        400, param.partition("[")[0],
    )  # fmt: skip
    assert len(site.engine.requests) == before
