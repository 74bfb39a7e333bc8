"""A prompt of 131,072 tokens on V2-Lite's shape with YaRN: speed, memory, and the same logits.

    python benchmarks/long_context.py                      # all layers, int4: hours on two cores
    python benchmarks/long_context.py --layers 2           # a cut, to be multiplied by hand
    python benchmarks/long_context.py --layers 2 --weights float32 --check

Weights are random, so only times and sums of bytes mean something. ``--check`` computes the same on
the readable executor and compares logits of the last chunk; it needs about 40 GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch
from torch import Tensor

from dsv2.checkpoint.releases import config_of
from dsv2.checkpoint.synthetic import synthetic_model
from dsv2.engine.bench import paged
from dsv2.engine.cache import allocate_cache, token_bytes
from dsv2.engine.sequence import blocks_for
from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.executor import Executor
from dsv2.kernels.reference_executor import ReferenceExecutor
from dsv2.model.config import ModelConfig


def read_prompt(
    config: ModelConfig, executor: Executor, weights: str, cache_format: str, tokens: Tensor,
    chunk: int, report: bool,
) -> tuple[Tensor, float]:  # fmt: skip
    """The logits of 16 positions of the last chunk, and the seconds that the prompt took."""
    model = synthetic_model(config, executor, weights, cache_format=cache_format)
    blocks = blocks_for(len(tokens))
    cache = allocate_cache(config, blocks, model.cache_format, torch.device("cpu"))
    start = time.perf_counter()
    logits = torch.empty(0)
    for first in range(0, len(tokens), chunk):
        new = min(chunk, len(tokens) - first)
        batch = paged(1, new, first, blocks, generated=False, vocab_size=config.vocab_size)
        batch.tokens.copy_(tokens[first : first + new])
        if first + new < len(tokens):
            model.hidden(batch, cache)
        else:
            hidden = model.hidden(batch, cache)
            logits = model.logits(hidden[torch.linspace(0, new - 1, 16).long()])
        if report and (first // chunk) % 8 == 0:
            spent = time.perf_counter() - start
            print(f"{first + new:7d} tokens after {spent:8.1f} s", flush=True)
    return logits, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--layers", type=int, default=27)
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--cache", default="auto")
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    config = config_of("v2-lite").model_copy(update={"num_hidden_layers": options.layers})
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        config.vocab_size, (options.tokens,), dtype=torch.int32, generator=generator
    )
    executor = CpuExecutor(options.threads)
    logits, seconds = read_prompt(
        config, executor, options.weights, options.cache, tokens, options.chunk, report=True
    )
    cache = options.cache
    if cache == "auto":
        cache = "float32" if options.weights == "float32" else "bfloat16"
    print(
        json.dumps(
            {
                "executor": executor.description,
                "layers": options.layers,
                "weights": options.weights,
                "cache": cache,
                "cache_bytes": token_bytes(config, cache) * options.tokens,
                "tokens": options.tokens,
                "seconds": round(seconds, 1),
                "tokens_per_second": round(options.tokens / seconds, 1),
                "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )
    if options.check:
        torch.manual_seed(0)
        expected, _ = read_prompt(
            config, ReferenceExecutor(), options.weights, options.cache, tokens,
            min(options.chunk, 1024), report=True,
        )  # fmt: skip
        # The last chunk of the reference may be shorter: the last position is common to both.
        off = (logits[-1] - expected[-1]).abs()
        spread = float(expected[-1].std())
        print(json.dumps({"largest_difference": float(off.max()), "logit_spread": spread}))
        bound = (2e-3 if options.weights == "float32" else 0.2) * spread
        assert float(off.max()) < bound, f"logits differ by {float(off.max())}, allowed is {bound}"


if __name__ == "__main__":
    main()
