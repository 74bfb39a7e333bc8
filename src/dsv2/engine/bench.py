"""How fast this machine runs a model, each figure beside what the machine could do at most."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsv2.checkpoint.fp8 import FP8, is_fp8
from dsv2.checkpoint.quantised import stored_shapes
from dsv2.checkpoint.synthetic import synthetic_matrix
from dsv2.checkpoint.weights import parameter_shapes
from dsv2.engine.blocks import BlockPool
from dsv2.engine.cache import token_bytes
from dsv2.engine.engine import Engine
from dsv2.engine.graphs import CudaCapture
from dsv2.engine.request import Limits, Request, SamplingParams
from dsv2.engine.runner import Runner
from dsv2.engine.scheduler import Scheduler
from dsv2.engine.sequence import blocks_for
from dsv2.kernels.formats import FP8_BLOCK, SCHEMES
from dsv2.kernels.registry import select
from dsv2.kernels.timing import Roof, step_seconds, wait
from dsv2.model.config import ModelConfig
from dsv2.model.counts import count
from dsv2.model.packed import PackedModel
from dsv2.ragged import RaggedBatch
from dsv2.shapes import BLOCK_SIZE

if TYPE_CHECKING:  # A checkout that only a GPU computes with need not be built.
    from dsv2.kernels.cpu import CpuExecutor

CPU = torch.device("cpu")
_STEPS_ON = 8
"""Steps on a GPU that follow each other without a wait, as the engine has them: it prepares the
next while one runs."""


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
        wide = {"float32": 4.0, "bfloat16": 2.0, FP8: 2.0}[weights]
        for name, shape in parameter_shapes(config).items():
            # One byte and the scale of its block; what fp8 leaves alone is bfloat16.
            width = 1 + 4 / FP8_BLOCK**2 if weights == FP8 and is_fp8(name, shape) else wide
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


def step_operations(config: ModelConfig, sequences: int, new: int, past: int) -> float:
    """Operations of a step of ``new`` tokens for each sequence that has ``past`` before them.

    Two per parameter that multiplies, and those of attention: over the latents themselves for
    single tokens, else over expanded keys and values. The head is computed for one position of
    each sequence.
    """
    counts, total = count(config), sequences * new
    head = 2.0 * config.vocab_size * config.hidden_size
    operations = total * (2.0 * counts.active_without_embedding - head) + sequences * head
    latent, rope = config.kv_lora_rank, config.qk_rope_head_dim
    width = counts.score_width
    if new == 1:
        width = config.num_attention_heads * (2 * latent + rope)
    return operations + 2.0 * counts.layers * width * total * (past + (new + 1) / 2)


class ModelBench:
    """Times steps of one model, on whatever device it is.

    Args:
        model: on the executor of its device.
        roof: of this machine.
        longest: most tokens of all sequences together that will be asked for.
    """

    def __init__(self, model: PackedModel, roof: Roof, longest: int) -> None:
        self._model, self._roof = model, roof
        self._blocks = blocks_for(longest) + 64
        self._runner = Runner(model, self._blocks)

    def prefill(self, tokens: int, repeats: int = 3, *, sequences: int = 1) -> Figure:
        """Prompts of so many tokens, with the logits of the last of each."""
        work = f"prefill {tokens}" if sequences == 1 else f"prefill {sequences} x {tokens}"
        return self._time(work, sequences, tokens, 0, False, repeats)

    def decode(self, sequences: int, depth: int, repeats: int = 15) -> Figure:
        """One token for each of some sequences that have ``depth`` tokens in the cache."""
        return self._time(f"decode x{sequences} at {depth}", sequences, 1, depth, True, repeats)

    def _time(
        self, work: str, sequences: int, new: int, past: int, generated: bool, repeats: int
    ) -> Figure:
        config, runner, device = self._model.config, self._runner, self._model.device
        # Made before the clock runs: the engine makes a batch while the last one computes.
        batches = [
            paged(
                sequences, new, past, self._blocks, generated=generated,
                vocab_size=config.vocab_size,
            ).to(device)
            for _ in range(repeats + 1)
        ]  # fmt: skip

        def compute(batch: RaggedBatch) -> tuple[Tensor, Tensor]:
            hidden = runner.forward(batch)
            if not generated:
                assert batch.logit_rows is not None
                hidden = hidden[batch.logit_rows.long()]
            logits = runner.logits(hidden)
            return logits, select("greedy_tokens", device=device.type)(logits)

        if generated and device.type == "cuda":
            held = batches[0]
            captured = CudaCapture(device)(lambda: compute(held))

            def run(turn: int) -> None:
                for step in range(_STEPS_ON):
                    held.tokens.copy_(batches[(turn + step) % len(batches)].tokens)
                    captured.replay()

            steps = _STEPS_ON
        else:

            def run(turn: int) -> None:
                compute(batches[turn])

            steps = 1
        seconds = step_seconds(run, repeats, device) / steps
        total = sequences * new
        kind = self._model.cache_format
        needed = step_bytes(config, self._model.weights, total, 0, kind)
        needed += float(sequences * past * token_bytes(config, kind))
        operations = step_operations(config, sequences, new, past)
        limit = self._roof.limit(needed, operations)
        return Figure(work, seconds, total / seconds, needed, operations, limit)


def bench_linear(
    executor: CpuExecutor, weights: str, roof: Roof, rows: int, columns: int, tokens: int
) -> Figure:
    """One matrix times ``tokens`` rows of activations."""
    generator = torch.Generator().manual_seed(0)
    handle = executor.pack_linear(synthetic_matrix((rows, columns), weights, generator))
    x = torch.randn(tokens, columns, generator=generator)

    def run(turn: int) -> None:
        executor.linear(handle, x, None, 0.0)

    seconds = step_seconds(run, 7, CPU)
    operations = 2.0 * rows * columns * tokens
    limit = roof.limit(handle.bytes, operations)
    return Figure(
        f"{weights} [{rows} x {columns}] x {tokens}", seconds, tokens / seconds,
        float(handle.bytes), operations, limit,
    )  # fmt: skip


def engine_seconds(model: PackedModel, sequences: int, prompt: int, new: int) -> float:
    """Seconds in which the engine answers some requests at once, greedily, from first to last.

    It is what ``LLM.generate`` does but for the tokenizer. The same once before does not count:
    kernels are compiled and graphs recorded there.

    Args:
        model: packed.
        sequences: requests, each of its own random tokens.
        prompt: tokens of each.
        new: tokens of each answer.
    """
    vocab, context = model.config.vocab_size, prompt + new + 1
    blocks = sequences * blocks_for(context)
    scheduler = Scheduler(
        BlockPool(blocks), max_step_tokens=max(8192, sequences), max_sequences=sequences
    )
    engine = Engine(Runner(model, blocks), scheduler, Limits(vocab, context), ends=())

    def answer(turn: int) -> float:
        params = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True)
        drawn = torch.randint(
            vocab, (sequences, prompt), generator=torch.Generator().manual_seed(turn)
        ).tolist()
        start = time.perf_counter()
        for number, ids in enumerate(drawn):
            engine.add(Request(f"{turn}-{number}", tuple(ids), params))
        while engine.has_work:
            engine.step()
        wait(model.device)
        return time.perf_counter() - start

    answer(0)
    return answer(1)
