"""The batch layout that training, prefill and decode share: sequences one after another.

A :class:`RaggedBatch` holds T tokens of B sequences without padding. Training passes whole
documents and no cache; the engine passes the new tokens of each sequence, be it a prompt, a chunk
of one or a single generated token, together with the place of its latent cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor


class PlannedDecode(Protocol):
    """Attention of a step of single generated tokens over the latent, dealt out on the host.

    What was planned last is what :meth:`run` computes, also where a CUDA graph repeats it.
    """

    def plan(self, block_table: Tensor, kv_len: Tensor) -> None:
        """``block_table`` ``[B, M]`` and ``kv_len`` ``[B]``, int32 on the host."""
        ...

    def run(self, q_latent: Tensor, q_rope: Tensor, cache: Tensor) -> Tensor:
        """``q_latent`` ``[B, H, C]``, ``q_rope`` ``[B, H, R]``, ``cache`` -> ``[B, H, C]``."""
        ...


@dataclass(frozen=True)
class RaggedBatch:
    """T tokens of B sequences; all tensors int32 on one device.

    Attributes:
        tokens: ``[T]`` token ids.
        positions: ``[T]`` position of each token in its sequence.
        cu_q: ``[B+1]`` sequence b owns rows ``cu_q[b]:cu_q[b+1]``.
        kv_len: ``[B]`` length of each sequence once this batch is written.
        block_table: ``[B, M]`` cache blocks of each sequence, or None without a cache.
        slots: ``[T]`` flat cache slot (block * 64 + offset) of each token, or None.
        logit_rows: ``[L]`` rows whose logits are wanted, or None for all T.
        host_lengths: new tokens of each sequence on the host, where the maker of the batch knows
            them; it spares the wait for the device.
        host_totals: length of each sequence once this batch is written, likewise.
        generated: for each sequence whether its new tokens are a model's own rather than a
            prompt's, which decides the form of attention; None takes single tokens for generated.
        decode: attends for a step of single generated tokens alone; None for the executor's own
            kernel.
    """

    tokens: Tensor
    positions: Tensor
    cu_q: Tensor
    kv_len: Tensor
    block_table: Tensor | None = None
    slots: Tensor | None = None
    logit_rows: Tensor | None = None
    host_lengths: tuple[int, ...] | None = None
    host_totals: tuple[int, ...] | None = None
    generated: tuple[bool, ...] | None = None
    decode: PlannedDecode | None = None

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens of the batch."""
        return int(self.tokens.shape[0])

    @property
    def num_sequences(self) -> int:
        """B, the number of sequences of the batch."""
        return int(self.kv_len.shape[0])

    @classmethod
    def packed(cls, tokens: Tensor, lengths: Sequence[int]) -> RaggedBatch:
        """Whole documents of the given lengths, one after another, without a cache.

        Args:
            tokens: ``[T]`` ids of any integer dtype.
            lengths: tokens of each document; their sum is T and each is at least 1.

        Raises:
            ValueError: a length is below 1 or the sum is not T.
        """
        if tokens.ndim != 1 or sum(lengths) != tokens.shape[0] or min(lengths, default=0) < 1:
            raise ValueError(
                f"lengths must be positive and sum to the {tuple(tokens.shape)} tokens, "
                f"got {len(lengths)} lengths with sum {sum(lengths)}"
            )
        device = tokens.device
        sizes = torch.tensor(list(lengths), dtype=torch.int32)
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        starts = torch.repeat_interleave(bounds[:-1], sizes)
        positions = torch.arange(tokens.shape[0], dtype=torch.int32) - starts
        return cls(
            tokens=tokens.to(torch.int32),
            positions=positions.to(device),
            cu_q=bounds.to(device),
            kv_len=sizes.to(device),
            host_lengths=tuple(lengths),
            host_totals=tuple(lengths),
        )

    def query_lengths(self) -> tuple[int, ...]:
        """New tokens of each sequence, as Python integers."""
        if self.host_lengths is not None:
            return self.host_lengths
        bounds = self.cu_q.tolist()
        return tuple(b - a for a, b in pairwise(bounds))

    def total_lengths(self) -> tuple[int, ...]:
        """``kv_len`` as Python integers."""
        return tuple(self.kv_len.tolist()) if self.host_totals is None else self.host_totals

    def to(self, device: torch.device | str) -> RaggedBatch:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)
