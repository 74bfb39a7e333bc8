"""transformers on a GPU, one part per process.

    python -m benchmarks.peers.gpu_transformers < request.json

``plain`` is an eager loop with a DynamicCache, ``compiled`` is ``generate`` with a StaticCache,
which compiles the decode step by itself. Both have SDPA attention and grouped_mm experts. Requests
are those of ``gpu_ours.py``, and so is the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.peers.sections import attempt, serve
from dsv2.kernels.timing import step_seconds

STEPS, PREFILLS, TRAINING_STEPS, GENERATED = 8, 3, 5, (8, 40)


def make_model(request: Mapping[str, Any]) -> Any:
    """DeepseekV2 of random bf16 weights on the request's device."""
    from transformers import AutoModelForCausalLM, DeepseekV2Config

    config = DeepseekV2Config(**request["config"])
    config._experts_implementation = "grouped_mm"
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(request["device"]):
            return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(default)


def filled_cache(model: Any, sequences: int, depth: int) -> Any:
    """A DynamicCache of ``depth`` random tokens; their shapes are those of a cache of one token."""
    from transformers import DynamicCache

    first = DynamicCache(config=model.config)
    ids = torch.zeros((sequences, 1), dtype=torch.long, device=model.device)
    model(ids, past_key_values=first, use_cache=True, logits_to_keep=1)
    filled = DynamicCache(config=model.config)
    for index, layer in enumerate(first.layers):
        parts = [
            torch.randn(
                (*one.shape[:2], depth, one.shape[3]), dtype=one.dtype, device=one.device
            )
            for one in (layer.keys, layer.values)
        ]  # fmt: skip
        filled.update(*parts, index)
    return filled


@torch.inference_mode()
def measure_plain(request: Mapping[str, Any]) -> None:
    """Decode steps, each of which feeds what the last has chosen, and prompts."""
    model, device = make_model(request).eval(), torch.device(request["device"])
    vocab = model.config.vocab_size
    for row in request["rows"]:

        def compute(row: Mapping[str, Any] = row) -> dict[str, Any]:
            from transformers import DynamicCache

            count, tokens = row["sequences"], row["tokens"]
            if row["kind"] == "prefill":

                def prefill(turn: int) -> None:
                    ids = torch.randint(vocab, (count, tokens), device=device)
                    cache = DynamicCache(config=model.config)
                    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

                seconds = step_seconds(prefill, PREFILLS, device)
                return {"seconds": seconds, "tokens": count * tokens}
            cache = filled_cache(model, count, tokens)
            ids = torch.randint(vocab, (count, 1), device=device)

            def step(turn: int) -> None:
                out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                ids.copy_(out.logits[:, -1:].argmax(-1))

            return {"seconds": step_seconds(step, STEPS, device), "tokens": count}

        attempt(row["key"], compute)


def measure_compiled(request: Mapping[str, Any]) -> None:
    """What some more tokens of ``generate`` take, divided by their number: no prompt, no start."""
    model, device = make_model(request).eval(), torch.device(request["device"])
    vocab = model.config.vocab_size
    few, many = request.get("generated", GENERATED)
    for row in request["rows"]:

        def compute(row: Mapping[str, Any] = row) -> dict[str, Any]:
            count, tokens = row["sequences"], row["tokens"]

            def generate(new: int) -> Callable[[int], object]:
                def run(turn: int) -> object:
                    ids = torch.randint(vocab, (count, tokens), device=device)
                    return model.generate(
                        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new,
                        min_new_tokens=new, do_sample=False, pad_token_id=0,
                        cache_implementation="static",
                    )  # fmt: skip

                return run

            run_many = generate(many)
            # The longer first: the shorter then takes its cache, and nothing is compiled anew.
            longer = step_seconds(run_many, 3, device)
            shorter = step_seconds(generate(few), 3, device)
            return {"seconds": (longer - shorter) / (many - few), "tokens": count}

        attempt(row["key"], compute)


def measure_training(request: Mapping[str, Any]) -> None:
    """Forward, backward and fused AdamW on bf16 weights and moments: fewer bytes than ours."""
    device = torch.device(request["device"])
    for row in request["rows"]:

        def compute(row: Mapping[str, Any] = row) -> dict[str, Any]:
            model = make_model(request).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
            ids = torch.randint(
                model.config.vocab_size, (row["sequences"], row["tokens"]), device=device
            )

            def step(turn: int) -> None:
                model(ids, labels=ids, use_cache=False).loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            return {"seconds": step_seconds(step, TRAINING_STEPS, device), "tokens": ids.numel()}

        attempt(row["key"], compute)


PARTS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "plain": measure_plain,
    "compiled": measure_compiled,
    "train": measure_training,
}


if __name__ == "__main__":
    serve(PARTS)
