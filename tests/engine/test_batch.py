from __future__ import annotations

import torch

from dsv2.engine.batch import build_batch
from dsv2.engine.request import Request, SamplingParams
from dsv2.engine.sequence import Sequence, Work
from dsv2.shapes import BLOCK_SIZE


def sequence(prompt: int, generated: int, computed: int, blocks: list[int]) -> Sequence:
    request = Request("a", tuple(range(prompt)), SamplingParams(max_tokens=8))
    tokens = [*range(prompt), *range(900, 900 + generated)]
    return Sequence(request, 0, tokens, computed=computed, blocks=blocks)


def test_a_plan_becomes_tensors() -> None:
    works = [
        Work(sequence(70, 0, 60, [5, 2]), 10),  # the end of a prompt, across a block
        Work(sequence(3, 2, 4, [7]), 1),  # a generated token
        Work(sequence(9, 0, 8, [1]), 1),  # the last token of a prompt, alone in its chunk
        Work(sequence(50, 0, 0, [3]), 20),  # a chunk that does not end its prompt
    ]
    batch = build_batch(works, torch.device("cpu"))
    assert batch.tokens.tolist() == [*range(60, 70), 901, 8, *range(20)]
    assert batch.positions.tolist() == [*range(60, 70), 4, 8, *range(20)]
    first = [5 * BLOCK_SIZE + place for place in range(60, 64)]
    second = [2 * BLOCK_SIZE + place for place in range(6)]
    assert batch.slots is not None
    assert batch.slots.tolist()[:12] == [*first, *second, 7 * BLOCK_SIZE + 4, BLOCK_SIZE + 8]
    assert batch.kv_len.tolist() == [70, 5, 9, 20]
    assert batch.cu_q.tolist() == [0, 10, 11, 12, 32]
    assert batch.block_table is not None
    assert batch.block_table.tolist() == [[5, 2], [7, 0], [1, 0], [3, 0]]
    assert batch.logit_rows is not None
    assert batch.logit_rows.tolist() == [9, 10, 11]
    assert batch.generated == (False, True, False, False)
    assert batch.query_lengths() == (10, 1, 1, 20)
