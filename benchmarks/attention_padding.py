"""Seconds of torch's fused CPU attention with values narrower than queries, plain and padded.

    python benchmarks/attention_padding.py

One thread, fp32, pocket's shape; medians of several in turn, so that other load hits both alike.
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F

HEADS, TOKENS, WIDTH, VALUE, ROUNDS = 6, 2048, 128, 64, 7


def main() -> None:
    torch.set_num_threads(1)
    q, k = (torch.randn(1, HEADS, TOKENS, WIDTH) for _ in range(2))
    v = torch.randn(1, HEADS, TOKENS, VALUE)
    cases = {
        "plain": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "padded": lambda: F.scaled_dot_product_attention(
            q, k, F.pad(v, (0, WIDTH - VALUE)), is_causal=True
        )[..., :VALUE],
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for name, compute in cases.items():
                started = time.perf_counter()
                compute()
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.3f} s")
    print(f"plain / padded: {medians['plain'] / medians['padded']:.1f}")


if __name__ == "__main__":
    main()
