"""One process that has imported what never changes, and forks wherever a test needs another.

It computes nothing, so its children have no thread to miss. Of the package only the store is in it,
which reads no environment: everything else is imported in the child.
"""

from __future__ import annotations

import multiprocessing

PRELOADED = [
    "alembic.command", "argon2", "asyncio", "dsv2.service.store", "numpy", "prompt_toolkit",
    "psycopg", "pydantic", "rich.progress", "safetensors", "sqlalchemy",
    "tests.service.store.worker", "tokenizers", "torch", "torch.nn", "typer", "yaml",
]  # fmt: skip

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(PRELOADED)
