"""Guesses of a draft model change the number of steps and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv2 import LLM, SamplingParams, load_model
from dsv2.checkpoint import save_model
from dsv2.engine.blocks import BlockPool
from dsv2.engine.completion import Completion
from dsv2.engine.draft_model import ModelDrafter, check_vocabularies
from dsv2.engine.request import Request, Structure
from dsv2.engine.runner import Runner
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch
from dsv2.tokenizer import Tokenizer
from tests.models import save_tiny
from tests.text import train_tiny

GREEDY = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True, logprobs=2)
WARM = [
    replace(GREEDY, temperature=0.8, seed=n, frequency_penalty=0.3, top_p=0.95) for n in range(5)
]
PROMPTS = [
    "def f(x):", "import torch\n" * 40, "import torch\n" * 40 + "x", "class A:\n    pass\n" * 9,
    "a b c d e f g " * 12,
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def drafts(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model itself, one that is like it, and one that has nothing in common with it."""
    place = tmp_path_factory.mktemp("drafts")
    near = load_model(folder, dtype="float32")
    assert isinstance(near, Transformer)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in near.parameters():
            weight += 0.03 * weight.std() * torch.randn(weight.shape, generator=generator)
    files = Tokenizer.from_folder(folder).files()
    save_model(near, place / "near", dtype=torch.float32, tokenizer_files=files)
    other = save_tiny(place, seed=1, num_hidden_layers=2, hidden_size=16, kv_lora_rank=8)
    return {"itself": folder, "near": place / "near", "other": other}


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, list[Completion]]:
    llm = make(folder, prefix_cache=False)
    return {"greedy": llm.generate(PROMPTS, GREEDY), "warm": llm.generate(PROMPTS, WARM)}


def make(folder: Path, draft: Path | None = None, **options: Any) -> LLM:
    if draft is not None:
        options = {"draft_model": draft, "speculate": 4} | options
    # One thread each, since tests on two cores run two at a time.
    return LLM(folder, device="cpu", dtype="float32", **{"threads": 1, **options})


def drafter(llm: LLM) -> ModelDrafter:
    found = llm.engine._drafter
    assert isinstance(found, ModelDrafter)
    return found


def same(found: list[Completion], expected: list[Completion]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == other.logprobs


def nothing_is_left(llm: LLM) -> None:
    stats, pool = llm.engine.stats, drafter(llm).pool
    assert stats.free_blocks == stats.total_blocks
    assert pool.num_free == pool.total
    assert drafter(llm)._twins == {}


@pytest.mark.parametrize("kind", ["greedy", "warm"])
@pytest.mark.parametrize("name", [pytest.param("itself", marks=pytest.mark.slow), "near", "other"])
def test_answers_are_the_same(
    folder: Path, drafts: dict[str, Path], expected: dict[str, list[Completion]], name: str,
    kind: str,
) -> None:  # fmt: skip
    llm = make(folder, drafts[name])
    same(llm.generate(PROMPTS, GREEDY if kind == "greedy" else WARM), expected[kind])
    nothing_is_left(llm)
    stats = llm.engine.stats
    share = stats.accepted_tokens / stats.drafted_tokens
    # With equal noise even strangers often draw the same token, where the noise decides.
    low, high = {"itself": (1, 1), "near": (0.1, 0.95), "other": (0, 0.5)}[name]
    assert low <= share <= high
    assert stats.undrafted_steps == 0


def steps(llm: LLM, prompt: str, params: SamplingParams) -> int:
    llm.engine.add(Request("counted", tuple(llm.tokenizer.encode(prompt)), params))
    count = 0
    while llm.engine.has_work:
        llm.engine.step()
        count += 1
    return count


def test_a_good_draft_model_saves_steps(folder: Path, drafts: dict[str, Path]) -> None:
    plain = steps(make(folder), PROMPTS[0], GREEDY)
    assert plain == 40
    # The prompt and its first token, then four guesses and one more token in each step.
    assert steps(make(folder, drafts["itself"]), PROMPTS[0], GREEDY) == 1 + 39 // 5 + 1
    assert steps(make(folder, drafts["near"]), PROMPTS[0], WARM[0]) < plain


@pytest.mark.parametrize("size", [8, 40])
def test_long_prompts_are_read_beside_the_others(
    folder: Path, drafts: dict[str, Path], expected: dict[str, list[Completion]], size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    llm = make(folder, drafts["itself"], max_step_tokens=size, max_sequences=5)
    seen: list[int] = []
    runner = drafter(llm)._runner
    forward = runner.forward

    def counting(batch: RaggedBatch) -> torch.Tensor:
        seen.append(batch.num_tokens)
        return forward(batch)

    monkeypatch.setattr(runner, "forward", counting)
    same(llm.generate(PROMPTS, GREEDY), expected["greedy"])
    assert max(seen) == size
    stats = llm.engine.stats
    assert stats.accepted_tokens == stats.drafted_tokens > 0
    nothing_is_left(llm)


def test_on_a_prefix_hit(
    folder: Path, drafts: dict[str, Path], expected: dict[str, list[Completion]]
) -> None:
    llm = make(folder, drafts["itself"])
    for _ in range(2):
        for prompt, one in zip(PROMPTS, expected["greedy"], strict=True):
            same(llm.generate(prompt, GREEDY), [one])
    stats = llm.engine.stats
    assert stats.cached_tokens > 0
    assert drafter(llm).pool.num_published > 0
    assert stats.accepted_tokens == stats.drafted_tokens
    nothing_is_left(llm)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["itself", "near"])
def test_preempted(folder: Path, drafts: dict[str, Path], name: str) -> None:
    short = [prompt[:12] for prompt in PROMPTS[1:4]]
    params = replace(GREEDY, max_tokens=150)
    alone = make(folder).generate(short, params)
    llm = make(folder, drafts[name], cache_tokens=4 * 64)
    same(llm.generate(short, params), alone)
    assert llm.engine.stats.preemptions > 0
    nothing_is_left(llm)


@pytest.mark.parametrize("blocks", [4, 30])
def test_aborts_free_the_draft_models_blocks_too(
    folder: Path, drafts: dict[str, Path], blocks: int
) -> None:
    llm = make(folder, max_step_tokens=60, max_sequences=3)
    runner, pool = Runner(make(drafts["near"]).model, blocks), BlockPool(blocks)
    llm.engine._drafter = ModelDrafter(runner, pool, [llm.tokenizer.eos_id], max_step_tokens=60)
    for number, prompt in enumerate(PROMPTS):
        ids = tuple(llm.tokenizer.encode(prompt))
        llm.engine.add(Request(str(number), ids, GREEDY, priority=number % 2))
    busiest = 0
    for number in range(5):
        for _ in range(8):
            llm.engine.step()
            held = {block for twin in drafter(llm)._twins.values() for block in twin.own.blocks}
            assert len(held) + pool.num_free == pool.total
            busiest = max(busiest, len(held))
        llm.engine.abort(str(number))
    assert busiest > 1
    assert not llm.engine.has_work
    nothing_is_left(llm)


@pytest.mark.parametrize("blocks", [1, 3, 6])
def test_a_full_draft_cache_is_seen_and_harms_nobody(
    folder: Path, drafts: dict[str, Path], expected: dict[str, list[Completion]], blocks: int
) -> None:
    llm = make(folder)
    runner = Runner(make(drafts["itself"]).model, blocks)
    llm.engine._drafter = ModelDrafter(runner, BlockPool(blocks), [llm.tokenizer.eos_id])
    same(llm.generate(PROMPTS, GREEDY), expected["greedy"])
    stats = llm.engine.stats
    assert stats.undrafted_steps > 0
    assert stats.drafted_tokens > 0  # whose tokens fit is still guessed for
    nothing_is_left(llm)


def test_a_sequence_beyond_the_draft_models_context_gets_no_guesses(
    folder: Path, tmp_path: Path, expected: dict[str, list[Completion]]
) -> None:
    short = save_tiny(tmp_path, max_position_embeddings=64)
    llm = make(folder, short)
    same(llm.generate(PROMPTS[:2], GREEDY), expected["greedy"][:2])
    assert llm.engine.stats.undrafted_steps > 0
    assert llm.engine.stats.drafted_tokens > 0
    nothing_is_left(llm)


def test_a_draft_model_with_bad_numbers_guesses_nothing(
    folder: Path, drafts: dict[str, Path], expected: dict[str, list[Completion]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    llm = make(folder, drafts["itself"])
    runner = drafter(llm)._runner
    monkeypatch.setattr(runner, "logits", lambda hidden: torch.full((len(hidden), 512), torch.nan))
    same(llm.generate(PROMPTS, GREEDY), expected["greedy"])
    stats = llm.engine.stats
    assert stats.drafted_tokens == 0
    assert stats.undrafted_steps == 5 * 37  # all but a failed try at the first and the last token
    nothing_is_left(llm)


def test_guesses_stop_where_the_answer_does(folder: Path, drafts: dict[str, Path]) -> None:
    plain, llm = make(folder), make(folder, drafts["itself"])
    for params in (
        replace(GREEDY, ignore_eos=False, logit_bias={plain.tokenizer.eos_id: 3.0}),
        replace(GREEDY, min_tokens=5, stop_token_ids=list(range(40, 104))),
        replace(GREEDY, max_tokens=1), replace(GREEDY, max_tokens=2), replace(GREEDY, max_tokens=3),
        replace(GREEDY, structure=Structure("regex", r"(\d\d:){4}\d\d")),
    ):  # fmt: skip
        same(llm.generate(PROMPTS, params), plain.generate(PROMPTS, params))
    stats = llm.engine.stats
    # A guess that ends the answer is right, but no token comes after it; it counts as the last.
    assert 0 <= stats.drafted_tokens - stats.accepted_tokens <= 3 * len(PROMPTS)
    assert stats.accepted_tokens > 50
    nothing_is_left(llm)


def test_a_draft_model_of_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="draft_model is given with speculate 0"):
        make(folder, folder, speculate=0)
    with pytest.raises(ValueError, match="of 8192 tokens, model of 512"):
        LLM(folder, draft_model="pocket", speculate=4)
    ours = Tokenizer.from_folder(folder)
    renamed = json.loads(ours.files()["tokenizer.json"])
    theirs = train_tiny(tmp_path / "longer", 520)
    with pytest.raises(ValueError, match="of 520 tokens, model of 512"):
        check_vocabularies(ours, theirs)
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    words = renamed["model"]["vocab"]
    one, two = (next(text for text, n in words.items() if n == place) for place in (300, 301))
    words[one], words[two] = 301, 300
    (swapped / "tokenizer.json").write_text(json.dumps(renamed))
    with pytest.raises(ValueError, match="but token 300 is"):
        check_vocabularies(ours, Tokenizer.from_folder(swapped))
    check_vocabularies(ours, Tokenizer.from_folder(folder))


def test_counts_out_of_bounds_are_refused(folder: Path) -> None:
    runner = Runner(make(folder).model, 1)
    with pytest.raises(ValueError, match="count is 65"):
        ModelDrafter(runner, BlockPool(1), [1], 65)
    with pytest.raises(ValueError, match="max_step_tokens is 0"):
        ModelDrafter(runner, BlockPool(1), [1], max_step_tokens=0)
