from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from typing import Any

import pytest

from dsv2 import LLM, SamplingParams
from dsv2.engine import engine as engine_module
from dsv2.engine.request import RequestError, Structure
from dsv2.engine.structured import StructureCompiler, _Matcher

WARM = SamplingParams(max_tokens=200, temperature=1.0, seed=3)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("pocket", device="cpu", max_sequences=8)


def ask(llm: LLM, structure: Structure, **fields: Any) -> str:
    done = llm.generate("The answer is ", replace(WARM, structure=structure, **fields))[0]
    assert done.finish_reason == "stop", done
    return done.text


def test_answers_follow_their_structure(llm: LLM) -> None:
    for seed in range(3):
        schema = Structure("json_schema", json.dumps(SCHEMA))
        value = json.loads(ask(llm, schema, seed=seed))
        assert set(value) == {"name", "age", "tags"}
        assert 0 <= value["age"] <= 99
        assert set(value["tags"]) <= {"a", "b"}
        assert re.fullmatch(r"[a-f]{3}-\d{4}", ask(llm, Structure("regex", r"[a-f]{3}-\d{4}")))
        lark = Structure("grammar", 'start: "yes" | "no" " " /[0-9]/')
        assert re.fullmatch("yes|no [0-9]", ask(llm, lark, seed=seed))
    shape = Structure("json_object")
    free = llm.generate("An object: ", replace(WARM, structure=shape, temperature=0.0))[0]
    assert free.text.startswith("{")
    if free.finish_reason == "stop":
        json.loads(free.text)


def test_structures_mix_with_free_text_and_with_speculation(llm: LLM) -> None:
    digits = replace(WARM, structure=Structure("regex", r"(\d\d:){6}\d\d"))
    free = replace(WARM, max_tokens=12)
    alone = llm.generate("x", free)[0].token_ids
    mixed = llm.generate(["x", "now ", "x"], [free, digits, free])
    assert mixed[0].token_ids == mixed[2].token_ids == alone
    assert re.fullmatch(r"(\d\d:){6}\d\d", mixed[1].text)
    guessing = LLM("pocket", device="cpu", speculate=4)
    assert guessing.generate("now ", digits)[0].token_ids == mixed[1].token_ids


BAD = [
    Structure("regex", "(("),
    Structure("grammar", "start: nothing_there"),
    Structure("json_schema", '{"type": "no such type"}'),
]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_structure_ends_that_request_only(llm: LLM, bad: Structure) -> None:
    free = replace(WARM, max_tokens=5)
    found = llm.generate(["x", "x"], [replace(WARM, structure=bad), free])
    assert found[0].finish_reason == "error"
    assert found[0].error is not None
    assert bad.kind in found[0].error or "structure" in found[0].error
    assert len(found[1].token_ids) == 5
    stats = llm.engine.stats
    assert stats.free_blocks == stats.total_blocks
    assert not llm.engine.has_work


@pytest.mark.parametrize("guesses", [None, 3])
def test_a_structure_that_fails_late_ends_that_request_only(
    guesses: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM("pocket", device="cpu", max_sequences=8, speculate=guesses or 0)
    free = replace(WARM, max_tokens=12)
    bound = replace(WARM, structure=Structure("regex", "[a-z ]{30}"))
    alone = llm.generate("x", free)[0].token_ids
    real, taken = _Matcher.take, []

    def take(self: _Matcher, token: int) -> None:
        taken.append(token)
        if len(taken) == 4:
            raise ValueError("too many items in a row of the parser")
        real(self, token)

    monkeypatch.setattr(_Matcher, "take", take)
    found = llm.generate(["x", "now ", "x"], [free, bound, free])
    assert found[1].finish_reason == "error"
    assert found[1].error == (
        "the structure of the answer failed: too many items in a row of the parser"
    )
    assert len(found[1].token_ids) == 3
    assert found[0].token_ids == found[2].token_ids == alone
    stats = llm.engine.stats
    assert stats.free_blocks == stats.total_blocks and not llm.engine.has_work
    assert llm.generate("x", free)[0].token_ids == alone


def test_compiling_holds_up_nobody_and_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM("pocket", device="cpu")
    compiler = llm.engine._structures
    assert compiler is not None
    make = compiler._make

    def slow(structure: Structure) -> Any:
        time.sleep(1.0)
        return make(structure)

    monkeypatch.setattr(compiler, "_make", slow)
    monkeypatch.setattr(compiler, "_seconds", 0.4)
    structure = Structure("regex", "a+b")
    started = time.monotonic()
    found = llm.generate(["x", "x"], [replace(WARM, structure=structure), WARM])
    assert found[0].finish_reason == "error"
    assert "too long" in (found[0].error or "")
    assert found[1].finish_reason in ("stop", "length")
    assert time.monotonic() - started < 5
    time.sleep(0.8)
    monkeypatch.setattr(compiler, "_seconds", 5.0)
    assert re.fullmatch("a+b", ask(llm, structure, temperature=0.0, logit_bias={}) or "ab")


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ({"kind": "regex"}, "structure is"),
        (Structure("xml", "x"), "allowed are json_object, json_schema, regex, grammar"),
        (Structure("json_object", "{}"), "has text '{}'"),
        (Structure("regex", ""), "has text ''"),
        (Structure("json_schema", "{"), "not valid JSON"),
        (Structure("json_schema", "[]"), "64 levels"),
        (Structure("json_schema", '{"a":' * 70 + "1" + "}" * 70), "64 levels"),
        (Structure("json_schema", "[" * 60_000), "JSON"),
        (Structure("regex", "a" * 70_000), "65536 characters"),
    ],
)
def test_the_gate_bounds_structures(llm: LLM, structure: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        llm.check(replace(WARM, structure=structure))


def test_without_the_library_a_structure_is_refused(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm.engine, "_structures", None)
    with pytest.raises(RequestError, match="needs llguidance"):
        ask(llm, Structure("regex", "a"))


def test_compiled_structures_are_kept_within_a_bound(llm: LLM) -> None:
    compiler = llm.engine._structures
    assert isinstance(compiler, StructureCompiler)
    for number in range(70):
        pending = compiler.submit(Structure("regex", f"a{{{number + 1}}}"))
        pending.wait(5)
        assert pending.result() is not None
    assert len(compiler._compiled) <= 64
    assert engine_module._COMPILE_WAIT < 0.1
