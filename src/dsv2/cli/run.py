"""``dsv2 run``: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from dsv2.cli import options
from dsv2.cli.start import plan_table, start


def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [PROMPT]",
            help="The prompt, with a model before it if it is not pocket; - or nothing for stdin.",
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Complete the text as it is, without the chat format.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="0 is off.")] = 0,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Makes sampling repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: options.Dtype = "auto",
    cache_dtype: options.CacheDtype = "auto",
    cache_tokens: options.CacheTokens = None,
    threads: options.Threads = None,
    pull: options.Pull = True,
    hub: options.HubName = "huggingface",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print the memory plan and timings on stderr.")
    ] = False,
) -> None:
    """Generate an answer to PROMPT; a published model is pulled and converted on the way."""
    model, prompt = _model_and_prompt(words or [])
    from dsv2.engine.request import SamplingParams

    llm, prepared = start(
        model, device=device, dtype=dtype, cache_dtype=cache_dtype, cache_tokens=cache_tokens,
        max_sequences=1, threads=threads, pull=pull, hub=hub,
    )  # fmt: skip
    if verbose:
        Console(stderr=True, highlight=False).print(plan_table(prepared.plan))
    params = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    if as_json:
        done = llm.generate(prompt, params)[0] if raw else llm.chat(messages, params)[0]
        facts = {
            "model": model,
            "runs": llm.description,
            "plan": asdict(prepared.plan),
            "done": list(prepared.done),
            "text": done.text,
            "finish_reason": done.finish_reason,
            "prompt_tokens": len(done.prompt_ids),
            "completion_tokens": len(done.token_ids),
            "timings": asdict(done.timings)
            | {
                "prefill_tokens_per_second": done.timings.prefill_tokens_per_second,
                "decode_tokens_per_second": done.timings.decode_tokens_per_second,
            },
        }
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    last = None
    for delta in llm.stream(prompt if raw else messages, params):
        sys.stdout.write(delta.text)
        sys.stdout.flush()
        last = delta.completion
    sys.stdout.write("\n")
    if verbose and last is not None:
        timings = last.timings
        typer.echo(
            f"{llm.description}: "
            f"{len(last.prompt_ids)} prompt tokens at {timings.prefill_tokens_per_second:.1f}/s, "
            f"{len(last.token_ids)} new tokens at {timings.decode_tokens_per_second:.1f}/s, "
            f"first after {timings.time_to_first_token:.3f} s, stopped by {last.finish_reason}",
            err=True,
        )


def _model_and_prompt(words: list[str]) -> tuple[str, str]:
    if len(words) > 2:
        raise ValueError(
            f"got {len(words)} arguments, allowed are [MODEL] PROMPT; quote the prompt"
        )
    model = words[0] if len(words) == 2 else "pocket"
    if (
        len(words) == 1
        and words[0] != "-"
        and sys.stdin.isatty() is False
        and _names_model(words[0])
    ):
        model, words = words[0], []
    prompt = words[-1] if words else "-"
    if prompt == "-":
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise ValueError("the prompt is empty; give it as an argument or on standard input")
    return model, prompt


def _names_model(word: str) -> bool:
    """Whether a lone argument beside piped input is a model rather than the prompt."""
    from pathlib import Path

    from dsv2.checkpoint.releases import RELEASES

    return word == "pocket" or word in RELEASES or (Path(word) / "config.json").exists()
