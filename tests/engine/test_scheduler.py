from __future__ import annotations

import random

import pytest

from dsv2.engine.blocks import BlockPool
from dsv2.engine.request import Request, RequestError, SamplingParams
from dsv2.engine.scheduler import Scheduler, Sequence
from dsv2.shapes import BLOCK_SIZE


def sequence(prompt: int, answer: int = 4, name: str = "a") -> Sequence:
    request = Request(name, tuple(range(prompt)), SamplingParams(max_tokens=answer))
    return Sequence(request, seed=0, tokens=list(request.prompt_ids))


def advance(scheduler: Scheduler) -> list[tuple[str, int]]:
    """Do a step's work as the engine would, with token 7 for every choice."""
    done = []
    for work in scheduler.plan():
        finishes = work.finishes
        work.sequence.computed += work.count
        done.append((work.sequence.request.id, work.count))
        if finishes:
            work.sequence.tokens.append(7)
            if work.sequence.num_generated == work.sequence.request.params.max_tokens:
                scheduler.finish(work.sequence)
    return done


def test_a_long_prompt_comes_in_chunks_behind_generated_tokens() -> None:
    scheduler = Scheduler(BlockPool(8), max_step_tokens=10, max_sequences=4)
    scheduler.add(sequence(3, name="short"))
    assert advance(scheduler) == [("short", 3)]
    scheduler.add(sequence(25, name="long"))
    assert advance(scheduler) == [("short", 1), ("long", 9)]
    assert advance(scheduler) == [("short", 1), ("long", 9)]
    assert advance(scheduler) == [("short", 1), ("long", 7)]
    assert advance(scheduler) == [("long", 1)]


def test_admission_waits_for_blocks_and_keeps_the_order() -> None:
    scheduler = Scheduler(BlockPool(3), max_step_tokens=200, max_sequences=4)
    scheduler.add(sequence(2 * BLOCK_SIZE - 4, name="two"))
    scheduler.add(sequence(BLOCK_SIZE, name="two more"))
    scheduler.add(sequence(5, name="one"))
    assert [name for name, _ in advance(scheduler)] == ["two"]
    while scheduler.running and scheduler.running[0].request.id == "two":
        advance(scheduler)
    assert [s.request.id for s in scheduler.running] or advance(scheduler)
    assert {s.request.id for s in scheduler.running} == {"two more", "one"}


def test_what_can_never_run_is_refused() -> None:
    scheduler = Scheduler(BlockPool(1), max_step_tokens=10, max_sequences=1)
    with pytest.raises(RequestError, match="64 tokens"):
        scheduler.add(sequence(61))
    scheduler.add(sequence(60))


def test_a_step_has_room_for_every_sequence() -> None:
    with pytest.raises(ValueError, match="below max_sequences"):
        Scheduler(BlockPool(1), max_step_tokens=3, max_sequences=4)


@pytest.mark.parametrize("seed", range(20))
def test_every_request_ends_and_every_block_comes_back(seed: int) -> None:
    dice = random.Random(seed)
    pool = BlockPool(dice.randint(4, 12))
    scheduler = Scheduler(
        pool, max_step_tokens=dice.randint(4, 100), max_sequences=dice.randint(1, 4)
    )
    waiting = [sequence(dice.randint(1, 200), dice.randint(1, 40), str(n)) for n in range(20)]
    alive = [s for s in waiting if s.blocks_needed <= pool.total]
    for one in alive:
        scheduler.add(one)
    steps = 0
    while scheduler.running or scheduler.waiting:
        assert advance(scheduler)
        if dice.random() < 0.02 and (scheduler.running or scheduler.waiting):
            gone = dice.choice([*scheduler.running, *scheduler.waiting])
            scheduler.finish(gone)
            alive.remove(gone)
        owned = [block for s in scheduler.running for block in s.blocks]
        assert len(set(owned)) == len(owned)
        steps += 1
        assert steps < 20_000
    assert pool.num_free == pool.total
    assert all(s.num_generated == s.request.params.max_tokens for s in alive)
