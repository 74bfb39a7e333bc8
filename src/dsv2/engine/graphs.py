"""Steps of generated tokens as CUDA graphs: hundreds of launches become one.

A graph holds one number of sequences and one width of block table; a step takes the next larger of
both from a short ladder. Rows that are there for the size alone read and write a scratch block of
their own. Graphs are captured when they are first wanted and share one pool of memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv2.model.packed import PackedModel
from dsv2.ragged import RaggedBatch
from dsv2.shapes import BLOCK_SIZE

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""Numbers of sequences; beyond the last, its multiples."""
MAX_GRAPHS = 64


def ladder(count: int) -> int:
    """The least of :data:`SIZES` that holds ``count`` sequences."""
    top = SIZES[-1]
    return next((size for size in SIZES if size >= count), -(-count // top) * top)


def table_width(blocks: int) -> int:
    """The power of two that holds ``blocks``."""
    return 1 << max(0, blocks - 1).bit_length()


def is_decode(batch: RaggedBatch) -> bool:
    """Whether every sequence computes one generated token."""
    return (
        batch.generated is not None and all(batch.generated)
        and batch.host_lengths is not None and set(batch.host_lengths) == {1}
    )  # fmt: skip


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    batch: RaggedBatch
    spare: RaggedBatch
    hidden: Tensor


def static_batch(size: int, width: int, scratch: int, device: torch.device) -> RaggedBatch:
    """A batch of ``size`` single tokens whose rows all write to block ``scratch``."""

    def full(value: int, *shape: int) -> Tensor:
        return torch.full(shape, value, dtype=torch.int32, device=device)

    slots = torch.arange(size, dtype=torch.int32, device=device) % BLOCK_SIZE
    return RaggedBatch(
        tokens=full(0, size),
        positions=full(0, size),
        cu_q=torch.arange(size + 1, dtype=torch.int32, device=device),
        kv_len=full(1, size),
        block_table=full(scratch, size, width),
        slots=slots + scratch * BLOCK_SIZE,
        host_lengths=(1,) * size,
        generated=(True,) * size,
    )


def fill(static: RaggedBatch, batch: RaggedBatch, spare: RaggedBatch) -> None:
    """Put a step into the first rows of a static batch, and ``spare``'s rows into the rest."""
    count = batch.num_sequences
    for name in ("tokens", "positions", "kv_len", "slots"):
        place = getattr(static, name)
        place[:count].copy_(getattr(batch, name))
        if count < len(place):
            place[count:].copy_(getattr(spare, name)[count:])
    own, table = static.block_table, batch.block_table
    assert own is not None and table is not None and spare.block_table is not None
    own[:count, : table.shape[1]].copy_(table)
    if count < len(own):
        own[count:, 0].copy_(spare.block_table[count:, 0])


class DecodeGraphs:
    """The graphs of one model and cache on a GPU.

    Args:
        model: on an executor whose steps of generated tokens ask the device nothing.
        cache: of every layer, one block larger than what sequences are given.
        scratch: that block.
    """

    def __init__(self, model: PackedModel, cache: Sequence[Tensor], scratch: int) -> None:
        self._model, self._cache, self._scratch = model, cache, scratch
        self._graphs: OrderedDict[tuple[int, int], _Graph] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()
        self.num_captured = 0

    def hidden(self, batch: RaggedBatch) -> Tensor:
        """:meth:`PackedModel.hidden` of a step for which :func:`is_decode` holds.

        The result ``[B, D]`` is valid until the next step.
        """
        assert batch.block_table is not None
        key = ladder(batch.num_sequences), table_width(batch.block_table.shape[1])
        if key not in self._graphs:
            self._graphs[key] = self._capture(*key)
            while len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        held = self._graphs[key]
        fill(held.batch, batch, held.spare)
        held.graph.replay()
        return held.hidden[: batch.num_sequences]

    def _capture(self, size: int, width: int) -> _Graph:
        device = self._model.device
        static = static_batch(size, width, self._scratch, device)
        spare = static_batch(size, 1, self._scratch, device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            self._model.hidden(static, self._cache)  # compiles kernels, which no graph may hold
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            hidden = self._model.hidden(static, self._cache)
        self.num_captured += 1
        return _Graph(graph, static, spare, hidden)
