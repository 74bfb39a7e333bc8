"""``dsv2 bench``: how fast this machine runs a model, beside what it could do at most."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dsv2.cli.bench_serve import serve

if TYPE_CHECKING:
    import torch

    from dsv2.engine.bench import Figure, ModelBench
    from dsv2.kernels.timing import Roof

bench = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Measure speed and memory on this machine."
)
bench.command()(serve)

Model = Annotated[
    str, typer.Argument(help="A folder, pocket or a pulled model; with --random any release.")
]
Weights = Annotated[
    str, typer.Option("--weights", help="float32, bfloat16, int8, int4; auto: as stored.")
]
Random = Annotated[
    bool, typer.Option("--random", help="Random weights of the model's shape, no checkpoint.")
]
Cache = Annotated[
    str, typer.Option("--cache", help="float32, bfloat16, int8, int6; auto: as the weights.")
]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Default: one per core.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Numbers = Annotated[str, typer.Option(help="Comma-separated.")]


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ValueError(f"{text!r} is not a list of numbers such as 1,4,16")
    return found


def _bits(weights: str) -> int:
    sizes = {"float32": 32, "bfloat16": 16}
    if weights not in sizes:
        raise ValueError(f"weights {weights!r}, allowed are float32, bfloat16, int8, int4")
    return sizes[weights]


def _model_bench(
    model: str, weights: str, cache: str, random: bool, device: str, threads: int | None,
    longest: int,
) -> tuple[ModelBench, Roof, str]:  # fmt: skip
    from dsv2.checkpoint import load_packed
    from dsv2.checkpoint.synthetic import synthetic_model
    from dsv2.checkpoint.weights import NAMED_DTYPES
    from dsv2.cli.info import find_config
    from dsv2.engine.bench import ModelBench, measure_roof
    from dsv2.engine.loading import pick_device
    from dsv2.kernels.executor import Executor, make_executor
    from dsv2.kernels.timing import measure_device

    place = pick_device(device)
    on_gpu = place.type == "cuda"
    executor: Executor
    measure: Callable[[str], Roof]
    if on_gpu:
        # By name: what auto falls back to without a fast executor would be measured unasked.
        executor, own = make_executor("triton", "cuda", threads, deterministic=False), "bfloat16"

        def measure(kind: str) -> Roof:
            # Beside codes a prompt's activations are bfloat16.
            return measure_device(place, NAMED_DTYPES.get(kind, NAMED_DTYPES["bfloat16"]))
    else:
        from dsv2.kernels.cpu import CpuExecutor

        executor, own = CpuExecutor(threads), "int4"
        measure = partial(measure_roof, executor)
    if weights == "auto" and (random or on_gpu):
        weights = own
    if random:
        packed = synthetic_model(
            find_config(model), executor, weights, cache_format=cache, device=place
        )
    else:
        packed = load_packed(model, executor, weights=weights, cache_format=cache)
    roof = measure(packed.weights)
    title = f"{model} in {packed.description}, {packed.cache_format} cache"
    return ModelBench(packed, roof, longest), roof, title


def _show(title: str, roof: Roof, figures: list[Figure], as_json: bool) -> None:
    if as_json:
        facts: dict[str, Any] = {"what": title, "roof": asdict(roof)}
        facts["figures"] = [asdict(figure) | {"share": figure.share} for figure in figures]
        typer.echo(json.dumps(facts))
        return
    table = Table(title=title)
    for name in ("work", "ms", "tokens/s", "GB/s", "TOP/s", "of the limit"):
        table.add_column(name, justify="left" if name == "work" else "right")
    for figure in figures:
        table.add_row(
            figure.work, f"{figure.seconds * 1e3:,.2f}", f"{figure.tokens_per_second:,.1f}",
            f"{figure.bytes / figure.seconds / 1e9:.1f}",
            f"{figure.operations / figure.seconds / 1e12:.3f}", f"{figure.share:.0%}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(
        f"Limits measured just now: {roof.read / 1e9:.1f} GB/s read, "
        f"{roof.multiply / 1e12:.3f} TOP/s of dot products."
    )


@bench.command()
def latency(
    model: Model = "pocket",
    weights: Weights = "auto",
    cache: Cache = "auto",
    random: Random = False,
    prompts: Numbers = "128,512",
    depths: Numbers = "128,1024,4096",
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """One sequence: prompts of some lengths, then single tokens at some depths."""
    lengths, places = _numbers(prompts), _numbers(depths)
    own, roof, title = _model_bench(
        model, weights, cache, random, device, threads, max(*lengths, *places) + 1
    )
    figures = [own.prefill(length) for length in lengths]
    figures += [own.decode(1, depth) for depth in places]
    _show(title, roof, figures, as_json)


@bench.command()
def throughput(
    model: Model = "pocket",
    weights: Weights = "auto",
    cache: Cache = "auto",
    random: Random = False,
    sequences: Numbers = "1,4,16,32",
    depth: Annotated[int, typer.Option(min=1, help="Tokens of each in the cache.")] = 128,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Several sequences at once, a token each per step."""
    counts = _numbers(sequences)
    longest = max(counts) * (depth + 64)
    own, roof, title = _model_bench(model, weights, cache, random, device, threads, longest)
    _show(title, roof, [own.decode(count, depth) for count in counts], as_json)


@bench.command()
def kernels(
    rows: Annotated[
        int | None, typer.Option(min=16, help="Default: so many that the matrix takes 1 GiB.")
    ] = None,
    columns: Annotated[int, typer.Option(min=64)] = 2048,
    tokens: Numbers = "1,4,16,64,256",
    weights: Annotated[str, typer.Option(help="Comma-separated.")] = "float32,bfloat16,int8,int4",
    only: Annotated[
        str, typer.Option(help="Groups of a GPU's kernels, comma-separated, such as decode,rows.")
    ] = "",
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """On a CPU matrices of every format times rows of activations, on a GPU every kernel.

    GPU kernels are measured at published shapes; ROWS, COLUMNS, TOKENS and WEIGHTS are the CPU's,
    ONLY is the GPU's.
    """
    from dsv2.engine.bench import bench_linear, measure_roof
    from dsv2.engine.loading import pick_device
    from dsv2.kernels.formats import SCHEMES

    place = pick_device(device)
    if place.type == "cuda":
        _gpu_kernels(place, as_json, only)
        return
    if only:
        raise ValueError(f"--only {only!r}: a CPU has no groups of kernels, leave it out")
    from dsv2.kernels.cpu import CpuExecutor

    executor = CpuExecutor(threads)
    for name in weights.split(","):
        roof = measure_roof(executor, name)
        bits = SCHEMES[name].bits_per_weight(columns) if name in SCHEMES else _bits(name)
        own_rows = rows or int(2**33 / bits / columns) // 64 * 64
        figures = [
            bench_linear(executor, name, roof, own_rows, columns, count)
            for count in _numbers(tokens)
        ]
        _show(executor.description, roof, figures, as_json)


def _gpu_kernels(device: torch.device, as_json: bool, only: str = "", tiny: bool = False) -> None:
    """Every Triton kernel against the reference and its roof, and the decode kernel to take."""
    import torch

    from dsv2.kernels.flashinfer import MARGIN
    from dsv2.kernels.timing import measure_device
    from dsv2.kernels.triton.bench import KernelBench
    from dsv2.kernels.triton.bench_attention import faster_decode
    from dsv2.kernels.triton.bench_cases import GROUPS, run_kernel_benches

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    roof = measure_device(device, dtype, tiny=tiny)
    own = KernelBench(device, roof, tiny, quiet=as_json)
    run_kernel_benches(own, tuple(only.split(",")) if only else GROUPS)
    choices = faster_decode(own)
    if as_json:
        results = [asdict(one) for one in own.results]
        typer.echo(json.dumps({"roof": asdict(roof), "results": results, "faster": choices}))
    else:
        console = Console()
        console.print(
            f"Roofs measured just now: copy {roof.read / 1e12:.2f} TB/s, "
            f"product {roof.multiply / 1e12:.0f} TFLOP/s."
        )
        console.print(
            "Captured steps time both kernels of decode on their own size and take flashinfer's "
            f"where it is faster by more than {MARGIN - 1:.0%}; here: "
            + ", ".join(f"{case}: {backend}" for case, backend in choices.items())
        )
        for one in own.failed():
            console.print(f"{one.kernel} {one.case} {one.variant}: {one.failure or 'wrong'}")
    if own.failed():
        raise typer.Exit(1)


@bench.command()
def memory(model: Model = "pocket", device: Device = "cpu", as_json: Json = False) -> None:
    """What the weights and the cache of MODEL take in every format; nothing is loaded."""
    from dsv2.checkpoint.packed import WEIGHTS, cache_format_for
    from dsv2.checkpoint.quantised import stored_bytes
    from dsv2.cli.info import find_config
    from dsv2.engine.cache import token_bytes
    from dsv2.engine.loading import free_bytes, pick_device
    from dsv2.kernels.latent import LATENT_FORMATS

    config, free = find_config(model), free_bytes(pick_device(device))
    rows = {name: stored_bytes(config, name) for name in WEIGHTS}
    cached = {kind: token_bytes(config, kind) for kind in LATENT_FORMATS}
    if as_json:
        typer.echo(json.dumps({"free": free, "weights": rows, "cache_per_token": cached}))
        return
    table = Table(title=f"{model}: {free / 2**30:.1f} GiB free here")
    table.add_column("weights")
    table.add_column("GiB", justify="right")
    narrower = ("int8", "int6")
    for kind in ("own dtype", *narrower):
        table.add_column(f"tokens of cache, {kind}", justify="right")
    for name, size in rows.items():
        rooms = [int((free - size) / cached[kind]) for kind in (cache_format_for(name), *narrower)]
        shown = [f"{room:,}" if room > 0 else "does not fit" for room in rooms]
        table.add_row(name, f"{size / 2**30:.2f}", *shown)
    Console().print(table)
