"""Steps of single generated tokens as captured CUDA graphs: one copy in, one launch.

A decode step launches some hundred small kernels, which takes the host longer than the GPU needs
to run them. Captured once, they are launched together; what they read stands in buffers of fixed
size. So a step of B sequences is padded up to one of few sizes: the rows that are added write to a
scratch block and are thrown away, and nothing a row computes depends on another row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dsv2.engine.batch import feed, padded_table, slot
from dsv2.engine.sampler import draw
from dsv2.engine.sequence import Work
from dsv2.engine.transfer import Section, buffer_bytes, host_buffer, to_device, views
from dsv2.ragged import PlannedDecode, RaggedBatch
from dsv2.shapes import BLOCK_SIZE

MAX_GRAPHS = 64
"""Captured steps that are kept; the longest unused goes first."""

_LEAST_WIDTH = 8
"""Least width of a captured block table: 512 tokens. Below, steps differ too little in cost."""


@dataclass(frozen=True)
class StepShape:
    """What distinguishes captured steps.

    Attributes:
        rows: sequences, padding included.
        width: of the block table.
        drawn: whether tokens are drawn with noise; else the best ones are taken.
    """

    rows: int
    width: int
    drawn: bool


def rung(count: int) -> int:
    """The size that ``count`` sequences are padded to: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, ...

    From 16 on two steps per doubling: at most a third of the rows of a large step is padding.
    """
    size = 1 << (count - 1).bit_length()
    return size * 3 // 4 if size > 16 and count <= size * 3 // 4 else size


def table_width(blocks: int) -> int:
    """The width that a block table of ``blocks`` columns is padded to, a power of two."""
    return max(_LEAST_WIDTH, 1 << (blocks - 1).bit_length())


class StepInputs:
    """What a captured step reads: views of one buffer, on the host or on the device.

    Attributes:
        buffer: uint8, all of it.
        seeds: ``[B]`` int64.
        temperatures: ``[B]`` fp64; 0 is greedy.
        tokens: ``[B]`` int32.
        positions: ``[B]`` int32.
        kv_len: ``[B]`` int32.
        slots: ``[B]`` int32.
        sources: ``[B]`` int32, for :func:`dsv2.engine.batch.feed`.
        block_table: ``[B, M]`` int32.
    """

    def __init__(self, shape: StepShape, make: Callable[[int], Tensor]) -> None:
        rows = (shape.rows,)
        sections: list[Section] = [(torch.int64, rows), (torch.float64, rows)]
        sections += [(torch.int32, rows)] * 5
        sections.append((torch.int32, (shape.rows, shape.width)))
        self.buffer = make(buffer_bytes(sections))
        parts = views(self.buffer, sections)
        self.seeds, self.temperatures, self.tokens, self.positions = parts[:4]
        self.kv_len, self.slots, self.sources, self.block_table = parts[4:]


def fill_inputs(
    inputs: StepInputs, works: Sequence[Work], sources: Sequence[int] | None, scratch: int
) -> None:
    """Write a step's numbers to host buffers, and harmless ones to the rows behind them.

    Args:
        inputs: on the host, of at least as many rows as works.
        works: single generated tokens.
        sources: of :func:`dsv2.engine.batch.sources`, or None.
        scratch: a block that belongs to no sequence.
    """
    count, rows = len(works), inputs.tokens.shape[0]
    spare = rows - count
    sequences = [work.sequence for work in works]
    places = [one.computed for one in sequences]
    tokens = [max(work.tokens()[0], 0) for work in works]
    params = [one.request.params for one in sequences]
    slots = [slot(one.blocks, place) for one, place in zip(sequences, places, strict=True)]
    columns = (
        (inputs.seeds, [one.seed for one in sequences], 0),
        (inputs.temperatures, [one.temperature for one in params], 0.0),
        (inputs.tokens, tokens, 0),
        (inputs.positions, places, 0),
        (inputs.kv_len, [place + 1 for place in places], 1),
        (inputs.slots, slots, scratch * BLOCK_SIZE),
        (inputs.sources, [-1] * count if sources is None else sources, -1),
    )
    for column, values, filler in columns:
        column.numpy()[:] = [*values, *([filler] * spare)]
    tables = [one.blocks for one in sequences] + [[scratch]] * spare
    inputs.block_table.numpy()[:] = padded_table(tables, inputs.block_table.shape[1], scratch)


Outputs = tuple[Tensor, Tensor]
"""Logits ``[B, vocabulary]`` fp32 and tokens ``[B]`` int64 of a step, where it leaves them."""


class Captured(Protocol):
    """A captured step."""

    @property
    def outputs(self) -> Outputs:
        """What it computes, in the same memory every time."""
        ...

    def replay(self) -> None:
        """Compute the step again from what now stands in its inputs."""
        ...

    def free(self) -> None:
        """Give its memory back; it is replayed no more."""
        ...


Capture = Callable[[Callable[[], Outputs]], Captured]


@dataclass(frozen=True)
class _CudaGraph:
    outputs: Outputs
    graph: torch.cuda.CUDAGraph
    device: torch.device

    def replay(self) -> None:
        self.graph.replay()

    def free(self) -> None:
        torch.cuda.synchronize(self.device)  # It may be running.
        self.graph.reset()


class CudaCapture:
    """Captures steps on one GPU, all of them in one pool of memory.

    They share it because they never run at the same time and nobody reads the outputs of one after
    the next has begun.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device)

    def __call__(self, compute: Callable[[], Outputs]) -> Captured:
        """Run once, so that kernels are compiled and libraries have their memory; then capture."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                compute()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads, which compile grammars or load models, may go on meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                outputs = compute()
        return _CudaGraph(outputs, graph, self._device)


@dataclass(frozen=True)
class _Step:
    inputs: StepInputs
    batch: RaggedBatch  # A graph reads its tensors but does not keep them.
    captured: Captured


class DecodeGraphs:
    """The captured decode steps of one model, made when they are first needed.

    Args:
        compute: the fp32 logits ``[B, vocabulary]`` of a batch of single generated tokens.
        device: where it computes.
        scratch: a cache block that belongs to no sequence.
        capture: makes a step out of a computation.
        most: steps that are kept.
        plan_decode: what attends in steps of so many rows and columns of the block table, or None
            for the model's own kernel.

    Attributes:
        num_captures: steps captured since the start.
    """

    def __init__(
        self,
        compute: Callable[[RaggedBatch], Tensor],
        device: torch.device,
        scratch: int,
        capture: Capture,
        most: int = MAX_GRAPHS,
        plan_decode: Callable[[int, int], PlannedDecode | None] = lambda rows, width: None,
    ) -> None:
        self._compute, self._device, self._scratch = compute, device, scratch
        self._capture, self._most, self._plan_decode = capture, most, plan_decode
        self._steps: OrderedDict[StepShape, _Step] = OrderedDict()
        self.num_captures = 0

    def launch(
        self,
        works: Sequence[Work],
        sources: Sequence[int] | None,
        chosen: Tensor | None,
        *,
        drawn: bool,
    ) -> Outputs:
        """Start a step.

        Args:
            works: single generated tokens.
            sources: of :func:`dsv2.engine.batch.sources`, or None.
            chosen: ``[L]`` int64, the choices that ``sources`` speak of.
            drawn: whether a sequence has a temperature and its token is wanted.

        Returns:
            Logits ``[L, vocabulary]`` and tokens ``[L]`` of :func:`dsv2.engine.sampler.draw`,
            which hold until the next step is launched.

        Raises:
            RuntimeError: the step could not be captured.
        """
        widest = max(len(work.sequence.blocks) for work in works)
        shape = StepShape(rung(len(works)), table_width(widest), drawn)
        step = self._steps.get(shape) or self._make(shape)
        self._steps.move_to_end(shape)
        host = StepInputs(shape, lambda size: host_buffer(size, self._device))
        fill_inputs(host, works, sources, self._scratch)
        inputs = step.inputs
        inputs.buffer.copy_(host.buffer, non_blocking=True)
        if step.batch.decode is not None:
            step.batch.decode.plan(host.block_table, host.kv_len)
        if sources is not None and chosen is not None:
            inputs.tokens.copy_(feed(inputs.tokens, inputs.sources, chosen))
        step.captured.replay()
        logits, tokens = step.captured.outputs
        return logits[: len(works)], tokens[: len(works)]

    def _make(self, shape: StepShape) -> _Step:
        while len(self._steps) >= self._most:
            _, oldest = self._steps.popitem(last=False)
            oldest.captured.free()
        device = self._device
        inputs = StepInputs(shape, lambda size: torch.empty(size, dtype=torch.uint8, device=device))
        blank = StepInputs(shape, lambda size: host_buffer(size, device))
        fill_inputs(blank, (), None, self._scratch)
        inputs.buffer.copy_(blank.buffer, non_blocking=True)
        rows = to_device(range(shape.rows + 1), torch.int32, device)
        batch = RaggedBatch(
            tokens=inputs.tokens,
            positions=inputs.positions,
            cu_q=rows,
            kv_len=inputs.kv_len,
            block_table=inputs.block_table,
            slots=inputs.slots,
            logit_rows=rows[:-1],
            host_lengths=(1,) * shape.rows,
            generated=(True,) * shape.rows,
            decode=self._plan_decode(shape.rows, shape.width),
        )
        if batch.decode is not None:
            batch.decode.plan(blank.block_table, blank.kv_len)

        def compute() -> Outputs:
            logits = self._compute(batch)
            temperatures = inputs.temperatures if shape.drawn else None
            # A token's place is the number of tokens before it.
            return logits, draw(logits, temperatures, inputs.seeds, inputs.kv_len.long())

        try:
            captured = self._capture(compute)
        except Exception as error:
            raise RuntimeError(
                f"a decode step of {shape.rows} sequences with {shape.width} blocks each could "
                f"not be captured: {error}"
            ) from error
        self.num_captures += 1
        step = self._steps[shape] = _Step(inputs, batch, captured)
        return step
