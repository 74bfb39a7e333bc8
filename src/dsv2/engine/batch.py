"""From a step's plan to the tensors that the model takes."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from dsv2.engine.sequence import UNKNOWN, Sequence, Work
from dsv2.engine.transfer import Section, buffer_bytes, host_buffer, views
from dsv2.ragged import RaggedBatch
from dsv2.shapes import BLOCK_SIZE


def build_batch(works: Rows[Work], device: torch.device) -> RaggedBatch:
    """The batch of a plan; logits are wanted where a next token is to be chosen.

    Everything goes to ``device`` in one copy, for which the host does not wait. A token that is
    not known yet stands as 0, to be fed (:func:`feed`).
    """
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    logit_rows: list[int] = []
    for work in works:
        sequence = work.sequence
        first, last = sequence.computed, sequence.computed + work.count
        tokens += work.tokens()
        positions += range(first, last)
        slots += [slot(sequence.blocks, place) for place in range(first, last)]
        logit_rows += range(len(tokens) - work.num_choices, len(tokens))
    lengths = tuple(work.count for work in works)
    kv_len = [work.sequence.computed + work.count for work in works]
    widest = max(len(work.sequence.blocks) for work in works)
    sections: list[Section] = [
        (torch.int32, (len(values),))
        for values in (tokens, positions, (0, *lengths), kv_len, slots, logit_rows)
    ]
    sections.append((torch.int32, (len(works), widest)))
    host = host_buffer(buffer_bytes(sections), device)
    own = views(host, sections)
    parts = [part.numpy() for part in own]
    parts[0][:] = tokens
    np.maximum(parts[0], 0, out=parts[0])
    parts[1][:] = positions
    parts[2][:] = [0, *accumulate(lengths)]
    parts[3][:] = kv_len
    parts[4][:] = slots
    parts[5][:] = logit_rows
    parts[6][:] = padded_table([work.sequence.blocks for work in works], widest, 0)
    moved = own
    if device.type != "cpu":
        moved = views(host.to(device, non_blocking=True), sections)
    return RaggedBatch(
        tokens=moved[0],
        positions=moved[1],
        cu_q=moved[2],
        kv_len=moved[3],
        slots=moved[4],
        logit_rows=moved[5],
        block_table=moved[6],
        host_lengths=lengths,
        host_totals=tuple(kv_len),
        generated=tuple(work.sequence.in_answer for work in works),
    )


def slot(blocks: Rows[int], place: int) -> int:
    """The cache slot of the token at ``place`` of a sequence with these blocks."""
    return blocks[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE


def padded_table(tables: Rows[Rows[int]], width: int, filler: int) -> np.ndarray:
    """Rows of blocks as ``[B, width]`` int32, with ``filler`` behind each row's own."""
    flat: list[int] = []
    for blocks in tables:
        flat += blocks
        flat += [filler] * (width - len(blocks))
    return np.array(flat, dtype=np.int32).reshape(len(tables), width)


def sources(works: Rows[Work], rows: Mapping[Sequence, int]) -> list[int] | None:
    """For each token of a plan the row of the step before whose choice it is, or -1.

    Args:
        works: the plan.
        rows: that row of each sequence whose last token is still unknown.

    Returns:
        T numbers, or None where every token is known.
    """
    found: list[int] = []
    for work in works:
        row = rows.get(work.sequence, -1)
        found += [row if token == UNKNOWN else -1 for token in work.tokens()]
    return found if max(found, default=-1) >= 0 else None


def feed(tokens: Tensor, rows: Tensor, chosen: Tensor) -> Tensor:
    """``tokens`` ``[T]`` int32, with the choices of the step before where they come from there.

    Args:
        tokens: the known ones.
        rows: ``[T]`` int32: which of ``chosen``, or -1.
        chosen: ``[L]`` int64; what is negative is no token, and anything may be computed of it.
    """
    fed = chosen[rows.clamp_min(0).long()].clamp_min(0).int()
    return torch.where(rows >= 0, fed, tokens)
