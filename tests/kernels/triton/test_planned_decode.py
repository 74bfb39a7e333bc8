"""Attention that is planned on the host, in the place of the executor's own kernel."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv2.checkpoint.synthetic import synthetic_model
from dsv2.engine.blocks import BlockPool
from dsv2.engine.engine import Engine
from dsv2.engine.request import Limits, Request, SamplingParams
from dsv2.engine.runner import Runner
from dsv2.engine.scheduler import Scheduler
from dsv2.kernels import reference
from dsv2.kernels.executor import make_executor
from dsv2.kernels.flashinfer import LATENT, ROPE, MlaDecode
from dsv2.kernels.triton import planned_decode
from dsv2.kernels.triton.executor import TritonExecutor
from dsv2.ragged import RaggedBatch
from tests.kernels.layers import Draw, turn
from tests.kernels.test_executor import close, fresh_cache, three_steps
from tests.kernels.triton.place import DEVICE, HALF
from tests.tiny import tiny_config


class Readable:
    """Attends as the reference does, over what was planned."""

    def __init__(self, scale: float) -> None:
        self.scale, self.calls = scale, 0

    def plan(self, block_table: Tensor, kv_len: Tensor) -> None:
        self.where = block_table.to(DEVICE), kv_len.to(DEVICE)

    def run(self, q_latent: Tensor, q_rope: Tensor, cache: Tensor) -> Tensor:
        self.calls += 1
        return reference.attend_absorbed(
            q_latent, q_rope, cache, *self.where, (1,) * len(q_latent), self.scale
        )


@pytest.mark.parametrize(
    "repeats", [1, pytest.param(8, marks=pytest.mark.slow)]
)  # few tokens, and more than the kernels for few take
def test_it_takes_the_kernels_place(repeats: int) -> None:
    executor = TritonExecutor(DEVICE)
    layer = Draw("float32").attention(hidden=64)
    steps = three_steps(64, (70, 5, 1), 9)
    cache = fresh_cache(layer, "float32").to(DEVICE)
    handle = executor.pack_attention(layer)
    planned = Readable(layer.shape.scale)

    def attend(batch: RaggedBatch, x: Tensor) -> Tensor:
        cos, sin = (part.to(DEVICE) for part in turn(batch, layer.shape.rope))
        step = executor.begin(batch.to(DEVICE), cos, sin, "auto", "float32")
        own = x.to(DEVICE, copy=True)
        executor.attention(handle, own, step, cache)
        return own.cpu() - x

    for batch, x in steps[:2]:
        attend(batch, x)
    batch, x = repeated(*steps[2], repeats)
    expected = attend(batch, x)
    assert planned.calls == 0
    assert batch.block_table is not None
    planned.plan(batch.block_table, batch.kv_len)
    got = attend(replace(batch, decode=planned), x)
    assert planned.calls == 1
    close(got, expected, 1e-5)


def repeated(batch: RaggedBatch, x: Tensor, repeats: int) -> tuple[RaggedBatch, Tensor]:
    """The sequences of a step again and again: they write the same numbers to the same place."""
    assert batch.block_table is not None and batch.slots is not None
    rows = len(x) * repeats
    again = replace(
        batch,
        tokens=batch.tokens.repeat(repeats), positions=batch.positions.repeat(repeats),
        cu_q=torch.arange(rows + 1, dtype=torch.int32), kv_len=batch.kv_len.repeat(repeats),
        block_table=batch.block_table.repeat(repeats, 1), slots=batch.slots.repeat(repeats),
        host_lengths=(1,) * rows, host_totals=None, generated=(True,) * rows,
    )  # fmt: skip
    return again, x.repeat(repeats, 1)


ROWS, WIDTH, HEADS = 3, 2, 2


def decode(rows: int = ROWS, dtype: torch.dtype = HALF, **more: Any) -> MlaDecode | None:
    cache = torch.zeros(8, 64, more.pop("cache_width", LATENT + ROPE), dtype=dtype, device=DEVICE)
    return planned_decode.planned_decode(cache, rows, WIDTH, heads=HEADS, scale=0.1, dtype=HALF)


@pytest.fixture
def stand_in(flashinfer_stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashInfer's signatures, and nothing chosen or broken before."""
    monkeypatch.setattr(planned_decode, "available", lambda name: True)
    monkeypatch.setattr(planned_decode, "_chosen", {})
    monkeypatch.setattr(planned_decode, "_broken", set())


def test_without_flashinfer_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned_decode, "available", lambda name: False)
    assert decode() is None


@pytest.mark.usefixtures("stand_in")
def test_the_faster_one_is_taken_and_timed_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=planned_decode.__name__)
    seen: list[dict[str, float]] = []

    def choose(seconds: dict[str, float]) -> str:
        seen.append(seconds)
        return "flashinfer" if len(seen) == 1 else "triton"

    monkeypatch.setattr(planned_decode, "faster", choose)
    first = decode()
    assert first is not None
    assert set(seen[0]) == {"triton", "flashinfer"} and min(seen[0].values()) > 0
    assert "3 sequences of up to 128 tokens: flashinfer (" in caplog.text
    # Its plans are for the graph's size.
    first.plan(torch.zeros(ROWS, WIDTH, dtype=torch.int32), torch.tensor([5, 128, 64]))
    with pytest.raises(ValueError, match="allowed in this graph are 3 with 6"):
        first.plan(torch.zeros(4, WIDTH, dtype=torch.int32), torch.tensor([5, 128, 64, 1]))
    assert decode() is not None and len(seen) == 1
    assert decode(rows=4) is None and len(seen) == 2


@pytest.mark.usefixtures("stand_in")
def test_what_it_has_no_kernel_for_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*anything: Any) -> dict[str, float]:
        raise AssertionError("it was timed")

    monkeypatch.setattr(planned_decode, "_measure", never)
    assert decode(rows=2) is None  # few tokens have kernels of their own
    assert decode(dtype=torch.float32) is None
    assert decode(cache_width=LATENT) is None


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("error", "attempts"), [(RuntimeError("no compiler"), 1), (torch.OutOfMemoryError("no"), 2)]
)
def test_a_failure_is_said_and_costs_speed_alone(
    error: Exception, attempts: int, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    tried: list[int] = []

    def fail(*anything: Any) -> dict[str, float]:
        tried.append(1)
        raise error

    monkeypatch.setattr(planned_decode, "_measure", fail)
    assert decode() is decode() is None
    # What does not compile is not tried again; memory may be there another time.
    assert len(tried) == attempts
    assert "Triton's kernel attends" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("sequences", [3, 12])
def test_the_engine_with_flashinfer_says_what_it_says_without(
    sequences: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("flashinfer")
    caplog.set_level(logging.INFO, logger=planned_decode.__name__)
    config = tiny_config(
        hidden_size=256, kv_lora_rank=LATENT, qk_rope_head_dim=ROPE, qk_nope_head_dim=128,
        v_head_dim=128, num_attention_heads=128, rope_scaling=None, max_position_embeddings=2048,
    )  # fmt: skip
    executor = make_executor("triton", "cuda", deterministic=False)
    model = synthetic_model(config, executor, "bfloat16", device="cuda")

    # One token is forced: both read the same, and what they would have said is in its logprobs.
    params = SamplingParams(
        max_tokens=80, temperature=0.0, ignore_eos=True, logprobs=1, logit_bias={7: 100.0}
    )

    def logprobs(choice: str) -> dict[str, list[float]]:
        monkeypatch.setattr(planned_decode, "_chosen", {})
        monkeypatch.setattr(planned_decode, "faster", lambda seconds: choice)
        scheduler = Scheduler(BlockPool(64), max_step_tokens=1024, max_sequences=sequences)
        engine = Engine(Runner(model, 64), scheduler, Limits(config.vocab_size, 1024), ends=())
        for number in range(sequences):
            prompt = tuple((7 * number + 3 * place) % 150 + 2 for place in range(40 + 30 * number))
            engine.add(Request(str(number), prompt, params))
        found: dict[str, list[float]] = {}
        while engine.has_work:
            for one in engine.step():
                assert one.token == 7 and one.logprobs is not None
                found.setdefault(one.request_id, []).append(one.logprobs.chosen)
        return found

    expected = logprobs("triton")
    got = logprobs("flashinfer")
    assert any("flashinfer (" in one.getMessage() for one in caplog.records)
    spread = torch.tensor([*expected.values()]).std()
    for name, theirs in expected.items():
        apart = torch.tensor(got[name]) - torch.tensor(theirs)
        assert len(apart) == 80
        assert apart.abs().max() < 0.2 * spread
