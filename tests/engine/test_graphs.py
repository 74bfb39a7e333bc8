"""What a graph of a decode step holds; the graphs themselves where there is a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsv2 import LLM, SamplingParams
from dsv2.engine.bench import paged
from dsv2.engine.graphs import SIZES, fill, is_decode, ladder, static_batch, table_width
from dsv2.kernels.reference_executor import ReferenceExecutor
from tests.kernels.layers import Draw, turn

CPU = torch.device("cpu")


def test_the_ladder_holds_every_size() -> None:
    for count in range(1, 600):
        size = ladder(count)
        assert size >= count
        assert size in SIZES or size % SIZES[-1] == 0
        assert table_width(count) >= count > table_width(count) // 2
    assert [ladder(size) for size in SIZES] == list(SIZES)


def test_only_generated_tokens_alone_are_a_decode_step() -> None:
    step = paged(3, 1, 5, 3, generated=True, vocab_size=9)
    assert is_decode(step)
    assert not is_decode(replace(step, generated=(True, False, True)))
    assert not is_decode(replace(step, host_lengths=(1, 2, 1)))
    assert not is_decode(replace(step, generated=None))


def test_padding_changes_no_row_and_no_block_of_another() -> None:
    """Also when the buffers held a larger step before."""
    layer = Draw("float32").attention(hidden=64)
    executor = ReferenceExecutor()
    handle = executor.pack_attention(layer)
    static, spare = static_batch(4, 4, 12, CPU), static_batch(4, 1, 12, CPU)
    fill(static, paged(4, 1, 70, 12, generated=True, vocab_size=9), spare)
    batch = paged(2, 1, 130, 12, generated=True, vocab_size=9)
    fill(static, batch, spare)
    x = Draw("float32", seed=1).normal(4, 64)
    found = []
    for step in (batch, static):
        cache = Draw("float32", seed=2).normal(13, 64, 72)
        own = x[: step.num_tokens].clone()
        state = executor.begin(step, *turn(step, 8), "auto", "float32")
        executor.attention(handle, own, state, cache)
        found.append((own[:2], cache[:12]))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
def test_answers_from_graphs_are_those_without(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    prompts = [[3, 5, 7], [11] * 70, [2, 9]]
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    found = []
    for graphs in (True, False):
        if not graphs:
            monkeypatch.setattr("dsv2.engine.runner.is_decode", lambda batch: False)
        llm = LLM(tiny_folder, device="cuda", dtype="float32", deterministic=deterministic)
        found.append([done.token_ids for done in llm.generate(prompts, params)])
        captured = llm.engine._runner._graphs.num_captured  # type: ignore[union-attr]
        assert bool(captured) == graphs
    assert found[0] == found[1]
