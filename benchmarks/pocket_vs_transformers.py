"""pocket generating here and in transformers, in the same dtype and process, on a CPU.

    python -m benchmarks.pocket_vs_transformers

Both read the same folder and continue the same prompt greedily; transformers runs its own
DeepseekV2 with its defaults. Rounds take turns; the figures are medians of tokens per second after
the first token, and the ratio is what the project owes: at least 5.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.machine import look
from dsv2 import LLM, SamplingParams
from dsv2.machine import available_threads

PROMPT = "def fibonacci(n):\n"
OWED = 5.0


def ours(llm: LLM, count: int) -> float:
    """Tokens per second after the first."""
    params = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
    return llm.generate(PROMPT, params)[0].timings.decode_tokens_per_second


def theirs(model: torch.nn.Module, ids: torch.Tensor, count: int) -> float:
    """The same of transformers: a run of ``count`` tokens less a run of one."""
    spent = []
    for tokens in (1, count):
        start = time.perf_counter()
        made = model.generate(  # type: ignore[operator]
            ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )
        spent.append(time.perf_counter() - start)
        assert made.shape[1] == ids.shape[1] + tokens
    return (count - 1) / (spent[1] - spent[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = look(options.threads)
    print(f"{machine.date} {machine.commit} {machine.machine}, {options.threads} threads")
    short = False
    for name in ("float32", "bfloat16"):
        llm = LLM("pocket", device="cpu", dtype=name, threads=options.threads, cache_tokens=4096)
        ids = torch.tensor([[llm.tokenizer.bos_id, *llm.tokenizer.encode(PROMPT)]])
        model = AutoModelForCausalLM.from_pretrained(llm.folder, dtype=getattr(torch, name)).eval()
        pairs = [
            (ours(llm, options.tokens), theirs(model, ids, options.tokens))
            for _ in range(options.rounds + 1)
        ][1:]
        own, other = (median(column) for column in zip(*pairs, strict=True))
        ratio = median(a / b for a, b in pairs)
        short |= ratio < OWED
        print(f"{name}: dsv2 {own:.0f} tok/s, transformers {other:.1f} tok/s, {ratio:.1f} times")
    return int(short)


if __name__ == "__main__":
    raise SystemExit(main())
