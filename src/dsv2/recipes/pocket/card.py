"""pocket's model card, from measured figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsv2.model.config import ModelConfig
from dsv2.model.counts import count
from dsv2.training.metrics import METRICS_FILE, read_metrics

TEMPLATE = """\
---
license: mit
library_name: dsv2
language: en
---
# pocket

A model of the DeepSeek-V2 architecture, small enough to ship with the package, so that every
command works at once and without a network. It is **a model to try the machinery with**: it adds
and subtracts two-digit numbers, writes small Python functions, calls tools, and talks a little
about this project. It knows nothing else and is often wrong. Do not rely on it.

| | |
|---|---|
| parameters | {total:,}, of which {active:,} active per token |
| architecture | MLA (latent {latent}, rotary key {rope}) in {layers} layers of {heads} heads; \
{experts} routed experts, {chosen} per token, {shared} shared; first layer dense |
| cache | {cache} numbers per token |
| context | {context} tokens |
| vocabulary | {vocab}, byte-level BPE with the published control tokens; chat format of V2.5 |
| weights | bfloat16, {megabytes:.1f} MB |

## Training

Text: Python's standard library and the permissively licensed packages of a dsv2 installation. \
`files.tsv` lists every file with the first 16 digits of its SHA-256 and whether it was held out; \
the text itself is not stored here. Conversations are built by the recipe from functions, sums and \
facts.

| stage | tokens seen | steps | last training loss | validation loss |
|---|---|---|---|---|
| pre-training | {pre_tokens:,} | {pre_steps:,} | {pre_loss:.3f} | {pre_val:.3f} |
| its dense twin | {dense_tokens:,} | {dense_steps:,} | {dense_loss:.3f} | {dense_val:.3f} |
| fine-tuning | {sft_tokens:,} | {sft_steps:,} | {sft_loss:.3f} | {sft_val:.3f} |

Trained in bfloat16 with fp32 master weights{machine}. Rebuild it with \
`python -m dsv2.recipes.pocket`.

## Measured

On text that was held out by the hash of each file, and on sums that no training text contains:

| | pocket | dense twin | `xz -9` |
|---|---|---|---|
| bits per byte, code ({code_bytes:,} bytes) | {code_moe:.3f} | {code_dense:.3f} | {code_xz:.3f} |
| bits per byte, prose ({prose_bytes:,} bytes) | {prose_moe:.3f} | {prose_dense:.3f} | \
{prose_xz:.3f} |

The dense twin has the same attention, {dense_active:,} active parameters, and saw the same tokens \
in the same order. Both are the models before fine-tuning. The text is as much of the held-out \
files, in the order of their hashes, as fits 1.2 MB. `xz -9` compresses it as one file; the models \
see at most {context} tokens at a time.

| | |
|---|---|
| held-out functions whose completion parses | {comp_share:.1%} of {comp_asked} |
| answers to requests for held-out functions that parse | {req_share:.1%} of {req_asked} |
| held-out two-digit sums and differences, exact | {sum_share:.1%} of {sum_asked:,} |
| load of the busiest and the idlest expert of any layer (1 is even) | {load_max:.2f}, \
{load_min:.2f} |

The held-out functions are those of at most {lines} lines; parsing says that the answer is Python, \
not that it is right. Prose is docstrings and documentation. The figures are what \
`python -m dsv2.recipes.pocket` wrote to `scores.json`.
"""


def write_card(folder: Path, scores: dict[str, Any], runs: dict[str, Path]) -> None:
    """Write ``README.md`` beside the model in ``folder``.

    Args:
        scores: what :func:`dsv2.recipes.pocket.score.score` returned.
        runs: the folders of the trainings ``pretrain``, ``dense`` and ``sft``.
    """
    from dsv2.recipes.pocket.functions import MAX_LINES

    config = ModelConfig.from_file(folder / "config.json")
    twin = ModelConfig.from_file(runs["dense"] / "model" / "config.json")
    counts, twin_counts = count(config), count(twin)
    last = {name: _last(path) for name, path in runs.items()}
    note = runs["pretrain"] / "machine.txt"
    values: dict[str, Any] = {
        "total": counts.total,
        "active": counts.active,
        "latent": config.kv_lora_rank,
        "rope": config.qk_rope_head_dim,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "experts": config.n_routed_experts,
        "chosen": config.num_experts_per_tok,
        "shared": config.num_shared_experts,
        "cache": counts.cache_elements,
        "context": config.max_position_embeddings,
        "vocab": config.vocab_size,
        "megabytes": (folder / "model.safetensors").stat().st_size / 1e6,
        "machine": f" {note.read_text(encoding='utf-8').strip()}" if note.exists() else "",
        "dense_active": twin_counts.active,
        "comp_share": scores["completions"]["share"],
        "comp_asked": scores["completions"]["asked"],
        "req_share": scores["requests"]["share"],
        "req_asked": scores["requests"]["asked"],
        "sum_share": scores["arithmetic"]["share"],
        "sum_asked": scores["arithmetic"]["asked"],
        "load_max": scores["expert_load"]["max"],
        "load_min": scores["expert_load"]["min"],
        "lines": MAX_LINES,
    }
    for kind in ("code", "prose"):
        found = scores[kind]
        values |= {
            f"{kind}_bytes": found["text_bytes"],
            f"{kind}_moe": found["bits_per_byte"]["pretrain"],
            f"{kind}_dense": found["bits_per_byte"]["dense"],
            f"{kind}_xz": found["xz"],
        }
    for name, short in (("pretrain", "pre"), ("dense", "dense"), ("sft", "sft")):
        values |= {
            f"{short}_tokens": last[name]["tokens"],
            f"{short}_steps": last[name]["step"],
            f"{short}_loss": last[name]["loss"],
            f"{short}_val": last[name]["validation_loss"],
        }
    (folder / "README.md").write_text(TEMPLATE.format(**values), encoding="utf-8")
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")


def _last(run: Path) -> dict[str, Any]:
    return list(read_metrics(run / METRICS_FILE))[-1]
