"""The same greedy tokens from vLLM and from dsv2, on a checkpoint that dsv2 wrote.

vLLM pins its own torch, so it lives in an environment of its own and writes its tokens to a file:

    python benchmarks/vllm_greedy.py ours tokens.json
    other-env/bin/python benchmarks/vllm_greedy.py theirs tokens.json

Both compute in the stored bfloat16, and round differently. bfloat16 logits between 8 and 16 lie
1/16 apart, so a first difference counts as a tie when our two best logprobs are at most two such
steps apart; any other is an error and exit code 1. vLLM 0.32 for CPUs also needs torchvision,
torchaudio and torchcodec uninstalled, and OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind
VLLM_CPU_KVCACHE_SPACE=1 on a small machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PROMPTS = [
    "def add(a, b):\n", "import os\n", "What is 17 + 25?", "class Node:\n", "The function returns",
    "for i in range(", "try:\n    value =", '"""Return the',
]  # fmt: skip
NEW_TOKENS = 48
NEAR = 2 / 16


def ours(path: Path, model: str = "pocket") -> int:
    """Write our checkpoint's folder, prompts, tokens and margins."""
    from dsv2 import LLM, SamplingParams

    llm = LLM(model, device="cpu", dtype="bfloat16")
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True, logprobs=2)
    rows = []
    for done in llm.generate(PROMPTS, params):
        assert done.logprobs is not None
        margins = [step.top[0][1] - step.top[1][1] for step in done.logprobs]
        rows.append({"prompt": done.prompt_ids, "tokens": done.token_ids, "margins": margins})
    path.write_text(json.dumps({"model": str(llm.folder), "rows": rows}), encoding="utf-8")
    print(f"{len(rows)} answers written to {path}")
    return 0


def theirs(path: Path) -> int:
    """Generate the same with vLLM and compare."""
    from vllm import LLM, SamplingParams

    content = json.loads(path.read_text(encoding="utf-8"))
    llm = LLM(content["model"], dtype="bfloat16", max_model_len=512, enforce_eager=True)
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    prompts = [{"prompt_token_ids": row["prompt"]} for row in content["rows"]]
    wrong = 0
    for row, done in zip(content["rows"], llm.generate(prompts, params), strict=True):
        found = list(done.outputs[0].token_ids)
        pairs = enumerate(zip(row["tokens"], found, strict=True))
        first = next((place for place, (a, b) in pairs if a != b), NEW_TOKENS)
        good = first == NEW_TOKENS or row["margins"][first] <= NEAR
        wrong += not good
        note = "" if first == NEW_TOKENS else f", our margin there {row['margins'][first]:.3f}"
        print(f"{'same' if good else 'DIFFERENT'}: {first} of {NEW_TOKENS} tokens agree{note}")
    return int(wrong > 0)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("ours", "theirs"):
        sys.exit(__doc__)
    sys.exit({"ours": ours, "theirs": theirs}[sys.argv[1]](Path(sys.argv[2])))
