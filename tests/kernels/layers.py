"""Random layers and batches for tests of executors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.executor import AttentionLayer, Mlp, MlpLayer, MoeLayer, RoutingShape
from dsv2.kernels.formats import SCHEMES, QuantTensor, Weight
from dsv2.kernels.interleaved import StoredWeight
from dsv2.kernels.ops import AttentionShape
from dsv2.ragged import RaggedBatch
from dsv2.shapes import BLOCK_SIZE

FORMATS = ("float32", "bfloat16", *SCHEMES)


class Draw:
    """Numbers from one seed, weights in one format."""

    def __init__(self, weights: str, seed: int = 0) -> None:
        self.weights = weights
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * scale

    def weight(self, *shape: int) -> Weight:
        plain = self.normal(*shape, scale=shape[-1] ** -0.5)
        if self.weights not in SCHEMES:
            return plain.to(getattr(torch, self.weights))
        # The fast quantiser: test_executor.py holds it to the readable one.
        done, _ = CpuExecutor(1).quantise(plain.reshape(-1, shape[-1]), self.weights)
        return QuantTensor(
            done.scheme,
            *(part.unflatten(0, shape[:-1]) for part in (done.codes, done.scales)),
            done.row_scales.reshape(shape[:-1]),
        )

    def norm(self, size: int) -> Tensor:
        return 1 + self.normal(size, scale=0.1)

    def attention(
        self, hidden: int = 128, heads: int = 3, nope: int = 64, rope: int = 8, value: int = 40,
        latent: int = 64, q_lora: int | None = None,
    ) -> AttentionLayer:  # fmt: skip
        queries = heads * (nope + rope)
        if (heads * value) % 64:
            value = 64
        return AttentionLayer(
            norm=self.norm(hidden), eps=1e-5,
            shape=AttentionShape(heads, nope, rope, value, scale=0.3, eps=1e-6),
            wkv_a=self.weight(latent + rope, hidden), kv_norm=self.norm(latent),
            wkv_b=self.weight(heads * (nope + value), latent),
            wo=self.weight(hidden, heads * value),
            wq=None if q_lora else self.weight(queries, hidden),
            wq_a=self.weight(q_lora, hidden) if q_lora else None,
            q_norm=self.norm(q_lora) if q_lora else None,
            wq_b=self.weight(queries, q_lora) if q_lora else None,
        )  # fmt: skip

    def mlp(self, hidden: int, width: int, count: int | None = None) -> Mlp[StoredWeight]:
        stacked = () if count is None else (count,)
        return Mlp(
            self.weight(*stacked, width, hidden),
            self.weight(*stacked, width, hidden),
            self.weight(*stacked, hidden, width),
        )

    def mlp_layer(self, hidden: int = 128, width: int = 192) -> MlpLayer:
        return MlpLayer(self.norm(hidden), 1e-5, self.mlp(hidden, width))

    def moe_layer(self, hidden: int = 128, width: int = 64, shared: int = 128,
                  **routing: Any) -> MoeLayer:  # fmt: skip
        fields: dict[str, Any] = {
            "num_experts": 8, "num_experts_per_tok": 3, "num_groups": 1, "topk_group": 1,
            "score": "softmax", "group_score": "none", "normalise": False, "scale": 1.5,
        }  # fmt: skip
        bias = routing.pop("bias", False)
        shape = RoutingShape(**(fields | routing))
        return MoeLayer(
            norm=self.norm(hidden), eps=1e-5, routing=shape,
            router=self.normal(shape.num_experts, hidden, scale=hidden**-0.5),
            router_bias=self.normal(shape.num_experts, scale=0.3) if bias else None,
            experts=self.mlp(hidden, width, shape.num_experts),
            shared=self.mlp(hidden, shared) if shared else None,
        )  # fmt: skip


def paged_batch(
    new: Sequence[int], past: Sequence[int], generated: Sequence[bool], *, spare: int = 0
) -> RaggedBatch:
    """A batch whose sequences own blocks in an order of their own."""
    totals = [n + p for n, p in zip(new, past, strict=True)]
    per = max(-(-total // BLOCK_SIZE) for total in totals) + spare
    count = len(new) * per
    blocks = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    table = blocks.reshape(len(new), per).to(torch.int32)
    places = [torch.arange(p, p + n) for n, p in zip(new, past, strict=True)]
    slots = [table[b].long()[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE
             for b, at in enumerate(places)]  # fmt: skip
    return RaggedBatch(
        tokens=torch.zeros(sum(new), dtype=torch.int32),
        positions=torch.cat(places).to(torch.int32),
        cu_q=torch.tensor([0, *accumulate(new)], dtype=torch.int32),
        kv_len=torch.tensor(totals, dtype=torch.int32),
        block_table=table,
        slots=torch.cat(slots).to(torch.int32),
        host_lengths=tuple(new),
        generated=tuple(generated),
    )


def turn(batch: RaggedBatch, rope: int) -> tuple[Tensor, Tensor]:
    """cos and sin ``[T, R/2]`` of the batch's positions."""
    angles = batch.positions.float().unsqueeze(1) * 0.7 ** torch.arange(rope // 2)
    return angles.cos(), angles.sin()
