"""transformers and vLLM on random bf16 weights, each in an environment of its own.

    some-env/bin/python benchmarks/peers/torch_engines.py transformers < request.json

The request has the content of a ``config.json``, ``threads`` and ``rows``; the last line of the
output is an object of tokens per second by row. This file imports nothing of this project, since
it runs where the project is not installed.

transformers has SDPA attention and grouped_mm experts. vLLM has no prefix cache; its row of
generated tokens is of the steps from all sequences' first token to the first one's end, so that its
scheduling counts and its prompts do not.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def transformers_speeds(
    published: dict[str, Any], threads: int, rows: list[dict[str, Any]]
) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM, DeepseekV2Config, DynamicCache

    torch.set_num_threads(threads)
    config = DeepseekV2Config(**published)
    config._experts_implementation = "grouped_mm"
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    torch.set_default_dtype(default)

    def step(count: int, tokens: int, cache: Any) -> None:
        ids = torch.randint(config.vocab_size, (count, tokens))
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    found = {}
    with torch.inference_mode():
        step(1, 16, DynamicCache(config=config))
        for row in rows:
            cache = DynamicCache(config=config)
            if row["kind"] == "prefill":
                start = time.perf_counter()
                step(1, row["tokens"], cache)
                found[row["key"]] = row["tokens"] / (time.perf_counter() - start)
                continue
            step(row["sequences"], row["depth"], cache)
            start = time.perf_counter()
            for _ in range(row["tokens"]):
                step(row["sequences"], 1, cache)
            done = row["sequences"] * row["tokens"]
            found[row["key"]] = done / (time.perf_counter() - start)
    return found


def vllm_speeds(
    published: dict[str, Any], threads: int, rows: list[dict[str, Any]]
) -> dict[str, float]:
    os.environ.update(
        OMP_NUM_THREADS=str(threads), VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0",
    )  # fmt: skip
    from vllm import LLM, SamplingParams

    longest = max(row["depth"] + row["tokens"] for row in rows) + 64
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(published), encoding="utf-8")
        llm = LLM(
            folder, dtype="bfloat16", load_format="dummy", skip_tokenizer_init=True,
            enforce_eager=True, enable_prefix_caching=False, max_model_len=longest,
            max_num_batched_tokens=max(2048, longest), max_num_seqs=32,
        )  # fmt: skip
        dice = random.Random(0)
        names = itertools.count()

        def begin(count: int, length: int, new: int) -> None:
            """Hand in sequences of random tokens that end after ``new`` more."""
            params = SamplingParams(
                max_tokens=new, temperature=0.0, ignore_eos=True, detokenize=False
            )
            for _ in range(count):
                ids = [dice.randrange(published["vocab_size"]) for _ in range(length)]
                llm.llm_engine.add_request(str(next(names)), {"prompt_token_ids": ids}, params)

        def step() -> dict[str, int]:
            """One step of the engine: tokens made so far, of each sequence that made one in it."""
            outputs = llm.llm_engine.step()
            return {one.request_id: len(one.outputs[0].token_ids) for one in outputs}

        def finish() -> None:
            while llm.llm_engine.has_unfinished_requests():
                step()

        begin(1, 16, 2)
        finish()
        found = {}
        for row in rows:
            if row["kind"] == "prefill":
                begin(1, row["tokens"], 1)
                start = time.perf_counter()
                finish()
                found[row["key"]] = row["tokens"] / (time.perf_counter() - start)
                continue
            count, new = row["sequences"], row["tokens"]
            begin(count, row["depth"], new + 1)
            made = step()
            while len(made) < count:
                made |= step()
            before, start = sum(made.values()), time.perf_counter()
            while max(made.values()) <= new:
                made |= step()
            found[row["key"]] = (sum(made.values()) - before) / (time.perf_counter() - start)
            finish()
    return found


ENGINES = {"transformers": transformers_speeds, "vllm": vllm_speeds}


def main() -> None:
    request = json.load(sys.stdin)
    found = ENGINES[sys.argv[1]](request["config"], request["threads"], request["rows"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
