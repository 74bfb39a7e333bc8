"""How fast this machine runs a model, each figure beside what the machine could do at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from dsv2.checkpoint.quantised import stored_shapes
from dsv2.checkpoint.synthetic import synthetic_matrix
from dsv2.checkpoint.weights import parameter_shapes
from dsv2.engine.cache import allocate_cache, token_bytes
from dsv2.engine.sequence import blocks_for
from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.formats import SCHEMES
from dsv2.model.config import ModelConfig
from dsv2.model.counts import count
from dsv2.model.packed import PackedModel
from dsv2.ragged import RaggedBatch
from dsv2.shapes import BLOCK_SIZE


@dataclass(frozen=True)
class Roof:
    """What the machine can do, measured on the spot.

    Attributes:
        read: bytes per second from memory.
        multiply: operations per second of the weights' dot product.
    """

    read: float
    multiply: float


@dataclass(frozen=True)
class Figure:
    """One measurement.

    Attributes:
        work: what was done.
        seconds: median of the repeats.
        tokens_per_second: tokens over it.
        bytes: that had to be read.
        operations: that had to be done.
        limit: seconds that the roof allows: the larger of reading and multiplying.
    """

    work: str
    seconds: float
    tokens_per_second: float
    bytes: float
    operations: float
    limit: float

    @property
    def share(self) -> float:
        """Of the limit that was reached; above 1 where caches spare memory traffic."""
        return self.limit / self.seconds


def measure_roof(executor: CpuExecutor, weights: str) -> Roof:
    """Best of several probes: other programs only ever make a machine look slower."""
    return Roof(
        read=max(executor.probe_read() for _ in range(5)),
        multiply=max(executor.probe_multiply(weights) for _ in range(5)),
    )


def step_bytes(
    config: ModelConfig, weights: str, sequences: int, depth: int, cache_format: str
) -> float:
    """Bytes that one step of ``sequences`` tokens reads: weights in use and cache.

    Routed experts count as often as the expected number of distinct ones among the tokens' choices.
    """
    sizes: dict[str, float] = {}
    if weights in SCHEMES:
        for name, parts in stored_shapes(config, SCHEMES[weights]).items():
            sizes[name] = sum(
                float(torch.Size(shape).numel()) * dtype.itemsize for shape, dtype in parts.values()
            )
    else:
        width = {"bfloat16": 2, "float32": 4}[weights]
        for name, shape in parameter_shapes(config).items():
            sizes[name] = float(torch.Size(shape).numel()) * width
    total = 0.0
    for name, size in sizes.items():
        if name == "embed" and not config.tie_word_embeddings:
            continue  # a row per token
        if ".experts." in name:
            experts, chosen = config.router.num_experts, config.router.num_experts_per_tok
            size *= 1 - (1 - chosen / experts) ** sequences
        total += size
    return total + sequences * depth * token_bytes(config, cache_format)


def paged(
    sequences: int, new: int, past: int, blocks: int, *, generated: bool, vocab_size: int
) -> RaggedBatch:
    """``new`` random tokens for each of some sequences that have ``past`` in the cache."""
    per = blocks_for(past + new)
    table = torch.arange(sequences * per).reshape(sequences, per) % blocks
    places = torch.arange(past, past + new)
    slots = table[:, places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE
    total = sequences * new
    return RaggedBatch(
        tokens=torch.randint(vocab_size, (total,), dtype=torch.int32),
        positions=places.repeat(sequences).to(torch.int32),
        cu_q=torch.arange(0, total + 1, new, dtype=torch.int32),
        kv_len=torch.full((sequences,), past + new, dtype=torch.int32),
        block_table=table.to(torch.int32),
        slots=slots.flatten().to(torch.int32),
        logit_rows=torch.arange(new - 1, total, new, dtype=torch.int32),
        host_lengths=(new,) * sequences,
        host_totals=(past + new,) * sequences,
        generated=(generated,) * sequences,
    )


class ModelBench:
    """Times steps of one model.

    Args:
        model: on a CPU executor.
        roof: of this machine.
        longest: most tokens of all sequences together that will be asked for.
    """

    def __init__(self, model: PackedModel, roof: Roof, longest: int) -> None:
        self._model, self._roof = model, roof
        self._blocks = blocks_for(longest) + 64
        self._cache = allocate_cache(
            model.config, self._blocks, model.cache_format, torch.device("cpu")
        )

    def prefill(self, tokens: int, repeats: int = 3) -> Figure:
        """A prompt of so many tokens, with the logits of its last."""
        return self._time(f"prefill {tokens}", 1, tokens, 0, False, repeats)

    def decode(self, sequences: int, depth: int, repeats: int = 15) -> Figure:
        """One token for each of some sequences that have ``depth`` tokens in the cache."""
        return self._time(f"decode x{sequences} at {depth}", sequences, 1, depth, True, repeats)

    def _time(
        self, work: str, sequences: int, new: int, past: int, generated: bool, repeats: int
    ) -> Figure:
        model, config = self._model, self._model.config

        def run() -> None:
            batch = paged(
                sequences, new, past, self._blocks, generated=generated,
                vocab_size=config.vocab_size,
            )  # fmt: skip
            model(batch, self._cache)

        seconds = timed(run, repeats)
        total = sequences * new
        needed = step_bytes(config, model.weights, total, 0, model.cache_format)
        needed += float(sequences * past * token_bytes(config, model.cache_format))
        # The head is computed for one position of each sequence.
        head = 2.0 * config.vocab_size * config.hidden_size
        operations = total * (2.0 * count(config).active_without_embedding - head)
        operations += sequences * head
        limit = max(needed / self._roof.read, operations / self._roof.multiply)
        return Figure(work, seconds, total / seconds, needed, operations, limit)


def timed(run: Callable[[], None], repeats: int) -> float:
    """Median seconds of ``repeats`` runs after one that does not count."""
    run()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return median(found)


def bench_linear(
    executor: CpuExecutor, weights: str, roof: Roof, rows: int, columns: int, tokens: int
) -> Figure:
    """One matrix times ``tokens`` rows of activations."""
    generator = torch.Generator().manual_seed(0)
    handle = executor.pack_linear(synthetic_matrix((rows, columns), weights, generator))
    x = torch.randn(tokens, columns, generator=generator)

    def run() -> None:
        executor.linear(handle, x, None, 0.0)

    seconds = timed(run, 7)
    operations = 2.0 * rows * columns * tokens
    limit = max(handle.bytes / roof.read, operations / roof.multiply)
    return Figure(
        f"{weights} [{rows} x {columns}] x {tokens}", seconds, tokens / seconds,
        float(handle.bytes), operations, limit,
    )  # fmt: skip
