from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType

import pytest

from tests.kernels.test_flashinfer import Wrapper


@pytest.fixture
def flashinfer_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashInfer, as far as anybody can see."""
    module = ModuleType("flashinfer.mla")
    module.BatchMLAPagedAttentionWrapper = Wrapper  # type: ignore[attr-defined]
    package = ModuleType("flashinfer")
    package.__spec__ = importlib.machinery.ModuleSpec("flashinfer", None)
    package.mla = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", package)
    monkeypatch.setitem(sys.modules, "flashinfer.mla", module)
