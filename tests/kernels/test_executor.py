"""The C++ executor, in every instruction set this machine has, against the readable one."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import weakref
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv2.kernels import registry
from dsv2.kernels.cpu import CpuExecutor, supported
from dsv2.kernels.executor import AttentionLayer, LayerHandles, make_executor
from dsv2.kernels.formats import SCHEMES, QuantTensor, dequantise
from dsv2.kernels.interleaved import interleave
from dsv2.kernels.latent import latent_format, unpack_latent
from dsv2.kernels.reference_executor import ReferenceExecutor, choose_experts
from dsv2.kernels.registry import BackendError
from dsv2.machine import available_threads
from dsv2.model.config import RouterConfig
from dsv2.model.router import route
from dsv2.ragged import RaggedBatch
from dsv2.shapes import BLOCK_SIZE
from tests.kernels.layers import FORMATS, Draw, paged_batch, turn

REFERENCE = ReferenceExecutor()
# What rounding activations to bf16, or to 8 bits by group, costs on normal numbers.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "int8": 2e-2, "int4": 2.2e-2}
# Over codes, queries and weights of the softmax have 8 bits too (16 with AMX); a latent on the
# edge between two codes may become either.
CACHE_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "int8": 1e-2, "int6": 2e-2}


def by_default(isa: str) -> Any:
    """The best instruction set and AVX2, which most machines have; the others take their time."""
    return () if isa in (supported()[0], "avx2") else pytest.mark.slow


def executors() -> list[Any]:
    return [pytest.param(CpuExecutor(2, isa), id=isa, marks=by_default(isa)) for isa in supported()]


def with_widths() -> list[Any]:
    """Executors with rotated widths; one with a matrix unit takes others with another kernel."""
    some = [
        pytest.param(CpuExecutor(2, isa), 8, id=isa, marks=by_default(isa)) for isa in supported()
    ]
    wide = [pytest.param(CpuExecutor(2, isa), 32, id=f"{isa}-wide")
            for isa in supported() if isa == "amx"]  # fmt: skip
    return some + wide


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """The largest difference against the spread of the numbers."""
    assert bool(torch.isfinite(ours).all())
    assert float((ours - theirs).abs().max() / theirs.std()) < tolerance * 8
    assert float((ours - theirs).std() / theirs.std()) < tolerance


def in_blocks(layer: Any) -> Any:
    """A layer as it comes from a file."""
    if isinstance(layer, QuantTensor):
        return interleave(layer)
    if not is_dataclass(layer):
        return layer
    assert not isinstance(layer, type)
    return replace(
        layer, **{one.name: in_blocks(getattr(layer, one.name)) for one in fields(layer)}
    )


def attend(
    executor: Any, layer: AttentionLayer, steps: list[tuple[RaggedBatch, Tensor]], cache: Tensor,
    form: str = "auto", cache_format: str = "float32",
) -> Tensor:  # fmt: skip
    handle = executor.pack_attention(layer)
    outputs = []
    for batch, x in steps:
        step = executor.begin(batch, *turn(batch, layer.shape.rope), form, cache_format)
        own = x.clone()
        executor.attention(handle, own, step, cache)
        outputs.append(own - x)
    return torch.cat(outputs)


def three_steps(
    hidden: int, prompts: tuple[int, int, int] = (150, 70, 1), more: int = 40
) -> list[tuple[RaggedBatch, Tensor]]:
    """Prompts; then tokens, a draft of three and a second chunk; then generated tokens alone."""
    draw = Draw("float32", seed=7)
    new = ([*prompts], [1, 3, more], [1, 1, 1])
    past = ([0, 0, 0], [*prompts], [prompts[0] + 1, prompts[1] + 3, prompts[2] + more])
    flags = ([False] * 3, [True, True, False], [True] * 3)
    batches = [paged_batch(*parts, spare=2) for parts in zip(new, past, flags, strict=True)]
    # One table for all steps: the widest.
    table = torch.randperm(18, generator=torch.Generator().manual_seed(1)).reshape(3, 6).int()
    steps = []
    for batch in batches:
        rows = torch.repeat_interleave(torch.arange(3), torch.tensor(batch.query_lengths()))
        place = batch.positions.long()
        slots = table[rows, place // BLOCK_SIZE].long() * BLOCK_SIZE + place % BLOCK_SIZE
        own = replace(batch, block_table=table, slots=slots.to(torch.int32))
        steps.append((own, draw.normal(batch.num_tokens, hidden)))
    return steps


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"q_lora": 64, "latent": 192},
        {"nope": 32, "heads": 20, "value": 16},
        {"rope": 32, "heads": 16, "latent": 128},  # widths that a matrix unit takes
    ],
)
def test_attention_equals_the_reference(
    executor: CpuExecutor, weights: str, sizes: dict[str, int]
) -> None:
    layer = Draw(weights).attention(**sizes)
    for cache_format, tolerance in CACHE_TOLERANCE.items():
        ours, theirs = (fresh_cache(layer, cache_format) for _ in range(2))
        got = attend(executor, layer, three_steps(128), ours, cache_format=cache_format)
        expected = attend(REFERENCE, layer, three_steps(128), theirs, cache_format=cache_format)
        close(got, expected, TOLERANCE[weights] + tolerance)
        latent, rope = layer.kv_norm.shape[0], layer.shape.rope
        held = [unpack_latent(cache, latent, rope, cache_format) for cache in (ours, theirs)]
        written = ~torch.isnan(held[1])
        assert torch.equal(written, ~torch.isnan(held[0]))
        close(held[0][written], held[1][written], TOLERANCE[weights] + tolerance)


@pytest.mark.parametrize("cache_format", ["int8", "int6"])
@pytest.mark.parametrize("sharp", [1, 6])
@pytest.mark.parametrize("executor", executors())
def test_the_same_codes_give_what_the_reference_gives(
    executor: CpuExecutor, sharp: int, cache_format: str
) -> None:
    """Generated tokens over one cache: what is left are the roundings of the products."""
    layer = Draw("float32").attention(rope=32, heads=16, latent=128)
    layer = replace(layer, shape=replace(layer.shape, scale=layer.shape.scale * sharp))
    ours = fresh_cache(layer, cache_format)
    *before, last = three_steps(128)
    attend(REFERENCE, layer, before, ours, cache_format=cache_format)
    theirs = ours.clone()
    got = attend(executor, layer, [last], ours, cache_format=cache_format)
    expected = attend(REFERENCE, layer, [last], theirs, cache_format=cache_format)
    # 16 bits with a matrix unit, else 8.
    close(got, expected, 1e-3 if executor._kernels.isa == "amx" else 0.01 + 0.005 * sharp)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int4"])
@pytest.mark.parametrize("executor", executors())
def test_a_long_prompt_of_scores_far_apart_equals_the_reference(
    executor: CpuExecutor, weights: str
) -> None:
    """More keys than are expanded at once, and maxima that move from block to block."""
    layer = Draw(weights).attention(rope=32, heads=8)
    layer = replace(layer, shape=replace(layer.shape, scale=1.0))
    draw = Draw("float32", seed=3)
    for prompt, past in ((1300, 0), (90, 1111)):
        batch = paged_batch([prompt], [past], [False])
        x = draw.normal(prompt, 128)
        kept = [fresh_cache(layer, "bfloat16", batch.block_table.numel()) for _ in range(2)]
        for one in kept:
            if past:
                one.copy_(Draw("float32").normal(*one.shape))
        found = [attend(e, layer, [(batch, x)], cache, cache_format="bfloat16")
                 for e, cache in zip((executor, REFERENCE), kept, strict=True)]  # fmt: skip
        close(*found, 5e-2 if weights == "int4" else 2e-2)


def fresh_cache(layer: AttentionLayer, cache_format: str, blocks: int = 18) -> Tensor:
    """Blocks hold what an earlier owner left, which may be anything."""
    kind = latent_format(cache_format)
    shape = (blocks, BLOCK_SIZE, kind.width(layer.kv_norm.shape[0], layer.shape.rope))
    left = torch.nan if kind.dtype.is_floating_point else 255
    return torch.full(shape, left, dtype=kind.dtype)


@pytest.mark.parametrize("executor", executors())
def test_absorbed_and_expanded_attention_agree(executor: CpuExecutor) -> None:
    for weights, tolerance in (("float32", 1e-5), ("int8", 2e-2), ("int4", 2e-2)):
        layer = Draw(weights).attention()
        found = [
            attend(executor, layer, three_steps(128), torch.zeros(18, 64, 72), form)
            for form in ("absorbed", "expanded")
        ]
        close(found[0], found[1], tolerance)


@pytest.mark.parametrize("cache_format", ["float32", "int8"])
def test_memory_of_absorbed_attention_is_bounded(cache_format: str) -> None:
    """Many generated tokens behind many others are computed in turns, to the same bits."""
    heads, latent, past = 16, 128, 12_000
    layer = Draw("float32").attention(heads=heads, latent=latent, rope=32)
    executor = CpuExecutor(3)  # its memory is no other test's
    handle = executor.pack_attention(layer)
    start = fresh_cache(layer, cache_format, 200)
    if start.dtype == torch.uint8:
        start.random_(64, 192, generator=torch.Generator().manual_seed(0))
    else:
        start.normal_(generator=torch.Generator().manual_seed(0))
    x = Draw("float32", 1).normal(400, 128)

    def run(cuts: list[int]) -> Tensor:
        cache, outputs = start.clone(), []
        for first, last in zip([0, *cuts], [*cuts, 400], strict=True):
            batch = paged_batch([last - first], [past + first], [True], spare=1)
            table = torch.arange(200, dtype=torch.int32).reshape(1, 200)
            batch = replace(batch, block_table=table, slots=batch.positions.clone())
            step = executor.begin(batch, *turn(batch, 32), "auto", cache_format)
            own = x[first:last].clone()
            executor.attention(handle, own, step, cache)
            outputs.append(own)
        return torch.cat(outputs)

    expected = run(list(range(50, 400, 50)))
    assert torch.equal(run([]), expected)
    parts = 400 * -(-past // 256) * 16 * latent * 4  # what all of them at once would take
    assert executor._kernels.scratch_bytes < parts / 2


def test_more_threads_than_cores_wait_for_each_other() -> None:
    """Most of them are late at every barrier, so that the others sleep there."""
    draw = Draw("int4")
    layer, x = draw.moe_layer(), draw.normal(40, 128)
    few, many = CpuExecutor(2), CpuExecutor(2 * available_threads() + 3)
    expected = x.clone()
    few.moe(few.pack_moe(layer), expected)
    handle = many.pack_moe(layer)
    for _ in range(50):
        own = x.clone()
        many.moe(handle, own)
        assert torch.equal(own, expected)


def test_idle_threads_take_no_time_and_leave_torchs_alone() -> None:
    before = torch.get_num_threads()
    executor = CpuExecutor(2)
    handle = executor.pack_linear(Draw("float32").weight(640, 640))
    executor.linear(handle, Draw("float32").normal(64, 640), None, 0.0)
    assert torch.get_num_threads() == before
    time.sleep(0.05)  # they wait for more to do for a moment
    start = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - start < 0.1  # one that spins would take all of it


FORK = """
import os, sys, torch
from dsv2.kernels.cpu import CpuExecutor
weight, x = torch.eye(32), torch.ones(1, 32)
before = CpuExecutor(2)
handle = before.pack_linear(weight)
if os.fork() == 0:
    try:
        before.linear(handle, x, None, 0.0)
    except RuntimeError as error:
        print(error, flush=True)
    own = CpuExecutor(2)
    own.linear(own.pack_linear(weight), x, None, 0.0)
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_fork_has_threads_of_its_own_and_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "threads do not survive a fork: this process has to load the model itself",
        "7",
    ]


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("executor", executors())
def test_feed_forward_equals_the_reference(executor: CpuExecutor, weights: str) -> None:
    draw = Draw(weights)
    layer = draw.mlp_layer()
    for tokens in (1, 5, 30):
        x = draw.normal(tokens, 128)
        ours, theirs = x.clone(), x.clone()
        executor.mlp(executor.pack_mlp(layer), ours)
        REFERENCE.mlp(REFERENCE.pack_mlp(layer), theirs)
        close(ours - x, theirs - x, TOLERANCE[weights])


@pytest.mark.parametrize("weights", ["float32", "int4"])
@pytest.mark.parametrize("executor", executors())
def test_layers_in_one_call_have_the_bits_they_have_in_turn(
    executor: CpuExecutor, weights: str
) -> None:
    draw = Draw(weights)
    first, second = draw.attention(), Draw(weights, seed=2).attention()
    layers = [
        LayerHandles(executor.pack_attention(first), executor.pack_mlp(draw.mlp_layer()), False),
        LayerHandles(executor.pack_attention(second), executor.pack_moe(draw.moe_layer()), True),
    ]
    stack = executor.stack(layers)
    together, alone = ([fresh_cache(first, "bfloat16") for _ in layers] for _ in range(2))
    for batch, x in three_steps(128, (30, 12, 1), 20):  # a step of 43 tokens, of 24 and of 3
        step = executor.begin(batch, *turn(batch, first.shape.rope), "auto", "bfloat16")
        ours, theirs = x.clone(), x.clone()
        executor.run(stack, ours, step, together)
        for layer, cache in zip(layers, alone, strict=True):
            executor.attention(layer.attention, theirs, step, cache)
            (executor.moe if layer.is_moe else executor.mlp)(layer.feed, theirs)
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, x)
    for ours, theirs in zip(together, alone, strict=True):
        assert torch.equal(ours.view(torch.int16), theirs.view(torch.int16))
    with pytest.raises(ValueError, match="contiguous"):
        executor.run(stack, x, step, [together[0], together[1][:, :32]])
    with pytest.raises(ValueError, match="zip"):
        executor.run(stack, x, step, together[:1])


ROUTINGS: list[dict[str, Any]] = [
    {},
    {"normalise": True, "num_experts_per_tok": 1, "shared": 0},
    {"num_groups": 4, "topk_group": 2, "group_score": "max"},
    {"num_groups": 4, "topk_group": 2, "group_score": "top2_sum", "score": "sigmoid",
     "bias": True, "normalise": True},
    {"num_experts": 20, "num_experts_per_tok": 6, "score": "sigmoid"},
]  # fmt: skip


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("executor", executors())
@pytest.mark.parametrize("routing", ROUTINGS)
def test_experts_equal_the_reference(
    executor: CpuExecutor, weights: str, routing: dict[str, Any]
) -> None:
    draw = Draw(weights)
    layer = draw.moe_layer(**routing)
    for tokens in (1, 2, 40):
        x = draw.normal(tokens, 128)
        ours, theirs = x.clone(), x.clone()
        executor.moe(executor.pack_moe(layer), ours)
        REFERENCE.moe(REFERENCE.pack_moe(layer), theirs)
        close(ours - x, theirs - x, TOLERANCE[weights])


@pytest.mark.parametrize("routing", ROUTINGS)
def test_the_reference_routes_as_the_model_does(routing: dict[str, Any]) -> None:
    draw = Draw("float32")
    layer = draw.moe_layer(**{name: value for name, value in routing.items() if name != "shared"})
    config = RouterConfig(
        **vars(layer.routing), selection_bias=layer.router_bias is not None
    )  # fmt: skip
    logits = draw.normal(50, layer.routing.num_experts)
    ids, gates = choose_experts(logits, layer.routing, layer.router_bias)
    expected = route(logits, config, layer.router_bias)
    assert torch.equal(ids, expected.ids)
    torch.testing.assert_close(gates, expected.weights)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("executor", executors())
def test_linear_and_embedding_equal_the_reference(executor: CpuExecutor, weights: str) -> None:
    draw = Draw(weights)
    for rows in (1, 15, 16, 200):
        weight = draw.weight(rows, 128)
        ours, theirs = executor.pack_linear(weight), REFERENCE.pack_linear(weight)
        ids = torch.tensor([rows - 1, 0, rows // 2], dtype=torch.int32)
        assert torch.equal(executor.embed(ours, ids), REFERENCE.embed(theirs, ids))
        norm = draw.norm(128)
        for tokens in (0, 1, 3, 13, 25):
            x = draw.normal(tokens, 128)
            for own_norm in (None, norm):
                got = executor.linear(ours, x, own_norm, 1e-5)
                expected = REFERENCE.linear(theirs, x, own_norm, 1e-5)
                assert got.shape == (tokens, rows)
                if tokens and rows > 1:
                    close(got, expected, TOLERANCE[weights])


@pytest.mark.parametrize("weights", list(SCHEMES))
@pytest.mark.parametrize("executor", executors())
def test_weights_in_blocks_are_used_as_they_are(executor: CpuExecutor, weights: str) -> None:
    """Bit for bit what packing yields: rows that fill no block, stacks, heads that share one."""
    draw = Draw(weights)
    matrix = draw.weight(100, 128)
    assert isinstance(matrix, QuantTensor)
    x = draw.normal(7, 128)
    blocks = interleave(matrix)
    packed, used = executor.pack_linear(matrix), executor.pack_linear(blocks)
    wanted = executor.linear(packed, x, None, 0.0)
    assert torch.equal(executor.linear(used, x, None, 0.0), wanted)
    ids = torch.tensor([0, 99, 17])
    assert torch.equal(executor.embed(used, ids), executor.embed(packed, ids))
    layer = draw.moe_layer()
    expected, got = x.clone(), x.clone()
    executor.moe(executor.pack_moe(layer), expected)
    executor.moe(executor.pack_moe(in_blocks(layer)), got)
    assert torch.equal(got, expected)
    attention = draw.attention()
    steps = three_steps(128)
    results = [
        attend(executor, one, steps, torch.zeros(18, BLOCK_SIZE, 72))
        for one in (attention, in_blocks(attention))
    ]
    assert torch.equal(*results)


def test_weights_in_blocks_are_kept_for_as_long_as_they_are_used() -> None:
    matrix = Draw("int4").weight(32, 64)
    assert isinstance(matrix, QuantTensor)
    blocks = interleave(matrix)
    codes = weakref.ref(blocks.codes)
    used = CpuExecutor(1).pack_linear(blocks)
    del blocks
    gc.collect()
    assert codes() is not None
    del used
    gc.collect()
    assert codes() is None


def test_weights_in_blocks_must_be_as_they_say() -> None:
    matrix = Draw("int8").weight(32, 64)
    assert isinstance(matrix, QuantTensor)
    blocks = interleave(matrix)
    wrong = [
        replace(blocks, codes=blocks.codes.transpose(0, 1).contiguous().transpose(0, 1)),
        replace(blocks, rows=33),
        replace(blocks, row_scales=blocks.row_scales.double()),
    ]
    for one, name in zip(wrong, ("codes", "codes", "row_scales"), strict=True):
        with pytest.raises(ValueError, match=rf"{name} of a weight .* is needed, contiguous"):
            CpuExecutor(1).pack_linear(one)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("executor", executors())
def test_a_product_depends_on_its_own_row_alone(executor: CpuExecutor, weights: str) -> None:
    """Bit for bit, whatever kernel a number of tokens chooses, and at the edges of its tiles."""
    columns = 64 * 5 if weights in SCHEMES else 32 * 9 + 5
    draw = Draw(weights)
    handle = executor.pack_linear(draw.weight(170, columns))
    x = draw.normal(200, columns)
    x[7] = 1e-37  # too small for codes
    alone = torch.cat([executor.linear(handle, row, None, 0.0) for row in x.split(1)])
    for tokens in (2, 3, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 31, 33, 48, 50, 64, 65, 129, 200):
        assert torch.equal(executor.linear(handle, x[:tokens], None, 0.0), alone[:tokens])


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize(("executor", "rope"), with_widths())
def test_a_result_depends_on_its_own_row_alone(
    executor: CpuExecutor, weights: str, rope: int
) -> None:
    """Bit for bit: alone, in any company, cut anywhere, on one thread or two (F32, F33)."""
    draw = Draw(weights)
    attention, moe, mlp = draw.attention(rope=rope), draw.moe_layer(), draw.mlp_layer()
    x = draw.normal(200, 128)
    one_thread = CpuExecutor(1, executor._kernels.isa)

    def run(own: CpuExecutor, cuts: list[int], company: int, cache_format: str) -> Tensor:
        handles = own.pack_attention(attention), own.pack_moe(moe), own.pack_mlp(mlp)
        cache = fresh_cache(attention, cache_format, 2 * 5)
        table = torch.randperm(10, generator=torch.Generator().manual_seed(company)).reshape(2, 5)
        outputs = []
        for first, last in zip([0, *cuts], [*cuts, 200], strict=True):
            # The last tokens are generated ones; the neighbour is a prompt of its own.
            generated = first >= 180
            new, past = [last - first], [first]
            if company:
                new, past = [company, *new], [0, *past]
            batch = paged_batch(new, past, [False, generated][-len(new) :])
            own_table = table[-len(new) :].to(torch.int32)
            rows = torch.repeat_interleave(torch.arange(len(new)), torch.tensor(new))
            place = batch.positions.long()
            slots = own_table[rows, place // BLOCK_SIZE].long() * BLOCK_SIZE + place % BLOCK_SIZE
            batch = replace(batch, block_table=own_table, slots=slots.to(torch.int32))
            own_x = torch.cat([x[:company].flip(0), x[first:last]])
            step = own.begin(batch, *turn(batch, rope), "auto", cache_format)
            own.attention(handles[0], own_x, step, cache)
            own.moe(handles[1], own_x)
            own.mlp(handles[2], own_x)
            outputs.append(own_x[company:])
        return torch.cat(outputs)

    ones = list(range(181, 200))
    for name in CACHE_TOLERANCE:
        expected = run(executor, [180, *ones], 0, name)
        assert torch.equal(run(executor, [180], 0, name), expected)  # all drafts at once
        assert torch.equal(run(executor, [1, 64, 101, 180, 186], 0, name), expected)
        assert torch.equal(run(executor, [90, 180, *ones], 30, name), expected)
        assert torch.equal(run(one_thread, [33, 180, 190], 5, name), expected)


@pytest.mark.parametrize("tokens", [6, 40])
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("executor", executors())
def test_bad_numbers_stay_in_their_row_and_are_not_hidden(
    executor: CpuExecutor, weights: str, tokens: int
) -> None:
    draw = Draw(weights)
    moe, mlp = executor.pack_moe(draw.moe_layer()), executor.pack_mlp(draw.mlp_layer())
    head = executor.pack_linear(draw.weight(32, 128))
    clean = draw.normal(tokens, 128)
    for bad in (torch.nan, torch.inf):
        broken = clean.clone()
        broken[2, 5] = bad
        for run in (lambda x: executor.moe(moe, x), lambda x: executor.mlp(mlp, x)):
            ours, theirs = broken.clone(), clean.clone()
            run(ours)
            run(theirs)
            others = torch.arange(tokens) != 2
            assert torch.equal(ours[others], theirs[others])
            assert not bool(torch.isfinite(ours[2]).all())
        logits = executor.linear(head, broken, None, 0.0)
        assert not bool(torch.isfinite(logits[2]).any())


@pytest.mark.parametrize("weights", ["float32", "int4"])
@pytest.mark.parametrize(("executor", "rope"), with_widths())
def test_a_bad_token_of_a_prompt_stays_in_its_sequence_and_is_not_hidden(
    executor: CpuExecutor, weights: str, rope: int
) -> None:
    layer = Draw(weights).attention(rope=rope)
    handle, batch = executor.pack_attention(layer), paged_batch([50, 70], [0, 0], [False, False])
    clean = Draw("float32").normal(120, 128)
    broken = clean.clone()
    broken[20, 5] = torch.nan
    for name in ("float32", "bfloat16"):
        ours, theirs = broken.clone(), clean.clone()
        for x in (ours, theirs):
            cache = fresh_cache(layer, name, batch.block_table.numel())
            step = executor.begin(batch, *turn(batch, rope), "auto", name)
            executor.attention(handle, x, step, cache)
        assert torch.equal(ours[50:], theirs[50:])
        assert not bool(torch.isfinite(ours[20:50]).all(-1).any())


def test_instruction_sets_agree() -> None:
    layer = Draw("int4").moe_layer()
    x = Draw("float32").normal(9, 128)
    found = []
    for isa in supported():
        own, executor = x.clone(), CpuExecutor(2, isa)
        executor.moe(executor.pack_moe(layer), own)
        found.append(own)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scheme", list(SCHEMES))
@pytest.mark.parametrize("executor", executors())
def test_the_quantiser_finds_what_the_readable_one_finds(
    executor: CpuExecutor, scheme: str
) -> None:
    draw = Draw("float32")
    weight = draw.normal(20, 256)
    weight[3] = 0
    weight[4, :64] = 0
    weight[5] *= 1e-12
    weight[6, 7] = 50.0
    ours, errors = executor.quantise(weight, scheme)
    theirs, expected = REFERENCE.quantise(weight, scheme)
    assert isinstance(ours, QuantTensor)
    torch.testing.assert_close(
        (dequantise(ours) - weight).double().square().sum(-1), errors, rtol=1e-3, atol=1e-30
    )
    # C++ skips scales in wide ranges and sums in fp32, so it may be a little worse.
    assert bool((errors <= expected * 1.05).all())
    assert bool((errors >= expected * 0.999).all())
    assert int(dequantise(ours)[3].count_nonzero()) == 0
    assert ours.codes.shape == theirs.codes.shape


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(BackendError, match="instruction set 'sse9'"):
        CpuExecutor(1, "sse9")
    with pytest.raises(BackendError, match="threads is 0"):
        CpuExecutor(0)
    with pytest.raises(BackendError, match="even"):
        CpuExecutor(1).pack_attention(Draw("float32").attention(rope=8, nope=7))
    with pytest.raises(BackendError, match="no op 'executor'"):
        make_executor("torch", "cpu")
    batch = RaggedBatch.packed(torch.zeros(3, dtype=torch.int32), [3])
    with pytest.raises(ValueError, match="has none"):
        CpuExecutor(1).begin(batch, torch.zeros(3, 4), torch.zeros(3, 4), "auto", "float32")
    assert registry.chosen("executor", "auto", "cpu") == "cpu"
    placed = paged_batch([3], [0], [False])
    placed = replace(placed, kv_len=placed.kv_len.long())
    with pytest.raises(ValueError, match="all are int32"):
        CpuExecutor(1).begin(placed, torch.zeros(3, 4), torch.zeros(3, 4), "auto", "float32")
    mlp, moe = Draw("float32").mlp_layer(), Draw("float32").moe_layer()
    mixed = replace(mlp.mlp, w_up=mlp.mlp.w_up.bfloat16())
    with pytest.raises(ValueError, match="gate and up have two formats"):
        CpuExecutor(1).pack_mlp(replace(mlp, mlp=mixed))
    mixed = replace(moe.experts, w_up=moe.experts.w_up.bfloat16())
    with pytest.raises(ValueError, match="gate and up have two formats"):
        CpuExecutor(1).pack_moe(replace(moe, experts=mixed))
    with pytest.raises(ValueError, match="multiple of 64"):
        CpuExecutor(1).quantise(torch.zeros(2, 32), "int4")
