from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import save_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny V2.5-format model in the published layout."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))
