from __future__ import annotations

from pathlib import Path

import pytest

from dsv2.tokenizer import Tokenizer
from tests.text import train_tiny


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tiny(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files")
    train_tiny(path)
    return path
