"""The scheduler and the block pool as data structures: no tensors, no model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from dsv2.engine.blocks import BlockPool
from dsv2.engine.request import OverloadedError, Request, RequestError, SamplingParams
from dsv2.engine.scheduler import MAX_ANSWERS_AHEAD, Scheduler
from dsv2.engine.sequence import UNKNOWN, Sequence
from dsv2.shapes import BLOCK_SIZE


def sequence(prompt: int, answer: int = 4, name: str = "a", **fields: Any) -> Sequence:
    request = Request(name, tuple(range(prompt)), SamplingParams(max_tokens=answer), **fields)
    return Sequence(request, seed=0, tokens=list(request.prompt_ids))


def advance(scheduler: Scheduler) -> list[tuple[str, int]]:
    """Do a step's work as the engine would, with token 7 for every choice."""
    done = []
    for work in scheduler.plan():
        scheduler.advance(work)
        done.append((work.sequence.request.id, work.count))
        if work.sequence.computed == len(work.sequence.tokens):
            work.sequence.tokens.append(7)
            if work.sequence.num_generated == work.sequence.request.params.max_tokens:
                scheduler.finish(work.sequence)
    return done


def drain(scheduler: Scheduler) -> list[str]:
    """Run to the end; the names in the order they finished."""
    ended: list[str] = []
    for _ in range(10_000):
        before = {s.request.id for s in (*scheduler.running, *scheduler.waiting)}
        if not before:
            return ended
        advance(scheduler)
        after = {s.request.id for s in (*scheduler.running, *scheduler.waiting)}
        ended += sorted(before - after)
    raise AssertionError("it does not end")


def test_a_long_prompt_comes_in_chunks_behind_generated_tokens() -> None:
    scheduler = Scheduler(BlockPool(8), max_step_tokens=10, max_sequences=4)
    scheduler.add(sequence(3, name="short"))
    assert advance(scheduler) == [("short", 3)]
    scheduler.add(sequence(25, name="long"))
    assert advance(scheduler) == [("short", 1), ("long", 9)]
    assert advance(scheduler) == [("short", 1), ("long", 9)]
    assert advance(scheduler) == [("short", 1), ("long", 7)]
    assert advance(scheduler) == [("long", 1)]


def test_nobody_overtakes_a_large_request() -> None:
    scheduler = Scheduler(BlockPool(3), max_step_tokens=200, max_sequences=4, prefix_cache=False)
    scheduler.add(sequence(2 * BLOCK_SIZE - 4, name="first"))
    scheduler.add(sequence(2 * BLOCK_SIZE, name="large"))
    scheduler.add(sequence(5, name="small"))
    assert [name for name, _ in advance(scheduler)] == ["first"]
    while any(s.request.id == "first" for s in scheduler.running):
        assert [s.request.id for s in scheduler.running] == ["first"]
        advance(scheduler)
    advance(scheduler)
    assert scheduler.running[0].request.id == "large"


def test_what_can_never_run_is_refused_with_both_numbers() -> None:
    scheduler = Scheduler(BlockPool(1), max_step_tokens=10, max_sequences=1)
    with pytest.raises(RequestError, match=r"4 and a prompt of 61 tokens .* cache's 64 tokens"):
        scheduler.add(sequence(61))
    scheduler.add(sequence(60))


def test_a_full_line_turns_requests_away() -> None:
    scheduler = Scheduler(BlockPool(4), max_step_tokens=9, max_sequences=1, max_waiting=2)
    for name in "ab":
        scheduler.add(sequence(4, name=name))
    with pytest.raises(OverloadedError, match="2 requests are waiting, allowed are 2"):
        scheduler.add(sequence(4, name="c"))
    advance(scheduler)
    scheduler.add(sequence(4, name="c"))


def line_of(scheduler: Scheduler) -> str:
    return "".join(sorted(s.request.tenant for s in scheduler.waiting))


def test_a_full_line_is_shared_by_those_who_come() -> None:
    """Whoever has most in it gives way, newest first, until all have as much."""
    scheduler = Scheduler(BlockPool(4), max_step_tokens=9, max_sequences=1, max_waiting=6)
    for number in range(6):
        assert scheduler.add(sequence(4, name=f"a{number}", tenant="a")) is None
    lost = [scheduler.add(sequence(4, name=f"b{n}", tenant="b")) for n in range(3)]
    assert [one.request.id for one in lost if one] == ["a5", "a4", "a3"]
    for tenant in "ab":
        with pytest.raises(OverloadedError, match="6 requests are waiting"):
            scheduler.add(sequence(4, name="more", tenant=tenant))
    lost = [scheduler.add(sequence(4, name=f"c{n}", tenant="c")) for n in range(2)]
    assert sorted(one.request.id for one in lost if one) == ["a2", "b2"]
    assert line_of(scheduler) == "aabbcc"
    with pytest.raises(OverloadedError):
        scheduler.add(sequence(4, name="more", tenant="c"))
    assert line_of(scheduler) == "aabbcc"


def test_who_has_begun_or_ranks_higher_does_not_give_way() -> None:
    scheduler = Scheduler(BlockPool(4), max_step_tokens=9, max_sequences=1, max_waiting=3)
    for name, priority in (("begun", 0), ("high", 5), ("low", 0)):
        scheduler.add(sequence(4, name=name, tenant="a", priority=priority))
    scheduler.waiting[0].preemptions = 1
    with pytest.raises(OverloadedError):  # but one of the tenant's is of no higher rank
        scheduler.add(sequence(4, name="other", tenant="b"))
    lost = scheduler.add(sequence(4, name="urgent", tenant="b", priority=5))
    assert lost is not None and lost.request.id == "low"


def test_a_step_has_room_for_every_sequence() -> None:
    with pytest.raises(ValueError, match="below max_sequences"):
        Scheduler(BlockPool(1), max_step_tokens=3, max_sequences=4)


def test_a_known_beginning_is_not_computed_again_but_its_last_token_is() -> None:
    pool = BlockPool(20)
    scheduler = Scheduler(pool, max_step_tokens=500, max_sequences=4)
    scheduler.add(sequence(200, name="first"))
    assert advance(scheduler) == [("first", 200)]
    for prompt, computed in ((200, 8), (192, 64), (193, 1), (130, 2), (64, 64), (65, 1)):
        other = sequence(prompt, answer=1, name="other")
        scheduler.add(other)
        assert ("other", computed) in advance(scheduler)
        assert other.cached_tokens == prompt - computed
    drain(scheduler)
    assert pool.num_free == pool.total
    assert pool.num_published == 3
    scheduler.add(sequence(200, name="later"))
    assert advance(scheduler) == [("later", 8)]


def test_prefixes_are_shared_within_a_salt_only() -> None:
    scheduler = Scheduler(BlockPool(20), max_step_tokens=500, max_sequences=4)
    for salt, computed in (("a", 130), ("b", 130), ("a", 2), ("b", 2), ("", 130)):
        scheduler.add(sequence(130, answer=1, name=salt or "none", salt=salt))
        assert advance(scheduler) == [(salt or "none", computed)]


def test_generated_blocks_are_shared_on_request_only() -> None:
    for share, cached in ((False, 64), (True, 128)):
        scheduler = Scheduler(
            BlockPool(20), max_step_tokens=500, max_sequences=4, share_answers=share
        )
        first = sequence(70, answer=80)
        scheduler.add(first)
        drain(scheduler)
        follow = Request("b", (*first.tokens, 5), SamplingParams(max_tokens=1))
        second = Sequence(follow, 0, list(follow.prompt_ids))
        scheduler.add(second)
        advance(scheduler)
        assert second.cached_tokens == cached


def test_content_that_is_not_to_be_trusted_is_never_found() -> None:
    scheduler = Scheduler(BlockPool(20), max_step_tokens=500, max_sequences=4)
    bad = sequence(130)
    scheduler.add(bad)
    advance(scheduler)
    scheduler.finish(bad, forget=True)
    assert scheduler.pool.num_published == 0
    scheduler.add(sequence(130))
    assert advance(scheduler) == [("a", 130)]


def test_the_longest_unused_content_makes_room_first() -> None:
    pool = BlockPool(4)
    scheduler = Scheduler(pool, max_step_tokens=500, max_sequences=4)
    for salt in ("old", "new"):
        scheduler.add(sequence(100, answer=1, name=salt, salt=salt))
        drain(scheduler)
    assert pool.num_published == 2
    scheduler.add(sequence(140, answer=1, salt="third"))
    advance(scheduler)
    assert pool.match("new", range(100), 1)
    assert not pool.match("old", range(100), 1)


def test_the_last_in_line_gives_up_its_blocks_and_still_ends() -> None:
    pool = BlockPool(4)
    scheduler = Scheduler(
        pool, max_step_tokens=500, max_sequences=3, prefix_cache=False, max_preemptions=2
    )
    everyone = [sequence(50, answer=140, name=name) for name in "abc"]
    for one in everyone:
        scheduler.add(one)
    assert drain(scheduler) == ["a", "b", "c"]
    assert everyone[0].preemptions == 0
    assert 0 < sum(one.preemptions for one in everyone) <= 3 * 2
    assert scheduler.num_preemptions == sum(one.preemptions for one in everyone)
    assert pool.num_free == 4


def test_many_that_each_need_most_of_the_cache_all_end() -> None:
    """64 requests of 6 of 10 blocks each (F32): two begin, one gives way, and nobody for ever."""
    pool = BlockPool(10)
    scheduler = Scheduler(pool, max_step_tokens=256, max_sequences=8, max_preemptions=2)
    names = [f"{number:02d}" for number in range(64)]
    everyone = [sequence(60, answer=300, name=name, salt=name) for name in names]
    for one in everyone:
        assert one.blocks_needed == 6
        scheduler.add(one)
    assert sorted(drain(scheduler)) == names
    assert scheduler.num_preemptions > 0
    assert max(one.preemptions for one in everyone) <= 2
    assert all(one.num_generated == 300 for one in everyone)
    assert pool.num_free == pool.total


def test_a_long_answer_is_computed_again_in_parts() -> None:
    """What it takes to compute tokens of answers is bounded, whatever a step may have of others."""
    scheduler = Scheduler(BlockPool(40), max_step_tokens=4096, max_sequences=4)
    one = sequence(70, answer=2000)
    scheduler.add(one)
    one.tokens += [7] * 1200  # as it was when it gave up its blocks
    counts = [count for _ in range(5) for _, count in advance(scheduler)]
    most = 1 + MAX_ANSWERS_AHEAD
    assert counts == [70, most, most, 1200 - 2 * most, 1]


def test_higher_priorities_go_first_and_take_a_lower_ones_place() -> None:
    scheduler = Scheduler(BlockPool(8), max_step_tokens=100, max_sequences=1)
    for name, priority in (("low", 0), ("lower", -1), ("high", 5)):
        scheduler.add(sequence(20, name=name, priority=priority))
        if name == "low":
            advance(scheduler)
    assert drain(scheduler) == ["high", "low", "lower"]


def test_tenants_share_alike_however_many_requests_they_send() -> None:
    scheduler = Scheduler(BlockPool(40), max_step_tokens=100, max_sequences=1)
    for number in range(20):
        scheduler.add(sequence(20, name=f"many{number:02}", tenant="many"))
    for number in range(3):
        scheduler.add(sequence(20, name=f"few{number}", tenant="few"))
    order = drain(scheduler)
    assert {name for name in order[:6] if name.startswith("few")} == {"few0", "few1", "few2"}
    # Who was away has saved up nothing: it starts level with who is at work.
    for number in range(4):
        scheduler.add(sequence(20, name=f"many{number}", tenant="many"))
        scheduler.add(sequence(20, name=f"few{number}", tenant="few"))
    order = drain(scheduler)
    assert sum(name.startswith("few") for name in order[:4]) in (2, 3)


def test_a_waiting_grammar_holds_up_nobody_else() -> None:
    scheduler = Scheduler(BlockPool(8), max_step_tokens=100, max_sequences=2)
    scheduler.add(sequence(20, name="grammar"))
    scheduler.waiting[0].waits = True
    scheduler.add(sequence(20, name="plain"))
    assert advance(scheduler) == [("plain", 20)]
    scheduler.waiting[0].waits = False
    assert ("grammar", 20) in advance(scheduler)


def test_a_step_under_way_is_planned_behind_but_found_by_nobody() -> None:
    scheduler = Scheduler(BlockPool(8), max_step_tokens=200, max_sequences=4, share_answers=True)
    short, long = (
        sequence(62, answer=2, name="short"),
        sequence(62, answer=9, name="long", salt="s"),
    )
    for one in (short, long):
        scheduler.add(one)
    advance(scheduler)
    for step in range(2):
        works = scheduler.plan()
        # With its last token under way, the short one has nothing more to compute.
        assert [work.sequence for work in works] == ([short, long] if step == 0 else [long])
        for work in works:
            scheduler.foresee(work)
            work.sequence.tokens.append(UNKNOWN)
        assert short.is_full
        assert scheduler.pool.num_published == 0
    # Block 0 is full of computed tokens, but the last of them is known only now.
    assert long.computed == 64
    for one in (short, long):
        one.tokens = [7 if token == UNKNOWN else token for token in one.tokens]
    for work in works:
        scheduler.settle(work)
    assert scheduler.pool.num_published == 1
    assert scheduler.pool.match("s", long.tokens, 1) == long.blocks[:1]
    scheduler.finish(short)


class Machine(RuleBasedStateMachine):
    """The scheduler against a memory that knows what stands in every slot (F34).

    Each slot remembers the sequence of tokens up to it; a sequence must find exactly its own
    history wherever it reads, whatever was shared, preempted, dropped or guessed wrong before.
    """

    alive = Bundle("alive")

    @initialize(
        blocks=st.integers(3, 10), budget=st.integers(4, 150), most=st.integers(1, 4),
        share=st.booleans(), cache=st.booleans(), bound=st.integers(0, 3),
        line=st.sampled_from([None, 1, 3]),
    )  # fmt: skip
    def start(
        self, blocks: int, budget: int, most: int, share: bool, cache: bool, bound: int,
        line: int | None,
    ) -> None:  # fmt: skip
        self.pool = BlockPool(blocks)
        self.scheduler = Scheduler(
            self.pool, max_step_tokens=budget, max_sequences=most, prefix_cache=cache,
            share_answers=share, max_preemptions=bound, max_waiting=line,
        )  # fmt: skip
        self.line = line
        self.memory: dict[tuple[int, int], tuple[str, int]] = {}
        self.bound, self.names = bound, 0
        self.ended: set[str] = set()

    @rule(
        target=alive, prompt=st.sampled_from([1, 30, 64, 65, 100, 128, 150, 200]),
        answer=st.integers(1, 90),
        flavour=st.integers(0, 2), salt=st.sampled_from(["", "s"]),
        tenant=st.sampled_from("xyz"), priority=st.integers(-1, 1), waits=st.booleans(),
    )  # fmt: skip
    def add(
        self, prompt: int, answer: int, flavour: int, salt: str, tenant: str, priority: int,
        waits: bool,
    ) -> Any:  # fmt: skip
        self.names += 1
        tokens = tuple((n * n + flavour * (n > 70)) % 50 for n in range(prompt))
        request = Request(
            str(self.names), tokens, SamplingParams(max_tokens=answer), priority, tenant, salt
        )
        one = Sequence(request, 0, list(tokens))
        if one.blocks_needed > self.pool.total:
            with pytest.raises(RequestError):
                self.scheduler.add(one)
            return multiple()
        one.waits = waits
        in_line = len(self.scheduler.waiting)
        full = self.line is not None and in_line >= self.line
        try:
            gone = self.scheduler.add(one)
        except OverloadedError:
            assert full
            assert len(self.scheduler.waiting) == in_line
            return multiple()
        assert (gone is not None) == full
        if gone is not None:
            assert gone.request.priority <= one.request.priority
            assert not gone.blocks and not gone.preemptions
            assert gone not in self.scheduler.waiting
            self.ended.add(gone.request.id)
        return one

    @rule()
    def structures_are_compiled(self) -> None:
        for one in self.scheduler.waiting:
            one.waits = False

    @rule(one=consumes(alive), forget=st.booleans())
    def cancel(self, one: Sequence, forget: bool) -> None:
        if one.request.id not in self.ended:
            self.ended.add(one.request.id)
            if forget and one in self.scheduler.running:
                # What it alone held is bad: whoever reads it finds another history than its own.
                for block in one.blocks:
                    for place in range(BLOCK_SIZE) if self.pool.holders(block) == 1 else ():
                        self.memory[block, place] = ("bad", 0)
            self.scheduler.finish(one, forget=forget)

    @rule(guesses=st.lists(st.integers(0, 3), max_size=4))
    def guess(self, guesses: list[int]) -> None:
        for one in self.scheduler.running:
            room = one.request.params.max_tokens - one.num_generated - 1
            if one.remaining == 1:
                one.drafts = guesses[: max(room, 0)]

    @rule(times=st.integers(1, 30))
    def steps(self, times: int) -> None:
        for _ in range(times):
            self.step()
            self.blocks_are_accounted_for()

    def step(self) -> None:
        works = self.scheduler.plan()
        assert bool(works) == bool(self.scheduler.running)
        assert sum(work.count for work in works) <= self.scheduler.max_step_tokens
        for work in works:
            one, first = work.sequence, work.sequence.computed
            text = [*one.tokens, *one.drafts]
            assert 0 < work.count <= one.remaining
            crosses = first < one.num_prompt < first + work.count
            assert not crosses, "prompt and answer in one work"
            for place in range(first):
                assert self._slot(one, place) == self._history(one, text, place)
            for place in range(first, first + work.count):
                block = one.blocks[place // BLOCK_SIZE]
                self.memory[block, place % BLOCK_SIZE] = self._history(one, text, place)
                assert work.tokens()[place - first] == text[place]
        for work in works:
            self._choose(work)

    def _choose(self, work: Any) -> None:
        one, accepted = work.sequence, None
        if work.finishes:
            known, drafts = len(one.tokens), list(one.drafts)
            for turn in range(work.num_choices):
                token = len(one.tokens) % 4
                one.tokens.append(token)
                done = one.num_generated >= one.request.params.max_tokens
                if done or turn >= len(drafts) or drafts[turn] != token:
                    break
            accepted = len(one.tokens) - 1 - one.computed
            assert known <= len(one.tokens) - 1
        one.drafts = []
        self.scheduler.advance(work, accepted)
        if one.num_generated >= one.request.params.max_tokens:
            self.ended.add(one.request.id)
            self.scheduler.finish(one)

    @staticmethod
    def _history(one: Sequence, text: list[int], place: int) -> tuple[str, int]:
        return one.request.salt, hash(tuple(text[: place + 1]))

    def _slot(self, one: Sequence, place: int) -> tuple[str, int] | None:
        return self.memory.get((one.blocks[place // BLOCK_SIZE], place % BLOCK_SIZE))

    @invariant()
    def blocks_are_accounted_for(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        held: dict[int, int] = {}
        for one in self.scheduler.running:
            assert len(set(one.blocks)) == len(one.blocks)
            assert one.computed <= len(one.blocks) * BLOCK_SIZE
            for block in one.blocks:
                held[block] = held.get(block, 0) + 1
        assert all(self.pool.holders(block) == count for block, count in held.items())
        assert self.pool.num_free == self.pool.total - len(held)
        assert not any(one.blocks for one in self.scheduler.waiting)
        assert all(
            one.preemptions <= self.bound
            for one in (*self.scheduler.running, *self.scheduler.waiting)
        )

    def teardown(self) -> None:
        """Whatever is left ends within a bounded number of steps."""
        if not hasattr(self, "scheduler"):
            return
        self.structures_are_compiled()
        for _ in range(20_000):
            if not self.scheduler.running and not self.scheduler.waiting:
                break
            self.step()
            self.blocks_are_accounted_for()
        assert not self.scheduler.running
        assert not self.scheduler.waiting
        assert self.pool.num_free == self.pool.total


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
