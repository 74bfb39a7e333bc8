"""Triton's kernels on a real device at the published widths, through the registry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.ops import ExpertWeights
from dsv2.kernels.registry import select
from dsv2.model.init import init_weights
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch
from dsv2.training.config import OptimizerConfig
from dsv2.training.losses import next_token_loss
from dsv2.training.optim import MasterAdamW
from tests.kernels.triton.place import draw
from tests.tiny import tiny_config

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("heads", [16, 128])
@pytest.mark.parametrize("new", [1, 4])
def test_decode(heads: int, new: int) -> None:
    from tests.kernels.triton.test_mla_decode import make

    case = make(heads, 512, 64, (4000, 77, 1, 600), (new, 1, 1, new), torch.bfloat16)
    ours = select("attend_absorbed", "triton", "cuda")(*case, 0.07)
    torch.testing.assert_close(ours.float(), case.reference(0.07), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("q_lens", "kv_lens"), [((700, 1, 64),) * 2, ((5, 300), (900, 1111))])
def test_prefill_and_its_gradients(q_lens: tuple[int, ...], kv_lens: tuple[int, ...]) -> None:
    wide = [
        draw(sum(q_lens), 4, 192), draw(sum(kv_lens), 4, 192, seed=1),
        draw(sum(kv_lens), 4, 128, seed=2),
    ]  # fmt: skip
    grads = []
    for dtype, op in (
        (torch.bfloat16, select("attend_expanded", "triton", "cuda")),
        (torch.float32, reference.attend_expanded),
    ):
        leaves = [one.bfloat16().to(dtype).requires_grad_() for one in wide]
        out = op(*leaves, q_lens, kv_lens, 0.07)
        (out * draw(*out.shape, seed=3).to(dtype)).sum().backward()
        grads.append([out.detach().float(), *(leaf.grad.float() for leaf in leaves)])
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("tokens", [1, 16, 200, 3000])
def test_experts(tokens: int) -> None:
    from dsv2.kernels.triton.grouped_gemm import run_experts

    own = ExpertWeights(
        *(
            (draw(*shape, seed=seed) / shape[-1] ** 0.5).bfloat16()
            for seed, shape in enumerate([(64, 1408, 2048), (64, 1408, 2048), (64, 2048, 1408)])
        )
    )
    ids = torch.rand(tokens, 64, device="cuda").topk(6).indices
    x, weights = draw(tokens, 2048).bfloat16(), draw(tokens, 6).abs()
    expected = reference.experts(
        x.float(), ids, weights, ExpertWeights(*(part.float() for part in vars(own).values()))
    )
    for deterministic in (False, True):
        ours = run_experts(x, ids, weights, own, deterministic=deterministic)
        torch.testing.assert_close(ours.float(), expected, atol=3e-2, rtol=3e-2)


def test_a_cuda_graph_holds_a_decode_step() -> None:
    from tests.kernels.triton.test_mla_decode import decode, make

    case = make(16, 512, 64, (900, 77), (1, 1), torch.bfloat16)
    decode(case)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode(case)
    case.kv_len.copy_(torch.tensor([500, 3], dtype=torch.int32))
    graph.replay()
    torch.testing.assert_close(out.float(), case.reference(0.2), atol=2e-2, rtol=2e-2)


def training_case(dtype: torch.dtype, backend: str) -> tuple[Transformer, RaggedBatch, Tensor]:
    """A small model of the published widths per head, documents and their targets."""
    config = tiny_config(
        hidden_size=256, moe_intermediate_size=128, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128, kv_lora_rank=256,
    )  # fmt: skip
    tokens = torch.randint(config.vocab_size, (700,), generator=torch.Generator().manual_seed(0))
    batch = RaggedBatch.packed(tokens, (300, 1, 399)).to("cuda")
    model = Transformer(config, backend=backend)
    init_weights(model, torch.Generator().manual_seed(1), 0.05)
    # Rounded alike, or routing would differ.
    return model.bfloat16().to("cuda", dtype), batch, tokens.roll(-1).cuda()


def test_a_training_step_is_right_and_the_same_each_time() -> None:
    """Loss and gradients in bf16 on Triton, against fp32 on the readable ops."""

    def step(dtype: torch.dtype, backend: str) -> list[Tensor]:
        model, batch, targets = training_case(dtype, backend)
        loss = next_token_loss(model, batch, targets).nll / len(targets)
        loss.backward()
        return [loss.detach().float(), *(p.grad.float() for p in model.parameters())]

    ours, again = step(torch.bfloat16, "auto"), step(torch.bfloat16, "auto")
    assert all(torch.equal(one, other) for one, other in zip(ours, again, strict=True))
    expected = step(torch.float32, "reference")
    torch.testing.assert_close(ours[0], expected[0], atol=1e-2, rtol=1e-2)
    for one, theirs in zip(ours[1:], expected[1:], strict=True):
        # Tokens near a tie of two experts may be sent elsewhere in bf16.
        assert float((one - theirs).norm() / theirs.norm()) < 0.15


# That it is a prototype is all that the mode has to say when it is turned on.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_training_step_does_not_wait_for_the_device() -> None:
    model, batch, targets = training_case(torch.bfloat16, "auto")
    optimizer = MasterAdamW(model, OptimizerConfig())

    def step() -> None:
        (next_token_loss(model, batch, targets).nll / len(targets)).backward()
        optimizer.accumulate()
        optimizer.step(1e-4, optimizer.gradient_norm())

    step()  # compiles, and puts the rotary frequencies on the device
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("tokens", [200, 3000])
def test_gradients_of_experts(tokens: int) -> None:
    from tests.kernels.triton.test_experts_train import run

    shapes = [(64, 1408, 2048), (64, 1408, 2048), (64, 2048, 1408)]
    tensors = [
        draw(tokens, 2048).bfloat16(), draw(tokens, 6).abs(),
        *((draw(*shape, seed=seed) / shape[-1] ** 0.5).bfloat16()
          for seed, shape in enumerate(shapes)),
    ]  # fmt: skip
    ids = torch.rand(tokens, 64, device="cuda").topk(6).indices
    ours = run(select("experts", "triton", "cuda"), ids, tensors)
    again = run(select("experts", "triton", "cuda"), ids, tensors)
    expected = run(reference.experts, ids, [one.float() for one in tensors])
    for one, same, theirs in zip(ours, again, expected, strict=True):
        assert torch.equal(one, same)
        assert float((one.float() - theirs).norm() / theirs.norm()) < 1e-2


def test_the_loss_and_its_gradients() -> None:
    tensors = [draw(300, 2048).bfloat16(), (draw(102_400, 2048) / 45).bfloat16()]
    targets = torch.randint(102_400, (300,), device="cuda")
    weights = torch.rand(300, device="cuda")
    found = []
    for op, dtype in (
        (select("linear_cross_entropy", "triton", "cuda"), torch.bfloat16),
        (reference.linear_cross_entropy, torch.float32),
    ):
        leaves = [one.clone().to(dtype).requires_grad_() for one in tensors]
        loss = op(*leaves, targets, weights)
        (loss / 7).backward()
        found.append([loss.detach(), *(leaf.grad.float() for leaf in leaves)])
    for one, theirs in zip(*found, strict=True):
        assert float((one - theirs).norm() / theirs.norm()) < 1e-2


@pytest.mark.parametrize("form", ["auto", "absorbed"])
@torch.inference_mode()
def test_a_trainable_model_with_a_cache(form: str) -> None:
    from tests.model.test_forward import Cached, alone, build, sequences

    tokens = [one.cuda() for one in sequences(40, 90)]
    with torch.device("cuda"):
        model, readable = (build("yarn", name).cuda() for name in ("auto", "reference"))
        cached = Cached(model, tokens)
        steps = [{0: 17, 1: 3}, {1: 61, 0: 1}, {0: 1, 1: 1}, {0: 21, 1: 25}]
        pieces: list[list[Tensor]] = [[], []]
        for step in steps:
            for which, logits in cached.step(step, form).items():
                pieces[which].append(logits)
        for which, one in enumerate(tokens):
            expected = alone(readable, one)
            torch.testing.assert_close(torch.cat(pieces[which]), expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(alone(model, one), expected, atol=1e-4, rtol=1e-4)
