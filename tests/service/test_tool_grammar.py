"""``tool_choice``: the grammar of calls, compiled and followed by a model."""

from __future__ import annotations

import json

import pytest

from dsv2 import LLM, SamplingParams
from dsv2.service.inference.tool_grammar import call_grammar
from dsv2.service.protocol.chat import Function, Tool
from dsv2.tokenizer import special
from tests.service.test_tool_stream import read

TOOLS = [
    Tool(
        type="function",
        function=Function(
            name="move",
            parameters={
                "type": "object",
                "properties": {
                    "way": {"enum": ["north", 'so"uth']},
                    "steps": {"type": "integer", "minimum": 0, "maximum": 9},
                },
                "required": ["way", "steps"],
                "additionalProperties": False,
            },
        ),
    ),
    Tool(
        type="function",
        function=Function(
            name="look-around",
            parameters={"type": "object", "properties": {}, "additionalProperties": False},
        ),
    ),
]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("pocket", device="cpu")


@pytest.mark.parametrize("many", [False, True])
def test_a_model_can_do_nothing_but_call(llm: LLM, many: bool) -> None:
    structure = call_grammar(llm.tokenizer, TOOLS, many=many)
    # pocket would leave it at one.
    bias = {llm.tokenizer.special_ids[special.CALLS_END]: -20.0} if many else {}
    params = [
        SamplingParams(
            max_tokens=150, temperature=2.0, seed=seed, structure=structure, logit_bias=bias
        )
        for seed in range(8)
    ]
    seen: set[str] = set()
    counts: set[int] = set()
    for done in llm.generate(["Go!"] * len(params), params):
        text, calls, _ = read(list(done.token_ids))
        # Of many calls the last may be cut by the number of tokens, even before its name, and is
        # text then; the others are whole.
        assert text in (("",) if done.finish_reason == "stop" else ("", "function"))
        assert done.finish_reason == "stop" or (many and len(calls) > 1)
        whole = calls if done.finish_reason == "stop" or text else calls[:-1]
        assert whole
        for name, arguments in whole:
            seen.add(name)
            value = json.loads(arguments)
            if name == "move":
                assert value["way"] in ("north", 'so"uth') and 0 <= value["steps"] <= 9
                assert set(value) == {"way", "steps"}
            else:
                assert (name, value) == ("look-around", {})
        counts.add(len(whole))
    assert seen == {"move", "look-around"}
    assert max(counts) > 1 if many else counts == {1}


def test_one_tool_by_name(llm: LLM) -> None:
    structure = call_grammar(llm.tokenizer, TOOLS[1:], many=False)
    params = SamplingParams(max_tokens=60, temperature=2.0, structure=structure)
    done = llm.generate("Go!", params)[0]
    assert read(list(done.token_ids))[1] == [("look-around", "{}")]
