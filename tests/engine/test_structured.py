from __future__ import annotations

import json
import re
import time
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

import pytest

from dsv2 import LLM, SamplingParams
from dsv2.engine import engine as engine_module
from dsv2.engine import structured
from dsv2.engine.request import Request, RequestError, Structure
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


def slow_down(llm: LLM, monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[Structure]:
    """Let everything take its time to compile; what was compiled so far is in the list."""
    compiler = llm.engine._structures
    assert compiler is not None
    make, made = compiler._make, list[Structure]()

    def slow(structure: Structure) -> Any:
        time.sleep(seconds)
        made.append(structure)
        return make(structure)

    monkeypatch.setattr(compiler, "_make", slow)
    return made


def test_who_waits_for_others_structures_is_not_late(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of time is for one's own, and the line has one of its own."""
    slow_down(llm, monkeypatch, 0.3)
    monkeypatch.setattr(llm.engine._structures, "_seconds", 0.8)
    many = [replace(WARM, structure=Structure("regex", f"{n}{{2}}b")) for n in range(8)]
    found = llm.generate(["x"] * 8, many)
    assert [one.text for one in found] == [f"{n}{n}b" for n in range(8)]
    monkeypatch.setattr(structured, "QUEUE_SECONDS", 0.2)
    late = [replace(WARM, structure=Structure("regex", f"{n}{{3}}b")) for n in range(8)]
    found = llm.generate(["x"] * 8, late)
    errors = {one.error for one in found[4:]}
    assert errors == {"structures of others took 0 s to compile; try again later"}
    assert found[0].text == "000b"


def test_structures_that_nobody_waits_for_are_not_compiled(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = slow_down(llm, monkeypatch, 0.2)
    for number in range(30):
        params = replace(WARM, structure=Structure("regex", f"c{{{number + 1}}}d"))
        llm.engine.add(Request(str(number), (1,), params))
        llm.engine.abort(str(number))
    assert ask(llm, Structure("regex", "ef")) == "ef"
    assert len(made) <= 5  # two that had begun, and the last


def test_a_bad_structure_is_told_of_though_the_step_failed(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = llm.engine
    engine.add(Request("bad", (1,), replace(WARM, structure=Structure("regex", "("))))
    wait([engine._compiling["bad"]._future])
    engine.add(Request("good", (1, 2), replace(WARM, max_tokens=2, ignore_eos=True)))
    launch = engine._runner.launch

    def fail(*args: Any) -> Any:
        raise MemoryError("no more")

    monkeypatch.setattr(engine._runner, "launch", fail)
    with pytest.raises(MemoryError):
        engine.step()
    monkeypatch.setattr(engine._runner, "launch", launch)
    assert engine.abandon() == ["good"]
    assert engine.has_work
    with pytest.raises(ValueError, match="in use"):  # not before its end was told
        engine.add(Request("bad", (1,), WARM))
    [told] = engine.step()
    assert (told.request_id, told.finish_reason) == ("bad", "error")
    assert not engine.has_work


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


def schema(**fields: Any) -> Structure:
    return Structure("json_schema", json.dumps(fields))


MANY = {f"p{number}": {"type": "integer"} for number in range(2000)}
HOSTILE = {
    "a loop of references": (schema(**{"$ref": "#"}), "error"),
    "two references to each other": (
        schema(**{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                  "$ref": "#/$defs/a"}),
        "error",
    ),
    "another server's schema": (schema(**{"$ref": "http://attacker.example/x"}), "error"),
    "thousands of properties": (schema(type="object", properties=MANY), "error"),
    "a long enumeration": (schema(enum=list(range(9000))), "done"),
    "a long string": (schema(type="string", minLength=10**6, maxLength=10**9), "done"),
    "a long list": (schema(type="array", minItems=10**6, items={"type": "integer"}), "done"),
    "a product of choices": (
        schema(allOf=[{"anyOf": [{"properties": {f"{a}{n}": {"type": "null"}}} for a in "ab"]}
                      for n in range(20)]),
        "error",
    ),
    "nested repetition": (Structure("regex", "(a+)+b"), "done"),
    "repetition of repetition": (Structure("regex", "((a{1,1000}){1,1000}){1,1000}"), "done"),
    "states for every past": (Structure("regex", "[ab]*a[ab]{200}"), "done"),
    "a look ahead": (Structure("regex", "(?=a)b"), "error"),
    "a look behind": (Structure("regex", "(?<=a)b"), "error"),
    "a reference back": (Structure("regex", r"(a)\1"), "error"),
    "classes of Unicode": (Structure("regex", r"[\p{L}--\p{Lu}]{1,500}\p{Nd}+"), "any"),
    "a grammar of everything at once": (
        Structure("grammar", 'start: a\na: a a | a a a | "x"'), "any",
    ),
    "what is in one and not in the other": (
        Structure("grammar", "start: A\nA: /((.*a.{30}){1,30})/ & ~/(.*b.{100}.*){1,20}/"), "any",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_structure_costs_the_others_nothing(llm: LLM, name: str) -> None:
    """Faults F18, F19: refused or followed, soon; the neighbour's tokens are what they always are.

    Nothing is fetched for a reference to elsewhere: the library has no way to.
    """
    structure, expected = HOSTILE[name]
    free = replace(WARM, max_tokens=8)
    alone = llm.generate("x", free)[0].token_ids
    begun = time.monotonic()
    bound = replace(WARM, max_tokens=8, structure=structure)
    found = llm.generate(["x", "x"], [bound, free])
    assert time.monotonic() - begun < 3  # of which the slowest compiles for half a second
    assert found[1].token_ids == alone
    assert (found[0].finish_reason == "error") == (expected == "error") or expected == "any"
    if name == "another server's schema":
        assert "does not fetch" in str(found[0].error)
    stats = llm.engine.stats
    assert stats.free_blocks == stats.total_blocks and not llm.engine.has_work


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        (schema(type="integer", multipleOf=7777777), "multipleOf 7777777"),
        (schema(type="number", multipleOf=77.77777), "multipleOf 77.77777"),
        (schema(allOf=[{"multipleOf": 97}, {"not": {"multipleOf": 9973}}]), "multipleOf 9973"),
        (Structure("json_schema", '{"multipleOf": 1e999}'), "multipleOf inf"),
        (Structure("json_schema", r'{"multiple\u004ff": 77777}'), "multipleOf 77777"),
        (Structure("grammar", 'start: "%json" %json  {"multipleOf": 77777}'), "multipleOf 77777"),
        (Structure("grammar", "start: %json " + "[" * 70 + "]" * 70), "64 levels"),
        (schema(type="integer", multipleOf=10**9), None),
        (schema(type="number", multipleOf=0.01), None),
        (schema(properties={"multipleOf": {"multipleOf": 12}, "b": {"multipleOf": 360}}), None),
        (Structure("grammar", 'start: "%json" "{"'), None),
    ],
)  # fmt: skip
def test_multiples_are_bounded(llm: LLM, one: Structure, problem: str | None) -> None:
    """Fault F18: an automaton of millions of states, from a hundred bytes."""
    if problem is None:
        begun = time.monotonic()
        assert ask_any(llm, one) != "error"
        assert time.monotonic() - begun < 2
        return
    with pytest.raises(RequestError, match=problem):
        llm.check(replace(WARM, structure=one))


def ask_any(llm: LLM, structure: Structure) -> str | None:
    """How an answer of a few tokens ends."""
    return llm.generate("x", replace(WARM, max_tokens=8, structure=structure))[0].finish_reason


def test_without_the_library_a_structure_is_refused(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm.engine, "_structures", None)
    with pytest.raises(RequestError, match="needs llguidance"):
        ask(llm, Structure("regex", "a"))


def test_compiled_structures_are_kept_within_a_bound(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault F20: those that are asked for again and again outlive the others."""
    compiler = llm.engine._structures
    assert isinstance(compiler, StructureCompiler)
    make, made = compiler._make, list[Structure]()
    monkeypatch.setattr(compiler, "_make", lambda one: made.append(one) or make(one))
    often = Structure("regex", "often")
    for number in range(70):
        for structure in (Structure("regex", f"a{{{number + 1}}}"), often):
            pending = compiler.submit(structure)
            pending.wait(5)
            assert pending.result() is not None
    assert len(compiler._compiled) <= 64
    assert made.count(often) == 1
    assert engine_module._COMPILE_WAIT < 0.1
