"""Bodies: what JSON parsers read differently is refused, and quickly."""

from __future__ import annotations

import json
import time

import pytest

from dsv2.service.protocol import ChatBody, CompletionBody
from dsv2.service.web.errors import ApiError
from dsv2.service.web.json_body import MAX_DEPTH, parse_json, validated


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff", b"\xef\xbb\xbf{}", b'{"a": 1, "a": 2}', b'{"b": {"a": 1, "a": 1}}',
     b"[NaN]", b"[Infinity]", b"[-Infinity]", b"[1e999]", b"[-1e999]", b"1" * 5000, b"[" * 100_000,
     b'{"a":' * 100_000, b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), b"{'a': 1}", b"[1,]"],
)  # fmt: skip
def test_traps_are_refused(text: bytes) -> None:
    """Faults F10 and F13."""
    with pytest.raises(ApiError) as caught:
        parse_json(text)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("text", "param"),
    [(b'{"a": [{"b": "x\\ud800"}]}', "a[0].b"), (b'{"a": {"\\udfff": 1}}', "a"),
     (b'{"\\ud800": "\\ud800"}', None), (b'"\\udc00\\ud800"', None)],
)  # fmt: skip
def test_half_characters_are_named(text: bytes, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        parse_json(text)
    assert (caught.value.status, caught.value.param) == (400, param)
    json.dumps(caught.value.body, ensure_ascii=False).encode()


def test_what_is_json_is_read() -> None:
    value = {"a": [1, -2.5, 1e300, "é\x00\ufffe😀", None, True], "b": {"c": {}}, "": -0.0}
    assert parse_json(json.dumps(value).encode()) == value
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_json(deep)


@pytest.mark.parametrize(
    "text",
    [b'{"model": "m", "prompt": [' + b"[1.5]," * 100_000 + b"[1]]}",
     b'{"model": "m", "prompt": "x", "stop": [' + b"1," * 100_000 + b"1]}",
     b'{"model": "m", "prompt": "x", "logit_bias": {'
     + b",".join(b'"%d": "x"' % n for n in range(100_000)) + b"}}"],
)  # fmt: skip
def test_a_hundred_thousand_errors_are_one(text: bytes) -> None:
    """Faults F11 and F12."""
    value = parse_json(text)
    begun = time.process_time()  # what others take from a shared machine does not count
    with pytest.raises(ApiError):
        validated(CompletionBody, value)
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize("value", [[], "x", None, 5])
def test_a_body_is_an_object(value: object) -> None:
    with pytest.raises(ApiError, match="must be a JSON object"):
        validated(ChatBody, value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ApiError, match="model: is missing") as caught:
        validated(ChatBody, {"messages": [{"role": "user", "content": "a"}]})
    assert caught.value.param == "model"


_CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [({"prompt": ["x"] * 300}, "prompt", "at most 256"),
     ({"prompt": [[1]] * 300}, "prompt", "at most 256"),
     ({"prompt": []}, "prompt", "at least 1"),
     ({"prompt": [[1], []]}, "prompt[1]", "at least 1"),
     ({"prompt": ["a", 1]}, "prompt[1]", "valid string"),
     ({"prompt": [1, "a"]}, "prompt[1]", "valid integer"),
     ({"prompt": [[1], ["a"]]}, "prompt[1][0]", "valid integer"),
     ({"prompt": {}}, "prompt", "valid string; or: .* valid list"),
     ({"prompt": "x", "stop": ["a", 3]}, "stop[1]", "valid string")],
)  # fmt: skip
def test_of_several_kinds_the_one_that_was_meant_is_told(
    fields: dict[str, object], param: str, words: str
) -> None:
    """Fault F12."""
    with pytest.raises(ApiError, match=f": Input .*{words}|: List .*{words}") as caught:
        validated(CompletionBody, {"model": "m"} | fields)
    assert caught.value.param == param
    assert str(caught.value).count("; or: ") == words.count("; or: ")


def test_parts_of_messages_are_named_by_their_place() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(ApiError, match="should be 'text' or 'refusal'") as caught:
        validated(ChatBody, _CHAT | {"messages": [{"role": "user", "content": parts}]})
    assert caught.value.param == "messages[0].content[1].type"
