"""pocket's model card, from measured figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsv2.model.config import ModelConfig
from dsv2.model.counts import count
from dsv2.recipes.pocket.functions import MAX_LINES
from dsv2.recipes.pocket.gaps import SHOWN
from dsv2.recipes.pocket.score import GAPS
from dsv2.training.config import load_recipe
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
and subtracts two-digit numbers, writes small Python functions, fills small gaps in Python, calls
tools, and talks a little about this project. It knows nothing else and is often wrong. Do not rely
on it.

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
the text itself is not stored here. Conversations are built by the recipe from functions, sums \
and facts. Gaps to fill are cut from the same code: parts of lines, lines and bodies of functions, \
with up to {shown:,} characters before and behind them. Fine-tuning on conversations alone made \
the model forget how to fill; the last stage has both.

| stage | tokens seen | steps | last training loss | validation loss |
|---|---|---|---|---|
| pre-training | {pre_tokens:,} | {pre_steps:,} | {pre_loss:.3f} | {pre_val:.3f} |
| its dense twin | {dense_tokens:,} | {dense_steps:,} | {dense_loss:.3f} | {dense_val:.3f} |
| fine-tuning | {sft_tokens:,} | {sft_steps:,} | {sft_loss:.3f} | {sft_val:.3f} |
| gaps and conversations | {fill_tokens:,} | {fill_steps:,} | {fill_loss:.3f} | {fill_val:.3f} |

The stages count different tokens in their losses: every one, what the assistant says, and that \
and the middles. Trained in bfloat16 with fp32 master weights{machine}. Rebuild it with \
`python -m dsv2.recipes.pocket`.

## Measured

On text that was held out by the hash of each file, and on sums that no training text contains:

| | pocket | dense twin | `xz -9` |
|---|---|---|---|
| bits per byte, code ({code_bytes:,} bytes) | {code_moe:.3f} | {code_dense:.3f} | {code_xz:.3f} |
| bits per byte, prose ({prose_bytes:,} bytes) | {prose_moe:.3f} | {prose_dense:.3f} | \
{prose_xz:.3f} |

The dense twin has the same attention, {dense_active:,} active parameters, and saw the same tokens \
in the same order. Both are the models before fine-tuning, measured on {bases_day}. The text is \
as much of the held-out \
files, in the order of their hashes, as fits 1.2 MB. `xz -9` compresses it as one file; the models \
see at most {context} tokens at a time.

The load of the busiest and of the idlest expert of any layer was {load_max:.2f} and \
{load_min:.2f} on the code, where 1 is even.

| | after fine-tuning | this model |
|---|---|---|
| held-out functions whose completion parses, of {comp_asked} | {sft_comp:.1%} | {comp:.1%} |
| answers to requests for held-out functions that parse, of {req_asked} | {sft_req:.1%} | \
{req:.1%} |
| held-out two-digit sums and differences, exact, of {sum_asked:,} | {sft_sum:.1%} | {sum:.1%} |
| gaps of a line or its rest filled as in the file, of {single_asked} | {sft_single_exact:.1%} | \
{single_exact:.1%} |
| … so that the file parses | {sft_single_parse:.1%} | {single_parse:.1%} |
| … to an end within {single_budget} tokens | {sft_single_ended:.1%} | {single_ended:.1%} |
| gaps of two lines and more filled as in the file, of {multi_asked} | {sft_multi_exact:.1%} | \
{multi_exact:.1%} |
| … so that the file parses | {sft_multi_parse:.1%} | {multi_parse:.1%} |
| … to an end within {multi_budget} tokens | {sft_multi_ended:.1%} | {multi_ended:.1%} |

Measured on {tuned_day}, greedily. The held-out functions are those of at most {lines} lines, the \
gaps are cut from held-out files; parsing says that the answer is Python, not that it is right. \
Prose is docstrings and documentation. The figures are what `python -m dsv2.recipes.pocket` wrote \
to `scores.json`.
"""


def write_card(folder: Path, scores: dict[str, Any]) -> None:
    """Write ``README.md`` and ``scores.json`` beside the model in ``folder``.

    Args:
        scores: the figures of the ``runs``, of the ``bases``, and of the models ``sft`` and
            ``fill``.
    """
    config = ModelConfig.from_file(folder / "config.json")
    twin = load_recipe(Path(__file__).with_name("dense.yaml")).model
    assert twin is not None
    counts, twin_counts = count(config), count(twin)
    bases, runs = scores["bases"], scores["runs"]
    notes = [runs[name]["machine"] for name in runs if "machine" in runs[name]]
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
        "machine": f" {'; '.join(notes)}" if notes else "",
        "shown": SHOWN,
        "dense_active": twin_counts.active,
        "bases_day": bases["measured"],
        "load_max": bases["expert_load"]["max"],
        "load_min": bases["expert_load"]["min"],
        "tuned_day": scores["fill"]["measured"],
        "lines": MAX_LINES,
    }
    for kind in ("code", "prose"):
        found = bases[kind]
        values |= {
            f"{kind}_bytes": found["text_bytes"],
            f"{kind}_moe": found["bits_per_byte"]["pretrain"],
            f"{kind}_dense": found["bits_per_byte"]["dense"],
            f"{kind}_xz": found["xz"],
        }
    for name, short in (("pretrain", "pre"), ("dense", "dense"), ("sft", "sft"), ("fill", "fill")):
        values |= {
            f"{short}_tokens": runs[name]["tokens"],
            f"{short}_steps": runs[name]["step"],
            f"{short}_loss": runs[name]["loss"],
            f"{short}_val": runs[name]["validation_loss"],
        }
    for name, start in (("sft", "sft_"), ("fill", "")):
        found = scores[name]
        for task, short in (("completions", "comp"), ("requests", "req"), ("arithmetic", "sum")):
            values |= {
                f"{start}{short}": found[task]["share"],
                f"{short}_asked": found[task]["asked"],
            }
        for kind, (_, budget) in GAPS.items():
            gaps = found["fill"][kind]
            values |= {f"{kind}_asked": gaps["asked"], f"{kind}_budget": budget}
            values |= {f"{start}{kind}_{key}": gaps[key] for key in ("exact", "parse", "ended")}
    (folder / "README.md").write_text(TEMPLATE.format(**values), encoding="utf-8")
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")


def run_figures(run: Path) -> dict[str, Any]:
    """The end of a training, and its ``machine.txt`` where somebody wrote one."""
    last = list(read_metrics(run / METRICS_FILE))[-1]
    found = {name: last[name] for name in ("tokens", "step", "loss", "validation_loss")}
    note = run / "machine.txt"
    if note.exists():
        found["machine"] = note.read_text(encoding="utf-8").strip()
    return found
