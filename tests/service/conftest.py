from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from dsv2.tokenizer import Tokenizer
from tests.service.fakes import Site, pocket_tokenizer
from tests.service.live import serving
from tests.service.store import postgres


@pytest.fixture(scope="session")
def words_tokenizer() -> Tokenizer:
    """The pocket model's tokenizer, which has every control token."""
    return pocket_tokenizer()


@pytest.fixture(scope="module")
def address(site: Site) -> Iterator[str]:
    """Where the module's application is served over real sockets."""
    with serving(site.app) as found:
        yield found


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a running server."""
    if postgres.programs() is None:
        message = (
            "POSTGRESQL IS NOT INSTALLED: the store was tested with SQLite only "
            "(Debian: apt-get install postgresql)"
        )
        if os.environ.get(postgres.REQUIRED):
            pytest.fail(message)
        pytest.skip(message)
    with postgres.server() as url:
        yield url
