"""Options that ``dsv2 run`` and ``dsv2 chat`` share."""

from __future__ import annotations

from typing import Annotated

import typer

Dtype = Annotated[
    str,
    typer.Option(
        help="Of the weights: float32, bfloat16, int8, int4, fp8; auto: the widest that fits."
    ),
]
CacheDtype = Annotated[
    str,
    typer.Option(help="Of the latent cache: float32, bfloat16, int8, int6, fp8; auto: as weights."),
]
# The engine's bounds, known before a model is pulled and loaded.
MaxTokens = Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Most tokens to generate.")]
Temperature = Annotated[float, typer.Option(min=0.0, max=2.0, help="0 is greedy.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0)]
CacheTokens = Annotated[
    int | None, typer.Option(help="Tokens of cache, and so of context; default: what fits.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Default: one per core.")]
Pull = Annotated[
    bool, typer.Option("--pull/--no-pull", help="Fetch a model that is not on this machine.")
]
HubName = Annotated[str, typer.Option("--hub", help="huggingface or modelscope.")]
