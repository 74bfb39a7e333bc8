"""What fits: never more than there is, and never less for more memory."""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv2.checkpoint.hub import resolve
from dsv2.checkpoint.packed import WEIGHTS, load_packed
from dsv2.checkpoint.quantised import stored_bytes
from dsv2.checkpoint.releases import RELEASES, config_of
from dsv2.checkpoint.synthetic import synthetic_weights
from dsv2.checkpoint.weights import parameter_shapes
from dsv2.engine import loading
from dsv2.engine.bench import paged
from dsv2.engine.cache import allocate_cache
from dsv2.engine.loading import plan_folder
from dsv2.engine.plan import (
    GOOD_CACHE,
    LEAST_CACHE,
    MARGIN,
    DoesNotFitError,
    MemoryPlan,
    plan_memory,
    step_bytes,
)
from dsv2.engine.scheduler import MAX_ANSWERS_AHEAD
from dsv2.engine.sequence import blocks_for
from dsv2.engine.weight_sizes import gpu_bytes, moe_layers, packed_bytes
from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.formats import SCHEMES
from dsv2.kernels.triton.executor import TritonExecutor
from dsv2.model.config import ModelConfig
from dsv2.model.packed import PackedModel
from tests.models import save_tiny
from tests.tiny import tiny_config

LITE = config_of("v2-lite")
GB = 10**9
CONFIGS = [
    LITE, config_of("v2"), tiny_config(),
    tiny_config(hidden_size=64, q_lora_rank=32, max_position_embeddings=40_000),
]  # fmt: skip
WIDTHS = {name: place for place, name in enumerate(WEIGHTS[::-1])}

configs = st.sampled_from(CONFIGS)
free = st.integers(0, 45).flatmap(lambda bits: st.integers(2**bits, 2 ** (bits + 1)))
options = st.fixed_dictionaries(
    {
        "cache_tokens": st.none() | st.integers(64, 500_000),
        "sequences": st.integers(1, 64),
        "step_tokens": st.sampled_from([1, 64, 2048]),
        "convert": st.booleans(),
        "layout": st.just("cpu"),
        "formats": st.sampled_from([WEIGHTS, ("float32", "bfloat16"), ("int4",)]),
    }
)


def plan(config: ModelConfig, free_bytes: int, **given: Any) -> MemoryPlan | None:
    try:
        return plan_memory(config, free_bytes, **given)
    except DoesNotFitError:
        return None


@given(configs, free, options, st.sampled_from(["auto", "first", "last"]))
@settings(deadline=None)
def test_a_plan_never_exceeds_the_free_memory(
    config: ModelConfig, free_bytes: int, given: dict[str, Any], which: str
) -> None:
    dtype = {"auto": "auto", "first": given["formats"][0], "last": given["formats"][-1]}[which]
    found = plan(config, free_bytes, dtype=dtype, **given)
    if found is None:
        return
    assert found.total_bytes <= free_bytes * (1 - MARGIN)
    assert found.cache_tokens % 64 == 0
    assert 1 <= found.context == min(found.cache_tokens, config.max_position_embeddings)
    if given["cache_tokens"] is not None:
        assert 0 <= found.cache_tokens - given["cache_tokens"] < 64


@given(configs, free, free, options, st.booleans())
@settings(deadline=None, max_examples=200)
def test_more_memory_never_gives_a_narrower_format_or_a_shorter_context(
    config: ModelConfig, one: int, other: int, given: dict[str, Any], automatic: bool
) -> None:
    dtype = "auto" if automatic else given["formats"][-1]
    less, more = (plan(config, size, dtype=dtype, **given) for size in sorted((one, other)))
    if less is None:
        return
    assert more is not None
    assert WIDTHS[more.weights] >= WIDTHS[less.weights]
    assert more.context >= less.context


def test_the_same_holds_step_by_step_over_the_range_of_every_release() -> None:
    for name in ("v2-lite", "v2"):
        config = config_of(name)
        last: MemoryPlan | None = None
        seen = []
        for size in range(4 * GB, 2000 * GB, (1 if name == "v2-lite" else 4) * GB // 2):
            found = plan(config, size, sequences=1)
            assert last is None or found is not None
            if found is not None and last is not None:
                assert WIDTHS[found.weights] >= WIDTHS[last.weights]
                assert found.context >= last.context
            last = found
            if found is not None and found.weights not in seen:
                seen.append(found.weights)
        assert seen == ["int4", "int8", "bfloat16", "float32"][: len(seen)]
        assert len(seen) >= 3


@given(configs, free, options)
@settings(deadline=None)
def test_advice_does_what_it_says(
    config: ModelConfig, free_bytes: int, given: dict[str, Any]
) -> None:
    given |= {"cache_tokens": None}
    found = plan(config, free_bytes, **given)
    if found is None:
        return
    for line in found.advice:
        option, _, gain = line.partition(": ")
        name, value = option.split()
        if name == "--cache-tokens":
            better = plan(config, free_bytes, **given | {"cache_tokens": int(value)})
        elif name == "--dtype":
            better = plan(config, free_bytes, dtype=value, **given)
        else:
            assert name == "--max-sequences"
            fewer = int(value)
            assert fewer * config.max_position_embeddings <= found.cache_tokens
            continue
        assert better is not None
        assert better.context > found.context
        promised = re.search(r"a context of ([\d,]+) tokens", gain)
        assert promised is not None
        assert better.context >= int(promised[1].replace(",", ""))


@given(configs, free, options)
@settings(deadline=None)
def test_a_refusal_names_the_numbers_and_something_that_fits(
    config: ModelConfig, free_bytes: int, given: dict[str, Any]
) -> None:
    try:
        plan_memory(config, free_bytes, dtype=given["formats"][0], **given)
    except DoesNotFitError as error:
        text = str(error)
    else:
        return
    assert "are free" in text
    assert given["formats"][0] in text
    changes: dict[str, Any] = {}
    if other := re.search(r"--dtype (\w+)", text):
        changes["dtype"] = other[1]
    if tokens := re.search(r"--cache-tokens (\d+)", text):
        changes["cache_tokens"] = int(tokens[1])
    if changes:
        assert plan(config, free_bytes, **{"dtype": given["formats"][0]} | given | changes)


def test_the_published_sizes_get_the_formats_one_expects() -> None:
    expected = {9: None, 12: "int4", 16: "int4", 24: "int8", 40: "bfloat16", 128: "bfloat16"}
    for size, weights in expected.items():
        found = plan(LITE, size * GB, sequences=1)
        assert (None if found is None else found.weights) == weights, size
        if found is not None:
            assert found.context >= LEAST_CACHE
            assert found.weights == "bfloat16" or found.context <= GOOD_CACHE
    found = plan_memory(LITE, 12 * GB, sequences=1)
    assert found.token_bytes == 31_104
    assert 8.0e9 < found.weight_bytes < 8.7e9
    with pytest.raises(DoesNotFitError, match=r"31\.\d+ GB as bfloat16.*16\.00 GB are free.*int4"):
        plan_memory(LITE, 16 * GB, dtype="bfloat16")


def test_a_format_that_stands_fixed_is_taken_as_long_as_a_block_of_cache_fits() -> None:
    found = plan_memory(LITE, int(9.45 * GB), formats=("int4",), convert=False)
    assert found.weights == "int4"
    small = plan_memory(LITE, int(9.45 * GB), dtype="int4", sequences=1)
    assert 64 <= small.context < LEAST_CACHE
    assert small.advice == ()
    with pytest.raises(DoesNotFitError):
        plan_memory(LITE, int(9.45 * GB), sequences=1)


def test_arguments_out_of_bounds_are_refused() -> None:
    for bad, words in (
        ({"cache_tokens": 5}, "cache_tokens is 5"),
        ({"sequences": 0}, "max_sequences is 0"),
        ({"dtype": "int3"}, "dtype is 'int3', allowed are auto, float32"),
    ):
        with pytest.raises(ValueError, match=words):
            plan_memory(LITE, 10 * GB, **bad)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("queries", [None, pytest.param(64, marks=pytest.mark.slow)])
def test_packed_bytes_are_those_of_the_executor(
    tmp_path_factory: pytest.TempPathFactory, weights: str, queries: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = save_tiny(
        tmp_path_factory.mktemp("packed"), hidden_size=128, intermediate_size=256,
        moe_intermediate_size=64, kv_lora_rank=64, v_head_dim=16, qk_nope_head_dim=16,
        q_lora_rank=queries,
    )  # fmt: skip
    executor = CpuExecutor(1)
    usual, sizes = executor._pack, []

    def counted(*arguments: Any, **named: Any) -> Any:
        matrix = usual(*arguments, **named)
        sizes.append(matrix.bytes)
        return matrix

    monkeypatch.setattr(executor, "_pack", counted)
    model = load_packed(folder, executor, weights=weights)
    assert packed_bytes(model.config, weights) == pytest.approx(sum(sizes), rel=0.03)


@pytest.mark.parametrize(
    "weights",
    ["int4", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bfloat16", "int8"))],
)
def test_gpu_bytes_are_those_of_the_executor(
    tmp_path_factory: pytest.TempPathFactory, weights: str
) -> None:
    folder = save_tiny(
        tmp_path_factory.mktemp("held"), hidden_size=128, intermediate_size=256,
        moe_intermediate_size=64, kv_lora_rank=64, qk_nope_head_dim=64, v_head_dim=64,
    )  # fmt: skip
    held: dict[int, int] = {}

    def count(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            held[part.data_ptr()] = part.nbytes
        elif isinstance(part, tuple | list):
            for one in part:
                count(one)
        elif is_dataclass(part):
            count(list(vars(part).values()))

    model = load_packed(folder, TritonExecutor(torch.device("cpu")), weights=weights)
    count([model._embed, model._head, model._layers])
    rest, each = gpu_bytes(model.config, weights)
    # Without a GPU what was coded is multiplied in fp32, and W^UK and W^UV are kept so.
    coded = weights in SCHEMES
    shapes = parameter_shapes(model.config)
    both = sum(
        2 * torch.Size(shape).numel() for name, shape in shapes.items() if name.endswith("wkv_b")
    )
    planned = rest + moe_layers(model.config) * each + 2 * both * coded
    assert planned == pytest.approx(sum(held.values()), rel=0.01)


def test_packing_costs_little_more_than_the_file() -> None:
    for name in ("v2-lite", "v2"):
        assert name in RELEASES
        config = config_of(name)
        for weights in WEIGHTS:
            assert 1 <= packed_bytes(config, weights) / stored_bytes(config, weights) < 1.03


def test_a_folder_is_planned_by_device_backend_and_what_it_stores(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "free_bytes", lambda device: GB)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert plan_folder(tiny_folder, cpu).weights == "float32"
    assert plan_folder(tiny_folder, cpu, dtype="fp32").weights == "float32"
    assert plan_folder(tiny_folder, gpu).weights == "bfloat16"
    assert plan_folder(tiny_folder, gpu, dtype="float32").weights == "float32"
    assert plan_folder(tiny_folder, cpu, promised=GB // 4).free_bytes == GB - GB // 4
    with pytest.raises(DoesNotFitError):
        plan_folder(tiny_folder, cpu, promised=2 * GB)
    plain, packed = (plan_folder(tiny_folder, cpu, name) for name in ("torch", "cpu"))
    assert plain.weights == packed.weights == "float32"
    assert plain.weight_bytes < packed.weight_bytes
    for device, backend in ((cpu, "torch"), (gpu, "torch")):
        with pytest.raises(ValueError, match="weights in int8 need backend 'cpu'"):
            plan_folder(tiny_folder, device, backend, dtype="int8")


def test_a_model_larger_than_the_gpu_leaves_experts_in_the_hosts_memory(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "free_bytes", lambda device: GB)
    monkeypatch.setattr(loading, "available_bytes", lambda: GB)
    gpu, config = torch.device("cuda"), ModelConfig.from_file(tiny_folder / "config.json")
    whole = plan_folder(tiny_folder, gpu, cache_tokens=64, max_memory={"cuda": "1GB"})
    assert whole.host_layers == 0
    rest, each = gpu_bytes(config, "bfloat16")
    moe = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
    for layers in range(1, moe + 1):
        room = rest + (moe - layers) * each + whole.scratch_bytes + 64 * whole.token_bytes
        limit = int(room / (1 - MARGIN)) + each // 2
        plan = plan_folder(tiny_folder, gpu, cache_tokens=64, max_memory={"cuda": limit})
        assert plan.host_layers == layers
    with pytest.raises(DoesNotFitError, match="without any routed expert"):
        plan_folder(tiny_folder, gpu, cache_tokens=64, max_memory={"cuda": "1KB"})
    with pytest.raises(ValueError, match="max_memory has 'disk'"):
        plan_folder(tiny_folder, gpu, max_memory={"disk": "1GB"})
    with pytest.raises(ValueError, match="max_memory is for backend 'triton' on device cuda"):
        plan_folder(tiny_folder, torch.device("cpu"), max_memory={"cpu": "1GB"})


@pytest.mark.parametrize(("weights", "cache"), [("float32", "float32"), ("int4", "int8")])
def test_a_step_takes_what_the_plan_says(weights: str, cache: str) -> None:
    """Of the shipped model's widths: a long chunk of a prompt, and answers behind long ones."""
    config = ModelConfig.from_file(resolve("pocket") / "config.json").model_copy(
        update={"num_hidden_layers": 2}
    )
    executor = CpuExecutor(5)  # its memory is no other test's
    model = PackedModel(
        config, executor, synthetic_weights(config, weights, 0), weights=weights, cache_format=cache
    )
    planned, before = step_bytes(config, 4, 2048), 0
    for sequences, new, past, generated in (
        (1, 2048, 0, False), (1, 2048, 6000, False), (4, 1, 6000, True),
        (4, 1 + MAX_ANSWERS_AHEAD // 4, 6000, True),
    ):  # fmt: skip
        blocks = sequences * blocks_for(past + new)
        model.hidden(
            paged(sequences, new, past, blocks, generated=generated, vocab_size=8192),
            allocate_cache(config, blocks, cache, torch.device("cpu")),
        )
        taken = executor._kernels.scratch_bytes
        assert before <= taken <= planned
        before = taken
    assert taken > planned / 8  # the plan is of this kind of size
