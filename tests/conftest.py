from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.models import save_tiny

# Triton decides when it is first imported: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny V2.5-format model in the published layout."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))
