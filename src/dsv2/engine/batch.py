"""From a step's plan to the tensors that the model takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from dsv2.engine.sequence import Work
from dsv2.ragged import RaggedBatch
from dsv2.shapes import BLOCK_SIZE


def build_batch(works: Sequence[Work], device: torch.device) -> RaggedBatch:
    """The batch of a plan; logits are wanted where a next token is to be chosen."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    logit_rows: list[int] = []
    widest = max(len(work.sequence.blocks) for work in works)
    table = torch.zeros(len(works), widest, dtype=torch.int32)
    for row, work in enumerate(works):
        sequence = work.sequence
        first, last = sequence.computed, sequence.computed + work.count
        tokens += work.tokens()
        positions += range(first, last)
        slots += [
            sequence.blocks[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
            for place in range(first, last)
        ]
        table[row, : len(sequence.blocks)] = torch.tensor(sequence.blocks, dtype=torch.int32)
        logit_rows += range(len(tokens) - work.num_choices, len(tokens))
    lengths = tuple(work.count for work in works)
    kv_len = [work.sequence.computed + work.count for work in works]
    return RaggedBatch(
        tokens=torch.tensor(tokens, dtype=torch.int32),
        positions=torch.tensor(positions, dtype=torch.int32),
        cu_q=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        kv_len=torch.tensor(kv_len, dtype=torch.int32),
        block_table=table,
        slots=torch.tensor(slots, dtype=torch.int32),
        logit_rows=torch.tensor(logit_rows, dtype=torch.int32),
        host_lengths=lengths,
        host_totals=tuple(kv_len),
        generated=tuple(work.sequence.in_answer for work in works),
    ).to(device)
