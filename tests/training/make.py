"""Small shards and recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dsv2.training.config import TrainConfig
from dsv2.training.shards import ShardWriter
from tests.tiny import tiny_config

VOCAB = 160


def write_shards(
    folder: Path, lengths: list[int], *, masked: bool = False, seed: int = 0, **options: Any
) -> Path:
    """Documents of those lengths; tokens count up from a random start, so a model can learn."""
    generator = np.random.default_rng(seed)
    with ShardWriter(folder, VOCAB, masked=masked, **options) as writer:
        for length in lengths:
            start = int(generator.integers(2, VOCAB))
            ids = [(start + place) % (VOCAB - 2) + 2 for place in range(length)]
            mask = [bool(flag) for flag in generator.integers(0, 2, length)] if masked else None
            writer.add(ids, mask, length)
    return folder


def recipe(folder: Path, **overrides: Any) -> TrainConfig:
    """A pre-training of a tiny model in fp32."""
    fields: dict[str, Any] = {
        "stage": "pretrain",
        "model": tiny_config(vocab_size=VOCAB, max_position_embeddings=64).model_dump(),
        "data": {"train": str(folder)},
        "batch": {"sequence_length": 32, "rows": 4, "micro_rows": 2},
        "tokens": 40 * 4 * 32,
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 5},
        "precision": "fp32",
        "device": "cpu",
        "init_std": 0.05,
        "log_every": 1,
        "save": {"every_steps": 1000, "keep": 2},
    }
    return TrainConfig.model_validate(fields | overrides)
