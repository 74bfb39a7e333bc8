"""A prompt of 131,072 tokens on V2-Lite's shape with YaRN: speed, memory, and the same logits.

    python benchmarks/long_context.py                      # all layers, int4: hours on two cores
    python benchmarks/long_context.py --sample 5           # five of its 64 chunks, then the sum
    python benchmarks/long_context.py --layers 2 --weights float32 --check cuda

Weights are random, so only times and sums of bytes mean something. ``--sample`` computes chunks at
equal distances over a cache of random latents: a chunk's time grows linearly with what is before
it, so that the trapezoids between them are the whole prompt's; the peak of memory is that of the
last chunk, which is among them. ``--check`` computes the same with the readable ops on a device and
compares logits of the last chunk; that needs about 40 GiB there.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
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


def sample_prompt(model: PackedModel, tokens: Tensor, chunk: int, count: int) -> float:
    """Seconds of the whole prompt from ``count`` of its chunks, the first and last among them."""
    cache = allocate_cache(model.config, blocks_for(len(tokens)), model.cache_format, model.device)
    for layer in cache:
        if layer.dtype == torch.uint8:
            layer.random_(64, 192)  # bytes that are scales, too, of ordinary numbers
        else:
            layer.normal_()
    parts = list(chunks(model.config, tokens, chunk, model.device))
    places = [round(place) for place in torch.linspace(0, len(parts) - 1, count).tolist()]
    model.hidden(parts[0], cache)  # threads and pages
    spent = []
    for place in places:
        start = time.perf_counter()
        model.hidden(parts[place], cache)
        spent.append(time.perf_counter() - start)
        print(f"chunk {place + 1:3d} of {len(parts)}: {spent[-1]:8.2f} s", flush=True)
    measured = list(zip(places, spent, strict=True))
    between = sum((b - a) * (x + y) / 2 for (a, x), (b, y) in pairwise(measured))
    return between + (spent[0] + spent[-1]) / 2


@torch.inference_mode()
def reference_logits(
    config: ModelConfig, weights: dict[str, Weight], tokens: Tensor, device: torch.device
) -> Tensor:
    """Logits ``[vocabulary]`` fp32 of the last position from the readable ops."""
    with device:
        model = Transformer(config, backend="reference")
    for name, parameter in model.named_parameters():
        parameter.copy_(dequantise(weights.pop(name)))
    cache = allocate_cache(config, blocks_for(len(tokens)), model.cache_format, device)
    hidden = torch.empty(0)
    # The readable op holds every score of a chunk at once.
    for batch in chunks(config, tokens, 1024, device):
        hidden, _ = model.hidden(batch, cache)
    return model.logits(hidden[-1:])[0].cpu()


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
    if options.sample is not None and (options.sample < 2 or options.check):
        parser.error("--sample needs at least 2 chunks, and no --check: it computes no logits")
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
    logits = torch.empty(0)
    if options.sample is not None:
        seconds = sample_prompt(model, tokens, options.chunk, options.sample)
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
    if options.check:
        expected = reference_logits(config, kept, tokens, torch.device(options.check))
        off, spread = float((logits - expected).abs().max()), float(expected.std())
        print(json.dumps({"largest_difference": off, "logit_spread": spread}))
        bound = (2e-3 if options.weights == "float32" else 0.2) * spread
        if not off < bound:
            raise SystemExit(f"logits differ by {off}, allowed is {bound}")


if __name__ == "__main__":
    main()
