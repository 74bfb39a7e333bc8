"""Tool calls: what is streamed is what is given whole, however the tokens come."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv2.engine.request import SamplingParams
from dsv2.service.inference.answers import Call
from dsv2.service.inference.tool_stream import AnswerReader, whole_calls
from dsv2.tokenizer import ChatError, chat_format, special
from tests.service.fakes import pocket_tokenizer

TOKENIZER = pocket_tokenizer()
IDS = TOKENIZER.special_ids


def call_ids(name: str, arguments: str) -> list[int]:
    return [
        IDS[special.CALL_BEGIN],
        *TOKENIZER.encode("function"),
        IDS[special.TOOL_SEP],
        *TOKENIZER.encode(f"{name}\n```json\n{arguments}\n```"),
        IDS[special.CALL_END],
    ]


def answer_ids(text: str, *calls: tuple[str, str]) -> list[int]:
    ids = [*TOKENIZER.encode(text), IDS[special.CALLS_BEGIN]]
    for place, call in enumerate(calls):
        ids += (TOKENIZER.encode("\n") if place else []) + call_ids(*call)
    return [*ids, IDS[special.CALLS_END]]


def read(
    ids: list[int], *, max_calls: int | None = None, stop: str | tuple[str, ...] = ()
) -> tuple[str, list[tuple[str, str]], bool]:
    params = SamplingParams(stop=stop)
    reader = AnswerReader(TOKENIZER, params, tools=True, max_calls=max_calls)
    text, deltas = "", []
    for token in ids:
        told = reader.push(token)
        text += told.text
        deltas += told.calls
        if told.is_over:
            return text, named(whole_calls(deltas)), True
    told = reader.finish()
    return text + told.text, named(whole_calls(deltas + told.calls)), False


def named(calls: list[Call]) -> list[tuple[str, str]]:
    assert all(call.id.startswith("call_") for call in calls)
    assert len({call.id for call in calls}) == len(calls)
    return [(call.function.name, call.function.arguments) for call in calls]


CALL = ("get_weather", json.dumps({"city": "Zürich", "note": "```json\n in a string"}))


def test_words_and_calls() -> None:
    found = read(answer_ids("Let me see.", CALL, ("now", "{}")))
    assert found == ("Let me see.", [CALL, ("now", "{}")], False)


def test_arguments_come_bit_by_bit() -> None:
    reader = AnswerReader(TOKENIZER, SamplingParams(), tools=True)
    deltas = [one for token in answer_ids("", CALL) for one in reader.push(token).calls]
    assert len(deltas) > 5
    assert [one.function.name for one in deltas[1:] if one.function] != [CALL[0]]  # type: ignore[union-attr]


def test_without_tools_control_tokens_are_silent() -> None:
    reader = AnswerReader(TOKENIZER, SamplingParams())
    told = [reader.push(token) for token in answer_ids("a", ("f", "{}"))]
    assert "".join(one.text for one in told).startswith("afunctionf\n```json")
    assert not any(one.calls for one in told)


@pytest.mark.parametrize("cut", range(1, 40))
def test_what_is_cut_off_is_a_call_with_what_came_or_text(cut: int) -> None:
    ids = answer_ids("Hi", CALL)[:-cut]
    text, calls, _ = read(ids)
    assert text.startswith("Hi") or cut >= len(ids)
    for name, arguments in calls:
        assert name == CALL[0]
        assert CALL[1].startswith(arguments)
    if not calls:
        assert "{" not in text


@pytest.mark.parametrize(
    ("body", "text", "calls"),
    [
        ([], "", []),
        (TOKENIZER.encode("stray words"), "stray words", []),
        ([IDS[special.CALL_BEGIN], *TOKENIZER.encode("no separator"), IDS[special.CALL_END]],
         "no separator", []),
        ([IDS[special.CALL_BEGIN], IDS[special.TOOL_SEP], *TOKENIZER.encode("f {}"),
          IDS[special.CALL_END]], "f {}", []),
        ([IDS[special.CALL_END]], "", []),
        ([IDS[special.CALL_BEGIN], *call_ids("f", "{}")], "", [("f", "{}")]),
        (call_ids("f", "{}")[:-3], "", [("f", "{}")]),
    ],
)  # fmt: skip
def test_what_is_malformed_stays_text(
    body: list[int], text: str, calls: list[tuple[str, str]]
) -> None:
    ids = [IDS[special.CALLS_BEGIN], *body, IDS[special.CALLS_END]]
    assert read(ids)[:2] == (text, calls)


def test_one_call_is_enough_where_more_are_not_wanted() -> None:
    assert read(answer_ids("", CALL, CALL), max_calls=1) == ("", [CALL], True)


def test_a_stop_string_ends_words_and_not_arguments() -> None:
    assert read(answer_ids("one two", ("f", '{"a": "two"}')), stop="two") == ("one ", [], True)
    assert read(answer_ids("one tw", ("f", '{"a": "two"}')), stop="two") == (
        "one tw", [("f", '{"a": "two"}')], False,
    )  # fmt: skip


PIECES = st.lists(
    st.one_of(
        st.sampled_from([[one] for one in IDS.values()]),
        st.sampled_from([TOKENIZER.encode(text) for text in
                         ("f\n```json\n", "\n```", "\n", "``", "{}", "é", "function", "a b")]),
        st.just(call_ids("f", '{"x": 1}')),
        st.lists(st.integers(0, 8191), max_size=3),
    ),
    max_size=14,
).map(lambda pieces: [token for piece in pieces for token in piece])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(PIECES)
def test_any_tokens_read_alike_here_and_in_the_chat_format(ids: list[int]) -> None:
    text, calls, _ = read(ids)
    try:
        whole = chat_format("v2.5", TOKENIZER).parse_tool_calls(ids)
    except ChatError:
        return  # the strict reading has no answer; this one has and did not fail
    assert calls == [(call.name, call.arguments) for call in whole[1]]
    if not calls and special.CALLS_BEGIN not in TOKENIZER.decode(ids, skip_special_tokens=False):
        assert text == whole[0]


@settings(max_examples=20, deadline=None)
@given(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.lists(
        st.tuples(
            st.from_regex(r"[a-zA-Z0-9_-]{1,12}", fullmatch=True),
            st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=6), st.integers()),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_what_the_format_writes_is_read(text: str, calls: list[tuple[str, dict[str, int]]]) -> None:
    wanted = [(name, json.dumps(value, ensure_ascii=False)) for name, value in calls]
    assert read(answer_ids(text, *wanted)) == (text, wanted, False)
