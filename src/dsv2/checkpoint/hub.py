"""From a name to a folder: local, shipped, or pulled from a hub."""

from __future__ import annotations

import importlib.util
import re
from importlib.resources import files
from pathlib import Path

from dsv2.checkpoint.releases import RELEASES

PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "dsv2.manifest.json",
]
"""All that is ever fetched: no code, no pickle."""

SOURCES = ("huggingface", "modelscope")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class ModelNotFoundError(ValueError):
    """No model of that name is here."""


def repository_of(name: str) -> str | None:
    """The hub repository of a release or ``owner/model`` name, or None."""
    if name in RELEASES:
        return RELEASES[name].repository
    return name if _REPOSITORY.fullmatch(name) else None


def pocket_folder() -> Path:
    """The folder of the model that the package ships."""
    return Path(str(files("dsv2"))) / "pocket"


def resolve(name: str | Path) -> Path:
    """The folder of a model: a local one, ``pocket``, or one that ``dsv2 pull`` has fetched.

    Raises:
        ModelNotFoundError: there is none, with what to do about it.
    """
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if str(name) == "pocket":
        return pocket_folder()
    if folder.is_dir():
        raise ModelNotFoundError(f"{folder}: the folder has no config.json")
    repository = repository_of(str(name))
    if repository is None:
        raise ModelNotFoundError(
            f"model {str(name)!r} is neither a folder nor a known name; known are pocket, "
            f"{', '.join(RELEASES)} and any owner/model of a hub"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True, allow_patterns=PATTERNS))
    except LocalEntryNotFoundError:
        raise ModelNotFoundError(
            f"model {str(name)!r} is not on this machine; fetch it with: dsv2 pull {name}"
        ) from None


def pull(name: str, source: str = "huggingface", revision: str | None = None) -> Path:
    """Fetch a model's weights, configuration and tokenizer; resumes where it stopped.

    Raises:
        ValueError: the name or the source is unknown, or the source's client is not installed.
    """
    repository = repository_of(name)
    if repository is None:
        raise ModelNotFoundError(
            f"model {name!r} is unknown; known are {', '.join(RELEASES)} and any owner/model"
        )
    if source == "huggingface":
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, revision=revision, allow_patterns=PATTERNS))
    if source != "modelscope":
        raise ValueError(f"source {source!r} is unknown, allowed are {', '.join(SOURCES)}")
    if importlib.util.find_spec("modelscope") is None:
        raise ValueError("source 'modelscope' needs its client: pip install modelscope")
    from modelscope import snapshot_download as fetch

    return Path(fetch(repository, revision=revision, allow_patterns=PATTERNS))
