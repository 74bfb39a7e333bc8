"""The GPU executor's layers against the readable executor; in the interpreter without a GPU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv2.checkpoint.quantised import is_quantised
from dsv2.checkpoint.weights import parameter_shapes
from dsv2.engine.cache import allocate_cache
from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.executor import Executor, RoutingShape, make_executor
from dsv2.kernels.formats import SCHEMES, QuantTensor
from dsv2.kernels.interleaved import StoredWeight, interleave
from dsv2.kernels.offload import OffloadExecutor
from dsv2.kernels.reference_executor import choose_experts as choose_readably
from dsv2.kernels.triton import attention
from dsv2.kernels.triton.attention import STRETCH
from dsv2.kernels.triton.executor import TritonExecutor
from dsv2.kernels.triton.linear import product, stacked_product
from dsv2.kernels.triton.router import choose_experts
from dsv2.model.config import ModelConfig
from dsv2.model.packed import Fetch, PackedModel
from dsv2.ragged import RaggedBatch
from tests.kernels.layers import Draw, paged_batch, turn
from tests.kernels.test_executor import REFERENCE, ROUTINGS, attend, close, fresh_cache, three_steps
from tests.kernels.triton.place import DEVICE, draw
from tests.tiny import tiny_config

DTYPES = ["float32", pytest.param("bfloat16", marks=pytest.mark.gpu)]
"""The interpreter multiplies no bf16."""
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


SHORT = ((70, 5, 1), 9)
"""Prompts for the interpreter: one of two blocks, and a second chunk of another."""


def attend_there(
    executor: TritonExecutor, layer: Any, steps: list[tuple[RaggedBatch, Tensor]], cache: Tensor,
    form: str = "auto", cache_format: str | None = None,
) -> Tensor:  # fmt: skip
    """:func:`tests.kernels.test_executor.attend` with tensors on the executor's device."""
    handle = executor.pack_attention(layer)
    cache_format = cache_format or str(cache.dtype).removeprefix("torch.")
    outputs = []
    for batch, x in steps:
        cos, sin = (part.to(DEVICE) for part in turn(batch, layer.shape.rope))
        step = executor.begin(batch.to(DEVICE), cos, sin, form, cache_format)
        own = x.to(DEVICE, copy=True)
        executor.attention(handle, own, step, cache)
        outputs.append(own.cpu() - x)
    return torch.cat(outputs)


SLOW = partial(pytest.param, marks=pytest.mark.slow)  # the interpreter takes 3 to 40 s
ODD = {"q_lora": 64, "latent": 96, "heads": 3, "value": 64}


@pytest.mark.parametrize("weights", DTYPES)
@pytest.mark.parametrize(
    ("deterministic", "sizes"),
    [(False, {}), SLOW(True, ODD)],
)
def test_attention_equals_the_reference(
    weights: str, deterministic: bool, sizes: dict[str, int]
) -> None:
    executor = TritonExecutor(DEVICE, deterministic)
    layer = Draw(weights).attention(hidden=64, **sizes)
    steps = three_steps(64, *SHORT)
    ours, theirs = fresh_cache(layer, weights).to(DEVICE), fresh_cache(layer, weights)
    got = attend_there(executor, layer, steps, ours)
    expected = attend(REFERENCE, layer, steps, theirs, cache_format=weights)
    close(got, expected, 2 * TOLERANCE[weights])
    written = ~torch.isnan(theirs)
    assert torch.equal(written, ~torch.isnan(ours.cpu()))
    close(ours.cpu().float()[written], theirs.float()[written], 2 * TOLERANCE[weights])


@pytest.mark.parametrize("weights", DTYPES)
@pytest.mark.parametrize(
    ("most", "sizes"),
    [(64, {}), SLOW(0, ODD)],
)
def test_few_generated_tokens_equal_the_reference(
    weights: str, most: int, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "MOST_SPLITS", most)  # 0: as if there were too many to mix twice
    layer = Draw(weights).attention(hidden=64, **sizes)
    steps = [(paged_batch([1, 1], [70, 5], [True, True]), Draw("float32", seed=5).normal(2, 64))]
    cache = draw(*fresh_cache(layer, weights, 4).shape).cpu()
    ours, theirs = (cache.to(dtype=getattr(torch, weights), copy=True) for _ in range(2))
    got = attend_there(TritonExecutor(DEVICE), layer, steps, ours := ours.to(DEVICE))
    expected = attend(REFERENCE, layer, steps, theirs, cache_format=weights)
    close(got, expected, 2 * TOLERANCE[weights])
    close(ours.cpu().float(), theirs.float(), 2 * TOLERANCE[weights])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["absorbed", "expanded"])
def test_a_form_that_is_asked_for(form: str) -> None:
    layer = Draw("float32").attention(hidden=64)
    cache = fresh_cache(layer, "float32").to(DEVICE)
    got = attend_there(TritonExecutor(DEVICE), layer, three_steps(64, *SHORT), cache, form)
    expected = attend(
        REFERENCE, layer, three_steps(64, *SHORT), fresh_cache(layer, "float32"), form
    )
    close(got, expected, 2e-5)


def test_long_beginnings_are_attended_to_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert STRETCH % 64 == 0
    monkeypatch.setattr("dsv2.kernels.triton.attention.STRETCH", 64)
    layer = Draw("float32").attention(hidden=64)
    ours, theirs = (fresh_cache(layer, "float32") for _ in range(2))
    steps = three_steps(64, (140, 3, 1), 20)
    first, _ = steps[0]
    assert first.block_table is not None
    more = paged_batch([6], [140], [False])
    places = torch.arange(140, 146)
    slots = first.block_table[0].long()[places // 64] * 64 + places % 64
    own = replace(more, block_table=first.block_table[:1], slots=slots.int())
    steps = [steps[0], (own, Draw("float32", seed=3).normal(6, 64))]
    got = attend_there(TritonExecutor(DEVICE), layer, steps, ours.to(DEVICE))
    close(got, attend(REFERENCE, layer, steps, theirs), 2e-5)


@pytest.mark.parametrize("weights", DTYPES)
@pytest.mark.parametrize(
    ("deterministic", "routing"), [(False, {}), (True, ROUTINGS[3]), SLOW(False, ROUTINGS[1])]
)
def test_feed_forward_equals_the_reference(
    weights: str, deterministic: bool, routing: dict[str, Any]
) -> None:
    executor = TritonExecutor(DEVICE, deterministic)
    numbers = Draw(weights)
    moe = numbers.moe_layer(64, 64, **({"shared": 64} | routing))
    dense = numbers.mlp_layer(64, 128)
    for tokens in (1, 7):
        x = numbers.normal(tokens, 64)
        theirs = x.clone()
        REFERENCE.moe(REFERENCE.pack_moe(moe), theirs)
        ours = x.to(DEVICE, copy=True)
        executor.moe(executor.pack_moe(moe), ours)
        close(ours.cpu() - x, theirs - x, TOLERANCE[weights])
    theirs, ours = x.clone(), x.to(DEVICE, copy=True)
    REFERENCE.mlp(REFERENCE.pack_mlp(dense), theirs)
    executor.mlp(executor.pack_mlp(dense), ours)
    close(ours.cpu() - x, theirs - x, TOLERANCE[weights])


@pytest.mark.parametrize("routing", [*ROUTINGS[:3], *map(SLOW, ROUTINGS[3:]),
                         SLOW({"num_experts": 160, "num_experts_per_tok": 6, "num_groups": 8,
                               "topk_group": 3, "group_score": "max"})])  # fmt: skip
def test_routing_equals_the_reference(routing: dict[str, Any]) -> None:
    numbers = Draw("float32", seed=5)
    layer = numbers.moe_layer(**routing)
    logits = numbers.normal(40, layer.routing.num_experts)
    bias = layer.router_bias
    ids, gates = choose_experts(
        logits.to(DEVICE), layer.routing, None if bias is None else bias.to(DEVICE)
    )
    wanted, values = choose_readably(logits, layer.routing, bias)
    assert torch.equal(ids.cpu().long(), wanted)
    torch.testing.assert_close(gates.cpu(), values)


def test_among_equal_scores_the_first_experts_win() -> None:
    routing = RoutingShape(8, 3, 4, 2, "softmax", "max", False, 1.0)
    ids, _ = choose_experts(torch.zeros(2, 8, device=DEVICE), routing, None)
    assert ids.tolist() == [[0, 1, 2]] * 2


def test_deterministic_products_do_not_depend_on_the_rows_beside() -> None:
    x, w, gate = draw(70, 96), draw(40, 96, seed=1), draw(40, 96, seed=2)
    assert product(x[:0], w, deterministic=True).shape == (0, w.shape[0])
    whole = product(x, w, deterministic=True)
    assert torch.equal(whole[66:67], product(x[66:67], w, deterministic=True))
    torch.testing.assert_close(whole, x @ w.T, atol=1e-4, rtol=1e-4)
    pair = stacked_product(x.unsqueeze(0), w.unsqueeze(0), gate.unsqueeze(0), deterministic=True)
    expected = torch.nn.functional.silu(x @ gate.T) * (x @ w.T)
    torch.testing.assert_close(pair[0], expected, atol=1e-3, rtol=1e-3)


def fetch_of(config: ModelConfig, weights: str) -> Fetch:
    """Parameters in a format, as a checkpoint of it has them; the same ones every time."""
    numbers, kept = Draw(weights, seed=2), dict[str, StoredWeight]()
    sizes = parameter_shapes(config)

    def fetch(name: str) -> StoredWeight:
        shape = sizes[name]
        if name not in kept and len(shape) == 1:
            kept[name] = numbers.norm(*shape)
        elif name not in kept and (
            weights in SCHEMES and is_quantised(name, shape, SCHEMES[weights])
        ):
            drawn = numbers.weight(*shape)
            assert isinstance(drawn, QuantTensor)
            kept[name] = interleave(drawn)
        elif name not in kept:
            kept[name] = numbers.normal(*shape, scale=shape[-1] ** -0.5)
        return kept[name]

    return fetch


NARROW = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64,
          "kv_lora_rank": 64, "qk_nope_head_dim": 32, "v_head_dim": 32}  # fmt: skip
TWO_LAYERS = {
    "num_hidden_layers": 2
}  # one dense, one of experts: what the interpreter has time for


@pytest.mark.parametrize(
    ("weights", "cache_format", "host_layers", "fields"),
    [
        SLOW("float32", "float32", 0, {}),
        SLOW("int4", "int8", 0, NARROW | TWO_LAYERS | {"q_lora_rank": 64}),
        SLOW("int8", "fp8", 1, NARROW),
        # w_down stays plain
        SLOW("int4", "float32", 0, NARROW | TWO_LAYERS | {"intermediate_size": 96}),
    ],
)
def test_whole_models_compute_what_the_reference_does(
    weights: str, cache_format: str, host_layers: int, fields: dict[str, Any]
) -> None:
    """Prompts and a generated token; also with experts in the host's memory."""
    config = tiny_config(**fields)
    fetch = fetch_of(config, weights)
    ours: Executor = TritonExecutor(DEVICE)
    if host_layers:
        ours = OffloadExecutor(ours, CpuExecutor(1), host_layers)
        assert not ours.is_capturable
    prompts = paged_batch([9, 4], [0, 0], [False, False], spare=1)
    prompts.tokens.copy_(torch.arange(13) % config.vocab_size)
    more = paged_batch([1, 1], [9, 4], [True, True], spare=1)
    found = []
    for executor in (ours, REFERENCE):
        model = PackedModel(config, executor, fetch, weights=weights, cache_format=cache_format)
        cache = allocate_cache(config, 8, cache_format, model.device)
        steps = [model(batch.to(model.device), cache)[0].cpu() for batch in (prompts, more)]
        found.append(torch.cat(steps))
    close(found[0], found[1], 1e-4 if weights == cache_format == "float32" else 3e-2)


@pytest.mark.parametrize("weights", list(SCHEMES))
def test_interleaved_rows_are_turned_back(weights: str) -> None:
    matrix = Draw(weights).weight(3, 40, 128)
    assert isinstance(matrix, QuantTensor)
    executor = TritonExecutor(DEVICE)
    expected = executor.pack_linear(matrix)
    for name, part in vars(executor.pack_linear(interleave(matrix))).items():
        other = getattr(expected, name)
        assert part == other if name == "scheme" else torch.equal(part, other), name


@pytest.mark.parametrize(
    ("weights", "cache_format"),
    [SLOW("int4", "int8"), SLOW("int8", "int6"), SLOW("float32", "fp8")],
)
def test_narrow_weights_and_caches(weights: str, cache_format: str) -> None:
    """Codes are the reference's; a latent on the edge between two may become either."""
    numbers = Draw(weights)
    layer, moe = numbers.attention(hidden=64, latent=128), numbers.moe_layer(64, 64, 64)
    executor, steps = TritonExecutor(DEVICE), three_steps(64, *SHORT)
    caches = [fresh_cache(layer, cache_format) for _ in range(2)]
    ours = attend_there(executor, layer, steps, caches[0].to(DEVICE), cache_format=cache_format)
    close(ours, attend(REFERENCE, layer, steps, caches[1], cache_format=cache_format), 2e-2)
    for tokens in (1, 5):
        x = numbers.normal(tokens, 64)
        own, theirs = x.to(DEVICE, copy=True), x.clone()
        executor.moe(executor.pack_moe(moe), own)
        REFERENCE.moe(REFERENCE.pack_moe(moe), theirs)
        close(own.cpu() - x, theirs - x, 1e-2)
    head = numbers.weight(40, 64)
    packed, ids = executor.pack_linear(head), torch.tensor([3, 39], dtype=torch.int32)
    expected = REFERENCE.pack_linear(head)
    close(executor.embed(packed, ids.to(DEVICE)).cpu(), REFERENCE.embed(expected, ids), 1e-5)
    x = numbers.normal(3, 64)
    logits = executor.linear(packed, x.to(DEVICE), None, 0.0).cpu()
    close(logits, REFERENCE.linear(expected, x, None, 0.0), 1e-2)


def test_what_it_cannot_do_is_said() -> None:
    executor = TritonExecutor(DEVICE)
    batch = paged_batch([2], [0], [False])
    with pytest.raises(ValueError, match="cache format 'int5'"):
        executor.begin(batch, torch.ones(2, 4), torch.ones(2, 4), "auto", "int5")
    with pytest.raises(ValueError, match="form 'folded'"):
        executor.begin(batch, torch.ones(2, 4), torch.ones(2, 4), "folded", "float32")


@pytest.mark.gpu
def test_the_registry_gives_it_for_a_gpu() -> None:
    executor = make_executor("auto", "cuda", deterministic=False)
    assert isinstance(executor, TritonExecutor)
    assert not executor.deterministic
