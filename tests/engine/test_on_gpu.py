"""Every format of weights and cache on a GPU says what the CPU says with the same weights."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from dsv2 import LLM, SamplingParams
from dsv2.checkpoint.hub import pocket_folder
from dsv2.checkpoint.quantised import quantise_checkpoint
from dsv2.engine.weight_sizes import gpu_bytes, moe_layers
from dsv2.kernels.cpu import CpuExecutor

pytestmark = pytest.mark.gpu

TEXTS = [
    "import os\n\n\ndef files(folder):\n    for name in os.listdir(folder):\n        yield name\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
]
SCORED = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
ANSWER = SamplingParams(max_tokens=48, temperature=0.0, ignore_eos=True)
KINDS = [
    ("bfloat16", "bfloat16", 0.03), ("bfloat16", "int8", 0.03), ("bfloat16", "int6", 0.08),
    ("bfloat16", "fp8", 0.05), ("int8", "bfloat16", 0.03), ("int4", "bfloat16", 0.06),
]  # fmt: skip


def scores(llm: LLM) -> list[float]:
    """Logarithms of the probabilities of the texts' tokens."""
    found = []
    for done in llm.generate(TEXTS, SCORED):
        assert done.prompt_logprobs is not None
        found += [one.chosen for one in done.prompt_logprobs if one is not None]
    return found


def apart(one: list[float], other: list[float]) -> float:
    return fmean(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("weights", "cache", "bound"), KINDS)
def test_weights_and_caches(weights: str, cache: str, bound: float) -> None:
    on_cpu = LLM("pocket", device="cpu", dtype=weights, cache_dtype="bfloat16")
    llm = LLM("pocket", device="cuda", dtype=weights, cache_dtype=cache)
    assert (llm.plan.weights, llm.plan.cache) == (weights, cache)
    assert apart(scores(llm), scores(on_cpu)) < bound
    # Generated over the cache, one token a step, by captured steps, several at once.
    answers = llm.generate(TEXTS * 3, ANSWER)
    assert llm.engine.stats.captured_steps > 0
    again = [one.prompt_ids + one.token_ids for one in answers]
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
    for done, answer in zip(on_cpu.generate(again, params), answers, strict=True):
        assert done.prompt_logprobs is not None
        told = done.prompt_logprobs[len(answer.prompt_ids) :]
        # What the GPU took is the CPU's best choice, or close behind it.
        assert fmean(one.top[0][1] - one.chosen for one in told if one is not None) < bound


def test_published_fp8(tmp_path: Path) -> None:
    folder = tmp_path / "fp8"
    quantise_checkpoint(pocket_folder(), folder, "fp8", CpuExecutor(1))
    llm, on_cpu = LLM(folder, device="cuda"), LLM(folder, device="cpu", dtype="bfloat16")
    assert llm.plan.weights == "fp8"
    assert apart(scores(llm), scores(on_cpu)) < 0.03


def test_experts_in_the_hosts_memory() -> None:
    plain = LLM("pocket", device="cuda", dtype="bfloat16", cache_tokens=2048)
    rest, each = gpu_bytes(plain.config, "bfloat16")
    reserved = plain.plan.scratch_bytes + 2048 * plain.plan.token_bytes
    away = 3
    limit = int((rest + (moe_layers(plain.config) - away + 0.5) * each + reserved) / 0.95)
    llm = LLM(
        "pocket", device="cuda", dtype="bfloat16", cache_tokens=2048, max_memory={"cuda": limit}
    )
    assert llm.plan.host_layers == away
    assert apart(scores(llm), scores(plain)) < 0.03
    for one, other in zip(llm.generate(TEXTS, ANSWER), plain.generate(TEXTS, ANSWER), strict=True):
        assert one.token_ids[:8] == other.token_ids[:8]
