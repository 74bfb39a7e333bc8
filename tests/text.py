"""A little text and a tokenizer trained on it."""

from __future__ import annotations

from pathlib import Path

import dsv2.model
import dsv2.tokenizer.train
from dsv2.tokenizer import Tokenizer
from dsv2.tokenizer.train import train_bpe


def sources() -> list[str]:
    """The package's own sources, which are there wherever the tests are."""
    folder = Path(next(iter(dsv2.model.__path__))).parent
    return [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))]


def train_tiny(folder: Path, vocab_size: int = 512, chat: str = "v2.5") -> Tokenizer:
    """A tokenizer of ``vocab_size`` ids, written to ``folder``."""
    return train_bpe(sources(), vocab_size, folder, chat=chat)
