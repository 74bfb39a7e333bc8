"""A prompt of 131,072 tokens on V2-Lite's shape with YaRN: speed, memory, and the same logits.

    python benchmarks/long_context.py                      # all layers, int4: hours on two cores
    python benchmarks/long_context.py --sample 5           # five of its 64 chunks, then the sum
    python benchmarks/long_context.py --layers 2 --weights float32 --check cuda
    python benchmarks/long_context.py --layers 2 --weights float32 --sample 5 --chunk 512 \
        --check cpu

Weights are random, so only times and sums of bytes mean something. ``--sample`` computes chunks at
equal distances over a cache of random latents: a chunk's time grows linearly with what is before
it, so that the trapezoids between them are the whole prompt's; the peak of memory is that of the
last chunk, which is among them. ``--check`` computes the same with the readable ops on a device and
compares logits: of the last position, which needs about 40 GiB there, or with ``--sample`` of the
last position of each of the chunks, over the same cache. What it would take to notice is measured
too, there: how far the logits move when one block of 64 tokens in the middle is another one.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dsv2.checkpoint.packed import cache_format_for
from dsv2.checkpoint.releases import config_of
from dsv2.checkpoint.synthetic import synthetic_weights
from dsv2.engine.bench import paged
from dsv2.engine.cache import allocate_cache, token_bytes
from dsv2.engine.sequence import blocks_for
from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.formats import Weight, dequantise
from dsv2.model.config import ModelConfig
from dsv2.model.packed import PackedModel
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch


def chunks(
    config: ModelConfig, tokens: Tensor, chunk: int, device: torch.device
) -> Iterator[RaggedBatch]:
    """The prompt's parts, each after the ones before it."""
    blocks = blocks_for(len(tokens))
    for first in range(0, len(tokens), chunk):
        new = min(chunk, len(tokens) - first)
        batch = paged(1, new, first, blocks, generated=False, vocab_size=config.vocab_size)
        batch.tokens.copy_(tokens[first : first + new])
        yield batch.to(device)


def read_prompt(model: PackedModel, tokens: Tensor, chunk: int) -> tuple[Tensor, float]:
    """Logits ``[vocabulary]`` of the last position, and the seconds that the prompt took."""
    cache = allocate_cache(model.config, blocks_for(len(tokens)), model.cache_format, model.device)
    start = time.perf_counter()
    hidden, done = torch.empty(0), 0
    for index, batch in enumerate(chunks(model.config, tokens, chunk, model.device)):
        hidden, done = model.hidden(batch, cache), done + batch.num_tokens
        if index % 8 == 0:
            print(f"{done:7d} tokens after {time.perf_counter() - start:8.1f} s", flush=True)
    return model.logits(hidden[-1:])[0], time.perf_counter() - start


def random_cache(model: PackedModel, tokens: int) -> list[Tensor]:
    """A cache that looks full."""
    cache = allocate_cache(model.config, blocks_for(tokens), model.cache_format, model.device)
    for layer in cache:
        if layer.dtype == torch.uint8:
            layer.random_(64, 192)  # bytes that are scales, too, of ordinary numbers
        else:
            # Wider than a real one, so that single tokens count among 131,072.
            layer.normal_(std=4.0)
    return cache


def sample_prompt(
    model: PackedModel, tokens: Tensor, chunk: int, count: int, reference: Reference | None
) -> float:
    """Seconds of the whole prompt from ``count`` of its chunks, the first and last among them.

    Raises:
        SystemExit: logits of a chunk are not the reference's.
    """
    cache = random_cache(model, len(tokens))
    parts = list(chunks(model.config, tokens, chunk, model.device))
    places = [round(place) for place in torch.linspace(0, len(parts) - 1, count).tolist()]
    model.hidden(parts[0], cache)  # threads and pages
    spent = []
    for place in places:
        start = time.perf_counter()
        hidden = model.hidden(parts[place], cache)
        spent.append(time.perf_counter() - start)
        print(f"chunk {place + 1:3d} of {len(parts)}: {spent[-1]:8.2f} s", flush=True)
        if reference is not None:
            end = min((place + 1) * chunk, len(tokens))
            reference.compare(model.logits(hidden[-1:])[0], cache, place * chunk, end)
    measured = list(zip(places, spent, strict=True))
    between = sum((b - a) * (x + y) / 2 for (a, x), (b, y) in pairwise(measured))
    return between + (spent[0] + spent[-1]) / 2


class Reference:
    """The readable ops over the same weights.

    Args:
        config: of the model.
        weights: by name; each is let go as it is taken over.
        tokens: of the prompt.
        device: that computes.
        bound: largest difference of logits that is allowed, in their standard deviation.
    """

    STEP = 128
    """Tokens at once: the readable op holds all their scores."""

    def __init__(
        self, config: ModelConfig, weights: dict[str, Weight], tokens: Tensor,
        device: torch.device, bound: float,
    ) -> None:  # fmt: skip
        with device:
            self._model = Transformer(config, backend="reference")
        for name, parameter in self._model.named_parameters():
            parameter.copy_(dequantise(weights.pop(name)))
        self._config, self._tokens, self._device = config, tokens, device
        self._bound = bound
        self._cache = allocate_cache(
            config, blocks_for(len(tokens)), self._model.cache_format, device
        )

    def logits(self, first: int, end: int) -> Tensor:
        """Of position ``end - 1``, fp32 ``[vocabulary]``, from those at ``first`` on."""
        hidden = torch.empty(0)
        blocks = blocks_for(len(self._tokens))
        for start in range(first, end, self.STEP):
            new = min(self.STEP, end - start)
            batch = paged(
                1, new, start, blocks, generated=False, vocab_size=self._config.vocab_size
            )
            batch.tokens.copy_(self._tokens[start : start + new])
            hidden, _ = self._model.hidden(batch.to(self._device), self._cache)
        return self._model.logits(hidden[-1:])[0].cpu()

    def check(self, logits: Tensor, first: int, end: int) -> Tensor:
        """The reference's, if the given logits are close to them.

        Raises:
            SystemExit: they are not.
        """
        expected = self.logits(first, end)
        off, spread = float((logits - expected).abs().max()), float(expected.std())
        print(json.dumps({"position": end - 1, "largest_difference": off, "logit_spread": spread}))
        if not off < self._bound * spread:
            raise SystemExit(f"logits differ by {off}, allowed is {self._bound * spread}")
        return expected

    def compare(self, logits: Tensor, cache: Sequence[Tensor], first: int, end: int) -> None:
        """:meth:`check` over a copy of a cache, and that another block in it would be noticed.

        Raises:
            SystemExit: one does not hold.
        """
        for own, given in zip(self._cache, cache, strict=True):
            own.copy_(given.view_as(own))
        expected = self.check(logits, first, end)
        if first == 0:
            return
        for own in self._cache:
            own[first // 128].neg_()
        moved = float((self.logits(first, end) - expected).abs().max())
        print(json.dumps({"moved_by_another_block": moved}), flush=True)
        if moved < 4 * self._bound * float(expected.std()):
            raise SystemExit(f"another block moves logits by {moved}: too little to be noticed")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--layers", type=int, default=27)
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--cache", default="auto")
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sample", type=int, metavar="CHUNKS")
    parser.add_argument("--check", metavar="DEVICE")
    options = parser.parse_args()
    if options.sample is not None and options.sample < 2:
        parser.error("--sample needs at least 2 chunks")
    config = config_of("v2-lite").model_copy(update={"num_hidden_layers": options.layers})
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        config.vocab_size, (options.tokens,), dtype=torch.int32, generator=generator
    )
    fetch = synthetic_weights(config, options.weights, 0)
    kept: dict[str, Weight] = {}

    def keep(name: str) -> Weight:
        return kept.setdefault(name, fetch(name))

    executor = CpuExecutor(options.threads)
    kind = cache_format_for(options.weights, options.cache)
    model = PackedModel(
        config, executor, keep if options.check else fetch, weights=options.weights,
        cache_format=kind,
    )  # fmt: skip
    reference: Reference | None = None
    if options.check:
        bound = 2e-3 if options.weights == "float32" else 0.2
        reference = Reference(config, kept, tokens, torch.device(options.check), bound)
    logits = torch.empty(0)
    if options.sample is not None:
        seconds = sample_prompt(model, tokens, options.chunk, options.sample, reference)
    else:
        logits, seconds = read_prompt(model, tokens, options.chunk)
    report = {
        "executor": executor.description,
        "layers": options.layers,
        "weights": options.weights,
        "cache": kind,
        "cache_bytes": token_bytes(config, kind) * options.tokens,
        "tokens": options.tokens,
        "chunks_measured": options.sample or -(-options.tokens // options.chunk),
        "seconds": round(seconds, 1),
        "tokens_per_second": round(options.tokens / seconds, 1),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(report), flush=True)
    if reference is not None and options.sample is None:
        reference.check(logits, 0, len(tokens))


if __name__ == "__main__":
    main()
