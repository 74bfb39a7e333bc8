"""A tiny model on disk, with a tokenizer, in the published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dsv2.checkpoint import save_model
from dsv2.model.init import init_weights
from dsv2.model.transformer import Transformer
from tests.text import train_tiny
from tests.tiny import tiny_config

VOCAB = 512


def save_tiny(folder: Path, *, chat: str = "v2.5", seed: int = 0, **fields: Any) -> Path:
    """Random weights large enough that the tokens of an answer differ from each other."""
    tokenizer = train_tiny(folder / "tokenizer", VOCAB, chat)
    config = tiny_config(
        vocab_size=VOCAB,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        **fields,
    )
    model = Transformer(config)
    init_weights(model, torch.Generator().manual_seed(seed), 0.3)
    target = folder / "model"
    save_model(model, target, dtype=torch.float32, tokenizer_files=tokenizer.files())
    return target
