"""Where the platform keeps its data."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder() -> Path:
    """The folder of the platform's data: ``DSV2_HOME``, or ``~/.local/share/dsv2``.

    Not the cache that pulled models lie in unless ``DSV2_HOME`` says so: a cache may be emptied.
    """
    return Path(os.environ.get("DSV2_HOME") or Path.home() / ".local" / "share" / "dsv2")


def database_url() -> str:
    """The database of this user where no other is named."""
    return f"sqlite:///{data_folder().absolute() / 'platform.sqlite'}"
