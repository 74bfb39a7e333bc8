"""The same answer, to the last bit, however it came about (F32, F33)."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv2 import LLM, SamplingParams, load_model
from dsv2.engine.completion import Completion
from dsv2.engine.request import Request
from dsv2.engine.sequence import Sequence
from dsv2.engine.speculate import NgramDrafter
from dsv2.kernels.cpu import ISA, CpuExecutor, supported
from dsv2.kernels.registry import BackendError
from dsv2.ragged import RaggedBatch
from tests.models import VOCAB, save_tiny

WIDE = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64,
        "kv_lora_rank": 64, "v_head_dim": 16, "qk_nope_head_dim": 64}  # fmt: skip
ANSWER = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True, logprobs=2)
PROMPTS = [
    "def f(x):", "import torch\n" * 40, "import torch\n" * 40 + "x", "class A:\n    pass\n" * 9,
    "a b c d e f g " * 12,
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("wide"), **WIDE)


FORMATS = [
    "float32", "int4 with int8",
    *(pytest.param(name, marks=pytest.mark.slow) for name in
      ("bfloat16", "int8", "int4", "float32 with int6")),
    *(pytest.param(f"{name} on cuda", marks=pytest.mark.gpu) for name in ("float32", "bfloat16")),
]  # fmt: skip


@pytest.fixture(scope="module", params=FORMATS)
def dtype(request: pytest.FixtureRequest) -> str:
    """Of the weights, and where it says so of the cache, and the device."""
    return str(request.param)


@pytest.fixture(scope="module")
def alone(folder: Path, dtype: str) -> list[Completion]:
    llm = make(folder, dtype, prefix_cache=False)
    return [llm.generate(prompt, ANSWER)[0] for prompt in PROMPTS]


def make(folder: Path, dtype: str, **options: Any) -> LLM:
    formats, _, device = dtype.partition(" on ")
    weights, _, cache = formats.partition(" with ")
    # One thread each, since tests on two cores run two at a time.
    options = {"deterministic": True, "threads": 1} | options
    return LLM(
        folder, device=device or "cpu", dtype=weights, cache_dtype=cache or "auto", **options
    )


def same(found: list[Completion], expected: list[Completion]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == other.logprobs


def test_batched(folder: Path, dtype: str, alone: list[Completion]) -> None:
    assert len({one.token_ids for one in alone}) == len(PROMPTS)
    same(make(folder, dtype).generate(PROMPTS, ANSWER), alone)
    same(make(folder, dtype, threads=2).generate(PROMPTS[::-1], ANSWER)[::-1], alone)


@pytest.mark.parametrize("size", [5, 17, 64, 100])
def test_chunked(folder: Path, dtype: str, alone: list[Completion], size: int) -> None:
    llm = make(folder, dtype, max_step_tokens=size, max_sequences=5)
    same(llm.generate(PROMPTS, ANSWER), alone)


def test_on_a_prefix_hit(folder: Path, dtype: str, alone: list[Completion]) -> None:
    llm = make(folder, dtype)
    cold = [llm.generate(prompt, ANSWER)[0] for prompt in PROMPTS]
    warm = [llm.generate(prompt, ANSWER)[0] for prompt in PROMPTS]
    same(cold, alone)
    same(warm, alone)
    assert cold[0].cached_tokens == 0
    assert cold[2].cached_tokens > 0
    assert all(one.cached_tokens % 64 == 0 for one in warm)
    assert warm[1].cached_tokens > 64


def test_preempted(folder: Path, dtype: str) -> None:
    short = [prompt[:12] for prompt in PROMPTS[1:4]]
    long_answers = replace(ANSWER, max_tokens=130)  # three blocks each, and there are four
    plain = make(folder, dtype, prefix_cache=False)
    expected = [plain.generate(prompt, long_answers)[0] for prompt in short]
    llm = make(folder, dtype, cache_tokens=4 * 64)
    same(llm.generate(short, long_answers), expected)
    assert llm.engine.stats.preemptions > 0
    assert llm.engine.stats.free_blocks == llm.engine.stats.total_blocks


class Foresight:
    """Drafts from a known answer, every fifth token of which is wrong."""

    num_undrafted = 0

    def __init__(self, answers: list[Completion]) -> None:
        self.answers = {answer.prompt_ids: answer.token_ids for answer in answers}

    def draft(self, sequences: list[Sequence]) -> None:
        for one in sequences:
            known = self.answers[one.request.prompt_ids][one.num_generated :][:6]
            room = one.request.params.max_tokens - one.num_generated - 1
            drafts = [(token + (n % 5 == 4)) % VOCAB for n, token in enumerate(known)]
            one.drafts = drafts[: max(room, 0)]

    def forget(self, sequence: Sequence) -> None:
        pass


def test_speculated(folder: Path, dtype: str, alone: list[Completion]) -> None:
    # With a temperature too: a draft is kept where it is what would have been drawn.
    warm = [replace(ANSWER, temperature=0.8, seed=n, frequency_penalty=0.3) for n in range(5)]
    drawn = make(folder, dtype).generate(PROMPTS, warm)
    for params, expected in ((ANSWER, alone), (warm, drawn)):
        llm = make(folder, dtype)
        llm.engine._drafter = Foresight(expected)
        same(llm.generate(PROMPTS, params), expected)
        stats = llm.engine.stats
        assert stats.drafted_tokens * 0.6 < stats.accepted_tokens < stats.drafted_tokens
    # Few tokens to choose from recur, so that a drafter that looks back finds what to draft.
    few = replace(ANSWER, logit_bias=dict.fromkeys((101, 202, 303), 30.0))
    expected = make(folder, dtype).generate(PROMPTS, few)
    guessing = make(folder, dtype, speculate=5)
    same(guessing.generate(PROMPTS, few), expected)
    assert 0 < guessing.engine.stats.accepted_tokens < guessing.engine.stats.drafted_tokens


def test_tokens_that_recur_are_guessed() -> None:
    def drafts(tokens: list[int], answer: int = 20, **options: int) -> list[int]:
        request = Request("a", tuple(tokens), SamplingParams(max_tokens=answer))
        one = Sequence(request, 0, list(tokens))
        NgramDrafter(**options).draft([one])
        return one.drafts

    assert drafts([1, 2, 3, 4, 5, 9, 1, 2, 3]) == [4, 5, 9, 1]
    assert drafts([1, 2, 3, 4, 5, 9, 1, 2, 3], count=2) == [4, 5]
    assert drafts([1, 2, 7, 5, 1, 2, 8, 5, 1, 2]) == [8, 5, 1, 2]  # the last time counts
    assert drafts([1, 2, 3, 1, 2], answer=2) == [3]
    assert drafts([1, 2, 3, 1, 2], answer=1) == []
    assert drafts([1, 2, 3, 4]) == drafts([1]) == []
    with pytest.raises(ValueError, match="count is 0"):
        NgramDrafter(count=0)


def tolerance_of(dtype: str) -> float:
    """Of log-probabilities; a random model's logits are wide.

    Rounding activations to 8 bits makes more of a last bit than bf16 does, and so do the other
    kernels that a GPU takes when sums may have any order.
    """
    return {"float32": 1e-3, "bfloat16": 8e-2, "float32 on cuda": 1e-3}.get(dtype, 0.3)


def test_reusing_answers_stays_within_tolerance(folder: Path, dtype: str) -> None:
    """Without ``deterministic`` a chat's next turn finds its own answer in the cache."""
    exact, loose = make(folder, dtype), make(folder, dtype, deterministic=False)
    # 100 tokens, so that the answer ends in another block than the prompt.
    prompt = (exact.tokenizer.encode(PROMPTS[1]) * 9)[:100]
    first = loose.generate([prompt], ANSWER)[0]
    if "cuda" not in dtype:  # there other kernels take free orders, and bits differ
        assert exact.generate([prompt], ANSWER)[0].token_ids == first.token_ids
    follow = [*first.prompt_ids, *first.token_ids, *exact.tokenizer.encode(" and then")]
    found = [llm.generate([follow], ANSWER)[0] for llm in (exact, loose)]
    assert found[1].cached_tokens > found[0].cached_tokens
    # What answers have left in the cache was computed by other kernels than a prompt's: three times
    # the difference.
    assert_close(found[1], found[0], 3 * tolerance_of(dtype))


def test_company_stays_within_tolerance(folder: Path, dtype: str, alone: list[Completion]) -> None:
    """Without ``deterministic``, batched, cut anywhere and preempted; on a CPU to the last bit."""
    llm = make(
        folder, dtype, deterministic=False, max_step_tokens=37, max_sequences=5, cache_tokens=640
    )
    found = llm.generate(PROMPTS, ANSWER)
    if "cuda" not in dtype:
        same(found, alone)
    for one, other in zip(found, alone, strict=True):
        assert_close(one, other, tolerance_of(dtype))
    stats = llm.engine.stats
    assert stats.free_blocks == stats.total_blocks


def assert_close(one: Completion, other: Completion, tolerance: float) -> None:
    """Log-probabilities agree for as long as the tokens do, and at the first where they part."""
    assert one.logprobs is not None and other.logprobs is not None
    ids = zip(one.token_ids, other.token_ids, strict=True)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ids))
    for mine, yours in zip(one.logprobs[:common], other.logprobs[:common], strict=True):
        assert mine.chosen == pytest.approx(yours.chosen, abs=tolerance)
        assert [value for _, value in mine.top] == pytest.approx(
            [value for _, value in yours.top], abs=tolerance
        )
    if common < len(one.token_ids):
        # Where another token was chosen, the two were as good as equal.
        assert one.logprobs[common].chosen == pytest.approx(
            other.logprobs[common].chosen, abs=2 * tolerance
        )


def test_prompt_logprobs_are_those_of_a_plain_forward(folder: Path) -> None:
    llm = make(folder, "float32", max_step_tokens=50)
    params = replace(ANSWER, max_tokens=2, prompt_logprobs=3)
    llm.generate(PROMPTS[1], params)
    done = llm.generate(PROMPTS[1], params)[0]
    assert done.cached_tokens == 0  # what was cached has no logits
    assert done.prompt_logprobs is not None
    assert len(done.prompt_logprobs) == len(done.prompt_ids)
    assert done.prompt_logprobs[0] is None
    ids = torch.tensor(done.prompt_ids)
    with torch.inference_mode():
        logits, _ = load_model(folder, dtype="float32", backend="reference")(
            RaggedBatch.packed(ids, [len(ids)])
        )
    logs = logits.log_softmax(-1)
    for place, found in enumerate(done.prompt_logprobs[1:]):
        assert found is not None
        assert found.chosen == pytest.approx(float(logs[place, ids[place + 1]]), abs=1e-3)
        assert len(found.top) == 3


def test_cancelling_frees_everything_at_once(folder: Path) -> None:
    llm = make(folder, "float32", max_step_tokens=40, max_sequences=3)
    for number, prompt in enumerate(PROMPTS):
        ids = (llm.tokenizer.bos_id, *llm.tokenizer.encode(prompt))
        llm.engine.add(Request(str(number), ids, ANSWER))
    scheduler = llm.engine._scheduler
    for number in range(5):
        llm.engine.step()
        for _ in range(2):
            llm.engine.abort(str(number))
            held = {block for one in scheduler.running for block in one.blocks}
            assert llm.engine.stats.free_blocks == scheduler.pool.total - len(held)
            assert str(number) not in {one.request.id for one in scheduler.running}
    stats = llm.engine.stats
    assert not llm.engine.has_work
    assert stats.free_blocks == stats.total_blocks
    assert stats.running == stats.waiting == 0
    assert llm.engine.step() == []


def test_an_exception_for_one_row_ends_that_request_only(
    folder: Path, alone: list[Completion], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsv2.engine.shaping import Wishes

    add = Wishes.add

    def broken(self: Wishes, row: int, sequence: Any, ends: frozenset[int]) -> None:
        if sequence.request.params.top_k == 13 and sequence.num_generated == 3:
            raise RuntimeError("this one is broken")
        add(self, row, sequence, ends)

    monkeypatch.setattr(Wishes, "add", broken)
    # A bias of nothing, for the row to ask for anything at all.
    params = [
        replace(ANSWER, top_k=13 if n == 1 else 0, logit_bias={0: 0.0}) for n in range(len(PROMPTS))
    ]
    found = make(folder, dtype).generate(PROMPTS, params)
    assert found[1].finish_reason == "error"
    assert found[1].error == "choosing the next token failed: this one is broken"
    assert len(found[1].token_ids) == 3
    del found[1]
    same(found, [one for n, one in enumerate(alone) if n != 1])


def test_the_best_instruction_set_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ISA, raising=False)
    every = supported()
    assert every[-1] == "scalar"
    assert CpuExecutor(1).description == f"cpu ({every[0]}, 1 thread)"
    for place, isa in enumerate(every):
        monkeypatch.setenv(ISA, isa)
        assert supported() == every[place:]
        assert CpuExecutor(1).description == f"cpu ({isa}, 1 thread)"
    monkeypatch.setenv(ISA, "sse2")
    with pytest.raises(BackendError, match=f"DSV2_ISA is 'sse2', this machine has {every[0]}"):
        CpuExecutor(1)
