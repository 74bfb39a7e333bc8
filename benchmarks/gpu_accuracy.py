"""What formats of weights and cache cost pocket on a GPU, in bits per byte and divergence.

    PYTHONPATH=src python -m benchmarks.gpu_accuracy --csv gpu_accuracy.csv

The text is held-out Python, as in :mod:`benchmarks.quantisation_accuracy`. Every format runs on the
Triton executor as the engine runs prompts, keys and values read back from the cache; the first line
has weights and cache in fp32, and the others' divergence (KL) is from it.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.peers.machine import commit
from benchmarks.quantisation_accuracy import Score, held_out_code, packed_model, score
from dsv2.checkpoint.hub import pocket_folder
from dsv2.checkpoint.quantised import quantise_checkpoint
from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.executor import make_executor
from dsv2.model.config import ModelConfig

FORMATS = (
    ("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "fp8"), ("bfloat16", "int8"),
    ("bfloat16", "int6"), ("fp8", "bfloat16"), ("int8", "bfloat16"), ("int4", "bfloat16"),
    ("int4", "int6"),
)  # fmt: skip
"""Weights and cache; the first is what the others are held against."""
COLUMNS = ("weights", "cache", "bits_per_byte", "above_fp32", "standard_error", "kl_bits_per_byte")


def measure(device: str, characters: int) -> dict[tuple[str, str], Score]:
    """Every format on the same text."""
    executor = make_executor("triton", device, deterministic=False)
    window = ModelConfig.from_file(pocket_folder() / "config.json").max_position_embeddings
    with tempfile.TemporaryDirectory() as folder:
        coded = Path(folder) / "fp8"
        quantise_checkpoint(pocket_folder(), coded, "fp8", CpuExecutor(1))
        models = {
            f"{weights} {cache}": packed_model(
                weights, executor, cache, coded if weights == "fp8" else "pocket"
            )
            for weights, cache in FORMATS
        }
        found = score(models, held_out_code(characters), window)
    return {names: found[" ".join(names)] for names in FORMATS}


def main(words: Sequence[str] | None = None) -> None:
    own = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_accuracy", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    own.add_argument("--characters", type=int, default=200_000, help="of text")
    own.add_argument("--csv", type=Path)
    own.add_argument("--commit", help="where the checkout has no history")
    options = own.parse_args(words)
    found = measure("cuda", options.characters)
    stored = found[FORMATS[0]]
    lines = []
    for (weights, cache), one in found.items():
        more, error = one.above(stored)
        kl = one.farther(stored)[0]
        lines.append((weights, cache, one.bits_per_byte, more, error, kl))
        print(
            f"{weights:9} weights, {cache:9} cache: {one.bits_per_byte:.5f} bits per byte, "
            f"{more:+.5f} +- {error:.5f} above fp32, KL {kl:.5f}"
        )
    if options.csv is not None:
        facts = [
            datetime.datetime.now(datetime.UTC).date().isoformat(),
            options.commit or commit(), torch.cuda.get_device_name(), torch.__version__,
            stored.text_bytes,
        ]  # fmt: skip
        with options.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["date", "commit", "machine", "torch", "text_bytes", *COLUMNS])
            for weights, cache, *values in lines:
                writer.writerow([*facts, weights, cache, *(f"{one:.5g}" for one in values)])


if __name__ == "__main__":
    main()
