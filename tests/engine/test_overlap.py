"""The next step is started before this one's tokens are known, and nobody can tell by them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv2 import LLM, SamplingParams
from dsv2.engine.blocks import BlockPool
from dsv2.engine.engine import Engine, TokenOutput
from dsv2.engine.request import Request, Structure
from dsv2.engine.runner import Launch
from dsv2.engine.scheduler import Scheduler
from dsv2.engine.structured import StructureCompiler
from tests.engine.late import FakeCapture, LateRunner
from tests.models import VOCAB

PLAIN = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
PROMPT = tuple(range(3, 12))


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> LLM:
    return LLM(tiny_folder, device="cpu", dtype="float32", threads=1)


def make(llm: LLM, *, late: bool = True, blocks: int = 40, **options: Any) -> Engine:
    """An engine of its own on the model, with overlap and captured steps, or without either."""
    options = {"max_step_tokens": 60, "max_sequences": 5} | options
    runner: Any = LateRunner(llm.model, blocks, FakeCapture()) if late else None
    engine = llm.engine
    return Engine(
        runner or type(engine._runner)(llm.model, blocks),
        Scheduler(BlockPool(blocks), **options),
        replace(llm.limits, max_context=blocks * 64),
        [llm.tokenizer.eos_id],
        structures=engine._structures,
    )


def drain(engine: Engine, aborts: dict[int, str] | None = None) -> dict[str, list[TokenOutput]]:
    """Step to the end; ``aborts`` says whom to stop after which step."""
    found: dict[str, list[TokenOutput]] = {}
    count = 0
    while engine.has_work:
        count += 1
        assert count < 5000
        for output in engine.step():
            found.setdefault(output.request_id, []).append(output)
        if aborts and count in aborts:
            engine.abort(aborts[count])
        stats = engine.stats
        if not engine.has_work:
            assert (stats.running, stats.waiting) == (0, 0)
            assert stats.free_blocks == stats.total_blocks
    return found


def test_a_step_is_launched_before_the_one_before_is_collected(llm: LLM) -> None:
    engine = make(llm)
    engine.add(Request("a", PROMPT, PLAIN))
    assert len(drain(engine)["a"]) == PLAIN.max_tokens
    log = engine._runner.log  # type: ignore[attr-defined]
    # The prompt's step alone; then each step before its predecessor's tokens, and never one beyond
    # the last token.
    decode = ["launch", *["launch", "collect"] * (PLAIN.max_tokens - 2), "collect"]
    assert log == ["launch", "collect", *decode]
    assert engine.stats.overlapped_steps == PLAIN.max_tokens - 2
    assert engine.stats.captured_steps == 1


def mixed(dice: random.Random, name: str, *, exacting: bool) -> Request:
    """A random request; ``exacting`` ones may want what needs the last token on the host."""
    most = dice.choice([1, 2, 30, 100, 150, 180])
    params = SamplingParams(
        max_tokens=most, temperature=dice.choice([0.0, 0.9]), seed=7,
        ignore_eos=dice.random() < 0.5, min_tokens=dice.choice([0, 1]),
        stop_token_ids=[dice.randrange(VOCAB) for _ in range(dice.choice([0, 0, 1, 5]))],
        top_p=dice.choice([1.0, 0.9]), logprobs=dice.choice([None, None, 2]),
        prompt_logprobs=dice.choice([None, None, None, 1]),
        frequency_penalty=0.5 if exacting and dice.random() < 0.2 else 0.0,
        structure=Structure("regex", "[a-f]{3,9}") if exacting and dice.random() < 0.2 else None,
    )  # fmt: skip
    if params.structure is not None:
        params = replace(params, min_tokens=0)
    # Beginnings that others share.
    prompt = [(n * n + dice.randrange(2)) % 50 + 3 for n in range(dice.choice([5, 5, 40, 70]))]
    prompt[:64] = [(n * n) % 50 + 3 for n in range(len(prompt[:64]))]
    return Request(name, tuple(prompt), params, priority=dice.choice([0, 0, 0, 1]))


@pytest.mark.parametrize(
    "case", [0, 1, *(pytest.param(case, marks=pytest.mark.slow) for case in range(2, 6))]
)
def test_tokens_are_those_of_the_synchronous_engine(llm: LLM, case: int) -> None:
    dice = random.Random(case)
    if case % 2 and llm.engine._structures is None:
        pytest.skip("needs llguidance")
    requests = [mixed(dice, str(n), exacting=case % 2 == 1) for n in range(10)]
    long = replace(PLAIN, max_tokens=150)
    requests[:3] = [Request(str(n), PROMPT[n:], long) for n in range(3)]
    aborts = {dice.randrange(2, 60): str(dice.randrange(2, 10)) for _ in range(2)}
    # Few blocks: sequences lose theirs on the way.
    options: dict[str, Any] = {"blocks": 4, "max_preemptions": 2}
    results, stats = [], []
    for late in (False, True):
        engine = make(llm, late=late, **options)
        for request in requests:
            engine.add(request)
        results.append(drain(engine, aborts))
        stats.append(engine.stats)
    stopped = set(aborts.values())
    for request in requests:
        ours, theirs = (found.get(request.id, []) for found in results[::-1])
        if request.id in stopped:  # at another place of its answer, perhaps
            size = min(len(ours), len(theirs))
            ours, theirs = ours[:size], theirs[:size]
        expected = [(one.token, one.finish_reason, one.logprobs, one.error) for one in theirs]
        assert [(one.token, one.finish_reason, one.logprobs, one.error) for one in ours] == expected
        assert [one.prompt_logprobs for one in ours] == [one.prompt_logprobs for one in theirs]
    assert stats[0].overlapped_steps == 0
    assert stats[1].overlapped_steps > 5
    assert all(one.preemptions > 0 for one in stats)


def test_only_tokens_that_are_known_are_published(llm: LLM) -> None:
    engine = make(llm, share_answers=True)
    pool, published = engine._scheduler.pool, []
    publish = pool.publish

    def note(block: int, prefix: Any, tokens: Any) -> Any:
        published.append(list(tokens))
        return publish(block, prefix, tokens)

    pool.publish = note  # type: ignore[method-assign]
    engine.add(Request("a", PROMPT, replace(PLAIN, max_tokens=150)))
    answer = [output.token for output in drain(engine)["a"]]
    text = [*PROMPT, *answer]
    assert published == [text[:64], text[64:128]]
    assert engine.stats.overlapped_steps > 100


def test_an_answer_that_ends_leaves_the_next_step_to_the_others(llm: LLM) -> None:
    whole = {n: make(llm) for n in (0, 1)}
    answers = {}
    for n, engine in whole.items():
        engine.add(Request("a", PROMPT[n:], PLAIN))
        answers[n] = [output.token for output in drain(engine)["a"]]
    stop = answers[0][4]
    engine = make(llm)
    engine.add(Request("stops", PROMPT, replace(PLAIN, stop_token_ids=[stop])))
    engine.add(Request("goes on", PROMPT[1:], PLAIN))
    found = drain(engine)
    tokens = [output.token for output in found["stops"]]
    assert tokens == answers[0][: answers[0].index(stop) + 1]
    assert found["stops"][-1].finish_reason == "stop"
    assert [output.token for output in found["goes on"]] == answers[1]


def test_cancelling_frees_everything_at_once(llm: LLM) -> None:
    engine = make(llm)
    for name in "ab":
        engine.add(Request(name, PROMPT, replace(PLAIN, max_tokens=100)))
    for _ in range(5):
        engine.step()
    assert engine._flight is not None
    engine.abort("a")
    engine.abort("b")
    stats = engine.stats
    assert (stats.running, stats.free_blocks) == (0, stats.total_blocks)
    assert not engine.has_work
    assert engine.step() == []
    engine.add(Request("a", PROMPT, PLAIN))  # the same name again, with the old step under way
    assert len(drain(engine)["a"]) == PLAIN.max_tokens


def test_a_row_that_is_not_finite_ends_alone_and_feeds_nobody(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make(llm)
    expected.add(Request("good", PROMPT, PLAIN))
    good = drain(expected)["good"]
    engine = make(llm)
    runner: Any = engine._runner
    logits, turns = runner.logits, []

    def poisoned(hidden: torch.Tensor) -> torch.Tensor:
        found = logits(hidden).clone()
        turns.append(len(found))
        if len(turns) > 6 and len(found) > 1:
            found[1] = torch.nan
        return found

    monkeypatch.setattr(runner, "logits", poisoned)
    engine.add(Request("good", PROMPT, PLAIN))
    engine.add(Request("bad", PROMPT[2:], PLAIN))
    found = drain(engine)
    assert found["bad"][-1].error == "the model's numbers are not finite"
    assert found["bad"][-1].token is None
    assert 1 < len(found["bad"]) < PLAIN.max_tokens
    assert [one.token for one in found["good"]] == [one.token for one in good]


@pytest.mark.parametrize(
    "params", [{"presence_penalty": 0.5}, {"repetition_penalty": 1.2}, {"frequency_penalty": 0.1}]
)
def test_who_needs_the_last_token_waits_for_it(llm: LLM, params: dict[str, float]) -> None:
    engine = make(llm)
    engine.add(Request("a", PROMPT, replace(PLAIN, **params)))  # type: ignore[arg-type]
    drain(engine)
    assert engine.stats.overlapped_steps == 0


def test_a_structure_waits_for_the_last_token(llm: LLM) -> None:
    if not isinstance(llm.engine._structures, StructureCompiler):
        pytest.skip("needs llguidance")
    engine = make(llm)
    engine.add(Request("a", PROMPT, replace(PLAIN, structure=Structure("regex", "[a-f]{5}"))))
    found = drain(engine)["a"]
    assert found[-1].finish_reason == "stop"
    assert engine.stats.overlapped_steps == 0


def test_a_launch_that_fails_loses_no_token_of_the_step_before(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(llm)
    engine.add(Request("a", PROMPT, PLAIN))
    found = [output for _ in range(3) for output in engine.step()]
    runner: Any = engine._runner
    launch = runner.launch

    def fail(*args: Any) -> Launch:
        raise MemoryError("no more")

    monkeypatch.setattr(runner, "launch", fail)
    with pytest.raises(MemoryError):
        engine.step()
    monkeypatch.setattr(runner, "launch", launch)
    found += drain(engine)["a"]
    expected = make(llm, late=False)
    expected.add(Request("a", PROMPT, PLAIN))
    assert [one.token for one in found] == [one.token for one in drain(expected)["a"]]


def test_who_lost_its_blocks_in_a_step_that_failed_ends_with_it(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next token was being chosen, and nobody knows it any more."""
    engine = make(llm)
    engine.add(Request("a", PROMPT, PLAIN))
    for _ in range(3):
        engine.step()
    scheduler = engine._scheduler

    def fail(*args: Any) -> Launch:
        scheduler._preempt(scheduler.running[0])  # as planning does where blocks are short
        raise MemoryError("no more")

    monkeypatch.setattr(engine._runner, "launch", fail)
    with pytest.raises(MemoryError):
        engine.step()
    engine.add(Request("in line", PROMPT, PLAIN))
    assert engine.abandon() == ["a"]
    assert [one.request.id for one in scheduler.waiting] == ["in line"]
    assert scheduler.pool.num_free == scheduler.pool.total
