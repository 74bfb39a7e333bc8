"""Captured decode steps: their sizes, their padding, and that they change nothing."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv2 import LLM, SamplingParams
from dsv2.engine.engine import Engine
from dsv2.engine.graphs import (
    DecodeGraphs,
    Outputs,
    StepInputs,
    StepShape,
    fill_inputs,
    rung,
    table_width,
)
from dsv2.engine.request import Request
from dsv2.engine.runner import Runner
from dsv2.engine.sequence import UNKNOWN, Sequence, Work
from dsv2.ragged import RaggedBatch
from dsv2.shapes import BLOCK_SIZE
from tests.engine.late import FakeCapture

SCRATCH, VOCAB = 99, 11
CPU = torch.device("cpu")


def work(blocks: list[int], known: int, **params: Any) -> Work:
    """The last of ``known`` tokens, a generated one."""
    request = Request("a", (5,), SamplingParams(max_tokens=1000, **params))
    return Work(Sequence(request, 3, [5] * known, computed=known - 1, blocks=blocks), 1)


def test_sizes_are_few_and_waste_little() -> None:
    ladder = sorted({rung(count) for count in range(1, 300)})
    assert ladder == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384]
    assert all(count <= rung(count) < 2 * count for count in range(1, 2000))
    assert [table_width(n) for n in (1, 8, 9, 16, 17, 100)] == [8, 8, 16, 16, 32, 128]


def host(size: int) -> torch.Tensor:
    return torch.full((size,), 77, dtype=torch.uint8)


def test_rows_behind_the_sequences_touch_the_scratch_block_alone() -> None:
    inputs = StepInputs(StepShape(4, 8, True), host)
    works = [work([4, 7], 70, temperature=0.5), work([2], 3, temperature=0.0)]
    works[1].sequence.tokens[-1] = UNKNOWN
    works[1].sequence.seed = 2**63 - 1
    fill_inputs(inputs, works, [-1, 6], SCRATCH)
    assert inputs.seeds.tolist() == [3, 2**63 - 1, 0, 0]
    assert inputs.temperatures.tolist() == [0.5, 0.0, 0.0, 0.0]
    assert inputs.tokens.tolist() == [5, 0, 0, 0]
    assert inputs.positions.tolist() == [69, 2, 0, 0]
    assert inputs.kv_len.tolist() == [70, 3, 1, 1]
    own = [7 * BLOCK_SIZE + 5, 2 * BLOCK_SIZE + 2]
    assert inputs.slots.tolist() == [*own, SCRATCH * BLOCK_SIZE, SCRATCH * BLOCK_SIZE]
    assert inputs.sources.tolist() == [-1, 6, -1, -1]
    table = inputs.block_table.tolist()
    assert [table[0][:2], table[1][:1]] == [[4, 7], [2]]
    assert {block for row in (table[0][2:], table[1][1:], *table[2:]) for block in row} == {SCRATCH}


def graphs(most: int = 64) -> tuple[DecodeGraphs, FakeCapture, list[RaggedBatch]]:
    """Graphs of a model whose favourite token is the one that it reads, times its length."""
    seen: list[RaggedBatch] = []

    def compute(batch: RaggedBatch) -> torch.Tensor:
        seen.append(batch)
        favourite = (batch.tokens * batch.kv_len) % VOCAB
        return torch.nn.functional.one_hot(favourite.long(), VOCAB).float()

    capture = FakeCapture()
    return DecodeGraphs(compute, CPU, SCRATCH, capture, most), capture, seen


def test_a_step_is_captured_once_and_replayed_with_new_numbers() -> None:
    made, capture, seen = graphs()
    for count, known in ((3, 2), (4, 3), (3, 9)):
        logits, tokens = made.launch([work([1], known)] * count, None, None, drawn=False)
        assert tokens.tolist() == [5 * known % VOCAB] * count
        assert logits.shape == (count, VOCAB)
    assert made.num_captures == len(capture.made) == 1
    assert capture.made[0].replays == 3
    assert seen[0].host_lengths == (1,) * 4 and seen[0].generated == (True,) * 4
    assert seen[0].block_table is not None and seen[0].block_table.shape == (4, 8)
    assert seen[0].cu_q.tolist() == [0, 1, 2, 3, 4]
    made.launch([work([1] * 9, 2)], None, None, drawn=False)
    made.launch([work([1], 2)], None, None, drawn=True)
    made.launch([work([1], 2)], None, None, drawn=False)
    assert made.num_captures == 4


class Forgetful:
    """Captures as a GPU does: it keeps the addresses of what is read, not the tensors."""

    outputs = (torch.zeros(1, VOCAB), torch.zeros(1, dtype=torch.int64))

    def __call__(self, compute: Callable[[], Outputs]) -> Forgetful:
        compute()
        return self

    def replay(self) -> None:
        pass

    def free(self) -> None:
        pass


def test_what_a_captured_step_reads_outlives_the_capture() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def compute(batch: RaggedBatch) -> torch.Tensor:
        parts = [getattr(batch, one.name) for one in fields(batch)]
        kept.extend(weakref.ref(one) for one in parts if isinstance(one, torch.Tensor))
        return torch.zeros(1, VOCAB)

    made = DecodeGraphs(compute, CPU, SCRATCH, Forgetful())
    made.launch([work([1], 2)], None, None, drawn=False)
    gc.collect()
    assert len(kept) >= 7
    assert all(one() is not None for one in kept)


def test_a_capture_begins_with_harmless_numbers() -> None:
    made, _, _ = graphs()
    compute, seen = made._compute, []

    def note(batch: RaggedBatch) -> torch.Tensor:
        assert batch.slots is not None and batch.block_table is not None
        seen.append((batch.slots.tolist(), set(batch.block_table.flatten().tolist())))
        return compute(batch)

    made._compute = note
    made.launch([work([1], 2)] * 2, None, None, drawn=False)
    assert seen[0] == ([SCRATCH * BLOCK_SIZE] * 2, {SCRATCH})
    assert seen[1] == ([BLOCK_SIZE + 1] * 2, {1, SCRATCH})


def test_tokens_of_the_step_before_are_fed_on_the_device() -> None:
    made, _, _ = graphs()
    works = [work([1], 2), work([1], 3), work([1], 4)]
    works[0].sequence.tokens[-1] = works[2].sequence.tokens[-1] = UNKNOWN
    chosen = torch.tensor([-1, 9, 7])
    _, tokens = made.launch(works, [2, -1, 0], chosen, drawn=False)
    assert tokens.tolist() == [7 * 2 % VOCAB, 5 * 3 % VOCAB, 0]


class Planned:
    """Notes what is planned."""

    def __init__(self) -> None:
        self.plans: list[tuple[list[list[int]], list[int]]] = []

    def plan(self, block_table: torch.Tensor, kv_len: torch.Tensor) -> None:
        self.plans.append((block_table.tolist(), kv_len.tolist()))

    def run(self, q_latent: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def test_attention_is_planned_before_every_replay_with_the_steps_numbers() -> None:
    own = Planned()
    asked, at_replay = [], []

    def plan_decode(rows: int, width: int) -> Planned:
        asked.append((rows, width))
        return own

    def compute(batch: RaggedBatch) -> torch.Tensor:
        assert batch.decode is own
        at_replay.append(len(own.plans))
        return torch.zeros(2, VOCAB)

    made = DecodeGraphs(compute, CPU, SCRATCH, FakeCapture(), plan_decode=plan_decode)
    for known in (3, 70):
        made.launch([work([1, 5], known), work([2, 7], 9)], None, None, drawn=False)
    assert asked == [(2, 8)]
    assert at_replay == [1, 2, 3]  # the capture, and both replays
    blank, first, second = own.plans
    assert blank == ([[SCRATCH] * 8] * 2, [1, 1])
    assert [table[:2] for table in first[0]] == [[1, 5], [2, 7]]
    assert (first[1], second[1]) == ([3, 9], [70, 9])


def test_the_longest_unused_step_makes_room() -> None:
    made, capture, _ = graphs(most=2)

    def launch(count: int) -> None:
        made.launch([work([1], 2)] * count, None, None, drawn=False)

    for count in (1, 2, 1, 4):
        launch(count)
    assert [one.freed for one in capture.made] == [False, True, False]
    launch(1)
    assert made.num_captures == 3
    launch(2)
    assert [one.freed for one in capture.made] == [False, True, True, False]


def test_a_capture_that_fails_is_an_error() -> None:
    made, _, _ = graphs()

    def fail(compute: Any) -> Any:
        raise ValueError("not in a graph")

    made._capture = fail
    with pytest.raises(RuntimeError, match=r"3 sequences|4 sequences with 8 .*not in a graph"):
        made.launch([work([1], 2)] * 3, None, None, drawn=False)


PROMPTS = ["def f(x):", "import", "a b c d e " * 30, "class A:\n    pass\n" * 9, "x"]
GREEDY = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
PARAMS = [
    GREEDY, replace(GREEDY, temperature=0.8, seed=1), replace(GREEDY, logprobs=2),
    replace(GREEDY, temperature=1.5, seed=2, max_tokens=9), GREEDY,
]  # fmt: skip


def captured(llm: LLM, capture: Any = None) -> LLM:
    """The same with an engine whose decode steps are captured."""
    old, blocks = llm.engine, llm.plan.cache_tokens // BLOCK_SIZE
    llm.engine = Engine(
        Runner(llm.model, blocks, capture), old._scheduler, llm.limits, [llm.tokenizer.eos_id]
    )
    return llm


def test_captured_steps_say_what_eager_ones_do(tiny_folder: Path) -> None:
    plain, llm = (LLM(tiny_folder, device="cpu", dtype="float32") for _ in range(2))
    capture = FakeCapture()
    captured(llm, capture)
    for params in (GREEDY, PARAMS):
        expected = plain.generate(PROMPTS, params)
        found = llm.generate(PROMPTS, params)
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]
        assert [one.logprobs for one in found] == [one.logprobs for one in expected]
    assert sum(one.replays for one in capture.made) > 30
    assert plain.engine.stats.captured_steps == 0
    assert llm.engine.stats.captured_steps == len(capture.made) > 1


@pytest.mark.gpu
def test_on_a_gpu_captured_and_overlapped_steps_say_what_eager_ones_do(tiny_folder: Path) -> None:
    llm = LLM(tiny_folder, device="cuda", dtype="float32", deterministic=True)
    found = [llm.generate(PROMPTS, params) for params in (GREEDY, PARAMS)]
    stats = llm.engine.stats
    assert stats.overlapped_steps > 20
    runner = llm.engine._runner
    assert stats.captured_steps > 0
    runner._graphs, runner.is_asynchronous = None, False
    for params, answers in zip((GREEDY, PARAMS), found, strict=True):
        again = llm.generate(PROMPTS, params)
        assert [one.token_ids for one in again] == [one.token_ids for one in answers]
    assert llm.engine.stats.overlapped_steps == stats.overlapped_steps


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_on_a_gpu_no_launch_of_a_step_waits_for_the_device(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM("pocket", device="cuda", dtype=dtype)

    def answer() -> list[list[int]]:
        found = [llm.generate(PROMPTS, params) for params in (GREEDY, PARAMS)]
        return [list(one.token_ids) for answers in found for one in answers]

    expected = [answer(), answer()][1]  # captures steps, which waits, with the cache empty and full
    runner, launched = llm.engine._runner, []
    plain = runner.launch

    def strictly(run: Callable[[], Any]) -> Any:
        try:
            torch.cuda.set_sync_debug_mode("error")
            return run()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def watched(*args: Any, **kwargs: Any) -> Any:
        launched.append(strictly(lambda: plain(*args, **kwargs)))
        return launched[-1]

    number = torch.ones((), device="cuda")
    with pytest.raises(RuntimeError, match="synchronizing"):
        strictly(number.item)

    monkeypatch.setattr(runner, "launch", watched)
    captures = runner.num_captures
    assert answer() == expected
    assert runner.num_captures == captures
    assert any(not one.is_decode for one in launched) and len(launched) > 20
