"""From a name to a folder: local, shipped, or pulled from a hub; and what has been pulled."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv2.checkpoint.releases import RELEASES

PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
]
"""All that is ever fetched: no code, no pickle."""

HUBS = ("huggingface", "modelscope")
TIMEOUT = 5.0
"""Seconds that a hub has to answer the first question."""

MODELSCOPE = "https://modelscope.cn"
CHECKSUMS = "checksums.json"
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PIECE = 1 << 22


class ModelNotFoundError(ValueError):
    """No model of that name is here."""


class HubError(ValueError):
    """A hub cannot be reached, does not have a model, or sent something damaged."""


@dataclass(frozen=True)
class PulledModel:
    """A model that has been fetched.

    Attributes:
        repository: ``owner/model``.
        hub: where it came from.
        revision: commit, or empty where the hub does not say.
        folder: where its files are.
        size: bytes of its files.
    """

    repository: str
    hub: str
    revision: str
    folder: Path
    size: int

    @property
    def release(self) -> str | None:
        """The short name, for a published model."""
        return release_of(self.repository)


def release_of(repository: str) -> str | None:
    """The short name of a published model's repository, or None."""
    names = [name for name, one in RELEASES.items() if one.repository == repository]
    return names[0] if names else None


def repository_of(name: str) -> str | None:
    """The hub repository of a release or ``owner/model`` name, or None."""
    if name in RELEASES:
        return RELEASES[name].repository
    return name if _REPOSITORY.fullmatch(name) and ".." not in name else None


def pocket_folder() -> Path:
    """The folder of the model that the package ships."""
    return Path(__file__).parents[1] / "pocket"


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
    return find_pulled(str(name)).folder


def find_pulled(name: str) -> PulledModel:
    """The pulled model of that name, from whichever hub.

    Raises:
        ModelNotFoundError: it has not been pulled, or the name is no model's.
    """
    repository = repository_of(name)
    if repository is None:
        raise ModelNotFoundError(
            f"model {name!r} is neither a folder nor a known name; known are pocket, "
            f"{', '.join(RELEASES)} and any owner/model of a hub"
        )
    for model in pulled_models():
        if model.repository == repository:
            return model
    raise ModelNotFoundError(
        f"model {name!r} is not on this machine; fetch it with: dsv2 pull {name}"
    )


def pulled_models() -> Iterator[PulledModel]:
    """Every complete model of this architecture that has been fetched."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        repositories: list[Any] = []
    else:
        repositories = sorted(cache.repos, key=lambda one: one.repo_id)
    for repository in repositories:
        newest = sorted(repository.revisions, key=lambda one: -one.last_modified)
        for revision in newest[:1]:
            folder = Path(revision.snapshot_path)
            if repository.repo_type == "model" and _is_ours(folder):
                yield PulledModel(
                    repository.repo_id, "huggingface", revision.commit_hash, folder,
                    revision.size_on_disk,
                )  # fmt: skip
    for config in sorted(_modelscope_root().glob("*/*/config.json")):
        folder = config.parent
        if _is_ours(folder) and (folder / CHECKSUMS).is_file():
            size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
            yield PulledModel(f"{folder.parent.name}/{folder.name}", "modelscope", "", folder, size)


def _is_ours(folder: Path) -> bool:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("model_type") == "deepseek_v2"


def data_home() -> Path:
    """Where dsv2 keeps what it fetched or converted itself: ``DSV2_HOME`` or ``~/.cache/dsv2``."""
    return Path(os.environ.get("DSV2_HOME") or Path.home() / ".cache" / "dsv2")


def _modelscope_root() -> Path:
    return data_home() / "modelscope"


def missing_weights(folder: Path) -> list[str]:
    """The weight files that a broken-off pull has not fetched."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.exists():
        try:
            names = {
                str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return [index.name]
    return sorted(name for name in names if not (folder / name).is_file())


def pull_verified(name: str, hub: str = "huggingface", revision: str | None = None) -> Path:
    """:func:`pull`, then compare the copy just fetched with the hub's checksums.

    Raises:
        ModelNotFoundError, HubError: as :func:`pull` and :func:`verify`; files that differ are
            deleted.
    """
    folder = pull(name, hub, revision)
    repository = repository_of(name) or name
    damaged = verify(PulledModel(repository, hub, revision or "", folder, 0))
    for file in damaged:
        (folder / file).resolve().unlink(missing_ok=True)  # on Hugging Face's side of the link
        (folder / file).unlink(missing_ok=True)
    if damaged:
        raise HubError(
            f"{repository}: damaged files: {', '.join(damaged)}; they were deleted, and the same "
            "command fetches them again"
        )
    return folder


def pull(name: str, hub: str = "huggingface", revision: str | None = None) -> Path:
    """Fetch a model's weights, configuration and tokenizer; resumes where it stopped.

    Raises:
        ModelNotFoundError: the name is no model's.
        HubError: the hub cannot be reached or does not have it, or its client is not installed.
    """
    repository = repository_of(name)
    if repository is None:
        raise ModelNotFoundError(
            f"model {name!r} is unknown; known are {', '.join(RELEASES)} and any owner/model"
        )
    if hub == "huggingface":
        return _pull_huggingface(repository, revision)
    if hub != "modelscope":
        raise HubError(f"hub {hub!r} is unknown, allowed are {', '.join(HUBS)}")
    return _pull_modelscope(repository, revision)


def _pull_huggingface(repository: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE is set; unset it to pull a model")
    _check_reachable(constants.ENDPOINT)
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=PATTERNS))
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[0]
        raise HubError(f"{constants.ENDPOINT} does not give {repository}: {reason}") from error
    except _transport_errors() as error:
        raise HubError(
            f"the connection to {constants.ENDPOINT} was lost: {error or type(error).__name__}; "
            "what was fetched so far is kept, and the same command goes on from there"
        ) from error


def _check_reachable(endpoint: str) -> None:
    """Ask once, without the client's retries: no network has to be an error at once."""
    if not endpoint.startswith(("https://", "http://")):  # urllib reads files too
        raise HubError(f"the hub's address is {endpoint!r:.200}, allowed is https:// or http://")
    try:
        with urllib.request.urlopen(f"{endpoint}/", timeout=TIMEOUT):  # noqa: S310
            pass
    except urllib.error.HTTPError as error:
        error.close()  # An answer, whatever it says: the hub is there.
    except (urllib.error.URLError, OSError) as error:
        raise HubError(f"cannot reach {endpoint}: {getattr(error, 'reason', error)}") from error


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises for a lost connection, whichever library it stands on."""
    found: list[type[Exception]] = [ConnectionError, TimeoutError]
    for library in ("httpx2", "httpx", "requests"):
        if library in sys.modules:
            base = sys.modules[library]
            found.append(getattr(base, "HTTPError", OSError))
            found.append(getattr(base, "RequestException", OSError))
    return tuple(found)


def _pull_modelscope(repository: str, revision: str | None) -> Path:
    if importlib.util.find_spec("modelscope") is None:
        raise HubError("hub 'modelscope' needs its client: pip install modelscope")
    import requests
    from modelscope import snapshot_download
    from modelscope_hub.errors import HubError as ClientError

    endpoint = os.environ.get("MODELSCOPE_ENDPOINT") or MODELSCOPE
    _check_reachable(endpoint)
    folder = _modelscope_root() / repository
    try:
        snapshot_download(
            repository, revision=revision, local_dir=str(folder), allow_patterns=PATTERNS
        )
        sums = _modelscope_sums(endpoint, repository, revision or "master")
    except (requests.RequestException, ConnectionError, ClientError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0]
        raise HubError(f"{endpoint} does not give {repository}: {reason}") from error
    kept = {name: found for name, found in sums.items() if (folder / name).is_file()}
    (folder / CHECKSUMS).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return folder


def _modelscope_sums(endpoint: str, repository: str, revision: str) -> dict[str, str]:
    """SHA-256 of each file, from the listing itself: the client does not pass them on."""
    query = urllib.parse.urlencode({"Revision": revision, "Recursive": "true"})
    address = f"{endpoint}/api/v1/models/{repository}/repo/files?{query}"
    # _check_reachable has seen the address's scheme.
    with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:  # noqa: S310
        listed = json.load(answer)["Data"]["Files"]
    return {one["Path"]: one["Sha256"] for one in listed if one.get("Sha256")}


def verify(model: PulledModel, on_file: Callable[[str], None] | None = None) -> list[str]:
    """Compare every file with the hub's checksum; the names of those that differ.

    Hugging Face names each stored file by its SHA-256, or for small ones by its git hash;
    ModelScope's are kept from the pull.

    Raises:
        HubError: files of Hugging Face's cache are no links, so that nothing tells their checksums.
    """
    sums: dict[str, str] = {}
    if model.hub == "modelscope":
        sums = json.loads((model.folder / CHECKSUMS).read_text(encoding="utf-8"))
    damaged = []
    for path in sorted(model.folder.rglob("*")):
        name = path.relative_to(model.folder).as_posix()
        if not path.is_file() or name == CHECKSUMS or name.startswith("."):
            continue
        if model.hub == "modelscope":
            expected = sums.get(name)
        else:
            expected = path.resolve().name
            if not _HASH.fullmatch(expected):
                raise HubError(
                    f"{model.folder}: {name} is no link to a file named by its checksum, as in a "
                    "cache on a disk without links; nothing was verified, and nothing deleted"
                )
        if expected is not None and not _matches(path, expected):
            damaged.append(name)
        if on_file is not None:
            on_file(name)
    return damaged


def _matches(path: Path, expected: str) -> bool:
    if len(expected) == 64:
        found = hashlib.sha256()
    elif len(expected) == 40:
        found = hashlib.sha1(usedforsecurity=False)
        found.update(f"blob {path.stat().st_size}\0".encode())
    else:
        return False
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest() == expected


def remove(model: PulledModel) -> int:
    """Delete a pulled model, every revision of it; the bytes that this freed."""
    if model.hub == "modelscope":
        shutil.rmtree(model.folder)
        return model.size
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir()
    revisions = [
        revision.commit_hash
        for repository in cache.repos
        if repository.repo_id == model.repository and repository.repo_type == "model"
        for revision in repository.revisions
    ]
    strategy = cache.delete_revisions(*revisions)
    strategy.execute()
    return int(strategy.expected_freed_size)
