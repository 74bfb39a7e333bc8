from __future__ import annotations

import pytest

from dsv2.tokenizer import Tokenizer
from tests.service.fakes import pocket_tokenizer


@pytest.fixture(scope="session")
def words_tokenizer() -> Tokenizer:
    """The pocket model's tokenizer, which has every control token."""
    return pocket_tokenizer()
