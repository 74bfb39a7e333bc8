"""What 4 and 8 bits cost pocket in bits per byte, in our formats and in llama.cpp's.

    python -m benchmarks.quantisation_accuracy

The text is Python's standard library: the files that the recipe held out. Every format rounds the
same tensors and leaves the same alone; the model then computes in fp32, so that only the weights
differ. Bits per byte may fall by rounding, if by chance, so the divergence (KL) from the model as
stored is measured too. The lines "as run" are our formats on the C++ kernels, which also round
activations to 8 bits and cache in bf16. Below, the relative RMSE of each kind of tensor and of
normal numbers. Results go to benchmarks/results/quantisation_accuracy.csv, every tensor on its own.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.peers.machine import ROOT, Machine, look
from dsv2.checkpoint import load_model, load_packed
from dsv2.checkpoint.hub import pocket_folder
from dsv2.checkpoint.quantised import is_quantised
from dsv2.engine.bench import paged
from dsv2.engine.cache import allocate_cache
from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.executor import Executor
from dsv2.kernels.formats import SCHEMES, dequantise, relative_rmse
from dsv2.machine import available_threads
from dsv2.ragged import RaggedBatch
from dsv2.recipes.pocket.corpus import source_files
from dsv2.recipes.pocket.score import sample_of, windows
from dsv2.shapes import BLOCK_SIZE
from dsv2.tokenizer import Tokenizer

CSV = ROOT / "benchmarks" / "results" / "quantisation_accuracy.csv"
PEERS = {"int8": "Q8_0", "int4": "Q4_0"}
"""Each of our formats and the one it is held against."""
STORED, RUN = "bfloat16", ", as run"
COLUMNS = ("figure", "of", "weights", "value", "standard_error")
_LAYER = re.compile(r"layers\.\d+\.")

Round = Callable[[Tensor], Tensor]
"""A weight ``[.., rows, columns]`` in fp32 to what a format keeps of it."""


def q4_0(weight: Tensor) -> Tensor:
    """Blocks of 32, an fp16 scale that maps the extreme to -8: 4.5 bits."""
    block = weight.unflatten(-1, (-1, 32))
    extreme = block.gather(-1, block.abs().argmax(-1, keepdim=True))
    scale = extreme / -8
    codes = (block / scale.where(scale != 0, 1) + 8.5).floor().clamp(0, 15) - 8
    return (codes * scale.half().float()).flatten(-2)


def q8_0(weight: Tensor) -> Tensor:
    """Blocks of 32, an fp16 scale that maps the largest magnitude to 127: 8.5 bits."""
    block = weight.unflatten(-1, (-1, 32))
    scale = block.abs().amax(-1, keepdim=True) / 127
    codes = (block / scale.where(scale != 0, 1)).round()
    return (codes * scale.half().float()).flatten(-2)


def formats(executor: CpuExecutor) -> dict[str, Round]:
    """Every format by name."""

    def ours(scheme: str) -> Round:
        def rounded(weight: Tensor) -> Tensor:
            done, _ = executor.quantise(weight.flatten(0, -2), scheme)
            return dequantise(done).reshape(weight.shape)

        return rounded

    return {"int8": ours("int8"), "Q8_0": q8_0, "int4": ours("int4"), "Q4_0": q4_0}


def scheme_of(name: str) -> str:
    """Ours of the same width: it says which tensors are rounded."""
    return next(own for own, peer in PEERS.items() if name in (own, peer))


def quantised_tensors(scheme: str) -> dict[str, Tensor]:
    """Pocket's tensors that a scheme rounds, by name, in fp32."""
    return {
        name: parameter.detach()
        for name, parameter in load_model("pocket", dtype="float32").named_parameters()
        if is_quantised(name, tuple(parameter.shape), SCHEMES[scheme])
    }


def held_out_code(size: int) -> list[str]:
    """Files of the standard library that pocket was not trained on, ``size`` characters of them."""
    library = takewhile(lambda file: file.owner == "python", source_files())
    texts = sample_of((file.text for file in library if file.split == "validation"), 1 << 30)
    lengths = accumulate((len(text) for text in texts), initial=0)
    cut = [text[: max(size - past, 0)] for text, past in zip(texts, lengths, strict=False)]
    return [text for text in cut if text]


Compute = Callable[[Tensor], Tensor]
"""Tokens ``[T]`` to fp32 logits ``[T, vocab]``."""


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    Attributes:
        nats: of each window of the text.
        text_bytes: of the whole.
        divergence: of each window, in nats: KL from the model as stored, summed over tokens. It
            tells formats apart on far less text than the bits do, which rounding may also lower.
    """

    nats: tuple[float, ...]
    text_bytes: int
    divergence: tuple[float, ...]

    @property
    def bits_per_byte(self) -> float:
        """Over the whole text."""
        return sum(self.nats) / math.log(2) / self.text_bytes

    def above(self, other: Score) -> tuple[float, float]:
        """Bits per byte more than ``other`` on the same windows, and the standard error of that.

        The windows are taken for independent draws of text of this kind.
        """
        return self._more(self.nats, other.nats)

    def farther(self, other: Score) -> tuple[float, float]:
        """Divergence more than ``other``'s in bits per byte, and its standard error."""
        return self._more(self.divergence, other.divergence)

    def _more(self, one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
        off = torch.tensor(one, dtype=torch.float64) - torch.tensor(other, dtype=torch.float64)
        unit = 1 / math.log(2) / self.text_bytes
        return float(off.sum()) * unit, float(off.std()) * len(one) ** 0.5 * unit


@torch.inference_mode()
def score(models: Mapping[str, Compute], texts: Sequence[str], window: int) -> dict[str, Score]:
    """Every model on ``texts``, cut as the recipe cuts them; the first is as stored."""
    tokenizer = Tokenizer.from_folder(pocket_folder())
    nats: dict[str, list[float]] = {name: [] for name in models}
    divergence: dict[str, list[float]] = {name: [] for name in models}
    for tokens, targets in windows(tokenizer, texts, window):
        stored: Tensor | None = None
        for name, compute in models.items():
            logs = compute(tokens).log_softmax(-1)
            stored = logs if stored is None else stored
            nats[name].append(float(F.nll_loss(logs, targets, reduction="sum")))
            off = F.kl_div(logs, stored, reduction="sum", log_target=True)
            divergence[name].append(float(off))
    size = sum(len(text.encode()) for text in texts)
    return {name: Score(tuple(nats[name]), size, tuple(divergence[name])) for name in models}


@torch.inference_mode()
def rounded_model(rounded: Round | None, scheme: str) -> Compute:
    """Pocket in fp32 with the tensors of ``scheme`` rounded; None: as stored."""
    model = load_model("pocket", dtype="float32").requires_grad_(False)
    for name, parameter in model.named_parameters():
        if rounded is not None and is_quantised(name, tuple(parameter.shape), SCHEMES[scheme]):
            parameter.copy_(rounded(parameter))
    return lambda tokens: model(RaggedBatch.packed(tokens, [len(tokens)]), None)[0]


def packed_model(
    weights: str, executor: Executor, cache_format: str = "auto", source: str | Path = "pocket"
) -> Compute:
    """Pocket as the engine runs its prompts in a format of weights and cache."""
    model = load_packed(source, executor, weights=weights, cache_format=cache_format)
    config = model.config
    blocks = config.max_position_embeddings // BLOCK_SIZE + 1
    cache = allocate_cache(config, blocks, model.cache_format, model.device)

    def compute(tokens: Tensor) -> Tensor:
        batch = paged(1, len(tokens), 0, blocks, generated=False, vocab_size=config.vocab_size)
        batch = replace(batch, tokens=tokens.to(torch.int32), logit_rows=None)
        return model(batch.to(model.device), cache)[0].cpu()

    return compute


def errors(executor: CpuExecutor) -> dict[str, dict[str, float]]:
    """Relative RMSE by tensor and format; ``normal`` are normal numbers."""
    found: dict[str, dict[str, float]] = {}
    normal = torch.randn(1024, 2048, generator=torch.Generator().manual_seed(0))
    for name, rounded in formats(executor).items():
        scheme = scheme_of(name)
        for tensor, weight in {"normal": normal, **quantised_tensors(scheme)}.items():
            found.setdefault(tensor, {})[name] = relative_rmse(weight, rounded(weight))
    return found


def rounded_models(executor: CpuExecutor) -> dict[str, Compute]:
    """Pocket in every format by name, as stored first."""
    rounded = {name: rounded_model(own, scheme_of(name)) for name, own in formats(executor).items()}
    return {STORED: rounded_model(None, "int8"), **rounded}


def show(found: dict[str, Score], wrong: dict[str, dict[str, float]]) -> None:
    """Print both tables."""
    console = Console(width=120)
    stored = found[STORED]
    bits = Table(
        "", "bits per byte", f"above {STORED}", "above the peer", "KL", "KL above the peer"
    )
    for name, one in found.items():
        peer = PEERS.get(name.removesuffix(RUN))
        held = ("", "")
        if peer is not None:
            held = (_difference(*one.above(found[peer])), _difference(*one.farther(found[peer])))
        more = _difference(*one.above(stored))
        apart, _ = one.farther(stored)
        bits.add_row(name, f"{one.bits_per_byte:.5f}", more, held[0], f"{apart:.5f}", held[1])
    console.print(
        f"pocket on {stored.text_bytes:,} bytes of held-out Python; +- standard errors; KL from "
        "the model as stored, in bits per byte"
    )
    console.print(bits)
    names = [name for pair in PEERS.items() for name in pair]
    kinds = Table("tensor", *names, title="relative RMSE, mean over layers")
    grouped: dict[str, list[dict[str, float]]] = {}
    for tensor, by_format in wrong.items():
        grouped.setdefault(_LAYER.sub("", tensor), []).append(by_format)
    for kind, members in grouped.items():
        means = [sum(one[name] for one in members) / len(members) for name in names]
        kinds.add_row(kind, *(f"{mean:.3%}" for mean in means))
    console.print(kinds)


def _difference(more: float, error: float) -> str:
    return f"{more:+.5f} +- {error:.5f}"


def write_csv(
    path: Path, machine: Machine, found: dict[str, Score], wrong: dict[str, dict[str, float]]
) -> None:
    """One line per figure; the file is written anew."""
    head = [machine.date, machine.commit, machine.machine, machine.instruction_sets]
    lines: list[tuple[str, str, str, float, float | str]] = []
    for name, one in found.items():
        text = f"held-out Python, {one.text_bytes} bytes"
        lines.append(("bits per byte", text, name, one.bits_per_byte, ""))
        peer = PEERS.get(name.removesuffix(RUN))
        for other in (STORED, peer):
            if other is not None and other != name:
                bits, divergence = one.above(found[other]), one.farther(found[other])
                lines.append((f"bits per byte above {other}", text, name, *bits))
                lines.append((f"KL in bits per byte above {other}", text, name, *divergence))
    for tensor, by_format in wrong.items():
        lines += [("relative RMSE", tensor, name, value, "") for name, value in by_format.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["date", "commit", "machine", "instruction_sets", *COLUMNS])
        for *names, value, error in lines:
            shown = error if isinstance(error, str) else f"{error:.2e}"
            writer.writerow([*head, *names, f"{value:.6g}", shown])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantisation_accuracy", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--characters", type=int, default=200_000, help="of text")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--threads", type=int, default=available_threads())
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    machine = look(options.threads)
    executor = CpuExecutor(options.threads)
    texts = held_out_code(options.characters)
    window = load_model("pocket").config.max_position_embeddings
    models = rounded_models(executor)
    models |= {scheme + RUN: packed_model(scheme, executor) for scheme in PEERS}
    found, wrong = score(models, texts, window), errors(executor)
    show(found, wrong)
    write_csv(options.csv, machine, found, wrong)


if __name__ == "__main__":
    main()
